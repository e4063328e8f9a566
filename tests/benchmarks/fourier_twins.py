"""Fourier integral attention beside its twins on two CPU cores: what a kernel is worth, and how its heads differ.

    python tests/benchmarks/fourier_twins.py [--only text] [--seeds 0 1 2] [--steps 600] [--batch 32]
                                             [--epochs 80] [--threads 2] [--out runs/twins]
                                             [--kernels Auto RBF FourierQuartic FourierIntegral]

recipes/fourier_quickstart.yaml (text) and recipes/fourier_digits.yaml (digits) and the twins that differ from them in
the kernel; another kernel is that recipe with its name. Each run is a process of its own, `zoo fit`, from its own seed
of the weights and of dropout; the data and their order are the same. A run that is done is not repeated, and one that
was interrupted goes on. Figures are those that the runs logged last:

    validation loss    nats per token; cross-entropy per image
    accuracy           of images set aside, by `zoo test` (digits only)
    distance, relative, variation    of heads, as `zoo.analyze.distances` defines them, on the first 8 examples
    seconds            of training alone, by the throughput that was logged: it means something on an idle machine only

Each is the mean over seeds and, where there are several, the standard deviation; of the loss every seed's is shown too.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TWINS = {"Auto": "_softmax", "RBF": "_rbf", "FourierQuartic": "_quartic", "FourierIntegral": ""}
"""Kernels that have a recipe, and the end of its name."""
HEADS = ("distance", "distance_relative", "variation")


@dataclass(frozen=True)
class Task:
    """One of the two tasks.

    Args:
        name: In folders and options.
        recipe: Its recipe.
        rate: The name of its throughput.
        columns: Figures of its table, and their headings.
    """

    name: str
    recipe: str
    rate: str
    columns: dict[str, str]


SHARED = {"distance": "head distance", "distance_relative": "relative", "variation": "variation", "seconds": "seconds"}
TASKS = (
    Task("text", "fourier_quickstart", "tokens/s", {"loss": "validation loss", **SHARED}),
    Task("digits", "fourier_digits", "images/s", {"loss": "validation loss", "accuracy": "accuracy", **SHARED}),
)


def zoo(words: list[str], threads: int) -> None:
    """Run a verb; its output goes nowhere unless it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", "from zoo.cli import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        sys.exit(f"zoo {' '.join(words)}\n{done.stderr[-3000:]}")


def logged(folder: Path) -> dict[str, list[float]]:
    """All readings of each figure, oldest first, over all parts of a run."""
    found: dict[str, list[float]] = {}
    for path in sorted(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value:
                        found.setdefault(name, []).append(float(value))
    return found


def run(task: Task, kernel: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """The figures of one run, which is trained where it has not been."""
    size = options.steps if task.name == "text" else options.epochs
    name = f"{task.name}-{size}" + (f"x{options.batch}" if task.name == "text" else "")
    root = options.out.absolute() / name / f"{kernel}-{seed}"
    kept = root / "figures.json"
    if kept.exists():
        return json.loads(kept.read_text())
    recipe = ROOT / "recipes" / f"{task.recipe}{TWINS.get(kernel, '')}.yaml"
    words = ["fit", "--config", str(recipe), "--seed_everything", str(seed), "--ckpt_path", "auto"]
    words += [] if kernel in TWINS else ["--model.kernel", kernel]
    words += ["--trainer.default_root_dir", str(root / "run"), "--trainer.enable_progress_bar", "false"]
    words += ["--trainer.log_every_n_steps", "1", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    if task.name == "text":
        words += ["--trainer.max_steps", str(size), "--trainer.val_check_interval", str(math.gcd(size, 300))]
        words += ["--data.batch", str(options.batch)]
    else:
        words += ["--trainer.max_epochs", str(size), "--trainer.check_val_every_n_epoch", str(math.gcd(size, 10))]
    zoo(words, options.threads)
    found = logged(root / "run")
    figures = {name: found[f"val/head_{name}"][-1] for name in HEADS}
    figures["loss"] = found["val/loss"][-1] if "val/loss" in found else math.log(found["val/perplexity"][-1])
    if rates := found.get(task.rate):
        figures["seconds"] = items(task, found, options.batch) * statistics.fmean(1 / rate for rate in rates)
    if "accuracy" in task.columns:
        checkpoint = max((root / "run").rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
        words = ["test", "--ckpt_path", str(checkpoint), "--trainer.default_root_dir", str(root / "test")]
        words += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
        zoo(words, options.threads)
        figures["accuracy"] = logged(root / "test")["test/accuracy"][-1]
    kept.write_text(json.dumps(figures))
    return figures


def items(task: Task, found: dict[str, list[float]], batch: int) -> float:
    """Tokens or images that a run has been trained on."""
    import yaml

    recipe = yaml.safe_load((ROOT / "recipes" / f"{task.recipe}.yaml").read_text())
    batch = recipe["data"]["init_args"]["batch"] if task.name == "digits" else batch
    return (max(found["step"]) + 1) * batch * recipe["model"]["init_args"].get("length", 1)


def cell(name: str, values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "-"
    digits = {"seconds": 0, "loss": 4, "distance": 3}.get(name, 3)
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f}"
        if name == "loss":
            text += f" ({', '.join(f'{value:.{digits}f}' for value in values)})"
    return text


def main() -> None:
    """Train, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[task.name for task in TASKS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32, help="of text")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--kernels", nargs="+", default=list(TWINS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/twins"))
    options = parser.parse_args()
    for task in TASKS:
        if options.only not in (None, task.name):
            continue
        lines = [f"| kernel | {' | '.join(task.columns.values())} |", "|---" * (len(task.columns) + 1) + "|"]
        for kernel in options.kernels:
            figures = []
            for seed in options.seeds:
                figures.append(run(task, kernel, seed, options))
                print(f"{task.name}, {kernel}, seed {seed}: {figures[-1]}", file=sys.stderr, flush=True)
            cells = [cell(name, [each[name] for each in figures if name in each]) for name in task.columns]
            lines.append(f"| {kernel} | {' | '.join(cells)} |")
        size = (
            f"{options.steps} steps of {options.batch} sequences" if task.name == "text" else f"{options.epochs} epochs"
        )
        print(f"\n{task.name}, {size}, seeds {', '.join(map(str, options.seeds))}\n\n" + "\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
