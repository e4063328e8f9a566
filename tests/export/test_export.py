"""Export: what a network is called there, that reading back gives it again, and what is refused."""

import importlib
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from zoo import checkpoints
from zoo.checkpoints import folder
from zoo.checkpoints.description import build, owners
from zoo.checkpoints.tensors import header
from zoo.data.tokenizer import Tokenizer, load, merges, train
from zoo.errors import ZooError
from zoo.export import rope
from zoo.export.config import export
from zoo.export.engines import command, derived
from zoo.export.tokenizer import TRIED, portable
from zoo.hub.arguments import complete
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
MOVING = {"LeakyReRoPE": {"factor": 2.0}}


def about(position="RoPE", extension=None, base=500.0, **arguments):
    """The description of a network."""
    own = {
        "base": base,
        **(
            {"extension": {"class_path": extension, "init_args": (EXTENSIONS | MOVING)[extension]}} if extension else {}
        ),
    }
    node = {"class_path": position, "init_args": own if position in ("RoPE", "pRoPE") else {}}
    reach = {"reach": 256} if extension else {}
    network = {"class_path": "zoo.decoder.Decoder", "init_args": {**SIZES, "position": node, **reach, **arguments}}
    return {"format": 1, "network": network}


def fope(kv_heads=2, qk_norm="none", **own):
    """The description of a network with FoPE."""
    told = about(kv_heads=kv_heads, qk_norm=qk_norm)
    told["network"]["init_args"]["position"] = {"class_path": "FoPE", "init_args": {"base": 100.0, **own}}
    return told


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
        (fope(dialect="paper", kv_heads=4), "matrix for each query head of each layer.* Try:  --code"),
        (fope(fraction=0.5), "rotates a part of a head only"),
        (fope(padding="identity"), "lets pairs without a series pass"),
        (fope(extension={"class_path": "YaRN", "init_args": {"factor": 2.0}}), "has an extension"),
        (fope(qk_norm="width"), "the nearest differs in .* Try:  --code"),
        (about(qk_norm="width"), "the nearest differs in"),
        (about(head_bias=True), "the nearest differs in head_bias"),
        (about(norm_at="stream"), "the nearest differs in norm_at"),
        (about(norm_at="stream", qk_norm="width"), "the nearest differs in norm_at"),
        (about(feed_forward="ReLU"), "the nearest differs in .*feed_forward"),
        (about(window=9, sinks=2), "no sinks.* Try:  --code"),
        (about(extension="LeakyReRoPE"), "moves positions in every layer's attention.* Try:  --code"),
    ],
)
def test_what_no_family_is(told, sentence):
    with pytest.raises(ZooError, match=sentence):
        export(told)


def saved(path, told):
    """A checkpoint with random weights and a tokenizer of bytes."""
    told["network"]["init_args"]["vocabulary"] = 257
    told |= {"task": "LanguageModel", "plugins": owners(told["network"]), "tokenizer": load("bytes").describe()}
    torch.manual_seed(0)
    network = build(told["network"])
    folder.write(path, told, network.state_dict(), "")
    return network.eval()


def same(path, network):
    """Whether a folder is read as a network."""
    tokens = torch.arange(60)[None]
    with torch.no_grad():
        torch.testing.assert_close(checkpoints.read(path).network()(tokens), network(tokens))


def test_fope_has_the_keys_of_engines(tmp_path, capsys):
    """Those of Intern-S1-Pro; the number of waves is said, and a model of its own for transformers."""
    network = saved(tmp_path / "from", fope(gain=0.5))
    status, said = zoo(capsys, "export", tmp_path / "from", "--to", "hf", "--check", "waves", "--out", tmp_path / "to")
    assert status == 0, said
    keys = json.loads((tmp_path / "to/config.json").read_text())
    form = {"rope_type": "default", "fope_init_factor": 0.5, "fope_sep_head": True, "num_inv_freq": 3}
    assert network.trunk.position.kept == 3
    assert (keys["rope_scaling"], keys["rope_parameters"]) == (form, {**form, "rope_theta": 100.0})
    assert (keys["rope_theta"], keys["architectures"]) == (100.0, ["LlamaForCausalLM"])
    assert keys["model_type"] == "zoo"
    held = header(tmp_path / "to/model.safetensors")
    assert [held[f"model.rotary_emb.{name}"].shape for name in ("cos_coef", "sin_coef")] == [(2, 3, 3)] * 2
    same(tmp_path / "to", network)
    card = (tmp_path / "to/README.md").read_text()
    assert "lmdeploy serve api_server to --backend pytorch" in card
    assert "Not by vLLM: it has FoPE in InternS1Pro only" in card
    status, said = zoo(capsys, "export", tmp_path / "to", "--to", "hf", "--check", "waves", "--out", tmp_path / "again")
    assert status == 0, said
    assert json.loads((tmp_path / "again/config.json").read_text()) == keys


def test_fope_says_what_a_family_takes_for_granted(tmp_path, capsys):
    """A config of type zoo has no defaults, and LMDeploy asks for attention_bias as for any number."""
    saved(tmp_path / "from", fope())
    words = ("--to", "hf", "--check", "waves", "--out")
    zoo(capsys, "export", tmp_path / "from", *words, tmp_path / "to")
    keys = json.loads((tmp_path / "to/config.json").read_text())
    bare = {name: value for name, value in keys.items() if name not in ("attention_bias", "mlp_bias", "head_dim")}
    (tmp_path / "to/config.json").write_text(json.dumps({**bare, "model_type": "llama", "auto_map": None}))
    status, said = zoo(capsys, "export", tmp_path / "to", *words, tmp_path / "again")
    assert status == 0, said
    assert json.loads((tmp_path / "again/config.json").read_text()) == keys


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"fope_sep_head": False}, "fope_sep_head: true"),
        ({"num_inv_freq": 9}, "1 to 4 waves"),
        ({"fope_num_inv_freq": 2}, "the same under"),
        ({"rope_type": "yarn", "factor": 2.0}, "no yarn rope besides"),
        ({"fope_depth": 2}, "fope_depth"),
    ],
)
def test_fope_of_others_is_read_or_refused(tmp_path, capsys, form, sentence):
    """As XTuner writes it, of the type of a family; a number of waves that is not said follows from the limit."""
    network = saved(tmp_path / "from", fope())
    zoo(capsys, "export", tmp_path / "from", "--to", "hf", "--check", "waves", "--out", tmp_path / "to")
    config = tmp_path / "to/config.json"
    keys = json.loads(config.read_text())
    keys = {name: value for name, value in keys.items() if name not in ("auto_map", "rope_parameters")}
    keys["model_type"] = "llama"
    keys["rope_scaling"]["num_inv_freq"] = None
    config.write_text(json.dumps(keys))
    same(tmp_path / "to", network)
    keys["rope_scaling"] |= {"num_inv_freq": 3, **form}
    config.write_text(json.dumps(keys))
    with pytest.raises(ZooError, match=sentence):
        checkpoints.listed(tmp_path / "to")


@pytest.mark.parametrize("encoding", ["FIRE", "FoX"])
def test_what_nobody_computes_brings_code(tmp_path, capsys, encoding):
    """FoX gates by hidden states, and says nothing of positions alone."""
    network = saved(tmp_path / "from", about(encoding))
    status, said = zoo(capsys, "export", tmp_path / "from", "--to", "hf", "--check", "waves", "--out", tmp_path / "to")
    assert (status, f"{encoding} is none that transformers' models have" in said) == (0, True), said
    same(tmp_path / "to", network)
    one, other = (Tokenizer.restore(checkpoints.read(tmp_path / name).about["tokenizer"]) for name in ("from", "to"))
    assert one.encode(TRIED) == other.encode(TRIED)
    card = (tmp_path / "to/README.md").read_text()
    assert "trust_remote_code=True" in card
    assert "vllm serve" not in card
    for file in ("configuration_zoo.py", "modeling_zoo.py"):
        compile((tmp_path / "to" / file).read_text(), file, "exec")


@pytest.mark.parametrize(
    ("told", "engine", "sentence"),
    [
        (about(extension="DynamicNTK"), "vllm", "vLLM does not serve this checkpoint: its dynamic scaling"),
        (about(extension="ByParts"), "sglang", None),
        (about("FIRE"), "sglang", "SGLang does not serve this checkpoint: it knows no such model"),
        (fope(), "vllm", "InternS1Pro only"),
        (about(extension="YaRN"), "vllm", None),
        (about(window=9), "vllm", None),
        (about(window=9), "sglang", "it has no windows in a mistral"),
        (about(qkv_bias=True, window=9, window_layers=[1, 3]), "vllm", "windows in all layers of a qwen2 or in none"),
        (about(feed_forward_bias=True), "sglang", "it has no biases in the feed-forward of a llama"),
        (about(qk_norm="head", qkv_bias=True, out_bias=True), "vllm", "no bias in the last projection of a qwen3's"),
    ],
)
def test_an_engine_that_is_asked_for(tmp_path, capsys, told, engine, sentence):
    saved(tmp_path / "from", told)
    words = ("--to", "hf", "--check", "waves", "--serve", engine, "--out", tmp_path / "to")
    status, said = zoo(capsys, "export", tmp_path / "from", *words)
    if sentence:
        assert (status, sentence in said, (tmp_path / "to").exists()) == (2, True, False), said
        return
    assert status == 0, said
    other = {"vllm": "sglang.launch_server", "sglang": "vllm serve"}[engine]
    assert other not in (tmp_path / "to/README.md").read_text()


def test_two_profiles_of_one_model(tmp_path, capsys):
    """As it was trained and as it was extended, of a checkpoint of ours and of a hub folder; the weights lie once."""
    hub = folders.write(tmp_path / "hub", folders.LLAMA)
    for source in (ROOT / "checkpoints/quickstart", hub):
        long, out = tmp_path / f"{source.name}-long", tmp_path / f"{source.name}-dual"
        to = 4 * checkpoints.listed(source).about["network"]["init_args"]["length"]
        assert zoo(capsys, "extend", source, "--to", to, "--method", "YaRN", "--out", long)[0] == 0
        words = ("--to", "hf", "--dual", "--check", "waves", "--out", out)
        status, said = zoo(capsys, "export", long, *words)
        assert status == 0, said
        router = json.loads((out / "router.json").read_text())
        rows = [{"folder": "short", "up_to": to // 4}, {"folder": "long", "up_to": to}]
        assert router == {"length": "prompt_tokens + max_new_tokens", "profiles": rows}
        tokens = torch.arange(50)[None]
        for name, one in (("short", source), ("long", long)):
            with torch.no_grad():
                expected, found = (checkpoints.read(path).network()(tokens) for path in (one, out / name))
            torch.testing.assert_close(found, expected)
        assert os.path.samefile(out / "short/model.safetensors", out / "long/model.safetensors")
        assert f"vllm serve {out.name}/short --max-model-len {to // 4} --port 8000" in (out / "README.md").read_text()
        assert zoo(capsys, "export", long, *words)[0] == 2
        assert zoo(capsys, "export", long, *words, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("method", "tuned", "sentence"),
    [(None, 0, "was not extended"), ("DroPE", 0, "was converted by DroPE"), ("YaRN", 7, "trained for 7 steps")],
)
def test_no_way_back_to_what_a_model_was(tmp_path, capsys, method, tuned, sentence):
    path = tmp_path / "from"
    saved(path, about())
    if method:
        assert zoo(capsys, "extend", path, "--to", "256", "--method", method, "--out", tmp_path / "long")[0] == 0
        path = tmp_path / "long"
    if tuned:
        told = yaml.safe_load((path / "config.yaml").read_text())
        told["extended"]["chain"][-1]["tuned"] = [{"steps": tuned}]
        (path / "config.yaml").write_text(yaml.safe_dump(told))
    status, said = zoo(capsys, "export", path, "--to", "hf", "--dual", "--out", tmp_path / "to")
    assert (status, sentence in said, (tmp_path / "to").exists()) == (2, True, False), said


def test_the_length_that_vllm_derives():
    """Its own rule: the limit, and of some forms the limit times the factor; never more than the tokenizer's."""
    lengths = {name: derived(export(about(extension=name)).keys, 256) for name in EXTENSIONS}
    assert lengths == dict.fromkeys(EXTENSIONS, 256) | {"DynamicNTK": 128}
    assert derived(export(about(extension="YaRN")).keys, 100) == 100
    said = export(about(extension="Linear"))
    said.keys["rope_parameters"]["factor"] = 3.99
    assert command("vllm", said, "x", 256) == "vllm serve x --max-model-len 255"
    assert command("sglang", said, "x", 256).endswith("--context-length 256")


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


@pytest.mark.parametrize("words", [["--serve", "vllm"], ["--dual"]])
def test_no_engine_reads_by_our_code(tmp_path, capsys, words):
    path = folders.write(tmp_path / "llama", folders.LLAMA)
    status, said = zoo(capsys, "export", path, "--to", "hf", "--code", *words)
    assert (status, "none reads a folder by zoo's own code" in said) == (2, True), said


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"architectures": ["ZooForCausalLM"]}, "config.yaml, which is missing"),
        ({"architectures": 5}, "config.yaml, which is missing"),
        ({"auto_map": {"AutoModelForCausalLM": "other.Model"}}, "brings its own code"),
    ],
)
def test_a_folder_that_only_says_it_is_ours(tmp_path, capsys, keys, sentence):
    path = folders.write(tmp_path / "llama", folders.LLAMA)
    (path / "config.json").write_text(json.dumps({**folders.LLAMA, "model_type": "zoo", **keys}))
    for words in (["--to", "hf"], ["--to", "hf", "--code"], ["--to", "gguf"]):
        status, said = zoo(capsys, "export", path, *words)
        assert (status, sentence in said) == (2, True), said


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


def test_what_a_tokenizer_of_another_library_says_is_kept(tmp_path, capsys):
    path = folders.write(tmp_path / "a llama", {**folders.LLAMA, "architectures": None})
    (path / "tokenizer.json").unlink()
    (path / "tokenizer.model").write_bytes(b"pieces")
    (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 9, "add_bos_token": True}))
    status, said = zoo(capsys, "export", path, "--to", "hf", "--check", "waves")
    assert status == 0, said
    out = tmp_path / "a llama-hf"
    assert (out / "tokenizer.model").read_bytes() == b"pieces"
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"model_max_length": 64, "add_bos_token": True}
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert "vllm serve 'a llama-hf' --max-model-len" in (out / "README.md").read_text()


def test_what_overwriting_does_not_delete(tmp_path, capsys):
    path = folders.write(tmp_path / "outer/llama", folders.LLAMA)
    clone = folders.write(tmp_path / "clone", folders.LLAMA)
    (clone / ".git").mkdir()
    (tmp_path / "outer/config.json").write_text("{}")
    for out, sentence in ((tmp_path / "outer", "holds the checkpoint"), (clone, "holds .git too")):
        status, said = zoo(capsys, "export", path, "--to", "hf", "--out", out, "--overwrite")
        assert (status, sentence in said) == (2, True), said
    assert (path / "model.safetensors").is_file()
    assert (clone / ".git").is_dir()


def test_a_part_of_a_head_is_a_gpt_neox_s():
    biases = {"qkv_bias": True, "out_bias": True, "feed_forward_bias": True}
    own = {"norm": "LayerNorm", "feed_forward": "GELU", "parallel": True, "kv_heads": 4, **biases}
    for arguments in (own, {}):
        told = about(**arguments)
        told["network"]["init_args"]["position"]["init_args"]["fraction"] = 0.5
        if arguments:
            assert export(told).keys["model_type"] == "gpt_neox"
        else:
            with pytest.raises(ZooError, match="No family of transformers' is this network"):
                export(told)


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


def test_a_token_that_no_merge_makes_is_not_passed_over():
    with pytest.raises(ZooError, match="b'abc' cannot be made"):
        merges({b"a": 0, b"b": 1, b"c": 2, b"abc": 3})
    assert merges({b"a": 0, b"b": 1, b"ab": 2, b"abab": 3}) == [(b"a", b"b"), (b"ab", b"ab")]


def test_a_description_that_names_no_encoding_has_rope():
    told = about()
    del told["network"]["init_args"]["position"]
    assert export(told).keys["rope_theta"] == 10000.0


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
    spaces = Tokenizer("spaces", own.ranks, r"\s+|\S+")  # splits by a rule of its own
    text, end = portable(spaces)
    assert Foreign("x", text, end=end).encode(TRIED) == spaces.encode(TRIED) != own.encode(TRIED)


@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed: pip install positionzoo[gguf]")
def test_a_disk_that_is_full_leaves_nothing(tmp_path, capsys, monkeypatch):
    importlib.import_module("zoo.hub.gguf.write")

    def full(path, *_):
        path.write_bytes(b"GG")
        raise OSError("38400 requested and 2 written")  # as numpy says it, which has no number for it

    monkeypatch.setattr(sys.modules["zoo.hub.gguf.write"], "pour", full)
    status, said = zoo(capsys, "export", ROOT / "checkpoints/quickstart", "--to", "gguf", "--out", tmp_path / "a.gguf")
    assert (status, "a.gguf was not written: 38400 requested and 2 written. What was" in said) == (2, True), said
    assert "/.a.gguf" not in said
    assert list(tmp_path.iterdir()) == []


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
    status, said = zoo(capsys, "export", quickstart, "--to", "hf", "--out", tmp_path / "folder")
    assert status == 0, said
    status, said = zoo(capsys, "export", tmp_path / "folder", "--to", "gguf", "--out", tmp_path / "folder.gguf")
    assert status == 0, said
    one, other = (checkpoints.listed(tmp_path / f"{name}.gguf").about["tokenizer"] for name in ("None", "folder"))
    assert Tokenizer.restore(one).digest == Tokenizer.restore(other).digest
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".gguf", ".gguf", ".gguf"]
    for words in (["--out", tmp_path / "x"], ["--out", tmp_path / "None.gguf"]):
        assert zoo(capsys, "export", quickstart, "--to", "gguf", *words)[0] == 2
