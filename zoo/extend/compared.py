"""Parent and child measured on the same documents: the numbers of the card, and its picture."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo.errors import ZooError
from zoo.lengths import short

if TYPE_CHECKING:
    from zoo.evaluate.texts import Documents

Depth = Literal["quick", "full"]
MEASURES = {"quick": "perplexity", "full": "perplexity,position,gain,passkey"}
RULER = 4096
"""Tokens from which RULER is asked in full: below, hardly one of its tasks fits."""
DOCUMENTS = 8
"""Documents whose losses are measured."""


@dataclass(frozen=True)
class Comparison:
    """What was measured of a parent and a child.

    Args:
        document: The results.
        table: Perplexities by length, and of whose text, in Markdown.
        more: What else was measured, in Markdown.
        pictures: PNGs, by file name.
        length: Tokens of first training.
    """

    document: dict[str, Any]
    table: str
    more: str
    pictures: dict[str, bytes] = field(repr=False)
    length: int

    def perplexity(self, length: int) -> tuple[float | None, float | None]:
        """Before and after, at a length."""
        before, after = (found.get(length) for found in perplexities(self.document))
        return before, after


def lengths(length: int, to: int) -> tuple[int, ...]:
    """Half of the trained length, and its doubles up to the target."""
    wanted = {max(2, length // 2), max(2, length), to}
    while (length := 2 * length) < to:
        wanted.add(length)
    return tuple(sorted(wanted))


def compare(
    source: Path, out: Path, told: dict[str, Any], depth: Depth, texts: list[str] | Documents | None
) -> Comparison:
    """Measure both, telling each figure as it comes.

    Args:
        source: The parent.
        out: The child.
        told: The figures of the extension.
        depth: quick: perplexity by length. full: also the loss by position, what context is worth and how far the model
            makes use of it, the passkey, and from 4k tokens on RULER.
        texts: Files, or documents at hand (default: what the parent's run set aside for testing).
    """
    from zoo.evaluate import Evaluation, report
    from zoo.evaluate.grids import blocks

    measures = MEASURES[depth] + (",ruler" if depth == "full" and told["to"] >= RULER else "")
    evaluation = Evaluation(
        [str(source), str(out)],
        lengths=lengths(told["length"], told["to"]),
        measures=measures,
        files=texts,
        documents=DOCUMENTS,
    )
    for result in evaluation.run():
        print(report.line(result), file=sys.stderr, flush=True)
    if reason := evaluation.nothing():
        raise ZooError(reason)
    document = evaluation.document
    rest = {**document, "results": [each for each in document["results"] if each["measure"] != "perplexity"]}
    more = "\n\n".join(f"```text\n{block}\n```" for block in blocks({**rest, "settings": {}})).replace("\u202f", " ")
    pictures = {}
    if depth == "full":
        from zoo.evaluate.plots import draw

        drawn = draw({**document, "results": [each for each in rest["results"] if each["measure"] == "position"]})
        pictures = {f"{name}.png": png for name, (png, _) in drawn.items()}
    return Comparison(document, by_length(document), more, pictures, told["length"])


def perplexities(document: dict[str, Any]) -> list[dict[int, float | None]]:
    """Of the parent and of the child, by length."""
    found: dict[str, dict[int, float | None]] = {each["name"]: {} for each in document["checkpoints"]}
    for result in document["results"]:
        if result["measure"] == "perplexity":
            found[result["checkpoint"]][result["length"]] = result.get("value", {}).get("perplexity")
    return list(found.values())


def by_length(document: dict[str, Any]) -> str:
    """Perplexity of parent and child by length, as a table of Markdown."""
    before, after = perplexities(document)
    lines = ["| tokens | before | after | change |", "|---|---|---|---|"]
    for tokens in sorted(before | after):
        old, new = before.get(tokens), after.get(tokens)
        change = f"{(new / old - 1) * 100:+.1f} %" if old and new else "-"
        shown = [f"{value:.2f}" if value else "-" for value in (old, new)]
        lines.append(f"| {short(tokens)} | {shown[0]} | {shown[1]} | {change} |")
    text = document["text"]
    several = "s" * (text["documents"] != 1)
    return "\n".join(lines) + (
        f"\n\nPerplexity in windows of each length over the first {short(max(before | after))} tokens of "
        f"{text['documents']} document{several} ({text['origin']}, digest {text['digest']}), the same for both."
    )
