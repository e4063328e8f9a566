"""Digests of files' contents, kept for as long as the file system says that a file is the same.

Reading a large corpus only to know whether it is the one of yesterday takes minutes. So a digest is kept with the
file's real path, size, times of modification and of change, and inode, and made anew when one of them differs. The
time of modification alone would not do: programs that unpack or copy files set it back. Nobody can set back the time
of change. Clocks are coarse, so a digest is not kept while the last change is fresh.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from zoo.errors import ZooError

KEPT = 1_000_000
"""Bytes from which a digest is kept; smaller files are read as fast as what is kept."""
FRESH = 2_000_000_000
"""Nanoseconds after a change in which the next change could have the same time."""

Stamp = tuple[int, int, int, int]


def default_cache() -> Path:
    """The folder for what is made from data, where no other is given: $ZOO_CACHE or ~/.cache/zoo."""
    return Path(os.environ.get("ZOO_CACHE") or "~/.cache/zoo").expanduser()


def file_stamp(path: Path) -> Stamp:
    """Size, times of modification and of change in nanoseconds, and inode of a file.

    Raises ZooError where it cannot be read.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ZooError(f"The file {path} cannot be read: {error.strerror}.") from error
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def digest_file(path: Path, cache: Path | None = None) -> bytes:
    """SHA-256 of a file's contents, read or kept.

    Args:
        path: The file.
        cache: Folder in which digests of large files are kept; None reads every file.

    Raises ZooError where it cannot be read.
    """
    stamp = file_stamp(path)
    entry = None
    if cache is not None and stamp[0] >= KEPT:
        real = os.path.realpath(path)
        entry = cache / f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.json"
        if (kept := _read_entry(entry, real, stamp)) is not None:
            return kept
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ZooError(f"The file {path} cannot be read: {error.strerror}.") from error
    if entry is not None and time.time_ns() - stamp[2] > FRESH and file_stamp(path) == stamp:
        _write_entry(entry, {"path": real, "stamp": stamp, "digest": digest.hex()})
    return digest


def _read_entry(entry: Path, real: str, stamp: Stamp) -> bytes | None:
    try:
        kept = json.loads(entry.read_text())
        if kept["path"] == real and tuple(kept["stamp"]) == stamp:
            digest = bytes.fromhex(kept["digest"])
            return digest if len(digest) == 32 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _write_entry(entry: Path, content: dict[str, object]) -> None:
    """Write an entry whole or not at all; a cache that cannot be written only costs time."""
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, work = tempfile.mkstemp(dir=entry.parent, suffix=".part")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(content, file)
            Path(work).replace(entry)
        except OSError:
            Path(work).unlink(missing_ok=True)
            raise
