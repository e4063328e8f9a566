"""What a checkpoint declares, held against the sizes of its files before memory is allocated for it."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, escape_controls, listing
from zoo.values import is_plain

LARGEST_TEXT = 64 << 20
"""Bytes of an unpacked tokenizer or config at most; the largest tokenizers in use have half as many."""
LONGEST = 1 << 40
"""Tokens that a description may speak of."""
DEEPEST, MOST = 32, 1_000_000
"""Levels of a description, and values in it."""
WIDTHS = ("dim", "hidden", "heads", "kv_heads", "head_dim", "vocabulary", "classes", "channels", "patch", "registers")
"""Arguments of a network of which none exceeds the largest dimension of its tensors."""
METHOD = re.compile(r"[\w.+ -]{0,200}")
"""What an extension may be called, so that its name is no markup in a card."""
LENGTHS = ("length", "reach", "window", "sinks", "feed_forward_chunk")
SIDE = 1 << 16
"""Pixels of a side of an image."""
Lengths = int | list[int]
SCHEMA: Mapping[str, Any] = {
    "format": int,
    "zoo": str,
    "task": str,
    "network": dict[str, Any],
    "plugins": dict[str, Any],
    "tokenizer": dict[str, Any],
    "trained": dict[str, Any] | None,
    "asked": dict[str, Any] | None,
    "extended": dict[str, Any] | None,
    "corpus": str | None,
    "data_identity": dict[str, Any] | None,
    "parent": str | list[str] | dict[str, Any] | None,
}
"""Types of what a description says."""
TRAINED: Mapping[str, Any] = {"steps": int | None, "epochs": int | None, "adapter": dict[str, Any] | None}
EXTENDED: Mapping[str, Any] = {"length": Lengths | None, "base": float | None, "chain": list[dict[str, Any]]}
LINK: Mapping[str, Any] = {
    "method": str,
    "to": Lengths,
    "from": Lengths,
    "factor": float | list[float] | None,
    "arguments": dict[str, Any] | None,
    "steps": int | None,
    "tuned": list[dict[str, Any]] | None,
}
TUNED: Mapping[str, Any] = {"steps": int | None, "length": Lengths | None, "positions": str | None}


@contextmanager
def reporting_damage(path: object, what: str = "") -> Iterator[None]:
    """Say of whatever goes wrong while a file is read that the file is damaged.

    Args:
        path: The file.
        what: What of it is read, for the message.
    """
    try:
        yield
    except (ZooError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        raise ZooError(f"{path} is damaged{what}: {type(error).__name__}{': ' * bool(reason)}{reason}.") from error


def check_schema(about: Mapping[str, Any], path: object) -> None:
    """Raise ZooError where a description has not the shape of one."""
    wrong = mismatches(about, SCHEMA)
    extended = about.get("extended")
    if not wrong and extended:
        wrong += [f"extended.{name}" for name in mismatches(extended, EXTENDED)]
        links = extended.get("chain") if not wrong else None
        for link in links or []:
            wrong += [f"extended.{name}" for name in mismatches(link, LINK)]
            named = {"method", "to"} <= link.keys() and METHOD.fullmatch(str(link["method"]))
            wrong += [] if named else ["extended"]
            for run in (link.get("tuned") or []) if not wrong else []:
                wrong += [f"extended.tuned.{name}" for name in mismatches(run, TUNED)]
        wrong += [] if links or wrong else ["extended"]
    if not wrong and about.get("trained"):
        wrong += [f"trained.{name}" for name in mismatches(about["trained"], TRAINED)]
    for name, section in (about.get("asked") or {}).items() if not wrong else ():
        arguments = section.get("init_args") if isinstance(section, Mapping) else {}
        if name in ("model", "data") and not (section is None or isinstance(section, Mapping)):
            wrong.append(f"asked.{name}")
        elif not (arguments is None or isinstance(arguments, Mapping)):
            wrong.append(f"asked.{name}.init_args")
    if wrong:
        places = listing(dict.fromkeys(wrong))
        raise ZooError(f"{path} is damaged: what it says under {places} is not what a checkpoint says there.")


def mismatches(found: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Names whose values are of another type than a schema says, or are numbers that count nothing."""
    return [
        name
        for name, hint in schema.items()
        if name in found and not (is_shaped(found[name], hint) and within(found[name]))
    ]


def is_shaped(value: Any, hint: Any) -> bool:
    """Whether a value is of a type of the schema; what a mapping to anything holds is not looked at."""
    if isinstance(value, Mapping):
        return "dict" in str(hint)
    if isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
        return "list[dict" in str(hint) and all(isinstance(each, Mapping) for each in value)
    return is_plain(value, hint)


def within(value: Any) -> bool:
    """Whether numbers are not below 0 and can be counted to."""
    if isinstance(value, list | tuple):
        return all(map(within, value))
    return isinstance(value, bool) or not isinstance(value, int | float) or 0 <= value <= LONGEST


def check_sizes(network: Mapping[str, Any], shapes: Sequence[Sequence[int]], path: object) -> None:
    """Raise ZooError where a network declares more layers, or wider ones, than its tensors have.

    Args:
        network: Its description.
        shapes: Of the tensors that are stored for it.
        path: The checkpoint, for messages.
    """
    arguments = network.get("init_args")
    if not isinstance(arguments, Mapping):
        raise ZooError(f"{path} is damaged: it does not describe a network.")
    for name in ("position", "kernel"):
        check_node(arguments.get(name), f"{path} is damaged: it declares {name}")
    largest = max((size for shape in shapes for size in shape), default=0)
    bounds = {"layers": len(shapes), **dict.fromkeys(WIDTHS, largest), **dict.fromkeys(LENGTHS, LONGEST), "size": SIDE}
    for name, bound in bounds.items():
        value = arguments.get(name)
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(number, int | float) and not 0 <= number <= bound for number in numbers):
            raise ZooError(
                f"{path} is damaged: it declares {name} {brief_number(value)}, and its weights have "
                + (f"{len(shapes)} tensors." if name == "layers" else f"at most {bound}.")
            )


def check_node(node: Any, where: str) -> None:
    """Raise ZooError where what describes a plugin is no class with a mapping of arguments, or null."""
    while node is not None:
        arguments = node.get("init_args") if isinstance(node, Mapping) else None
        named = isinstance(node, Mapping) and isinstance(node.get("class_path"), str)
        if not named or not (arguments is None or isinstance(arguments, Mapping)):
            raise ZooError(f"{where}, which describes no plugin by its name and a mapping of arguments.")
        node, where = (arguments or {}).get("extension"), f"{where}.extension"


def brief_number(value: Any) -> str:
    """A number for a message; of a very long one its length."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "of more than 30 digits"
    return str(value)[:60]


def escape_description(about: Any, path: object) -> Any:
    """A description in lists and mappings, whose words hold nothing that steers a terminal.

    The text of a tokenizer stays as it is.

    Raises ZooError where it is nested too deeply, or has too many values, as where aliases multiply them.
    """
    left = [MOST]

    def escape(value: Any, depth: int) -> Any:
        left[0] -= 1
        if depth > DEEPEST or left[0] < 0:
            raise ZooError(
                f"{path} is damaged: its description is nested more than {DEEPEST} levels deep, or has more than "
                f"{MOST} values."
            )
        if isinstance(value, str):
            return escape_controls(value)
        if isinstance(value, list | tuple):
            return [escape(each, depth + 1) for each in value]
        if isinstance(value, Mapping):
            return {
                escape(key, depth + 1): each if key == "tokenizer" and not depth else escape(each, depth + 1)
                for key, each in value.items()
            }
        if value is not None and not isinstance(value, bool | int | float):
            raise ZooError(f"{path} is damaged: its description holds a value of the type {type(value).__name__}.")
        return value

    found = escape(about, 0)
    if isinstance(found, dict) and isinstance(tokenizer := found.get("tokenizer"), Mapping):
        found["tokenizer"] = {**tokenizer, "name": escape_controls(str(tokenizer.get("name", "")))[:200]}
    return found


def unpack(data: bytes, what: str) -> bytes:
    """What zlib has packed, of at most `LARGEST_TEXT` bytes; ZooError where it is more."""
    machine = zlib.decompressobj()
    found = machine.decompress(data, LARGEST_TEXT)
    if machine.unconsumed_tail:
        raise ZooError(f"{what} unpacks to more than {LARGEST_TEXT >> 20} MiB, which none in use does: it is refused.")
    return found + machine.flush()


def read_json(path: Path) -> Any:
    """The content of a JSON file of at most `LARGEST_TEXT` bytes.

    Raises ZooError where it is larger, nested too deeply, or no JSON.
    """
    if (size := path.stat().st_size) > LARGEST_TEXT:
        raise ZooError(f"{path} has {size >> 20} MiB, and a file of settings has at most {LARGEST_TEXT >> 20}.")
    with reporting_damage(path):
        return json.loads(path.read_text(encoding="utf-8"))
