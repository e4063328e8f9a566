"""`zoo evaluate CKPT...`: results as they are measured, a table at the end, a report in the folder."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.arguments import Arguments, place
from zoo.errors import ZooError
from zoo.lengths import length, lengths

EPILOG = """measures:
{measures}

examples:
  zoo evaluate checkpoints/quickstart --lengths 256,512,1k
  zoo evaluate runs/*/version_0/checkpoints/last.ckpt --measures perplexity,passkey --out report
  zoo evaluate CKPT --lengths 4k,8k --measures needle,ruler --files essays.jsonl --samples 20
"""


def parser() -> Arguments:
    """The arguments of `zoo evaluate`."""
    from zoo.evaluate.measures import MEASURES

    told = "\n".join(f"  {name:<12}{each.about}{' (standard)' * each.standard}" for name, each in MEASURES.items())
    found = Arguments(
        prog="zoo evaluate",
        description="How far a model really reads, of one or several checkpoints side by side.",
        epilog=EPILOG.format(measures=told),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("checkpoints", metavar="CKPT", nargs="+", help="a .ckpt file or a folder")
    found.add_argument("--lengths", help="512,1k,2k,... (default: 1, 2, 4, 8 times that of training, and to the reach)")
    found.add_argument("--measures", help="comma between them (default: the standard ones below)")
    found.add_argument(
        "--files", nargs="+", help="texts, folders or globs (default: what the first checkpoint held out)"
    )
    found.add_argument("--documents", type=int, default=32, help="documents whose losses are measured (%(default)s)")
    found.add_argument("--samples", type=int, default=5, help="trials per cell or task (%(default)s)")
    found.add_argument("--seed", type=int, default=0, help="of passkeys, needles and tasks (%(default)s)")
    found.add_argument("--out", type=Path, help="folder for results.json, report.html and pictures")
    found.add_argument("--json", action="store_true", help="one JSON document on stdout, all else on stderr")
    found.add_argument("--device", default="cpu", help="where to run (%(default)s)")
    own = found.add_argument_group("single measures")
    own.add_argument(
        "--windowing", default="fixed", help="perplexity: fixed, sliding, huggingface or yarn (%(default)s)"
    )
    own.add_argument("--stride", type=int, help="perplexity: tokens from one sliding window to the next")
    own.add_argument("--last", type=int, default=512, help="gain: tokens at the end that are scored (%(default)s)")
    own.add_argument("--tolerance", type=float, default=0.01, help="gain: nats that the reach may lose (%(default)s)")
    own.add_argument("--offsets", help="offset: positions to start from, as 0,1k,31k")
    own.add_argument("--depths", help="passkey, needle: places from 0 to 1, as 0,0.5,1")
    own.add_argument("--needles", type=int, default=1, help="needle: how many in a haystack (%(default)s)")
    own.add_argument("--tasks", help="ruler: some of its tasks, comma between them")
    own.add_argument("--squad", help="ruler: SQuAD's dev-v2.0.json")
    own.add_argument("--hotpot", help="ruler: hotpot_dev_distractor_v1.json")
    own.add_argument("--evaluator", metavar="CKPT", help="longppl: the model that says which tokens need the context")
    return found


def asked(options: Any) -> dict[str, Any]:
    """The setting's numbers from the options, or a sentence about the one that is wrong."""
    from zoo.evaluate.perplexity import WINDOWINGS

    if options.windowing not in WINDOWINGS:
        raise ZooError(f"There is no windowing {options.windowing!r}. It is one of {', '.join(WINDOWINGS)}.")
    for name in ("samples", "documents", "last", "needles", "stride"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ZooError(f"--{name} is 1 or more, and got {value}.")
    if not 0 <= options.tolerance < float("inf"):
        raise ZooError(f"--tolerance is a number of nats, 0 or more, and got {options.tolerance}.")
    if options.windowing == "fixed" and options.stride is not None:
        raise ZooError("Fixed windows stand beside each other and have no stride.   Try:  --windowing sliding")
    found = {name: getattr(options, name) for name in ("samples", "seed", "windowing", "stride", "last", "tolerance")}
    found |= {name: getattr(options, name) for name in ("needles", "squad", "hotpot", "evaluator")}
    if options.depths is not None:
        try:
            found["depths"] = tuple(sorted({float(word) for word in options.depths.split(",")}))
        except ValueError:
            raise ZooError(
                f"--depths takes numbers from 0 to 1, comma between them, and got {options.depths!r}."
            ) from None
        if not all(0 <= depth <= 1 for depth in found["depths"]):
            raise ZooError(f"A depth is a place from 0 (first) to 1 (last), and got {options.depths}.")
    if options.offsets is not None:
        given = {word.strip() for word in options.offsets.split(",")} - {""}
        found["offsets"] = tuple(sorted({0 if word == "0" else length(word) for word in given}))
    if options.tasks is not None:
        found["tasks"] = tuple(word.strip() for word in options.tasks.split(",") if word.strip())
    return found


def main(argv: list[str]) -> None:
    """Measure, show what comes, write the report."""
    options = parser().parse_args(argv)

    from rich.console import Console
    from rich.progress import Progress

    from zoo.evaluate import Evaluation, Setting, report

    evaluation = Evaluation(
        options.checkpoints,
        lengths=lengths(options.lengths) if options.lengths is not None else (),
        measures=options.measures,
        files=options.files,
        documents=options.documents,
        out=options.out,
        device=place(options.device),
        setting=Setting(**asked(options)),
    )
    out = sys.stderr if options.json else sys.stdout
    document = evaluation.document
    if kept := len(document["results"]):
        print(f"zoo: {kept} results of an earlier run are kept", file=sys.stderr)
    console = Console(file=sys.stderr)
    bar = Progress(console=console, transient=True) if console.is_terminal else None
    with bar or nullcontext():
        task = bar.add_task("", total=len(evaluation.cells())) if bar else None

        def tick(done: float) -> None:
            if bar and task is not None:
                bar.update(task, completed=len(document["results"]) + done)

        if bar and task is not None:
            bar.update(task, completed=kept)
        for result in evaluation.run(replace(evaluation.setting, tick=tick)):
            print(report.line(result), file=out, flush=True)
            tick(0.0)
    if options.json:
        print(json.dumps(document, indent=1, allow_nan=False))
    else:
        print(f"\n{report.table(document)}")
    if options.out is not None:
        for path in report.write(document, options.out):
            print(f"zoo: wrote {path}", file=sys.stderr)
    if reason := evaluation.nothing():
        raise ZooError(reason)
