"""The README of an extended checkpoint: what was done, by which command, what was measured, what to expect."""

from __future__ import annotations

from typing import Any

import zoo
from zoo.extend.figures import summary
from zoo.lengths import short

WAYS = {
    "hard link": "`model.safetensors` is the parent's file under a second name.",
    "reflink": "`model.safetensors` shares the parent's blocks on the disk.",
    "copy": "`model.safetensors` is a copy of the parent's.",
    "conversion": "`model.safetensors` holds the parent's weights.",
}


def card(told: dict[str, Any], about: dict[str, Any], parent: str, command: str, how: str, measured: str = "") -> str:
    """The page.

    Args:
        told: The figures of the extension.
        about: The description of the result.
        parent: What it was made from.
        command: That made it.
        how: How the weights came.
        measured: A table of perplexities.
    """
    length, reach = short(told["length"]), short(told["to"])
    steps = (about.get("trained") or {}).get("steps")
    trained = f"trained on {length} tokens" + (f" for {steps} steps" if steps else "")
    chain = about["extended"]["chain"]
    earlier = ", then ".join(f"to {short(step['to'])} by {step['method']}" for step in chain[:-1])
    again = (
        f" It had been extended before ({earlier}); this replaces that, and starts from {length}." if earlier else ""
    )
    facts = "\n".join(f"- {line}" for line in summary(told))
    numbers = measured or "Nothing was measured. `zoo evaluate PARENT PATH` puts the two side by side."
    return f"""# A zoo checkpoint: Decoder with {told["encoding"]} + {told["method"]}, {reach} tokens

{parent}, {trained}, made to read {reach} tokens by zoo {zoo.__version__}:

```bash
{command}
```

No weight was changed and nothing was trained. {WAYS[how]}{again}

{facts}

{numbers}

## What to expect

{expected(told)}

`config.yaml` says what the model is, how it was trained and, under `extended`, what it was made from. To use it:
`zoo generate PATH --prompt "def "`
"""


def expected(told: dict[str, Any]) -> str:
    """What follows from the numbers."""
    length = short(told["length"])
    if told["unchanged"]:
        near = f"Texts of at most {length} tokens are read just as before."
    else:
        near = (
            f"Texts of at most {length} tokens are read in another way than in training too, which may cost some\n"
            "perplexity; for those the parent is the safer choice."
        )
    return (
        f"{near}\nThe weights have seen no longer ones. Without fine-tuning, a perplexity that stays level says that\n"
        "the model is not confused by them, not that it makes use of them: `zoo evaluate --measures gain` tells which."
    )


def compared(document: dict[str, Any], length: int) -> str:
    """Perplexity of parent and child by length, as a table of Markdown."""
    found: dict[int, dict[str, float]] = {}
    for result in document["results"]:
        value = result.get("value", {}).get("perplexity")
        found.setdefault(result["length"], {})[result["checkpoint"]] = value
    parent, child = (each["name"] for each in document["checkpoints"])
    lines = ["| tokens | before | after | change |", "|---|---|---|---|"]
    for tokens, row in sorted(found.items()):
        old, new = row.get(parent), row.get(child)
        change = f"{(new / old - 1) * 100:+.1f} %" if old and new else "-"
        shown = [f"{value:.2f}" if value else "-" for value in (old, new)]
        lines.append(f"| {short(tokens)} | {shown[0]} | {shown[1]} | {change} |")
    text = document["text"]
    return "\n".join(lines) + (
        f"\n\nPerplexity in windows of each length over the first {short(max(found))} tokens of {text['documents']} "
        f"documents ({text['origin']}, digest {text['digest']}), the same for both."
    )
