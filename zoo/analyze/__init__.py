"""`zoo analyze`: why a model reads as far as it does. Its waves, its biases, its heads, on text or images.

Definitions stand where numbers are made: `waves` (spectrum and energy), `response` (logit over distance), `curves`
(biases), `streams` (frequencies of the hidden states), `heads` (distance, entropy, sinks, redundancy). Checkpoints that
are analysed together read the same and stand side by side, such as before and after an extension.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import __version__
from zoo.errors import Unfit, ZooError

if TYPE_CHECKING:
    from zoo.analyze.subject import Subject

__all__ = ["analyze", "command", "redundancy"]


def analyze(subject: Subject) -> dict[str, Any]:
    """All that is known of a subject (`zoo.analyze.subject`), as a document of plain numbers."""
    from zoo.analyze import run

    return run.analyze(subject)


def redundancy(reader: Any, length: int, setting: Any) -> dict[str, Any]:
    """How much alike the heads of a language model attend, at a length: a measure of `zoo evaluate`.

    The value is {"redundancy": mean over layers, "layers": [of each]} with the definition of `zoo.analyze.heads`: the
    mean cosine between the attention of two heads of a layer; 0 if they share no key, 1 if they are the same.

    Raises Unfit where the model cannot read so much, has a single head, or has no distribution to compare.

    Args:
        reader: A language model: `model`, `tokenizer`, `device`, `refusal(tokens)`.
        length: Tokens of a window.
        setting: Its `texts` are the documents.
    """
    from zoo.analyze.heads import Heads
    from zoo.analyze.run import places, watch
    from zoo.analyze.subject import Subject, windows

    reason = reader.refusal(length)
    if reason is not None:
        raise Unfit(reason)
    if length < 2:
        raise Unfit(f"A window of {length} tokens leaves a head no choice.")
    if reader.model.trunk.geometry.heads < 2:
        raise Unfit("The model has one head, which nothing can be redundant with.")
    try:
        ids = windows(setting.texts, reader.tokenizer.encode, length).to(reader.device)
    except ZooError as error:
        raise Unfit(str(error)) from None
    subject = Subject(getattr(reader, "name", ""), "", reader.model, ids, "")
    heads = Heads(places(subject), 0)
    import torch

    with torch.inference_mode():
        watch(subject, heads.add)
    found = heads.value()
    return {"redundancy": found["redundancy"], "layers": [layer["redundancy"] for layer in found["layers"]]}


def command(argv: list[str]) -> None:
    """`zoo analyze CKPT [CKPT2]`."""
    from zoo.arguments import Arguments, speak

    parser = Arguments(
        prog="zoo analyze",
        description="Waves, biases and heads of one checkpoint, or of two side by side.",
    )
    parser.add_argument("checkpoints", metavar="CKPT", nargs="+", help="one or two: a .ckpt file or a folder")
    parser.add_argument("--out", metavar="DIR", help="write pictures, and their numbers as JSON, into this folder")
    parser.add_argument(
        "--files",
        metavar="TEXT",
        nargs="+",
        help="files or folders of text; for a vision transformer a folder of images "
        "(default: what the first checkpoint's data set aside for testing)",
    )
    parser.add_argument(
        "--length", type=int, help="tokens of a window, or pixels of a side (default: those of first training)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of a table")
    parser.add_argument("--device", default="cpu", help="where to run (default: %(default)s)")
    options = parser.parse_args(argv)
    if len(options.checkpoints) > 2:
        raise ZooError(f"zoo analyze takes one checkpoint or two, and got {len(options.checkpoints)}.")
    speak()

    from zoo.analyze.subject import read
    from zoo.analyze.summary import summary

    subjects = read(options.checkpoints, files=options.files, length=options.length, device=options.device)
    found = []
    for subject in subjects:
        print(f"zoo: {subject.name} reads {len(subject.inputs)} examples of {subject.origin}", file=sys.stderr)
        found.append(analyze(subject))
    document = {"zoo": __version__, "kind": "analysis", "checkpoints": found}
    if options.out is not None:
        for path in write(document, Path(options.out)):
            print(f"zoo: wrote {path}", file=sys.stderr)
    print(json.dumps(document) if options.json else summary(found))


def write(document: dict[str, Any], directory: Path) -> list[Path]:
    """Write analysis.json, and each picture with its numbers beside it; every file appears whole."""
    from zoo.analyze.charts import figures

    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZooError(f"{directory} cannot be made: {error.strerror}. Name another folder:  --out DIR") from None
    written = []
    for name, (figure, numbers) in figures(document["checkpoints"]).items():
        beside = directory / f".{name}.part"
        figure.savefig(beside, format="png", metadata={"Software": None})
        os.replace(beside, directory / f"{name}.png")
        put(directory / f"{name}.json", numbers)
        written += [directory / f"{name}.png", directory / f"{name}.json"]
    put(directory / "analysis.json", document)
    return [*written, directory / "analysis.json"]


def put(path: Path, content: Any) -> None:
    """Write JSON beside its final name, then rename."""
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(json.dumps(content), encoding="utf-8")
    os.replace(beside, path)
