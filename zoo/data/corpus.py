"""Where documents come from: files, the Hugging Face hub, or the standard library that every Python brings along.

A corpus is a Hugging Face data set with one column `text`, one row a document, and a digest that says which text it
is: of the files' bytes, not their names or dates, so that the same corpus has the same digest on any machine. Files
are read here and not by `datasets`, since Python sources state their own encoding; rows of .jsonl and .parquet are
read by `zoo.data.rows`. What was found by searching a folder may be skipped where it is no text, and is counted; what
was asked for by name may not. Files are told apart by their real paths: a link, or another spelling, is the same file.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import io
import lzma
import os
import platform
import re
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pyarrow
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, Value
from lightning.pytorch.utilities import rank_zero_info

from zoo.data.digests import Stamp, default_cache, digest_file, file_stamp
from zoo.data.rows import BROKEN, load_rows, name_encoding, open_packed, stream_rows
from zoo.errors import ZooError, listing, near

PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
    ".bz2": bz2.decompress,
}
ROWS = {".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
PROSE = (".txt", ".text", ".md", ".rst", ".tex", ".raw", ".tokens", ".xml", ".html")
SOURCE = (".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".js", ".ts", ".rb", ".jl", ".sh")
LOCAL = "--data.files PATH  trains on local files (.txt, .jsonl, .parquet, or a folder of them)"


@dataclass(frozen=True)
class Corpus:
    """Documents that can be loaded, and what they are.

    Args:
        origin: what the log calls them.
        digest: the same for the same text.
        load: makes the data set, with the one column `text`.
        parts: the parts that the data set's makers set aside, 'valid' and 'test', where they did.
        compared: whether the digest is one of contents; otherwise it is one of names.
        files: the names of files, where contents are not compared or the order of files counts.
        revision: of a data set of the hub, where it is known.
    """

    origin: str
    digest: str
    load: Callable[[], Dataset | IterableDataset]
    parts: dict[str, Corpus]
    compared: bool = True
    files: list[str] = field(default_factory=list)
    revision: str | None = None


def library() -> Corpus:
    """The standard library's own sources, with its tests where they are installed, without site-packages."""
    foreign = frozenset({"site-packages", "dist-packages", "__pycache__"})
    paths = _distinct(_walk(Path(sysconfig.get_path("stdlib")), (".py",), foreign))
    origin = f"the standard library of Python {platform.python_version()}"
    return Corpus(origin, _digest(paths, ""), lambda: _documents(paths, named=set()), {})


def local(files: str | list[str], column: str, streaming: bool = False, cache: Path | None = None) -> Corpus:
    """Files, folders and globs: one file a document, or one row where the file is .jsonl or .parquet."""
    asked = [files] if isinstance(files, str) else files
    paths, named = _find(asked)
    if streaming and len(kinds := {_kind(path) or "text" for path in paths}) > 1:
        # The places in a chain of streams that are shared among processes cannot be stored (datasets 5.2).
        raise ZooError(
            f"A stream is of one kind of files; {listing(asked)} holds {listing(sorted(kinds))}.\n"
            "  Try a glob for one of them, such as  --data.files 'FOLDER/*.jsonl', or do without --data.streaming."
        )
    if empty := sorted(path for path in named if not path.stat().st_size):
        raise ZooError(f"The file {empty[0]} is empty.   Try another file for --data.files.")
    cache = cache or default_cache() / "rows"
    grouped = {kind: [path for path in paths if _kind(path) == kind] for kind in (None, "json", "parquet")}
    stamps = {path: file_stamp(path) for path in paths}
    kept = cache.parent / "digests"

    def load() -> Dataset | IterableDataset:
        found: list[Any] = []
        if plain := grouped[None]:
            found.append(_stream(plain, named) if streaming else _documents(plain, named))
        for kind in ("json", "parquet"):
            if not (chosen := grouped[kind]):
                continue
            names = [str(path) for path in chosen]
            if streaming:
                found.append(stream_rows(names, kind, column))
            else:
                digest = _digest(chosen, f"{kind} {column}", kept)
                found.append(load_rows(names, kind, column, cache / f"{kind}-{digest}.arrow"))
        if not streaming:
            _check_unchanged(stamps)
        return found[0] if len(found) == 1 else datasets.concatenate_datasets(found)

    digest = _digest(paths, column, kept)
    return Corpus(listing(asked), digest, load, {}, files=[path.name for path in paths] if streaming else [])


def _check_unchanged(stamps: dict[Path, Stamp]) -> None:
    """Raise ZooError where a file was changed after its digest was taken: the digest would name another text."""
    for path, stamp in stamps.items():
        if file_stamp(path) != stamp:
            raise ZooError(f"The file {path} was changed while it was read.   Try again when nothing writes to it.")


def hub(name: str, subset: str | None, column: str, streaming: bool, cache: Path | None = None) -> Corpus:
    """A data set of the Hugging Face hub, with the parts that its makers set aside for validation and test.

    A folder in the hub's layout is taken too. Its tables are kept under the digest of its files' contents.
    """
    own, contents = None, ""
    if os.path.isdir(name):
        paths = sorted(path for path in Path(name).rglob("*") if path.is_file() and not path.name.startswith("."))
        root = cache or default_cache() / "rows"
        contents = _digest(paths, "", root.parent / "digests")
        own = str(root / f"folder-{contents}")
    with reach(name):
        found = datasets.load_dataset(name, subset, streaming=streaming, cache_dir=own)
    assert isinstance(found, (DatasetDict, IterableDatasetDict))
    return _published(found, f"{name} ({subset})" if subset else name, column, streaming, contents)


def _published(
    found: DatasetDict | IterableDatasetDict, origin: str, column: str, streaming: bool, contents: str
) -> Corpus:
    spelled = {"valid": ("validation", "valid", "val", "dev"), "test": ("test",)}
    given = {part: next((name for name in names if name in found), None) for part, names in spelled.items()}
    first = "train" if "train" in found else next(iter(found))

    def corpus(split: str, parts: dict[str, Corpus]) -> Corpus:
        rows = found[split]
        revision, files = find_source_files(rows) if streaming else (find_source_files(rows)[0], [])
        # A stream has no digest of its own: its name and version are all that is known before it has been read.
        digest = f"{origin} {split} {rows.info.version}" if streaming else rows._fingerprint
        digest = f"{split} {contents}" if contents else digest
        compared = bool(contents) or not streaming
        load = lambda: _only(rows, column, origin)  # noqa: E731
        return Corpus(origin, _hash(digest, column), load, parts, compared, files, revision)

    return corpus(first, {part: corpus(name, {}) for part, name in given.items() if name not in (None, first)})


HUB_FILE = re.compile(r"hf://datasets/[^@]+@([^/]+)/(.+)")


def find_source_files(rows: Any) -> tuple[str | None, list[str]]:
    """The revision of a hub's data set and the names of its files, as far as the data set tells them."""
    words = list((rows.info.download_checksums or {}).keys())
    layer = getattr(rows, "_ex_iterable", None)
    while layer is not None:
        words += _strings(getattr(layer, "kwargs", None))
        layer = getattr(layer, "ex_iterable", None)
    matches = [match for word in words if (match := HUB_FILE.search(word))]
    names = [match[2] for match in matches] if matches else [Path(word).name for word in words if "/" in word]
    return matches[0][1] if matches else None, list(dict.fromkeys(names))


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [word for each in value.values() for word in _strings(each)]
    if isinstance(value, list | tuple):
        return [word for each in value for word in _strings(each)]
    return []


def read(path: Path) -> str:
    """The text of one file, as `tokenize.open` reads Python sources, as UTF-8 otherwise.

    Raises UnicodeDecodeError or SyntaxError where it is no such text.
    """
    raw = path.read_bytes()
    if unpack := PACKED.get(path.suffix):
        try:
            raw = unpack(raw)
        except BROKEN as error:
            raise ZooError(f"The file {path} is not a whole {path.suffix} archive: {error}.") from error
    if _suffix(path) != ".py":
        return raw.decode("utf-8-sig")
    encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    return io.TextIOWrapper(io.BytesIO(raw), encoding).read()


def _suffix(path: Path) -> str:
    """The suffix below that of the compression: 'a.jsonl.xz' is a .jsonl."""
    return (Path(path.stem) if path.suffix in PACKED else path).suffix.lower()


def _kind(path: Path) -> str | None:
    return ROWS.get(_suffix(path))


def _walk(folder: Path, suffixes: tuple[str, ...], foreign: frozenset[str] = frozenset()) -> list[Path]:
    """The files below a folder that have such a suffix, hidden and foreign folders left out."""
    found: list[Path] = []
    for top, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if name not in foreign and not name.startswith(".")]
        paths = (Path(top, name) for name in names if not name.startswith("."))
        found += [path for path in paths if _suffix(path) in suffixes and path.is_file()]
    return sorted(found)


def _find(asked: list[str]) -> tuple[list[Path], set[Path]]:
    """Every file meant, each once and in a fixed order, and those of them that were asked for by name."""
    paths: list[Path] = []
    named: set[Path] = set()
    usable = (*PROSE, *SOURCE, *ROWS)
    for word in asked:
        path = Path(word).expanduser()
        if path.is_file():
            named.add(path)
            paths.append(path)
            continue
        matches = [path] if path.is_dir() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            parent = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
            close = f" Near it: {listing(near(path.name, parent))}." if near(path.name, parent) else ""
            raise ZooError(f"There is no file, folder or match for --data.files {word}.{close}")
        inside = [[m] if m.is_file() else _walk(m, usable) for m in matches]
        if not any(inside):
            raise ZooError(
                f"The folder {word} holds no file that can be trained on.\n"
                f"  Read are: {listing(usable)}, each also as {listing(PACKED)}."
            )
        paths += [found for some in inside for found in some]
    paths = _distinct(paths)
    real = {os.path.realpath(path) for path in named}
    return paths, {path for path in paths if os.path.realpath(path) in real}


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """The paths in their order, one for each real file."""
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _digest(paths: list[Path], column: str, kept: Path | None = None) -> str:
    total = hashlib.sha256(column.encode())
    for path in paths:
        total.update(digest_file(path, kept))
    return total.hexdigest()[:16]


def _hash(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]


def _texts(paths: list[str], named: list[str] | tuple[str, ...], tell: bool = False) -> Iterator[dict[str, str | None]]:
    """The text of each file; None for one that was found in a folder and is no text, which `tell` prints."""
    for word in paths:
        try:
            text: str | None = read(Path(word))
        except (UnicodeDecodeError, SyntaxError) as error:
            if word in named:
                with open_packed(Path(word)) as file:
                    hint = name_encoding(file.read(4))
                raise ZooError(
                    f"The file {word} is not text that can be read: {error}.{hint}\n"
                    "  Text is read as UTF-8, Python sources in the encoding that they declare."
                ) from error
            text = None
            if tell:
                print(f"zoo: {word} is not text that can be read, and is left out: {error}", file=sys.stderr)
        except OSError as error:
            raise ZooError(f"The file {word} cannot be read: {error.strerror or error}.") from error
        yield {"text": text}


def _documents(paths: list[Path], named: set[Path]) -> Dataset:
    """In memory: plain files are read anew by each run that has no tokens of them yet, and never copied."""
    rows = list(_texts([str(path) for path in paths], [str(path) for path in named]))
    if unread := [path.name for path, row in zip(paths, rows, strict=True) if row["text"] is None]:
        more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        rank_zero_info(f"Left out, not text that can be read: {listing(unread[:5])}{more}")
    return Dataset.from_dict({"text": [row["text"] for row in rows]}, features=datasets.Features(text=Value("string")))


def _stream(paths: list[Path], named: set[Path]) -> IterableDataset:
    # `datasets` takes every list for shards, and they must be of one length: the names are one tuple.
    words = {"paths": [str(path) for path in paths], "named": tuple(str(path) for path in named), "tell": True}
    return IterableDataset.from_generator(_texts, features=datasets.Features(text=Value("string")), gen_kwargs=words)


def _only(rows: Any, column: str, origin: str) -> Any:
    """The one column, called `text`; a wrong name is answered with the right ones."""
    names = rows.column_names
    if names is not None and column not in names:
        close = near(column, names)
        guess = close[0] if close else "text" if "text" in names else names[0]
        raise ZooError(
            f"{origin} has no column {column!r}; its columns are: {listing(names)}.   Try:  --data.column {guess}"
        )
    kind = rows.features[column].dtype if rows.features else "string"
    if kind not in ("string", "large_string", "string_view"):
        raise ZooError(f"The column {column!r} of {origin} holds {kind}, not text.   Columns: {listing(names or ())}.")
    rows = rows.select_columns([column])
    rows = rows.rename_column(column, "text") if column != "text" else rows
    if isinstance(rows, Dataset):
        try:
            rows.data.column("text").validate(full=True)
        except pyarrow.ArrowException as error:
            raise ZooError(f"{origin} holds text that is not UTF-8: {error}.") from error
    return rows.cast_column("text", Value("string")) if kind != "string" else rows


@contextmanager
def reach(name: str) -> Iterator[None]:
    """One sentence where the hub cannot be reached and nothing was downloaded before, without minutes of retries."""
    import huggingface_hub.constants
    import requests

    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    if not offline and not os.path.exists(name):
        try:
            requests.head(huggingface_hub.constants.ENDPOINT, timeout=5)
        except requests.RequestException:
            offline = True
    try:
        with (
            mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", offline),
            mock.patch.object(datasets.config, "HF_HUB_OFFLINE", offline),
        ):
            yield
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ZooError(
            f"The data set {name} cannot be loaded from the Hugging Face hub: {reason.rstrip('.')}.\n  {LOCAL}."
        ) from error
