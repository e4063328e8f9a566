"""A user's mistake answered with a sentence: what was asked, why not, what would work.

The command line prints a `ZooError` without a traceback and exits with status 2. Anything else that is raised is a
defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class ZooError(Exception):
    """A request that cannot be served; the message says why and what would work."""


class Unfit(ZooError):  # noqa: N818
    """One measurement among many that cannot be taken; the message is the reason, and the others go on."""


def escape_controls(text: str) -> str:
    """A text in which characters that steer a terminal, or turn the direction of writing, are spelled out.

    Line breaks and tabs stay. Names in files are anybody's: printed as they are they could hide what was said.
    """
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Zl", "Zp", "Cs")
        else char.encode("unicode_escape").decode()
        for char in text
    )  # fmt: skip


def near(word: str, words: Iterable[str]) -> list[str]:
    """The entries of `words` that `word` was probably meant to be, best first, whatever their capitals."""
    spelled = {known.lower(): known for known in words}
    return [spelled[match] for match in difflib.get_close_matches(word.lower(), spelled, n=3, cutoff=0.6)]


def listing(words: Iterable[str]) -> str:
    """'A, B, C' for a sentence; 'none' where there is nothing to list."""
    return ", ".join(words) or "none"
