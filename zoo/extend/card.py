"""The README of an extended checkpoint: what was done, by which command, what was measured, what to expect.

What to expect is read off the numbers where there are some, and is a caution where there are none.
"""

from __future__ import annotations

from typing import Any

import zoo
from zoo.checkpoints import folder
from zoo.extend import past
from zoo.extend.choice import SLIGHT, Trial, percent, stage, table
from zoo.extend.compared import Comparison
from zoo.extend.figures import summary, titled
from zoo.extend.rewrite import Plan
from zoo.lengths import short

WAYS = {
    "hard link": "`model.safetensors` is the parent's file under a second name.",
    "reflink": "`model.safetensors` shares the parent's blocks on the disk.",
    "copy": "`model.safetensors` is a copy of the parent's.",
    "conversion": "`model.safetensors` holds the parent's weights.",
}


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
    trained, again = past.training(plan.about, f"{length} tokens"), past.earlier(plan.about, told["length"])
    facts = "\n".join(f"- {line}" for line in [*summary(told), *searched(plan)])
    parts = [
        f"# A zoo checkpoint: Decoder with {titled(told)}, {reach} tokens",
        f"{plan.source.path.resolve().name}, {trained}, made to read {reach} tokens by zoo {zoo.__version__}:",
        f"```bash\n{command}\n```",
        f"{changed(plan, how)} {WAYS.get(how, how)}{again}",
        facts,
        *(chosen(trial, plan) if trial else []),
        *(measured(compared) if compared else ["## Numbers", UNMEASURED]),
        "## What to expect",
        expected(told, plan.about, trial, compared),
        "`config.yaml` says what the model is, how it was trained and, under `extended`, what it was made from. To "
        'use it:\n`zoo generate PATH --prompt "def "`',
    ]
    return "\n\n".join(parts) + "\n"


UNMEASURED = "Parent and child were not compared. `zoo evaluate PARENT PATH` puts the two side by side."


def changed(plan: Plan, how: str) -> str:
    """What became of the weights."""
    added, replaced = len(plan.added), len(plan.dropped | (plan.added.keys() & plan.source.shapes.keys()))
    if not added and not replaced:
        return "No weight was changed and nothing was trained."
    several = "s" * ((added or replaced) != 1)
    if not added:
        return f"Nothing was trained; {replaced} weight{several} of the encoding fell away."
    if not replaced:
        where = "" if how == "conversion" else f" (`{folder.ADDED}`)"
        return f"Nothing was trained; the encoding adds {added} weight{several}{where}."
    return f"Nothing was trained; {added} weight{several} of the encoding took the place of {replaced}."


def searched(plan: Plan) -> list[str]:
    """What a search found, as a fact."""
    if not (found := plan.step.get("search")):
        return []
    text = found["text"]
    documents = f"{text['documents']} document{'s' * (text['documents'] != 1)}"
    start = f"{found['start']:.4f}" if found["start"] is not None else "no number"
    return [
        f"its numbers come from a search by {found['kind']} (seed {found['seed']}, {found['passes']} passes, "
        f"{found['tokens']} tokens of {documents}, digest {text['digest']}): loss {start} before and "
        f"{found['best']:.4f} after"
    ]


def chosen(trial: Trial, plan: Plan) -> list[str]:
    """How the method was chosen, and how to fine-tune where none helps without."""
    more, choice = [], trial.choice
    if choice.best and not choice.helps:
        more = [
            "Fine-tuning, as the end of the recipe of its training:",
            f"```yaml\n{stage(plan.source.about, trial.to, trial.length, choice.best)}\n```",
            "```bash\nzoo fit --config RECIPE --stages extend --model.weights PARENT\n```",
        ]
    return [
        "## Why this method",
        f"Tried without training, on {trial.text}; at {short(trial.length)} tokens a method may lose "
        f"{percent(trial.tolerance)}:",
        f"```text\n{table(trial)}\n```",
        choice.said,
        *more,
    ]


def measured(compared: Comparison) -> list[str]:
    """Numbers and pictures."""
    pictures = [f"![Loss over {name.removesuffix('.png')}, before and after]({name})" for name in compared.pictures]
    return ["## Numbers", compared.table, *pictures, *([compared.more] if compared.more else [])]


def expected(
    told: dict[str, Any], about: dict[str, Any], trial: Trial | None = None, compared: Comparison | None = None
) -> str:
    """What follows from the numbers.

    Args:
        told: The figures.
        about: The description of the result.
        trial: Methods that were measured.
        compared: What was measured of parent and child, which comes before a trial.
    """
    near, far = short(told["length"]), short(told["to"])
    numbers, parent = None, None
    if compared:
        (before, after), (parent, long) = compared.perplexity(max(2, told["length"])), compared.perplexity(told["to"])
        numbers = before, after, long
    elif trial:
        rows = {row.method: row for row in trial.rows}
        mine = rows[str(trial.choice.method)]
        numbers, parent = (trial.rows[0].short, mine.short, mine.long), trial.rows[0].long
    if numbers is None or None in numbers:
        return unmeasured(told, about)
    before, after, long = (float(each or 0) for each in numbers)
    change = after / before - 1
    if abs(change) <= SLIGHT:
        said = f"Texts of {near} tokens are read as well as before."
    else:
        word = "worse" if change > 0 else "better"
        said = f"Texts of {near} tokens are read {word}: perplexity {before:.2f} before, {after:.2f} after."
        said += " For those the parent is the better choice." * (change > 0)
    change = long / before - 1
    there = f"At {far} tokens perplexity is {long:.2f}, %s the parent's {before:.2f} at {near}: the longer context"
    if abs(change) <= SLIGHT:
        said += f"\n{there % 'level with'} does no harm, and is of no use yet."
    elif change < 0:
        said += f"\n{there % 'below'} helps."
    else:
        mended = "The weights have seen no texts so long, and fine-tuning on such is what mends that."
        if told["advice"]:
            mended = f"What mends that: {told['advice']}."
        said += f"\n{there % 'above'} does not help yet.\n{mended}"
    return said + ("" if parent is None else f"\n{beside(far, parent, long)}")


def beside(far: str, parent: float, child: float) -> str:
    """Which of the two to take at the target."""
    change = child / parent - 1
    if abs(change) <= SLIGHT:
        return f"At {far} tokens this has {child:.2f}, and the parent reads them as well, with {parent:.2f}."
    if change < 0:
        return f"At {far} tokens this has {child:.2f}, better than the parent's {parent:.2f}."
    return f"At {far} tokens the parent has {parent:.2f} and this {child:.2f}: without fine-tuning, use the parent."


def unmeasured(told: dict[str, Any], about: dict[str, Any]) -> str:
    """What to expect where there are no numbers."""
    near, far = short(told["length"]), short(told["to"])
    if told["unchanged"]:
        since = "in first training" if len(past.chain(about)) > 1 else "before"
        said = f"Texts of at most {near} tokens are read just as {since}."
    else:
        said = (
            f"Texts of at most {near} tokens are read in another way than in training too, which may cost some\n"
            "perplexity; for those the parent is the safer choice."
        )
    longest = max((run.get("length") or 0 for run in past.tunings(about)), default=0)
    later = f", though later training had some of {short(longest)}" if longest > told["length"] else ""
    return (
        f"{said}\nThe weights have seen no texts of {far} tokens{later}. Without fine-tuning, a perplexity that stays "
        "level says that\nthe model is not confused by them, not that it makes use of them: "
        "`zoo evaluate --measures gain` tells which."
    )
