"""Every method that extends a language model's encoding, untrained and fine-tuned alike: perplexity by length.

    python tests/benchmarks/methods.py CKPT [--recipe recipes/quickstart.yaml] [--factors 4 8] [--steps 100]

CKPT is what the recipe trained. Each method and factor is a run of the recipe's `extend` part from CKPT's weights, with
the same steps (by default the recipe's), learning rate and tokens in a step, on blocks of the target's length. Then all
results are read at once, on the same held-out documents, the untouched model first. Runs are kept in --out, and go on
where they were.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

TRAINED, EXTENDED, TUNED = "untouched", "{}", "{}, fine-tuned"


def owned(checkpoint: Path) -> tuple[int, list[str]]:
    """Tokens of first training, and the methods of the checkpoint's encoding."""
    from zoo.extend import methods
    from zoo.extend.source import read

    arguments = read(checkpoint).about["network"]["init_args"]
    found = methods.owned(arguments["position"]["class_path"])
    return arguments["length"], ["Resonance+YaRN" if name == "Resonance" else name for name in found]


def run(options: argparse.Namespace, method: str, to: int) -> dict[str, Path]:
    """The checkpoints of a method, before and after fine-tuning; none where it does not fit."""
    root = options.out / f"{method}-{to}"
    stage: dict[str, Any] = {"to": to, "method": method, "finetune": {"max_steps": options.steps, "lr": options.lr}}
    if not list(root.glob("*/checkpoints/last.ckpt")):
        command = ["zoo", "fit", "--config", str(options.recipe), "--stages", "extend"]
        command += ["--model.weights", str(options.checkpoint), "--extend", json.dumps([stage])]
        command += ["--trainer.default_root_dir", str(root), "--trainer.enable_progress_bar", "false"]
        command += options.more
        done = subprocess.run(
            [sys.executable, "-c", "from zoo.cli import main; main()", *command[1:]], capture_output=True, text=True
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [""]
            print(f"{method} to {to}: {lines[-1]}", file=sys.stderr)
            return {}
    print(f"{method} to {to}: done", file=sys.stderr, flush=True)
    return {
        EXTENDED.format(method): next(root.glob("*/extended.ckpt")),
        TUNED.format(method): next(root.glob("*/checkpoints/last.ckpt")),
    }


def table(rows: dict[str, Path], lengths: tuple[int, ...], documents: int) -> str:
    """Perplexities in Markdown."""
    from zoo.evaluate import Evaluation

    evaluation = Evaluation(
        [str(path) for path in rows.values()], lengths=lengths, measures="perplexity", documents=documents
    )
    names = [one["name"] for one in evaluation.document["checkpoints"]]
    found = {(one["checkpoint"], one["length"]): one["value"]["perplexity"] for one in evaluation.run()}
    lines = [f"| perplexity at | {' | '.join(map(str, lengths))} |", "|---" * (len(lengths) + 1) + "|"]
    for row, name in zip(rows, names, strict=True):
        lines.append(f"| {row} | " + " | ".join(f"{found[name, length]:.2f}" for length in lengths) + " |")
    text = evaluation.document["text"]
    return "\n".join(lines) + f"\n\n{text['documents']} documents: {text['origin']}\n"


def main() -> None:
    """Run, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.yaml"))
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--factors", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    options, options.more = parser.parse_known_args()
    own = yaml.safe_load(options.recipe.read_text())["extend"][0]["finetune"]
    options.steps, options.lr = options.steps or own["max_steps"], options.lr or own["lr"]
    length, methods = owned(options.checkpoint)
    lengths = tuple(length * factor for factor in sorted({1, 2, 4, *options.factors}))
    for factor in options.factors:
        rows = {TRAINED: options.checkpoint}
        for method in options.methods or methods:
            rows |= run(options, method, factor * length)
        print(f"\n{factor} times {length}\n\n{table(rows, lengths, options.documents)}", flush=True)


if __name__ == "__main__":
    main()
