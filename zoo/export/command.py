"""`zoo export CKPT --to hf|gguf`: for transformers, vLLM, SGLang or llama.cpp, to the same numbers."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from zoo.arguments import Arguments
from zoo.errors import ZooError, listing

if TYPE_CHECKING:
    from zoo.decoder import Decoder

EPILOG = """What is written is read back, a folder by transformers too where it is installed; what comes back different
is not published.

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
    found.add_argument(
        "--to",
        required=True,
        choices=("hf", "gguf"),
        help="hf: a folder as Hugging Face's; gguf: a file of llama.cpp's",
    )
    found.add_argument(
        "--out", type=Path, metavar="PATH", help="a folder or a file (default: beside CKPT, its name with -hf or .gguf)"
    )
    found.add_argument(
        "--type", choices=("float32", "float16", "bfloat16"), help="gguf: of matrices (default: as they are)"
    )
    found.add_argument(
        "--check",
        choices=("logits", "waves"),
        default="logits",
        help="what is compared with what is read back; for logits two models are in memory (%(default)s)",
    )
    found.add_argument(
        "--serve",
        choices=("vllm", "sglang"),
        help="hf: for this engine; what it would compute otherwise is refused (default: whoever computes it)",
    )
    found.add_argument(
        "--code",
        action="store_true",
        help="hf: a folder that transformers reads by zoo's own code (default: where no model of theirs is the same)",
    )
    found.add_argument(
        "--dual",
        action="store_true",
        help="hf: two folders within one, as it was trained and extended, and the rule that sends requests to either",
    )
    found.add_argument("--overwrite", action="store_true", help="replace what stands at --out")
    return found


def main(argv: list[str]) -> None:
    """Say, write, have it read, publish."""
    options = parser().parse_args(argv)
    path = Path(options.checkpoint)
    if not path.exists():
        raise ZooError(f"There is no checkpoint at {path}.")
    if options.type is not None and options.to == "hf":
        raise ZooError("--type is of GGUF files; a folder keeps the types that the weights have.")
    if (options.serve or options.code or options.dual) and options.to == "gguf":
        raise ZooError("--serve, --code and --dual are of folders; llama.cpp serves a GGUF file.   Try:  --to hf")
    if options.code and (options.serve or options.dual):
        raise ZooError(
            "--serve and --dual are for engines, and none reads a folder by zoo's own code.   Try:  no --code"
        )
    here = Path(os.path.abspath(path))
    stem = here.name.removesuffix(".ckpt").removesuffix(".gguf")
    out = options.out if options.out is not None else here.with_name(stem + {"hf": "-hf", "gguf": ".gguf"}[options.to])
    free(out, path, options.to, options.overwrite)
    written = (folder if options.to == "hf" else file)(options, path, out, shlex.join(["zoo", "export", *argv]))
    for line in written:
        print(line)


def folder(options: argparse.Namespace, path: Path, out: Path, command: str) -> list[str]:
    """Write a folder; what is to be said of it."""
    from zoo import checkpoints
    from zoo.checkpoints.stored import Weights
    from zoo.export import dual, engines, gate
    from zoo.export.write import CARD, card, plan, write
    from zoo.extend.write import whole

    found = checkpoints.listed(path)
    checkpoints.Checkpoint(path, found.about, Weights(found.weights)).compare_shapes()
    profiles = dual.profiles(found) if options.dual else {"": found}
    said = {name: plan(each, code=options.code) for name, each in profiles.items()}
    for words in said.values():
        if options.serve and (reason := engines.unserved(options.serve, words)):
            raise ZooError(f"{engines.NAMES[options.serve]} does not serve this checkpoint: {reason}.")
        if options.dual and words.layout is None:
            raise ZooError("Two profiles are for engines, and none computes this checkpoint.   Try:  without --dual")
    told, how, own = list[str](), "", out.resolve().name
    with whole(out) as beside:
        for name, each in profiles.items():
            way = write(each, said[name], beside / name, beside / dual.LONG if name == dual.SHORT else None)
            network = cast("Decoder", replace(checkpoints.read(path), about=each.about).network())
            compared = gate.pass_through(beside / name, network, logits=options.check == "logits", code=said[name].code)
            compared += engines.asked(said[name], network)
            page = card(each, said[name], command, way, compared, f"{own}/{name}".rstrip("/"), options.serve)
            (beside / name / CARD).write_text(page, encoding="utf-8")
            told += [f"{name}: {line}" if name else line for line in (*compared, *said[name].notes)]
            how = how or way
        if options.dual:
            dual.router(beside, profiles, said, command, own)
    print(f"zoo: wrote {out}" + (f" ({how} of the weights)" if how != "conversion" else ""), file=sys.stderr)
    return told


def file(options: argparse.Namespace, path: Path, out: Path, command: str) -> list[str]:
    """Write a GGUF file; what is to be said of it."""
    import torch

    from zoo import checkpoints
    from zoo.checkpoints.stored import Weights
    from zoo.data.tokenizer import Tokenizer
    from zoo.export import gate
    from zoo.extend.write import whole
    from zoo.hub import gguf

    found = checkpoints.listed(path)
    checkpoints.Checkpoint(path, found.about, Weights(found.weights)).compare_shapes()
    told = found.about.get("tokenizer")
    kind = None if options.type is None else getattr(torch, options.type)
    with whole(out) as beside:
        made = beside.with_suffix(".gguf")  # by which it is known to be one, and still by whom it is written
        try:
            tokenizer = None if told is None else Tokenizer.restore(told)
            notes = gguf.write(made, found, tokenizer=tokenizer, dtype=kind, name=out.stem)
            network = cast("Decoder", checkpoints.read(path).network())
            close = gate.LOGITS if kind in (None, torch.float32) else gate.ROUNDED
            compared = gate.ours(made, network, logits=options.check == "logits", close=close)
            os.replace(made, beside)
        finally:
            made.unlink(missing_ok=True)
    print(f"zoo: wrote {out}", file=sys.stderr)
    return [*compared, *notes]


def free(out: Path, source: Path, to: str, overwrite: bool) -> None:
    """Raise ZooError where the result may not stand."""
    here, there = out.resolve(), source.resolve()
    if here == there or there in here.parents or here in there.parents:
        how = "holds" if here in there.parents else "is, or is inside,"
        raise ZooError(f"{out} {how} the checkpoint that is exported.   Try:  --out another path")
    if to == "gguf" and out.suffix != ".gguf":
        raise ZooError(f"{out} is no name of a GGUF file.   Try:  --out {out.with_suffix('.gguf')}")
    if not out.exists():
        return
    if not overwrite:
        raise ZooError(f"{out} exists.   Try:  --overwrite, or --out another path")
    held = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.is_dir() if to == "gguf" else not held & {"config.json", "router.json"}:
        raise ZooError(f"{out} is no such checkpoint, and --overwrite replaces those only.   Try:  --out another path")
    own = {"short", "long"} if "router.json" in held else set()
    if others := sorted(name for name in held - own if (out / name).is_dir()):
        raise ZooError(f"{out} holds {listing(others[:3])} too, which --overwrite would delete. Move that first.")
