"""Which extensions an encoding owns, and a method's arguments as they are written on a command line.

A method is a name, or two with a plus between them where one works upon another: Resonance+YaRN. Its factor is never
an argument, since it follows from the lengths; a dynamic method whose factor has a default keeps that, because such a
one chooses by the request how far it stretches.
"""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from zoo import plugins
from zoo.errors import ZooError, listing, near
from zoo.extension import Conversion
from zoo.matrix import taken

GROUP = "zoo.extensions"
USUAL = "YaRN"
"""The method where none is named, and what a method works upon where none is named: few lose less without training."""


def owned(encoding: str) -> list[str]:
    """The extensions of an encoding, conversions among them; a sentence where it has none."""
    found = extending(encoding, plugins.load("zoo.positions", encoding))
    if not found:
        raise ZooError(bare(encoding))
    return found


def bare(encoding: str) -> str:
    """That an encoding takes no extension, and which do."""
    able = [name for name, each in plugins.classes("zoo.positions").items() if taken(each)]
    owner = plugins.load("zoo.positions", encoding)
    reason = f", because {owner.unextended}" if owner.unextended else ""
    return f"The encoding {encoding} takes no extension{reason}. Encodings that do: {listing(able)}."


def extending(name: str, encoding: Any) -> list[str]:
    """Names of the extensions that an encoding takes, and of the conversions that take it."""
    kinds = taken(encoding)
    return [
        method
        for method, found in plugins.classes(GROUP).items()
        if (kinds and issubclass(found, kinds)) or (issubclass(found, Conversion) and name in found.converts)
    ]


def converts(method: str) -> bool:
    """Whether a method is a conversion, which leaves no extension in the model."""
    found = plugins.classes(GROUP).get(method)
    return found is not None and issubclass(found, Conversion)


def untrained(encoding: str) -> list[str]:
    """The extensions of an encoding that are of use without training, as far as they say."""
    return [name for name in owned(encoding) if not plugins.load(GROUP, name).advice]


def usual(encoding: str, images: bool = False) -> str:
    """The method where none is named; never one that is of use after training only.

    A larger picture of the same scene puts all distances farther apart, those of neighbours too. So in images all waves
    are slowed alike.
    """
    found = untrained(encoding)
    if not found:
        others = owned(encoding)
        raise ZooError(f"{bare(encoding)} What converts it: {listing(others)}.   Try:  --method {others[0]}")
    return next((name for name in ("Linear" if images else USUAL, "DistanceScaling") if name in found), found[0])


def node(
    method: str, encoding: str, factor: float, own: Mapping[str, str], more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The description of an extension.

    Args:
        method: A name, or two with a plus between them.
        encoding: Whose extension it is to be.
        factor: Target over the length of first training.
        own: The method's own arguments, as written.
        more: Others, likewise.
    """
    own = {**own, **(more or {})}
    mine = owned(encoding)
    words = [word.strip() for word in method.split("+")]
    if len(words) > 2 or len(set(words)) < len(words) or not all(words):
        raise ZooError(
            f"A method is a name, or two with a plus between them, and got {method!r}. Names: {listing(mine)}."
        )
    for word in words:
        if word not in mine:
            plugins.find(GROUP, word)
            raise ZooError(f"{word} does not extend {encoding}. What does: {listing(mine)}.")
    kinds = [plugins.load(GROUP, word) for word in words]
    if len(words) > 1 and any(map(converts, words)):
        word = next(filter(converts, words))
        raise ZooError(f"{word} puts another encoding in the place of {encoding}, alone.   Try:  --method {word}")
    if "extension" in known(kinds[-1]):
        words, kinds = [*words, USUAL], [*kinds, plugins.load(GROUP, USUAL)]
    for word, kind in zip(words[:-1], kinds[:-1], strict=True):
        if "extension" not in known(kind):
            raise ZooError(f"{word} works upon no other extension. Try:  --method {words[-1]}")
    found: dict[str, Any] = {}
    left = dict(own)
    for word, kind in reversed(list(zip(words, kinds, strict=True))):
        arguments: dict[str, Any] = {}
        hints, parameters = get_type_hints(kind.__init__), known(kind)
        if stretched(kind):
            arguments["factor"] = factor
        for name in [name for name in left if name in parameters and name not in ("factor", "extension")]:
            arguments[name] = valued(word, name, left.pop(name), hints.get(name))
        if "factor" in left and "factor" in parameters and not stretched(kind):
            arguments["factor"] = valued(word, "factor", left.pop("factor"), hints.get("factor"))
        if found:
            arguments["extension"] = found
        found = {"class_path": word, "init_args": arguments}
    if "factor" in left:
        raise ZooError(f"{method}'s factor follows from --to and the length of first training: here it is {factor:g}.")
    if left:
        names = [name for kind in kinds for name in known(kind) if name not in ("factor", "extension")]
        word = next(iter(left))
        guess = near(word, names)
        hint = f" Did you mean {' or '.join(guess)}?" if guess else ""
        raise ZooError(f"{method} takes no argument {word}.{hint} It takes: {listing(names)}.")
    return found


def complete(node: Mapping[str, Any]) -> dict[str, Any]:
    """A description with all defaults, as a parser of recipes writes it."""
    parameters = known(plugins.load(GROUP, node["class_path"]))
    found = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
    for name, value in node["init_args"].items():
        found[name] = complete(value) if name == "extension" and value else copy.deepcopy(value)
    return {"class_path": node["class_path"], "init_args": found}


def known(kind: Any) -> dict[str, inspect.Parameter]:
    """The keywords of an extension."""
    parameters = inspect.signature(kind).parameters
    return {name: each for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}


def stretched(kind: Any) -> bool:
    """Whether its factor follows from the lengths."""
    factor = known(kind).get("factor")
    return factor is not None and not (kind.dynamic and factor.default is not factor.empty)


def valued(method: str, name: str, word: str, hint: Any) -> Any:
    """An argument of the type that the method annotates."""
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        value = word
    value = [number(each) for each in value] if isinstance(value, list) else number(value)
    if hint is not None and not fits(value, hint):
        raise ZooError(f"{method}'s {name} is {spoken(hint)}, and got {word!r}.")
    return value


def number(value: Any) -> Any:
    """1e6 is a number too, which YAML takes for a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as far as arguments of extensions have such."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(fits(each, get_args(hint)[0]) for each in value)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return hint is Any or value is None if hint in (Any, type(None)) else isinstance(value, hint)


def spoken(hint: Any) -> str:
    """A type in words."""
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a word", type(None): "null"}
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(spoken(part) for part in parts)
    if origin is Literal:
        return " or ".join(map(str, parts))
    return f"a list, each {spoken(parts[0])}" if origin is list else words.get(hint, str(hint))
