"""Export: what a network is called there, that reading back gives it again, and what is refused."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from zoo import checkpoints
from zoo.data.tokenizer import Tokenizer, train
from zoo.errors import ZooError
from zoo.export import rope
from zoo.export.config import complete, export
from zoo.export.tokenizer import TRIED, portable
from zoo.hub.foreign import Foreign

sys.path.insert(0, str(Path(__file__).parent.parent / "hub"))
import folders
from folders import zoo

ROOT = Path(__file__).parent.parent.parent
SIZES = {"vocabulary": 50, "length": 64, "dim": 32, "layers": 4, "heads": 4, "kv_heads": 2}
EXTENSIONS = {
    "Linear": {"factor": 4.0},
    "DynamicNTK": {"factor": 2.0},
    "YaRN": {"factor": 4.0, "fast": 16.0, "slow": 2.0},
    "Llama3": {"factor": 4.0},
    "NTK": {"factor": 4.0},
    "ABF": {"factor": 4.0, "base": 1e6},
    "ByParts": {"factor": 4.0, "attention": 1.1},
    "LongRoPE": {"factor": 4.0},
    "Resonance": {},
}


def about(position="RoPE", extension=None, base=500.0, **arguments):
    """The description of a network."""
    own = {
        "base": base,
        **({"extension": {"class_path": extension, "init_args": EXTENSIONS[extension]}} if extension else {}),
    }
    node = {"class_path": position, "init_args": own if position in ("RoPE", "pRoPE") else {}}
    reach = {"reach": 256} if extension else {}
    network = {"class_path": "zoo.decoder.Decoder", "init_args": {**SIZES, "position": node, **reach, **arguments}}
    return {"format": 1, "network": network}


@pytest.mark.parametrize(
    ("kind", "arguments"),
    {
        "llama": {},
        "llama, biases": {"qkv_bias": True, "out_bias": True, "feed_forward_bias": True, "tied": False},
        "mistral": {"window": 9},
        "qwen2": {"qkv_bias": True},
        "qwen2, some windows": {"qkv_bias": True, "window": 9, "window_layers": [1, 3]},
        "qwen3": {"qk_norm": "head", "head_dim": 16},
        "smollm3": {"nope_every": 2},
        "smollm3, a list": {"nope_layers": [0, 3], "window": 9, "window_layers": [0]},
        "olmo2": {"norm_at": "after", "qk_norm": "width"},
        "gpt_neox": {
            "norm": "LayerNorm",
            "feed_forward": "GELU",
            "qkv_bias": True,
            "out_bias": True,
            "feed_forward_bias": True,
            "parallel": True,
            "kv_heads": 4,
        },
    }.items(),
)
def test_each_family_is_found(kind, arguments):
    keys = export(about(**arguments)).keys
    assert keys["model_type"] == kind.partition(",")[0]
    assert keys["rope_theta" if keys["model_type"] != "gpt_neox" else "rotary_emb_base"] == 500.0


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_what_is_written_is_read_as_the_same_waves(extension):
    """By way of the reader, which knows nothing of this; both generations of keys say the same."""
    from zoo.hub import families
    from zoo.hub.config import Config

    told = about(extension=extension)
    keys = export(told).keys
    old = {name: value for name, value in keys.items() if name != "rope_parameters"}
    new = {name: value for name, value in keys.items() if name not in ("rope_scaling", "rope_theta")}
    ours = complete(told["network"]["init_args"])
    for said in (keys, old, new):
        arguments = complete(families.network(Config(Path("x"), said)).arguments)
        for extent in (1, 64, 65, 256):
            expected, found = rope.waves(ours, extent), rope.waves(arguments, extent)
            torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=0)
            assert found[1] == pytest.approx(expected[1], rel=1e-9)


def test_the_length_that_is_said_is_what_each_form_means_by_it():
    lengths = {name: export(about(extension=name)).keys["max_position_embeddings"] for name in EXTENSIONS}
    assert lengths == dict.fromkeys(EXTENSIONS, 256) | {"Linear": 64, "DynamicNTK": 64}
    assert export(about(extension="YaRN")).keys["rope_scaling"]["original_max_position_embeddings"] == 64
    assert export(about(extension="LongRoPE")).keys["original_max_position_embeddings"] == 64
    assert all(isinstance(length, int) for length in lengths.values())


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (about("ALiBi"), "The encoding ALiBi is none that transformers' models have"),
        (about(kernel={"class_path": "RBF"}), "The kernel RBF computes rbf"),
        (about(qk_norm="width"), "the nearest differs in"),
        (about(head_bias=True), "the nearest differs in head_bias"),
        (about(norm_at="stream"), r"the nearest differs in norm_at\."),
        (about(norm_at="stream", qk_norm="width"), "the nearest differs in norm_at"),
        (about(feed_forward="ReLU"), "the nearest differs in .*feed_forward"),
        (about(window=9, sinks=2), "no sinks"),
    ],
)
def test_what_no_family_is(told, sentence):
    with pytest.raises(ZooError, match=sentence):
        export(told)


def test_a_vision_transformer_is_none():
    with pytest.raises(ZooError, match="vision transformer"):
        export({"network": {"class_path": "zoo.vit.ViT", "init_args": {}}})


def test_a_checkpoint_of_ours(tmp_path, capsys):
    status, said = zoo(capsys, "export", ROOT / "checkpoints/quickstart", "--to", "hf", "--out", tmp_path / "out")
    assert status == 0, said
    one, other = (checkpoints.read(path) for path in (ROOT / "checkpoints/quickstart", tmp_path / "out"))
    tokens = torch.arange(100)[None]
    with torch.no_grad():
        torch.testing.assert_close(other.network()(tokens), one.network()(tokens))
    ours, theirs = (Tokenizer.restore(each.about["tokenizer"]) for each in (one, other))
    assert isinstance(theirs, Foreign)
    assert (ours.encode(TRIED), ours.end) == (theirs.encode(TRIED), theirs.end)
    card = (tmp_path / "out/README.md").read_text()
    assert "vllm serve out --max-model-len 128" in card
    status, said = zoo(capsys, "export", ROOT / "checkpoints/quickstart", "--to", "hf", "--out", tmp_path / "out")
    assert (status, "--overwrite" in said) == (2, True)


def test_an_extended_hub_folder_keeps_its_files(tmp_path, capsys):
    path = folders.shard(folders.write(tmp_path / "llama", folders.LLAMA))
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64, "eos_token": "<|endoftext|>"}))
    assert zoo(capsys, "extend", path, "--to", "256", "--method", "YaRN")[0] == 0
    status, said = zoo(capsys, "export", tmp_path / "llama-256", "--to", "hf", "--out", tmp_path / "out")
    assert (status, "hard link" in said) == (0, True), said
    for file in path.glob("*.safetensors"):
        assert os.path.samefile(file, tmp_path / "out" / file.name)
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["model_max_length"] == 256
    found = checkpoints.read(tmp_path / "out").about["network"]["init_args"]
    assert (found["length"], found["reach"]) == (64, 256)


def test_a_table_that_grew(tmp_path, capsys):
    path = folders.write(tmp_path / "gpt2", folders.GPT2)
    assert zoo(capsys, "extend", path, "--to", "128")[0] == 0
    status, said = zoo(capsys, "export", tmp_path / "gpt2-128", "--to", "hf", "--out", tmp_path / "out")
    assert status == 0, said
    assert json.loads((tmp_path / "out/config.json").read_text())["n_positions"] == 128


def test_the_gate_refuses_what_comes_back_different(tmp_path, capsys, monkeypatch):
    path = folders.write(tmp_path / "llama", folders.LLAMA)
    own = rope.Said.keys
    monkeypatch.setattr(rope.Said, "keys", lambda self: {**own(self), "rope_theta": 1e5, "rope_parameters": None})
    status, said = zoo(capsys, "export", path, "--to", "hf", "--out", tmp_path / "out")
    assert (status, "Not published: zoo reads the folder with other frequencies: wave" in said) == (2, True), said
    assert not (tmp_path / "out").exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["llama"]


@pytest.mark.parametrize("words", [["--to", "onnx"], ["--out", "x"], ["--to", "hf", "--out", "."]])
def test_wrong_words(tmp_path, capsys, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    path = folders.write(tmp_path / "llama", folders.LLAMA)
    status, said = zoo(capsys, "export", path, *words)
    assert (status, "Traceback" in said) == (2, False), said


def test_tokenizers():
    corpus = ["the cat sat on the mat, the dog on the log; 12345 don't\n\n  x" * 20, TRIED]
    own = train(corpus, 400)
    text, end = portable(own)
    found = Foreign("x", text, end=end)
    for sample in (*corpus, "  \n a\tb  ", "ünïcödé 🙂🙂", ""):
        ids = own.encode(sample)
        assert (found.encode(sample), found.decode(ids)) == (ids, sample)
        assert found.sizes(ids) == own.sizes(ids)
    plain = Tokenizer("bytes")
    text, end = portable(plain)
    assert Foreign("x", text, end=end).encode("añ") == plain.encode("añ")


@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed: pip install positionzoo[gguf]")
def test_a_file_of_llama_cpp_s(tmp_path, capsys):
    quickstart = ROOT / "checkpoints/quickstart"
    tokens = torch.arange(100)[None]
    network = checkpoints.read(quickstart).network()
    for kind, close in ((None, 1e-5), ("bfloat16", 0.1)):
        out = tmp_path / f"{kind}.gguf"
        words = [] if kind is None else ["--type", kind]
        status, said = zoo(capsys, "export", quickstart, "--to", "gguf", "--out", out, *words)
        assert status == 0, said
        found = checkpoints.read(out)
        with torch.no_grad():
            torch.testing.assert_close(found.network()(tokens), network(tokens), rtol=0, atol=close)
        assert Tokenizer.restore(found.about["tokenizer"]).encode("def f(x):") == Tokenizer.restore(
            checkpoints.read(quickstart).about["tokenizer"]
        ).encode("def f(x):")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["None.gguf", "bfloat16.gguf"]
    for words in (["--out", tmp_path / "x"], ["--out", tmp_path / "None.gguf"]):
        assert zoo(capsys, "export", quickstart, "--to", "gguf", *words)[0] == 2
