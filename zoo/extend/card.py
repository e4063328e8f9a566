"""The README of an extended checkpoint: what was done, by which command, what was measured, what to expect.

What to expect is read off the numbers where there are some, and is a caution where there are none.
"""

from __future__ import annotations

from typing import Any

import zoo
from zoo.extend.choice import Trial, percent, table
from zoo.extend.compared import Comparison
from zoo.extend.figures import summary
from zoo.extend.rewrite import Plan
from zoo.lengths import short

WAYS = {
    "hard link": "`model.safetensors` is the parent's file under a second name.",
    "reflink": "`model.safetensors` shares the parent's blocks on the disk.",
    "copy": "`model.safetensors` is a copy of the parent's.",
    "conversion": "`model.safetensors` holds the parent's weights.",
}
SLIGHT = 0.001
"""A share of perplexity that is no change worth a word."""


def card(
    plan: Plan,
    told: dict[str, Any],
    command: str,
    how: str,
    trial: Trial | None = None,
    compared: Comparison | None = None,
) -> str:
    """The page.

    Args:
        plan: The extension.
        told: Its figures.
        command: That made it.
        how: How the weights came.
        trial: Methods that were measured before one was chosen.
        compared: What was measured of parent and child; its pictures lie beside the page.
    """
    length, reach = short(told["length"]), short(told["to"])
    steps = (plan.about.get("trained") or {}).get("steps")
    trained = f"trained on {length} tokens" + (f" for {steps} steps" if steps else "")
    chain = plan.about["extended"]["chain"]
    earlier = ", then ".join(f"to {short(step['to'])} by {step['method']}" for step in chain[:-1])
    again = (
        f" It had been extended before ({earlier}); this replaces that, and starts from {length}." if earlier else ""
    )
    facts = "\n".join(f"- {line}" for line in [*summary(told), *searched(plan)])
    parts = [
        f"# A zoo checkpoint: Decoder with {told['encoding']} + {told['method']}, {reach} tokens",
        f"{plan.source.path.resolve().name}, {trained}, made to read {reach} tokens by zoo {zoo.__version__}:",
        f"```bash\n{command}\n```",
        f"{changed(plan)} {WAYS.get(how, how)}{again}",
        facts,
        *(chosen(trial) if trial else []),
        *(measured(compared) if compared else ["## Numbers", UNMEASURED]),
        "## What to expect",
        expected(told, trial, compared),
        "`config.yaml` says what the model is, how it was trained and, under `extended`, what it was made from. To "
        'use it:\n`zoo generate PATH --prompt "def "`',
    ]
    return "\n\n".join(parts) + "\n"


UNMEASURED = "Parent and child were not compared. `zoo evaluate PARENT PATH` puts the two side by side."


def changed(plan: Plan) -> str:
    """What became of the weights."""
    if not plan.added and not plan.dropped:
        return "No weight was changed and nothing was trained."
    several, replaced = (
        "s" * (len(plan.added) != 1),
        len(plan.dropped | (plan.added.keys() & plan.source.shapes.keys())),
    )
    return f"Nothing was trained; {len(plan.added)} weight{several} of the encoding took the place of {replaced}."


def searched(plan: Plan) -> list[str]:
    """What a search found, as a fact."""
    if not (found := plan.step.get("search")):
        return []
    text = found["text"]
    start = f"{found['start']:.4f}" if found["start"] is not None else "no number"
    return [
        f"its numbers come from a search by {found['kind']} (seed {found['seed']}, {found['passes']} passes, "
        f"{found['tokens']} tokens of {text['documents']} documents, digest {text['digest']}): loss {start} before and "
        f"{found['best']:.4f} after"
    ]


def chosen(trial: Trial) -> list[str]:
    """How the method was chosen."""
    return [
        "## Why this method",
        f"Tried without training, on {trial.text}; at {short(trial.length)} tokens a method may lose "
        f"{percent(trial.tolerance)}:",
        f"```text\n{table(trial)}\n```",
        trial.choice.said,
    ]


def measured(compared: Comparison) -> list[str]:
    """Numbers and pictures."""
    pictures = [f"![Loss over {name.removesuffix('.png')}, before and after]({name})" for name in compared.pictures]
    return ["## Numbers", compared.table, *pictures, *([compared.more] if compared.more else [])]


def expected(told: dict[str, Any], trial: Trial | None, compared: Comparison | None) -> str:
    """What follows from the numbers."""
    near, far = short(told["length"]), short(told["to"])
    numbers = None
    if compared:
        (before, after), (_, long) = compared.perplexity(max(2, told["length"])), compared.perplexity(told["to"])
        numbers = before, after, long
    elif trial:
        rows = {row.method: row for row in trial.rows}
        mine = rows[str(trial.choice.method)]
        numbers = trial.rows[0].short, mine.short, mine.long
    if numbers is None or None in numbers:
        if told["unchanged"]:
            said = f"Texts of at most {near} tokens are read just as before."
        else:
            said = (
                f"Texts of at most {near} tokens are read in another way than in training too, which may cost some\n"
                "perplexity; for those the parent is the safer choice."
            )
        return (
            f"{said}\nThe weights have seen no longer ones. Without fine-tuning, a perplexity that stays level says "
            "that\nthe model is not confused by them, not that it makes use of them: `zoo evaluate --measures gain` "
            "tells which."
        )
    before, after, long = (float(each or 0) for each in numbers)
    change = after / before - 1
    if abs(change) < SLIGHT:
        said = f"Texts of {near} tokens are read as well as before."
    else:
        word = "worse" if change > 0 else "better"
        said = f"Texts of {near} tokens are read {word}: perplexity {before:.2f} before, {after:.2f} after."
        said += " For those the parent is the better choice." * (change > 0)
    there = f"At {far} tokens perplexity is {long:.2f}, %s the parent's {before:.2f} at {near}: the longer context"
    if long <= before:
        return f"{said}\n{there % 'below'} helps."
    mended = "The weights have seen no texts so long, and fine-tuning on such is what mends that."
    return f"{said}\n{there % 'above'} does not help yet.\n{mended}"
