"""What a checkpoint says of itself, and the network that it describes.

Plain words and numbers: the network's class and arguments, the names and versions of the plugins it needs, its
tokenizer, how long it was trained. Plugins are stored by name, the same word as in a recipe, so a module may move
without breaking a checkpoint. A plugin may take others as arguments, as RoPE takes an extension; these are nested.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo import plugins
from zoo.checkpoints.stored import Stored, Weights
from zoo.errors import ZooError
from zoo.limits import reporting_damage
from zoo.matrix import taken, unfit
from zoo.position import PositionEncoding
from zoo.trunk import Trunk
from zoo.values import DEPTH, check_arguments

SLOTS = {"position": "zoo.positions", "kernel": "zoo.kernels"}
"""Arguments of a network that are plugins, and their groups."""
NESTED = {"extension": "zoo.extensions"}
"""Arguments of plugins that are plugins, and their groups."""
FORMAT = 1
NETWORKS = ("zoo.decoder.Decoder", "zoo.vit.ViT")
"""The networks that a description may name."""


@dataclass
class Checkpoint:
    """What a reader found.

    Args:
        path: Where.
        about: The description: format, network, plugins, tokenizer, trained, ...
        weights: The network's state dict; tensors are memory-mapped where the format allows.
    """

    path: Path
    about: dict[str, Any]
    weights: Mapping[str, Tensor] = field(repr=False)

    def network(self) -> nn.Module:
        """The network with its weights, in evaluation mode."""
        check_installed(self.about, self.path)
        with reporting_damage(self.path, ": it does not describe a network"):
            self.compare_shapes()
            with undrawn():
                model = build(self.about["network"])
        fill(model, self.weights, self.path, mapped=True)
        return model.eval()

    def compare_shapes(self) -> None:
        """Raise ZooError where the weights are those of another network, before memory is allocated for it."""
        try:
            with torch.device("meta"):
                shapes = {name: value.shape for name, value in build(self.about["network"]).state_dict().items()}
        except (RuntimeError, NotImplementedError):
            return  # of a plugin that cannot be built without memory; `fill` compares again
        stored = self.weights.stored if isinstance(self.weights, Weights) else self.weights
        report_misfits(shapes, {name: each.shape for name, each in stored.items()}, self.path)


def check_installed(about: Mapping[str, Any], path: object) -> None:
    """Raise ZooError where a description records a plugin that is not installed; it names the distribution."""
    recorded = about.get("plugins")
    for key, owner in recorded.items() if isinstance(recorded, Mapping) else ():
        words = isinstance(owner, list | tuple) and len(owner) == 2 and all(isinstance(each, str) for each in owner)
        if not words or owner[0] not in plugins.GROUPS:
            raise ZooError(f"{path} is damaged: what it says under plugins is not what a checkpoint says there.")
        (group, distribution), name = owner, str(key).rpartition(":")[2]
        if name not in plugins.names(group):
            raise ZooError(
                f"{path} needs the {plugins.GROUPS[group]} {name}, which is not installed. It was written with the "
                f"one of the distribution {distribution}: install that, if you trust it."
            )


def fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path | str, *, mapped: bool = False) -> None:
    """Load weights into a model that must be theirs; a sentence names what does not fit.

    Args:
        model: The model.
        weights: By name.
        path: Where they come from, for messages.
        mapped: Parameters may be the pages of a file, which are read when they are used, and copied when written to.
    """
    own, parameters = model.state_dict(), dict(model.named_parameters(remove_duplicate=False))
    stored = weights.stored if isinstance(weights, Weights) else weights
    shapes = {name: each.shape for name, each in stored.items()}
    report_misfits({name: value.shape for name, value in own.items()}, shapes, path)
    places: dict[tuple[int, int, int], str] = {}
    for name, mine in own.items():
        place = mine.untyped_storage()._cdata, int(mine.storage_offset()), mine.numel()
        if places.setdefault(place, name) != name:
            continue  # tied: it has been filled under another name
        theirs = weights.stored[name] if isinstance(weights, Weights) else weights[name]
        if not isinstance(theirs, Stored):
            mine.copy_(theirs)
        elif mapped and theirs.dtype == mine.dtype and name in parameters and (lying := theirs.mapped()) is not None:
            parameters[name].data = lying
        else:
            theirs.into(mine)


def report_misfits(here: Mapping[str, Any], there: Mapping[str, Any], path: Path | str) -> None:
    """Raise ZooError where the weights of a file are not those of a network, by name and shape.

    Args:
        here: Shapes of the network's weights.
        there: Shapes of the file's.
        path: The file, for the message.
    """
    wrong = [f"{name} is missing there" for name in here if name not in there]
    wrong += [f"{name} has no place here" for name in there if name not in here]
    wrong += [
        f"{name} is {list(there[name])} there and {list(shape)} here"
        for name, shape in here.items()
        if name in there and tuple(there[name]) != tuple(shape)
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ZooError(f"{path} belongs to another model: {'; '.join(wrong[:3])}{more}.")


class undrawn(TorchFunctionMode):  # noqa: N801 - it is used as a function is
    """Leave parameters as they are where numbers would be drawn for them: all are about to be replaced."""

    DRAWN = frozenset(
        {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}
    )  # those of nn.init too: what they call in turn no longer comes here

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.DRAWN and isinstance(drawn := args[0] if args else kwargs.get("tensor"), nn.Parameter):
            return drawn
        return func(*args, **kwargs)


def describe_averaging(about: Mapping[str, Any]) -> str:
    """By which callback a checkpoint's weights were averaged, as a clause; empty where they are those of one step."""
    trained = about.get("trained")
    averaged = trained.get("averaged") if isinstance(trained, Mapping) else None
    if not isinstance(averaged, Mapping):
        return ""
    return f"averaged weights ({averaged.get('by')}, {averaged.get('updates')} updates)"


def check_network(about: Mapping[str, Any], path: object) -> None:
    """Raise ZooError where a description's network, if it is one of zoo's, cannot be built from what it says.

    Nothing is built: plugins have to be installed, and arguments plain values of their types.

    Args:
        about: The description.
        path: The checkpoint, for messages.
    """
    node = about.get("network") or {}
    if node.get("class_path") not in NETWORKS:
        return
    check_installed(about, path)
    arguments = node.get("init_args") or {}
    module, _, name = str(node["class_path"]).rpartition(".")
    network = getattr(importlib.import_module(module), name)
    check_arguments(arguments, (network, Trunk), f"The description of the {name} in {path}", SLOTS)
    for slot, group in SLOTS.items():
        if isinstance(arguments.get(slot), Mapping):
            callable_of(arguments[slot], group)


def build(node: Mapping[str, Any]) -> nn.Module:
    """The network of a description, with fresh weights.

    Raises ZooError where it is none of zoo's, where a plugin is not installed, or where an argument is no plain value
    of its type.
    """
    path, arguments = node["class_path"], dict(node["init_args"])
    if path not in NETWORKS:
        raise ZooError(f"The checkpoint's network {path} is none of zoo's.")
    module, _, name = path.rpartition(".")
    network = getattr(importlib.import_module(module), name)
    check_arguments(arguments, (network, Trunk), f"The description of the {name}", SLOTS)
    for slot, group in SLOTS.items():
        if isinstance(arguments.get(slot), Mapping):
            arguments[slot] = callable_of(arguments[slot], group)
    found: nn.Module = network(**arguments)
    return found


def callable_of(node: Mapping[str, Any], group: str, depth: int = 1) -> Callable[..., Any]:
    """A plugin's description as something to call with a geometry, or with what its group is built from.

    The class is that of an installed plugin, and its arguments are plain values or descriptions of plugins.
    """
    name = node["class_path"]
    owner, arguments = plugins.load(group, name), dict(node.get("init_args") or {})
    if depth > DEPTH:
        raise ZooError(f"The description of {name} stands in more than {DEPTH} other plugins.")
    for slot, inner in NESTED.items():
        if isinstance(asked := arguments.get(slot), Mapping):
            if not issubclass(plugins.load(inner, asked["class_path"]), taken(owner)):
                raise ZooError(unfit(owner, asked["class_path"]))
            arguments[slot] = callable_of(asked, inner, depth + 1)
    plain = {key: value for key, value in arguments.items() if not (key in NESTED and callable(value))}
    check_arguments(plain, (owner,), f"The description of {name}", NESTED)
    return functools.partial(owner, **arguments)


def describe(module: nn.Module, slot: Callable[..., Any] | None, group: str) -> dict[str, Any]:
    """A plugin in words: its name and the arguments that `slot` gave it, with what it pinned when it was built.

    Args:
        module: The plugin.
        slot: What built it: its class or a partial of it, however deep (jsonargparse makes such partials); or None.
        group: Entry-point group.
    """
    found, arguments = opened(slot)
    node = stated(type(module), arguments, group)
    if found not in (None, type(module)):
        raise ZooError(nameless(type(module).__name__, group))
    if isinstance(module, PositionEncoding):
        node["init_args"].update(module.pinned())
    return node


def opened(slot: Callable[..., Any] | None) -> tuple[Any, dict[str, Any]]:
    """What a slot builds in the end, and the arguments that it gives it."""
    arguments = dict[str, Any]()
    while isinstance(slot, functools.partial):
        arguments = {**slot.keywords, **arguments}
        slot = next((part for part in slot.args if isinstance(part, type)), slot.func)
    return slot, arguments


def stated(kind: Any, arguments: Mapping[str, Any], group: str) -> dict[str, Any]:
    """A class by its installed name, with its arguments, plugins among them stated likewise."""
    name = getattr(kind, "__name__", str(kind))
    if plugins.classes(group).get(name) is not kind:
        raise ZooError(nameless(name, group))
    told = {
        key: stated(*opened(value), NESTED[key]) if key in NESTED and value is not None else value
        for key, value in arguments.items()
    }
    return {"class_path": name, "init_args": told}


def nameless(name: str, group: str) -> str:
    """Why a class cannot be stored."""
    return (
        f"{name} is not an installed {plugins.GROUPS[group]}, so a checkpoint could not name it. "
        f"Register the class as an entry point in the group {group}, and install its distribution."
    )


def owners(network: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Group and distribution, with version, of every plugin in a network's description.

    Keys are names; a name that a plugin of another group has taken gets its own group before it, and a colon.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, group in named(network["init_args"], SLOTS):
        owner = group, " ".join(plugins.origin(plugins.find(group, name)))
        found[name if found.get(name, owner)[0] == group else f"{group}:{name}"] = owner
    return found


def named(arguments: Mapping[str, Any], slots: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Name and group of the plugins among some arguments, and of those among theirs."""
    for slot, group in slots.items():
        if node := arguments.get(slot):
            yield node["class_path"], group
            yield from named(node.get("init_args") or {}, NESTED)
