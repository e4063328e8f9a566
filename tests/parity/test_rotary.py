"""Rotary encodings against transformers, x-transformers and PoPE-pytorch, each side built and computed by its own code.

p-RoPE is "proportional" in transformers 5. x-transformers has xPos and PoPE inside its attention layer: the same
weights give the same outputs and the same gradients. PoPE-pytorch has partial PoPE, and PoPE on a grid.
"""

import importlib.util
import math

import pytest
import torch
from torch import Tensor, nn

from zoo import plugins
from zoo.kernel import Eager, Mask
from zoo.layers import Attention
from zoo.position import Geometry
from zoo.vit import grid

pytestmark = pytest.mark.parity
DIM, HEADS, WIDTH, LENGTH = 48, 4, 16, 40
POSITIONS = plugins.classes("zoo.positions")


def needs(package: str, env: str) -> pytest.MarkDecorator:
    found = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not found, reason=f"{package} is not installed here: tox -e {env}")


def geometry(**changes: object) -> Geometry:
    sizes = {"dim": DIM, "heads": HEADS, "kv_heads": HEADS, "head_dim": WIDTH, "length": (LENGTH,)}
    return Geometry(**(sizes | changes))


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def line(tokens: int, start: int = 0) -> Tensor:
    return torch.arange(start, start + tokens).float().unsqueeze(-1)


@needs("transformers", "parity")
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("start", [0, 32_000])
def test_proportional(fraction, start):
    """The whole rotation of queries and keys by transformers' tables and transformers' function."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    if "proportional" not in ROPE_INIT_FUNCTIONS:
        pytest.skip("this version of transformers has no proportional rotation; version 5 has")
    width = 20
    config = LlamaConfig(
        hidden_size=HEADS * width,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": fraction},
    )
    theirs, at = LlamaRotaryEmbedding(config), line(LENGTH, start)
    q, k = draw(2, HEADS, LENGTH, width), draw(2, 2, LENGTH, width, seed=1)
    expected = apply_rotary_pos_emb(q, k, *theirs(q, at.flatten().long()[None]))
    ours = POSITIONS["pRoPE"](geometry(head_dim=width, kv_heads=2), base=1e6, fraction=fraction)
    assert torch.equal(ours.frequencies[0], theirs.inv_freq)
    found = ours(at, at, start + LENGTH).rotation(q, k)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    assert torch.allclose(expected[0], q) == (fraction == 0)


def layers(position: str, **arguments: object) -> tuple[nn.Module, Attention, nn.Module]:
    """An attention layer of x-transformers, ours with its weights, and our encoding."""
    from x_transformers.x_transformers import Attention as Theirs

    torch.manual_seed(0)
    theirs = Theirs(DIM, dim_head=WIDTH, heads=HEADS, causal=True)
    ours = Attention(
        geometry(), Eager(geometry()), norm="RMSNorm", eps=1e-6, qk_norm="none", qkv_bias=False, out_bias=False
    )
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(std=0.3)
        ours.qkv.weight.copy_(torch.cat([theirs.to_q.weight, theirs.to_k.weight, theirs.to_v.weight]))
        ours.out.weight.copy_(theirs.to_out.weight)
    return theirs, ours, POSITIONS[position](geometry(), **arguments)


def agree(theirs: nn.Module, ours: Attention, position: nn.Module, told: dict[str, object], tolerance: float) -> None:
    """Same outputs and gradients of inputs and weights; `told` is what their layer is told of positions."""
    x, way, at = draw(2, LENGTH, DIM), draw(2, LENGTH, DIM, seed=5), line(LENGTH)
    kind = theirs.to_q.weight.dtype
    inputs = [x.to(kind).requires_grad_() for _ in range(2)]
    expected = theirs(inputs[0], **told)
    found = ours(inputs[1], position(at, at, LENGTH), Mask(causal=True))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert expected.std() > 0.1
    for out in (expected, found):
        out.backward(way.to(kind))
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=0, atol=10 * tolerance)
    weights = torch.cat([part.weight.grad for part in (theirs.to_q, theirs.to_k, theirs.to_v)])
    torch.testing.assert_close(ours.qkv.weight.grad, weights, rtol=0, atol=100 * tolerance)
    assert weights.abs().mean() > 0.1


@needs("x_transformers", "parity-x")
@pytest.mark.parametrize("span", [512, 8])
def test_xpos(span):
    """In float64, but for their softmax."""
    from x_transformers.x_transformers import RotaryEmbedding

    theirs, ours, position = (part.double() for part in layers("xPos", span=float(span)))
    rotary = RotaryEmbedding(WIDTH, use_xpos=True, scale_base=span)
    rotary.inv_freq = position.frequencies[0]  # theirs stay what float32 made of them
    rotary.scale = (torch.arange(0, WIDTH, 2).double() + 0.4 * WIDTH) / (1.4 * WIDTH)
    agree(theirs, ours, position, {"rotary_pos_emb": rotary(torch.arange(LENGTH))}, 1e-5)


@needs("x_transformers", "parity-x")
@pytest.mark.parametrize("start", [0, 32_000])
def test_the_tables_of_xpos(start):
    """In float32, and of a sequence that starts far out: they centre by the farthest position, as does an extent."""
    from x_transformers.x_transformers import RotaryEmbedding, apply_rotary_pos_emb

    at, q, k = line(LENGTH, start), draw(2, HEADS, LENGTH, WIDTH), draw(2, HEADS, LENGTH, WIDTH, seed=1)
    turns, scale = RotaryEmbedding(WIDTH, use_xpos=True)(at.flatten())
    expected = apply_rotary_pos_emb(q, turns, scale), apply_rotary_pos_emb(k, turns, scale**-1.0)
    found = POSITIONS["xPos"](geometry())(at, at, start + LENGTH).rotation(q, k)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    assert start == 0 or expected[0].abs().min() < 1e-9


@needs("x_transformers", "parity-x")
@pytest.mark.parametrize("phases", ["zero", "inside", "beyond"])
def test_pope(phases):
    """In float32, which their sizes are cast to; the gradient of the phases too, that of those beyond the bounds 0."""
    from x_transformers.x_transformers import PolarEmbedding

    theirs, ours, position = layers("PoPE")
    polar = PolarEmbedding(WIDTH, HEADS)
    with torch.no_grad():
        drawn = {"zero": 0.0, "inside": -2 * math.pi, "beyond": -9.0}[phases] * torch.rand(HEADS, 1, WIDTH)
        polar.learned_bias.copy_(drawn + (phases == "beyond"))
        position.phase.copy_(polar.learned_bias[:, 0])
    agree(theirs, ours, position, {"polar_pos_emb": polar(torch.arange(LENGTH))}, 1e-5)
    expected = polar.learned_bias.grad[:, 0]
    torch.testing.assert_close(position.phase.grad, expected, rtol=1e-3, atol=1e-3)
    assert expected.abs().max() > 0.1
    assert bool((expected == 0).any()) == (phases == "beyond")


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT


@needs("PoPE_pytorch", "parity-x")
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_partial_pope(fraction):
    """Channels in another order, so that products are compared; gradients of queries, keys and phases."""
    from PoPE_pytorch import PoPE

    at, channels = line(LENGTH), int(WIDTH * fraction)
    theirs, ours = PoPE(channels, heads=HEADS), POSITIONS["PoPE"](geometry(), fraction=fraction)
    with torch.no_grad():
        theirs.bias.uniform_(-2 * math.pi, 0.0)
        ours.phase.copy_(theirs.bias)
    leaves = [[draw(2, HEADS, LENGTH, WIDTH, seed=n).requires_grad_() for n in range(2)] for _ in range(2)]
    expected = scores(*theirs.apply_pope_to_qk(theirs(LENGTH), *leaves[0]))
    found = scores(*ours(at, at, LENGTH).rotation(*leaves[1]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    way = draw(2, HEADS, LENGTH, LENGTH, seed=3)
    for out in (expected, found):
        out.backward(way)
    for one, two in zip([*leaves[1], ours.phase], [*leaves[0], theirs.bias], strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-3)


@needs("PoPE_pytorch", "parity-x")
def test_pope_on_a_grid():
    from PoPE_pytorch import AxialPoPE

    at = grid(3, 5)
    theirs = AxialPoPE(WIDTH, heads=HEADS, axial_dims=(WIDTH // 2, WIDTH // 2))
    ours = POSITIONS["PoPE"](geometry(length=(3, 5), causal=False))
    with torch.no_grad():
        theirs.bias.uniform_(-2 * math.pi, 0.0)
        ours.phase.copy_(theirs.bias)
    q, k = draw(2, HEADS, 15, WIDTH), draw(2, HEADS, 15, WIDTH, seed=1)
    expected = scores(*theirs.apply_pope_to_qk(theirs(at), q, k))
    torch.testing.assert_close(scores(*ours(at, at, 15).rotation(q, k)), expected, rtol=1e-5, atol=1e-4)
