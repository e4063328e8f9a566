"""Extensions of RoPE against transformers' own functions: the same frequencies and attention factors, bit for bit.

A factor of 1 is the identity here; in transformers' Llama 3 and YaRN it may move a frequency by the last bit.
"""

import pytest
import torch

from zoo import plugins
from zoo.position import Geometry

pytest.importorskip("transformers", reason="transformers is not installed here: tox -e parity")
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

if "proportional" not in ROPE_INIT_FUNCTIONS:
    pytest.skip("this version of transformers has no rope_parameters; version 5 has", allow_module_level=True)

WIDTH, FACTORS = 64, (1.0, 2.5, 8.0)
SIZES = {"llama 2": (1e4, 4096), "llama 3": (5e5, 8192), "small": (1e4, 128)}
EXTENSIONS = plugins.classes("zoo.extensions")


def theirs(kind: str, base: float, length: int, fraction: float, extent: int | None = None, **parameters):
    """transformers' inverse frequencies and attention factor."""
    parameters = {"rope_type": kind, "rope_theta": base, "partial_rotary_factor": fraction, **parameters}
    if kind != "dynamic":
        parameters["original_max_position_embeddings"] = length
    config = LlamaConfig(
        hidden_size=4 * WIDTH, num_attention_heads=4, max_position_embeddings=length, rope_parameters=parameters
    )
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=extent)


def ours(name: str, base: float, length: int, fraction: float, extent: int, encoding: str = "RoPE", /, **arguments):
    """zoo's, of the encoding that has the extension."""
    geometry = Geometry(dim=4 * WIDTH, heads=4, kv_heads=4, head_dim=WIDTH, length=(length,))
    position = plugins.load("zoo.positions", encoding)(
        geometry, base=base, fraction=fraction, extension=lambda series: EXTENSIONS[name](series, **arguments)
    )
    at = torch.zeros(1, 1)
    rotation = position(at, at, extent).rotation
    assert float(rotation.cos[0, 0, 0, 0]) == pytest.approx(rotation.factor)
    return rotation.frequencies[0], rotation.factor


def same(found, expected, *, exact: bool = True):
    torch.testing.assert_close(found[0], expected[0], rtol=0 if exact else 1.2e-7, atol=0)
    assert found[1] == expected[1]


pytestmark = [
    pytest.mark.parity,
    pytest.mark.parametrize("size", SIZES),
    pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25]),
    pytest.mark.parametrize("factor", FACTORS),
]


def test_linear(size, fraction, factor):
    at = (*SIZES[size], fraction)
    same(ours("Linear", *at, 1, factor=factor), theirs("linear", *at, factor=factor))


def test_dynamic(size, fraction, factor):
    at, length = (*SIZES[size], fraction), SIZES[size][1]
    for extent in (1, length, length + 1, 3 * length, 8 * length):
        found = ours("DynamicNTK", *at, extent, factor=factor)
        same(found, theirs("dynamic", *at, torch.tensor(extent), factor=factor))  # as their models call it


def test_dynamic_in_their_model(size, fraction, factor):
    """The frequencies that a model of theirs has come to, once it has read a text of some length."""
    base, length = SIZES[size]
    said = {"rope_type": "dynamic", "rope_theta": base, "partial_rotary_factor": fraction, "factor": factor}
    sizes = {"hidden_size": 4 * WIDTH, "num_attention_heads": 4, "max_position_embeddings": length}
    rotary = LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_parameters=said))
    for extent in (length, length + 1, 3 * length):
        rotary(torch.zeros(1), torch.arange(extent)[None])
        assert torch.equal(ours("DynamicNTK", base, length, fraction, extent, factor=factor)[0], rotary.inv_freq)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn(size, fraction, factor, truncate):
    at = (*SIZES[size], fraction)
    same(
        ours("YaRN", *at, 1, factor=factor, truncate=truncate),
        theirs("yarn", *at, factor=factor, truncate=truncate),
        exact=factor > 1,
    )
    same(
        ours("YaRN", *at, 1, factor=factor, truncate=truncate, fast=16.0, slow=2.0, attention=0.9),
        theirs("yarn", *at, factor=factor, truncate=truncate, beta_fast=16, beta_slow=2, attention_factor=0.9),
        exact=factor > 1,
    )
    same(
        ours("YaRN", *at, 1, factor=factor, truncate=truncate, mscale=0.7, mscale_all_dim=1.3),
        theirs("yarn", *at, factor=factor, truncate=truncate, mscale=0.7, mscale_all_dim=1.3),
        exact=factor > 1,
    )


def test_yarn_without_truncate_said(size, fraction, factor):
    """transformers truncates where nothing is said; so do we, but for a few waves."""
    at = (*SIZES[size], fraction)
    found, expected = ours("YaRN", *at, 1, factor=factor), theirs("yarn", *at, factor=factor)
    if fraction * WIDTH > 32 or factor == 1:
        same(found, expected, exact=factor > 1)
    else:
        assert not torch.allclose(found[0], expected[0], rtol=1e-3)


def test_longrope(size, fraction, factor):
    at, length = (*SIZES[size], fraction), SIZES[size][1]
    waves = int(WIDTH * fraction) // 2
    short, long = [1 + t / 100 for t in range(waves)], [1 + t / 2 for t in range(waves)]
    for extent in (1, length, length + 1, 8 * length):
        same(
            ours("LongRoPE", *at, extent, factor=factor, short=short, long=long),
            theirs("longrope", *at, extent, factor=factor, short_factor=short, long_factor=long),
        )
    given = {"factor": factor, "short": short, "long": long, "attention": 1.3}
    same(
        ours("LongRoPE", *at, length, **given),
        theirs("longrope", *at, length, factor=factor, short_factor=short, long_factor=long, attention_factor=1.3),
    )


def test_llama3(size, fraction, factor):
    at = (*SIZES[size], fraction)
    for low, high in ((1.0, 4.0), (0.5, 9.0)):
        same(
            ours("Llama3", *at, 1, factor=factor, low=low, high=high),
            theirs("llama3", *at, factor=factor, low_freq_factor=low, high_freq_factor=high),
            exact=factor > 1,
        )


def test_proportional(size, fraction, factor):
    """p-RoPE, its waves interpolated."""
    at = (*SIZES[size], fraction)
    same(ours("Linear", *at, 1, "pRoPE", factor=factor), theirs("proportional", *at, factor=factor))


def test_abf_and_ntk_are_the_default_with_another_base(size, fraction, factor):
    """What an engine without either is told: the base."""
    base, length = SIZES[size]
    width = int(WIDTH * fraction)
    for name, new in (("NTK", base * factor ** (width / (width - 2))), ("ABF", 40 * base)):
        arguments = {"factor": factor, **({"base": new} if name == "ABF" else {})}
        found = ours(name, base, length, fraction, 1, **arguments)
        same(found, theirs("linear", new, length, fraction, factor=1.0))
