"""Digests of contents: kept as long as the file is the same, made anew when anything of it differs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo.data import digests
from zoo.data.digests import digest_file
from zoo.errors import ZooError


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose digest is kept."""
    monkeypatch.setattr(digests, "KEPT", 10)
    monkeypatch.setattr(digests, "FRESH", -1)
    path = tmp_path / "large.jsonl"
    path.write_bytes(b"one text " * 10)
    return path


def reads(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each file that is read."""
    counted: list[None] = []
    real: Callable[..., object] = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *more: counted.append(None) or real(*more))
    return counted


def test_it_is_kept(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = reads(monkeypatch)
    expected = hashlib.sha256(large.read_bytes()).digest()
    assert digest_file(large, tmp_path / "kept") == digest_file(large, tmp_path / "kept") == expected
    assert len(counted) == 1
    (tmp_path / "link").symlink_to(large)
    assert digest_file(tmp_path / "link", tmp_path / "kept") == expected
    assert len(counted) == 1, "a link is the same file"
    assert digest_file(large) == expected
    assert len(counted) == 2


def rewrite(path: Path) -> None:
    path.write_bytes(b"two text " * 10)


def replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(b"two text " * 10)
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("change", [rewrite, replace])
def test_the_time_of_modification_may_be_set_back(large: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    os.utime(large, ns=(10**18, 10**18))
    before = digest_file(large, tmp_path / "kept")
    change(large)
    os.utime(large, ns=(10**18, 10**18))
    assert digest_file(large, tmp_path / "kept") == hashlib.sha256(large.read_bytes()).digest() != before


def test_nothing_is_kept_of_a_file_that_has_just_changed(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two changes within one tick of the clock have the same time."""
    monkeypatch.setattr(digests, "FRESH", 10**11)
    digest_file(large, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_damaged_entry_counts_for_nothing(large: Path, tmp_path: Path) -> None:
    expected = digest_file(large, tmp_path / "kept")
    (entry,) = (tmp_path / "kept").iterdir()
    for content in ("", "[]", "{", '{"path": 1}', entry.read_text().replace('"digest": "', '"digest": "00')):
        entry.write_text(content)
        assert digest_file(large, tmp_path / "kept") == expected


def test_what_cannot_be_read_or_kept(large: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file where a folder should be")
    assert digest_file(large, tmp_path / "kept") == digest_file(large)
    with pytest.raises(ZooError, match="missing cannot be read"):
        digest_file(tmp_path / "missing")
