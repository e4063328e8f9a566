"""Peak memory of one training step as the length doubles: nothing, chunked loss, + checkpointing, + tiled feed-forward.

    python tests/benchmarks/memory.py [--lengths 2048 4096 8192 16384 32768] [--threads 2]
    python tests/benchmarks/memory.py --device cuda          (bf16, and block inputs offloaded to the host too)

4 layers, 256 wide, 8 heads, SwiGLU of 704, vocabulary 8192, tied, RoPE, SDPA without a bias; batch 1, float32 on a CPU.
A step is forward, loss over all tokens and backward, as `zoo fit` does them; no optimizer, which no length changes. The
loss is read out whole, or 1024 tokens at a time; the feed-forward layer takes all tokens, or 1024 at a time.

Each cell is a fresh process: peak resident memory (Linux tells it) less what it held with model and gradients after a
step of 64 tokens (on CUDA, allocated memory), and the time of the step beside that of "nothing". A cell that would not
fit (twice what the cell above it had) is left out, and says so. Times mean something on an idle machine only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DIM, LAYERS, HEADS, VOCABULARY, CHUNK = 256, 4, 8, 8192, 1024
WAYS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "chunked loss": {"chunk": CHUNK},
    "+ checkpointing": {"chunk": CHUNK, "checkpointing": True},
    "+ tiled feed-forward": {"chunk": CHUNK, "checkpointing": True, "feed_forward_chunk": CHUNK},
}
OFFLOAD = {"+ offload": {"chunk": CHUNK, "checkpointing": "offload", "feed_forward_chunk": CHUNK}}


def held(device: str, most: bool = False) -> float:
    """Memory of this process in MiB: now, or the most so far."""
    import torch

    if device == "cuda":
        return (torch.cuda.max_memory_allocated() if most else torch.cuda.memory_allocated()) / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM" if most else "VmRSS"))


def measure(name: str, length: int, device: str) -> None:
    """Print one cell as JSON; runs in a process of its own."""
    import torch

    from zoo.decoder import Decoder
    from zoo.loss import cross_entropy

    own = {**WAYS, **OFFLOAD}[name]
    options = {key: value for key, value in own.items() if key != "chunk"}
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocabulary": VOCABULARY, "dim": DIM, "layers": LAYERS, "heads": HEADS}
    model = Decoder(length=length, **shape, **options).to(device).train()
    tokens = torch.randint(VOCABULARY, (1, length + 1), device=device)

    def step(count: int) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            hidden = model.hidden(tokens[:, :count], extent=length)
            loss = cross_entropy(hidden, tokens[:, 1 : count + 1], model.head, own.get("chunk", 2**62))
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()

    step(64)  # imports, pools, gradients
    before = held(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of imports
    begin = time.perf_counter()
    step(length)
    seconds = time.perf_counter() - begin
    print(json.dumps({"mib": held(device, most=True) - before, "seconds": seconds}))


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
    words = [sys.executable, __file__, "--cell", name, str(length), "--device", options.device]
    env = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    if done.returncode:
        return "out of memory" if done.returncode < 0 else (done.stderr.strip().splitlines() or ["failed"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        measure(options.cell[0], int(options.cell[1]), options.device)
        return
    ways = [*WAYS, *(OFFLOAD if options.device == "cuda" else ())]
    kind = "CUDA, bf16" if options.device == "cuda" else f"CPU, float32, {options.threads} threads"
    print(f"one step, {LAYERS} layers, {DIM} wide, vocabulary {VOCABULARY}, batch 1, {kind}; peak MiB (time x nothing)")
    print(f"{'length':>7}" + "".join(f"{name:>24}" for name in ways))
    above: dict[str, float] = {}
    for length in options.lengths:
        found: dict[str, dict[str, float] | str] = {}
        for name in ways:
            guess = 2 * above.get(name, 0.0)
            found[name] = cell(name, length, options) if guess < 0.9 * free(options.device) else "does not fit"
        base, shown = found["nothing"], []
        for name, values in found.items():
            if isinstance(values, str):
                shown.append(values[:23])
                continue
            above[name] = values["mib"]
            slow = "" if isinstance(base, str) else f" ({values['seconds'] / base['seconds']:.2f})"
            shown.append(f"{values['mib']:.0f}{slow}")
        print(f"{length:7}" + "".join(f"{text:>24}" for text in shown), flush=True)


if __name__ == "__main__":
    main()
