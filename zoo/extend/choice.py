"""Which of several methods, by what was measured of them: the decision, its table, and what to do where none is good.

The best at the target is taken, among those that cost short texts no more than a tolerance: static scaling hurts these,
and nobody notices who looks at long ones alone. Where no method helps, that is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import yaml

from zoo.errors import ZooError
from zoo.extend import past
from zoo.lengths import short

if TYPE_CHECKING:
    from zoo.extend.family import Text

TOLERANCE = 0.01
"""Share of perplexity that may be lost at the length of training."""
SLIGHT = 0.005
"""A difference of perplexity, as a share, that is no finding."""


@dataclass(frozen=True)
class Row:
    """Perplexities of a model at the length of training and at the target; None where it has none, and why."""

    method: str
    short: float | None
    long: float | None
    reason: str = ""


@dataclass(frozen=True)
class Choice:
    """What follows from the rows.

    Args:
        method: The best; None where none is to be taken.
        helps: Whether longer texts are read better than short ones were, or as well.
        best: The best at the target, whatever it costs short texts: what fine-tuning had better start from.
        said: In sentences.
    """

    method: str | None
    helps: bool
    best: str | None
    said: str


@dataclass(frozen=True)
class Trial:
    """Methods as they were measured, the untouched model first."""

    length: int
    to: int
    tolerance: float
    text: Text
    passes: int
    tokens: int
    rows: list[Row]
    choice: Choice

    def facts(self) -> dict[str, Any]:
        """For a description and for JSON."""
        told = {"tolerance": self.tolerance, "passes": self.passes, "tokens": self.tokens, "text": self.text.facts()}
        return {**told, "models": [asdict(row) for row in self.rows], **asdict(self.choice)}


def choose(rows: list[Row], tolerance: float, length: int, to: int) -> Choice:
    """The best at the target of those that lose no more than the tolerance at the length of training.

    Args:
        rows: The untouched model first.
        tolerance: A share of its perplexity.
        length: Tokens of training.
        to: Tokens of the target.
    """
    untouched, others = rows[0], rows[1:]
    if untouched.short is None:
        raise ZooError(f"The untouched model could not be measured: {untouched.reason}")
    near, far = f"{short(length)} tokens", f"{short(to)} tokens"

    def order(row: Row) -> tuple[float, ...]:  # of equals the one that spares short texts, then the first
        return (*(math.inf if each is None else each for each in (row.long, row.short)), others.index(row))

    there = sorted((row for row in others if row.long is not None and row.short is not None), key=order)
    if not there:
        why = next((row.reason for row in others if row.reason), "their perplexities are no numbers")
        return Choice(None, False, None, f"No method could be measured: {why}")
    kept = [row for row in there if row.short <= untouched.short * (1 + tolerance)]  # type: ignore[operator]
    if not kept:
        least = min(there, key=lambda row: (row.short, *order(row)))
        loss = least.short / untouched.short - 1  # type: ignore[operator]
        said = (
            f"Every method loses more than {percent(tolerance)} on texts of {near}; {least.method} loses least, "
            f"{percent(loss)}. Fine-tuning is needed, or allow it:  --tolerance {math.ceil(1e4 * loss) / 1e4:g}"
        )
        return Choice(None, False, there[0].method, said)
    best = kept[0]
    if untouched.long is not None and untouched.long <= best.long:  # type: ignore[operator]
        said = (
            f"No method reads {far} better than the untouched model ({untouched.long:.2f}; {best.method} "
            f"{best.long:.2f}). Without fine-tuning use it as it is; to have one all the same:  --method {best.method}"
        )
        return Choice(None, False, there[0].method, said)
    change = best.long / untouched.short - 1  # type: ignore[operator]
    helps = change <= SLIGHT
    said = (
        f"{best.method} it is: perplexity {best.long:.2f} at {far}, the untouched model's {untouched.short:.2f} at "
        f"{near}. "
    )
    if helps:
        said += f"Longer texts are read {'better' if change < -SLIGHT else 'as well as short ones were'}."
    else:
        said += "Longer context does not help yet, and fine-tuning is needed."
    if not helps and there[0] is not best:
        said += f" That mends short texts too, so it had better start from {there[0].method}."
    return Choice(best.method, helps, there[0].method, said)


def percent(share: float) -> str:
    """A share as people say it."""
    return f"{100 * share:.3g} %"


def heading(length: int, to: int) -> str:
    """Above the rows."""
    return f"{'perplexity at':<24}{short(length):>10}{'':>11}{short(to):>10}"


def line(row: Row, untouched: Row, tolerance: float, chosen: str | None = None) -> str:
    """A row of the table."""
    if row.short is None and row.long is None:
        return f"{row.method:<24}n/a: {row.reason}"
    values = [f"{value:.2f}" if value is not None else "n/a" for value in (row.short, row.long)]
    change, note = "", ""
    if row is not untouched and row.short and untouched.short:
        loss = row.short / untouched.short - 1
        change = f"{100 * loss:+.1f} %"
        note = f"loses more than {percent(tolerance)}" * (loss > tolerance)
    note = "chosen" if row.method == chosen else note or row.reason
    return f"{row.method:<24}{values[0]:>10}{change:>11}{values[1]:>10}  {note}".rstrip()


def table(trial: Trial) -> str:
    """All rows, for a page."""
    rows = [line(row, trial.rows[0], trial.tolerance, trial.choice.method) for row in trial.rows]
    return "\n".join([heading(trial.length, trial.to), *rows])


def recipe(about: Mapping[str, Any], to: int, length: int, method: str) -> str:
    """What `stage` says, for the terminal."""
    return f"Fine-tuning, as the end of its recipe:\n\n{stage(about, to, length, method)}"


def stage(about: Mapping[str, Any], to: int, length: int, method: str) -> str:
    """Lines for the end of a recipe that fine-tune: a fifth of the steps of first training at a tenth of its rate.

    A checkpoint that was fine-tuned before knows the rate of that alone, which then serves as it is.
    """
    steps = past.steps(about) or 0
    asked = ((about.get("asked") or {}).get("model") or {}).get("init_args") or {}
    rate = ((asked.get("optimizer") or {}).get("init_args") or {}).get("lr") or 1e-4
    tuned = {
        "max_steps": min(max(steps // 5, 100), 1000),
        "lr": float(f"{rate if past.tunings(about) else rate / 10:.3g}"),
        "positions": "full" if to <= 8 * length else "pose",
    }
    section = {"extend": [{"to": to, "method": method, "finetune": tuned}]}
    return str(yaml.safe_dump(section, sort_keys=False)).rstrip()
