"""What is exported, as the rotary classes of vLLM, SGLang and LMDeploy turn queries and keys."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from zoo import checkpoints
from zoo.checkpoints import folder
from zoo.checkpoints.description import build, owners
from zoo.errors import ZooError
from zoo.export import engines as exported
from zoo.export import remote
from zoo.export.write import plan, write

sys.path.insert(0, str(Path(__file__).parent))
import engines

pytestmark = pytest.mark.parity
FORMS = {
    "none": None,
    "half of a head": None,
    "Linear": {"factor": 4.0},
    "YaRN": {"factor": 4.0},
    "YaRN, its own numbers": {"factor": 4.0, "fast": 16.0, "slow": 2.0, "truncate": False},
    "Llama3": {"factor": 4.0},
    "NTK": {"factor": 4.0},
    "LongRoPE": {"factor": 4.0},
    "ByParts": {"factor": 4.0, "attention": 1.1},
    "DynamicNTK": {"factor": 4.0},
    "YaRN, attention": {"factor": 4.0, "attention": 1.3},
}
OTHERWISE = {("vllm", "DynamicNTK"), ("sglang", "DynamicNTK"), ("sglang", "YaRN, attention")}


@pytest.fixture(params=["vllm", "sglang"])
def engine(request, monkeypatch):
    """The name of one whose rotary classes can be imported."""
    with engines.installed(request.param):
        if request.param == "sglang":
            from sglang.srt.layers.rotary_embedding.rope_variant import FourierRotaryEmbedding

            monkeypatch.setitem(FourierRotaryEmbedding.__init__.__kwdefaults__, "device", "cpu")
        yield request.param


def made(path, position, **more):
    """A checkpoint with random weights, its config as exported, and the network."""
    sizes = {"vocabulary": 97, "length": 64, "dim": 64, "layers": 2, "heads": 4, "kv_heads": 2}
    network = {"class_path": "zoo.decoder.Decoder", "init_args": {**sizes, "position": position, **more}}
    torch.manual_seed(0)
    model = build(network)
    about = {"format": 1, "task": "LanguageModel", "network": network, "plugins": owners(network)}
    folder.write(path, about, model.state_dict(), "")
    return plan(checkpoints.listed(path)), model.eval()


NEOX = {"norm": "LayerNorm", "feed_forward": "GELU", "kv_heads": 4, "parallel": True, "tied": False}
NEOX |= dict.fromkeys(("qkv_bias", "out_bias", "feed_forward_bias"), True)
"""The family of which a part of each head is rotated."""


def extended(path, name):
    half = name == "half of a head"
    own = {"base": 500.0, "fraction": 0.5 if half else 1.0}
    if FORMS[name] is not None:
        own["extension"] = {"class_path": name.partition(",")[0], "init_args": FORMS[name]}
    return made(
        path,
        {"class_path": "RoPE", "init_args": own},
        **(NEOX if half else {}),
        **({"reach": 256} if FORMS[name] else {}),
    )


def agreed(engine, said, network):
    """The gate says that it asked this engine, and that it is the same."""
    lines = [line for line in exported.asked(said, network) if line.startswith(exported.NAMES[engine])]
    assert lines[0].endswith("queries and keys as its rotary class turns them")


@pytest.mark.parametrize("name", FORMS)
def test_every_form_that_is_served_is_the_same(engine, name, tmp_path):
    said, network = extended(tmp_path, name)
    reason = exported.unserved(engine, said)
    assert (reason is not None) == ((engine, name) in OTHERWISE)
    if reason is None:
        agreed(engine, said, network)
        for ours, theirs in exported.turned(exported.BUILT[engine](said.keys, network), network):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["DynamicNTK", "YaRN, attention"])
def test_what_is_refused_is_another_number_there(engine, name, tmp_path):
    said, network = extended(tmp_path, name)
    if exported.unserved(engine, said) is None:
        pytest.skip("it is served")
    turn, apart = exported.BUILT[engine](said.keys, network), []
    for reach in (64, 256):  # SGLang scales short requests too, and vLLM none
        network.reach = reach
        try:
            ours, theirs = exported.turned(turn, network)[0]
            apart.append(float((ours - theirs).abs().max()))
        except IndexError:  # its table ends
            apart.append(float("inf"))
    assert max(apart) > 0.01


def test_a_difference_is_not_published(engine, tmp_path):
    said, network = extended(tmp_path, "Llama3")
    said.keys["rope_parameters"]["low_freq_factor"] = 2.0
    with pytest.raises(ZooError, match=r"Not published: .* turns queries otherwise"):
        exported.asked(said, network)


@pytest.mark.parametrize("floor", [None, 40])
def test_fope_turns_queries_and_keys_as_there(engine, floor, tmp_path):
    said, network = made(tmp_path, {"class_path": "FoPE", "init_args": {"base": 100.0, "floor": floor, "gain": 0.5}})
    agreed(engine, said, network)
    pairs = exported.turned(exported.BUILT[engine](said.keys, network), network)
    for ours, theirs in pairs:
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    network.trunk.position.sin_coef.data[1, 0, 2] += 0.1  # the comparison sees one number of one matrix
    assert (
        exported.turned(lambda *_: tuple(theirs for _, theirs in pairs), network)[1][0] - pairs[1][1]
    ).abs().max() > 0.01


def test_lmdeploy_finds_fope_in_the_config_and_computes_it(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed here: tox -e parity")
    said, network = made(tmp_path / "from", {"class_path": "FoPE", "init_args": {"base": 100.0, "gain": 0.5}})
    write(checkpoints.listed(tmp_path / "from"), said, tmp_path / "to")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "to", trust_remote_code=True)
    assert (config.architectures, config.model_type) == (["LlamaForCausalLM"], remote.KEYS["model_type"])
    with engines.installed("lmdeploy"):
        rotary = importlib.import_module("lmdeploy.pytorch.nn.rotary_embedding")
        asked = rotary.build_rotary_params(config)["fope_params"]
        assert rotary.get_rope_theta(config) == 100.0
        default = importlib.import_module("lmdeploy.pytorch.backends.default.rotary_embedding")
        asked.inv_freq = default.RotaryEmbeddingImpl(16, 100.0, 1.0).inv_freq
        theirs = default.FopeRotaryEmbeddingImpl(16, 64, 1.0, asked)
        coefs = exported.coefficients(network)
        at = torch.arange(64)[None]
        cos, sin = theirs.forward(torch.zeros(1, 64, 1), at, **coefs)
    rotation = network.trunk.position(at[0, :, None].float(), at[0, :, None].float(), 64).rotation
    for found, own in ((cos, rotation.cos), (sin, rotation.sin)):
        torch.testing.assert_close(found[0, :, :, :8].transpose(0, 1), own[0], rtol=0, atol=1e-5)
