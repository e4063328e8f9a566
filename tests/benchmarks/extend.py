"""Time and peak memory of zoo extend on big checkpoints, against `import torch`, against `cp`, against the files' size.

    python tests/benchmarks/extend.py [--layers 17] [--copied 3] [--processes 4] [--rounds 3] [--place DIRECTORY]

A float32 decoder 4096 wide, 772 MiB a block, zeros for weights. The rows, and what they are held against:

    folder, linked     17 blocks, 13 GiB with holes; at most 1 s and 100 MB more than `python -c "import torch"`
    folder, copied     3 blocks, links and clones forbidden; at most 1.2 times `cp` of the file, less `import torch`
    .ckpt to .ckpt     3 blocks and Adam's two moments, 7 GiB; against `cp` of the weights alone
    .ckpt to folder    the same
    folder to .ckpt    3 blocks
    ZeRO-3 to folder   3 blocks of 4 processes, 1.7 GiB each; at most 1.5 times the largest file above `import torch`

Each cell is a process of its own; its time is the median of some rounds, in which the row and its measure take turns,
its memory is the highest resident (mapped pages count). `cp` is followed by a sync, as a checkpoint is. The files take
about 12 GiB at once, and are removed. On a machine that others use, ratios mean more than seconds, and busy
seconds, which are a processor's, more than those of the clock.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

WIDTH = 4096
TORCH = [sys.executable, "-c", "import torch"]
EXTEND = """
import os, sys
{forbid}
from zoo import cli
cli.run(sys.argv[1:])
assert "lightning" not in sys.modules, "Lightning was imported"
"""
FORBID = """
import fcntl
def fails(*_): raise OSError(18, "forbidden")
os.link = fcntl.ioctl = fails
"""


def make(kind: str, path: Path, layers: int, processes: int) -> None:
    """Write a checkpoint of zeros without holding it; runs in a process of its own."""
    import json

    import torch

    from zoo import checkpoints
    from zoo.checkpoints import archive, folder
    from zoo.checkpoints.stored import Run, Stored

    size = {"vocabulary": 257, "length": 4096, "dim": WIDTH, "heads": 32, "layers": layers}
    position = {"class_path": "RoPE", "init_args": {}}
    node = {
        "class_path": "zoo.decoder.Decoder",
        "init_args": {**size, "position": position, "kernel": {"class_path": "Auto", "init_args": {}}},
    }
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in checkpoints.build(node).state_dict().items()}
    del shapes["head.weight"]
    tied = {"head.weight": "embedding.weight"}
    about = {"format": 1, "network": node, "plugins": checkpoints.owners(node), "trained": {"steps": 1}}

    places = itertools.count()

    def zeros(*shape: int) -> Stored:
        """Each from another place, since what lies at one is written once."""
        return Stored(torch.float32, shape, (Run(Path("/dev/zero"), next(places), 4 * math.prod(shape)),))

    weights = {name: zeros(*shape) for name, shape in shapes.items()}
    if kind in ("holes", "folder"):
        path.mkdir()
        folder.describe(path, {**about, "tied": tied}, "")
        if kind == "folder":
            folder.pack(path / folder.WEIGHTS, weights)
            return
        end, nodes = 0, {}
        for name, stored in weights.items():
            nodes[name] = {"dtype": "F32", "shape": stored.shape, "data_offsets": [end, end + stored.size]}
            end += stored.size
        head = json.dumps(nodes).encode()
        with (path / folder.WEIGHTS).open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            file.truncate(8 + len(head) + end)
    elif kind == "ckpt":
        state = {f"network.{name}": stored for name, stored in weights.items()}
        state["network.head.weight"] = state["network.embedding.weight"]
        moments = {number: {each: zeros(*shape) for each in ("m", "v")} for number, shape in enumerate(shapes.values())}
        archive.save({"state_dict": state, "zoo": about, "optimizer_states": moments}, path)
    else:
        place = path / "checkpoint"
        place.mkdir(parents=True)
        (path / "latest").write_text("checkpoint")
        part = sum(-(-stored.size // 4 // processes) for stored in weights.values())
        for rank in range(processes):
            model = {
                "module": {},
                "buffer_names": [],
                "param_shapes": [{f"network.{name}": shape for name, shape in shapes.items()}],
                "shared_params": {f"network.{same}": f"network.{name}" for same, name in tied.items()},
                "zoo": about,
            }
            torch.save(model, place / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
            flats = [zeros(part) for _ in range(3)]
            state = {"zero_stage": 3, "partition_count": processes, "fp32_flat_groups": flats[:1], "adam": flats[1:]}
            archive.save({"optimizer_state_dict": state}, place / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


@dataclass
class Cell:
    """What a process took: seconds by the clock, seconds of a processor, highest resident MiB."""

    seconds: float
    busy: float
    peak: float


def run(words: list[str], out: Path | None = None) -> Cell:
    """Run a process; what it left at `out` is removed."""
    begin = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(told)
    if out is not None:
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    peak = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Cell(seconds, used.ru_utime + used.ru_stime, peak)


def turns(rounds: int, *cells: tuple[list[str], Path | None]) -> list[Cell]:
    """Median times and highest memory of each cell, which take turns."""
    found: list[list[Cell]] = [[] for _ in cells]
    for _ in range(rounds):
        for each, (words, out) in zip(found, cells, strict=True):
            each.append(run(words, out))
    return [
        Cell(
            statistics.median(cell.seconds for cell in each),
            statistics.median(cell.busy for cell in each),
            max(cell.peak for cell in each),
        )
        for each in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=17, help="blocks of the folder that is linked, 772 MiB each")
    parser.add_argument("--copied", type=int, default=3, help="blocks of what is copied")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--place", type=Path, help="where the files are made (default: the temporary directory)")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.make[0], Path(options.make[1]), options.layers, options.processes)
        return
    print(f"load {os.getloadavg()[0]:.1f} at the start, {os.cpu_count()} processors, {options.rounds} rounds")
    with tempfile.TemporaryDirectory(dir=options.place) as name:
        measure(Path(name), options)


def measure(place: Path, options: argparse.Namespace) -> None:
    """Make the files one after the other, and print a row for each way."""

    def made(kind: str, layers: int) -> Path:
        path = place / (kind + ".ckpt" * (kind == "ckpt"))
        more = ["--layers", str(layers), "--processes", str(options.processes)]
        subprocess.run([sys.executable, __file__, "--make", kind, str(path), *more], check=True)
        os.sync()  # else what is measured would wait for the disk to take this
        return path

    def extend(source: Path, out: str, forbid: str = "") -> tuple[list[str], Path]:
        program = EXTEND.format(forbid=forbid)
        words = ["extend", str(source), "--to", "32k", "--method", "YaRN", "--out", str(place / out)]
        return [sys.executable, "-c", program, *words], place / out

    def copied(source: Path) -> tuple[list[str], Path]:
        out = place / "copy"
        return ["sh", "-c", f"cp --reflink=never {source} {out} && sync {out}"], out

    def size(path: Path) -> float:
        return path.stat().st_size / 2**20

    def row(title: str, mib: float, cell: Cell, base: Cell, against: str = "") -> None:
        own = f"{cell.seconds:8.2f} {cell.busy:8.2f} {cell.peak:8.0f}"
        more = f"{cell.seconds - base.seconds:+8.2f} {cell.busy - base.busy:+8.2f} {cell.peak - base.peak:+8.0f}"
        print(f"{title:17} {mib:7.0f} {own}  {more}   {against}", flush=True)

    def held(
        title: str, mib: float, source: tuple[list[str], Path], weights: Path, most: str = ""
    ) -> tuple[Cell, Cell]:
        """A row against `cp`: the median of the rounds' ratios is steadier than the ratio of the medians."""
        cells = [turns(1, source, copied(weights), (TORCH, None)) for _ in range(options.rounds)]
        ratios = [(mine.seconds - base.seconds) / cp.seconds for mine, cp, base in cells]
        mine, cp, base = sorted(cells, key=lambda each: each[0].seconds)[len(cells) // 2]
        row("cp", size(weights), cp, base)
        told = ", ".join(f"{ratio:.2f}" for ratio in sorted(ratios))
        row(title, mib, mine, base, f"less import torch {told} of cp{most}")
        return mine, base

    titles = f"{'seconds':>8} {'busy':>8} {'peak MiB':>8}"
    print(f"{'':17} {'MiB':>7} {titles}  {'more than import torch':>26}")
    run(TORCH)
    source = made("holes", options.layers)
    cell, base = turns(2 * options.rounds, extend(source, "x"), (TORCH, None))
    row("import torch", 0, base, base)
    row("folder, linked", size(source / "model.safetensors"), cell, base, "at most +1 s, +100 MB")
    shutil.rmtree(source)

    source = made("folder", options.copied)
    weights = source / "model.safetensors"
    held("folder, copied", size(weights), extend(source, "x", FORBID), weights, ", at most 1.2")
    held("folder to .ckpt", size(weights), extend(source, "x.ckpt"), weights)
    single = made("ckpt", options.copied)
    held(".ckpt to .ckpt", size(single), extend(single, "x.ckpt"), weights)
    held(".ckpt to folder", size(single), extend(single, "x"), weights)
    single.unlink()
    source = made("zero", options.copied)
    parts = [size(file) for file in (source / "checkpoint").iterdir() if "optim" in file.name]
    cell, base = held("ZeRO-3 to folder", sum(parts), extend(source, "x"), weights)
    share = (cell.peak - base.peak) / max(parts)
    print(f"{'':17} memory above import torch: {share:.3f} of the largest file ({max(parts):.0f} MiB), at most 1.5")


if __name__ == "__main__":
    main()
