"""Time and peak memory of attention with every additive encoding, forward and backward, as the length doubles.

    python tests/benchmarks/biases.py [--lengths 1024 2048 4096 8192] [--encodings T5 FIRE ...] [--threads 2]
    python tests/benchmarks/biases.py --device cuda          (Flex, bfloat16, 8192 to 32768)

Batch 1, 8 heads of 64, causal, float32. Each encoding is built as a model builds it, and its parameters, queries, keys
and values all want gradients; the kernel is Tiled (Flex on CUDA). RoPE+NAME maps positions, of a model that was
trained on a quarter of the length, always with Tiled. Beside them, in the same run:

    bias-free   SDPA without a bias (flash), before and after the encodings; its time is the mean of the two
    dense       SDPA with a learned bias [1, heads, length, length]
    N x N       Eager with T5's bias: logits, bias and weights as whole tensors, as in plain implementations

Each cell is a fresh process: peak resident memory less what the process held after its imports and a warm-up, so inputs
and gradients are counted; the median time of some rounds after one that does not count. A cell that would not fit (four
times the cell above it, against the memory that is free) is left out, and says so. Times mean something on an idle
machine only, and ratios more than times; with one thread they are the processor's, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HEADS, WIDTH, FACTOR = 8, 64, 4
REFERENCES = ("bias-free", "dense", "N x N")
MAPPED = ("RoPE+ReRoPE", "RoPE+LeakyReRoPE", "RoPE+SelfExtend", "RoPE+DualChunk")


def peak() -> float:
    """Highest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def additive() -> list[str]:
    """The installed encodings that a decoder hears of through a bias."""
    from zoo import plugins
    from zoo.errors import ZooError
    from zoo.matrix import GEOMETRY, places

    found = []
    for name, encoding in plugins.classes("zoo.positions").items():
        try:
            if places(encoding(GEOMETRY)).bias is not None:
                found.append(name)
        except ZooError:
            continue  # it serves images only
    return found


def prepare(name: str, length: int, device: str) -> Callable[[], None]:
    """A step of forward and backward: of an encoding, or of one of the references."""
    import torch

    from zoo import plugins
    from zoo.kernel import Eager, Mask
    from zoo.position import Dense, Geometry

    dim, (name, mapped, method) = HEADS * WIDTH, name.partition("+")
    trained = length // FACTOR if mapped else length
    geometry = Geometry(dim=dim, heads=HEADS, kv_heads=HEADS, head_dim=WIDTH, length=(trained,))
    options: dict[str, Any] = {"device": device, "dtype": torch.bfloat16 if device == "cuda" else torch.float32}
    fast = "Flex" if device == "cuda" and not mapped else "Tiled"
    kernel = "Eager" if name == "N x N" else "SDPA" if name in REFERENCES else fast
    attend = plugins.load("zoo.kernels", kernel)(geometry) if kernel != "Eager" else Eager(geometry)
    leaves = [torch.randn(1, HEADS, length, WIDTH, requires_grad=True, **options) for _ in range(3)]
    at = torch.arange(length, device=device).float().unsqueeze(-1)
    learned: list[torch.Tensor] = []
    if name == "dense":
        learned = [torch.randn(1, HEADS, length, length, requires_grad=True, **options)]

        def bias() -> Any:
            return Dense(learned[0] * 1)
    elif name == "bias-free":

        def bias() -> Any:
            return None
    else:
        told = {}
        if mapped:
            extension = plugins.load("zoo.extensions", method)
            known = inspect.signature(extension).parameters
            told["extension"] = partial(extension, **({"factor": FACTOR} if "factor" in known else {}))
        encoding = plugins.load("zoo.positions", "T5" if name == "N x N" else name)(geometry, **told).to(device)
        learned = [p for p in encoding.parameters() if p.requires_grad]
        hidden = torch.randn(1, length, dim, device=device) if encoding.content else None

        def bias() -> Any:
            return encoding(at, at, length, hidden).bias

    def step() -> None:
        out = attend(*leaves, bias=bias(), mask=Mask(causal=True), scale=WIDTH**-0.5)
        torch.autograd.grad(out.sum(), (*leaves, *learned), allow_unused=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def measure(name: str, length: int, rounds: int, device: str) -> None:
    """Print one cell as JSON; runs in a process of its own."""
    import torch

    prepare(name, 64 if device == "cpu" else length, device)()  # imports, pools and compilers
    before = peak()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    step, times = prepare(name, length, device), []
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    for _ in range(rounds + 1):
        begin = clock()
        step()
        times.append(clock() - begin)
    most = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak()
    print(json.dumps({"mib": most - before, "seconds": statistics.median(times[1:])}))


def free(device: str) -> float:
    """Memory that could be had now, in MiB; unlimited where nobody says."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0] / 2**20
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable")), float("inf"))


def cell(name: str, length: int, options: argparse.Namespace) -> dict[str, float] | str:
    """One measurement, or why there is none."""
    words = [sys.executable, __file__, "--cell", name, str(length), "--rounds", str(options.rounds)]
    env = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run([*words, "--device", options.device], capture_output=True, text=True, env=env)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return "killed: out of memory?" if done.returncode < 0 else last
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--encodings", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        measure(options.cell[0], int(options.cell[1]), options.rounds, options.device)
        return
    lengths = options.lengths or ([8192, 16384, 32768] if options.device == "cuda" else [1024, 2048, 4096, 8192])
    names = options.encodings or [*additive(), *MAPPED]
    kind = "CUDA, bfloat16" if options.device == "cuda" else f"CPU, float32, {options.threads} threads"
    print(f"forward + backward, 1 x {HEADS} heads x length x {WIDTH}, causal, {kind},", end=" ")
    print(f"load {os.getloadavg()[0]:.1f} at the start")
    titles = f"{'peak MiB':>9} {'growth':>7} {'of dense':>9} {'seconds':>8} {'of dense':>9} {'of bias-free':>13}"
    print(f"{'length':>7} {'':16} {titles}")
    above: dict[str, dict[str, float]] = {}
    for length in lengths:
        found: dict[str, dict[str, float] | str] = {}
        for name in ("bias-free", "dense", "N x N", *names, "again"):
            last = above.get(name)
            guess = last["mib"] * (length / last["length"]) ** 2 if last and name in REFERENCES[1:] else 0.0
            room = free(options.device)
            found[name] = f"left out: it would need about {guess:.0f} MiB, {room:.0f} are free"
            if guess < 0.9 * room:
                found[name] = cell("bias-free" if name == "again" else name, length, options)
        plain, again = found["bias-free"], found.pop("again")
        if not isinstance(plain, str) and not isinstance(again, str):
            plain["seconds"] = (plain["seconds"] + again["seconds"]) / 2
        for name, values in found.items():
            if isinstance(values, str):
                print(f"{length:7} {name:16} {values}")
                continue
            grown = f"{values['mib'] / max(above[name]['mib'], 1):6.2f}x" if name in above else f"{'':7}"
            dense, free_ = (x if not isinstance(x, str) else None for x in (found["dense"], plain))
            memory, slow = (f"{values[key] / dense[key]:8.3f}x" if dense else " " * 9 for key in ("mib", "seconds"))
            ratio = f"{values['seconds'] / free_['seconds']:12.2f}x" if free_ else ""
            line = f"{length:7} {name:16} {values['mib']:9.0f} {grown} {memory} {values['seconds']:8.3f} {slow} {ratio}"
            print(line, flush=True)
            above[name] = {**values, "length": length}


if __name__ == "__main__":
    main()
