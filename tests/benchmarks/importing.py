"""A folder of Hugging Face to first logits: our reading of it beside transformers' from_pretrained, time and memory.

    python tests/benchmarks/importing.py [--model FOLDER] [--gguf FILE] [--rounds 5] [--threads 1]

Without a folder one of SmolLM2-135M's shape is made, with random weights. It is read with weights stored as float32 and
as bfloat16; a network of float32 then reads 16 tokens. A GGUF file is read by both where one is given. Each run is a
process of its own, and the two take turns; a figure is the median of the rounds, a ratio the median of the rounds'
ratios. `import` is what the modules take that each needs beside torch, and would import while it reads; `logits` is
from the first call to the logits; `process` is all of it, from the start of Python. The peak is VmHWM of the whole
process (Linux tells it), in which pages of a mapped file count, for both: ours maps what lies in the file as the
network has it, transformers maps all. Files are in the page cache. Ratios hold within a run and mean most on an idle
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M's."""
TOKENS = 16
READERS = ("zoo", "transformers")


def measure(reader: str, path: Path) -> None:
    """Print one run as JSON; in a process of its own."""
    begin = time.perf_counter()
    tokens = torch.arange(100, 100 + TOKENS)[None]
    if reader == "zoo":
        from zoo import checkpoints, plugins

        for module in ("zoo.decoder", "zoo.hub.gguf" if path.is_file() else "zoo.hub.folder"):
            import_module(module)
        for group, name in (("positions", "RoPE"), ("kernels", "Auto")):
            plugins.load(f"zoo.{group}", name)
        imported = time.perf_counter()
        network = checkpoints.read(path).network()
    else:
        from transformers import AutoModelForCausalLM

        import_module("transformers.models.llama.modeling_llama")
        where: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {}
        imported = time.perf_counter()
        network = AutoModelForCausalLM.from_pretrained(
            path.parent if where else path, dtype=torch.float32, local_files_only=True, **where
        )
    with torch.inference_mode():
        logits = network(tokens)
    done = time.perf_counter()
    logits = logits if reader == "zoo" else logits.logits
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    told = {"import": imported - begin, "logits": done - imported, "peak": peak, "sum": float(logits.double().std())}
    print(json.dumps(told))


def run(reader: str, path: Path, threads: int) -> dict[str, float]:
    """One process, and the time that all of it took."""
    words = [sys.executable, __file__, "--measure", reader, str(path)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    begin = time.perf_counter()
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(done.stderr)
    return {**json.loads(done.stdout.splitlines()[-1]), "process": seconds}


def race(title: str, path: Path, options: argparse.Namespace) -> None:
    """A row for each reader, which take turns, and one of ratios; once before, so that files are in the cache."""
    found: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
    for round_ in range(1 + options.rounds):
        for reader in READERS:
            one = run(reader, path, options.threads)
            found[reader] += [one] if round_ else []
    ours, theirs = (found[reader] for reader in READERS)
    if abs(ours[0]["sum"] / theirs[0]["sum"] - 1) > 1e-4:
        raise SystemExit(f"{title}: the two have other logits")
    columns = ("import", "logits", "process", "peak")
    for reader in READERS:
        middle = [statistics.median(each[column] for each in found[reader]) for column in columns]
        print(f"{title:20} {reader:13} {middle[0]:8.2f} {middle[1]:8.2f} {middle[2]:8.2f} {middle[3]:9.0f}")
    ratio = [statistics.median(a[c] / b[c] for a, b in zip(ours, theirs, strict=True)) for c in columns]
    print(f"{'':20} {'ratio':13} " + " ".join(f"{each:8.2f}" for each in ratio), flush=True)


def make(folder: Path) -> Path:
    """A folder of that shape."""
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    model.save_pretrained(folder)
    return folder


def stored(model: Path, folder: Path, kind: torch.dtype) -> Path:
    """The same folder with weights of a type."""
    folder.mkdir()
    for file in model.iterdir():
        if file.suffix == ".json":
            shutil.copyfile(file, folder / file.name)
    weights = {name: tensor.to(kind) for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder with model.safetensors (default: one is made)")
    parser.add_argument("--gguf", type=Path, help="a GGUF file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--place", type=Path, help="where files are made (default: the temporary directory)")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return
    print(f"load {os.getloadavg()[0]:.1f} at the start, {os.cpu_count()} processors, {options.rounds} rounds")
    print(f"{'':34} {'import':>8} {'logits':>8} {'process':>8} {'peak MiB':>9}")
    with tempfile.TemporaryDirectory(dir=options.place) as name:
        model = options.model or make(Path(name, "made"))
        for kind in (torch.float32, torch.bfloat16):
            title = str(kind).removeprefix("torch.")
            race(title, stored(model, Path(name, title), kind), options)
        if options.gguf is not None:
            race(options.gguf.suffix[1:], options.gguf, options)


if __name__ == "__main__":
    main()
