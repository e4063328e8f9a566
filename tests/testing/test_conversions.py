"""The exam for conversions: a sound one passes, and each defect is found by the check that is there for it."""

import math

import pytest
import torch
from zoo_positions.rope.conversions import DroPE

from zoo.errors import ZooError
from zoo.extension import Conversion
from zoo.testing import conversions, examine, suite


class Swap(Conversion):
    """RoPE becomes trainable FoPE; sound.

    Args:
        factor: How far.
        gain: Of the noise.
    """

    converts = ("RoPE",)

    def __init__(self, *, factor: float, gain: float = 0.3):
        if not 1 <= factor < math.inf:
            raise ZooError("no")
        self.gain = gain * factor

    def rewrite(self, node, geometry):
        return {"class_path": "FoPE", "init_args": {"gain": self.gain, "num_inv_freq": 2, "trainable": True}}


class Nothing(Swap):
    converts = ()


class Unheard(Swap):
    converts = "RoPE", "RaPE"


class Refusing(Swap):
    converts = "RoPE", "ALiBi"

    def rewrite(self, node, geometry):
        if node["class_path"] == "ALiBi":
            raise ZooError("never")
        return super().rewrite(node, geometry)


class Writing(Swap):
    def rewrite(self, node, geometry):
        node["class_path"] = "FoPE"
        return super().rewrite(node, geometry)


class Counting(Swap):
    count = 0.1

    def rewrite(self, node, geometry):
        Counting.count += 0.1
        return {"class_path": "FoPE", "init_args": {"gain": Counting.count, "num_inv_freq": 2}}


class Tuple(Swap):
    def rewrite(self, node, geometry):
        return {"class_path": "FoPE", "init_args": {"floor": (64,)}}


class Drawing(Swap):
    def rewrite(self, node, geometry):
        torch.randn(1)
        return super().rewrite(node, geometry)


class Random(Swap):
    count = 0

    def migrate(self, old, new):
        Random.count += 1
        new.sin_coef.add_(Random.count)


class Endless(Swap):
    def migrate(self, old, new):
        new.sin_coef.fill_(math.nan)


class Vandal(Swap):
    converts = ("FoPE",)

    def migrate(self, old, new):
        old.sin_coef.zero_()


class Unstored(Swap):
    def migrate(self, old, new):
        new.frequencies = new.frequencies * 2  # which no checkpoint holds


class Short(Swap):
    def __init__(self, *, factor: float, gain: float = 0.3):
        self.gain = gain


class Deaf(Swap):
    def rewrite(self, node, geometry):
        return {"class_path": "NoPE", "init_args": {}}


class Bare(Swap):
    """Says nothing of its arguments."""


class Crash(Swap):
    def migrate(self, old, new):
        raise KeyError("weight")


def told(subject):
    return {result.name: result for result in examine(subject)}


@pytest.mark.parametrize("sound", [Swap, DroPE])
def test_a_sound_one_passes(sound):
    found = told(sound)
    assert not [result for result in found.values() if not result.passed]
    assert suite(sound) is conversions.CHECKS


@pytest.mark.parametrize(
    ("defect", "name", "sentence"),
    [
        (Nothing, "served", "names no encoding"),
        (Unheard, "served", "converts RaPE, which is not installed"),
        (Refusing, "served", "says that it converts ALiBi, and refuses: never"),
        (Crash, "served", "raises KeyError"),
        (Writing, "rewriting", "writes into the description"),
        (Counting, "rewriting", "another description when it is asked again"),
        (Tuple, "rewriting", "JSON cannot hold"),
        (Drawing, "rewriting", "draws from the caller's generator"),
        (Random, "migration", "other weights when it is asked again"),
        (Endless, "migration", "not finite"),
        (Endless, "attention", "not finite"),
        (Vandal, "migration", "writes into the trained weights"),
        (Unstored, "migration", "rotation's cos is another"),
        (Short, "refusals", "takes a factor of 0.5"),
        (Deaf, "settings", "gain of Deaf changes neither"),
        (Bare, "keywords", "must describe factor"),
    ],
)
def test_each_defect_is_found(defect, name, sentence):
    defect.__doc__ = defect.__doc__ if defect is Bare else Swap.__doc__
    result = told(defect)[name]
    assert not result.passed
    assert sentence in result.message
