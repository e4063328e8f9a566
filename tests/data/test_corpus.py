"""Documents: every file format, every encoding, and a sentence for everything that is none."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import sysconfig
import tokenize
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet
import pytest

from zoo.data import corpus
from zoo.errors import ZooError


def texts(
    files: str | list[str], column: str = "text", streaming: bool = False, cache: Path | None = None
) -> list[str]:
    return [row["text"] for row in corpus.local(files, column, streaming, cache).load()]


@pytest.fixture
def rows() -> list[dict[str, object]]:
    return [{"text": "eins\r\nzwei", "n": 1}, {"text": "drei ☃", "n": 2}]


@pytest.fixture
def folder(tmp_path: Path, rows: list[dict[str, object]]) -> Path:
    """A folder with one file of each kind, and some that are not meant."""
    root = tmp_path / "texts"
    (root / "deep").mkdir(parents=True)
    (root / "a.txt").write_bytes("\ufeffwith a mark, ä\r\nline\n".encode())
    (root / "b.txt.xz").write_bytes(lzma.compress(b"packed in xz"))
    (root / "c.md.gz").write_bytes(gzip.compress(b"packed in gz"))
    (root / "deep" / "d.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'Gödel'\n".encode("latin-1"))
    (root / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "f.jsonl.xz").write_bytes(lzma.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    pa.parquet.write_table(pa.Table.from_pylist(rows), root / "g.parquet")
    (root / "picture.png").write_bytes(b"\x89PNG")
    (root / ".hidden.txt").write_text("hidden")
    return root


def test_a_folder_is_read_whole(folder: Path, rows: list[dict[str, object]], tmp_path: Path) -> None:
    said = [row["text"] for row in rows]
    found = texts(str(folder), cache=tmp_path / "cache")
    assert found == [
        "with a mark, ä\r\nline\n",
        "packed in xz",
        "packed in gz",
        "# -*- coding: latin-1 -*-\nname = 'Gödel'\n",
        *said,
        *said,
        *said,
    ]


@pytest.mark.parametrize("pattern", ["[abc]*", "*.jsonl*", "*.parquet"])
def test_a_stream_is_the_same_text(folder: Path, pattern: str, tmp_path: Path) -> None:
    files = str(folder / pattern)
    assert texts(files, streaming=True) == texts(files, cache=tmp_path / "cache")
    with pytest.raises(ZooError, match="holds json, parquet, text"):
        texts(str(folder), streaming=True)


def test_rows_of_different_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "id": 1}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"title": "b", "text": "b"}) + "\n")
    assert texts(str(tmp_path), cache=tmp_path / "cache") == ["a", "b"]
    (tmp_path / "c.jsonl").write_text("{")
    with pytest.raises(ZooError, match=r"The file \S*c.jsonl, line 1, cannot be read"):
        texts(str(tmp_path), cache=tmp_path / "cache")


def test_files_globs_and_lists(folder: Path) -> None:
    assert texts(str(folder / "*.gz")) == ["packed in gz"]
    assert texts([str(folder / "c.md.gz"), str(folder / "b*"), str(folder / "b.txt.xz")]) == [
        "packed in gz",
        "packed in xz",
    ]
    assert texts(str(folder / "**" / "*.py"))[0].endswith("Gödel'\n")


def test_a_digest_is_of_the_text_alone(tmp_path: Path) -> None:
    for name, content in (("one/a.txt", "x"), ("two/b.txt", "x"), ("three/a.txt", "y")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    one, two, three = (corpus.local(str(tmp_path / name), "text").digest for name in ("one", "two", "three"))
    assert one == two != three


def test_the_library_is_what_tokenize_opens() -> None:
    found = corpus.library()
    documents = list(found.load()["text"])
    root = Path(sysconfig.get_path("stdlib"))
    with tokenize.open(root / "argparse.py") as file:
        assert file.read() in documents
    paths = [path for path in root.rglob("*.py") if "site-packages" not in path.parts]
    assert len(documents) == len(paths) > 200
    assert sum(text is None for text in documents) <= 10
    assert found.digest == corpus.library().digest
    assert found.origin.startswith("the standard library of Python 3.")


def test_the_library_without_its_tests_and_with_foreign_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("foreign = 1\n")
    (tmp_path / "own.py").write_text("own = 1\n")
    (tmp_path / "bad.py").write_bytes(b"# coding: no-such-coding\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert list(corpus.library().load()["text"]) == [None, "own = 1\n"]


def bad(tmp_path: Path) -> dict[str, tuple[str, str]]:
    """What may be asked for, and the sentence that it gets."""
    empty = tmp_path / "empty"
    empty.mkdir()
    content = {
        "nothing.txt": b"",
        "latin.txt": b"caf\xe9",
        "cookie.py": b"# coding: no-such-coding\n",
        "broken.txt.xz": lzma.compress(b"text" * 100)[:-30],
        "broken.txt.gz": b"not packed",
        "broken.jsonl": b'{"text": "a"}\n{broken\n',
        "latin.jsonl": b'{"text": "caf\xe9"}\n',
        "other.jsonl": b'{"txt": "a", "id": 1}\n',
        "number.jsonl": b'{"text": 17}\n',
        "broken.parquet": b"PAR1 no",
    }
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    return {
        "missing.txt": ("There is no file, folder or match", "missing.txt"),
        "latin.tx": ("There is no file", "Near it: latin.txt"),
        "*.nothing": ("There is no file", "nothing"),
        "empty": ("holds no file that can be trained on", ".jsonl"),
        "nothing.txt": ("is empty", "nothing.txt"),
        "latin.txt": ("is not text that can be read", "UTF-8"),
        "cookie.py": ("is not text that can be read", "no-such-coding"),
        "broken.txt.xz": ("is not a whole .xz archive", "broken"),
        "broken.txt.gz": ("is not a whole .gz archive", "broken"),
        "broken.jsonl": ("line 2, cannot be read as json", "broken.jsonl"),
        "latin.jsonl": ("line 1, is not UTF-8", "latin.jsonl"),
        "other.jsonl": ("has no column 'text'; its columns are: txt, id", "--data.column txt"),
        "number.jsonl": ("line 1: the column 'text' holds a number, not text", "number.jsonl"),
        "broken.parquet": ("cannot be read as parquet", "broken.parquet"),
    }


@pytest.mark.parametrize(
    "name",
    [
        *("missing.txt", "latin.tx", "*.nothing", "empty", "nothing.txt", "latin.txt", "cookie.py"),
        *("broken.txt.xz", "broken.txt.gz", "broken.jsonl", "latin.jsonl", "other.jsonl", "number.jsonl"),
        "broken.parquet",
    ],
)
def test_bad_files_get_a_sentence(tmp_path: Path, name: str) -> None:
    sentences = bad(tmp_path)[name]
    with pytest.raises(ZooError) as told:
        texts(str(tmp_path / name), cache=tmp_path / "cache")
    for sentence in sentences:
        assert sentence in str(told.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unreachable_hub_gets_a_sentence(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ZooError, match="allenai/c4 cannot be loaded from the Hugging Face hub") as told:
        corpus.hub("allenai/c4", "en", "text", streaming)
    assert "--data.files PATH" in str(told.value)


def test_parts_of_a_published_data_set(tmp_path: Path) -> None:
    """A folder in the hub's own layout goes the hub's way: `load_dataset` takes either."""
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    found = corpus.hub(str(tmp_path), None, "text", False)
    assert list(found.load()["text"]) == ["train"]
    assert list(found.parts) == ["valid"]
    assert list(found.parts["valid"].load()["text"]) == ["validation"]
    with pytest.raises(ZooError, match="its columns are: text"):
        corpus.hub(str(tmp_path), None, "content", False).load()


def test_a_link_or_another_spelling_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "c.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "folder").symlink_to(tmp_path)
    assert texts(str(tmp_path)) == ["a", "b"]
    spelled = [str(tmp_path / "c.txt"), str(tmp_path / "folder" / ".." / tmp_path.name / "a.txt"), str(tmp_path)]
    assert texts(spelled) == ["a", "b"]
    assert corpus.local(str(tmp_path), "text").digest == corpus.local([str(tmp_path), *spelled], "text").digest


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
def test_a_folder_in_the_hubs_layout_is_known_by_its_contents(tmp_path: Path, streaming: bool) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache" / "rows"
    folder.mkdir()
    found = {}
    for text in ("old text", "new text"):
        (folder / "train.jsonl").write_text(json.dumps({"text": text}) + "\n")
        os.utime(folder / "train.jsonl", (1_600_000_000, 1_600_000_000))
        one = corpus.hub(str(folder), None, "text", streaming, cache)
        assert [row["text"] for row in one.load()] == [text]
        assert one.compared
        found[one.digest] = text
    assert len(found) == 2


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
def test_what_a_folder_holds_that_is_no_text_is_said(
    tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr(corpus, "rank_zero_info", said.append)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "sixteen.txt").write_text("a", "utf-16")
    assert texts(str(tmp_path), streaming=streaming) == ["a", None, None]
    told = capfd.readouterr().err if streaming else said[0]
    assert "latin.txt" in told
    assert "sixteen.txt" in told
    with pytest.raises(ZooError, match=r"(?s)sixteen.txt is not text .* It looks like UTF-16"):
        texts(str(tmp_path / "sixteen.txt"), streaming=streaming)
