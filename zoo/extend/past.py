"""What a description says of the past of its model, in words: first training, further training, earlier extensions.

`trained` is about the last run alone. What first training was stands in the first link of the chain, which is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo import checkpoints
from zoo.extend.methods import converts
from zoo.lengths import Size, short


def chain(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The extensions of a checkpoint, the first one first."""
    return list((about.get("extended") or {}).get("chain") or [])


def steps(about: Mapping[str, Any]) -> int | None:
    """Of first training."""
    links = chain(about)
    found: int | None = (links[0] if links else about.get("trained") or {}).get("steps")
    return found


def tunings(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Runs that trained on after an extension: steps, and for texts the length of blocks and their positions."""
    return [run for link in chain(about) for run in link.get("tuned") or []]


def training(about: Mapping[str, Any], what: str) -> str:
    """All training, as a clause; `what` first training was on."""
    first = steps(about)
    said = f"trained on {what}" + (f" for {first} step{'s' * (first != 1)}" if first else "")
    if averaged := checkpoints.describe_averaging(about):
        said += f", {averaged}"
    for run in tunings(about):
        said += f", then for {run['steps']} step{'s' * (run['steps'] != 1)}"
        if run.get("length"):
            said += f" on {short(run['length'])} tokens"
        if run.get("positions") not in (None, "full"):
            said += f" placed by {run['positions']}"
    return said


def earlier(about: Mapping[str, Any], length: Size) -> str:
    """What became of earlier extensions: one replaces another, while a conversion stays, since weights came of it."""
    said, links = "", chain(about)[:-1]
    for verb, after, kind in (
        ("converted", "this starts from the result.", True),
        ("extended", f"this replaces that, and starts from {short(length)}.", False),
    ):
        names = [f"to {short(link['to'])} by {link['method']}" for link in links if converts(link["method"]) is kind]
        said += f" It had been {verb} before ({', then '.join(names)}); {after}" if names else ""
    return said
