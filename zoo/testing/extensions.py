"""The exam for extensions of waves: what each gives, and that every encoding that takes it keeps its promises.

A subject without a default for `factor` is examined with a factor of 4, unless a partial fixes another.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo import checkpoints, plugins
from zoo.errors import ZooError
from zoo.extension import Series, WaveExtension
from zoo.matrix import extended
from zoo.testing import positions
from zoo.testing.probe import (
    Skip,
    Subject,
    apart,
    blame,
    check,
    close,
    encode,
    kind,
    models,
    size,
    some,
    title,
    trunk,
    weights,
)
from zoo.testing.settings import candidates, keywords

SERIES = (
    Series(base=10_000.0, width=16, length=64),
    Series(base=10_000.0, width=64, length=512),
    Series(base=500_000.0, width=128, length=8192),
    Series(base=100.0, width=32, length=14, axes=2),
)
"""A tiny model, a small one, Llama 3, and one axis of a vision transformer."""
FACTOR = 4.0


def takes_factor(subject: Subject) -> bool:
    """Whether it has an argument `factor` that is not fixed."""
    fixed = subject.keywords if isinstance(subject, partial) else {}
    return "factor" in inspect.signature(kind(subject)).parameters and "factor" not in fixed


def given(subject: Subject, factor: float = FACTOR) -> Subject:
    """The subject with a factor, where it takes one."""
    return partial(subject, factor=factor) if takes_factor(subject) else subject


def built(subject: Subject) -> Iterator[tuple[WaveExtension, Tensor]]:
    """It, and the waves that it is to extend, float64, wherever it serves; Skip where it serves nowhere."""
    found, reason = 0, ""
    for series in SERIES:
        try:
            extension = subject(series)
        except ZooError as error:
            reason = str(error)
            continue
        found += 1
        yield extension, spectrum(series)
    if not found:
        raise Skip(reason)


def spectrum(series: Series) -> Tensor:
    """The waves of training, float64."""
    return series.base ** -(torch.arange(0, series.width, 2, dtype=torch.float64, device="cpu") / series.width)


def extents(extension: WaveExtension) -> tuple[int, ...]:
    """Of a short request, one of the trained length, and longer ones."""
    length = extension.series.length
    return 2, length, length + 1, 2 * length, 4 * length, 16 * length


@check
def formula(subject: Subject) -> None:
    """It is a pure function: the same waves for the same request, finite, of the type and shape that it was given."""
    name = title(subject)
    for extension, waves in built(given(subject)):
        for extent in extents(extension):
            exact, factor = extension.waves(waves, extent)
            for frequencies in (waves, waves.float()):
                before = frequencies.clone()
                with blame(f"For {extension.series} and an extent of {extent}"), torch.device("meta"):
                    found, again = (extension.waves(frequencies, extent) for _ in range(2))
                assert torch.equal(frequencies, before), f"{name} writes into the frequencies that it is given."
                assert found[0].device == frequencies.device, (
                    f"{name} makes its tensors on the default device: give them device=frequencies.device."
                )
                same = torch.equal(found[0], again[0]), found[1] == again[1] == factor
                assert all(same), (
                    f"{name} gives other waves when it is asked again: it is a function of the request and of nothing "
                    "else."
                )
                kinds = (found[0].dtype, found[0].shape), (frequencies.dtype, frequencies.shape)
                assert kinds[0] == kinds[1], f"{name} makes {kinds[0]} of frequencies that are {kinds[1]}."
                sound(found, f"Asked for {extent} positions of {extension.series}, {name}")
                close(
                    found[0].double() / exact,
                    torch.ones_like(exact),
                    1e-4,
                    f"{name} gives other waves in float32 than in float64.",
                )
            half = len(waves) // 2
            close(
                extension.waves(waves[:half], extent)[0] / exact[:half],
                torch.ones(half, dtype=torch.float64),
                1e-9,
                f"{name} gives the fast waves other frequencies when the slow ones are missing, as in p-RoPE: use "
                "`series` for what depends on all of them.",
            )


def sound(found: tuple[Tensor, float], who: str) -> None:
    """Frequencies and an attention factor that a model can live with."""
    waves, factor = found
    assert waves.isfinite().all(), f"{who} gives frequencies that are not finite: refuse it, or repair it."
    assert (waves > 0).all(), f"{who} gives frequencies that are not above 0: refuse it, or repair it."
    assert isinstance(factor, float), f"{who} gives the attention factor {factor!r}, which is no float."
    assert 0 < factor < math.inf, f"{who} gives the attention factor {factor}: it is above 0."


@check
def identity(subject: Subject) -> None:
    """With a factor of 1 nothing changes within the trained length, to the last bit."""
    if not takes_factor(subject):
        raise Skip(f"{title(subject)} has no `factor` to set to 1.")
    for extension, waves in built(given(subject, 1.0)):
        for extent in extents(extension)[:2]:
            for frequencies in (waves, waves.float()):
                found, factor = extension.waves(frequencies, extent)
                untouched = torch.equal(found, frequencies), factor == 1
                assert all(untouched), (
                    f"With a factor of 1 and an extent of {extent} {title(subject)} changes waves that were trained on "
                    f"{extension.series.length} positions."
                )


@check
def dynamic(subject: Subject) -> None:
    """Its waves depend on the extent of a request if and only if it says `dynamic`, and they do change something."""
    name = title(subject)
    moved, changed = False, False
    for extension, waves in built(given(subject)):
        told = [extension.waves(waves, extent) for extent in extents(extension)]
        differ = any(not torch.equal(each, told[0][0]) or factor != told[0][1] for each, factor in told[1:])
        assert extension.dynamic or not differ, f"{name} chooses by the extent: say `dynamic = True`."
        moved |= differ
        changed |= any(not torch.equal(each, waves) or factor != 1 for each, factor in told)
        if extension.dynamic:
            first = extension.waves(waves, extents(extension)[0])[0]
            assert torch.equal(first, told[1][0]), (
                f"{name} treats requests within the trained length differently: choose by `extent` beyond it only."
            )
    assert changed, f"{name} changes neither waves nor attention factor, in requests of up to 16 trained lengths."
    if next(built(given(subject)))[0].dynamic:
        assert moved, f"{name} says that it is `dynamic`, and gives every request the same."


@check
def refusals(subject: Subject) -> None:
    """A factor below 1 is refused, and when it is built waves that it cannot serve; all others come out finite."""
    if takes_factor(subject):
        for factor in (0.5, 0.0, -2.0, math.nan, math.inf):
            try:
                partial(subject, factor=factor)(SERIES[1])
            except ZooError:
                continue
            raise AssertionError(f"{title(subject)} takes a factor of {factor}: refuse all below 1 and infinite ones.")
    plain = SERIES[1]
    sizes = [replace(plain, width=width) for width in (2, 4)] + [replace(plain, length=n) for n in (1, 2, 7)]
    for series in (*sizes, replace(plain, base=1.01)):
        with blame(f"What it cannot serve it must refuse with a ZooError. For {series}"):
            try:
                extension = given(subject)(series)
            except ZooError as error:
                reason = str(error)
                assert reason, f"For {series} the refusal is empty: say what was asked, why not, what would work."
                continue
            for extent in extents(extension):
                told = extension.waves(spectrum(series), extent)
                sound(told, f"Asked for {extent} positions of {series}, {title(subject)}")


@check
def settings(subject: Subject) -> None:
    """Every argument of the constructor changes something: a number that reaches nothing is a silent lie."""
    own = list(inspect.signature(kind(subject)).parameters.values())[1:]
    fixed: dict[str, Any] = dict(subject.keywords) if isinstance(subject, partial) else {}
    base = ({"factor": FACTOR} if takes_factor(subject) else {}) | fixed
    choices = {argument.name: list(candidates(subject, argument)) for argument in own}
    for values in choices.values():
        values += [1e7] if any(isinstance(value, float) for value in values) else []  # a base, if it is one

    def seen(values: dict[str, Any]) -> list[Any]:
        found: list[Any] = []
        for series in SERIES:
            try:
                extension = partial(kind(subject), **values)(series)
            except ZooError:
                found.append(None)
                continue
            told = [extension.waves(spectrum(series), extent) for extent in extents(extension)]
            found.append([(waves.tolist(), factor) for waves, factor in told])
        return found

    def matters(name: str) -> bool:
        for context in [{}, *({other: value} for other in choices if other != name for value in choices[other])]:
            before = seen(base | context)
            for value in choices[name]:
                after = seen(base | context | {name: value})
                if any(a is not None and b is not None and a != b for a, b in zip(before, after, strict=True)):
                    return True
        return False

    idle = [name for name, values in choices.items() if values and name not in fixed and not matters(name)]
    assert not idle, f"{', '.join(idle)} of {title(subject)} changes neither waves nor attention factor."
    if not any(choices.values()):
        raise Skip(f"{title(subject)} has no numbers, switches or choices of its own.")


def decoding(subject: Subject) -> None:
    """As `positions.decoding`, on three kernels: each kernel is tried with the encoding by the exam of that."""
    positions.decoding(subject, kernels=("Eager", "SDPA", "Tiled"))


@check
def extending(subject: Subject) -> None:
    """Every encoding that takes it keeps its promises: exact angles, shifts, cached decoding, rows, storage."""
    for name, encoding in hosts(subject):
        longer = partial(encoding, extension=given(subject))
        for ask in (
            positions.precision,
            positions.shift,
            positions.growth,
            decoding,
            positions.rows,
            positions.autocast,
            positions.storage,
        ):
            with blame(f"In {name}, asked by `{ask.__name__}`,"):
                try:
                    ask(longer)
                except AssertionError as error:
                    raise AssertionError(f"In {name}: {error}") from error
                except Skip:
                    continue


@check
def reach(subject: Subject) -> None:
    """An encoding that takes it attends differently with it, in a request of four times the trained length."""
    for name, encoding in hosts(subject):
        longer = partial(encoding, extension=given(subject))
        try:
            plain, changed = trunk(encoding), trunk(longer)
        except Skip:
            continue
        extent = 4 * size(changed)
        gap = (weights(plain, apart(plain, extent), extent) - weights(changed, apart(plain, extent), extent)).abs()
        assert float(gap.max()) > 1e-6, f"{name} attends with {title(subject)} as without: it does not ask it."


@check
def stored(subject: Subject) -> None:
    """A checkpoint names it within its encoding, with its arguments, and what is read back turns alike."""
    if plugins.classes("zoo.extensions").get(kind(subject).__name__) is not kind(subject):
        raise Skip(f"{title(subject)} is not installed, so that a checkpoint could not name it.")
    for name, encoding in hosts(subject):
        slot = partial(encoding, extension=given(subject))
        for model in models(slot):
            node = checkpoints.describe(model.position, slot, "zoo.positions")
            assert node["init_args"]["extension"]["class_path"] == kind(subject).__name__
            again = checkpoints.callable_of(json.loads(json.dumps(node)), "zoo.positions")(model.geometry)
            again.load_state_dict(model.position.state_dict())
            for extent in (size(model), 8 * size(model)):
                one, two = (
                    list(positions.parts(encode(each, some(model), extent))) for each in (model.position, again)
                )
                for (part, before), (_, after) in zip(one, two, strict=True):
                    assert torch.equal(before, after), (
                        f"{name} with {title(subject)} has another {part} after it was described and built again."
                    )


def hosts(subject: Subject) -> list[tuple[str, Any]]:
    """The encodings that take it; Skip where none is installed."""
    found = list(extended(subject))
    if not found:
        raise Skip(
            f"No installed encoding takes {title(subject)}: one that does has an argument `extension`, annotated "
            "Callable[[Series], ITS KIND] | None, or with another type than Series that it is built from."
        )
    return found


CHECKS = (keywords, formula, identity, dynamic, refusals, settings, extending, reach, stored)
