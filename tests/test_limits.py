"""What a checkpoint declares is held against its files before memory is allocated; bombs are sentences."""

import base64
import copy
import json
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
import yaml

from zoo import checkpoints, limits
from zoo.checkpoints import folder, lightning
from zoo.data.tokenizer import Tokenizer
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.generate import stream
from zoo.hub.foreign import Foreign

sys.path.insert(0, str(Path(__file__).parent / "hub"))
import folders

NETWORK = {
    "class_path": "zoo.decoder.Decoder",
    "init_args": {
        **{"vocabulary": 257, "length": 16, "dim": 16, "layers": 1, "heads": 2},
        "position": {"class_path": "RoPE", "init_args": {"base": 100.0}},
        "kernel": {"class_path": "Auto", "init_args": {}},
    },
}


@pytest.fixture(scope="module")
def whole():
    """The description and the weights of a small decoder."""
    model = checkpoints.build(NETWORK)
    about = {"format": 1, "network": NETWORK, "tokenizer": Tokenizer("bytes").describe()}
    return about, model.state_dict()


def written(path, whole, form="ckpt", **changes):
    """A checkpoint with another description."""
    about, weights = copy.deepcopy(whole[0]), whole[1]
    for way, value in changes.items():
        *steps, last = way.split("__")
        node = about
        for step in steps:
            node = node.setdefault(step, {})
        node[last] = value
    if form == "folder":
        folder.write(path, about, weights, "")
    else:
        content = {"state_dict": {f"network.{name}": value for name, value in weights.items()}, "zoo": about}
        torch.save(content, path)
    return path


@pytest.mark.parametrize("form", ["ckpt", "folder"])
@pytest.mark.parametrize(
    "name", ["dim", "layers", "heads", "kv_heads", "head_dim", "hidden", "vocabulary", "length", "reach", "window"]
)
@pytest.mark.parametrize("value", [10**9, 10**18, 10**400, -1], ids=["billion", "trillions", "long", "negative"])
def test_sizes_that_no_tensor_has(name, value, form, whole, tmp_path):
    if name in ("length", "reach", "window") and value == 10**9:
        pytest.skip("a model may read so many tokens")
    path = written(tmp_path / "x", whole, form, **{f"network__init_args__{name}": value})
    with pytest.raises(ZooError, match=rf"declares {name}|a number has 401 digits"):
        checkpoints.read(path)
    with pytest.raises(ZooError, match=rf"declares {name}|a number has 401 digits"):
        checkpoints.listed(path)


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ("network__init_args__norm_at", "nowhere"),
        ("network__init_args__feed_forward", "SwiGLU "),
        ("network__init_args__dim", "16"),
        ("network__init_args__position", "RoPE"),
        ("network__init_args__position", {"class_path": "RoPE", "init_args": [1]}),
        ("network__init_args__position", {"class_path": "RoPE", "init_args": {"base": "x"}}),
        ("network__init_args__position", {"class_path": "RoPE", "init_args": {"pairing": "thirds"}}),
        ("network__init_args__unheard", 1),
        ("network__init_args", [1]),
        ("network", 5),
        ("trained", {"steps": "many"}),
        ("trained", {"steps": -1}),
        ("extended", {"chain": []}),
        ("extended", {"chain": [{"method": "YaRN"}]}),
        ("extended", {"chain": [{"method": "YaRN", "to": "far"}]}),
        ("extended", {"chain": [{"method": "YaRN", "to": 32, "tuned": [{"steps": "x"}]}]}),
        ("asked", {"model": [1]}),
        ("asked", {"data": {"init_args": 3}}),
        ("plugins", {"RoPE": ["zoo.positions"]}),
        ("plugins", {"RoPE": [{}, {}]}),
        ("format", "1"),
        ("format", 10**400),
    ],
)
def test_a_description_has_the_shape_of_one(way, value, whole, tmp_path):
    path = written(tmp_path / "x.ckpt", whole, **{way: value})
    with pytest.raises(ZooError):
        checkpoints.read(path)


@pytest.mark.parametrize("value", [torch.ones(2), {1, 2}, torch.float32, b"x"])
def test_a_description_is_of_plain_values(value, whole, tmp_path):
    with pytest.raises(ZooError, match=r"is damaged|was not opened"):
        checkpoints.read(written(tmp_path / "x.ckpt", whole, more=value))


def test_nests_and_multitudes_are_refused(whole, tmp_path):
    deep = 1
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ZooError, match="levels deep"):
        checkpoints.read(written(tmp_path / "x.ckpt", whole, more=deep))
    wide = [0] * 10
    for _ in range(8):
        wide = [wide] * 10
    with pytest.raises(ZooError, match="values"):
        checkpoints.read(written(tmp_path / "y.ckpt", whole, more=wide))
    path = written(tmp_path / "folder", whole, "folder")
    (path / "config.yaml").write_text((path / "config.yaml").read_text() + "a: &a [*a]\n")
    with pytest.raises(ZooError, match="damaged"):
        checkpoints.read(path)


def repacked(path, bomb=0):
    """The archive with its records compressed, and so many zeros after its pickle."""
    beside = path.with_suffix(".packed")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info) + bytes(bomb if info.filename.endswith("data.pkl") else 0))
    return beside.replace(path)


@pytest.mark.parametrize("bomb", [0, 100 << 20])
def test_a_compressed_archive_is_refused(bomb, whole, tmp_path):
    path = repacked(written(tmp_path / "x.ckpt", whole), bomb)
    for read in (checkpoints.read, checkpoints.listed, lightning.load):
        with pytest.raises(ZooError, match="is compressed"):
            read(path)


@pytest.mark.parametrize(
    "weight",
    [
        torch.sparse_coo_tensor([[0], [1]], [1.0], (2, 2)),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        5,
        [torch.ones(2)],
        None,
    ],
    ids=["sparse", "quantised", "number", "list", "none"],
)
def test_weights_are_dense_tensors(weight, whole, tmp_path):
    content = {"state_dict": {"network.head.weight": weight}, "zoo": whole[0]}
    torch.save(content, tmp_path / "x.ckpt")
    for read in (checkpoints.read, checkpoints.listed):
        with pytest.raises(ZooError, match=r"damaged|not opened|not a checkpoint"):
            read(tmp_path / "x.ckpt")


def test_a_weight_lies_within_its_storage(whole, tmp_path):
    state = {f"network.{name}": value for name, value in whole[1].items()}
    state["network.embedding.weight"] = torch.ones(1).expand(257, 16)
    torch.save({"state_dict": state, "zoo": whole[0]}, tmp_path / "x.ckpt")
    with pytest.raises(ZooError, match=r"a weight of 4112 numbers lies in 1 of them"):
        checkpoints.listed(tmp_path / "x.ckpt")


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "head_dim"])
@pytest.mark.parametrize("value", [10**9, 10**400, 0, -3, "8", None, [1]], ids=lambda value: str(value)[:5])
def test_a_hub_folder_declares_what_its_files_hold(key, value, tmp_path):
    path = folders.write(tmp_path / "llama", folders.LLAMA)
    config = json.loads((path / "config.json").read_text()) | {key: value}
    (path / "config.json").write_text(json.dumps(config))
    if (key, value) == ("head_dim", None):  # it follows from the others
        assert checkpoints.listed(path).weights
        return
    with pytest.raises(ZooError):
        checkpoints.listed(path)


def test_a_tokenizer_that_unpacks_to_gigabytes_is_refused(whole, tmp_path):
    packed = base64.b64encode(zlib.compress(bytes(limits.LARGEST_TEXT + 1), 9)).decode()
    for described in (
        {"name": "x", "kind": "tokenizers", "packed": packed, "end": 0},
        {"name": "x", "ranks": packed, "pattern": "x"},
    ):
        with pytest.raises(ZooError, match="unpacks to more than"):
            Tokenizer.restore(described)


def test_a_tokenizer_that_needs_all_memory_ends_a_child_and_not_us():
    text = json.loads(folders.tokenizer())
    replace = {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 50_000}
    text["normalizer"] = {"type": "Sequence", "normalizers": [replace] * 40}
    with pytest.raises(ZooError, match="The tokenizer x is damaged"):
        Foreign("x", json.dumps(text))


@pytest.mark.parametrize(("ranks", "pattern"), [(b"YQ== 0\n" * 300, "x"), (b"", "x"), (None, "("), (None, 5)])
def test_a_damaged_tokenizer_is_a_sentence(ranks, pattern):
    ranks = b"".join(base64.b64encode(bytes([n])) + b" %d\n" % n for n in range(256)) if ranks is None else ranks
    described = {"name": "x", "ranks": base64.b64encode(zlib.compress(ranks)).decode(), "pattern": pattern}
    with pytest.raises(ZooError, match="damaged"):
        Tokenizer.restore(described).encode("abc")


def test_weights_that_are_no_numbers_generate_nothing(whole):
    model: Decoder = checkpoints.build(NETWORK)
    torch.nn.init.constant_(model.trunk.norm.weight, float("nan"))
    for temperature in (0.0, 0.8):
        with pytest.raises(ZooError, match="no numbers"):
            list(stream(model, torch.tensor([[1, 2]]), 2, temperature=temperature))


def test_a_file_of_settings_has_a_size(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(ZooError, match="damaged"):
        limits.read_json(tmp_path / "x.json")
    monkeypatch.setattr(limits, "LARGEST_TEXT", 10)
    with pytest.raises(ZooError, match="a file of settings has at most"):
        limits.read_json(tmp_path / "x.json")


def test_what_is_whole_is_read(whole, tmp_path):
    for form in ("ckpt", "folder"):
        found = checkpoints.read(written(tmp_path / form, whole, form))
        assert isinstance(found.network(), Decoder)
        assert yaml.safe_load(yaml.safe_dump(found.about["network"])) == NETWORK
