"""Peak memory and time of attention with a learned Toeplitz bias, forward and backward, as the length doubles.

    python tests/benchmarks/memory.py [--lengths 1024 2048 4096 8192] [--kernels Tiled SDPA Eager]
                                         [--threads 1]

Batch 1, 8 heads of 64, causal, float32, CPU; the table [heads, length] wants a gradient. Each cell is a fresh process:
peak resident memory less what the process held after its imports and a warm-up, so inputs and gradients are counted.
Times mean something on an idle machine only; on a busy one, `--threads 1` suffers least.
A cell that would not fit (four times the cell above it, against the memory that is free) is left out, and says so.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

HEADS, WIDTH = 8, 64


def peak() -> float:
    """Highest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(kernel: str, length: int) -> None:
    """Print one cell as JSON; runs in a process of its own."""
    import torch

    from zoo import plugins
    from zoo.kernel import Mask
    from zoo.position import Geometry, Toeplitz

    geometry = Geometry(dim=HEADS * WIDTH, heads=HEADS, kv_heads=HEADS, head_dim=WIDTH, length=(length,))
    attend = plugins.load("zoo.kernels", kernel)(geometry)

    def step(n: int) -> float:
        leaves = [torch.randn(1, HEADS, n, WIDTH, requires_grad=True) for _ in range(3)]
        table, at = torch.randn(HEADS, n, requires_grad=True), torch.arange(n)
        begin = time.perf_counter()
        out = attend(*leaves, bias=Toeplitz(table, at, at), mask=Mask(causal=True), scale=WIDTH**-0.5)
        torch.autograd.grad(out.sum(), (*leaves, table))
        return time.perf_counter() - begin

    step(64)
    before = peak()
    seconds = min(step(length) for _ in range(2))
    print(json.dumps({"mib": peak() - before, "seconds": seconds}))


def free() -> float:
    """Memory that could be had now, in MiB; unlimited where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable")), float("inf"))


def cell(kernel: str, length: int, threads: int) -> dict[str, float] | str:
    """One measurement, or why there is none."""
    words = [sys.executable, __file__, "--cell", kernel, str(length)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return "killed: out of memory?" if done.returncode < 0 else last
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--kernels", nargs="+", default=["Tiled", "SDPA", "Eager"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        measure(options.cell[0], int(options.cell[1]))
        return
    print(f"forward + backward, 1 x {HEADS} heads x length x {WIDTH}, causal, learned Toeplitz bias, float32,", end=" ")
    print(f"CPU, {options.threads} threads, load {os.getloadavg()[0]:.1f} at the start")
    first = options.kernels[0]
    print(f"{'length':>7} {'kernel':8} {'peak MiB':>9} {'growth':>7} {'seconds':>8} {'growth':>7}  against {first}")
    above: dict[str, dict[str, float]] = {}
    for length in options.lengths:
        row: dict[str, dict[str, float]] = {}
        for kernel in options.kernels:
            last = above.get(kernel)
            guess = last["mib"] * (length / last["length"]) ** 2 if last else 0.0
            found = f"left out: it would need about {guess:.0f} MiB, {free():.0f} are free"
            if guess < 0.9 * free():
                found = cell(kernel, length, options.threads)
            if isinstance(found, str):
                print(f"{length:7} {kernel:8} {found}")
                continue
            row[kernel] = {**found, "length": length}
            grown = [f"{found[key] / last[key]:6.2f}x" if last else f"{'':7}" for key in ("mib", "seconds")]
            line = f"{length:7} {kernel:8} {found['mib']:9.0f} {grown[0]} {found['seconds']:8.3f} {grown[1]}"
            if kernel != first and first in row:
                mine = row[first]
                line += f"  {found['mib'] / mine['mib']:.1f}x memory, {found['seconds'] / mine['seconds']:.1f}x time"
            print(line, flush=True)
        above |= row


if __name__ == "__main__":
    main()
