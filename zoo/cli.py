"""The command line: the first word picks. Trainer verbs go to LightningCLI, the others to plain functions.

Importing Lightning takes seconds, so each verb imports what it needs when it is called; `zoo --help` and `zoo plugins`
read metadata only and import no torch.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from zoo import __version__, failures, plugins
from zoo.arguments import Arguments, place, speak
from zoo.errors import ZooError, escape_controls, listing, near

TRAINER = {
    "fit": "train a model from a recipe",
    "validate": "loss or accuracy on the validation split",
    "test": "loss or accuracy on the test split",
    "predict": "predictions on the test split",
}
OWN = {
    "evaluate": "how far checkpoints really read: perplexity by length and position, passkey, needles, RULER",
    "extend": "a checkpoint that reads further, from a trained one",
    "export": "for transformers, vLLM, SGLang or llama.cpp, to the same numbers",
    "analyze": "why: spectra, bias curves and heads of a checkpoint, as pictures and numbers",
    "generate": "sample text from a checkpoint",
    "plugins": "what is installed, from where, and what goes with what",
    "check": "the exam for one plugin, or the checksums of a folder's weights",
}


def usage() -> str:
    """The page that `zoo --help` prints."""
    width = max(map(len, [*TRAINER, *OWN])) + 2
    verbs = "\n".join(f"  {verb:<{width}}{what}" for verb, what in {**TRAINER, **OWN}.items())
    installed = "\n".join(
        f"  {kind + 's':<{20}}{listing(plugins.names(group))}" for group, kind in plugins.GROUPS.items()
    )
    return (
        f"zoo {__version__}: Transformers whose position encodings and attention kernels are plugins\n\n"
        f"usage: zoo VERB [arguments]        zoo VERB --help\n\n{verbs}\n\ninstalled:\n{installed}\n\n"
        "example:\n  zoo fit --config recipes/quickstart.yaml --model.position ALiBi\n"
    )


def main() -> None:
    """Entry point of the command `zoo`; a user's mistake is a sentence on stderr and exit status 2."""
    if sys.argv[1:2] in (["extend"], ["export"]):  # what is half written is removed on the way out
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for stream in (sys.stdout, sys.stderr):  # a terminal of ASCII shows what it cannot as \N{...}
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if failures.wants_traceback():
        return run(sys.argv[1:])
    try:
        run(sys.argv[1:])
    except ZooError as error:
        print(f"zoo: {escape_controls(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("zoo: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `zoo plugins | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.strerror is None:
            fail(error)
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"zoo: {escape_controls(where)}{error.strerror}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        fail(error)


def fail(error: Exception) -> NoReturn:
    """End with the sentence for an exception that nobody foresaw."""
    sentence, status = failures.explain_failure(error)
    print(f"zoo: {sentence}", file=sys.stderr)
    sys.exit(status)


def run(argv: list[str]) -> None:
    """Dispatch on the first word."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return
    verb, rest = argv[0], argv[1:]
    if verb in ("--version", "-V"):
        print(f"zoo {__version__}")
    elif verb in TRAINER:
        speak()
        from zoo import train

        train.main(argv)
    elif verb in OWN:
        actions: dict[str, Callable[[list[str]], None]] = {
            "evaluate": evaluate,
            "extend": extend,
            "export": export,
            "analyze": analyze,
            "generate": generate,
            "plugins": show,
            "check": check,
        }
        actions[verb](rest)
    else:
        guess = near(verb, [*TRAINER, *OWN])
        hint = f" Did you mean {' or '.join(guess)}?" if guess else ""
        raise ZooError(f"There is no verb {verb!r}.{hint} Verbs: {listing([*TRAINER, *OWN])}.")


def evaluate(argv: list[str]) -> None:
    """`zoo evaluate CKPT...`."""
    from zoo.evaluate import command

    command.main(argv)


def extend(argv: list[str]) -> None:
    """`zoo extend CKPT --to LENGTH`."""
    from zoo.extend import command

    command.main(argv)


def export(argv: list[str]) -> None:
    """`zoo export CKPT --to hf`."""
    from zoo.export import command

    command.main(argv)


def analyze(argv: list[str]) -> None:
    """`zoo analyze CKPT`."""
    from zoo.analyze import command

    command(argv)


def generate(argv: list[str]) -> None:
    """`zoo generate CKPT --prompt TEXT`."""
    parser = Arguments(prog="zoo generate", description="Sample text from a checkpoint (a .ckpt file or a folder).")
    parser.add_argument("checkpoint", metavar="CKPT")
    parser.add_argument("--prompt", required=True, help="text to continue; '-' reads it from standard input")
    parser.add_argument("--tokens", type=int, default=100, help="tokens to add at most (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: %(default)s)")
    parser.add_argument(
        "--top_p", type=float, default=0.95, help="probability mass to draw from (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=None, help="of the draws (default: a new one)")
    parser.add_argument("--device", default="cpu", help="where to run (default: %(default)s)")
    options = parser.parse_args(argv)

    import torch

    from zoo import checkpoints
    from zoo.data.tokenizer import Continuation, Tokenizer
    from zoo.decoder import Decoder
    from zoo.generate import stream

    device = place(options.device)
    found = checkpoints.read(options.checkpoint)
    model = found.network()
    if not isinstance(model, Decoder) or "tokenizer" not in found.about:
        raise ZooError(f"{options.checkpoint} is not a language model with a tokenizer, so it cannot generate text.")
    tokenizer = Tokenizer.restore(found.about["tokenizer"])
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    ids = tokenizer.encode(prompt)
    total = len(ids) + options.tokens
    if len(ids) <= model.reach < total:
        what = "reach" if model.reach > model.length else "trained length"
        print(f"zoo: {total} tokens exceed the {what} {model.reach}; what follows is extrapolated", file=sys.stderr)
    if averaged := checkpoints.describe_averaging(found.about):
        print(f"zoo: {options.checkpoint} holds {averaged}", file=sys.stderr)
    continuation, shown = Continuation(tokenizer, ids), False
    for step in stream(
        model.to(device),
        torch.tensor([ids], dtype=torch.long, device=device),
        options.tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        end=tokenizer.end,
    ):
        if int(step) == tokenizer.end:
            break
        print(f"{'' if shown else prompt}{continuation.add(int(step))}", end="", flush=True)
        shown = True
    print(f"{'' if shown else prompt}{continuation.finish()}")


def show(argv: list[str]) -> None:
    """`zoo plugins`."""
    parser = Arguments(prog="zoo plugins", description="What is installed, from where, and what goes with what.")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument(
        "--strict", action="store_true", help="exit status 2 if a plugin is broken or a name is taken twice"
    )
    about = parser.add_mutually_exclusive_group()
    about.add_argument(
        "--details", action="store_true", help="import each plugin: its rung, places, parameters, source"
    )
    about.add_argument("--matrix", action="store_true", help="which encoding goes with which kernel, and why not")
    about.add_argument(
        "--pictures", metavar="DIR", help="draw what each encoding does at initialisation: DIR/NAME.png, DIR/sheet.png"
    )
    options = parser.parse_args(argv)
    document: list[Any]
    if options.pictures is not None:
        from zoo import pictures

        document = [str(path) for path in pictures.draw(Path(options.pictures))]
        text = "\n".join(document)
    elif options.details or options.matrix:
        from zoo import tables

        document, text = tables.details() if options.details else tables.matrix()
    else:
        rows = plugins.table()
        document = [row.asdict() for row in rows]
        widths = [max((len(str(getattr(row, key))) for row in rows), default=0) for key in ("name", "group")]
        text = "\n".join(
            f"{row.name:<{widths[0]}}  {row.group:<{widths[1]}}  {row.distribution} {row.version}  {row.target}"
            for row in rows
        )
    print(json.dumps(document, indent=1) if options.json else text)
    wrong = plugins.clashes()
    if options.strict or options.details or options.matrix or options.pictures:
        wrong += list(plugins.broken())
    for line in wrong:
        print(f"zoo: {line}", file=sys.stderr)
    if wrong and options.strict:
        sys.exit(2)


def check_folder(path: Path) -> None:
    """`zoo check FOLDER`: compare its weights with the checksums that it records."""
    from zoo.checkpoints import form
    from zoo.checkpoints.folder import compare_checksums
    from zoo.limits import reporting_damage

    if not path.is_dir():
        raise ZooError(f"There is no folder {path}. zoo check takes a plugin's name, or a folder with weights.")
    with reporting_damage(path):
        form(path)
        told = compare_checksums(path)
    for name, state in told.items():
        print(f"{'FAIL' if state == 'different' else 'pass' if state == 'same' else 'skip'}  {name}: {state}")
    if "different" in told.values():
        print(f"zoo: {path} does not hold the weights that were written there", file=sys.stderr)
        sys.exit(1)


def check(argv: list[str]) -> None:
    """`zoo check NAME`, or `zoo check FOLDER`."""
    parser = Arguments(prog="zoo check", description="The exam for one plugin, or the checksums of a folder.")
    parser.add_argument(
        "name", metavar="NAME", help="a position encoding, a kernel, an extension, or a folder with weights"
    )
    options = parser.parse_args(argv)
    known = [name for group in plugins.GROUPS for name in plugins.names(group)]
    groups = [group for group in plugins.GROUPS if options.name in plugins.names(group)]
    if os.sep in options.name or (not groups and Path(options.name).is_dir()):
        return check_folder(Path(options.name))
    if not groups:
        guess = near(options.name, known)
        hint = f" Did you mean {' or '.join(guess)}?" if guess else ""
        raise ZooError(f"No plugin is called {options.name}.{hint} Installed: {listing(known)}.")
    from zoo.testing import examine

    failed = 0
    for group in groups:
        if len(groups) > 1:  # two ideas may share a name: an encoding, and the conversion to it
            print(f"{options.name}, the {plugins.GROUPS[group]}:")
        for result in examine(plugins.load(group, options.name)):
            mark = "skip" if result.skipped else "pass" if result.passed else "FAIL"
            failed += mark == "FAIL"
            print(f"{mark}  {result.name}" + (f": {result.message}" if result.message else ""))
    if failed:
        sys.exit(1)
