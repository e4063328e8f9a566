"""Wilson's interval, against the equation that defines it and against how often it holds the truth."""

from __future__ import annotations

import math

import pytest

from zoo.errors import ZooError
from zoo.evaluate.intervals import Z, wilson


def root(share: float, trials: int, start: float, stop: float) -> float:
    """Where the distance to the share is Z standard errors of the truth, by halving."""

    def over(truth: float) -> float:
        return (share - truth) ** 2 - Z**2 * truth * (1 - truth) / trials

    sign = over(start) > 0
    for _ in range(100):
        middle = (start + stop) / 2
        start, stop = (middle, stop) if (over(middle) > 0) == sign else (start, middle)
    return start


@pytest.mark.parametrize(("right", "trials"), [(1, 2), (3, 5), (19, 20), (1, 100), (2.5, 4)])
def test_solves_its_equation(right: float, trials: int) -> None:
    low, high = wilson(right, trials)
    share = right / trials
    assert low == pytest.approx(root(share, trials, 0, share), abs=1e-9)
    assert high == pytest.approx(root(share, trials, share, 1), abs=1e-9)


def test_known_values() -> None:
    assert wilson(19, 20) == pytest.approx((0.7639, 0.9911), abs=1e-4)
    assert wilson(5, 5) == pytest.approx((5 / (5 + Z**2), 1.0))
    assert wilson(0, 5) == pytest.approx((0.0, Z**2 / (5 + Z**2)))
    assert wilson(5, 5)[1] == 1.0
    assert wilson(0, 7)[0] == 0.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_mirrors() -> None:
    for right in range(8):
        low, high = wilson(right, 7)
        assert 0 <= low <= right / 7 <= high <= 1
        assert wilson(7 - right, 7) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("trials", [5, 20, 100])
def test_holds_the_truth_in_about_95_of_100(trials: int) -> None:
    held = []
    for hundredths in range(1, 100):
        truth = hundredths / 100
        chance = [math.comb(trials, n) * truth**n * (1 - truth) ** (trials - n) for n in range(trials + 1)]
        inside = [wilson(n, trials)[0] <= truth <= wilson(n, trials)[1] for n in range(trials + 1)]
        held.append(sum(p for p, holds in zip(chance, inside, strict=True) if holds))
    assert sum(held) / len(held) == pytest.approx(0.955, abs=0.012)


@pytest.mark.parametrize(("right", "trials"), [(-1, 5), (6, 5), (1, 0)])
def test_impossible_counts(right: int, trials: int) -> None:
    with pytest.raises(ZooError, match=f"Of {trials} trials, {right} cannot"):
        wilson(right, trials)
