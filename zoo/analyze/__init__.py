"""`zoo analyze`: why a model reads as far as it does. Its waves, its biases, its heads, on text or images.

Definitions stand where numbers are made: `waves` (spectrum and energy), `response` (logit over distance), `curves`
(biases), `streams` (frequencies of the hidden states), `heads` (distance, entropy, sinks, redundancy). Checkpoints that
are analysed together read the same and stand side by side, such as before and after an extension.
"""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from zoo import __version__, lock
from zoo.errors import Unfit, ZooError

__all__ = ["command", "redundancy"]

FILE = "analysis.json"
"""All numbers, in the folder of the pictures."""


def redundancy(reader: Any, length: int, setting: Any) -> dict[str, Any]:
    """How much alike the heads of a language model attend, at a length: a measure of `zoo evaluate`.

    The value is {"redundancy": mean over layers, "layers": [of each]} with the definition of `zoo.analyze.heads`: the
    mean cosine between the attention of two heads of a layer; 0 if they share no key, 1 if they are the same.

    Raises Unfit where the model cannot read so much, has a single head, or has no distribution to compare.

    Args:
        reader: The language model (`zoo.evaluate.Reader`).
        length: Tokens of a window.
        setting: The documents are its `long` ones, which other measures read too.
    """
    import torch

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
    ids = windows(setting.long, reader.tokenizer.encode, length).to(reader.device)
    subject = Subject(reader.name, "", reader.model, ids, "")
    heads = Heads(places(subject), 0)
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
        "--length",
        metavar="N",
        help="tokens of a window, such as 512 or 2k, or pixels of a side (default: those of first training)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of a table")
    parser.add_argument("--device", default="cpu", help="where to run (default: %(default)s)")
    options = parser.parse_args(argv)
    if len(options.checkpoints) > 2:
        raise ZooError(f"zoo analyze takes one checkpoint or two, and got {len(options.checkpoints)}.")
    speak()

    from zoo.analyze.run import analyze
    from zoo.analyze.subject import read
    from zoo.analyze.summary import summary
    from zoo.lengths import length

    asked = None if options.length is None else length(options.length)
    subjects = read(options.checkpoints, files=options.files, length=asked, device=options.device)
    if options.out is not None:
        claim(Path(options.out), [subject.path for subject in subjects])
    found = []
    for subject in subjects:
        print(f"zoo: {subject.name} reads {len(subject.inputs)} examples of {subject.origin}", file=sys.stderr)
        found.append(analyze(subject))
    document = {"zoo": __version__, "kind": "analysis", "checkpoints": found}
    if options.out is not None:
        for path in write(document, Path(options.out)):
            print(f"zoo: wrote {path}", file=sys.stderr)
    print(json.dumps(document) if options.json else summary(found))


def claim(directory: Path, paths: list[str]) -> None:
    """Make a folder, or take one that holds no analysis of other checkpoints."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.remove_left_overs(directory)
        whole = (directory / FILE).read_text(encoding="utf-8") if (directory / FILE).exists() else None
    except OSError as error:
        raise ZooError(f"{directory} cannot be used: {error.strerror}. Name another folder:  --out DIR") from None
    try:
        others = paths if whole is None else [each["path"] for each in json.loads(whole)["checkpoints"]]
    except (ValueError, KeyError, TypeError):
        others = ["something else"]
    if others != paths:
        raise ZooError(f"{directory} holds the analysis of {', '.join(others)}. Name another folder:  --out DIR")


def write(document: dict[str, Any], directory: Path) -> list[Path]:
    """Write analysis.json, and each picture with its numbers beside it; every file appears whole.

    Pictures that an earlier analysis left there and this one does not have are removed.
    """
    from zoo.analyze.charts import PICTURES, figures

    written, again = [], (directory / FILE).exists()
    try:
        for name, (figure, numbers) in figures(document["checkpoints"]).items():
            image = BytesIO()
            figure.savefig(image, format="png", metadata={"Software": None})
            written += [put(directory / f"{name}.png", image.getvalue()), put(directory / f"{name}.json", numbers)]
        for name in PICTURES:
            for path in (directory / f"{name}.png", directory / f"{name}.json"):
                if again and path not in written:
                    path.unlink(missing_ok=True)
        return [*written, put(directory / FILE, document)]
    except OSError as error:
        raise ZooError(
            f"{error.filename} cannot be written: {error.strerror}. Name another folder:  --out DIR"
        ) from None


def put(path: Path, content: Any) -> Path:
    """Write bytes, or JSON, beside the final name, then rename."""
    with lock.writing(path) as beside:
        beside.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path
