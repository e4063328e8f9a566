"""zoo extend: what it writes, against goldens by hand and a decoder built by hand; what it refuses; what it leaves."""

import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
import yaml
from safetensors.torch import load_file

from zoo import checkpoints, cli, plugins
from zoo.checkpoints import archive, folder, lightning
from zoo.data.tokenizer import Tokenizer
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.extend import plan, write
from zoo.extend.methods import owned, usual
from zoo.extend.source import read
from zoo.generate import generate

BYTES = Tokenizer("bytes")
SIZE = {"vocabulary": 257, "length": 16, "dim": 32, "layers": 2, "heads": 2, "std": 0.3}
POSITIONS, EXTENSIONS = plugins.classes("zoo.positions"), plugins.classes("zoo.extensions")


def node(position="RoPE", extension=None, **more):
    own = {"base": 10000.0} | ({"extension": extension} if extension else {})
    place = {"class_path": position, "init_args": own if position in ("RoPE", "pRoPE", "PoPE") else {}}
    kernel = {"class_path": "Auto", "init_args": {}}
    return {"class_path": "zoo.decoder.Decoder", "init_args": {**SIZE, "position": place, "kernel": kernel, **more}}


def store(path, position="RoPE", extension=None, **more):
    """A checkpoint with random weights, as a folder or a .ckpt."""
    torch.manual_seed(5)
    network = node(position, extension, **more)
    about = {"format": 1, "zoo": "0", "network": network, "tokenizer": BYTES.describe(), "trained": {"steps": 7}}
    about["plugins"] = checkpoints.owners({"init_args": {"position": network["init_args"]["position"]}})
    weights = checkpoints.build(network).state_dict()
    if path.suffix == ".ckpt":
        state = {f"network.{name}": value for name, value in weights.items()}
        content = {"state_dict": state, "zoo": about, "epoch": 1, "global_step": 7, "optimizer_states": [1]}
        lightning.save({**content, "pytorch-lightning_version": "2.5.0"}, path)
    else:
        folder.write(path, about, weights, "the old card")
    return path


@pytest.fixture
def parent(tmp_path):
    return store(tmp_path / "tiny")


def extend(*words, capsys=None):
    """The verb; with YaRN where no method is named, since these checkpoints know no text to choose one by."""
    if not any(str(word).startswith("--method") for word in words):
        words = (*words, "--method", "YaRN")
    cli.run(["extend", *map(str, words)])
    return capsys.readouterr() if capsys else None


def refused(*words):
    with pytest.raises(ZooError) as error:
        extend(*words)
    return str(error.value)


def described(path):
    return yaml.safe_load((path / "config.yaml").read_text())


def logits(path, tokens=40):
    ids = torch.arange(tokens)[None] * 7 % 257
    with torch.no_grad():
        return checkpoints.read(path).network()(ids)


def byhand(weights, position, **extension):
    """The logits of a decoder that was given its extension in Python."""
    kind = EXTENSIONS[extension.pop("method")]
    made = Decoder(position=partial(POSITIONS[position], extension=partial(kind, **extension)), **SIZE)
    made.load_state_dict(weights)
    with torch.no_grad():
        return made.eval()(torch.arange(40)[None] * 7 % 257)


def test_one_node_is_rewritten_and_nothing_else(parent, tmp_path):
    extend(parent, "--to", "56", "--method", "Linear")
    old, new = described(parent), described(tmp_path / "tiny-56")
    arguments = new["network"]["init_args"]
    assert arguments.pop("reach") == 56
    assert arguments["position"]["init_args"].pop("extension") == {"class_path": "Linear", "init_args": {"factor": 3.5}}
    assert new["network"] == old["network"]
    assert new["plugins"]["Linear"][0] == "zoo.extensions"
    assert new["tied"] == old["tied"]
    assert new["trained"] == old["trained"]


def test_weights_are_linked_and_the_parent_is_left_alone(parent, tmp_path):
    before = {path.name: path.read_bytes() for path in parent.iterdir()}
    extend(parent, "--to", "64")
    child = tmp_path / "tiny-64"
    assert os.path.samefile(parent / "model.safetensors", child / "model.safetensors")
    assert {path.name: path.read_bytes() for path in parent.iterdir()} == before
    assert sorted(path.name for path in child.iterdir()) == sorted(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny-64"]
    assert (child / "tokenizer.json").read_text() == (parent / "tokenizer.json").read_text()


@pytest.mark.parametrize("clones", [False, True])
def test_weights_are_copied_where_there_are_no_links(parent, tmp_path, monkeypatch, clones):
    def fails(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", fails)
    if not clones:
        monkeypatch.setattr(write.fcntl, "ioctl", fails)
    extend(parent, "--to", "64")
    files = [place / "model.safetensors" for place in (parent, tmp_path / "tiny-64")]
    assert not os.path.samefile(*files)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("position", ["RoPE", "pRoPE", "PoPE"])
@pytest.mark.parametrize(
    ("flags", "extension"),
    [
        (["--method=Linear"], {"method": "Linear", "factor": 2.5}),
        (
            ["--method=YaRN", "--fast", "8", "--truncate=false"],
            {"method": "YaRN", "factor": 2.5, "fast": 8, "truncate": False},
        ),
        (["--method=ABF", "--base=1e6"], {"method": "ABF", "factor": 2.5, "base": 1e6}),
        (["--method=DynamicNTK"], {"method": "DynamicNTK"}),
        (["--method=LongRoPE", "--set", "attention=1.25"], {"method": "LongRoPE", "factor": 2.5, "attention": 1.25}),
    ],
)  # fmt: skip
def test_logits_are_those_of_a_decoder_made_by_hand(tmp_path, position, flags, extension):
    parent = store(tmp_path / "a", position)
    extend(parent, "--to", "40", *flags, "--out", tmp_path / "b")
    weights = dict(checkpoints.read(parent).weights)
    assert torch.equal(logits(tmp_path / "b"), byhand(weights, position, **extension))
    assert not torch.equal(logits(tmp_path / "b"), logits(parent))


def test_every_method_runs_with_no_arguments(parent, tmp_path):
    for name in [*owned("RoPE"), "Resonance+NTK"]:
        extend(parent, "--to", "64", "--method", name, "--out", tmp_path / name)
        assert logits(tmp_path / name).isfinite().all()
    inner = described(tmp_path / "Resonance+NTK")["network"]["init_args"]["position"]["init_args"]["extension"]
    assert inner == {
        "class_path": "Resonance",
        "init_args": {"extension": {"class_path": "NTK", "init_args": {"factor": 4.0}}},
    }


def test_a_second_extension_starts_from_the_first_length(parent, tmp_path):
    extend(parent, "--to", "64")
    extend(tmp_path / "tiny-64", "--to", "128", "--method", "NTK")
    extend(parent, "--to", "128", "--method", "NTK", "--out", tmp_path / "once")
    child, once = tmp_path / "tiny-128", tmp_path / "once"
    assert described(child)["network"] == described(once)["network"]
    assert torch.equal(logits(child), logits(once))
    past = described(child)["extended"]
    assert (past["length"], past["base"]) == (16, 10000.0)
    assert [(step["method"], step["from"], step["to"], step["factor"]) for step in past["chain"]] == [
        ("YaRN", 16, 64, 4.0),
        ("NTK", 64, 128, 8.0),
    ]
    assert {step["steps"] for step in past["chain"]} == {7}
    assert {step["parent"] for step in past["chain"]} == {read(parent).fingerprint}
    assert "It had been extended before (to 64 by YaRN)" in (child / "README.md").read_text()
    assert "extended to 64 tokens already" in refused(tmp_path / "tiny-64", "--to", "64")
    assert "--from says 32" in refused(tmp_path / "tiny-64", "--to", "128", "--from", "32")


def test_an_extension_of_unknown_origin_is_refused_unless_told(tmp_path):
    path = store(tmp_path / "a", extension={"class_path": "Linear", "init_args": {"factor": 2.0}})
    told = refused(path, "--to", "64")
    assert "twice" in told
    assert "--from 16" in told
    extend(path, "--to", "64", "--from", "8", "--method", "Linear")
    arguments = described(tmp_path / "a-64")["network"]["init_args"]
    assert arguments["length"] == 8
    assert arguments["position"]["init_args"]["extension"]["init_args"] == {"factor": 8.0}


def test_formats_hold_the_same(parent, tmp_path):
    """Folder to .ckpt, .ckpt to folder, .ckpt to .ckpt."""
    single = store(tmp_path / "last.ckpt")
    assert read(single).fingerprint == read(parent).fingerprint
    extend(parent, "--to", "40", "--out", tmp_path / "x.ckpt")
    extend(single, "--to", "40", "--out", tmp_path / "y")
    extend(single, "--to", "40")
    extend(parent, "--to", "40")
    there = [tmp_path / name for name in ("x.ckpt", "y", "last-40.ckpt", "tiny-40")]
    for path in there:
        assert torch.equal(logits(path), logits(there[0])), path
    for path in (there[0], there[2]):
        content = lightning.load(path)
        assert set(content) == {"state_dict", "zoo", "epoch", "global_step", "pytorch-lightning_version"}
        state = content["state_dict"]
        assert state["network.head.weight"].data_ptr() == state["network.embedding.weight"].data_ptr()
    assert set(load_file(there[1] / "model.safetensors")) == set(load_file(there[3] / "model.safetensors"))


def test_another_seed_has_another_fingerprint(parent, tmp_path):
    changed = dict(checkpoints.read(parent).weights)
    changed["trunk.norm.weight"] = changed["trunk.norm.weight"] + 1
    about = checkpoints.read(parent).about
    folder.write(tmp_path / "other", about, changed, "")
    assert read(tmp_path / "other").fingerprint != read(parent).fingerprint


def test_the_table_by_hand(parent, tmp_path, capsys):
    shown = extend(parent, "--to", "64", "--method", "Linear", "--dry-run", "--json", capsys=capsys)
    told = json.loads(shown.out)
    assert len(told["waves"]) == 8
    for number, row in enumerate(told["waves"]):
        frequency = 10000 ** (-number / 8)
        assert row["ratio"] == pytest.approx(0.25, abs=1e-6)
        assert row["wavelength"]["before"] == pytest.approx(2 * math.pi / frequency, rel=1e-6)
        assert row["rotations"] == pytest.approx(16 * frequency / 2 / math.pi, rel=1e-6)
        assert row["undertrained"] == (number >= 1)  # 2.55 turns, then 0.81
    assert told["undertrained"] == [1, 2, 3, 4, 5, 6, 7]
    # 2 layers x 2 heads x 16 channels x (keys and values) x 64 tokens
    assert told["cache"] == {"float32": 2 * 2 * 16 * 2 * 64 * 4, "bfloat16": 2 * 2 * 16 * 2 * 64 * 2}
    assert (told["attention"], told["factor"], told["written"]) == (1.0, 4.0, None)
    assert "under-trained" in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"], "--dry-run writes nothing"
    yarn = json.loads(extend(parent, "--to", "64", "--dry-run", "--json", capsys=capsys).out)
    assert yarn["attention"] == pytest.approx(0.1 * math.log(4) + 1)
    assert not yarn["unchanged"]
    ntk = json.loads(extend(parent, "--to", "64", "--method=DynamicNTK", "--dry-run", "--json", capsys=capsys).out)
    assert ntk["dynamic"]
    assert ntk["unchanged"]
    assert ntk["waves"][-1]["ratio"] == pytest.approx(0.25, rel=1e-5)


def test_keys_of_pope_are_twice_as_wide(tmp_path, capsys):
    told = json.loads(extend(store(tmp_path / "a", "PoPE"), "--to=64", "--dry-run", "--json", capsys=capsys).out)
    assert told["cache"]["float32"] == 2 * 2 * (32 + 16) * 64 * 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "16"], "was trained on 16 tokens already"),
        (["--to", "8"], "Try:  --to 32"),
        (["--to", "1.5"], "is no length"),
        (["--to", "-3"], "is no length"),
        (["--to", "many"], "is no length"),
        (["--to", "32m"], "Positions are float32"),
        (["--to", "384px"], "is a language model, which reads tokens and no pixels.   Try:  --to 32"),
        ([], "--to"),
        (["--to", "64", "--method", "Yarn"], "Did you mean YaRN"),
        (["--to", "64", "--method", "YaRN+NTK"], "works upon no other"),
        (["--to", "64", "--fas", "3"], "Did you mean fast"),
        (["--to", "64", "--fast", "quick"], "fast is a number, and got 'quick'"),
        (["--to", "64", "--fast"], "--fast needs a value"),
        (["--to", "64", "--fast", "3", "--set", "fast=4"], "given twice"),
        (["--to", "64", "--set", "fast"], "NAME=VALUE"),
        (["--to", "64", "--factor", "3"], "follows from --to"),
        (["--to", "64", "--fast", "0.5"], "0 < slow < fast"),
        (["--to", "64", "--method", "ABF", "--base", "100"], "or leave it out:  --base"),
        (["--to", "64", "--truncate", "perhaps"], "true or false or auto"),
        (["--to", "64", "stray"], "stray"),
        (["--to", "64", "--files", "x.txt"], "--evaluate quick"),
        (["--to", "64", "--dry-run", "--evaluate", "quick"], "Leave one of the two out"),
        (["--to", "64", "--evaluate", "most"], "invalid choice"),
        (["--to", "64", "--from", "0"], "is no length"),
    ],
)
def test_bad_input(parent, tmp_path, words, says):
    assert says in refused(parent, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("position", ["ALiBi", "T5", "KERPLE", "Sandwich", "DynamicBias"])
def test_every_method_of_a_bias(tmp_path, position, capsys):
    parent = store(tmp_path / "a", position)
    assert not {"YaRN", "Linear"} & set(owned(position))
    for name in owned(position):
        extend(parent, "--to", "64", "--method", name, "--out", tmp_path / name)
        assert f"{name}: {position} reads 64 tokens, 4 times the 16 of training" in capsys.readouterr().out
        near = name != "DynamicDistanceScaling"  # BucketScaling moves none of the buckets of so short a text
        assert torch.equal(logits(tmp_path / name, 16), logits(parent, 16)) == (name != "DistanceScaling")
        assert ("are read just as before" in (tmp_path / name / "README.md").read_text()) != near
        far = 64 if name != "BucketScaling" else 200
        assert not torch.equal(logits(tmp_path / name, far), logits(parent, far))
    assert usual(position) == "DistanceScaling"


@pytest.mark.parametrize(
    ("method", "flags", "says"),
    [
        ("ReRoPE", [], "keys up to 4 back are rotated as in training, all before them as if 4 back"),
        ("LeakyReRoPE", [], "distances grow 5.364 times slower and reach 15 after 63"),
        ("SelfExtend", ["--group", "8"], "those before them in groups of 8: up to 96 tokens"),
        ("DualChunk", ["--local=4"], "anew every 8 tokens; keys of earlier chunks are rotated as if at most 12 back"),
    ],
)
@pytest.mark.parametrize("position", ["RoPE", "pRoPE"])
def test_positions_that_are_mapped(tmp_path, position, method, flags, says, capsys):
    parent = store(tmp_path / "a", position)
    shown = extend(parent, "--to=64", "--method", method, *flags, "--json", "--out", tmp_path / "b", capsys=capsys)
    told = json.loads(shown.out)
    assert says in told["account"][0]
    assert says in shown.err
    assert says in (tmp_path / "b" / "README.md").read_text()
    assert {row["ratio"] for row in told["waves"]} <= {1.0, None}
    assert len(told["waves"]) == 8
    assert told["attention"] == pytest.approx(0.05 * math.log(4) + 1 if method == "DualChunk" else 1)
    assert told["unchanged"] == (method == "DualChunk")
    own = {"group": 8, "factor": 4.0} if method == "SelfExtend" else {"local": 4} if method == "DualChunk" else {}
    own = {"factor": 4.0} if method == "LeakyReRoPE" else own
    assert torch.equal(
        logits(tmp_path / "b"), byhand(dict(checkpoints.read(parent).weights), position, method=method, **own)
    )
    same = (logits(tmp_path / "b", 16) - logits(parent, 16)).abs().max() < 1e-4
    assert bool(same) == told["unchanged"]


def test_a_map_needs_a_kernel_that_carries_it(tmp_path):
    path = store(tmp_path / "a", kernel={"class_path": "SDPA", "init_args": {}})
    assert "the kernel SDPA cannot carry the bias" in refused(path, "--to=64", "--method=SelfExtend")
    told = refused(store(tmp_path / "b"), "--to=64", "--method=SelfExtend", "--group=2")
    assert "does not reach 64 tokens within the 16 of training. Give 6, or leave it out:  --group 6" in told


def test_one_that_needs_none_says_so(tmp_path):
    told = refused(store(tmp_path / "a", "FIRE"), "--to", "64")
    assert "FIRE takes no extension, because what its function is given stays between 0 and 1 at any length" in told


@pytest.mark.parametrize("position", ["NoPE", "xPos"])
def test_an_encoding_that_takes_none(tmp_path, position):
    with pytest.raises(ZooError, match=f"{position} takes no extension.* What converts it: DroPE") as told:
        cli.run(["extend", str(store(tmp_path / "a", position)), "--to", "64"])
    assert "RoPE" in str(told.value).partition("Encodings that do")[2]


def test_a_kernel_that_cannot_serve_it(tmp_path):
    path = store(tmp_path / "a", kernel={"class_path": "Cosine", "init_args": {}})
    assert "Cosine cannot serve" in refused(path, "--to", "64")
    extend(path, "--to", "64", "--method", "Linear")


def test_checkpoints_that_are_none(parent, tmp_path):
    assert "There is no checkpoint at" in refused(tmp_path / "absent", "--to", "64")
    (tmp_path / "empty").mkdir()
    assert "not a zoo checkpoint folder" in refused(tmp_path / "empty", "--to", "64")
    weights = (parent / "model.safetensors").read_bytes()
    for name, data in (
        ("cut", weights[:-5]),
        ("header", weights[:50]),
        ("short", weights[:3]),
        ("long", weights + b"0"),
        ("words", b"not a file of weights at all"),
    ):
        shutil.copytree(parent, tmp_path / name)
        (tmp_path / name / "model.safetensors").write_bytes(data)
        assert "is damaged" in refused(tmp_path / name, "--to", "64"), name
    shutil.copytree(parent, tmp_path / "other")
    about = described(parent)
    about["network"]["init_args"]["dim"] = 64
    (tmp_path / "other" / "config.yaml").write_text(yaml.safe_dump(about))
    assert "belongs to another model" in refused(tmp_path / "other", "--to", "64")
    for text in ("[", "7", "format: 1", "network: {class_path: zoo.decoder.Decoder}", "format: 99"):
        (tmp_path / "other" / "config.yaml").write_text(text)
        assert refused(tmp_path / "other", "--to", "64")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    assert "another program" in refused(tmp_path / "foreign.ckpt", "--to", "64")
    assert not [path for path in tmp_path.iterdir() if "64" in path.name]


def test_a_table_of_text_is_resampled(tmp_path, capsys):
    parent = store(tmp_path / "a", "Learned")
    with pytest.raises(ZooError, match="each of 16 positions and cannot serve a request of 40"):
        logits(parent)
    planned = plan(read(parent), 64, None)
    assert planned.step["method"] == "Resampling"
    assert planned.about["network"]["init_args"]["position"] == {"class_path": "Learned", "init_args": {"rows": 64}}
    (name,), table = planned.added, checkpoints.read(parent).weights["trunk.positions.0.table"]
    rows = torch.linspace(0, 15, 64, dtype=torch.float64)
    low = rows.floor().clamp(max=14).long()
    expected = table[low] + (rows - low)[:, None] * (table[low + 1] - table[low])
    assert name == "trunk.positions.0.table"
    torch.testing.assert_close(planned.added[name], expected.float(), rtol=0, atol=1e-6)
    extend(parent, "--to", "64", "--method", "auto")
    assert "Resampling: Learned reads 64 tokens, 4 times the 16 of training" in capsys.readouterr().out
    child = checkpoints.read(tmp_path / "a-64")
    assert torch.equal(child.weights[name], planned.added[name])
    assert logits(tmp_path / "a-64", 64).isfinite().all()
    extend(tmp_path / "a-64", "--to", "96", "--method", "Resampling", "--out", tmp_path / "b.ckpt")
    again = checkpoints.read(tmp_path / "b.ckpt")
    assert again.weights[name].shape == (96, 32)
    assert torch.equal(again.weights[name][[0, -1]], table[[0, -1]])
    assert [step["factor"] for step in again.about["extended"]["chain"]] == [4, 6]
    assert logits(tmp_path / "b.ckpt", 96).isfinite().all()
    assert "a text skips none" in refused(parent, "--to", "64", "--method", "Resampling", "--antialias", "true")
    assert "mode is bicubic or linear or null" in refused(
        parent, "--to", "64", "--method", "Resampling", "--mode", "nearest"
    )
    card = (tmp_path / "a-64" / "README.md").read_text()
    assert "Nothing was trained; 1 weight of the encoding took the place of 1." in card
    assert "Texts of at most 16 tokens are read in another way" in card


def test_what_stands_at_the_target(parent, tmp_path):
    extend(parent, "--to", "64")
    child = tmp_path / "tiny-64"
    assert "exists" in refused(parent, "--to", "64")
    extend(parent, "--to", "64", "--method", "NTK", "--overwrite")
    assert described(child)["extended"]["chain"][-1]["method"] == "NTK"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny-64"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        assert "is no checkpoint" in refused(parent, "--to", "64", "--out", tmp_path / name, "--overwrite")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    for inside in (parent, parent / "child"):
        assert "that is extended" in refused(parent, "--to", "64", "--out", inside, "--overwrite")


@pytest.mark.parametrize("name", ["x", "x.ckpt"])
@pytest.mark.parametrize("where", ["write", "sync", "replace"])
def test_a_full_disk_leaves_what_was_there(parent, tmp_path, monkeypatch, name, where):
    out = tmp_path / name
    extend(parent, "--to", "64", "--out", out)
    before = logits(out)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(yaml, "safe_dump", full)
            patch.setattr(archive, "add", full)
        elif where == "sync":
            patch.setattr(os, "fsync", full)
        else:
            real = os.replace
            patch.setattr(os, "replace", lambda old, new: full() if ".part" in str(old) else real(old, new))
            patch.setattr(type(out), "replace", full)
        for target in (out, tmp_path / f"new-{name}"):
            told = refused(parent, "--to", "128", "--out", target, "--overwrite")
            assert "No space left on device" in told
    assert torch.equal(logits(out), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["tiny", name])


def test_an_interruption_leaves_what_was_there(parent, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        extend(parent, "--to", "64")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_generation_goes_as_far_as_the_reach(parent, tmp_path, capsys):
    extend(parent, "--to", "64")
    capsys.readouterr()
    prompt = "a" * 40
    with pytest.raises(ZooError, match=r"was trained on 16\. Shorten it"):
        cli.run(["generate", str(parent), "--prompt", prompt])
    cli.run(["generate", str(tmp_path / "tiny-64"), "--prompt", prompt, "--tokens=4", "--temperature=0"])
    shown = capsys.readouterr()
    assert shown.out.startswith(prompt)
    assert "extrapolated" not in shown.err
    cli.run(["generate", str(tmp_path / "tiny-64"), "--prompt", prompt, "--tokens=40", "--temperature=0"])
    assert "exceed the reach 64" in capsys.readouterr().err
    with pytest.raises(ZooError, match="trained on 16 and extended to 64"):
        cli.run(["generate", str(tmp_path / "tiny-64"), "--prompt", "a" * 65])


@pytest.mark.parametrize("method", ["YaRN", "DynamicNTK", "ReRoPE", "LeakyReRoPE", "SelfExtend", "DualChunk"])
def test_decoding_with_a_cache_is_one_forward(parent, tmp_path, method):
    extend(parent, "--to", "64", "--method", method, "--out", tmp_path / "long")
    model = checkpoints.read(tmp_path / "long").network()
    prompt = torch.arange(40)[None] * 7 % 257
    new = generate(model, prompt, 8, temperature=0.0)
    whole = torch.cat((prompt, new), 1)
    with torch.no_grad():
        again = model(whole[:, :-1], extent=48)[:, 39:].argmax(-1)
    assert torch.equal(new, again)


def test_a_reach_below_the_length_is_refused():
    with pytest.raises(ZooError, match="a reach of 8 is less"):
        Decoder(position=POSITIONS["RoPE"], **SIZE, reach=8)
    assert Decoder(position=POSITIONS["RoPE"], **SIZE).reach == 16


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    place = tmp_path_factory.mktemp("texts")
    for number in range(3):
        (place / f"{number}.txt").write_text(" ".join(f"word{number * i % 97}" for i in range(100)))
    return place


@pytest.mark.parametrize("name", ["long", "long.ckpt"])
def test_quick_evaluation_on_the_same_documents(parent, tmp_path, texts, capsys, name):
    out = tmp_path / name
    shown = extend(
        parent, "--to=48", "--evaluate=quick", "--files", texts, "--json", "--out", out, capsys=capsys
    )  # fmt: skip
    told = json.loads(shown.out)
    results = told["evaluation"]["results"]
    assert {result["length"] for result in results} == {8, 16, 32, 48}
    assert len(results) == 8
    assert told["evaluation"]["checkpoints"][1]["reach"] == 48
    assert "reach" not in told["evaluation"]["checkpoints"][0]
    if out.is_dir():
        card = (out / "README.md").read_text()
        for result in results:
            assert f"{result['value']['perplexity']:.2f}" in card
        assert "zoo extend" in card
        assert "What to expect" in card
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in parent.iterdir())


def test_text_that_is_too_short_leaves_a_checkpoint_and_says_so(parent, tmp_path, texts):
    told = refused(parent, "--to", "64k", "--evaluate=quick", "--files", texts)
    assert "is written, and was not measured" in told
    assert "--lengths" not in told
    assert checkpoints.read(tmp_path / "tiny-64k").network().reach == 65536


def test_evaluation_reads_on_to_the_reach(parent, tmp_path, texts):
    from zoo.evaluate import Evaluation, beyond

    assert beyond(128, [0, 0]) == set()
    assert beyond(128, [128, 64]) == set()
    assert beyond(128, [500, 0]) == {256, 500}
    assert beyond(1024, [1 << 13]) == {2048, 4096, 8192}
    extend(parent, "--to", "300", "--out", tmp_path / "long")
    found = Evaluation([str(tmp_path / "long")], measures="perplexity", files=[str(texts)])
    assert found.setting.lengths == (16, 32, 64, 128, 256, 300)


def test_lightning_is_not_imported(parent, tmp_path):
    probe = (
        f"import sys; from zoo import cli; cli.run(['extend', {str(parent)!r}, '--to=64', '--method=NTK'])\n"
        "print('torch' in sys.modules, 'lightning' in sys.modules, 'torch._dynamo' in sys.modules, file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert told.stderr.split()[-3:] == ["True", "False", "False"]


def test_the_trainers_verbs_take_the_result(tmp_path, texts, monkeypatch, capsys):
    """They build the model from what was asked for in training, so that has the extension too."""

    def zoo(*words):
        monkeypatch.setattr(sys, "argv", ["zoo", *map(str, words)])
        cli.run(sys.argv[1:])

    flags = [
        f"--data.files={texts}", f"--data.cache={tmp_path / 'cache'}", "--data.workers=0", "--data.valid=0.3",
        "--data.test=0.3", f"--trainer.default_root_dir={tmp_path / 'runs'}", "--trainer.accelerator=cpu",
        "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    tiny = ["--model.length=16", "--model.dim=32", "--model.layers=1", "--model.heads=2", "--data.tokenizer=bytes",
            "--data.batch=2", "--trainer.max_steps=1"]  # fmt: skip
    zoo("fit", *tiny, *flags)
    last = next((tmp_path / "runs").rglob("last.ckpt"))
    extend(last, "--to", "64", "--method", "Resonance+YaRN", "--fast", "8")
    child = last.with_name("last-64.ckpt")
    zoo("validate", "--ckpt_path", child, *flags)
    with pytest.raises(ZooError, match="has no optimizer state"):
        zoo("fit", "--ckpt_path", child, *flags)
    told = lightning.load(child)["zoo"]["asked"]["model"]["init_args"]
    assert (told["length"], told["reach"]) == (16, 64)
    inner = told["position"]["init_args"]["extension"]["init_args"]["extension"]["init_args"]
    assert (inner["factor"], inner["fast"], inner["slow"]) == (4.0, 8, 1.0)
    own = ["--model.position=RoPE", "--model.position.extension=YaRN", "--model.position.extension.factor=4"]
    with pytest.raises(ZooError, match="has been extended, and the recipe asks for another model"):
        zoo("fit", *tiny, *flags, *own, "--model.reach=64", f"--model.weights={child}")
    capsys.readouterr()
    zoo("fit", *flags, "--data.batch=2", "--trainer.max_steps=1", f"--model.weights={child}")
    assert "blocks of 16 tokens train the first of the 64 positions that this model reads" in capsys.readouterr().err
    card = max((tmp_path / "runs").rglob("README.md"), key=lambda path: path.stat().st_mtime).read_text()
    assert "Decoder with RoPE, extended to 64 by Resonance+YaRN" in card


@pytest.mark.parametrize(
    ("position", "method"), [("RoPE", "DynamicNTK"), ("RoPE", "DualChunk"), ("ALiBi", "DynamicDistanceScaling")]
)
def test_rows_of_a_batch_do_not_choose_for_each_other(tmp_path, position, method):
    extend(store(tmp_path / "a", position), "--to", "64", "--method", method, "--out", tmp_path / "b")
    model = checkpoints.read(tmp_path / "b").network()
    short, long = torch.arange(4)[None] * 11 % 257, torch.arange(40)[None] * 7 % 257
    batch = torch.cat((torch.cat((torch.zeros(1, 36, dtype=torch.long), short), 1), long))
    padding = torch.tensor([36, 0])
    for setting in ({"temperature": 0.0}, {"temperature": 1.5, "seed": 3}):
        both = generate(model, batch, 8, padding=padding, **setting)
        assert torch.equal(both[:1], generate(model, short, 8, **setting))
        assert torch.equal(both[1:], generate(model, long, 8, **setting | ({"seed": 4} if "seed" in setting else {})))
    ended = generate(model, batch, 8, padding=padding, temperature=0.0, end=int(both[0, 0]))
    assert ended.shape[0] == 2
    other = model.hidden(batch, padding=padding, extent=48)[:1, 36:]
    alone = model.hidden(short, extent=12)
    assert (other - alone).abs().max() > 1e-3, "as one request they would be told apart"


def test_nothing_else_is_overwritten(parent, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.move(parent, run / "model")
    (run / "config.yaml").write_text("of a run")
    assert "holds the checkpoint that is extended" in refused(run / "model", "--to=64", "--out", run, "--overwrite")
    other = store(tmp_path / "other")
    assert "is no checkpoint" in refused(other, "--to=64", "--out", run, "--overwrite")
    (run / "model" / "notes.txt").write_text("mine")
    told = refused(other, "--to=64", "--out", run / "model", "--overwrite")
    assert "notes.txt too, which --overwrite would delete" in told
    assert (run / "model" / "notes.txt").read_text() == "mine"
    (run / "model" / "notes.txt").unlink()
    (run / "model" / "position.png").write_bytes(b"of an earlier one")
    extend(other, "--to=64", "--out", run / "model", "--overwrite")
    assert described(run / "model")["extended"]["chain"][0]["to"] == 64
    (tmp_path / "file").write_text("")
    assert "is no folder that takes files" in refused(other, "--to=64", "--out", tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"format": "x"}, "under format"),
        ({"trained": 3}, "under trained"),
        ({"asked": 5}, "under asked"),
        ({"asked": {"model": {"init_args": 5}}}, "under asked"),
        ({"extended": {"length": 16, "chain": [{"to": 64}]}}, "under extended"),
        ({"extended": {"length": 16, "chain": []}}, "under extended"),
        ({"extended": 7}, "under extended"),
        ({"network": node(extension="YaRN")}, "position.extension, which describes no plugin by its name"),
    ],
)
def test_a_damaged_description_is_a_sentence(parent, tmp_path, damage, says):
    about = described(parent)
    (parent / "config.yaml").write_text(yaml.safe_dump(about | damage))
    told = refused(parent, "--to=64")
    assert says in told
    assert "is damaged" in told
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_from_does_not_contradict_the_checkpoint(parent):
    for words in (["--to=14", "--from=8"], ["--to=64", "--from=32"]):
        assert "says that it was trained on 16 tokens, and --from says" in refused(parent, *words)
    extend(parent, "--to=64", "--from=16")


@pytest.mark.parametrize("method", ["YaRN+", "Resonance+Resonance+YaRN", "YaRN+YaRN"])
def test_a_method_is_one_name_or_two(parent, method):
    assert "A method is a name, or two with a plus between them" in refused(parent, "--to=64", "--method", method)
    assert "--method is empty" in refused(parent, "--to=64", "--method", "")


def test_what_can_be_known_is_said_before_anything_is_done(parent, tmp_path):
    told = refused(parent, "--to=64", "--files", tmp_path / "absent", "--evaluate=quick")
    assert "There is no text at" in told
    with pytest.raises(ZooError, match="--budget is a number of tokens"):
        cli.run(["extend", str(parent), "--to=64", "--budget=0"])
    with pytest.raises(ZooError, match="--tolerance is a share"):
        cli.run(["extend", str(parent), "--to=64", "--tolerance=abc"])
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
