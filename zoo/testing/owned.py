"""The exam for extensions that only their encodings can judge: each question is asked of every encoding that takes it.

What such an extension gives, divisors or tables or maps, is between it and its encoding; what attention makes of it is
for everybody to see. A subject without a default for `factor` is examined with 4, unless a partial fixes another.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.testing import positions
from zoo.testing.extensions import FACTOR, extending, given, hosts, reach, stored, takes_factor
from zoo.testing.probe import Skip, Subject, apart, check, encode, kind, models, size, some, title, weights
from zoo.testing.settings import candidates, keywords
from zoo.trunk import Trunk


def pairs(subject: Subject) -> Iterator[tuple[str, Trunk, Trunk]]:
    """The name of an encoding that takes it, a model without it and the same model with it; Skip where it serves none.

    A model of text, and one of images where both are served.
    """
    reason, found = "", 0
    for name, encoding in hosts(subject):
        try:
            longer = models(partial(encoding, extension=subject))
        except Skip as error:
            reason = str(error)
            continue
        plain = {model.geometry.axes: model for model in models(encoding)}
        for model in longer:
            found += 1
            yield name, plain[model.geometry.axes], model
    if not found:
        raise Skip(reason)


def requests(model: Trunk) -> tuple[int, ...]:
    """Extents of a request within the trained length, and of longer ones."""
    length = size(model)
    return length, length + 1, 2 * length, 4 * length


@check
def identity(subject: Subject) -> None:
    """With a factor of 1 nothing changes within the trained length, to the last bit of what the encoding tells.

    An encoding that tells positions at another place with the extension, as a map of the logits in place of a rotation,
    makes its logits in another order of operations; there it is attention that does not change.
    """
    if not takes_factor(subject):
        raise Skip(f"{title(subject)} has no `factor` to set to 1.")
    for name, plain, longer in pairs(given(subject, 1.0)):
        before, after = (
            list(positions.parts(encode(each.position, some(each), size(each)))) for each in (plain, longer)
        )
        if [part for part, _ in before] != [part for part, _ in after]:
            at = apart(plain, size(plain))
            gap = difference(*(weights(each, at, size(plain)) for each in (plain, longer)))
            assert gap <= 1e-9, (
                f"With a factor of 1 {title(subject)} changes the attention of {name} within the trained length by "
                f"{gap:.2g}."
            )
            continue
        for (part, old), (_, new) in zip(before, after, strict=True):
            assert torch.equal(old, new), (
                f"With a factor of 1 {title(subject)} changes the {part} of {name} within the trained length."
            )


@check
def dynamic(subject: Subject) -> None:
    """Attention depends on the extent of a request if and only if it says `dynamic`, and only beyond training."""
    moved, claims = False, kind(subject).dynamic
    for name, plain, longer in pairs(given(subject)):
        at = apart(longer, size(longer))
        first, *others = (weights(longer, at, extent) for extent in requests(longer))
        gap = max(difference(first, other) for other in others)
        assert claims or gap <= 1e-6, (
            f"In {name} {title(subject)} chooses by the extent of a request: say `dynamic = True`."
        )
        moved |= gap > 1e-6
        if claims:
            assert difference(first, weights(plain, at, size(plain))) <= 1e-6, (
                f"In {name} {title(subject)} changes a request within the trained length: choose by `extent` beyond it "
                "only."
            )
    assert moved or not claims, f"{title(subject)} says that it is `dynamic`, and serves every request alike."


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of two attentions."""
    return float((one - other).abs().max())


@check
def refusals(subject: Subject) -> None:
    """A factor below 1 is refused when a model is built, and so is what it cannot serve; all else is finite."""
    for name, encoding in hosts(subject):
        if takes_factor(subject):
            for factor in (0.5, 0.0, -2.0, math.nan, math.inf):
                try:
                    models(partial(encoding, extension=partial(subject, factor=factor)))
                except Skip:
                    continue
                raise AssertionError(
                    f"In {name} {title(subject)} takes a factor of {factor}: refuse all below 1 and infinite ones."
                )
        try:
            models(partial(encoding, extension=given(subject)))
        except Skip:  # of one or the other, everywhere; where it serves nobody the other questions say so
            continue
        try:
            positions.geometry(partial(encoding, extension=given(subject)))
        except AssertionError as error:
            raise AssertionError(f"In {name}: {error}") from error


@check
def settings(subject: Subject) -> None:
    """Every argument of the constructor changes something: a number that reaches nothing is a silent lie."""
    own = list(inspect.signature(kind(subject)).parameters.values())[1:]
    fixed: dict[str, Any] = dict(subject.keywords) if isinstance(subject, partial) else {}
    base = ({"factor": FACTOR} if takes_factor(subject) else {}) | fixed
    choices = {argument.name: list(candidates(subject, argument)) for argument in own}
    if not any(choices.values()):
        raise Skip(f"{title(subject)} has no numbers, switches or choices of its own.")

    def seen(values: dict[str, Any]) -> dict[Any, list[Tensor]]:
        found = {}
        with suppress(Skip):  # nobody takes it with these
            for name, _, longer in pairs(partial(kind(subject), **values)):
                told = [weights(longer, apart(longer, extent), extent) for extent in requests(longer)]
                found[name, longer.geometry.axes] = told
        return found

    def matters(name: str) -> bool:
        for context in [{}, *({other: value} for other in choices if other != name for value in choices[other])]:
            before = seen(base | context)
            for value in choices[name]:
                after = seen(base | context | {name: value})
                both = [zip(before[at], after[at], strict=True) for at in before.keys() & after.keys()]
                if not all(torch.equal(one, two) for each in both for one, two in each):
                    return True
        return False

    idle = [name for name, values in choices.items() if values and name not in fixed and not matters(name)]
    assert not idle, f"{', '.join(idle)} of {title(subject)} changes no attention."


@check
def serving(subject: Subject) -> None:
    """Every encoding that takes it keeps the promises of its bias: both directions, registers, rungs and gradients."""
    for name, encoding in hosts(subject):
        longer = partial(encoding, extension=given(subject))
        for ask in (positions.bidirectional, positions.registers, positions.tensors, positions.gradients):
            try:
                ask(longer)
            except AssertionError as error:
                raise AssertionError(f"In {name}, asked by `{ask.__name__}`: {error}") from error
            except Skip:
                continue


CHECKS = (keywords, identity, dynamic, refusals, settings, extending, serving, reach, stored)
