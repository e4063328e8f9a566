"""`zoo extend CKPT --to 32k`: a checkpoint that reads further, from a trained one."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from zoo.arguments import Arguments
from zoo.errors import ZooError
from zoo.lengths import size

EPILOG = """A method's own arguments are given by name (--fast 16), or with --set where the name is taken (--set to=3).
`zoo plugins --details` lists the methods with theirs.

examples:
  zoo extend checkpoints/quickstart --to 512
  zoo extend last.ckpt --to 32k --method ABF --base 1e6 --out long --evaluate quick
  zoo extend checkpoints/quickstart --to 1k --method Resonance+NTK --dry-run
"""
DOCUMENTS = 8
"""Documents that a quick evaluation reads."""


def parser() -> Arguments:
    """The arguments of `zoo extend` that all methods share."""
    found = Arguments(
        prog="zoo extend",
        description="Make a checkpoint read further, by an extension of its position encoding. No weight changes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found.add_argument("checkpoint", metavar="CKPT", help="a .ckpt file or a folder")
    found.add_argument(
        "--to", required=True, metavar="LENGTH", help="tokens that it is to read: 512, 32k, 1m; images: 384px"
    )
    found.add_argument("--method", metavar="NAME", help="the extension (YaRN where waves turn)")
    found.add_argument(
        "--out", type=Path, metavar="PATH", help="x.ckpt, or else a folder (default: beside CKPT, its name with -32k)"
    )
    found.add_argument(
        "--from", dest="trained", metavar="LENGTH", help="tokens of first training, where CKPT does not tell"
    )
    found.add_argument(
        "--evaluate",
        choices=("quick", "none"),
        default="none",
        help="quick: perplexity before and after, on the same documents (%(default)s)",
    )
    found.add_argument("--files", nargs="+", metavar="TEXT", help="for --evaluate (default: what CKPT held out)")
    found.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="the method's own argument")
    found.add_argument("--dry-run", action="store_true", help="show what would be done, and write nothing")
    found.add_argument("--json", action="store_true", help="one JSON document on stdout, all else on stderr")
    found.add_argument("--overwrite", action="store_true", help="replace a checkpoint that stands at --out")
    return found


def own(rest: list[str], pairs: list[str]) -> dict[str, str]:
    """A method's own arguments, from what the parser does not know and from --set."""
    found: dict[str, str] = {}
    words = list(rest)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise ZooError(f"{word!r} is no argument of zoo extend. Try:  zoo extend --help")
        if not equals and (not words or words[0].startswith("--")):
            raise ZooError(f"--{name} needs a value. Try:  zoo extend --help")
        pairs = [*pairs, f"{name}={value if equals else words.pop(0)}"]
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ZooError(f"--set takes NAME=VALUE, and got {pair!r}.")
        if name in found:
            raise ZooError(f"{name} is given twice, as {found[name]} and as {value}.")
        found[name] = value
    return found


def main(argv: list[str]) -> None:
    """Plan, show, write, measure."""
    options, rest = parser().parse_known_args(argv)
    arguments = own(rest, options.set)
    to = size(options.to)
    trained = None if options.trained is None else size(options.trained)
    if options.files and options.evaluate == "none":
        raise ZooError("--files are read by an evaluation.   Try:  --evaluate quick")
    if options.dry_run and options.evaluate != "none":
        raise ZooError("--dry-run writes no checkpoint that could be evaluated. Leave one of the two out.")
    source = Path(options.checkpoint)
    if not source.exists():
        raise ZooError(f"There is no checkpoint at {source}.")

    from zoo.extend import images, plan
    from zoo.extend.card import card
    from zoo.extend.figures import figures, table
    from zoo.extend.source import read
    from zoo.extend.write import free, usual, write

    planned = plan(read(source), to, options.method, arguments, trained)
    out = options.out if options.out is not None else usual(planned)
    free(out, source, options.overwrite)
    told = figures(planned)
    document: dict[str, Any] = {"kind": "extension", "source": str(source), "out": str(out), **told}
    document["extended"] = planned.about["extended"]
    print(table(told), file=sys.stderr if options.json else sys.stdout, flush=True)

    def page(how: str, measured: str = "") -> str:
        command = shlex.join(["zoo", "extend", *argv])
        made = images.card if "grid" in told else card
        return made(told, planned.about, source.resolve().name, command, how, measured)

    document["written"] = None
    failed = None
    if not options.dry_run:
        how = document["written"] = write(planned, out, page)
        print(f"zoo: wrote {out}" + (f" ({how} of the weights)" if how != "conversion" else ""), file=sys.stderr)
        if options.evaluate == "quick":
            try:
                measure = images.quick if "grid" in told else quick
                document["evaluation"], measured = measure(source, out, told, options.files, options.json)
                if out.is_dir():
                    rewrite(out, page(how, measured))
            except ZooError as error:
                failed = f"{out} is written, and was not measured. {re.sub(r'--lengths [0-9]+, or ', '', str(error))}"
    if options.json:
        print(json.dumps(document, indent=1, allow_nan=False))
    if failed:
        raise ZooError(failed)


def quick(
    source: Path, out: Path, told: dict[str, Any], files: list[str] | None, silent: bool
) -> tuple[dict[str, Any], str]:
    """Perplexity of parent and child at half the trained length and its doubles up to the target."""
    from zoo.evaluate import Evaluation, report
    from zoo.extend.card import compared

    wanted = {max(2, told["length"] // 2), told["length"], told["to"]}
    size = 2 * told["length"]
    while size < told["to"]:
        wanted.add(size)
        size *= 2
    evaluation = Evaluation(
        [str(source), str(out)],
        lengths=tuple(sorted(wanted)),
        measures="perplexity",
        files=files,
        documents=DOCUMENTS,
    )
    for result in evaluation.run():
        print(report.line(result), file=sys.stderr, flush=True)
    if reason := evaluation.nothing():
        raise ZooError(reason)
    measured = compared(evaluation.document, told["length"])
    print(f"\n{measured}", file=sys.stderr if silent else sys.stdout)
    return evaluation.document, measured


def rewrite(out: Path, text: str) -> None:
    """The card with its numbers, whole or as it was."""
    from zoo.checkpoints.folder import CARD

    beside = out / f".{CARD}.{os.getpid()}.part"
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, out / CARD)
