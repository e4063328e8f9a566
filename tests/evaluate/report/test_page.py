"""The page of made-up runs: nothing is lost, nothing is hidden, nothing is markup."""

import copy
import html
import json
import re

import pytest

from zoo.errors import ZooError
from zoo.evaluate.grids import TITLES
from zoo.evaluate.report import table, write


def strings(value) -> list[str]:
    if isinstance(value, dict):
        return [each for inner in value.values() for each in strings(inner)]
    if isinstance(value, list):
        return [each for inner in value for each in strings(inner)]
    return [value] if isinstance(value, str) else []


def test_every_number_is_there(made, report):
    document, page, _, _ = report
    assert len(made.numbers(document)) > 2500
    assert made.missing(document, page.text) == []
    lost = copy.deepcopy(document)
    lost["results"][0]["value"]["nats"] = 98765.4
    assert made.missing(lost, page.text) == [98765.4], "the test can fail"


def test_every_word_is_there(made, report):
    """Names, reasons of refusals, of tasks that do not fit and of those that are absent, settings."""
    document, page, _, _ = report
    words = {re.sub(r"\s+", " ", each) for each in strings({k: v for k, v in document.items() if k != "kind"})}
    assert {made.ENDS, made.SHIFTED, made.CARTOON} < words
    assert [each for each in words if each not in page.text and each not in dict(made.SECTIONS)] == []
    assert page.text.count(made.ENDS) == 8, "once in each measure"
    assert "(learned at 256, 512, 1024, 2048)" in page.text
    assert "cwe: fope, rope, alibi," in page.text
    assert "offset 1920: learned at 2048" in page.text


def test_sections_pictures_and_nothing_from_elsewhere(made, report):
    _, page, text, folder = report
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert ids == ["summary", *(name for name, _ in made.SECTIONS), "about"]
    assert all(title in page.text for _, title in made.SECTIONS)
    labels = [attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg"]
    assert labels == [title for _, title in made.SECTIONS[:7]]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    sources = {attrs[key] for _, attrs in page.tags for key in ("src", "href", "xlink:href") if key in attrs}
    assert all(each.startswith("#") for each in sources)
    assert not re.findall(r"url\((?!#)|@import|https?://", re.sub(r'xmlns(:xlink)?="[^"]*"', "", text))
    named = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert {each[1:] for each in sources} <= set(named), "links lead somewhere"
    used = set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(named)
    assert sorted(path.stem for path in folder.glob("*.png")) == sorted(name for name, _ in made.SECTIONS[:7])


def test_names_are_never_markup(made, report, tmp_path):
    _, page, text, _ = report
    assert made.CARTOON not in text
    assert "<script" not in text
    assert html.escape(made.CARTOON, quote=True) in text
    assert made.CARTOON in page.text
    nasty = made.rich(('"><img src=x onerror=y>', "a & b $x_1$ \\frac", "--><b>"), made.ALL[:5], made.LENGTHS[:2])
    nasty["text"]["origin"] = "</style></title><script>1</script>"
    nasty["results"].append({"checkpoint": "--><b>", "measure": "</h2><i>", "length": 3, "value": {"<u>": "<s>"}})
    nasty["results"].append({"checkpoint": "--><b>", "measure": "ruler", "length": 3, "refused": "<em>no</em> & why"})
    page, _ = made.page(nasty, tmp_path)
    assert not {"img", "b", "script", "u", "s", "em"} & {tag for tag, _ in page.tags}
    assert "<em>no</em> & why" in page.text


def shuffled(value):
    """The same document, written in another order of keys."""
    if isinstance(value, dict):
        return {key: shuffled(each) for key, each in reversed(value.items())}
    return [shuffled(each) for each in value] if isinstance(value, list) else value


def test_equal_documents_are_equal_bytes(made, report, tmp_path):
    document, _, _, folder = report
    again = shuffled(json.loads(json.dumps(document)))
    assert again == document
    written = write(again, tmp_path)
    assert [path.name for path in written] == ["report.html", *(f"{name}.png" for name, _ in made.SECTIONS[:7])]
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in written)
    again["settings"]["lengths"] = tuple(again["settings"]["lengths"])  # before it was written and read
    assert write(again, tmp_path)[0].read_bytes() == (folder / "report.html").read_bytes()
    other = copy.deepcopy(document)
    other["results"][0]["value"]["perplexity"] += 1
    assert write(other, tmp_path)[1].read_bytes() != (folder / "perplexity.png").read_bytes()


def test_pngs_are_pictures(made, report):
    folder = report[-1]
    for path in folder.glob("*.png"):
        inked, (width, height) = made.look(path)
        assert 0.003 < inked < 0.7, path.name
        assert width == 1184
        assert 300 < height < 4000


@pytest.mark.parametrize("measure", TITLES)
def test_each_measure_by_itself(made, measure, tmp_path):
    document = made.rich(("fope", "learned"), [measure], [16, 24, 32] if measure == "resolution" else made.LENGTHS)
    page, _ = made.page(document, tmp_path)
    assert made.missing(document["results"], page.text) == []
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == ["summary", measure, "about"]
    assert len(list(tmp_path.glob("*.png"))) == (measure not in ("longppl", "redundancy"))
    refused = [each for each in document["results"] if "refused" in each]
    assert page.text.count("n/a, and why:") == bool(refused) + (measure in ("ruler", "offset") and not refused)


@pytest.mark.parametrize("count", [0, 1, 13, 90])
def test_an_interrupted_run(made, count, tmp_path):
    document = made.rich()
    del document["results"][count:]
    page, _ = made.page(document, tmp_path)
    assert made.missing(document, page.text) == []
    seen = {each["measure"] for each in document["results"]}
    waiting = [title for name, title in made.SECTIONS if name not in seen]
    said = f"Not measured yet: {', '.join(waiting)}."
    assert (said in page.text) == bool(waiting)
    assert ("There are no results: nothing has been measured." in page.text) == (count == 0)
    assert table(document)


def test_everything_refused(made, tmp_path):
    document = made.rich()
    for each in document["results"]:
        each.pop("value", None)
        each["refused"] = "No luck today."
    page, _ = made.page(document, tmp_path)
    assert "0 measured, 132 refused" in page.text
    assert page.text.count("No luck today.") == len(made.ALL)
    assert not list(tmp_path.glob("*.png"))
    assert "n/a: No luck today. (fope, rope, alibi, learned at 128, 256, 512, 1024, 2048)" in table(document)


def test_no_interval_and_no_number(made, tmp_path):
    document = made.rich(("fope",))
    for each in document["results"]:
        if "value" in each:
            each["value"] |= {key: None for key in ("low", "high", "mean") if key in each["value"]}
    page, _ = made.page(document, tmp_path)
    assert made.missing(document, page.text) == []
    assert "None" not in page.text
    assert "How far does it read?" in page.text
    assert "RULER: mean score, 100 is best\n  tokens  128  256  512  1024  2048\n  fope      –" in table(document)


def test_a_document_of_almost_nothing(made, tmp_path):
    page, _ = made.page({"results": []}, tmp_path / "deep" / "er")
    assert "There are no results" in page.text
    assert table({"results": []}) == "Nothing has been measured."


def test_other_versions_and_measures(made, tmp_path):
    """What this report does not know is listed all the same."""
    document = made.rich(("fope",), ["longppl"])
    document["results"] += [
        {"checkpoint": "late", "measure": "taste", "length": 7, "value": {"sweet": 4321.5, "by": {"tongue": 17.25}}},
        {"checkpoint": "fope", "measure": "perplexity", "length": 7, "value": {"ppl": 55.5}},
    ]
    page, _ = made.page(document, tmp_path)
    assert made.missing(document, page.text) == []
    assert "by.tongue" in page.text
    assert "taste" in table(document)


def test_ten_checkpoints_keep_their_colours(made, tmp_path):
    """A checkpoint has the colour of its place in the document in every picture, whoever else has made.numbers."""
    document = made.rich([f"m{at}" for at in range(10)], ["perplexity", "position"])
    _, text = made.page(document, tmp_path)
    marks = re.findall(r'<i class="dot" style="color:(#\w+);background:(#?\w+)"></i>(m\d)', text)
    looks = {name: (color, ground) for color, ground, name in marks}
    assert len(looks) == len(set(looks.values())) == 10
    assert all(looks[name] == (color, ground) for color, ground, name in marks)
    alone = {**document, "results": [each for each in document["results"] if each["checkpoint"] in ("m3", "m8")]}
    _, text = made.page(alone, tmp_path)
    named = dict(re.findall(r'<text style="[^"]*fill: (#\w+)[^>]*>\s*(m\d)', text))
    assert {name: color for color, name in named.items()} == {name: looks[name][0] for name in ("m3", "m8")}


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match=r"cannot be written to .*file: File exists\. Name a folder"):
        write({"results": []}, tmp_path / "file")
