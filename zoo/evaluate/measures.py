"""What can be measured: a word, what it means, of which models, and whether it has a figure for every length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zoo.errors import ZooError, listing, near
from zoo.evaluate import perplexity as losses
from zoo.evaluate.longppl import longppl
from zoo.evaluate.reader import Reader
from zoo.evaluate.retrieval import needle, passkey
from zoo.evaluate.ruler import ruler
from zoo.evaluate.setting import Setting
from zoo.evaluate.vision import Viewer


def resolution(viewer: Viewer, side: int, setting: Setting) -> dict[str, Any]:
    """Top-1 and top-5 on images of one size."""
    return viewer.resolution(side)


def redundancy(reader: Reader, length: int, setting: Setting) -> dict[str, Any]:
    """How alike the heads of a layer are."""
    from zoo.analyze import redundancy

    return redundancy(reader, length, setting)


@dataclass(frozen=True)
class Measure:
    """A measure of one model at one length.

    Args:
        run: From a reader (or viewer), a length and a setting to a value, or Unfit.
        about: In a few words.
        once: Measured at the longest length that can be read, and at no other.
        images: Of vision transformers; the length is the side of an image in pixels.
        standard: Measured where nothing else is asked for.
    """

    run: Callable[..., dict[str, Any]]
    about: str
    once: bool = False
    images: bool = False
    standard: bool = False


MEASURES = {
    "perplexity": Measure(losses.perplexity, "perplexity and bits per byte of the same text in windows", standard=True),
    "position": Measure(losses.position, "loss over the position in the longest window", once=True, standard=True),
    "gain": Measure(
        losses.gain, "what context beyond the trained length is worth, and how far it reads", standard=True
    ),
    "offset": Measure(losses.offset, "the same text at positions that start to count later", once=True),
    "passkey": Measure(passkey, "finding a number in repeated sentences, by depth", standard=True),
    "needle": Measure(needle, "finding sentences in real text, by depth"),
    "ruler": Measure(ruler, "RULER's thirteen tasks"),
    "longppl": Measure(longppl, "perplexity of the tokens that need the long context (with --evaluator)"),
    "redundancy": Measure(redundancy, "how alike the attention heads of a layer are"),
    "resolution": Measure(resolution, "top-1 and top-5 at image sizes", images=True, standard=True),
}


def chosen(words: str | None, images: bool) -> list[str]:
    """The measures of a list such as perplexity,passkey; the standard ones where there is none."""
    kind = [name for name, measure in MEASURES.items() if measure.images == images]
    if words is None:
        return [name for name in kind if MEASURES[name].standard]
    asked = list(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    for name in asked:
        if name not in MEASURES:
            close = near(name, MEASURES)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise ZooError(f"There is no measure {name!r}.{hint} Measures: {listing(MEASURES)}.")
        if name not in kind:
            raise ZooError(
                f"{name} is measured on {'language models' if images else 'vision transformers'}, and these are "
                f"{'vision transformers' if images else 'language models'}. Measures of theirs: {listing(kind)}."
            )
    if not asked:
        raise ZooError(f"No measure was asked for. Measures: {listing(kind)}.")
    return asked
