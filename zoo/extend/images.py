"""Extended vision transformers: their accuracy before and after, and their card.

What an extension has to beat is not the parent at the larger size but the cheapest way there is: to scale the picture
down to the size of training. That is the parent's accuracy at that size, in the same table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import zoo
from zoo.errors import ZooError
from zoo.extend import past
from zoo.extend.compared import Comparison, Depth
from zoo.extend.figures import summary, titled
from zoo.lengths import short


def compare(source: Path, out: Path, told: dict[str, Any], depth: Depth, files: list[str] | None) -> Comparison:
    """Accuracy of parent and child at the trained size, its doubles up to the target, and halfway to the first.

    There is one depth: `depth` is for the signature of `zoo.extend.compared.compare`.
    """
    from zoo.evaluate import Evaluation, report

    (trained, width), (target, _) = told["length"], told["to"]
    if trained != width:
        raise ZooError(f"Accuracy is measured on square pictures, and these are {short(told['length'])}.")
    patch = trained // told["grid"][0][0]
    wanted = {trained, target} | {side for side in (trained * 3 // 2,) if side < target and side % patch == 0}
    side = 2 * trained
    while side < target:
        wanted.add(side)
        side *= 2
    paths = [str(source), str(out)]
    evaluation = Evaluation(paths, lengths=tuple(sorted(wanted)), measures="resolution", files=files)
    for result in evaluation.run():
        print(report.line(result), file=sys.stderr, flush=True)
    if reason := evaluation.nothing():
        raise ZooError(reason)
    return Comparison(evaluation.document, compared(evaluation.document, trained), "", {}, trained)


def compared(document: dict[str, Any], trained: int) -> str:
    """Top-1 accuracy of parent and child by size, as a table of Markdown."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for result in document["results"]:
        found.setdefault(result["length"], {})[result["checkpoint"]] = result.get("value", {})
    names = [each["name"] for each in document["checkpoints"]]
    lines = ["| pixels | before | after |", "|---|---|---|"]
    for side, row in sorted(found.items()):
        cells = [row.get(name) or {} for name in names]
        shown = [f"{cell['top1']:.1%} ({cell['low']:.1%} to {cell['high']:.1%})" if cell else "-" for cell in cells]
        lines.append(f"| {side} x {side} | {shown[0]} | {shown[1]} |")
    pictures = next(cell["images"] for row in found.values() for cell in row.values() if cell)
    plain = found[trained].get(names[0]) or {}
    instead = f" Scaled down to {trained} pixels instead, the parent gets {plain['top1']:.1%}." if plain else ""
    several = "s" * (pictures != 1)
    return "\n".join(lines) + (
        f"\n\nTop-1 accuracy on the same {pictures} picture{several}, each brought to the size from what its file "
        f"holds, with 95 % intervals; a dash is a size that the parent cannot read.{instead}"
    )


def card(told: dict[str, Any], about: dict[str, Any], parent: str, command: str, how: str, measured: str = "") -> str:
    """The page, as for a text; see `zoo.extend.card`."""
    length, reach = short(told["length"]), short(told["to"])
    trained, again = past.training(about, f"images of {length}"), past.earlier(about, told["length"])
    facts = "\n".join(f"- {line}" for line in summary(told))
    weights = f"New are {', '.join(told['added'])}; no other weight" if told["added"] else "No weight"
    way = "" if how == "conversion" else f" `model.safetensors` came by {how}."
    numbers = measured or "Nothing was measured. `zoo evaluate PARENT PATH` puts the two side by side."
    return f"""# A zoo checkpoint: ViT with {titled(told)}, images of {reach}

{parent}, {trained}, made to read images of {reach} by zoo {zoo.__version__}:

```bash
{command}
```

{weights} was changed, and nothing was trained.{way}{again}

{facts}

{numbers}

## What to expect

The weights have seen no images of {reach}, and what a patch shows is another part of the scene when a picture has more
of them. Where the parent does better on pictures that are scaled down to {length}, do that instead, or fine-tune:
`zoo fit --model.weights PATH --data.size {told["to"][0]}`, with the model's own settings.

`config.yaml` says what the model is, how it was trained and, under `extended`, what it was made from. To use it:
`zoo evaluate PATH --lengths {told["length"][0]},{told["to"][0]} --files FOLDER`
"""
