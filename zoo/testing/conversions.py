"""The exam for conversions: every encoding that one names becomes another that a checkpoint can hold.

A conversion promises little about numbers: that is between it and its paper. What everybody relies on is that the new
description builds, that the same checkpoint comes of it twice, that it is finite, and that the old one is left alone.
A subject without a default for `factor` is examined with 4, unless a partial fixes another.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo import checkpoints, plugins
from zoo.errors import ZooError
from zoo.extension import Conversion
from zoo.position import Geometry, PositionEncoding
from zoo.testing import positions
from zoo.testing.extensions import FACTOR, apart, given, takes_factor
from zoo.testing.probe import (
    GEOMETRY,
    GRID,
    Skip,
    Subject,
    blame,
    check,
    encode,
    kind,
    line,
    size,
    stir,
    title,
    trunk,
    weights,
)
from zoo.testing.settings import candidates, keywords
from zoo.vit import grid

GROUP = "zoo.positions"


def made(node: Mapping[str, Any], geometry: Geometry, seed: int = 0) -> PositionEncoding:
    """The encoding of a description, its draws from a seed."""
    torch.manual_seed(seed)
    found: PositionEncoding = checkpoints.callable_of(json.loads(json.dumps(node)), GROUP)(geometry)
    return found


def trained(name: str, geometry: Geometry) -> tuple[dict[str, Any], PositionEncoding]:
    """An encoding by name, described, its parameters moved as training would."""
    encoding = plugins.load(GROUP, name)
    torch.manual_seed(0)
    module = encoding(geometry)
    stir(module)
    return checkpoints.describe(module, encoding, GROUP), module


def convert(
    conversion: Conversion, node: Mapping[str, Any], old: PositionEncoding
) -> tuple[dict[str, Any], PositionEncoding]:
    """The new description, and the encoding with its weights."""
    told = conversion.rewrite(copy.deepcopy(node), old.geometry)
    new = made(told, old.geometry)
    conversion.migrate(old, new)
    return told, new


def able(conversion: Conversion, name: str, geometry: Geometry) -> tuple[dict[str, Any], PositionEncoding]:
    """An encoding that can be converted, and its description; the refusal where none can, grouped heads or not."""
    for heads in (geometry.kv_heads, geometry.heads):
        try:
            node, old = trained(name, replace(geometry, kv_heads=heads))
            convert(conversion, node, copy.deepcopy(old))
            return node, old
        except ZooError as error:
            reason = error
    raise reason


def conversions(subject: Subject) -> Iterator[tuple[str, Conversion, dict[str, Any], PositionEncoding]]:
    """For each encoding that it names, in text and where it can be in images: a sentence's start, it, and the two."""
    conversion = given(subject)()
    for name in kind(subject).converts:
        for geometry in (GEOMETRY, GRID):
            with suppress(ZooError):  # `served` asks for one of the two
                yield f"For {name} {title(subject)}", conversion, *able(conversion, name, geometry)


@check
def served(subject: Subject) -> None:
    """It names encodings that are installed, and converts each of them in a model of text or of images."""
    name, names = title(subject), kind(subject).converts
    assert isinstance(names, tuple), f"{name}.converts is no tuple of names."
    assert names, f"{name} names no encoding that it converts."
    absent = [each for each in names if each not in plugins.names(GROUP)]
    assert not absent, f"{name} converts {', '.join(absent)}, which is not installed."
    refused = {}
    for each in names:
        reasons = []
        for geometry in (GEOMETRY, GRID):
            try:
                with blame(f"For {each}"):
                    able(given(subject)(), each, geometry)
            except ZooError as error:
                reasons.append(f"{name} says that it converts {each}, and refuses: {error}")
        if len(reasons) == 2:
            refused[each] = reasons[0]
    special = isinstance(subject, partial) and len(refused) < len(names)  # fixed arguments may rule some out
    assert special or not refused, " ".join(refused.values())


@check
def rewriting(subject: Subject) -> None:
    """The new description survives JSON, is the same twice, and the old one is left as it was."""
    for where, conversion, node, old in conversions(subject):
        before, state = copy.deepcopy(node), torch.get_rng_state()
        one, two = (conversion.rewrite(node, old.geometry) for _ in range(2))
        assert node == before, f"{where} writes into the description that it is given: return another one."
        assert one == two, f"{where} gives another description when it is asked again."
        assert set(one) == {"class_path", "init_args"}, f"{where} describes {set(one)}: class_path and init_args."
        assert json.loads(json.dumps(one)) == one, f"{where} gives a description that JSON cannot hold."
        assert torch.equal(torch.get_rng_state(), state), f"{where} draws from the caller's generator."


@check
def migration(subject: Subject) -> None:
    """Weights are finite and the same twice, the trained ones stay as they were, and a checkpoint can hold the new."""
    for where, conversion, node, old in conversions(subject):
        before = copy.deepcopy(old.state_dict())
        (told, one), (_, two) = (convert(conversion, node, old) for _ in range(2))
        assert same(old.state_dict(), before), f"{where} writes into the trained weights."
        for name, value in one.state_dict().items():
            assert value.isfinite().all(), f"{where} makes {name} that is not finite."
        assert same(one.state_dict(), two.state_dict()), f"{where} gives other weights when it is asked again."
        pinned = {**told, "init_args": told["init_args"] | one.pinned()}
        again = made(pinned, old.geometry, seed=1)
        again.load_state_dict(one.state_dict())
        at = line(12) if old.geometry.axes == 1 else grid(3, 4)
        first, second = (list(positions.parts(encode(each, at, 48))) for each in (one, again))
        assert len(first) == len(second), f"{where} makes an encoding that is another after a checkpoint held it."
        for (part, found), (_, kept) in zip(first, second, strict=True):
            assert torch.equal(found, kept), f"{where} makes an encoding whose {part} is another after a checkpoint."


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Whether two states are equal to the last bit."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@check
def attention(subject: Subject) -> None:
    """A model with the new encoding attends with finite numbers, within the trained length and beyond."""
    for where, conversion, node, old in conversions(subject):
        new = convert(conversion, node, old)[1]
        model = trunk(lambda _, new=new: copy.deepcopy(new), old.geometry)
        for extent in (size(model), int(FACTOR) * size(model)):
            found = weights(model, apart(model, extent), extent)
            assert found.isfinite().all(), f"{where} attends with numbers that are not finite at an extent of {extent}."


@check
def refusals(subject: Subject) -> None:
    """A factor below 1, or one that is infinite, is refused when it is built."""
    if not takes_factor(subject):
        raise Skip(f"{title(subject)} has no `factor`.")
    for factor in (0.5, 0.0, -2.0, math.nan, math.inf):
        try:
            partial(subject, factor=factor)()
        except ZooError:
            continue
        raise AssertionError(f"{title(subject)} takes a factor of {factor}: refuse all below 1 and infinite ones.")


@check
def settings(subject: Subject) -> None:
    """Every argument of the constructor changes something: a number that reaches nothing is a silent lie."""
    fixed: dict[str, Any] = dict(subject.keywords) if isinstance(subject, partial) else {}
    base = ({"factor": FACTOR} if takes_factor(subject) else {}) | fixed
    own = inspect.signature(kind(subject)).parameters.values()
    choices = {each.name: list(candidates(subject, each)) for each in own if each.name not in fixed}
    if not any(choices.values()):
        raise Skip(f"{title(subject)} has no numbers, switches or choices of its own.")
    everything = []
    for name in kind(subject).converts:
        for geometry in (GEOMETRY, GRID):
            with suppress(ZooError):
                everything.append(trained(name, replace(geometry, kv_heads=geometry.heads)))  # which nothing refuses

    def seen(values: dict[str, Any]) -> list[Any]:
        found: list[Any] = []
        for node, old in everything:
            try:
                told, new = convert(kind(subject)(**values), node, old)
            except ZooError:
                found.append(None)
                continue
            found.append((json.dumps(told), {name: value.tolist() for name, value in new.state_dict().items()}))
        return found

    def matters(name: str) -> bool:
        met = False  # where all values are refused, none is ignored
        for context in [{}, *({other: value} for other in choices if other != name for value in choices[other])]:
            before = seen(base | context)
            for value in choices[name]:
                after = seen(base | context | {name: value})
                both = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
                met |= bool(both)
                if any(a != b for a, b in both):
                    return True
        return not met

    idle = [name for name, values in choices.items() if values and not matters(name)]
    assert not idle, f"{', '.join(idle)} of {title(subject)} changes neither a description nor a weight."


CHECKS = (keywords, served, rewriting, migration, attention, refusals, settings)
