"""`zoo extend CKPT --to 32k`: a checkpoint that reads further, from a trained one."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import lock
from zoo.arguments import Arguments
from zoo.errors import ZooError
from zoo.lengths import length, size

if TYPE_CHECKING:
    from zoo.extend.choice import Trial
    from zoo.extend.rewrite import Plan
    from zoo.extend.source import Source

AUTO = "auto"
EPILOG = """A method's own arguments are given by name (--fast 16), or with --set where the name is taken (--set to=3).
`zoo plugins --details` lists the methods with theirs.

Without --method the methods that the encoding owns are tried, without training, on documents that the checkpoint's run
validated on; the best at the target is taken among those that keep short texts.

examples:
  zoo extend checkpoints/quickstart --to 512
  zoo extend last.ckpt --to 32k --method ABF --base 1e6 --out long --evaluate full
  zoo extend checkpoints/quickstart --to 1k --method LongRoPE --search perplexity
  zoo extend checkpoints/quickstart --to 1k --method Resonance+NTK --dry-run
"""


def parser() -> Arguments:
    """The arguments of `zoo extend` that all methods share."""
    found = Arguments(
        prog="zoo extend",
        description="Make a checkpoint read further, by an extension of its position encoding. Nothing is trained.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found.add_argument("checkpoint", metavar="CKPT", help="a .ckpt file, a folder, or the directory of a ZeRO run")
    found.add_argument(
        "--to", required=True, metavar="LENGTH", help="tokens that it is to read: 512, 32k, 1m; images: 384px"
    )
    found.add_argument(
        "--method", metavar="NAME", help="the extension, or auto, which measures them (default: auto, if several)"
    )
    found.add_argument(
        "--out", type=Path, metavar="PATH", help="x.ckpt, or else a folder (default: beside CKPT, its name with -32k)"
    )
    found.add_argument(
        "--from", dest="trained", metavar="LENGTH", help="tokens of first training, where CKPT does not tell"
    )
    found.add_argument(
        "--evaluate",
        choices=("quick", "full", "none"),
        default="none",
        help="before and after, on the same documents: quick: perplexity by length; full: also by position, what "
        "context is worth, passkey, RULER from 4k (%(default)s)",
    )
    found.add_argument(
        "--files",
        nargs="+",
        metavar="TEXT",
        help="texts to choose, search and evaluate by; what chooses and what is measured then take turns with the "
        "documents (default: what CKPT validated on, and for --evaluate what it held out)",
    )
    found.add_argument("--tolerance", metavar="SHARE", help="auto: what a method may lose at the trained length (1%%)")
    found.add_argument(
        "--search", choices=("perplexity", "needle", "none"), help="LongRoPE: what to look for better divisors by"
    )
    found.add_argument("--budget", metavar="TOKENS", help="auto, --search: tokens that may be read (512k)")
    found.add_argument("--seed", type=int, help="of --search (0)")
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
    """Choose, show, write, measure."""
    options, rest = parser().parse_known_args(argv)
    arguments = own(rest, options.set)
    to = size(options.to)
    trained = None if options.trained is None else size(options.trained)
    check(options)
    path = Path(options.checkpoint)
    if not path.exists():
        raise ZooError(f"There is no checkpoint at {path}.")

    from zoo.extend import images
    from zoo.extend.card import card
    from zoo.extend.compared import compare
    from zoo.extend.figures import figures, table
    from zoo.extend.source import read
    from zoo.extend.write import write

    say = partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    source = read(path)
    document: dict[str, Any] = {"kind": "extension", "source": str(path)}
    texts: Any = options.files
    trial = None
    if automatic(options, arguments, source):
        planned, out, trial = automated(options, source, to, trained, say, document)
        texts = trial.text.left or texts
    else:
        planned, out, left = named(options, source, to, arguments, trained, say)
        texts = left or texts
    told = figures(planned)
    document |= {"out": str(out), **told, "extended": planned.about["extended"]}
    say(table(told))
    command = shlex.join(["zoo", "extend", *argv])

    def page(how: str, found: Any = None) -> str:
        if "grid" not in told:
            return card(planned, told, command, how, trial, found)
        return images.card(told, planned.about, path.resolve().name, command, how, found.table if found else "")

    document["written"] = None
    failed = None
    if not options.dry_run:
        how = document["written"] = write(planned, out, page)
        print(f"zoo: wrote {out}" + (f" ({how} of the weights)" if how != "conversion" else ""), file=sys.stderr)
        if options.evaluate != "none":
            try:
                measure = images.compare if "grid" in told else compare
                found = measure(path, out, told, options.evaluate, texts)
                document["evaluation"] = found.document
                say(f"\n{found.table}" + f"\n\n{found.more}".rstrip())
                if out.is_dir():
                    for name, picture in found.pictures.items():
                        replace(out / name, picture)
                    replace(out / "README.md", page(how, found).encode())
            except ZooError as error:
                failed = f"{out} is written, and was not measured. {re.sub(r'--lengths [0-9]+, or ', '', str(error))}"
    if options.json:
        print(json.dumps(document, indent=1, allow_nan=False))
    if failed:
        raise ZooError(failed)


def check(options: argparse.Namespace) -> None:
    """Raise ZooError where options contradict each other."""
    auto, search = options.method in (None, AUTO), options.search not in (None, "none")
    if options.method == "":
        raise ZooError("--method is empty.   Try:  --method auto, or leave it out")
    if options.tolerance is not None:
        share(options.tolerance)
    if options.budget is not None:
        try:
            length(options.budget)
        except ZooError as error:
            raise ZooError(f"--budget is a number of tokens, such as 512k: {error}") from None
    if search and auto:
        raise ZooError("--search looks for the numbers of one method.   Try:  --method LongRoPE")
    if options.tolerance is not None and not auto:
        raise ZooError("--tolerance is for choosing a method, and one is named.   Try:  --method auto")
    if options.budget is not None and not (auto or search):
        raise ZooError("--budget limits what is read to choose or to search.   Try:  --method auto, or --search")
    if options.seed is not None and not search:
        raise ZooError("--seed is of a search.   Try:  --search perplexity")
    if options.files and options.evaluate == "none" and not (auto or search):
        raise ZooError("--files are read by an evaluation.   Try:  --evaluate quick")
    if options.dry_run and options.evaluate != "none":
        raise ZooError("--dry-run writes no checkpoint that could be evaluated. Leave one of the two out.")
    for file in options.files or ():
        if not Path(file).exists():
            raise ZooError(f"There is no text at {file}, which --files names.")


def automatic(options: argparse.Namespace, arguments: dict[str, str], source: Source) -> bool:
    """Whether the method is to be chosen; where there is one only, nothing is."""
    if options.method not in (None, AUTO):
        return False

    from zoo.extend.methods import untrained
    from zoo.extend.rewrite import described

    network = described(source)
    found = untrained(network["init_args"]["position"]["class_path"])
    if len(found) < 2:
        options.method = None  # the usual one, or planning says why there is none
        return False
    if network["class_path"] == "zoo.vit.ViT":
        if options.method == AUTO:
            raise ZooError(f"auto measures on texts, and {source.path} reads images.   Try:  --method {found[0]}")
        return False
    if arguments:
        raise ZooError(
            f"--{next(iter(arguments))} is an argument of a method, and none is named.   "
            f"Try:  --method with one of {', '.join(found)}"
        )
    return True


def automated(
    options: argparse.Namespace, source: Source, to: Any, trained: Any, say: Any, document: dict[str, Any]
) -> tuple[Plan, Path, Trial]:
    """The extension that is best by measurement, where it goes, and the measurement."""
    from zoo.extend.choice import TOLERANCE, recipe
    from zoo.extend.family import BUDGET
    from zoo.extend.trial import auto, candidates

    plans, refused = candidates(source, to, trained)
    out = place(options, next(iter(plans.values())))
    trial = auto(
        source,
        plans,
        refused,
        budget=BUDGET if options.budget is None else length(options.budget),
        tolerance=TOLERANCE if options.tolerance is None else share(options.tolerance),
        files=options.files,
        measured=options.evaluate != "none",
        say=say,
    )
    document["auto"] = trial.facts()
    choice = trial.choice
    if choice.method is not None:
        say(f"\n{choice.said}\n")
    if choice.best and not choice.helps:
        lines = recipe(source.about, to, trial.length, choice.best)
        document["auto"]["recipe"] = lines
        say(f"{lines}\n")
    if choice.method is None:
        if options.json:
            print(json.dumps({**document, "out": str(out), "written": None}, indent=1, allow_nan=False))
        raise ZooError(f"Nothing is written. {choice.said}")
    planned = plans[choice.method]
    planned.step["auto"] = trial.facts()
    return planned, out, trial


def named(
    options: argparse.Namespace,
    source: Source,
    to: Any,
    arguments: dict[str, str],
    trained: Any,
    say: Any,
) -> tuple[Plan, Path, Any]:
    """The extension by a method's name, where it goes, and the documents that a search left for an evaluation."""
    from zoo.extend import plan

    planned = plan(source, to, options.method, arguments, trained)
    out = place(options, planned)
    if options.search in (None, "none"):
        return planned, out, None

    from zoo.extend.family import BUDGET
    from zoo.extend.search import search

    found = search(
        planned,
        options.search,
        budget=BUDGET if options.budget is None else length(options.budget),
        seed=options.seed or 0,
        files=options.files,
        measured=options.evaluate != "none",
        say=say,
    )
    say(f"{found.said}\n")
    words = {name: str(value) for name, value in found.arguments.items()}
    planned = plan(source, to, options.method, {**arguments, **words}, trained)
    planned.step["search"] = found.facts
    return planned, out, found.left


def place(options: argparse.Namespace, planned: Plan) -> Path:
    """Where the result goes; a sentence where it may not, before anything takes time."""
    from zoo.extend.write import free, usual

    out: Path = options.out if options.out is not None else usual(planned)
    free(out, planned.source.path, options.overwrite)
    return out


def share(word: str) -> float:
    """A share such as 1% or 0.01."""
    number, percent = word.strip().removesuffix("%"), word.strip().endswith("%")
    try:
        found = float(number) / (100 if percent else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ZooError(f"--tolerance is a share of perplexity such as 1% or 0.01, and got {word!r}.")
    return found


def replace(path: Path, content: bytes) -> None:
    """A file of the result with new content, whole or as it was."""
    with lock.writing(path) as beside:
        beside.write_bytes(content)
