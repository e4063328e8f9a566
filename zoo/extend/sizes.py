"""How far a checkpoint reads, and is to read: a number of tokens, or the height and width of an image in pixels.

A language model has the one, a vision transformer the other, and neither is taken for the other. An image grows by the
same factor on both sides, since an extension has one factor, and by whole patches.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from zoo.errors import ZooError
from zoo.generate import MOST
from zoo.lengths import Size, short
from zoo.vit import ViT

PATCHES = 2**20
"""Of an image at most; more is a slip of the hand."""


def key(arguments: Mapping[str, Any]) -> str:
    """The argument of a network that holds what it was first trained on."""
    return "size" if "size" in arguments else "length"


def known(value: Any) -> Size:
    """A size as a checkpoint states it."""
    return [int(side) for side in value] if isinstance(value, list | tuple) else int(value)


def said(size: Size) -> str:
    """It in a sentence."""
    return f"{size} tokens" if isinstance(size, int) else f"images of {short(size)}"


def factor(path: Path, arguments: Mapping[str, Any], length: Size, reach: Size, to: Size) -> float:
    """How many times as far as in training a checkpoint is to read, or the reason why it cannot.

    Args:
        path: Of the checkpoint.
        arguments: Of its network.
        length: What it was first trained on.
        reach: What it reads by now.
        to: What it is to read.
    """
    if isinstance(length, list):
        usual = inspect.signature(ViT).parameters["patch"].default
        return scaled(path, arguments.get("patch", usual), length, cast(list[int], reach), to)
    if not isinstance(to, int) or not isinstance(reach, int):
        raise ZooError(
            f"{path} is a language model, which reads tokens and no pixels.   Try:  --to {short(2 * length)}"
        )
    if to <= reach:
        made = "was trained on" if reach == length else "has been extended to"
        raise ZooError(
            f"{path} {made} {reach} tokens already, and --to {to} is not more.   Try:  --to {short(2 * reach)}"
        )
    if to > MOST:
        raise ZooError(
            f"Positions are float32, which tells {short(MOST)} of them apart, and --to {to} is more.   "
            f"Try:  --to {short(MOST)}"
        )
    return to / length


def scaled(path: Path, patch: int, length: list[int], reach: list[int], to: Size) -> float:
    """`factor` of a vision transformer, whose patches have a side of `patch` pixels."""
    half = any(3 * side % (2 * patch) for side in reach)
    way = f"Try:  --to {short([2 * side if half else 3 * side // 2 for side in reach])}"
    if isinstance(to, int):
        raise ZooError(f"{path} is a vision transformer, which reads images of so many pixels.   {way}")
    asked = short(to)
    if any(new * length[0] != side * to[0] for new, side in zip(to, length, strict=True)):
        raise ZooError(
            f"{path} was trained on {said(length)}, which grow by one factor on both sides, and {asked} has other "
            f"proportions.   {way}"
        )
    if to[0] <= reach[0]:
        made = "was trained on" if reach == length else "has been extended to"
        raise ZooError(f"{path} {made} {said(reach)} already, and --to {asked} is not more.   {way}")
    if any(side % patch for side in to):
        raise ZooError(f"Images of {asked} do not divide into patches of {patch} pixels.   {way}")
    if math.prod(side // patch for side in to) > PATCHES:
        raise ZooError(f"Images of {asked} have more than {PATCHES} patches of {patch} pixels.   {way}")
    return to[0] / length[0]
