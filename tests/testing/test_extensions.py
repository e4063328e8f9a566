"""The exam for extensions, examined: what is broken on purpose must be caught, by name; what is sound must pass."""

import math
from functools import partial

import pytest
import torch
from zoo_positions.scaling import DistanceExtension

from zoo import plugins
from zoo.errors import ZooError
from zoo.extension import Extension, Series, WaveExtension
from zoo.testing import examine, suite, take

EXTENSIONS = plugins.classes("zoo.extensions")


def failures(subject, *names: str) -> set[str]:
    """The checks that fail, of all or of some."""
    found = [take(check, subject) for check in suite(subject) if not names or check.__name__ in names]
    return {result.name for result in found if not result.passed}


class Slower(WaveExtension):
    """All waves slow down.

    Args:
        factor: How far.
        gain: Attention factor for a factor of e.
    """

    def __init__(self, series: Series, *, factor: float, gain: float = 1.0) -> None:
        super().__init__(series, factor=factor)
        self.gain = gain

    def waves(self, frequencies, extent):
        return frequencies / self.factor, self.gain ** math.log(self.factor)


def variant(name="Slower", doc=Slower.__doc__, **body):
    """Slower with something else in it."""
    return type(name, (Slower,), {"__doc__": doc, **body})


def test_a_sound_one_passes_and_a_partial_too():
    assert not failures(Slower)
    assert not failures(partial(Slower, factor=8.0))
    results = {result.name: result for result in examine(partial(Slower, factor=8.0))}
    assert results["identity"].skipped
    assert results["stored"].message == "Slower(factor=8.0) is not installed, so that a checkpoint could not name it."


def odd(self, frequencies, extent):
    """Not the identity at 1."""
    return frequencies / (self.factor + 0.001), self.gain ** math.log(self.factor)


def silent(self, frequencies, extent):
    """Says static, and is dynamic."""
    return frequencies / (self.factor if extent > self.series.length else 1.0), self.gain


def half(self, frequencies, extent):
    """Loses float64."""
    return (frequencies / self.factor).float(), self.gain ** math.log(self.factor)


def shared(self, frequencies, extent):
    """Writes into what it was given."""
    return frequencies.div_(self.factor), self.gain ** math.log(self.factor)


def tensor(self, frequencies, extent):
    """An attention factor that is no float."""
    return frequencies / self.factor, torch.tensor(self.gain ** math.log(self.factor))


def home(self, frequencies, extent):
    """Makes tensors where the default device is."""
    steps = torch.ones(len(frequencies), dtype=frequencies.dtype)
    return frequencies / (steps * self.factor), self.gain ** math.log(self.factor)


def counted(self, frequencies, extent):
    """Counts the waves at hand."""
    steps = torch.arange(len(frequencies), dtype=frequencies.dtype, device="cpu") / len(frequencies)
    return frequencies / self.factor**steps, self.gain ** math.log(self.factor)


def idle(self, frequencies, extent):
    """Does nothing."""
    return frequencies, 1.0


def still(self, frequencies, extent):
    """Stops the slow waves."""
    return frequencies.where(frequencies > 0.1, 0.0) / self.factor, self.gain ** math.log(self.factor)


def early(self, frequencies, extent):
    """Changes within the trained length."""
    return frequencies / max(1.0, self.factor * extent / self.series.length), self.gain ** math.log(self.factor)


@pytest.mark.parametrize(
    ("waves", "changes", "caught"),
    [
        (odd, {}, "identity"),
        (silent, {}, "dynamic"),
        (half, {}, "formula"),
        (shared, {}, "formula"),
        (tensor, {}, "formula"),
        (home, {}, "formula"),
        (counted, {}, "formula"),
        (idle, {}, "dynamic"),
        (idle, {}, "settings"),
        (idle, {}, "reach"),
        (still, {}, "formula"),
        (still, {}, "refusals"),
        (early, {"dynamic": True}, "dynamic"),
        (Slower.waves, {"dynamic": True}, "dynamic"),
        (Slower.waves, {"doc": "Slower."}, "keywords"),
    ],
)
def test_what_is_broken_is_caught(waves, changes, caught):
    assert caught in failures(variant(waves=waves, **changes), caught)


def test_what_ignores_its_arguments_is_caught():
    def deaf(self, frequencies, extent):
        return frequencies / self.factor, 1.0

    (result,) = (take(check, variant(waves=deaf)) for check in suite(Slower) if check.__name__ == "settings")
    assert result.message == "gain of Slower changes neither waves nor attention factor."


def test_what_takes_any_factor_is_caught():
    def lax(self, series, *, factor: float, gain: float = 1.0):
        self.series, self.factor, self.gain = series, factor, gain

    assert failures(variant(__init__=lax), "refusals") == {"refusals"}


def test_an_error_that_is_none_of_ours_is_caught():
    def crash(self, series, *, factor: float, gain: float = 1.0):
        Slower.__init__(self, series, factor=factor, gain=gain)
        self.ramp = math.log(series.length - 1)

    assert failures(variant(__init__=crash), "refusals") == {"refusals"}


def test_what_depends_on_the_number_of_calls_is_caught_in_the_encodings():
    def tired(self, frequencies, extent):
        self.calls = getattr(self, "calls", 0) + 1
        return frequencies / (self.factor * (1 + self.calls / 100)), 1.0

    subject = variant(waves=tired, dynamic=True)
    assert failures(subject, "formula", "extending") == {"formula", "extending"}


def test_one_that_no_encoding_takes_has_nobody_to_judge_it():
    class Other(Extension):
        """Of another family."""

        def __init__(self, geometry):
            pass

    results = {result.name: result for result in examine(Other)}
    assert results["reach"].skipped
    assert results["reach"].message.startswith("No installed encoding takes Other")
    with pytest.raises(ZooError, match="There is no exam for dict"):
        suite(dict)


class Nearer(DistanceExtension):
    """Distances shrink.

    Args:
        factor: How far.
        power: Of the factor.
    """

    def __init__(self, geometry, *, factor: float, power: float = 1.0) -> None:
        super().__init__(geometry, factor=factor)
        self.power = power

    def divisor(self, extent):
        return self.factor**self.power


def nearer(divisor, **body):
    """Nearer with another divisor."""
    return type("Nearer", (Nearer,), {"__doc__": Nearer.__doc__, "divisor": divisor, **body})


def test_a_sound_one_of_distances_passes():
    assert not failures(Nearer)
    assert not failures(partial(Nearer, factor=8.0))


@pytest.mark.parametrize(
    ("divisor", "changes", "caught"),
    [
        (lambda self, extent: self.factor + 0.5, {}, "identity"),
        (lambda self, extent: self.factor if extent > 64 else 1.0, {}, "dynamic"),
        (Nearer.divisor, {"dynamic": True}, "dynamic"),
        (lambda self, extent: self.factor * extent / 64, {"dynamic": True}, "dynamic"),
        (lambda self, extent: 1.0, {}, "reach"),
        (lambda self, extent: self.factor, {}, "settings"),
        (Nearer.divisor, {"__doc__": "Nearer."}, "keywords"),
    ],
)
def test_what_is_broken_in_one_of_distances_is_caught(divisor, changes, caught):
    assert caught in failures(nearer(divisor, **changes), caught)


def test_one_of_distances_that_takes_any_factor_is_caught():
    def lax(self, geometry, *, factor: float, power: float = 1.0):
        self.geometry, self.factor, self.power = geometry, factor or 1, power

    assert failures(nearer(Nearer.divisor, __init__=lax), "refusals") == {"refusals"}


def test_one_of_distances_that_counts_its_calls_is_caught():
    def tired(self, extent):
        self.calls = getattr(self, "calls", 0) + 1
        return self.factor + self.calls / 10

    assert failures(nearer(tired, dynamic=True), "extending") == {"extending"}


def test_a_kind_is_taken_with_its_subclasses():
    class Kin(Slower):
        """Of a family of its own."""

    found = {result.name: result for result in examine(Kin)}
    assert found["reach"].passed
    assert not found["reach"].skipped
