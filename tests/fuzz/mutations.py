"""Changes to values, structures and bytes, drawn from a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

NAMES = ("hostile_module.run", "hostile_module.Calls", "os.system", "this", "subprocess.Popen", "builtins.eval")
NODES: tuple[dict[str, Any], ...] = (
    {"class_path": "hostile_module.run", "init_args": {"command": "touch ran"}},
    {"class_path": "hostile_module.Calls", "init_args": {"function": "hostile_module.run"}},
    {"class_path": "os.system", "init_args": {"command": "touch ran"}},
    {"class_path": "this"},
    {"class_path": "RoPE", "init_args": {"base": "hostile_module.run"}},
)


def nested(depth: int, kind: type) -> Any:
    """A list in a list, or a mapping in a mapping, so many levels deep."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def value(rng: random.Random, deepest: int = 400) -> Any:
    """A value that does not belong there."""
    return rng.choice(
        [
            *(None, True, False, 0, 1, -1, 3, 10**9, 10**18, -(10**9), 2**63, 10**400, 0.5, -0.0, 1e308, 1e-320),
            *(math.nan, math.inf, -math.inf, "", "x", "nan", "1e400", "0x10", "~", "null", "x" * 20_000),
            *(
                "\x1b[31mred\x07",
                "\u202eabc",
                "nobodys-secret",
                "nobodys-secret",
                "file:///nobodys-secret",
                "https://example.com/x",
            ),
            *("nowhere", "linear", "yarn", "true", "[1, 2]", "{class_path: os.system}", "!!python/name:os.system"),
            *NAMES,
            *([], {}, [1], [None], ["a", 1], [[1], [2]], {"a": 1}, {"": {}}, [10**9, 10**9], [0, 0]),
            *NODES,
            nested(deepest, list),
            nested(deepest, dict),
            [nested(3, dict)] * 3,
        ]
    )


def places(tree: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within containers."""
    if way:
        yield way
    if isinstance(tree, dict):
        for key in tree:
            yield from places(tree[key], (*way, key))
    elif isinstance(tree, list) and len(tree) < 200:
        for index in range(len(tree)):
            yield from places(tree[index], (*way, index))


def change(tree: Any, rng: random.Random, values: Any = value) -> Any:
    """A tree with one to three of its places changed, removed, renamed or doubled."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        ways = list(places(tree))
        if not ways:
            return values(rng)
        *way, last = rng.choice(ways)
        node = tree
        for step in way:
            node = node[step]
        how = rng.random()
        if how < 0.7:
            node[last] = values(rng)
        elif how < 0.8:
            del node[last]
        elif how < 0.9 and isinstance(node, dict):
            node[rng.choice([f"{last}_", "class_path", "init_args", "", "x", 5, None])] = node.pop(last)
        elif isinstance(node[last], dict):
            node[last] = list(node[last].items())
        elif isinstance(node[last], list):
            node[last] = node[last] * 2 or [1]
        else:
            node[last] = [node[last]]
    return tree


def damage(data: bytes, rng: random.Random, head: int | None = None) -> bytes:
    """Bytes with some changed, cut off, doubled or removed; in the first `head` of them if that is given."""
    content, end = bytearray(data), min(len(data), head or len(data))
    how = rng.randrange(6)
    if not end:
        return bytes(rng.randbytes(10))
    at = rng.randrange(end)
    if how == 0:
        return bytes(content[:at])
    if how == 1:
        for _ in range(rng.choice([1, 2, 8, 64])):
            content[rng.randrange(end)] ^= 1 << rng.randrange(8)
    elif how == 2:
        content[at : at + 8] = rng.choice(
            [b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, (10**9).to_bytes(8, "little")]
        )
    elif how == 3:
        content[at:at] = content[at : at + rng.choice([1, 16, 512])]
    elif how == 4:
        del content[at : at + rng.choice([1, 16, 512])]
    else:
        return bytes(rng.choice([b"", b"\0" * 100, b"PK\x03\x04", b"GGUF", b"{", b"[" * 50_000, rng.randbytes(200)]))
    return bytes(content)
