"""Speed of the Triton kernels of Fourier integral attention on a CUDA device, as a Markdown table.

    python tests/benchmarks/fourier_gpu.py [--lengths 1024 4096 8192] [--rounds 10] [--full] [--peak 2.6e12]

One example of 8 heads, 64 wide, values in bf16. An element is a pair of tokens and a channel; under causality half of
the pairs count, for whoever computes the other half as well. Contestants: the kernels as they train ("fused"), with all
sums in a fixed order ("in order") and without the hardware's sine ("portable"); the plain formula under torch.compile,
whose memory grows with the square of the length; and SDPA in bf16, which computes another function and says what that
costs. A figure is the median of the rounds, by CUDA events, after two of warm-up. `--peak` is the elements a second
that instructions allow forward: about 13 for each, at 33.4e12 a second on an H200.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from zoo_kernels.fourier import gpu

from zoo.kernel import Mask

HEADS, WIDTH, RATE = 8, 64, 4.0


def plain(a: Tensor, b: Tensor, v: Tensor, rate: Tensor, mask: Mask) -> Tensor:
    """The formula as one would write it."""
    u = a.unsqueeze(3) - b.unsqueeze(2)
    near = u.abs() < 1e-4
    sinc = torch.where(near, 1 - u * u / 6, u.sin() / torch.where(near, 1.0, u))
    logits = sinc.abs().clamp(min=1e-9).log().sum(-1) * rate[:, None, None]
    if mask.causal:
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=a.device).triu(1)
        logits = logits.masked_fill(hidden, -torch.inf)
    return logits.softmax(-1).to(v.dtype) @ v


def other(a: Tensor, b: Tensor, v: Tensor, rate: Tensor, mask: Mask) -> Tensor:
    """Softmax of dot products."""
    return scaled_dot_product_attention(a.to(v.dtype), b.to(v.dtype), v, is_causal=mask.causal)


def contestants() -> dict[str, Callable[..., Tensor]]:
    def ours(a: Tensor, b: Tensor, v: Tensor, rate: Tensor, mask: Mask, **how: bool) -> Tensor:
        return gpu.attend(a, b, v, rate, mask=mask, **how)

    return {
        "fused": ours,
        "in order": partial(ours, deterministic=True),
        "portable": partial(ours, fast=False),
        "plain, compiled": torch.compile(plain),
        "SDPA": other,
    }


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median of the rounds."""
    times = []
    for turn in range(rounds + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        if turn >= 2:
            times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def race(attend: Callable[..., Tensor], length: int, mask: Mask, rounds: int) -> tuple[float, float]:
    """Seconds forward, and forward and backward."""
    torch.manual_seed(0)
    matched = math.sqrt(3 / (RATE * math.sqrt(WIDTH)))  # logits as wide as those of softmax attention
    a, b = (torch.randn(1, HEADS, length, WIDTH, device="cuda").mul(matched).requires_grad_() for _ in range(2))
    v = torch.randn(1, HEADS, length, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    rate = torch.full((HEADS,), RATE, device="cuda", requires_grad=True)
    down = torch.randn_like(v)

    def forward() -> None:
        with torch.no_grad():
            attend(a, b, v, rate, mask)

    def both() -> None:
        torch.autograd.grad(attend(a, b, v, rate, mask), [a, b, v, rate], down, allow_unused=True)

    return seconds(forward, rounds), seconds(both, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--full", action="store_true", help="without causality")
    parser.add_argument("--peak", type=float, default=2.6e12, help="elements a second forward, at best")
    options = parser.parse_args()
    if reason := gpu.available():
        print(reason, file=sys.stderr)
        sys.exit(2)
    where = torch.cuda.get_device_name()
    print(f"{where}, torch {torch.__version__}, {'full' if options.full else 'causal'}, {options.rounds} rounds\n")
    print("| length | | forward ms | Gelements/s | of the bound | forward and backward ms | Gelements/s |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    mask = Mask(causal=not options.full)
    for length in options.lengths:
        elements = HEADS * WIDTH * (length**2 if options.full else length * (length + 1) / 2)
        for name, attend in contestants().items():
            torch.cuda.empty_cache()
            try:
                forward, both = race(attend, length, mask, options.rounds)
            except Exception as error:  # out of memory most likely; the others go on
                print(f"| {length} | {name} | {type(error).__name__}: {str(error).splitlines()[0][:60]} | | | | |")
                continue
            of = f"{elements / forward / options.peak:.0%}" if name in ("fused", "in order") else ""
            rates = [f"{elements / each / 1e9:.0f}" for each in (forward, both)]
            print(f"| {length} | {name} | {forward * 1e3:.2f} | {rates[0]} | {of} | {both * 1e3:.2f} | {rates[1]} |")


if __name__ == "__main__":
    main()
