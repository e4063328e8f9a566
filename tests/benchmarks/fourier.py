"""Fourier integral attention on a CPU: errors against float64, elements per second, and peak memory by length.

    python tests/benchmarks/fourier.py [--lengths 1024 2048 4096 8192] [--threads 2] [--rounds 5] [--only accuracy]

An element is one channel of one pair of a query and a key: heads x length^2 x 64 of them a call, float32, no mask, R
"matched". The rows:

    FourierIntegral   as a model has it: C++ where there is a compiler
    in torch          its fallback, without one
    FourierQuartic    its fourth order, on torch's fused kernels
    RBF               its second order, likewise
    SDPA              softmax of dot products, torch's fused kernel
    eager             the plain formula, everything at hand at once (N x N x 64): 2 heads
    compiled          the same under torch.compile: 2 heads
    product           as in the release: product of sinc, to the power, divided by its sum: 2 heads

Speed cells are a process each: the median of some rounds after one that does not count; memory is the highest resident
less what the process held after a warm-up, inputs and gradients counted. Times mean something on an idle machine only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from biases import free, peak

WIDTH, HEADS, FEW = 64, 8, 2
ROWS = ("FourierIntegral", "in torch", "FourierQuartic", "RBF", "SDPA", "eager", "compiled", "product")
PLAIN = ("eager", "compiled", "product")
SETTINGS = ((16, 2.0, 0.22), (64, 0.306, 1.0), (64, 1.0, 1.0), (64, 1.0, 3.0))
"""Width, R, and standard deviation of queries and keys: a fresh language model, "matched", and two that underflow."""


def prepare(name: str, length: int, backward: bool) -> Callable[[], None]:
    """A call of one row, forward alone or with its gradients."""
    import torch

    from zoo import plugins
    from zoo.position import Geometry

    heads = FEW if name in PLAIN else HEADS
    geometry = Geometry(dim=heads * WIDTH, heads=heads, kv_heads=heads, head_dim=WIDTH, length=(length,), causal=False)
    leaves = [torch.randn(1, heads, length, WIDTH, requires_grad=backward) for _ in range(3)]
    radius = (3 / (4 * WIDTH**0.5)) ** 0.5

    def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        u = radius * (q.unsqueeze(-2) - k.unsqueeze(-3))
        sinc = torch.where(u.abs() < 1e-30, 1.0, u.sin() / u)
        if name == "product":
            weights = sinc.prod(-1) ** 4
            return weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v
        return (4 * sinc.abs().log().sum(-1)).softmax(-1) @ v

    if name in PLAIN:
        attend = torch.compile(formula) if name == "compiled" else formula
        call = lambda: attend(*leaves)  # noqa: E731
        learned = []
    else:
        kind = plugins.load("zoo.kernels", "FourierIntegral" if name == "in torch" else name)
        kernel = kind(geometry, **({"implementation": "torch"} if name == "in torch" else {}))
        learned = list(kernel.parameters())
        call = lambda: kernel(*leaves, scale=WIDTH**-0.5)  # noqa: E731

    def step() -> None:
        with torch.set_grad_enabled(backward):
            out = call()
            if backward:
                torch.autograd.grad(out.sum(), [*leaves, *learned])

    return step


def measure(name: str, length: int, rounds: int) -> None:
    """Print one cell as JSON; runs in a process of its own."""
    found = {}
    for backward in (False, True):
        prepare(name, 128, backward)()
        before = peak()
        step, times = prepare(name, length, backward), []
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            step()
            times.append(time.perf_counter() - begin)
        found[("forward", "both")[backward]] = statistics.median(times[1:])
        found["mib"] = peak() - before
    print(json.dumps(found))


def accuracy() -> None:
    """Largest errors against float64, of logits whose weight is above 1e-12 of the row's largest, and of outputs."""
    import torch
    from zoo_kernels.fourier import FourierIntegral
    from zoo_kernels.fourier.native import Native
    from zoo_kernels.fourier.sinc import Sinc

    from zoo.position import Geometry

    print(f"\nlargest error of logits / of outputs, {4 * 256} queries on 256 keys each")
    for width, radius, spread in SETTINGS:
        geometry = Geometry(dim=width, heads=1, kv_heads=1, head_dim=width, length=(256,), causal=False)
        kernel = FourierIntegral(geometry, radius=radius)
        torch.manual_seed(0)
        q, k = (torch.randn(4, 1, 256, width) * spread for _ in range(2))
        v = torch.randn(4, 1, 256, width, dtype=torch.float64)

        def each(q: torch.Tensor, k: torch.Tensor, radius: float = radius) -> torch.Tensor:
            u = radius * (q.unsqueeze(-2) - k.unsqueeze(-3))
            return torch.where(u == 0, 1.0, u.sin() / u)

        exact = 4 * each(q.double(), k.double()).abs().log().sum(-1)
        seen = exact > exact.amax(-1, keepdim=True) - 27.6
        rows = {"release: product, then log": (each(q, k).prod(-1) ** 4).log()}
        rows["log(sinf(u) / u) per channel"] = 4 * each(q, k).abs().log().sum(-1)
        for name, kind in (("torch", Sinc), ("native", Native)):
            a, b, _, rate = kernel.bandwidth.scaled(q, k, k, slice(None), width**-0.5)
            score = kind(pairs=False, learned=False)
            with torch.no_grad():
                rate = rate.view(-1, 1, 1).expand(*a.shape[:3], 1)
                rows[f"FourierIntegral, {name}"] = (
                    rate[:, 0]
                    * score.logarithm(torch.cat((a, rate), -1)[:, 0], score.keys(b)[:, 0])
                    * 0.6931471805599453
                ).unsqueeze(1)
        print(f"width {width}, R {radius:g}, standard deviation {spread:g}")
        for name, logits in rows.items():
            bad = (~logits.isfinite()).float().mean()
            out = (logits.double().softmax(-1) @ v - exact.softmax(-1) @ v).abs().max()
            error = (logits - exact)[seen].abs().max()
            told = f"{bad:.0%} are not finite" if bad else f"{error:.1e} / {out:.1e}"
            print(f"  {name:30} {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=["accuracy", "speed"])
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        measure(options.cell[0], int(options.cell[1]), options.rounds)
        return
    if options.only != "speed":
        accuracy()
    if options.only == "accuracy":
        return
    print(f"\n1 x {HEADS} heads x length x {WIDTH}, CPU, float32, {options.threads} threads, no mask,", end=" ")
    print(f"load {os.getloadavg()[0]:.1f} at the start; backward is both less forward")
    print(
        f"{'length':>7} {'':16} {'Gelt/s':>7} {'backward':>9} {'x eager':>8} {'x SDPA':>7} {'both':>6} {'peak MiB':>9}"
    )
    for length in options.lengths:
        found: dict[str, dict[str, float]] = {}
        for name in options.rows:
            need = 8 * FEW * length**2 * WIDTH * 4 / 2**20  # tensors of N x N x 64 at a time
            if name in PLAIN and (need > 0.9 * free("cpu") or (name == "compiled" and length > 4096)):
                print(f"{length:7} {name:16} left out: its tensors are {need / 8:.0f} MiB each")
                continue
            words = [sys.executable, __file__, "--cell", name, str(length), "--rounds", str(options.rounds)]
            env = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
            done = subprocess.run(words, capture_output=True, text=True, env=env)
            if done.returncode:
                print(f"{length:7} {name:16} {(done.stderr.strip().splitlines() or ['killed: out of memory?'])[-1]}")
                continue
            found[name] = cell = json.loads(done.stdout.splitlines()[-1])
            cell["elements"] = (FEW if name in PLAIN else HEADS) * length**2 * WIDTH / 1e9
        for name, cell in found.items():
            speed, back = (cell["elements"] / cell["forward"], cell["elements"] / (cell["both"] - cell["forward"]))
            line = f"{length:7} {name:16} {speed:7.2f} {back:9.2f}"
            if plain := found.get("eager"):
                line += f" {speed / (plain['elements'] / plain['forward']):7.1f}x"
            else:
                line += " " * 9
            if base := found.get("SDPA"):
                ratio = cell["elements"] / base["elements"]
                line += "".join(f" {cell[key] / ratio / base[key]:6.2f}x" for key in ("forward", "both"))
            print(f"{line} {cell['mib']:9.0f}", flush=True)


if __name__ == "__main__":
    main()
