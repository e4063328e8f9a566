"""The exam's questions about constructors: what a plugin takes, and whether it listens to it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from zoo.errors import ZooError
from zoo.extension import Conversion, Extension, WaveExtension
from zoo.testing.probe import GEOMETRY, GRID, Skip, Subject, check, kind, line, title, trunk, weights
from zoo.vit import grid


@check
def keywords(subject: Subject) -> None:
    """Arguments beyond the first, the geometry, are keywords with defaults, and the docstring describes each."""
    name, extension = kind(subject).__name__, issubclass(kind(subject), Extension)
    what = "series" if issubclass(kind(subject), WaveExtension) else "geometry"
    own = list(inspect.signature(kind(subject)).parameters.values())
    if issubclass(kind(subject), Conversion):  # it is built from its keywords alone
        what = "self"
    else:
        assert own, f"{name}.__init__ takes no {what}."
        own = own[1:]
    for argument in own:
        if argument.kind is argument.VAR_KEYWORD:
            continue
        assert argument.kind is argument.KEYWORD_ONLY, (
            f"The argument {argument.name} of {name} must be keyword-only: put a * before it, after the {what}."
        )
        needed = extension and argument.name == "factor"  # how far is for the user to say
        assert needed or argument.default is not argument.empty, (
            f"The argument {argument.name} of {name} needs a default, so that the name alone is a recipe."
        )
        assert f"{argument.name}:" in (kind(subject).__doc__ or ""), (
            f"The docstring of {name} must describe {argument.name} under 'Args:'; it is the command line's help."
        )
    assert kind(subject).__doc__, f"{name} has no docstring; it is the command line's help."


def arguments(subject: Subject) -> list[inspect.Parameter]:
    """What its constructor takes beyond the geometry."""
    return list(inspect.signature(kind(subject)).parameters.values())[1:]


@check
def settings(subject: Subject) -> None:
    """Every argument of the constructor changes something: a number that reaches nothing is a silent lie."""
    choices = {argument.name: list(candidates(subject, argument)) for argument in arguments(subject)}
    fixed: dict[str, Any] = dict(subject.keywords) if isinstance(subject, partial) else {}
    for argument in arguments(subject):  # what a fixed choice rules out may matter with the default one
        if argument.name in fixed:
            choices[argument.name].append(argument.default)
    memo: dict[str, list[Any]] = {}

    def seen(values: dict[str, Any]) -> list[Any]:
        key = repr(sorted(values.items()))
        if key not in memo:
            memo[key] = fingerprint(partial(kind(subject), **values))
        return memo[key]

    def matters(name: str) -> bool:
        contexts = [{}, *({other: value} for other in choices if other != name for value in choices[other])]
        return any(
            changed(seen(fixed | context), seen(fixed | context | {name: value}))
            for context in contexts
            for value in choices[name]
        )

    idle = [name for name, values in choices.items() if values and name not in fixed and not matters(name)]
    assert not idle, f"{', '.join(idle)} of {title(subject)} changes nothing, neither parameters nor attention."
    if not any(choices.values()):
        raise Skip(f"{title(subject)} has no numbers, switches or choices of its own.")


def candidates(subject: Subject, argument: Any) -> Iterator[Any]:
    """Other values of an argument, as far as its annotation tells."""
    hints = get_type_hints(kind(subject).__init__)
    default, pending = argument.default, [hints.get(argument.name, type(argument.default))]
    known = isinstance(default, int | float) and not isinstance(default, bool)
    while pending:
        hint = pending.pop(0)
        if get_origin(hint) in (Union, types.UnionType):
            pending += get_args(hint)
            continue
        values: tuple[Any, ...] = ()
        if get_origin(hint) is Literal:
            values = get_args(hint)
        elif hint is bool:
            values = (True, False)
        elif hint is int:
            values = (default * 2, max(default // 2, 1), default + 1, 4) if known else (2, 4, 8, 16, 128)
        elif hint is float:
            values = (default * 2.0, default * 0.5, 0.25) if known else (0.5, 2.0, 100.0)
        elif get_origin(hint) is tuple and isinstance(default, tuple):
            values = tuple(tuple(part * factor for part in default) for factor in (2, 3))
        yield from (value for value in values if value != default)


def fingerprint(subject: Subject) -> list[Any]:
    """All that can be seen of an encoding, in some geometries; None where it cannot be built."""
    found: list[Any] = []
    wide = replace(GEOMETRY, dim=96, heads=6, kv_heads=6)  # heads that are no power of two
    text = (GEOMETRY, line(16), 64), (GEOMETRY, line(16, 200), 256), (wide, line(16), 64)
    grids = (GRID, grid(4, 6), 24), (GRID, grid(6, 9), 54), (GRID, grid(3, 4), 12)
    for geometry, positions, extent in (*text, *grids):
        try:
            torch.manual_seed(0)
            position = subject(geometry)
            model = trunk(subject, geometry)
        except (ZooError, Skip):
            found.append(None)
            continue
        facts = [position.relative, position.per_layer, position.content]
        facts += [parameter.requires_grad for parameter in position.parameters()]
        tensors = list(position.state_dict().values())
        x = torch.randn(1, geometry.prefix + len(positions), geometry.dim, dtype=torch.float64)
        try:
            tensors += [weights(model, positions, extent, x)]
        except ZooError:
            facts += ["refused"]
        found.append((facts, tensors))
    return found


def changed(before: list[Any], after: list[Any]) -> bool:
    """Whether two fingerprints differ in a geometry that both serve."""
    for old, new in zip(before, after, strict=True):
        if old is None or new is None:
            continue
        if old[0] != new[0] or len(old[1]) != len(new[1]):
            return True
        if not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(old[1], new[1], strict=True)):
            return True
    return False
