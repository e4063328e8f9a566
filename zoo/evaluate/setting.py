"""What a measurement is asked to do, apart from the model and the length: text, samples, seed, and each measure's own
numbers. Two runs of equal settings over equal text give equal figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Numbers that measures share, and their own.

    Args:
        lengths: Lengths of the run, rising.
        samples: Trials of a cell, samples of a task.
        seed: Origin of every draw.
        texts: All documents; the haystacks.
        long: Those that hold the longest length in the tokens of every model: what losses are measured on.
        windowing: How perplexity cuts documents: fixed, sliding, huggingface or yarn.
        stride: Tokens from one sliding window to the next (default: half a window; yarn: 256).
        last: Tokens at the end of a context that gain scores.
        tolerance: Nats per token that may be lost where gain says how far a model reads.
        offsets: Positions at which offset starts to count.
        depths: Places of a passkey or needle, from 0 (first) to 1 (last).
        needles: Needles in one haystack.
        digits: Digits of a passkey at most; None draws it from 1 to 50000, as its paper does.
        tasks: RULER's tasks (default: all).
        squad: SQuAD's dev-v2.0.json, where it is at hand.
        hotpot: HotpotQA's hotpot_dev_distractor_v1.json, where it is at hand.
        evaluator: Checkpoint that tells LongPPL which tokens matter.
    """

    lengths: tuple[int, ...] = ()
    samples: int = 5
    seed: int = 0
    texts: list[str] = field(default_factory=list, repr=False)
    long: list[str] = field(default_factory=list, repr=False)
    windowing: str = "fixed"
    stride: int | None = None
    last: int = 512
    tolerance: float = 0.01
    offsets: tuple[int, ...] = ()
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    needles: int = 1
    digits: int | None = None
    tasks: tuple[str, ...] = ()
    squad: str | None = None
    hotpot: str | None = None
    evaluator: str | None = None
    tick: Callable[[float], None] = field(default=lambda done: None, repr=False, compare=False)
    """Told which share of a measurement is done."""
