"""Rows of .jsonl and .parquet files: one column of text, each value checked, each fault named by file and line.

The readers of `datasets` guess: a column that mixes text and numbers becomes JSON, a file cut short ends in a
traceback, and their cache knows a file by its time of modification, which may be set back. Here a value is text or
nothing, everything else is refused, and what is kept of a file is kept under the digest of its contents. The bounds of
tables are those of `datasets`, by which checkpoints of streams count their places.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset, DatasetInfo, Features, IterableDataset, Value
from datasets.iterable_dataset import ArrowExamplesIterable

from zoo import lock
from zoo.errors import ZooError, listing, near

CHUNK = 10 << 20
"""Bytes of a .jsonl file that make one table, as in `datasets`."""
SLICE = 1000
"""Rows of a .parquet table that are converted at once: text of 2 GiB in one array has no 32-bit offsets."""
SCHEMA = pa.schema([("text", pa.string())])
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, ValueError)
"""What compressed files raise that are damaged or cut short."""


def open_packed(path: Path) -> Any:
    """A file for reading, unpacked where its name ends in .gz, .xz or .bz2."""
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".xz":
        return lzma.open(path)
    if path.suffix == ".bz2":
        return bz2.open(path)
    return path.open("rb")


def name_encoding(raw: bytes) -> str:
    """' It looks like UTF-16. ...' where bytes begin as such a file does; empty otherwise."""
    for mark, name in ((b"\xff\xfe\0\0", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if raw.startswith(mark):
            return f" It looks like {name}, which  iconv -f {name} -t UTF-8  converts."
    return ""


def stream_rows(paths: list[str], kind: str, column: str) -> IterableDataset:
    """The rows of files of one kind, 'json' or 'parquet', with the one column `text`, a file a shard."""
    tables: Any = ArrowExamplesIterable(read_tables, {"paths": paths, "kind": kind, "column": column})
    rows = IterableDataset(tables, info=DatasetInfo(features=Features({column: Value("string")})))
    rows = rows.select_columns([column])
    return rows.rename_column(column, "text") if column != "text" else rows


def load_rows(paths: list[str], kind: str, column: str, stored: Path) -> Dataset:
    """The rows of files of one kind, with the one column `text`, mapped from an Arrow file.

    Args:
        paths: The files.
        kind: 'json' or 'parquet'.
        column: Their column of text.
        stored: The Arrow file, named by the digest of the contents; it is written where it is missing or damaged.
    """
    if stored.is_file():
        try:
            return Dataset.from_file(str(stored))
        except (pa.ArrowException, OSError, ValueError):
            pass  # written anew
    try:
        stored.parent.mkdir(parents=True, exist_ok=True)
        lock.remove_left_overs(stored.parent)
    except OSError as error:
        raise ZooError(f"The cache {stored.parent} cannot be written: {error}.   Try:  --data.cache FOLDER") from error
    with (
        lock.writing(stored) as work,
        lock.showing_life(work),
        work.open("wb") as file,
        pa.ipc.new_stream(file, SCHEMA) as writer,
    ):
        for _, table in read_tables(paths, kind, column):
            writer.write_table(table.rename_columns(["text"]))
    return Dataset.from_file(str(stored))


def read_tables(paths: list[str], kind: str, column: str) -> Iterator[tuple[str, pa.Table]]:
    """Tables of the one column, each with a key.

    Raises ZooError where a file is damaged, has no such column, or has anything but text in it.
    """
    read = _read_json if kind == "json" else _read_parquet
    for number, name in enumerate(paths):
        for count, texts in enumerate(read(Path(name), column)):
            yield f"{number}_{count}", pa.table({column: texts})


def _read_json(path: Path, column: str) -> Iterator[pa.Array]:
    number = 0
    named: dict[str, None] = {}
    known = False
    for chunk in _chunks(path):
        texts: list[str | None] = []
        lines = chunk.split(b"\n")
        for line in lines[:-1] if not lines[-1] else lines:
            number += 1
            if not line.strip():
                continue
            row = _parse(path, number, line)
            if column in row:
                known = True
            elif not known:
                named |= dict.fromkeys(row)
            texts.append(_checked(path, number, column, row.get(column)))
        if texts and not known:
            raise _missing_column(path, column, list(named))
        if texts:
            yield pa.array(texts, pa.string())


def _chunks(path: Path) -> Iterator[bytes]:
    """Whole lines of a file, about `CHUNK` bytes at once."""
    try:
        with open_packed(path) as file:
            first = True
            while chunk := file.read(CHUNK):
                if first and chunk.startswith(b"\xef\xbb\xbf"):
                    chunk = chunk[3:]
                if first and (hint := name_encoding(chunk)):
                    raise ZooError(f"The file {path} is not UTF-8.{hint}")
                first = False
                yield chunk + file.readline()
    except BROKEN as error:
        if path.suffix in (".gz", ".xz", ".bz2"):
            raise ZooError(f"The file {path} is not a whole {path.suffix} archive: {error}.") from error
        raise ZooError(f"The file {path} cannot be read: {error}.") from error


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ZooError(f"The file {path}, line {number}, is not UTF-8: {error}.") from error
    except json.JSONDecodeError as error:
        raise ZooError(
            f"The file {path}, line {number}, cannot be read as json: {error.msg} at character {error.pos + 1}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ZooError(f"The file {path}, line {number}, cannot be read as json: {error}.") from error
    if not isinstance(row, dict):
        raise ZooError(
            f"The file {path}, line {number}, is {_kind_of(row)}; a line of .jsonl is an object, such as "
            '{"text": "..."}.'
        )
    return row


def _checked(path: Path, number: int, column: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ZooError(f"The file {path}, line {number}: the column {column!r} holds {_kind_of(value)}, not text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ZooError(
            f"The file {path}, line {number}: the text holds half a surrogate pair at character {error.start + 1}, "
            "which is no character."
        ) from error
    return value


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text alone"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else "null"


def _missing_column(path: Path, column: str, names: list[str]) -> ZooError:
    close = near(column, names)
    guess = close[0] if close else "text" if "text" in names else names[0] if names else ""
    way = f"   Try:  --data.column {guess}" if guess else ""
    return ZooError(f"{path} has no column {column!r}; its columns are: {listing(names[:50])}.{way}")


def _read_parquet(path: Path, column: str) -> Iterator[pa.ChunkedArray]:
    start = 1
    try:
        source: Any = path
        if path.suffix in (".gz", ".xz", ".bz2"):
            with open_packed(path) as packed:
                source = pa.BufferReader(packed.read())
        with pyarrow.parquet.ParquetFile(source, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            if column not in schema.names:
                raise _missing_column(path, column, schema.names)
            kind = schema.field(column).type
            value = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
                raise ZooError(f"The column {column!r} of {path} holds {kind}, not text.")
            groups = range(file.metadata.num_row_groups)
            most = max(1, file.metadata.row_group(0).num_rows) if groups else 1
            for group in groups:
                for batch in file.iter_batches(most, row_groups=[group], columns=[column]):
                    if len(batch):
                        yield _as_strings(path, start, batch.column(0))
                        start += len(batch)
    except (pa.ArrowException, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ZooError(f"The file {path} cannot be read as parquet: {reason}.") from error


def _as_strings(path: Path, start: int, texts: pa.Array) -> pa.ChunkedArray:
    """Text with 32-bit offsets, all of it UTF-8; `start` is the number of the first row in its file."""
    slices = []
    for first in range(0, len(texts), SLICE):
        part = texts.slice(first, SLICE)
        try:
            part.validate(full=True)
            slices.append(part.cast(pa.string()))
        except pa.ArrowInvalid as error:
            reason = " ".join(str(error).split())
            raise ZooError(
                f"The file {path}, rows {start + first} to {start + first + len(part) - 1}, holds text that is not "
                f"UTF-8: {reason}."
            ) from error
    return pa.chunked_array(slices, pa.string())
