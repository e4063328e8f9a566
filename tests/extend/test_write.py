"""What zoo extend writes: from file to file, whole or not at all, and only what changed where weights change."""

import contextlib
import dataclasses
import errno
import os
import pickle
import resource
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from zoo import checkpoints, cli
from zoo.checkpoints import folder, lightning
from zoo.checkpoints.stored import Run, Stored
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ZooError
from zoo.extend import plan, source, write

SIZE = {"vocabulary": 257, "length": 16, "dim": 32, "layers": 2, "heads": 2, "std": 0.3}
NODE = {
    "class_path": "zoo.decoder.Decoder",
    "init_args": {
        **SIZE,
        "position": {"class_path": "RoPE", "init_args": {}},
        "kernel": {"class_path": "Auto", "init_args": {}},
    },
}


def store(path):
    """A checkpoint with random weights, as a folder or as a .ckpt with the state of an optimizer."""
    torch.manual_seed(5)
    about = {
        "format": 1,
        "zoo": "0",
        "network": NODE,
        "tokenizer": Tokenizer("bytes").describe(),
        "trained": {"steps": 7},
    }
    about["plugins"] = checkpoints.owners(NODE)
    weights = checkpoints.build(NODE).state_dict()
    if path.suffix != ".ckpt":
        folder.write(path, about, weights, "the old card")
        return path
    state = {f"network.{name}": value for name, value in weights.items()}
    moments = [
        {"state": {n: {"exp_avg": value * 2, "exp_avg_sq": value * 3} for n, value in enumerate(state.values())}}
    ]
    run = {"epoch": 1, "global_step": 7, "pytorch-lightning_version": "2.5.0", "callbacks": {"a": torch.ones(3)}}
    lightning.save({"state_dict": state, "zoo": about, "optimizer_states": moments, **run}, path)
    return path


@pytest.fixture(params=["tiny", "tiny.ckpt"])
def parent(tmp_path, request):
    return store(tmp_path / request.param)


def extend(path, out, *words):
    cli.run(["extend", str(path), "--to", "64", "--method", "YaRN", "--out", str(out), *words])


def refused(path, out, *words):
    with pytest.raises(ZooError) as error:
        extend(path, out, *words)
    assert str(error.value).count(". ") <= 2
    return str(error.value)


def same(found, wanted):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def names(path):
    return sorted(each.name for each in path.iterdir())


@pytest.mark.parametrize("target", ["long", "long.ckpt"])
def test_weights_are_copied_from_file_to_file(parent, tmp_path, monkeypatch, target):
    """No format makes a tensor of one."""
    wanted = dict(checkpoints.read(parent).weights)
    real = torch.load

    def described(*words, **options):
        assert options["map_location"] == "meta"
        return real(*words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Stored, "tensor", lambda _: pytest.fail("a weight was read"))
        patch.setattr(torch, "load", described)
        extend(parent, tmp_path / target)
    same(checkpoints.read(tmp_path / target).weights, wanted)


def test_a_ckpt_leaves_its_optimizer_behind(tmp_path):
    parent = store(tmp_path / "tiny.ckpt")
    extend(parent, tmp_path / "long.ckpt")
    child = tmp_path / "long.ckpt"
    content = torch.load(child, weights_only=True, mmap=True)
    assert set(content) == {"state_dict", "zoo", "epoch", "global_step", "pytorch-lightning_version"}
    assert (content["epoch"], content["global_step"], content["pytorch-lightning_version"]) == (1, 7, "2.5.0")
    whole = torch.load(parent, weights_only=True)
    same(content["state_dict"], whole["state_dict"])
    assert content["zoo"]["extended"]["chain"][0]["to"] == 64
    numbers = {value.data_ptr(): value.numel() for value in whole["state_dict"].values()}
    assert child.stat().st_size < 4 * sum(numbers.values()) + 20_000
    extend(child, tmp_path / "longer.ckpt", "--to", "128")
    same(torch.load(tmp_path / "longer.ckpt", weights_only=True)["state_dict"], whole["state_dict"])


def test_views_of_one_storage(tmp_path):
    """A strategy that flattens weights leaves such: of the storage, a weight's own part is copied."""
    path = store(tmp_path / "tiny.ckpt")
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    flat = torch.cat([value.flatten() for value in state.values()] + [torch.zeros(10**6)])
    start = 0
    for name, value in state.items():
        state[name] = flat[start : start + value.numel()].view(value.shape)
        start += value.numel()
    turned = "network.trunk.blocks.0.attention.out.weight"
    state[turned] = state[turned].t().contiguous().t()
    torch.save(content, path)
    assert source.read(path).fingerprint == source.read(store(tmp_path / "plain")).fingerprint
    for child in ("long", "long.ckpt"):
        extend(path, tmp_path / child)
        same(checkpoints.read(tmp_path / child).weights, checkpoints.read(tmp_path / "plain").weights)
    assert (tmp_path / "long.ckpt").stat().st_size < 2 * 10**6


# Weights that change.


def changed(path, out, added=None, dropped=()):
    """Write what a method that changes these weights would have, whatever network they are of."""
    fit = store(out.with_name("fit")) if not out.with_name("fit").exists() else out.with_name("fit")
    whole = plan(source.read(fit), 64)
    whole = dataclasses.replace(whole, source=source.read(path), added=added or {}, dropped=frozenset(dropped))
    return write.write(whole, out, lambda how: how)


NEW = {"trunk.position.table": torch.arange(12.0).view(3, 4), "trunk.norm.weight": torch.full((32,), 7.0)}
GONE = "trunk.blocks.1.feed_forward.up.weight"


@pytest.mark.parametrize("target", ["long", "long.ckpt"])
def test_some_weights_are_added_replaced_and_dropped(parent, tmp_path, target):
    weights = dict(checkpoints.read(parent).weights)
    changed(parent, tmp_path / target, NEW, [GONE])
    wanted = {name: value for name, value in (weights | NEW).items() if name != GONE}
    same(checkpoints.read(tmp_path / target).weights, wanted)
    assert source.read(tmp_path / target).fingerprint != source.read(parent).fingerprint
    found = checkpoints.read(tmp_path / target).about
    assert not {"tied", "added", "dropped"} & set(found)


def test_only_what_changed_is_written_beside_a_link(tmp_path):
    parent = store(tmp_path / "tiny")
    weights = dict(checkpoints.read(parent).weights)
    assert changed(parent, tmp_path / "a", NEW, ["head.weight"]) == "hard link"
    child = tmp_path / "a"
    assert os.path.samefile(parent / "model.safetensors", child / "model.safetensors")
    same(load_file(child / "position.safetensors"), NEW)
    config = yaml.safe_load((child / "config.yaml").read_text())
    assert (config["added"], config["dropped"]) == ("position.safetensors", ["head.weight"])
    wanted = {name: value for name, value in (weights | NEW).items() if name != "head.weight"}
    same(checkpoints.read(child).weights, wanted)

    # Extended once more without a change: both files are the parent's.
    changed(child, tmp_path / "b")
    for name in ("model.safetensors", "position.safetensors"):
        assert os.path.samefile(child / name, tmp_path / "b" / name)
    same(checkpoints.read(tmp_path / "b").weights, wanted)
    assert source.read(tmp_path / "b").fingerprint == source.read(child).fingerprint

    # One of the two is dropped, the other replaced: the second file is another.
    changed(tmp_path / "b", tmp_path / "c", {"trunk.norm.weight": torch.zeros(32)}, ["trunk.position.table"])
    same(load_file(tmp_path / "c" / "position.safetensors"), {"trunk.norm.weight": torch.zeros(32)})
    last = wanted | {"trunk.norm.weight": torch.zeros(32)}
    del last["trunk.position.table"]
    same(checkpoints.read(tmp_path / "c").weights, last)

    # What stood in the first file is dropped, and comes back.
    changed(tmp_path / "c", tmp_path / "d", {"head.weight": weights["head.weight"]}, ["trunk.norm.weight"])
    config = yaml.safe_load((tmp_path / "d" / "config.yaml").read_text())
    assert config["dropped"] == ["trunk.norm.weight"]
    same(load_file(tmp_path / "d" / "position.safetensors"), {"head.weight": weights["head.weight"]})

    # Nothing is left that the first file does not hold.
    changed(tmp_path / "d", tmp_path / "e", {}, ["head.weight"])
    assert "position.safetensors" not in names(tmp_path / "e")
    config = yaml.safe_load((tmp_path / "e" / "config.yaml").read_text())
    assert "added" not in config
    same(
        checkpoints.read(tmp_path / "e").weights,
        {name: value for name, value in weights.items() if name not in ("head.weight", "trunk.norm.weight")},
    )
    changed(tmp_path / "b", tmp_path / "f.ckpt")
    same(checkpoints.read(tmp_path / "f.ckpt").weights, wanted)
    assert source.read(tmp_path / "f.ckpt").fingerprint == source.read(child).fingerprint


def test_a_tie_ends_where_one_of_the_two_is_replaced(tmp_path):
    parent = store(tmp_path / "tiny")
    weights = dict(checkpoints.read(parent).weights)
    about = yaml.safe_load((parent / "config.yaml").read_text())
    (copy, first), *_ = about["tied"].items()
    for name in (copy, first):
        new = {name: torch.zeros(257, 32)}
        for child in (tmp_path / f"{name}-x", tmp_path / f"{name}.ckpt"):
            changed(parent, child, new)
            same(checkpoints.read(child).weights, weights | new)


# Failures.


@contextlib.contextmanager
def disk(size):
    """Files end at so many bytes: what is written beyond fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("target", ["long", "long.ckpt"])
def test_a_disk_that_is_full_in_the_middle(parent, tmp_path, monkeypatch, target):
    def fails(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", fails)
    monkeypatch.setattr(write.fcntl, "ioctl", fails)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with disk(40_000):
        told = refused(parent, tmp_path / target)
    assert "was not written: File too large. What was there before is as it was." in told
    assert names(tmp_path) == [parent.name]
    extend(parent, tmp_path / target)
    child = source.read(tmp_path / target).about
    with disk(40_000):
        assert "was not written" in refused(parent, tmp_path / target, "--method", "NTK", "--overwrite")
    assert source.read(tmp_path / target).about == child
    assert names(tmp_path) == sorted([parent.name, target])
    assert {path: path.read_bytes() for path in before} == before


def test_a_parent_that_shrinks_meanwhile(tmp_path, monkeypatch):
    """Its header was right."""
    parent = store(tmp_path / "tiny")
    real = Run.chunks

    def chunks(self):
        if self.size > 10_000:
            os.truncate(self.path, self.start + 100)
        return real(self)

    planned = plan(source.read(parent), 64)
    monkeypatch.setattr(Run, "chunks", chunks)
    with pytest.raises(ZooError, match="truncated: it ends"):
        write.write(planned, tmp_path / "long.ckpt", str)
    assert names(tmp_path) == ["tiny"]


class Foreign:
    """Code of another program."""

    def __reduce__(self):
        return os.getcwd, ()


def test_files_that_are_no_checkpoints(tmp_path):
    good = store(tmp_path / "tiny.ckpt").read_bytes()
    state = {"wte.weight": torch.zeros(3)}
    made = {
        "truncated": (good[: len(good) // 2], "truncated or is not a checkpoint"),
        "short": (good[:-1], "truncated or is not a checkpoint"),
        "empty": (b"", "truncated or is not a checkpoint"),
        "text": (b"hello", "truncated or is not a checkpoint"),
        "pickled": (pickle.dumps(state["wte.weight"].tolist()), "truncated or is not a checkpoint"),
    }
    saved = {
        "gpt": (state, "it has no state_dict"),
        "list": ([1], "it has no state_dict"),
        "odd": ({"state_dict": 3}, "it has no state_dict"),
        "other": ({"state_dict": state}, "of another program"),
        "said": ({"state_dict": state, "zoo": "yes"}, "of another program"),
        "code": ({"state_dict": {}, "zoo": Foreign()}, "needs code beyond plain tensors and containers"),
    }
    for name, (data, says) in made.items():
        (tmp_path / f"{name}.ckpt").write_bytes(data)
        assert says in refused(tmp_path / f"{name}.ckpt", tmp_path / "out"), name
    for name, (content, says) in saved.items():
        torch.save(content, tmp_path / f"{name}.ckpt")
        assert says in refused(tmp_path / f"{name}.ckpt", tmp_path / "out"), name
    torch.save({"state_dict": state, "zoo": {}}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert "is not a checkpoint" in refused(tmp_path / "old.ckpt", tmp_path / "out")
    (tmp_path / "none").mkdir()
    assert "missing" in refused(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lightning_is_not_imported_for_its_own_format(tmp_path):
    parent = store(tmp_path / "tiny.ckpt")
    probe = (
        "import sys; from zoo import cli\n"
        f"for out in {str(tmp_path / 'x.ckpt')!r}, {str(tmp_path / 'x')!r}:\n"
        f"    cli.run(['extend', {str(parent)!r}, '--to', '64', '--method', 'YaRN', '--out', out])\n"
        "print('torch' in sys.modules, 'lightning' in sys.modules, file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert told.stderr.split()[-2:] == ["True", "False"]
