"""A recipe's sections as data: what was asked for, and in what it differs from what a checkpoint says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from zoo import checkpoints, plugins

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
