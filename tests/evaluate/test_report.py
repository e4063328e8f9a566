"""The report of made-up runs: nothing is lost, nothing is hidden, nothing is markup, and it looks as it should."""

import copy
import html
import itertools
import json
import math
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.errors import ZooError
from zoo.evaluate.report import line, table, write

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


def made(document: dict, folder: Path) -> tuple[Page, str]:
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


def strings(value) -> list[str]:
    if isinstance(value, dict):
        return [each for inner in value.values() for each in strings(inner)]
    if isinstance(value, list):
        return [each for inner in value for each in strings(inner)]
    return [value] if isinstance(value, str) else []


def missing(document: dict, text: str) -> list[float]:
    """The numbers of a document that a text lacks, to four digits."""
    shown = np.array([float(each) for each in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text.replace("−", "-"))])
    return [each for each in numbers(document) if not (np.abs(shown - each) <= 5.0001e-4 * abs(each)).any()]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    document = rich(("fope", "rope", "alibi", "learned", CARTOON))
    return document, *made(document, folder), folder


def test_every_number_is_there(report):
    document, page, _, _ = report
    assert len(numbers(document)) > 2500
    assert missing(document, page.text) == []
    lost = copy.deepcopy(document)
    lost["results"][0]["value"]["nats"] = 98765.4
    assert missing(lost, page.text) == [98765.4], "the test can fail"


def test_every_word_is_there(report):
    """Names, reasons of refusals, of tasks that do not fit and of those that are absent, settings."""
    document, page, _, _ = report
    words = {re.sub(r"\s+", " ", each) for each in strings({k: v for k, v in document.items() if k != "kind"})}
    assert {ENDS, SHIFTED, CARTOON} < words
    assert [each for each in words if each not in page.text and each not in dict(SECTIONS)] == []
    assert page.text.count(ENDS) == 8, "once in each measure"
    assert "(learned at 256, 512, 1024, 2048)" in page.text
    assert "cwe: fope, rope, alibi," in page.text
    assert "offset 1920: learned at 2048" in page.text


SECTIONS = [(name, title) for name, title in (
    ("perplexity", "Perplexity over length"), ("position", "Loss over position"), ("gain", "Gain from context"),
    ("offset", "Loss at shifted positions"), ("passkey", "Passkey"), ("needle", "Needles in a haystack"),
    ("ruler", "RULER"), ("longppl", "LongPPL"), ("redundancy", "Redundancy of heads"))]  # fmt: skip


def test_sections_pictures_and_nothing_from_elsewhere(report):
    _, page, text, folder = report
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert ids == ["summary", *(name for name, _ in SECTIONS), "about"]
    assert all(title in page.text for _, title in SECTIONS)
    labels = [attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg"]
    assert labels == [title for _, title in SECTIONS[:7]]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    sources = {attrs[key] for _, attrs in page.tags for key in ("src", "href", "xlink:href") if key in attrs}
    assert all(each.startswith("#") for each in sources)
    assert not re.findall(r"url\((?!#)|@import|https?://", re.sub(r'xmlns(:xlink)?="[^"]*"', "", text))
    named = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert {each[1:] for each in sources} <= set(named), "links lead somewhere"
    used = set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(named)
    assert sorted(path.stem for path in folder.glob("*.png")) == sorted(name for name, _ in SECTIONS[:7])


def test_names_are_never_markup(report, tmp_path):
    _, page, text, _ = report
    assert CARTOON not in text
    assert "<script" not in text
    assert html.escape(CARTOON, quote=True) in text
    assert CARTOON in page.text
    nasty = rich(('"><img src=x onerror=y>', "a & b $x_1$ \\frac", "--><b>"), ALL[:5], LENGTHS[:2])
    nasty["text"]["origin"] = "</style></title><script>1</script>"
    nasty["results"].append({"checkpoint": "--><b>", "measure": "</h2><i>", "length": 3, "value": {"<u>": "<s>"}})
    nasty["results"].append({"checkpoint": "--><b>", "measure": "ruler", "length": 3, "refused": "<em>no</em> & why"})
    page, _ = made(nasty, tmp_path)
    assert not {"img", "b", "script", "u", "s", "em"} & {tag for tag, _ in page.tags}
    assert "<em>no</em> & why" in page.text


def shuffled(value):
    """The same document, written in another order of keys."""
    if isinstance(value, dict):
        return {key: shuffled(each) for key, each in reversed(value.items())}
    return [shuffled(each) for each in value] if isinstance(value, list) else value


def test_equal_documents_are_equal_bytes(report, tmp_path):
    document, _, _, folder = report
    again = shuffled(json.loads(json.dumps(document)))
    assert again == document
    written = write(again, tmp_path)
    assert [path.name for path in written] == ["report.html", *(f"{name}.png" for name, _ in SECTIONS[:7])]
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in written)
    again["settings"]["lengths"] = tuple(again["settings"]["lengths"])  # before it was written and read
    assert write(again, tmp_path)[0].read_bytes() == (folder / "report.html").read_bytes()
    other = copy.deepcopy(document)
    other["results"][0]["value"]["perplexity"] += 1
    assert write(other, tmp_path)[1].read_bytes() != (folder / "perplexity.png").read_bytes()


def look(path: Path) -> tuple[float, tuple[int, int]]:
    """The share of pixels that are not paper, and the size."""
    with Image.open(path) as opened:
        opened.load()
        assert opened.format == "PNG"
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    ground = pixels[0, 0]
    return float((np.abs(pixels - ground).sum(-1) > 60).mean()), opened.size


def test_pngs_are_pictures(report):
    folder = report[-1]
    for path in folder.glob("*.png"):
        inked, (width, height) = look(path)
        assert 0.003 < inked < 0.7, path.name
        assert width == 1184
        assert 300 < height < 4000


def results(document: dict, **wanted) -> dict:
    """A document with only the results that are as wanted."""
    kept = [each for each in document["results"] if all(each[key] == value for key, value in wanted.items())]
    return {**document, "results": kept}


@pytest.mark.parametrize("measure", [*ALL, "resolution"])
def test_each_measure_by_itself(measure, tmp_path):
    document = rich(("fope", "learned"), [measure], [16, 24, 32] if measure == "resolution" else LENGTHS)
    page, _ = made(document, tmp_path)
    assert missing(document["results"], page.text) == []
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == ["summary", measure, "about"]
    assert len(list(tmp_path.glob("*.png"))) == (measure not in ("longppl", "redundancy"))
    refused = [each for each in document["results"] if "refused" in each]
    assert page.text.count("n/a, and why:") == bool(refused) + (measure in ("ruler", "offset") and not refused)


@pytest.mark.parametrize("count", [0, 1, 13, 90])
def test_an_interrupted_run(count, tmp_path):
    document = rich()
    del document["results"][count:]
    page, _ = made(document, tmp_path)
    assert missing(document, page.text) == []
    seen = {each["measure"] for each in document["results"]}
    waiting = [title for name, title in SECTIONS if name not in seen]
    said = f"Not measured yet: {', '.join(waiting)}."
    assert (said in page.text) == bool(waiting)
    assert ("There are no results: nothing has been measured." in page.text) == (count == 0)
    assert table(document)


def test_everything_refused(tmp_path):
    document = rich()
    for each in document["results"]:
        each.pop("value", None)
        each["refused"] = "No luck today."
    page, _ = made(document, tmp_path)
    assert "0 measured, 132 refused" in page.text
    assert page.text.count("No luck today.") == len(ALL)
    assert not list(tmp_path.glob("*.png"))
    assert "n/a: No luck today. (fope, rope, alibi, learned at 128, 256, 512, 1024, 2048)" in table(document)


def test_no_interval_and_no_number(tmp_path):
    document = rich(("fope",))
    for each in document["results"]:
        if "value" in each:
            each["value"] |= {key: None for key in ("low", "high", "mean") if key in each["value"]}
    page, _ = made(document, tmp_path)
    assert missing(document, page.text) == []
    assert "None" not in page.text
    assert "How far does it read?" in page.text
    assert "RULER: mean score, 100 is best\n  tokens  128  256  512  1024  2048\n  fope      –" in table(document)


def test_a_document_of_almost_nothing(tmp_path):
    page, _ = made({"results": []}, tmp_path / "deep" / "er")
    assert "There are no results" in page.text
    assert table({"results": []}) == "Nothing has been measured."


def test_other_versions_and_measures(tmp_path):
    """What this report does not know is listed all the same."""
    document = rich(("fope",), ["longppl"])
    document["results"] += [
        {"checkpoint": "late", "measure": "taste", "length": 7, "value": {"sweet": 4321.5, "by": {"tongue": 17.25}}},
        {"checkpoint": "fope", "measure": "perplexity", "length": 7, "value": {"ppl": 55.5}},
    ]
    page, _ = made(document, tmp_path)
    assert missing(document, page.text) == []
    assert "by.tongue" in page.text
    assert "taste" in table(document)


def test_ten_checkpoints_keep_their_colours(tmp_path):
    """A checkpoint has the colour of its place in the document in every picture, whoever else has numbers."""
    document = rich([f"m{at}" for at in range(10)], ["perplexity", "position"])
    _, text = made(document, tmp_path)
    marks = re.findall(r'<i class="dot" style="color:(#\w+);background:(#?\w+)"></i>(m\d)', text)
    looks = {name: (color, ground) for color, ground, name in marks}
    assert len(looks) == len(set(looks.values())) == 10
    assert all(looks[name] == (color, ground) for color, ground, name in marks)
    alone = {**document, "results": [each for each in document["results"] if each["checkpoint"] in ("m3", "m8")]}
    _, text = made(alone, tmp_path)
    named = dict(re.findall(r'<text style="[^"]*fill: (#\w+)[^>]*>\s*(m\d)', text))
    assert {name: color for color, name in named.items()} == {name: looks[name][0] for name in ("m3", "m8")}


def test_the_table_is_aligned():
    document = results(rich(("fope", "learned")), measure="perplexity")
    values = [each.get("value", {}).get("perplexity") for each in document["results"]]
    words = [f"{each:.2f}" if each else "n/a" for each in values]
    assert table({**document, "settings": {}}).splitlines() == [
        "Perplexity over length: lower is better",
        "  tokens     128    256    512   1024   2048",
        f"  fope     {'  '.join(words[:5])}",
        f"  learned  {words[5]}    n/a    n/a    n/a    n/a",
        f"  n/a: {ENDS} (learned at 256, 512, 1024, 2048)",
    ]
    whole = table(rich())
    blocks = whole.split("\n\n")
    assert [block.partition(":")[0] for block in blocks] == [title for _, title in SECTIONS]
    for block in blocks:
        rows = [row for row in block.splitlines() if re.match("  (fope|rope|alibi|learned) ", row)]
        assert len({len(row) for row in rows[:4]}) == 1, block


def test_a_table_is_no_wider_than_a_terminal():
    document = rich(("fope",), ["position"])
    ends = [16 * at for at in range(1, 31)]
    buckets = [{"start": start, "stop": stop, "nats": 2.5, "tokens": 9} for start, stop in itertools.pairwise(ends)]
    document["results"][0]["value"] = {"buckets": buckets}
    lines = table(document).splitlines()
    assert lines[:3] == [
        "Loss over position: nats per token, lower is better",
        "  position   fope",
        "  16–31     2.500",
    ]
    assert len(lines) == 2 + len(buckets)


def test_a_line_for_a_result():
    entry = {"checkpoint": "fope", "measure": "perplexity", "length": 512}
    value = {"perplexity": 15.1149, "low": 14.0, "high": 16.25, "nats": 2.7}
    assert line({**entry, "seconds": 1.23, "value": value}) == (
        "fope  perplexity  512 tokens  15.11 (14.00 to 16.25)  lower is better  [1.2 s]"
    )
    assert line({**entry, "refused": ENDS}) == f"fope  perplexity  512 tokens  n/a: {ENDS}"
    level = {"offsets": [{"offset": 0, "nats": 3.0}, {"offset": 9, "nats": 3.0 - 1e-9}]}
    assert line({**entry, "measure": "offset", "value": level}) == (
        "fope  offset  512 tokens  +0.0000  nats per token, the largest change"
    )
    document = rich(measures=[*ALL, "resolution"])
    lines = [line(each) for each in document["results"]]
    assert all("\n" not in each and "?" not in each for each in lines)
    assert len(set(lines)) == len(lines)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match=r"cannot be written to .*file: File exists\. Name a folder"):
        write({"results": []}, tmp_path / "file")


FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         "--allow-file-access-from-files"]  # fmt: skip


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Runs Debian's chromium on a page and returns what it prints."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    profile = tmp_path_factory.mktemp("profile")

    def run(page: Path, *more: str) -> str:
        command = [browser, *FLAGS, f"--user-data-dir={profile}", *more, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


MEASURE = """<!doctype html><body style="margin:0">
<iframe src="report.html" style="width:{width}px;height:900px;border:0"></iframe><script>onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(each => each.open = {opened});
  const inside = each => each.closest(".wide") !== null;
  const out = [...page.querySelectorAll("body *")].filter(
    each => !inside(each) && each.getBoundingClientRect().right > {width} + 0.5).map(each => each.tagName);
  const frames = [...page.querySelectorAll(".wide")].filter(each => each.getBoundingClientRect().right > {width} + 0.5);
  const box = name => page.querySelector(name).getBoundingClientRect();
  document.body.innerHTML = "<pre>" + JSON.stringify({{
    width: root.clientWidth, scroll: root.scrollWidth, out: out, frames: frames.length,
    svg: [...page.querySelectorAll("svg")].map(each => each.getBoundingClientRect().height),
    ground: page.defaultView.getComputedStyle(page.body).backgroundColor,
    ink: page.defaultView.getComputedStyle(page.querySelector("svg text")).fill,
  }}) + "</pre>";
}}</script></body>"""


def measured(chromium, folder: Path, width: int, opened: bool = False, *more: str) -> dict:
    wrapper = folder / f"wrapper{width}.html"
    wrapper.write_text(MEASURE.format(width=width, opened=str(opened).lower()))
    said = re.search(r"<pre>(.*?)</pre>", chromium(wrapper, "--window-size=1300,1000", "--dump-dom", *more))
    return json.loads(html.unescape(said.group(1)))


@pytest.mark.slow
def test_a_browser_shows_it(chromium, report, tmp_path):
    folder = report[-1]
    page = folder / "report.html"
    seen = Page(chromium(page, "--dump-dom"))
    assert [attrs["id"] for tag, attrs in seen.tags if tag == "section"] == [
        "summary", *(name for name, _ in SECTIONS), "about"]  # fmt: skip
    assert CARTOON in seen.text
    shots = {}
    for name, more in (("light", []), ("dark", ["--force-dark-mode"]), ("phone", ["--window-size=500,3000"])):
        shots[name] = tmp_path / f"{name}.png"
        chromium(page, f"--screenshot={shots[name]}", "--window-size=1200,3000", *more)
        inked, size = look(shots[name])
        assert 0.02 < inked < 0.5, name
        assert size == ((500 if name == "phone" else 1200), 3000)
    ground = {name: Image.open(path).convert("L").getpixel((3, 3)) for name, path in shots.items()}
    assert ground["light"] == ground["phone"] == 255
    assert ground["dark"] < 40


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 400, 768, 1200])
@pytest.mark.parametrize("opened", [False, True])
def test_nothing_leaves_the_page(chromium, report, width, opened):
    said = measured(chromium, report[-1], width, opened)
    assert said["width"] == said["scroll"] == width
    assert said["out"] == []
    assert said["frames"] == 0
    assert len(said["svg"]) == 7
    assert min(said["svg"]) > 200


@pytest.mark.slow
def test_pictures_take_the_ink_of_the_page(chromium, report):
    light, dark = (measured(chromium, report[-1], 800, False, *more) for more in ([], ["--force-dark-mode"]))
    assert sum(map(int, re.findall(r"\d+", light["ground"])[:3])) == 3 * 255
    assert sum(map(int, re.findall(r"\d+", dark["ground"])[:3])) < 3 * 40
    brightness = [sum(map(int, re.findall(r"\d+", said["ink"])[:3])) for said in (light, dark)]
    assert brightness[0] < 3 * 130 < brightness[1]
