"""Memory of training on long texts: one process, and two that share a sequence twice as long (Ulysses).

    python tests/benchmarks/sequence.py [--lengths 1024 2048 4096 8192] [--positions RoPE FIRE] [--processes 2]

A decoder of 4 layers, 256 wide, 8 heads, one sequence a step, float32, the kernel that Auto picks, on CPU processes
over gloo. A figure is the most that a process has resident in two steps, less what it had before them, when model,
gradients and Adam's moments were there already: the activations, and whatever is held for sending. Each is measured in
fresh processes; of several, the one that needs most counts. On a CPU this is memory alone: the processes share its
cores, so nothing is said of speed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from zoo import plugins
from zoo.tasks import LanguageModel

SMALL: dict[str, Any] = {"vocabulary": 4096, "dim": 256, "layers": 4, "heads": 8, "chunk": 512}
MIB = 2**20


def resident(peak: bool = False) -> int:
    """Bytes that this process has in memory, or has had at most since `forget`."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def forget() -> None:
    """Begin a new peak (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def step(task: LanguageModel, optimizer: torch.optim.Optimizer, tokens: int) -> None:
    """One step of training; gradients are averaged as strategies average them."""
    drawn = torch.randint(SMALL["vocabulary"], (1, tokens + 1), generator=torch.Generator().manual_seed(0))
    task.training_step({"tokens": drawn, "documents": torch.zeros_like(drawn)}, 0).backward()
    for parameter in task.parameters() if task.parallel is not None else ():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def train(rank: int, processes: int, folder: str, position: str, length: int, results: Any) -> None:
    """One process: its share of two steps, and the most memory that they took."""
    torch.set_num_threads(1)
    if processes > 1:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    plugins.load_all()
    torch.manual_seed(0)
    slot = plugins.load("zoo.positions", position)
    task = LanguageModel(**SMALL, length=length, position=slot, sequence_parallel=processes)
    task.log = lambda *words, **more: None  # type: ignore[method-assign]
    task.configure_model()
    task.train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-4)
    step(task, optimizer, 64)
    forget()
    before = resident()
    for _ in range(2):
        step(task, optimizer, length)
    results.put(resident(peak=True) - before)
    if processes > 1:
        distributed.destroy_process_group()


def measured(processes: int, position: str, length: int) -> float:
    """MiB of the process that needs most."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (processes, folder, position, length, results)
        multiprocessing.spawn(train, arguments, nprocs=processes)  # type: ignore[no-untyped-call]
    return max(results.get() for _ in range(processes)) / MIB


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--positions", nargs="+", default=["RoPE", "FIRE"])
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # glibc gives back what is freed, instead of leaving holes
    many = options.processes
    print(f"MiB of activations in a process, torch {torch.__version__}\n")
    print(f"| position | N | 1 process, N | {many} processes, {many} N | ratio | 1 process, {many} N |")
    print("|---|--:|--:|--:|--:|--:|")
    for position in options.positions:
        for length in options.lengths:
            one = measured(1, position, length)
            shared, whole = measured(many, position, many * length), measured(1, position, many * length)
            ratio = shared / one
            print(f"| {position} | {length} | {one:.0f} | {shared:.0f} | {ratio:.2f} | {whole:.0f} |", flush=True)


if __name__ == "__main__":
    main()
