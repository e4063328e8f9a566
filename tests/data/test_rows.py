"""Rows of .jsonl and .parquet: what is no text is refused by file and line, streamed or not."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from zoo.data import corpus, rows
from zoo.errors import ZooError

GOOD = json.dumps({"text": "good ☃", "n": 1}).encode()


def texts(path: Path, streaming: bool, column: str = "text") -> list[str | None]:
    found = corpus.local(str(path), column, streaming, path.parent / "cache" / "rows").load()
    return [row["text"] for row in found]


def whole_archive() -> bytes:
    chance = random.Random(0)
    return gzip.compress(b"".join(b'{"text": "%030x"}\n' % chance.getrandbits(120) for _ in range(3000)))


BAD = {
    "number.jsonl": (GOOD + b'\n{"text": 17}\n', "line 2: the column 'text' holds a number, not text"),
    "truth.jsonl": (GOOD + b'\n\n{"text": true}\n', "line 3: the column 'text' holds true or false"),
    "list.jsonl": (GOOD + b'\n{"text": ["a", "b"]}\n', "line 2: the column 'text' holds a list"),
    "nested.jsonl": (GOOD + b'\n{"text": {"en": "a"}}\n', "line 2: the column 'text' holds an object"),
    "first.jsonl": (b'{"text": ["a"]}\n' + GOOD, "line 1: the column 'text' holds a list"),
    "array.jsonl": (b'[{"text": "a"}]\n', "line 1, is a list"),
    "bare.jsonl": (GOOD + b'\n"text"\n', "line 2, is text alone"),
    "half.jsonl": (GOOD + b'\n{"text": "a', "line 2, cannot be read as json"),
    "surrogate.jsonl": (GOOD + b'\n{"text": "a\\ud800"}\n', "line 2: the text holds half a surrogate pair"),
    "digits.jsonl": (b'{"text": "a", "n": ' + b"1" * 5000 + b"}\n", "line 1, cannot be read as json"),
    "deep.jsonl": (b'{"text": ' + b"[" * 200_000 + b"\n", "line 1, cannot be read as json"),
    "latin.jsonl": (GOOD + b'\n{"text": "caf\xe9"}\n', "line 2, is not UTF-8"),
    "sixteen.jsonl": (GOOD.decode().encode("utf-16"), "It looks like UTF-16"),
    "column.jsonl": (b'{"txt": "a"}\n' * 3, "has no column 'text'; its columns are: txt.   Try:  --data.column txt"),
    "short.jsonl.gz": (whole_archive()[:-2000], "is not a whole .gz archive"),
    "short.jsonl.xz": (lzma.compress(GOOD * 1000)[:-20], "is not a whole .xz archive"),
    "short.jsonl.bz2": (bz2.compress(GOOD * 1000)[:-20], "is not a whole .bz2 archive"),
    "other.jsonl.gz": (b"no archive", "is not a whole .gz archive"),
    "empty.parquet.gz": (gzip.compress(b""), "cannot be read as parquet"),
    "text.parquet": (b"PAR1 no PAR1", "cannot be read as parquet"),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named(tmp_path: Path, name: str, streaming: bool) -> None:
    content, sentence = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ZooError) as told:
        texts(tmp_path / name, streaming)
    assert sentence in str(told.value)
    assert name in str(told.value)
    assert not list(tmp_path.rglob("*.part")), "nothing unfinished is left"


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
def test_the_bad_one_of_several_is_named(tmp_path: Path, streaming: bool) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_bytes(GOOD + b"\n")
    (tmp_path / "1.jsonl").write_bytes(GOOD + b'\n{"text": 1.5}\n')
    with pytest.raises(ZooError, match=r"1\.jsonl, line 2"):
        texts(tmp_path / "*.jsonl", streaming)


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, streaming: bool) -> None:
    whole = tmp_path / "whole.parquet"
    table = pa.table({"text": [f"{number} " * 50 for number in range(500)]})
    pyarrow.parquet.write_table(table, whole, row_group_size=100, compression="zstd")
    content = whole.read_bytes()
    seen = 0
    for place in range(4, len(content) - 8, len(content) // 40):
        (tmp_path / "bad.parquet").write_bytes(content[:place] + b"\xff" * 8 + content[place + 8 :])
        with contextlib.suppress(ZooError):
            assert len(texts(tmp_path / "bad.parquet", streaming)) == 500
            continue
        with pytest.raises(ZooError, match=r"bad\.parquet"):
            texts(tmp_path / "bad.parquet", streaming)
        seen += 1
    assert seen > 10
    (tmp_path / "bad.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ZooError, match=r"bad\.parquet cannot be read as parquet"):
        texts(tmp_path / "bad.parquet", streaming)


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
def test_columns_of_parquet_that_are_no_text(tmp_path: Path, streaming: bool) -> None:
    table = pa.table({"text": [["a"], ["b"]], "bytes": pa.array([b"a", b"\xff"]), "n": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for column, sentence in (("text", "holds list"), ("n", "holds int64"), ("nn", "has no column 'nn'")):
        with pytest.raises(ZooError, match=sentence):
            texts(tmp_path / "a.parquet", streaming, column)
    bad = pa.array(["ok", "x"]).cast(pa.binary())
    bad = pa.StringArray.from_buffers(2, bad.buffers()[1], pa.py_buffer(b"ok\xff"))
    pyarrow.parquet.write_table(pa.table({"text": bad}), tmp_path / "b.parquet")
    with pytest.raises(ZooError, match=r"b\.parquet, rows 1 to 2, holds text that is not UTF-8"):
        texts(tmp_path / "b.parquet", streaming)


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_every_kind_of_text_is_read(tmp_path: Path, streaming: bool, kind: pa.DataType) -> None:
    said = [f"{number} ☃" if number % 7 else None for number in range(2500)]
    table = pa.table({"content": pa.array(said, pa.string()).cast(kind), "n": range(2500)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=900)
    assert texts(tmp_path / "a.parquet", streaming, "content") == said


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
def test_rows_without_text_are_rows(tmp_path: Path, streaming: bool) -> None:
    """They are left out later, and counted."""
    content = b'\xef\xbb\xbf{"n": 1}\r\n{"text": null}\r\n\r\n{"text": ""}\r\n{"text": "a\\r\\n"}'
    (tmp_path / "a.jsonl").write_bytes(content)
    assert texts(tmp_path / "a.jsonl", streaming) == [None, None, "", "a\r\n"]


def test_tables_end_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK", 100)
    said = [f"{number} " * (number % 30) for number in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in said))
    assert texts(tmp_path / "a.jsonl", False) == said
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes() + b"{\n")
    with pytest.raises(ZooError, match="line 201"):
        texts(tmp_path / "a.jsonl", True)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_rewritten_file_with_the_old_time_is_read_anew(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"

    def write(text: str) -> None:
        if suffix == ".jsonl":
            path.write_text(json.dumps({"text": text}) + "\n")
        else:
            pyarrow.parquet.write_table(pa.table({"text": [text]}), path)

    write("old text")
    os.utime(path, (1_600_000_000, 1_600_000_000))
    before = path.stat()
    assert texts(path, False) == ["old text"]
    write("new text")
    os.utime(path, (1_600_000_000, 1_600_000_000))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert texts(path, False) == ["new text"]


def test_a_damaged_cache_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n")
    assert texts(tmp_path / "a.jsonl", False) == ["good ☃"]
    (stored,) = (tmp_path / "cache" / "rows").iterdir()
    stored.write_bytes(b"damaged")
    assert texts(tmp_path / "a.jsonl", False) == ["good ☃"]


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    found = corpus.local(str(tmp_path / "a.txt"), "text")
    (tmp_path / "a.txt").write_text("another")
    with pytest.raises(ZooError, match=r"a\.txt was changed while it was read"):
        found.load()
