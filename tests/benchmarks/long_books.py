"""A model that people know, made to read further: loss by position on whole books, of every method and of none.

    python tests/benchmarks/long_books.py FOLDER --out DIR --methods all --books tune      # choose
    python tests/benchmarks/long_books.py FOLDER --out DIR --methods none YaRN --books report
    python tests/benchmarks/long_books.py FOLDER --out DIR --methods none YaRN --books report:2 --to 32k --length 32k
    python tests/benchmarks/long_books.py FOLDER --out DIR --books report --length 12k 32k --table --picture books.png

FOLDER is any checkpoint whose encoding is RoPE. Each method is `zoo extend FOLDER --to LENGTH --method METHOD`; what
was read is kept in --out, a file for each text, so that several of these may run at once and any may be stopped. Books
are those of `$ZOO_SHARED/data/long_books`, in the order of their names: the second, fourth and so on are for choosing,
the first, third and so on for reporting. Every text is read once, from its beginning, as one request; what is short is
the raw test text of WikiText-2, in windows.
"""

from __future__ import annotations

import argparse
import itertools
import lzma
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch

from zoo import lengths
from zoo.lengths import short

UNTOUCHED = "none"
CUTS = (0, 2048, 6144, 8192, 10240, 12288, 16384, 24576, 32768)
WINDOW, WINDOWS = 2048, 24


def text(path: Path) -> str:
    """A text that lies compressed, its line breaks as they are."""
    return lzma.open(path, "rb").read().decode("utf-8")


def books(shared: Path, which: str) -> list[Path]:
    """`tune`, `report`, or names with commas between them; a number behind a colon takes so many, evenly."""
    found = sorted((shared / "data" / "long_books").glob("*.txt.xz"))
    part, _, count = which.partition(":")
    if part in ("tune", "report"):
        found = found[part == "tune" :: 2]
        few = int(count or len(found))
        return [found[index * len(found) // few] for index in range(few)]
    return [path for path in found if path.name.partition(".")[0] in part.split(",")]


def extended(options: argparse.Namespace, method: str) -> Path:
    """The checkpoint of a method, made once."""
    from zoo.extend import command

    source: Path = options.checkpoint
    if method == UNTOUCHED:
        return source
    made: Path = options.out / f"{method}-{short(options.to)}"
    if not made.exists():
        own = [word for pair in options.set for word in ("--set", pair)]
        command.main([str(source), "--to", str(options.to), "--method", method, "--out", str(made), *own])
    return made


def read(options: argparse.Namespace, shared: Path) -> None:
    """Read what has not been read."""
    from zoo import checkpoints
    from zoo.evaluate.reader import Reader

    root = options.out / "losses"
    for method in options.methods:
        made = extended(options, method)

        @cache
        def reader(made: Path = made) -> Reader:
            return Reader(checkpoints.read(made), made.name)

        def keep(name: str, measure: Callable[[], torch.Tensor], made: Path = made) -> None:
            file = root / f"{made.name}.{name}.npy"
            busy = file.with_suffix(".busy")
            if file.exists():
                return
            try:
                busy.touch(exist_ok=False)
            except FileExistsError:
                return
            try:
                losses = measure()
                np.save(file, losses.numpy())
                print(f"{file.name}: {losses.mean():.4f}", file=sys.stderr, flush=True)
            finally:
                busy.unlink()

        root.mkdir(parents=True, exist_ok=True)
        if options.guard:

            def windows() -> torch.Tensor:
                ids = reader().tokenizer.encode(
                    text(shared / "data/text/wikitext2.test.raw.xz")[: 16 * WINDOW * WINDOWS]
                )
                cut = torch.tensor(ids[: WINDOW * WINDOWS]).view(WINDOWS, WINDOW)
                return torch.cat([reader().losses(row[None]) for row in cut])

            keep("wikitext2", windows)
        for length, book in itertools.product(options.length, books(shared, options.books)):

            def whole(length: int = length, book: Path = book) -> torch.Tensor:
                ids = reader().tokenizer.encode(text(book)[: 16 * length])[: length + 1]
                return reader().losses(torch.tensor([ids]))[0]

            keep(f"{book.name.partition('.')[0]}.{short(length)}", whole)


def table(options: argparse.Namespace, shared: Path) -> str:
    """Mean loss by position in Markdown, and the guard's perplexity; the last column but one is the goal's."""
    spans = list(itertools.pairwise(cut for cut in CUTS if cut <= max(options.length)))
    heads = [f"{first}-{last - 1}" for first, last in spans]
    goal = "8192-12287 over 6144-8191"
    lines = [f"| | tokens | books | {' | '.join(heads)} | {goal} | WikiText-2 |", "|---" * (len(heads) + 5) + "|"]
    for length in options.length:
        for method, rows in losses(options, shared, length).items():
            means = [f"{rows[:, first:last].mean():.4f}" if last <= length else "" for first, last in spans]
            guard = options.out / "losses" / f"{method}.wikitext2.npy"
            guarded = f"{np.exp(np.load(guard).mean()):.3f}" if guard.exists() else ""
            ratio = rows[:, 8192:12288].mean() / rows[:, 6144:8192].mean() - 1
            lines.append(
                f"| {method} | {short(length)} | {len(rows)} | {' | '.join(means)} | {100 * ratio:+.1f} % | {guarded} |"
            )
    return "\n".join(lines)


def losses(options: argparse.Namespace, shared: Path, length: int) -> dict[str, np.ndarray]:
    """Of every method that has read all of the books, or all that any has: [books, tokens]."""
    root, end = options.out / "losses", short(length)
    names = [path.name.partition(".")[0] for path in books(shared, options.books)]
    found: dict[str, list[np.ndarray]] = {}
    for name in names:
        for file in sorted(root.glob(f"*.{name}.{end}.npy")):
            found.setdefault(file.name.removesuffix(f".{name}.{end}.npy"), []).append(np.load(file))
    most = max(map(len, found.values()), default=0)
    read = {method: np.stack(own) for method, own in found.items() if len(own) == most}
    return dict(sorted(read.items(), key=lambda item: item[0] != options.checkpoint.name))  # the untouched one first


def picture(options: argparse.Namespace, shared: Path) -> None:
    """Mean loss over the position, a panel for each length, and in it a line for each method."""
    from matplotlib import style

    from zoo import checkpoints
    from zoo.evaluate.curves import ends, margin, plot, series, title, trained
    from zoo.evaluate.ink import LOOK, WIDTH, panel, png, sheet

    trained_on = checkpoints.listed(options.checkpoint).about["network"]["init_args"]["length"]
    high = 3.95
    with style.context(["default", LOOK]):
        figure = sheet(high * len(options.length))
        for above, length in enumerate(reversed(options.length)):
            found = losses(options, shared, length)
            count = len(next(iter(found.values())))
            step = 512 * max(1, length // 12288)
            drawn = []
            for order, (method, rows) in enumerate(found.items()):
                means = rows[:, : rows.shape[1] // step * step].reshape(len(rows), -1, step).mean((0, 2))
                drawn.append(series(method, order, [((n + 0.5) * step, y, None, None) for n, y in enumerate(means)]))
            axes = panel(figure, 0.62, WIDTH - margin(drawn), bottom=0.52 + high * above)
            plot(axes, drawn)
            axes.set_xlim(0, length)
            ticks = range(0, length + 1, 2048 * max(1, length // 12288))
            axes.set_xticks(ticks, [short(tick) for tick in ticks])
            title(axes, f"loss, nats per token: mean of {count} books, in steps of {step} tokens")
            axes.set_xlabel("position in the book, tokens")
            trained({"checkpoints": [{"name": drawn[0].name, "trained": trained_on}]}, axes)
            ends(axes, drawn)
        options.picture.write_bytes(png(figure))


def main() -> None:
    """Read, or show what was read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/long_books"))
    parser.add_argument("--methods", nargs="+", default=["all"])
    parser.add_argument("--set", nargs="*", default=[], help="of a single method: name=value")
    parser.add_argument("--books", default="tune:2")
    parser.add_argument("--to", type=lengths.length, default=16384)
    parser.add_argument("--length", type=lengths.length, nargs="+", default=[12288], help="tokens of a book")
    parser.add_argument("--guard", action="store_true", help="read WikiText-2 as well")
    parser.add_argument("--table", action="store_true", help="show what was read, and read nothing")
    parser.add_argument("--picture", type=Path, help="with --table: a PNG too")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if "ZOO_SHARED" not in os.environ:
        parser.error("the books lie in $ZOO_SHARED, which is not set")
    shared = Path(os.environ["ZOO_SHARED"])
    if options.table:
        if empty := [short(length) for length in options.length if not losses(options, shared, length)]:
            parser.error(f"of {empty[0]} tokens nothing was read yet in {options.out}")
        print(table(options, shared))
        if options.picture:
            picture(options, shared)
        return
    torch.set_num_threads(options.threads)
    if options.methods == ["all"]:
        from zoo.extend import methods

        found = ["Resonance+YaRN" if name == "Resonance" else name for name in methods.untrained("RoPE")]
        options.methods = [UNTOUCHED, *found]
    read(options, shared)


if __name__ == "__main__":
    main()
