"""What zoo exports, as transformers reads it: the gate compares waves and logits, for each extension and family."""

import json

import pytest
import torch

from zoo import checkpoints
from zoo.checkpoints import folder
from zoo.checkpoints.description import build, owners
from zoo.export import gate
from zoo.export.write import plan, write

transformers = pytest.importorskip("transformers", reason="transformers is not installed here: tox -e parity")
pytestmark = pytest.mark.parity

EXTENSIONS = {
    "none": None,
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
NEOX = {
    "norm": "LayerNorm",
    "feed_forward": "GELU",
    "qkv_bias": True,
    "out_bias": True,
    "feed_forward_bias": True,
    "parallel": True,
    "kv_heads": 4,
    "tied": False,
}
FAMILIES = {
    "llama": {"tied": False},
    "mistral": {"window": 9},
    "qwen2": {"qkv_bias": True, "window": 9, "window_layers": [1]},
    "qwen3": {"qk_norm": "head", "head_dim": 16},
    "smollm3": {"nope_every": 2},
    "olmo2": {"norm_at": "after", "qk_norm": "width"},
    "gpt_neox": NEOX,
    "gpt2": {**NEOX, "parallel": False, "tied": True},
}


def made(path, extension=None, family="llama"):
    """A checkpoint of ours with random weights."""
    arguments = {"vocabulary": 97, "length": 64, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, **FAMILIES[family]}
    arguments["position"] = {"class_path": "Learned" if family == "gpt2" else "RoPE", "init_args": {}}
    if family != "gpt2":
        arguments["position"]["init_args"] = {"base": 500.0, **({"fraction": 0.5} if family == "gpt_neox" else {})}
    if EXTENSIONS.get(extension) is not None:
        node = {"class_path": extension, "init_args": EXTENSIONS[extension]}
        arguments["position"]["init_args"]["extension"] = node
        arguments["reach"] = 256
    network = {"class_path": "zoo.decoder.Decoder", "init_args": arguments}
    torch.manual_seed(0)
    model = build(network)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    about = {"format": 1, "network": network, "plugins": owners(network)}
    folder.write(path, about, model.state_dict(), "")
    return model.eval()


def exported(path, out):
    """A folder of theirs, which has passed."""
    found = checkpoints.listed(path)
    said = plan(found)
    write(found, said, out)
    told = gate.pass_through(out, checkpoints.read(path).network())
    assert f"transformers {transformers.__version__}: logits" in " ".join(told)
    return said


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_extensions(tmp_path, extension, family):
    """At lengths below and above that of training."""
    ours = made(tmp_path / "ours", extension, family)
    exported(tmp_path / "ours", tmp_path / "theirs")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", attn_implementation="eager").eval()
    for count in (30, 200):
        tokens = torch.randint(97, (1, count))
        with torch.no_grad():
            torch.testing.assert_close(ours(tokens), model(tokens).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path, family):
    made(tmp_path / "ours", None, family)
    said = exported(tmp_path / "ours", tmp_path / "theirs")
    assert said.keys["model_type"] == family


def test_a_form_that_one_version_lacks_is_no_plain_rope_there(tmp_path):
    """p-RoPE: version 5 has it, and version 4 must not read a folder as if nothing were said."""
    made(tmp_path / "ours")
    about = folder.said(tmp_path / "ours")
    about["network"]["init_args"]["position"] = {"class_path": "pRoPE", "init_args": {"base": 500.0, "fraction": 0.5}}
    folder.describe(tmp_path / "ours", about, "")
    if hasattr(transformers.LlamaConfig(), "rope_parameters"):
        exported(tmp_path / "ours", tmp_path / "theirs")
    else:
        with pytest.raises(KeyError, match="proportional"):
            exported(tmp_path / "ours", tmp_path / "theirs")


def test_keys_of_the_newer_generation_alone_would_not_do():
    """Why both are written: version 4 reads the older ones, and nothing else."""
    if hasattr(transformers.LlamaConfig(), "rope_parameters"):
        pytest.skip("this is version 5, which reads both")
    config = transformers.LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    assert (config.rope_theta, config.rope_scaling) == (10000.0, None)


def test_the_gate_stops_a_folder_that_transformers_reads_otherwise(tmp_path):
    """Keys that disagree: theirs count for transformers 5, and the older ones for 4, whichever is installed."""
    made(tmp_path / "ours", "YaRN")
    exported(tmp_path / "ours", tmp_path / "theirs")
    network = checkpoints.read(tmp_path / "ours").network()
    path = tmp_path / "theirs/config.json"
    keys = json.loads(path.read_text())
    for name in ("rope_scaling", "rope_parameters"):
        keys[name]["attention_factor"] = 1.5
    path.write_text(json.dumps(keys))
    with pytest.raises(Exception, match=r"other frequencies: the attention factor, 1\.5 for 1\.138"):
        gate.theirs(tmp_path / "theirs", network)
