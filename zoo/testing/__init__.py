"""The exam: what every position encoding, kernel and extension must hold, shipped with the contracts that it checks.

In the style of scikit-learn's `parametrize_with_checks`: a plugin's whole test is

    from zoo.testing import checks

    @checks(MyEncoding)
    def test_mine(check):
        check()

`examine` takes the same exam without pytest. A subject is a class, or a `functools.partial` that fixes arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from zoo.errors import ZooError
from zoo.extension import Conversion, Extension, WaveExtension
from zoo.kernel import Kernel
from zoo.position import PositionEncoding
from zoo.testing import conversions, extensions, kernels, owned, positions
from zoo.testing.probe import Check, Skip, Subject, kind, title

if TYPE_CHECKING:
    import pytest

__all__ = [
    "Result",
    "Skip",
    "checks",
    "conversions",
    "examine",
    "extensions",
    "kernels",
    "owned",
    "positions",
    "suite",
]


@dataclass(frozen=True)
class Result:
    """How one check went.

    Args:
        name: Of the check.
        sentence: What it holds the subject to.
        outcome: "passed", "failed" or "skipped".
        message: Why it failed or was skipped.
    """

    name: str
    sentence: str
    outcome: Literal["passed", "failed", "skipped"]
    message: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing was found; a skipped check found nothing."""
        return self.outcome != "failed"

    @property
    def skipped(self) -> bool:
        """Whether the check does not apply; `message` has the reason."""
        return self.outcome == "skipped"


def suite(subject: Subject) -> tuple[Check, ...]:
    """The checks that a subject must pass."""
    found = kind(subject)
    if isinstance(found, type) and issubclass(found, PositionEncoding):
        return positions.CHECKS
    if isinstance(found, type) and issubclass(found, Kernel):
        return kernels.CHECKS
    if isinstance(found, type) and issubclass(found, WaveExtension):
        return extensions.CHECKS
    if isinstance(found, type) and issubclass(found, Conversion):
        return conversions.CHECKS
    if isinstance(found, type) and issubclass(found, Extension):
        return owned.CHECKS
    raise ZooError(
        f"There is no exam for {title(subject)}: it is neither a PositionEncoding nor a Kernel nor an Extension."
    )


def examine(subject: Subject) -> list[Result]:
    """Take the whole exam; needs no pytest."""
    return [take(check, subject) for check in suite(subject)]


def take(check: Check, subject: Subject) -> Result:
    """Run one check."""
    name, sentence = check.__name__, (check.__doc__ or "").strip()
    try:
        check(subject)
    except Skip as reason:
        return Result(name, sentence, "skipped", str(reason))
    except (AssertionError, ZooError) as error:
        return Result(name, sentence, "failed", str(error))
    except Exception as error:  # a defect of the subject is a finding, not the end of the exam
        return Result(name, sentence, "failed", f"{type(error).__name__}: {error}")
    return Result(name, sentence, "passed")


def checks(*subjects: Subject, **settings: Any) -> pytest.MarkDecorator:
    """Parametrize a pytest test over all checks of some subjects; the test has one argument, `check`, and calls it.

    Args:
        *subjects: Classes of position encodings, kernels and extensions, or partials of them.
        **settings: Handed to each check, such as `device="cuda"` for kernels.
    """
    import pytest

    def bind(check: Check, subject: Subject) -> Callable[[], None]:
        def run() -> None:
            try:
                check(subject, **settings)
            except Skip as reason:
                pytest.skip(str(reason))

        return run

    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(bind(check, subject), id=f"{title(subject)}-{check.__name__}")
            for subject in subjects
            for check in suite(subject)
        ],
    )
