"""Folders: the file that is written here, safetensors reads; a second file overrides the first."""

import json

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from zoo import checkpoints
from zoo.checkpoints import folder, tensors
from zoo.checkpoints.stored import Stored
from zoo.errors import ZooError

WEIGHTS = {f"w.{kind}": torch.randint(0, 2, (3, 5)).to(kind) for kind in tensors.NAMES} | {
    "scalar": torch.tensor(2.5),
    "none": torch.zeros(4, 0),
    "ü": torch.arange(300_000.0),
}


def same(found, wanted):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)


def test_safetensors_reads_what_is_written(tmp_path):
    path = tmp_path / "x.safetensors"
    folder.pack(path, {name: Stored.of(value) for name, value in WEIGHTS.items()})
    same(load_file(path), WEIGHTS)
    with safe_open(path, "pt") as found:
        assert found.metadata() == {"format": "pt"}
    for stored in folder.header(path).values():
        assert stored.runs[0].start % stored.dtype.itemsize == 0
    folder.pack(path, {})
    assert load_file(path) == {}


def test_what_safetensors_writes_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(WEIGHTS, path, metadata={"format": "pt"})
    found = folder.header(path)
    same({name: stored.tensor() for name, stored in found.items()}, WEIGHTS)
    folder.pack(tmp_path / "y", found)
    assert json.loads((tmp_path / "y").read_bytes()[8:].partition(b"}}")[0] + b"}}").keys() == {
        *WEIGHTS,
        "__metadata__",
    }
    same(load_file(tmp_path / "y"), WEIGHTS)


def test_tied_weights_are_written_once(tmp_path):
    a, b = torch.randn(3, 4), torch.randn(2)
    weights = {"a": a, "b": b, "same": a, "none": torch.zeros(0), "nothing": torch.zeros(0)}
    folder.write(tmp_path / "x", {"format": 1}, weights, "card")
    assert set(load_file(tmp_path / "x" / "model.safetensors")) == {"a", "b", "none", "nothing"}
    same(checkpoints.read(tmp_path / "x").weights, weights)
    listing = checkpoints.listed(tmp_path / "x")
    assert listing.tied == {"same": "a"}
    assert listing.about == {"format": 1}
    same({name: stored.tensor() for name, stored in listing.weights.items()}, weights)
    folder.write(tmp_path / "y", {"format": 1}, listing.weights, "card")
    for name in ("model.safetensors", "config.yaml", "README.md"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


@pytest.fixture
def overlaid(tmp_path):
    """a is replaced, b is no more, c is new; d keeps what it shared with a."""
    a = torch.randn(3, 4)
    path = tmp_path / "x"
    folder.write(path, {"format": 1}, {"a": a, "b": torch.randn(2), "d": a}, "card")
    save_file({"a": torch.ones(5), "c": torch.zeros(1)}, path / "position.safetensors")
    about = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(about | {"added": "position.safetensors", "dropped": ["b"]}))
    return path, {"a": torch.ones(5), "c": torch.zeros(1), "d": a}


def test_a_second_file_overrides_the_first(overlaid):
    path, wanted = overlaid
    found = checkpoints.read(path)
    same(found.weights, wanted)
    assert found.about == {"format": 1}
    listing = checkpoints.listed(path)
    same({name: stored.tensor() for name, stored in listing.weights.items()}, wanted)
    assert listing.about == {"format": 1}


def test_a_second_file_is_read_only_where_the_config_speaks_of_it(overlaid):
    path, _ = overlaid
    config = path / "config.yaml"
    about = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({"format": 1, "tied": about["tied"]}))
    for read in (checkpoints.read, checkpoints.listed):
        assert set(read(path).weights) == {"a", "b", "d"}
    config.write_text(yaml.safe_dump(about))
    (path / "position.safetensors").write_bytes(b"short")
    for read in (checkpoints.read, checkpoints.listed):
        with pytest.raises(ZooError, match="damaged"):
            read(path)
    (path / "position.safetensors").unlink()
    for read in (checkpoints.read, checkpoints.listed):
        with pytest.raises(ZooError, match=r"position\.safetensors is missing"):
            read(path)


@pytest.mark.parametrize("note", [{"tied": {"d": "nowhere"}}, {"tied": 7}, {"dropped": 7}, {"tied": [1]}])
def test_a_config_that_says_nonsense_of_its_files(overlaid, note):
    path, _ = overlaid
    (path / "config.yaml").write_text(yaml.safe_dump({"format": 1, **note}))
    for read in (checkpoints.read, checkpoints.listed):
        with pytest.raises(ZooError, match="damaged"):
            read(path)


def test_a_type_that_has_no_name(tmp_path):
    with pytest.raises(ZooError, match="complex64 cannot be written: a"):
        folder.pack(tmp_path / "x", {"a": Stored.of(torch.zeros(2, dtype=torch.complex64))})
