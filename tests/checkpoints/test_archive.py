"""Archives: what is written here, torch and zipfile read; what torch writes is found where it lies."""

import pickle
import random
import struct
import zipfile

import pytest
import torch

from zoo.checkpoints import archive
from zoo.checkpoints.stored import BUFFER, Run, Stored, Weights, cut
from zoo.errors import ZooError


def drawn(dtype, *shape):
    bits = torch.randint(0, 2 if dtype is torch.bool else 100, shape)
    return bits.to(dtype)


KINDS = {str(kind): drawn(kind, 3, 5) for kind in archive.STORAGES}
ODD = {
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "long": torch.arange(BUFFER // 2 + 7),
    "flat": torch.ones(1),
}


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_what_is_written(tmp_path, mapped):
    weights = KINDS | ODD
    stored = {name: Stored.of(value) for name, value in weights.items()}
    content = {
        "state_dict": stored | {"again": Stored.of(weights["long"])},
        "n": 1 << 70,
        "x": [None, True, "ü", (1.5,)],
    }
    archive.save(content, tmp_path / "x.ckpt")
    found = torch.load(tmp_path / "x.ckpt", weights_only=True, mmap=mapped)
    assert found["n"] == 1 << 70
    assert found["x"] == [None, True, "ü", (1.5,)]
    state = found["state_dict"]
    for name, value in weights.items():
        assert torch.equal(state[name], value), name
        assert (state[name].dtype, state[name].shape) == (value.dtype, value.shape)
    assert state["again"].data_ptr() == state["long"].data_ptr()


def test_the_file_is_a_sound_zip_and_aligned(tmp_path):
    weights = KINDS | ODD
    archive.save({name: Stored.of(value) for name, value in weights.items()}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as found:
        assert found.testzip() is None
        assert {info.compress_type for info in found.infolist()} == {zipfile.ZIP_STORED}
        assert sum("/data/" in name for name in found.namelist()) == len(weights)
    starts = archive.records(tmp_path / "x.pt")
    assert len(starts) == len(weights) + 3
    assert {start % 64 for start in starts} == {0}
    assert archive.save({}, tmp_path / "none.pt") is None
    assert torch.load(tmp_path / "none.pt", weights_only=True) == {}


def test_a_type_that_has_no_name(tmp_path):
    with pytest.raises(ZooError, match="complex64 cannot be written"):
        archive.save({"a": Stored.of(torch.zeros(2, dtype=torch.complex64))}, tmp_path / "x.pt")


@pytest.mark.parametrize("buffer", [3, BUFFER])
def test_tensors_are_found_where_torch_wrote_them(tmp_path, monkeypatch, buffer):
    monkeypatch.setattr("zoo.checkpoints.stored.BUFFER", buffer)
    whole = torch.randn(6, 8)
    views = {
        "whole": whole,
        "rows": whole[2:4],
        "columns": whole[:, 3:5],
        "turned": whole.t(),
        "spread": whole[:1].expand(4, 8),
        "one": whole[5, 7],
        "tied": whole,
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "half": torch.randn(5).bfloat16(),
        "empty": torch.zeros(0),
    }
    torch.save({"deep": [views], "other": torch.randn(100)}, tmp_path / "x.pt")
    found = archive.Archive(tmp_path / "x.pt")
    stored = {name: found.stored(value) for name, value in found.content["deep"][0].items()}
    weights = Weights(stored)
    assert list(weights) == list(views)
    for name, value in views.items():
        assert torch.equal(weights[name], value), name
        assert stored[name].size == value.numel() * value.itemsize
        assert (stored[name].meta.shape, stored[name].meta.dtype) == (value.shape, value.dtype)
    assert stored["tied"] == stored["whole"]
    assert stored["rows"] != stored["whole"]
    raw = bytes(whole.flatten().view(torch.uint8).numpy())
    assert stored["whole"].page(10, 20) == raw[10:30]
    assert stored["whole"].page(len(raw) - 4, 20) == raw[-4:]


def test_bytes_are_cut_across_runs(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    runs = (
        Run(tmp_path / "a", 10, 5),
        Run(tmp_path / "a", 50, 0),
        Run(tmp_path / "a", 30, 7),
        Run(tmp_path / "a", 90, 4),
    )
    whole = [*range(10, 15), *range(30, 37), *range(90, 94)]
    draw = random.Random(1)
    for _ in range(200):
        start = draw.randint(0, 16)
        size = draw.randint(0, 16 - start)
        got = [byte for run in cut(runs, start, size) for chunk in run.chunks() for byte in chunk]
        assert got == whole[start : start + size]
    with pytest.raises(ValueError, match="1 bytes of a weight are missing"):
        cut(runs, 10, 7)


def test_a_file_that_shrinks_meanwhile(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(ZooError, match="ends 2 bytes before"):
        list(Run(tmp_path / "a", 2, 5).chunks())


def test_damaged_archives_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"state_dict": {"a": torch.randn(500)}}, path)
    data = path.read_bytes()
    for cutting in (0, 1, 30, 200, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cutting])
        with pytest.raises(ZooError, match=r"truncated or is not|was not opened"):
            archive.Archive(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ZooError, match=r"truncated or is not|was not opened"):
        archive.Archive(path)
    torch.save({"path": tmp_path}, path)
    with pytest.raises(ZooError, match="pathlib"):
        archive.Archive(path)


def test_a_record_that_is_shorter_than_its_tensor(tmp_path):
    path = tmp_path / "x.pt"
    archive.save({"a": Stored.of(torch.arange(10.0))}, path)
    found = archive.Archive(path)
    start = next(start for start, size in found.records.items() if size == 40)
    found.records.pop(start)
    with pytest.raises(ZooError, match="does not lie where the file says"):
        found.stored(found.content["a"])
    # the directory at the end of the file says 39 bytes
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"archive/data/0") - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    data[entry + 20 : entry + 28] = struct.pack("<II", 39, 39)
    path.write_bytes(data)
    found = archive.Archive(path)
    with pytest.raises(ZooError, match="does not lie where the file says"):
        found.stored(found.content["a"])
