"""Hugging Face's folders: what is read and how lazily; what is refused, and in which words."""

import json
import math
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
import folders
import pieces
from folders import zoo

from zoo import checkpoints, resume
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ZooError
from zoo.hub.foreign import Foreign


@pytest.mark.parametrize("config", [folders.LLAMA, folders.GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_one_file_and_shards_with_and_without_prefix_are_the_same(tmp_path, config, prefix, sharded):
    plain = folders.write(tmp_path / "plain", config)
    name = "model." if config is folders.LLAMA else "transformer."
    other = folders.write(tmp_path / "other", config, prefix=name if prefix else "")
    if sharded:
        folders.shard(other)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        expected, found = (checkpoints.read(path).network()(tokens) for path in (plain, other))
    assert torch.equal(found, expected)


def test_a_listing_reads_no_weight(tmp_path):
    """Of files whose weights are missing (a hole in the file), all is known but the numbers."""
    path = folders.write(tmp_path / "llama", folders.LLAMA) / "model.safetensors"
    expected = {name: weight.shape for name, weight in checkpoints.read(path.parent).network().state_dict().items()}
    size = path.stat().st_size
    head = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    os.truncate(path, head)
    os.truncate(path, size)
    found = checkpoints.listed(path.parent)
    assert {name: torch.Size(stored.shape) for name, stored in found.weights.items()} == expected
    assert not found.weights["trunk.blocks.0.attention.qkv.weight"].tensor().any()


def test_the_order_of_rows_is_queries_keys_values_and_gate_up(tmp_path):
    path = folders.write(tmp_path / "llama", folders.LLAMA)
    theirs, ours = load_file(path / "model.safetensors"), checkpoints.read(path).weights
    names = [f"layers.1.self_attn.{which}_proj.weight" for which in "qkv"]
    assert torch.equal(ours["trunk.blocks.1.attention.qkv.weight"], torch.cat([theirs[name] for name in names]))
    names = [f"layers.1.mlp.{which}_proj.weight" for which in ("gate", "up")]
    assert torch.equal(ours["trunk.blocks.1.feed_forward.up.weight"], torch.cat([theirs[name] for name in names]))


def test_there_and_back_is_the_identity(tmp_path):
    from zoo.hub import families
    from zoo.hub.config import Config
    from zoo.hub.files import stored

    for config in (folders.LLAMA, folders.GPT2, NEOX):
        path = folders.write(tmp_path / config["model_type"], config)
        layout = families.network(Config(path, config)).layout
        held = stored(path)
        back = layout.theirs(layout.ours(held, path))
        assert {layout.plain(name) for name in back} == held.keys()
        assert all(name.startswith(layout.prefix) != (name in ("lm_head.weight", "embed_out.weight")) for name in back)
        for name, tensor in back.items():
            assert torch.equal(tensor.tensor(), held[layout.plain(name)].tensor()), name


def test_extending_links_the_weights_and_copies_what_people_edit(tmp_path, capsys):
    path = folders.shard(folders.write(tmp_path / "llama", folders.LLAMA))
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    shards = sorted(path.glob("*.safetensors"))
    for number, shard in enumerate(shards):
        os.utime(shard, ns=(number, 10**18 + number))  # as old as it stays
        shard.chmod(0o444)
    stood = [(shard.stat().st_ino, shard.stat().st_mtime_ns, shard.stat().st_size) for shard in shards]
    status, said = zoo(capsys, "extend", path, "--to", "256", "--method", "YaRN", "--evaluate", "none")
    assert (status, "hard link" in said) == (0, True), said
    new = tmp_path / "llama-256"
    for place in (path, new / "hub"):
        found = [(place / shard.name).stat() for shard in shards]
        assert [(each.st_ino, each.st_mtime_ns, each.st_size) for each in found] == stood
    assert not [file for file in new.rglob("*.safetensors") if file.parent != new / "hub"], "no weight has changed"
    for name in before:
        linked = os.path.samefile(path / name, new / "hub" / name)
        assert linked == name.endswith(".safetensors"), name
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        found, parent = (checkpoints.read(each).network() for each in (new, path))
        assert not torch.equal(found(tokens), parent(tokens))
    assert all(torch.equal(weight, parent.state_dict()[name]) for name, weight in found.state_dict().items())
    assert found.reach == 256
    status, said = zoo(capsys, "extend", new, "--to", "512", "--method", "YaRN", "--evaluate", "none")
    assert status == 0, said
    assert yaml.safe_load((tmp_path / "llama-512/config.yaml").read_text())["extended"]["length"] == 64
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    status, said = zoo(capsys, "extend", path, "--to", "128", "--out", new, "--overwrite", "--method", "NTK")
    assert status == 0, said


@pytest.mark.parametrize("head", ["embed_out.weight", "lm_head.weight"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_pickled_gpt_neox_of_either_version_is_read_with_the_buffers_of_old_files(tmp_path, head, tied):
    """In memory transformers 5 calls the head lm_head, 4 embed_out; files of 2022 hold masks and frequencies."""
    config = {**NEOX, "tie_word_embeddings": tied}
    plain = folders.write(tmp_path / "plain", config)
    weights = {f"gpt_neox.{name}": tensor for name, tensor in load_file(plain / "model.safetensors").items()}
    weights[head] = weights.pop("gpt_neox.embed_out.weight", weights["gpt_neox.embed_in.weight"])
    for layer in range(2):
        attention = f"gpt_neox.layers.{layer}.attention"
        weights[f"{attention}.bias"] = torch.ones(1, 1, 64, 64).tril().bool()
        weights[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        weights[f"{attention}.rotary_emb.inv_freq"] = torch.ones(1)
    weights["gpt_neox.rotary_emb.inv_freq"] = torch.ones(1)
    pickled = folders.write(tmp_path / "pickled", config)
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    expected, found = (checkpoints.read(path).network().state_dict() for path in (plain, pickled))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    if not tied:
        both = {**weights, "embed_out.weight": torch.zeros(300, 32), "lm_head.weight": torch.zeros(300, 32)}
        torch.save(both, pickled / "pytorch_model.bin")
        with pytest.raises(ZooError, match=r"both lm_head\.weight and embed_out\.weight, two names of one tensor"):
            checkpoints.listed(pickled)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_network_is_not_drawn_and_its_file_is_not_written_to(tmp_path, kind):
    """The pages of a file are a weight where it lies in one piece and has the type; to write there is to copy."""
    path = folders.write(tmp_path / "llama", folders.LLAMA)
    whole = {name: tensor.to(kind) for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(whole, path / "model.safetensors")
    before, state = (path / "model.safetensors").read_bytes(), torch.get_rng_state()
    network, other = (checkpoints.read(path).network() for _ in "ab")
    assert torch.equal(torch.get_rng_state(), state)
    own = network.state_dict()
    assert {tensor.dtype for tensor in own.values()} == {torch.float32}
    assert torch.equal(own["embedding.weight"], whole["embed_tokens.weight"].float())
    parts = [whole[f"layers.1.self_attn.{which}_proj.weight"].float() for which in "qkv"]
    assert torch.equal(own["trunk.blocks.1.attention.qkv.weight"], torch.cat(parts))
    mapped = [each for each in checkpoints.listed(path).weights.values() if each.mapped() is not None]
    assert any(len(each.runs) > 1 for each in checkpoints.listed(path).weights.values())
    assert len(mapped) >= 10
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert torch.equal(own["embedding.weight"], whole["embed_tokens.weight"].float() + 1)
    assert torch.equal(other.embedding.weight, whole["embed_tokens.weight"].float())
    assert (path / "model.safetensors").read_bytes() == before


def test_a_file_that_shrinks_meanwhile_is_told(tmp_path):
    path = folders.write(tmp_path / "llama", folders.LLAMA)
    found = checkpoints.read(path)
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(20_000)
    with pytest.raises(ZooError, match="is truncated"):
        found.network()


def test_a_table_that_grows_is_all_that_is_written(tmp_path, capsys):
    path = folders.write(tmp_path / "gpt2", folders.GPT2)
    status, said = zoo(capsys, "extend", path, "--to", "128", "--evaluate", "none")
    assert status == 0, said
    assert list(load_file(tmp_path / "gpt2-128/position.safetensors")) == ["trunk.positions.0.table"]
    assert checkpoints.read(tmp_path / "gpt2-128").network()(torch.arange(100)[None]).shape == (1, 100, 300)


def test_a_folder_that_was_scaled_elsewhere_is_not_scaled_again_blindly(tmp_path, capsys):
    scaled = {**folders.LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}}
    path = folders.write(tmp_path / "llama", scaled)
    assert checkpoints.read(path).network().reach == 128
    status, said = zoo(capsys, "extend", path, "--to", "256", "--method", "YaRN", "--evaluate", "none")
    assert (status, "--from" in said) == (2, True), said


def test_the_tokenizer_is_the_folder_s_own(tmp_path):
    found = checkpoints.read(folders.write(tmp_path / "llama", folders.LLAMA)).about["tokenizer"]
    tokenizer = Tokenizer.restore(json.loads(json.dumps(found)))
    assert isinstance(tokenizer, Foreign)
    text = "Hällo, wörld!\n"
    ids = tokenizer.encode(text)
    assert (tokenizer.decode(ids), tokenizer.sizes(ids)) == (text, [1] * len(text.encode()))
    assert tokenizer.end == 256 not in tokenizer.encode("a <|endoftext|> b")
    assert tokenizer.decode(tokenizer.encode("a <|endoftext|> b")) == "a <|endoftext|> b"
    assert tokenizer.decode([*ids, 256, 10**6, -1]).startswith(text + "<|endoftext|>\ufffd")
    again = Tokenizer.restore(tokenizer.describe())
    assert (again.digest, again.encode(text)) == (tokenizer.digest, ids)


def test_no_text_is_the_end_whatever_a_normalizer_makes_of_it():
    said = json.loads(folders.tokenizer())
    said["normalizer"] = {"type": "Lowercase"}
    said["added_tokens"][0]["normalized"] = True
    tokenizer = Foreign("mine", json.dumps(said), end="<|endoftext|>")
    for text in ("a <|ENDOFTEXT|> b", "a <|endoftext|> b"):
        assert tokenizer.end not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == "a <|endoftext|> b"


@pytest.mark.parametrize(
    ("files", "start", "prefix"),
    [
        ({"tokenizer_config.json": {"bos_token": "<s>"}}, 1, 1),
        ({"tokenizer_config.json": {"bos_token": {"content": "<s>", "special": True}}}, 1, 1),
        ({"tokenizer_config.json": {"bos_token": None}, "special_tokens_map.json": {"bos_token": "<s>"}}, None, 2),
        ({"special_tokens_map.json": {"bos_token": "<s>"}}, 1, 1),
        ({"tokenizer_config.json": {"bos_token": "<of another model>"}}, None, 2),
        ({}, None, 2),
    ],
)
def test_what_begins_a_document_is_read_as_transformers_does(tmp_path, files, start, prefix):
    config = {**folders.LLAMA, "vocab_size": 512, "eos_token_id": 2, "bos_token_id": 1}
    path = folders.write(tmp_path / "llama", config)
    (path / "tokenizer.json").write_text(pieces.sentencepiece(start=False))
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    found = Tokenizer.restore(checkpoints.listed(path).about["tokenizer"])
    for each in (found, Tokenizer.restore(found.describe()), pickle.loads(pickle.dumps(found))):
        assert (each.start, each.prefix, each.end, each.encode_prefix()) == (start, prefix, 2, [])
    (path / "tokenizer.json").write_text(pieces.sentencepiece())
    found = Tokenizer.restore(checkpoints.listed(path).about["tokenizer"])
    assert (found.start, found.encode_prefix(), 1 in found.encode("a")) == (1, [1], False)
    for wrong in ("one", [], float("inf")):
        with pytest.raises(ZooError, match="description of a tokenizer is damaged"):
            Tokenizer.restore({**found.describe(), "start": wrong})
    assert Tokenizer.restore({**found.describe(), "start": 10**9}).start == 1, "no number of this vocabulary"


NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_act": "gelu",
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000,
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 16,
}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 9}
WRONG = {
    "an unknown family": ({"model_type": "mamba"}, "of the type mamba, and zoo reads llama"),
    "a near name": ({"model_type": "gpt_nox"}, "Did you mean gpt_neox"),
    "another head": ({"architectures": ["LlamaForSequenceClassification"]}, "zoo reads LlamaForCausalLM"),
    "an unknown key": ({"attention_multiplier": 2.0}, "attention_multiplier, which zoo does not know"),
    "another activation": ({"hidden_act": "relu"}, "hidden_act: \"relu\"; only 'silu' is known"),
    "code of its own": ({"auto_map": {"AutoModel": "x.Y"}}, "brings its own code"),
    "quantized": ({"quantization_config": {"bits": 4}}, "read from GGUF only"),
    "a float for a length": ({"max_position_embeddings": 64.5}, "should be of type int"),
    "no width": ({"hidden_size": None}, "does not say hidden_size"),
    "an unknown rope": ({"rope_scaling": {"type": "ntk", "factor": 2}}, "of the type ntk, and zoo knows default"),
    "a rope without a factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling does not say factor"),
    "a rope with more": ({"rope_scaling": {**YARN, "attn_factor": 0.9}}, "has attn_factor, which zoo does not know"),
    "two ropes": (
        {"rope_scaling": YARN, "rope_parameters": {**YARN, "rope_theta": 1e4, "factor": 8.0}},
        "of factor, rope_scaling (transformers 4) says 4.0 and rope_parameters (transformers 5) 8.0",
    ),
    "two types of rope": (
        {"rope_scaling": YARN, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "contradicts itself: of factor",
    ),
    "two bases": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "rope_theta of rope_parameters is 500000, rope_theta is 10000",
    ),
    "waves of their own in some layers": (
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e6},
            }
        },
        "the same waves in all layers",
    ),
    "more layers than there are": ({"num_hidden_layers": 3}, "there is no layers.2.self_attn.q_proj.weight"),
    "fewer": ({"num_hidden_layers": 1}, "there is no place for layers.1"),
    "another width": ({"intermediate_size": 64}, "layers.0.mlp.gate_proj.weight is [48, 32] and should be [64, 32]"),
    "tied, with a head of its own": ({"tie_word_embeddings": True}, "there is no place for lm_head.weight"),
    "fewer tokens": ({"vocab_size": 200}, "is [300, 32] and should be [200, 32]"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads: 0; there should be 1 at least"),
    "no number": ({"rms_norm_eps": float("nan")}, "rms_norm_eps: NaN; that is no number to compute with"),
    "a list for a type": ({"model_type": ["llama"]}, "should be of type str"),
    "a word for a list": ({"architectures": 1}, "should be of type list"),
    "a rope of no number": (
        {"rope_scaling": {**YARN, "original_max_position_embeddings": float("inf")}},
        "says inf for original_max_position_embeddings, which should be a number",
    ),
    "a rope of no length": (
        {"rope_scaling": {**LONG, "original_max_position_embeddings": 0}},
        "original_max_position_embeddings 0, which is no length",
    ),
    "a rope of no waves": ({"rope_scaling": {**LONG, "long_factor": [1, 2, None, 4]}}, "a list of 4 numbers"),
    "two original lengths": (
        {"rope_scaling": YARN, "original_max_position_embeddings": 32},
        "original_max_position_embeddings of rope_scaling is 16, original_max_position_embeddings is 32",
    ),
    "two bases in two ropes": (
        {"rope_scaling": {**YARN, "rope_theta": 5e5}, "rope_parameters": {**YARN, "rope_theta": 1e4}},
        "of rope_theta, rope_scaling (transformers 4) says 500000.0",
    ),
    "half a head": ({"partial_rotary_factor": 0.5}, "in a llama transformers turns whole heads"),
    "a window that transformers passes over": (
        {"sliding_window": 9, "use_sliding_window": True},
        "transformers passes over the window of a llama",
    ),
    "layers with a window that there is not": (
        {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]},
        "by sliding_window and use_sliding_window there is no window",
    ),
    "a window that transformers has": (
        {**MISTRAL, "use_sliding_window": False},
        "transformers has the window of a mistral all the same",
    ),
    "biases that transformers has not": ({**MISTRAL, "attention_bias": True}, "attention_bias: true; only False"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_understood_is_refused_by_name(tmp_path, capsys, case):
    changes, sentence = WRONG[case]
    path = folders.write(tmp_path / "llama", folders.LLAMA)
    (path / "config.json").write_text(json.dumps({**folders.LLAMA, **changes}))
    status, said = zoo(capsys, "evaluate", path, "--out", tmp_path / "out")
    assert (status, sentence in " ".join(said.split()), "Traceback" in said) == (2, True, False), said


def test_a_key_that_says_nothing_is_none(tmp_path):
    folders.write(tmp_path, {**folders.LLAMA, "attention_multiplier": None, "rope_scaling": None, "_private": 3})
    checkpoints.read(tmp_path)


PUBLISHED = {
    "Qwen2.5 and the distilled DeepSeek-R1": {"use_mrope": False},
    "Llama 2 of 13B": {"pretraining_tp": 2},
    "LLaMA of 2023": {"max_sequence_length": 2048},
    "GPT-NeoX-20B": {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0},
    "GPT-2 medium and XL": {"n_special": 0, "predict_special_tokens": True, "output_past": True},
    "unsloth": {"unsloth_version": "2026.4.7", "unsloth_fixed": True},
    "a Mistral": {**MISTRAL, "attention_bias": False, "mlp_bias": False},
}


@pytest.mark.parametrize("whose", PUBLISHED)
def test_keys_of_published_models_that_change_no_number(tmp_path, whose):
    checkpoints.listed(folders.write(tmp_path, {**folders.LLAMA, **PUBLISHED[whose]}))


def test_a_window_has_the_width_of_transformers_where_none_is_said(tmp_path):
    windows = {"use_sliding_window": True, "max_window_layers": 1}
    qwen2 = {**folders.LLAMA, "architectures": None, "model_type": "qwen2", **windows}
    found = checkpoints.listed(folders.write(tmp_path, qwen2)).about["network"]["init_args"]
    assert (found["window"], found["window_layers"]) == (4096, [1])


def test_an_attention_factor_that_is_said_counts_before_two_scales(tmp_path):
    scales = {"mscale": 0.7, "mscale_all_dim": 0.3}
    for more, factor in (({}, "mscale"), ({"attention_factor": 0.9}, "attention")):
        path = folders.write(tmp_path / factor, {**folders.LLAMA, "rope_scaling": {**YARN, **scales, **more}})
        network = checkpoints.read(path).network()
        at = torch.zeros(1, 1)
        said = 0.9 if more else (0.07 * math.log(4) + 1) / (0.03 * math.log(4) + 1)
        assert network.trunk.position(at, at, 64).rotation.factor == pytest.approx(said)


def test_both_generations_may_say_the_same(tmp_path):
    path = folders.write(tmp_path / "a", {**folders.LLAMA, "rope_scaling": YARN, "max_position_embeddings": 64})
    one = checkpoints.read(path).about["network"]["init_args"]
    both = {**folders.LLAMA, "rope_scaling": YARN, "rope_parameters": {**YARN, "rope_theta": 1e4}}
    assert checkpoints.read(folders.write(tmp_path / "b", both)).about["network"]["init_args"] == one
    assert (one["length"], one["reach"]) == (16, 64)


def damage(path, how):
    """Make a folder incomplete in one way."""
    weights, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if how == "no weights":
        weights.unlink()
    elif how == "truncated":
        os.truncate(weights, weights.stat().st_size - 5)
    elif how == "no json":
        (path / "config.json").write_text("{")
    elif how == "pickled code":
        weights.unlink()
        torch.save({"a": print}, path / "pytorch_model.bin")
    elif how == "tokenizer":
        (path / "tokenizer.json").write_text("{}")
    elif how == "a tokenizer of no text":
        (path / "tokenizer.json").write_bytes(b"\xff\xfe")
    elif how == "settings":
        (path / "tokenizer_config.json").write_text("[]")
    elif how == "two names":
        save_file({**load_file(weights), "model.norm.weight": torch.zeros(32)}, weights)
    elif how == "a type of numbers":
        save_file({**load_file(weights), "norm.weight": torch.zeros(32).to(torch.float8_e4m3fn)}, weights)
    elif how == "another tokenizer":
        (path / "tokenizer.json").write_text(folders.tokenizer(extra=50))
    else:
        folders.shard(path)
        places = json.loads(index.read_text())
        if how == "a shard is missing":
            (path / "model-00002-of-00002.safetensors").unlink()
        elif how == "the index promises":
            places["weight_map"]["layers.9.x"] = "model-00001-of-00002.safetensors"
        elif how == "the shard holds more":
            places["weight_map"].pop("norm.weight")
        elif how == "outside":
            places["weight_map"]["norm.weight"] = "../else.safetensors"
        index.write_text(json.dumps(places))


@pytest.mark.parametrize(
    ("how", "sentence"),
    {
        "no weights": "holds no weights: neither model.safetensors",
        "truncated": "is damaged: the file has",
        "no json": "config.json is damaged",
        "pickled code": "needs code beyond plain tensors",
        "tokenizer": "tokenizer llama is damaged",
        "a tokenizer of no text": "tokenizer.json is damaged: UnicodeDecodeError",
        "settings": "tokenizer_config.json is damaged: it holds no keys and values",
        "two names": "model.norm.weight with and without model.",
        "a type of numbers": "has norm.weight of the type F8_E4M3, and zoo reads F64",
        "another tokenizer": "does not belong to the model: it has 307 tokens, and the model 300",
        "a shard is missing": "names model-00002-of-00002.safetensors, and it is not there",
        "the index promises": "should hold layers.9.x, and it is not there",
        "the shard holds more": "holds norm.weight, and the index does not say so",
        "outside": "which is no file of weights in its folder",
    }.items(),
)
def test_damaged_folders(tmp_path, how, sentence):
    path = folders.write(tmp_path / "llama", folders.LLAMA)
    damage(path, how)
    with pytest.raises(ZooError) as error:
        checkpoints.listed(path)
    assert sentence in " ".join(str(error.value).split())


def test_a_tied_head_may_be_in_the_file_where_it_is_the_same(tmp_path):
    config = {**folders.LLAMA, "tie_word_embeddings": True}
    weights = folders.tensors(config)
    weights["lm_head.weight"] = weights["embed_tokens.weight"].clone()
    network = checkpoints.read(folders.write(tmp_path, config, weights)).network()
    assert network.head.weight is network.embedding.weight
    save_file({**weights, "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, tmp_path / "model.safetensors")
    checkpoints.read(tmp_path)


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_the_trainer_takes_its_weights_and_says_so(tmp_path, capsys, verb):
    path = folders.write(tmp_path / "llama", folders.LLAMA)
    with pytest.raises(ZooError, match=r"holds a model and no run.* zoo fit --model\.weights"):
        resume.stored(str(path), verb)


def test_a_run_starts_from_a_folder_whose_tokenizer_has_fewer_numbers(tmp_path, capsys):
    path = folders.write(tmp_path / "llama", folders.LLAMA)
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 200)
    words = ["--data.files", tmp_path / "text.txt", "--data.batch", "2", "--data.cache", tmp_path / "cache"]
    words += ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1"]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", tmp_path / "run"]
    status, said = zoo(capsys, "fit", "--model.weights", path, *words, "--data.workers", "0")
    assert status == 0, said
    (folder,) = (tmp_path / "run").rglob("model")
    found = checkpoints.read(folder)
    assert found.about["network"]["init_args"]["vocabulary"] == 300
    assert Tokenizer.restore(found.about["tokenizer"]).vocabulary == 257
    assert not torch.equal(found.weights["head.weight"], checkpoints.read(path).weights["head.weight"])
