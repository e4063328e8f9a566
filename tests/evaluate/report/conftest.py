"""Made-up runs, and what can be seen of the reports that are written of them."""

import itertools
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from zoo.evaluate.report import write

LENGTHS = [128, 256, 512, 1024, 2048]
ENDS = "Learned has a table of 128 positions, and 512 were asked for. Try lengths up to 128."
SHIFTED = "Learned has no position 1920."
CARTOON = "<script>alert('1 & 2')</script>"
BAD = {"fope": 0.0, "rope": 0.5, "alibi": -0.02, "learned": 0.9}
TASKS = ["niah_single_1", "niah_multikey_2", "vt", "cwe", "fwe", "qa_1"]
ALL = ["perplexity", "position", "gain", "offset", "passkey", "needle", "ruler", "longppl", "redundancy"]


def wilson(right: int, trials: int) -> tuple[float, float]:
    """The textbook's formula, for plausible bands."""
    z, share = 1.959964, right / trials
    middle, half = share + z * z / (2 * trials), z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    return (middle - half) / (1 + z * z / trials), (middle + half) / (1 + z * z / trials)


def counts(right: int, trials: int) -> dict:
    low, high = wilson(right, trials)
    return {"right": right, "trials": trials, "low": low, "high": high}


def value(measure: str, name: str, length: int, draw: random.Random) -> dict:
    """What a checkpoint that gets worse by `BAD` per doubling could give."""
    doublings = math.log2(length / 128)
    nats = 2.8 + BAD.get(name, draw.uniform(-0.05, 0.4)) * doublings - 0.03 * doublings + draw.gauss(0, 0.01)
    if measure == "perplexity":
        ppl = math.exp(nats)
        return {"perplexity": ppl, "nats": nats, "bits_per_byte": nats / 2.1, "low": ppl * 0.93, "high": ppl * 1.08,
                "tokens": 64 * (length - 1), "documents": 64, "windows": 64}  # fmt: skip
    if measure == "position":
        edges = [2**power for power in range(int(math.log2(length)) + 1)]
        spans = itertools.pairwise(edges)
        last = {"start": length - 256, "stop": length, "nats": nats, "tokens": 64 * 256}
        return {"last": last, "buckets": [{"start": start, "stop": stop, "tokens": 64 * (stop - start),
                             "nats": 6.5 - 0.45 * at + (BAD.get(name, 0.1) + 0.45) * max(0, at - 7)}
                            for at, (start, stop) in enumerate(spans)]}  # fmt: skip
    if measure == "gain":
        gain = (0.03 - BAD.get(name, 0.1)) * doublings
        made = {"gain": gain, "low": gain - 0.05, "high": gain + 0.05, "long": nats - gain, "short": nats,
                "scored": 64, "tokens": 64 * 64, "documents": 64}  # fmt: skip
        if length == 2048:
            places = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1984]
            made["contexts"] = [{"context": each, "nats": nats + 1 - min(at, 6) / 5 - gain * max(0, at - 6) / 5}
                                for at, each in enumerate(places)]  # fmt: skip
            made["reach"] = 1700 if gain > 0 else 64
        return made
    if measure == "offset":
        made = [{"offset": each, "nats": 3 + (name == "learned") * each / 4000 + draw.gauss(0, 0.001), "tokens": 64}
                for each in (0, 128, 256, 512, 1024, 1920)]  # fmt: skip
        if name == "learned":
            made[-1] = {"offset": 1920, "refused": SHIFTED}
        return {"offsets": made, "length": 128}
    if measure in ("passkey", "needle"):
        chance = max(0.0, min(1.0, 1 - BAD.get(name, 0.1) * doublings))
        cells = []
        for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
            right = sum(draw.random() < chance + depth * 0.2 for _ in range(10))
            cells.append({"depth": depth, **counts(right, 10)})
            if measure == "needle":
                cells[-1]["score"] = min(1, right / 10 + 0.0625)
        made = {**counts(sum(each["right"] for each in cells), 50), "depths": cells}
        return made if measure == "passkey" else {**made, "needles": 4, "score": min(1, made["right"] / 50 + 0.0625)}
    if measure == "ruler":
        scores = [max(0.0, 90 - 30 * at - 10 * doublings) for at in range(3)]
        scored = [{"task": task, "score": score, "samples": 5, "low": 0.0, "high": 71.2}
                  for task, score in zip(TASKS, scores, strict=False)]  # fmt: skip
        unfit = {"task": "cwe", "unfit": "cwe needs 480 tokens for one list and its example."}
        cwe = unfit if length < 512 else {"task": "cwe", "score": 12.5, "samples": 5, "low": 3.1, "high": 40.2}
        absent = {"task": "qa_1", "absent": "SQuAD's dev-v2.0.json is not here: name it with --squad FILE."}
        return {"mean": sum(each["score"] for each in scored) / 3, "counted": 3, "tasks": [*scored, cwe, absent]}
    if measure == "longppl":
        return {"longppl": 1.4 * math.exp(nats), "nats": nats, "key": 812, "tokens": 64 * 2047}
    if measure == "redundancy":
        return {"redundancy": 0.31 + draw.random() / 10, "layers": [0.2, 0.25, 0.41]}
    top1 = 0.9 - 0.05 * abs(math.log2(length / 32)) * (1 + 4 * abs(BAD.get(name, 0.1)))
    return {"top1": top1, "top5": min(1.0, top1 + 0.08), "images": 360, "low": top1 - 0.03, "high": top1 + 0.03}


def rich(names=("fope", "rope", "alibi", "learned"), measures=ALL, lengths=LENGTHS) -> dict:
    """A whole run of several checkpoints."""
    draw = random.Random("a report")
    results = []
    for name in names:
        for measure in measures:
            for length in lengths[-1:] if measure in ("position", "offset", "redundancy") else lengths:
                entry = {"checkpoint": name, "measure": measure, "length": length}
                if name == "learned" and length > 128 and measure not in ("offset", "resolution"):
                    results.append({**entry, "refused": ENDS})
                elif measure == "gain" and length <= 128:
                    results.append({**entry, "refused": "There is no context beyond 128 tokens in 128 tokens."})
                else:
                    seconds = round(draw.uniform(0.1, 20), 3)
                    results.append({**entry, "seconds": seconds, "value": value(measure, name, length, draw)})
    kinds = {"fope": "FoPE", "rope": "RoPE", "alibi": "ALiBi", "learned": "Learned"}
    return {
        "zoo": "0.1.0",
        "kind": "evaluation",
        "settings": {"lengths": list(lengths), "measures": list(measures), "samples": 10, "seed": 0, "stride": None,
                     "windowing": "fixed", "tolerance": 0.01},
        "machine": {"device": "cpu", "dtype": "float32", "torch": "2.13.0", "threads": 2},
        "text": {"origin": "Python's standard library, held out", "digest": "1f3a9c", "documents": 64, "excluded": 3},
        "checkpoints": [
            {"name": name, "path": f"runs/{name}/last.ckpt", "task": "LanguageModel", "kernel": "Auto", "steps": 1000,
             "position": kinds.get(name, "NoPE"), "trained": 128, "parameters": 1_234_567 + at}
            for at, name in enumerate(names)
        ],
        "results": results,
    }  # fmt: skip


VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """What a browser would see: tags that are closed, text, and links out."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words).replace("\u202f", ""))


def page(document: dict, folder: Path) -> tuple[Page, str]:
    (first, *_) = write(document, folder)
    assert first == folder / "report.html"
    text = first.read_text(encoding="utf-8")
    return Page(text), text


def numbers(value) -> list[float]:
    """Every number within a value."""
    if isinstance(value, dict):
        return [each for inner in value.values() for each in numbers(inner)]
    if isinstance(value, list):
        return [each for inner in value for each in numbers(inner)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def missing(document: dict, text: str) -> list[float]:
    """The numbers of a document that a text lacks, to four digits."""
    shown = np.array([float(each) for each in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text.replace("−", "-"))])
    return [each for each in numbers(document) if not (np.abs(shown - each) <= 5.0001e-4 * abs(each)).any()]


def look(path: Path) -> tuple[float, tuple[int, int]]:
    """The share of pixels that are not paper, and the size."""
    with Image.open(path) as opened:
        opened.load()
        assert opened.format == "PNG"
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    ground = pixels[0, 0]
    return float((np.abs(pixels - ground).sum(-1) > 60).mean()), opened.size


SECTIONS = [(name, title) for name, title in (
    ("perplexity", "Perplexity over length"), ("position", "Loss over position"), ("gain", "Gain from context"),
    ("offset", "Loss at shifted positions"), ("passkey", "Passkey"), ("needle", "Needles in a haystack"),
    ("ruler", "RULER"), ("longppl", "LongPPL"), ("redundancy", "Redundancy of heads"))]  # fmt: skip


@pytest.fixture(scope="session")
def made():
    """All of the above, which test files cannot import."""
    return SimpleNamespace(
        rich=rich, page=page, missing=missing, numbers=numbers, look=look, Page=Page,
        ALL=ALL, LENGTHS=LENGTHS, SECTIONS=SECTIONS, ENDS=ENDS, SHIFTED=SHIFTED, CARTOON=CARTOON,
    )  # fmt: skip


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """A run's document, its page, the page's source, and the folder."""
    folder = tmp_path_factory.mktemp("report")
    document = rich(("fope", "rope", "alibi", "learned", CARTOON))
    return document, *page(document, folder), folder
