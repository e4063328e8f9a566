"""Models made of one checkpoint's weights, in memory: nothing is written, and the weights are there once.

What chooses between extensions, or searches for one, builds a model for each and reads the same documents with it. The
documents are those that the checkpoint's run validated on, never those that it set aside for testing, so that what is
measured afterwards has not been chosen by.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from zoo import checkpoints
from zoo.checkpoints import Checkpoint
from zoo.errors import ZooError
from zoo.evaluate import Reader, texts
from zoo.evaluate.texts import Documents
from zoo.extend.rewrite import Plan, Unfilled

BUDGET = 2**19
"""Tokens that are read where nothing else is asked for: a minute or less of a model of a million weights."""


class Borrowed(Checkpoint):
    """A checkpoint whose network has the weights themselves, not copies of them."""

    def network(self) -> nn.Module:
        """The network, in evaluation mode."""
        with Unfilled():
            model = checkpoints.build(self.about["network"])
        model.load_state_dict(self.weights, assign=True)
        return model.eval()


class Family:
    """A checkpoint, and the models that extensions make of it.

    Args:
        path: The checkpoint; a sentence where it cannot read text.
    """

    def __init__(self, path: Path) -> None:
        self.parent = checkpoints.read(path)
        self.untouched = Reader(self.parent, "as it is")
        self.weights = self.untouched.model.state_dict()

    def child(self, plan: Plan, name: str) -> Reader:
        """The model of a plan."""
        weights = {key: weight for key, weight in self.weights.items() if key not in plan.dropped}
        return Reader(Borrowed(plan.source.path, plan.about, {**weights, **plan.added}), name)


@dataclass(frozen=True)
class Text:
    """Documents to choose by, and those that are left to measure the choice on (None: another text altogether)."""

    used: Documents
    left: Documents | None = None

    def __str__(self) -> str:
        count = len(self.used.texts)
        return f"{count} document{'s' * (count > 1)} ({self.used.origin}, digest {self.used.digest})"

    def facts(self) -> dict[str, Any]:
        """For a description and for JSON."""
        return {"origin": self.used.origin, "digest": self.used.digest, "documents": len(self.used.texts)}


def text(family: Family, files: list[str] | None, length: int, most: int, measured: bool) -> Text:
    """Documents of `length` tokens or more, cut there.

    Args:
        family: Whose tokens they are.
        files: Texts (default: what the checkpoint's run validated on).
        length: Tokens that each holds.
        most: How many at most.
        measured: The choice will be measured on the same files: every other document is left for that. Where there is
            but one, both have it, and the origin says so.
    """
    tokenizers = [family.untouched.tokenizer]
    try:
        own = texts.recognised(files, family.parent.about) if files else None
        if not files or own is not None:
            return Text(texts.validated(family.parent.about, tokenizers, length, most, own))
        named = texts.named(files)
        long, _ = named.long(tokenizers, length, len(named.texts) if measured else most)
    except ZooError as error:
        told = str(error).partition("   Try:")[0]
        raise ZooError(
            f"There is no text to choose by: {told}   Try:  --files with texts of {length} tokens and more, or name "
            "a method:  --method NAME, and no --search"
        ) from None
    if not measured:
        return Text(Documents(named.origin, long))
    if len(long) == 1:
        both = Documents(f"{named.origin}, to choose and to measure", long)
        return Text(both, both)
    used, left = (Documents(f"every other document of {named.origin}", long[start::2]) for start in (0, 1))
    return Text(Documents(used.origin, used.texts[:most]), left)


def affordable(budget: int, each: int, most: int, what: str) -> int:
    """How many documents the budget allows, if one costs `each` tokens; a sentence where it allows none."""
    if budget < each:
        raise ZooError(
            f"{what} takes {each} tokens for a single document, and the budget is {budget}.   "
            f"Try:  --budget {each}, or name a method:  --method NAME"
        )
    return min(most, budget // each)
