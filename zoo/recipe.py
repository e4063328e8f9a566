"""A recipe's sections as data: what was asked for, and in what it differs from what a checkpoint says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from zoo import checkpoints, plugins
from zoo.errors import ZooError
from zoo.strict_yaml import check_yaml, read_text
from zoo.values import annotations_of, brief

FREE = {"optimizer", "schedule", "adapter", "weights", "smoothing"} | {
    # Of the machine.
    "compile",
    "chunk",
    "checkpointing",
    "feed_forward_chunk",
    "sequence_parallel",
}
"""Arguments of a task that a checkpoint's weights do not depend on."""
TOLD = {"vocabulary", "classes", "channels", "size"}
"""Arguments of a network that the data tell where a recipe leaves them open."""


SECTIONS = ("model", "data", "trainer")
"""Sections of a recipe that are mappings, or the name of a class."""


NUMBERS: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
"""Types that do not have null, in words."""


def check_recipe(path: Path) -> None:
    """Raise ZooError where a recipe is no text in UTF-8, no strict YAML, or has a section that is no mapping.

    Args:
        path: The file.
    """
    text = read_text(path)
    try:
        check_yaml(text)
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ZooError(f"The recipe {path} cannot be read as YAML: {reason}") from None
    if not isinstance(found, Mapping):
        raise ZooError(f"The recipe {path} is not a mapping of sections such as model, data and trainer.")
    for name, section in found.items():
        if not isinstance(name, str):
            raise ZooError(f"The recipe {path} has the key {name!r}, and keys are words.")
        if name in SECTIONS and not (section is None or isinstance(section, Mapping | str)):
            raise ZooError(
                f"The section {name} of the recipe {path} is {brief(section)}, and a section is a mapping of settings "
                "to values."
            )


def refuse_nulls(arguments: Mapping[str, Any], classes: Sequence[type], where: str) -> None:
    """Raise ZooError where null stands for a setting whose type does not have it.

    Args:
        arguments: Of a section, by name.
        classes: Which they build.
        where: The section, for the message.
    """
    known = annotations_of(*classes)
    for name, value in arguments.items():
        kind = NUMBERS.get(known.get(name))
        if value is None and kind is not None:
            raise ZooError(f"{where}.{name} takes {kind}, and got null.   Try:  leaving it out, for its default")


def plain(section: Any) -> dict[str, Any]:
    """A parsed section as dictionaries, lists and numbers, classes by the names that a recipe uses."""
    return simplified(section.as_dict() if hasattr(section, "as_dict") else section)


def simplified(value: Any) -> Any:
    """`value` in containers, numbers and strings only."""
    if isinstance(value, Mapping):
        return {key: simplified(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [simplified(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def differences(there: Any, here: Any, path: str = "model") -> Iterator[str]:
    """A line for each argument that differs and that the weights depend on."""
    if path == "model.init_args.kernel" and alike(there, here):
        return
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*there, *(key for key in here if key not in there)]:
            if not (path == "model.init_args" and key in FREE):
                yield from differences(there.get(key), here.get(key), f"{path}.{key}")
    elif there != here and not (there in (None, {}) and here in (None, {}, 0)):  # an argument of a later version is 0
        yield f"{path.replace('.init_args', '')}: {there} in the checkpoint, {here} asked for"


def named(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model section with its plugins named by the registry: import paths change from version to version."""
    return {**model, "init_args": renamed(model["init_args"], checkpoints.SLOTS)}


def renamed(arguments: Mapping[str, Any], slots: Mapping[str, str]) -> dict[str, Any]:
    """Arguments with the plugins in these slots named by the registry, and those among their arguments."""
    found = dict(arguments)
    for slot, group in slots.items():
        node = found.get(slot)
        if isinstance(node, Mapping):
            name = str(node.get("class_path", "")).rpartition(".")[2]
            inner = renamed(node.get("init_args") or {}, checkpoints.NESTED)
            path = name if name in plugins.names(group) else node.get("class_path")
            found[slot] = {**node, "class_path": path, **({"init_args": inner} if inner else {})}
    return found


def alike(there: Any, here: Any) -> bool:
    """Whether two kernels are implementations of one form, so that either continues the other's model."""
    names = [(node or {}).get("class_path", "").rpartition(".")[2] for node in (there, here)]
    return all(names) and len({plugins.load("zoo.kernels", name).form for name in names}) == 1
