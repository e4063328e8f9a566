"""What goes with what: a position encoding and a kernel agree, or the reason why not and the way out.

An encoding is asked by running it on two positions, since what it returns is data; nothing is declared twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args, get_origin, get_type_hints

import torch

from zoo import plugins
from zoo.auto import Auto
from zoo.bias import Bias, carries, rung
from zoo.errors import ZooError, listing
from zoo.extension import Extension
from zoo.kernel import Kernel, Request
from zoo.position import Encoding, Geometry, PositionEncoding

GEOMETRY = Geometry(dim=64, heads=4, kv_heads=4, head_dim=16, length=(64,))
"""The small decoder that the table asks about; encodings and kernels are cheap to build at this size."""
GRID = replace(GEOMETRY, length=(8, 10), prefix=1, causal=False)
"""The small vision transformer, its grid not square."""


def places(position: PositionEncoding) -> Encoding:
    """What an encoding says about its first two positions: which places it uses, and on which rung."""
    geometry = position.geometry
    reference = next(position.buffers(), next(position.parameters(), torch.empty(0)))
    positions = torch.zeros(min(2, geometry.length[0]), geometry.axes, device=reference.device)
    positions[-1, 0] = len(positions) - 1
    hidden = None
    if position.content:
        hidden = torch.zeros(1, geometry.prefix + len(positions), geometry.dim, device=reference.device)
    return position(positions, positions, len(positions), hidden)


def request(position: PositionEncoding, **known: Any) -> Request:
    """What a model with this encoding asks of its kernel."""
    geometry, encoding = position.geometry, places(position)
    known.setdefault("mask", frozenset({"causal"} if geometry.causal else ()))
    rotation = encoding.rotation
    return Request(
        rung=rung(encoding.bias),
        rotation=rotation is not None,
        isometric=rotation is None or rotation.isometric,
        rotated=2 * rotation.cos.shape[-1] if rotation is not None else None,
        interleaved=rotation is not None and rotation.interleaved,
        scaled=isinstance(encoding.scale, torch.Tensor),
        head_dim=rotation.width(geometry.head_dim) if rotation is not None else geometry.head_dim,
        value_dim=geometry.head_dim,
        **known,
    )


def article(kind: type[Bias]) -> str:
    """The rung's name in a sentence."""
    return "Slopes" if kind.__name__ == "Slopes" else f"a {kind.__name__} bias"


def objections(asked: Request, kernel: Kernel, position: str) -> list[str]:
    """Why the kernel cannot serve the request; empty where it can."""
    name = type(kernel).__name__
    reasons = []
    if not carries(kernel.fuses, asked.rung) and asked.rung is not None:
        most = article(kernel.fuses) if kernel.fuses is not None else "no bias"
        reasons.append(f"{position} adds {article(asked.rung)}; {name} carries {most}.")
    return [*reasons, *kernel.refuses(asked)]


def agree(position: PositionEncoding, kernel: Kernel, **known: Any) -> None:
    """Raise ZooError where the kernel cannot serve the encoding, with the kernels that can.

    Args:
        position: The encoding of a model.
        kernel: Its kernel.
        known: Fields of the request that are known by now: device, dtype, training, ...
    """
    asked, encoding, name = request(position, **known), type(position).__name__, type(kernel).__name__
    if isinstance(kernel, Auto):
        if asked.device is not None:
            kernel.choose(asked)
        return
    reasons = objections(asked, kernel, encoding)
    if not reasons:
        return
    able = [
        other
        for other, found in plugins.classes("zoo.kernels").items()
        if not objections(asked, found(position.geometry), encoding)
    ]
    if name in able:  # with other arguments
        raise ZooError(f"the kernel {name} cannot serve this model as its arguments are.\n  " + "\n  ".join(reasons))
    what = "carry the bias of" if not carries(kernel.fuses, asked.rung) else "serve"
    raise ZooError(
        f"the kernel {name} cannot {what} the position encoding {encoding}.\n  "
        + "\n  ".join(reasons)
        + f"\n  Installed kernels that can: {listing(able)}."
        + (f"   Try:  --model.kernel {able[0]}" if able else "")
    )


def taken(encoding: Any) -> tuple[type[Extension], ...]:
    """The kinds of extension that an encoding takes: what the annotation of its argument `extension` builds."""
    hints = [get_type_hints(encoding.__init__).get("extension")]
    found: list[type[Extension]] = []
    while hints:
        hint = hints.pop()
        if isinstance(hint, type) and issubclass(hint, Extension):
            found.append(hint)
        elif get_origin(hint) is not None:
            hints += [part for part in get_args(hint) if not isinstance(part, list)]
    return tuple(found)


def extended(extension: Any) -> Iterator[tuple[str, Any]]:
    """Name and class of the installed encodings that an extension makes read further.

    Args:
        extension: A class, or a partial of one.
    """
    kind = extension
    while isinstance(kind, partial):
        kind = kind.func
    for name, encoding in plugins.classes("zoo.positions").items():
        if issubclass(kind, taken(encoding)):
            yield name, encoding


def unfit(owner: Any, name: str) -> str:
    """Why `owner`, an encoding or another plugin, cannot have the extension of that name: a sentence with a way out."""
    able = [other for other, found in plugins.classes("zoo.extensions").items() if issubclass(found, taken(owner))]
    if able:
        return (
            f"{name} does not extend {owner.__name__}, which takes {listing(able)}.   "
            f"Try:  --model.position.extension {able[0]}"
        )
    others = [other for other, found in plugins.classes("zoo.positions").items() if taken(found)]
    reason = f", because {owner.unextended}" if getattr(owner, "unextended", "") else ""
    return f"{owner.__name__} takes no extension{reason}. Those that take some: {listing(others)}."


@dataclass(frozen=True)
class Cell:
    """One encoding with one kernel in one small model: reasons are empty where they go together."""

    position: str
    kernel: str
    axes: int
    reasons: tuple[str, ...]


def matrix() -> list[Cell]:
    """A cell for every installed encoding, kernel, and kind of model (1 axis: decoder, 2 axes: vision transformer)."""
    cells = []
    for axes, geometry in ((1, GEOMETRY), (2, GRID)):
        for name, encoding in plugins.classes("zoo.positions").items():
            for other, found in plugins.classes("zoo.kernels").items():
                try:
                    position = encoding(geometry)
                    reasons = objections(request(position), found(geometry), name)
                except ZooError as error:
                    reasons = [str(error)]
                cells.append(Cell(name, other, axes, tuple(reasons)))
    return cells


def mapped() -> list[Cell]:
    """Cells of encodings that tell positions on another rung with an extension than without, in a small decoder."""
    cells = []
    for name, encoding in plugins.classes("zoo.positions").items():
        for other, extension in plugins.classes("zoo.extensions").items():
            if not issubclass(extension, taken(encoding)):
                continue
            factor = inspect.signature(extension).parameters.get("factor")
            needs = factor is not None and factor.default is factor.empty
            try:
                plain = encoding(GEOMETRY)
                longer = encoding(GEOMETRY, extension=partial(extension, factor=2.0) if needs else extension)
            except ZooError:  # it needs more than a factor
                continue
            if (asked := request(longer)).rung is request(plain).rung:
                continue
            both = f"{name} + {other}"
            for kernel, found in plugins.classes("zoo.kernels").items():
                cells.append(Cell(both, kernel, 1, tuple(objections(asked, found(GEOMETRY), other))))
    return cells
