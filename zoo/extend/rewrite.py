"""What becomes of a checkpoint's description: the extension of its encoding, its reach, and where it comes from.

The description keeps the length and the base of first training and the whole chain of extensions, each with the
fingerprint of the weights that it was made from. A checkpoint whose encoding is extended and that cannot say from what
is refused, since to scale it again would scale it twice.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import zoo
from zoo import checkpoints, plugins
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.extend.methods import GROUP, complete, converts, node, usual
from zoo.extend.sizes import factor, key, known, said
from zoo.extend.source import Source
from zoo.extension import Conversion
from zoo.lengths import Size, short
from zoo.vit import ViT

POSITIONS = "trunk.positions."
"""What the names of an encoding's weights begin with; the layer follows."""
SEED = 0
"""Of what a new encoding draws, so that a conversion gives the same checkpoint twice."""


@dataclass
class Plan:
    """An extension that is known to fit.

    Args:
        source: The checkpoint that is extended.
        about: The description of the one that comes of it.
        before: The network as it was first trained, without memory for its weights.
        after: The network that it becomes, likewise.
        added: Weights that are new, or replace the source's of the same name, on the CPU.
        dropped: Names of the source's weights that the result has not.
    """

    source: Source
    about: dict[str, Any]
    before: Decoder | ViT = field(repr=False)
    after: Decoder | ViT = field(repr=False)
    added: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    dropped: frozenset[str] = frozenset()

    @property
    def step(self) -> dict[str, Any]:
        """The last entry of the chain."""
        return self.about["extended"]["chain"][-1]


def plan(
    source: Source,
    to: Size,
    method: str | None = None,
    own: Mapping[str, str] | None = None,
    trained: Size | None = None,
) -> Plan:
    """Rewrite a checkpoint's description, or say why not.

    Args:
        source: The checkpoint.
        to: Tokens that it is to read; for images height and width in pixels.
        method: Its name; None: what is usual for the encoding.
        own: The method's own arguments, as they are written on a command line.
        trained: Length, or size of images, of first training, where the checkpoint does not tell.
    """
    network = described(source)
    arguments = network["init_args"]
    position = arguments["position"]
    past = source.about.get("extended")
    length, reach = origin(source, position, past, trained)
    stretch = factor(source.path, arguments, length, reach, to)
    name = position["class_path"]
    method = method or usual(name, key(arguments) == "size")
    extension = node(method, name, stretch, own or {})
    arguments |= {key(arguments): length, "reach": None}
    position["init_args"].pop("extension", None)
    before = built(source, network, source.shapes)
    arguments["reach"] = to
    added: dict[str, Tensor] = {}
    dropped: set[str] = set()
    old = copy.deepcopy(position)
    if converts(method):
        conversion = plugins.load(GROUP, method)(**extension["init_args"])
        position |= conversion.rewrite(copy.deepcopy(position), before.trunk.geometry)
        added, dropped = migrated(source, conversion, before, old, position)
    else:
        position["init_args"]["extension"] = extension
    shapes = {name: shape for name, shape in source.shapes.items() if name not in dropped}
    after = built(source, network, shapes | {name: weight.to("meta") for name, weight in added.items()})
    if converts(method):
        position["init_args"] |= after.trunk.position.pinned()
    base = inspect.signature(plugins.load("zoo.positions", name)).parameters.get("base")
    step = {
        "method": method,
        "arguments": copy.deepcopy(extension["init_args"]),
        "from": reach,
        "to": to,
        "factor": stretch,
        "zoo": zoo.__version__,
        "parent": source.fingerprint,
        "steps": (source.about.get("trained") or {}).get("steps"),
    }
    about = {key: value for key, value in copy.deepcopy(source.about).items() if key != "extended"}
    about |= {"zoo": zoo.__version__, "network": network, "plugins": checkpoints.owners(network)}
    about["extended"] = {
        "length": length,
        "base": old["init_args"].get("base", base.default if base else None),
        "chain": [*(past["chain"] if past else []), step],
    }
    asked = (about.get("asked") or {}).get("model")
    if asked:  # what a Trainer's verb builds the model from
        told = asked.setdefault("init_args", {})
        told |= {key(arguments): length, "reach": to}
        there = told.get("position")
        there = there if isinstance(there, dict) else {"class_path": there or name}
        if converts(method):
            there = copy.deepcopy(position)
        else:
            there["init_args"] = {**(there.get("init_args") or {}), "extension": complete(extension)}
        told["position"] = there
    return Plan(source, about, before, after, added, frozenset(dropped))


def migrated(
    source: Source, conversion: Conversion, before: Decoder | ViT, old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[dict[str, Tensor], set[str]]:
    """Weights of an encoding that takes another's place, and the names of those that have no place in it.

    Both encodings are built on the CPU, alone: a conversion meets trained weights and needs no model. Where a source
    has none, since it is a plan itself, fresh ones stand for them.
    """
    held = sorted(name for name in source.shapes if name.startswith(POSITIONS))
    state = {name.removeprefix(POSITIONS): source.weights[name].tensor() for name in held if source.weights}
    trunk, layers = before.trunk, before.trunk.geometry.layers
    geometries = [replace(trunk.geometry, layer=layer) for layer in range(layers)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        olds, news = (
            [checkpoints.callable_of(node, "zoo.positions")(geometry) for geometry in geometries] for node in (old, new)
        )
    olds, news = (found if found[0].per_layer else found[:1] for found in (olds, news))
    for layer, module in enumerate(olds):
        mine = {name.partition(".")[2]: each for name, each in state.items() if name.partition(".")[0] == str(layer)}
        if source.weights and not trunk.bare(layer):
            module.load_state_dict(mine)
    added: dict[str, Tensor] = {}
    for layer, module in enumerate(news):
        if trunk.bare(layer):
            continue
        with torch.no_grad():
            conversion.migrate(olds[layer if len(olds) > 1 else 0], module)
        kept = module.state_dict().items()
        added |= {f"{POSITIONS}{layer}.{name}": weight.detach().contiguous() for name, weight in kept}
    same = {name for name in added if torch.equal(state.get(name.removeprefix(POSITIONS), torch.empty(0)), added[name])}
    return {name: weight for name, weight in added.items() if name not in same}, set(held) - set(added)


def described(source: Source) -> dict[str, Any]:
    """A copy of the network's description, which is one of a model with an encoding."""
    network = copy.deepcopy(source.about.get("network"))
    try:
        position = network["init_args"].setdefault("position", {"class_path": "RoPE"})  # type: ignore[index]
        position["init_args"] = dict(position.get("init_args") or {})
        position["class_path"], known(network["init_args"][key(network["init_args"])])  # type: ignore[index]
        dict(position["init_args"].get("extension") or {})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ZooError(f"{source.path} is damaged: it does not describe a network ({error}).") from None
    return cast(dict[str, Any], network)


def origin(
    source: Source, position: Mapping[str, Any], past: Mapping[str, Any] | None, given: Size | None
) -> tuple[Size, Size]:
    """Tokens, or size of images, of first training, and what is read by now."""
    arguments = source.about["network"]["init_args"]
    extension = position["init_args"].get("extension")
    if given is not None and isinstance(given, list) != (key(arguments) == "size"):
        raise ZooError(
            f"{source.path} was trained on {said(known(arguments[key(arguments)]))}, and --from {short(given)} is in "
            "another unit."
        )
    if past:
        try:
            length, reach = known(past["length"]), known(past["chain"][-1]["to"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ZooError(f"{source.path} is damaged: it does not say what it was extended from ({error}).") from None
        if given is not None and given != length:
            raise ZooError(
                f"{source.path} says that it was first trained on {said(length)}, and --from says {short(given)}."
            )
        return length, reach
    if extension and given is None:
        raise ZooError(
            f"{source.path} has the extension {extension.get('class_path')} and does not say what it was extended "
            "from; to scale it again might scale it twice. If you know on what length it was first trained, without "
            f"any extension, say so:  --from {short(known(arguments[key(arguments)]))}"
        )
    stored = known(arguments[key(arguments)])
    if given is not None and not extension and given != stored:
        raise ZooError(f"{source.path} says that it was trained on {said(stored)}, and --from says {short(given)}.")
    length = given or stored
    return length, known(arguments.get("reach") or length)


class Unfilled(TorchFunctionMode):
    """Draws no initial weights: on the meta device there are none, and torch would load its compiler for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def built(source: Source, network: Mapping[str, Any], shapes: Mapping[str, Tensor]) -> Decoder | ViT:
    """The network, which the checkpoint's weights fit, without memory for them."""
    try:
        with torch.device("meta"), Unfilled():
            model = checkpoints.build(network)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ZooError(f"{source.path} is damaged: it does not describe a network ({error}).") from None
    except ZooError as error:
        raise ZooError(flagged(str(error))) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is copied to where there is no memory
        checkpoints.fill(model, shapes, source.path)
    return cast(Decoder | ViT, model.eval())


def flagged(message: str) -> str:
    """A refusal in the words of this verb: the extension's arguments are its own."""
    for path in ("--model.position.extension.extension.", "--model.position.extension."):
        message = message.replace(path, "--")
    return message.replace("--model.position.extension ", "--method ")
