"""Folders as transformers writes them, read by us: the same logits, at positions beyond the trained length too."""

import json

import pytest
import torch

from zoo import checkpoints

transformers = pytest.importorskip("transformers", reason="transformers is not installed here: tox -e parity")
pytestmark = pytest.mark.parity

NEW = hasattr(transformers.LlamaConfig(), "rope_parameters")
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
LISTS = {"short_factor": [1.0, 1.1, 1.5, 2.0], "long_factor": [1.0, 2.0, 3.5, 4.0]}
FAMILIES = {
    "Llama": ("LlamaConfig", GROUPED),
    "Llama, tied, biases": (
        "LlamaConfig",
        {**SMALL, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    ),
    "Mistral": ("MistralConfig", {**GROUPED, "sliding_window": None}),
    "Mistral, window": ("MistralConfig", {**GROUPED, "sliding_window": 9}),
    "Qwen2": ("Qwen2Config", GROUPED),
    "Qwen2, window": (
        "Qwen2Config",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    ),
    "Qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "Qwen3, tied, biases": ("Qwen3Config", {**GROUPED, "tie_word_embeddings": True, "attention_bias": True}),
    "SmolLM3": ("SmolLM3Config", {**GROUPED, "no_rope_layer_interval": 2, "pad_token_id": 0}),
    "SmolLM3, window": (
        "SmolLM3Config",
        {
            **GROUPED,
            "no_rope_layers": [0, 1, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 9,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
        },
    ),
    "OLMo2": ("Olmo2Config", GROUPED),
    "GPT-NeoX": ("GPTNeoXConfig", {**SMALL, "rotary_pct": 0.25, "rotary_emb_base": 1e4}),
    "GPT-NeoX, one after the other": (
        "GPTNeoXConfig",
        {
            **SMALL,
            "use_parallel_residual": False,
            "hidden_act": "gelu_new",
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "GPT-2": ("GPT2Config", {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}),
}
ROPES = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, all said": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "attention_factor": 1.2,
        "truncate": False,
    },
    "yarn, scales": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
    },
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {**LISTS, "original_max_position_embeddings": 16, "factor": 4.0},
}


def saved(folder, name, arguments, **options):
    """A model of transformers with random weights, all of them, written as it writes them."""
    torch.manual_seed(0)
    config = getattr(transformers, name)(**arguments)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (0.9 if parameter.ndim == 1 else 0.0))
    model.save_pretrained(folder, **options)
    return model


def loaded(folder):
    """A folder as transformers reads it."""
    words = {"dtype" if NEW else "torch_dtype": torch.float32, "attn_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **words).eval()


def compare(folder, model, count=100):
    """Logits of some tokens, ours of the folder beside theirs."""
    torch.manual_seed(1)
    tokens = torch.randint(1, 97, (2, count))
    with torch.no_grad():
        expected = model(tokens).logits
        found = checkpoints.read(folder).network()(tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path, family):
    name, arguments = FAMILIES[family]
    compare(tmp_path, saved(tmp_path, name, arguments))


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX"])
def test_ropes(tmp_path, rope, family):
    name, arguments = FAMILIES[family]
    said = {"rope_type": rope, **ROPES[rope]}
    if family == "GPT-NeoX":
        arguments = {**arguments, "rotary_pct": 1.0, "rotary_emb_base": 500.0}
    if NEW:
        theta = 500.0
        part = {"partial_rotary_factor": 1.0} if family == "GPT-NeoX" else {}
        arguments = {**arguments, "rope_parameters": {"rope_theta": theta, **part, **said}}
    else:
        arguments = {**arguments, "rope_theta": 500.0, "rope_scaling": said}
        if rope == "longrope":  # version 4 looks for it here only, and takes the limit where it is not
            arguments["original_max_position_embeddings"] = said["original_max_position_embeddings"]
    model = saved(tmp_path, name, arguments)
    for count in (12, 100):
        compare(tmp_path, model, count)


@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX", "GPT-2", "Qwen3"])
def test_shards(tmp_path, family):
    name, arguments = FAMILIES[family]
    model = saved(tmp_path, name, arguments, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    compare(tmp_path, model)


@pytest.mark.parametrize("family", FAMILIES)
def test_pickled_weights(tmp_path, family):
    """The names that a model has in memory are not always those that `save_pretrained` writes."""
    model = saved(tmp_path, *FAMILIES[family])
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    compare(tmp_path, model)


def test_weights_in_bfloat16_are_those_of_transformers(tmp_path):
    model = saved(tmp_path, *FAMILIES["Llama"])
    model.bfloat16().save_pretrained(tmp_path)
    compare(tmp_path, loaded(tmp_path))


def test_keys_of_the_older_version(tmp_path):
    """What is on the hub: no rope_parameters, theta and scaling beside each other."""
    saved(tmp_path, *FAMILIES["Llama"])
    keys = json.loads((tmp_path / "config.json").read_text())
    keys.pop("rope_parameters", None)
    keys |= {"rope_theta": 5e2, "rope_scaling": {"type": "linear", "factor": 3.0}, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    compare(tmp_path, loaded(tmp_path))
