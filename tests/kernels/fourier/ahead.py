"""Compile the Triton kernels for an H100 or H200 where there is no GPU, and print what they take, as JSON.

    python tests/kernels/fourier/ahead.py [--width 64] [--type bfloat16] [--line] [--radial] [--portable]

Calls run through `gpu.attend` as ever, but compile instead of launching. Instructions are those of the innermost loops
of the machine code, for each pair and channel: each pair takes one sine forward and one reciprocal backward.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit
from zoo_kernels.fourier import gpu

from zoo.kernel import Mask

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Absent:
    """A driver that knows its GPU and has none."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout


def measure(kernel: Any) -> dict[str, Any]:
    """Registers of a thread, bytes of local memory, stores to it, and instructions by innermost loop."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage = re.search(r"REG:(\d+) STACK:(\d+)", tool("cuobjdump", "--dump-resource-usage", str(path)))
        code = tool("nvdisasm", "-c", str(path))
    labels, lines = {}, []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append(instruction[1])
    loops = []
    for end, line in enumerate(lines):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        if target and labels[target[1]] <= end:
            loops.append((labels[target[1]], end + 1))
    inner = [x for x in loops if not any(y != x and x[0] <= y[0] and y[1] <= x[1] for y in loops)]
    found: dict[str, Any] = {
        "registers": int(usage[1]),
        "stack": int(usage[2]),
        "spills": sum("STL" in x for x in lines),
    }
    for name, operation in (("score", "MUFU.SIN"), ("gradient", "MUFU.RCP")):
        for start, end in inner:
            if pairs := sum(operation in x for x in lines[start:end]):
                found[name] = round((end - start) / pairs, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--type", default="bfloat16")
    for flag in ("--line", "--radial", "--portable"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()

    kernels: list[tuple[str, Any]] = []
    run = jit.JITFunction.run

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **rest: Any) -> Any:
        kernels.append((self.__name__, run(self, *args, grid=grid, warmup=True, **rest)))
        return kernels[-1][1]

    driver.set_active(Absent())
    jit.JITFunction.run = compiled
    a, b, v = (torch.zeros(1, 2, 256, options.width, requires_grad=True) for _ in range(3))
    rate = torch.ones(2, requires_grad=True)
    line = torch.zeros(2, 511, requires_grad=True) if options.line else None
    found = {}
    for deterministic in (False, True):
        kernels.clear()
        out = gpu.attend(
            a, b, v.to(getattr(torch, options.type)), rate, mask=Mask(causal=True), line=line, radial=options.radial,
            deterministic=deterministic, fast=not options.portable,
        )  # fmt: skip
        out.sum().backward()
        found |= {name + " in order" * deterministic * (name != "forward"): measure(each) for name, each in kernels}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
