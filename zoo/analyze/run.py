"""The analysis of a subject: it reads its examples once, and every measure looks at every layer as it goes by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from zoo.analyze.curves import Curves
from zoo.analyze.heads import Heads
from zoo.analyze.response import Response
from zoo.analyze.streams import Streams
from zoo.analyze.subject import Subject
from zoo.analyze.watch import Layer, watched
from zoo.analyze.waves import Spectrum
from zoo.errors import ZooError
from zoo.position import PositionEncoding
from zoo.vit import ViT, grid


def places(subject: Subject) -> torch.Tensor:
    """Positions of the tokens of an example, [tokens, axes]."""
    if subject.images:
        height, width = subject.grid
        return grid(height, width, subject.inputs.device)
    return torch.arange(subject.grid[0], device=subject.inputs.device).float()[:, None]


def watch(subject: Subject, visit: Callable[[Layer], None]) -> None:
    """Have the subject read its examples, one by one."""
    with watched(subject.trunk, visit):
        for example in subject.inputs:
            if isinstance(subject.model, ViT):
                subject.model(example[None])
            else:
                subject.model.hidden(example[None])


@torch.inference_mode()
def analyze(subject: Subject) -> dict[str, Any]:
    """All that is known of a subject: a document of plain numbers.

    `spectrum` (see `zoo.analyze.waves`), `response`, `bias` (`curves`), `streams` and `heads`; what does not apply is
    None, and `absent` says why.
    """
    trunk, prefix = subject.trunk, subject.trunk.geometry.prefix
    positions: list[PositionEncoding] = list(trunk.positions)  # type: ignore[arg-type]
    extent = torch.Size(subject.grid).numel()
    measures = {
        "spectrum": Spectrum(positions, extent, prefix),
        "response": Response(subject.grid, prefix),
        "bias": Curves(subject.grid, prefix),
        "streams": Streams(subject.grid, prefix),
        "heads": Heads(places(subject), prefix),
    }

    def visit(layer: Layer) -> None:
        if layer.after is None or not bool(layer.after.isfinite().all()):
            raise ZooError(
                f"{subject.name} gives no finite numbers after layer {layer.number + 1}: its training diverged."
            )
        for measure in measures.values():
            measure.add(layer)  # type: ignore[attr-defined]

    watch(subject, visit)
    position, kernel = trunk.position, trunk.kernel
    found: dict[str, Any] = {
        "name": subject.name,
        "path": subject.path,
        "task": "images" if subject.images else "text",
        "position": type(position).__name__,
        "kernel": type(kernel).__name__,
        "form": kernel.form,
        "trained": list(trunk.geometry.length),
        "grid": list(subject.grid),
        "patch": subject.model.patch if isinstance(subject.model, ViT) else None,
        "prefix": prefix,
        "size": {"layers": len(trunk.blocks), "heads": trunk.geometry.heads},
        "text": subject.origin,
        "examples": len(subject.inputs),
    }
    absent: dict[str, str] = {}
    reasons = {
        "spectrum": f"{type(position).__name__} gives no rotation, and so there are no waves to show.",
        "bias": f"{type(position).__name__} adds no bias to the logits.",
        "streams": "There is only one token.",
    }
    for name, measure in measures.items():
        try:
            found[name] = measure.value()  # type: ignore[attr-defined]
        except ZooError as error:
            found[name], absent[name] = None, str(error)
        if found[name] is None:
            absent.setdefault(name, reasons.get(name, "Nothing was found."))
    return {**found, "absent": absent}
