"""`zoo export CKPT --to hf`: a folder that transformers, vLLM and SGLang load to the same numbers."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from zoo.arguments import Arguments
from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.decoder import Decoder

EPILOG = """The folder is read back, by zoo and by transformers where it is installed; what comes back different is not
published.

examples:
  zoo export SmolLM2-135M-16k --to hf --out served
  zoo export runs/rope_125m/last.ckpt --to hf --check waves
"""


def parser() -> Arguments:
    """The arguments of `zoo export`."""
    found = Arguments(
        prog="zoo export",
        description="Write a checkpoint for programs that know nothing of zoo.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("checkpoint", metavar="CKPT", help="any checkpoint that zoo reads")
    found.add_argument("--to", required=True, choices=("hf",), help="hf: a folder as Hugging Face's")
    found.add_argument("--out", type=Path, metavar="PATH", help="a folder (default: beside CKPT, its name with -hf)")
    found.add_argument(
        "--check",
        choices=("logits", "waves"),
        default="logits",
        help="what is compared with what is read back; for logits two models are in memory (%(default)s)",
    )
    found.add_argument("--overwrite", action="store_true", help="replace a folder that stands at --out")
    return found


def main(argv: list[str]) -> None:
    """Say, write, have it read, publish."""
    options = parser().parse_args(argv)
    path = Path(options.checkpoint)
    if not path.exists():
        raise ZooError(f"There is no checkpoint at {path}.")

    from zoo import checkpoints
    from zoo.export import gate
    from zoo.export.write import CARD, card, plan, write
    from zoo.extend.write import whole

    here = Path(os.path.abspath(path))
    out = options.out if options.out is not None else here.with_name(f"{here.name.removesuffix('.ckpt')}-hf")
    free(out, path, options.overwrite)
    found = checkpoints.listed(path)
    said = plan(found)
    with whole(out) as beside:
        how = write(found, said, beside)
        network = cast("Decoder", checkpoints.read(path).network())
        compared = gate.pass_through(beside, network, logits=options.check == "logits")
        command = shlex.join(["zoo", "export", *argv])
        page = card(found, said, command, how, compared, out.resolve().name)
        (beside / CARD).write_text(page, encoding="utf-8")
    for line in (*compared, *said.notes):
        print(line)
    print(f"zoo: wrote {out}" + (f" ({how} of the weights)" if how != "conversion" else ""), file=sys.stderr)


def free(out: Path, source: Path, overwrite: bool) -> None:
    """Raise ZooError where the result may not stand."""
    if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
        raise ZooError(f"{out} is the checkpoint that is exported, or inside it.   Try:  --out another path")
    if out.exists() and not overwrite:
        raise ZooError(f"{out} exists.   Try:  --overwrite, or --out another path")
    if out.exists() and not (out / "config.json").is_file():
        raise ZooError(f"{out} is no folder of Hugging Face's, and --overwrite replaces those only.")
