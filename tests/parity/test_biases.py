"""Biases of the distance against transformers' T5 and x-transformers, each side built and computed by its own code.

Biases, a whole attention layer, and gradients of the tables, in float64 where theirs allows, so that a difference in
convention cannot pass for rounding. What needs transformers, or x-transformers, says so where that is missing.
"""

import importlib.util
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zoo import plugins
from zoo.kernel import Eager, Mask
from zoo.layers import Attention
from zoo.position import Geometry, PositionEncoding

pytestmark = pytest.mark.parity
needs_transformers, needs_x_transformers = (
    pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed here")
    for package in ("transformers", "x_transformers")
)
TOKENS, HEADS, WIDTH, DIM = 150, 4, 12, 40
EVERY = slice(0, TOKENS)
SIZES = pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (32, 1024), (8, 20), (64, 256)])
SIDES = pytest.mark.parametrize("causal", [True, False], ids=["decoder", "encoder"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(name: str, *, causal: bool, **numbers: object) -> PositionEncoding:
    geometry = Geometry(dim=DIM, heads=HEADS, kv_heads=HEADS, head_dim=WIDTH, length=(TOKENS,), causal=causal)
    return plugins.load("zoo.positions", name)(geometry, **numbers).double()


def bias(position: PositionEncoding) -> Tensor:
    """The bias of all tokens on all tokens, [heads, queries, keys]."""
    at = torch.arange(float(TOKENS)).unsqueeze(-1)
    return position(at, at, TOKENS).bias.block(EVERY, EVERY)[0]


def seen(causal: bool) -> Tensor:
    """What a mask leaves over, [queries, keys]."""
    everything = torch.ones(TOKENS, TOKENS, dtype=torch.bool)
    return everything.tril() if causal else everything


def known(causal: bool, buckets: int, distance: int) -> nn.Module:
    """transformers' attention of T5's first layer."""
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(
        d_model=DIM,
        d_kv=WIDTH,
        num_heads=HEADS,
        is_decoder=causal,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=distance,
        dropout_rate=0.0,
    )
    config._attn_implementation = "eager"
    return T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double().eval()


@needs_transformers
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("buckets", [4, 8, 16, 32, 34, 64, 128])
def test_buckets_of_transformers(buckets, bidirectional):
    """Every bound at every size is the one that transformers' float32 logarithm gives on a CPU."""
    from transformers.models.t5.modeling_t5 import T5Attention

    away = torch.arange(-6000, 6001) if bidirectional else torch.arange(6001)
    for distance in (65, 100, 128, 200, 256, 500, 512, 1000, 1024, 2048, 4096):
        own = build("T5", causal=not bidirectional, buckets=buckets, distance=distance)
        theirs = T5Attention._relative_position_bucket(-away, bidirectional, buckets, distance)
        assert torch.equal(own.bucket(away), theirs), distance


@needs_transformers
@SIZES
@SIDES
def test_bias_of_transformers(causal, buckets, distance):
    theirs, own = known(causal, buckets, distance), build("T5", causal=causal, buckets=buckets, distance=distance)
    own.load_state_dict({"weight": theirs.relative_attention_bias.weight.detach().clone()})
    agree(own, [(own.weight, theirs.relative_attention_bias.weight)], theirs.compute_bias(TOKENS, TOKENS)[0], causal)


@needs_transformers
@SIDES
def test_attention_of_transformers(causal):
    """T5's: logits that nothing divides, the bias as it is."""
    theirs = known(causal, 32, 128)
    own = build("T5", causal=causal, logits="unscaled", std="dim")
    hidden = torch.zeros(TOKENS, TOKENS, dtype=torch.float64).masked_fill(~seen(causal), -torch.inf)[None, None]
    table, projections = theirs.relative_attention_bias.weight, (theirs.q, theirs.k, theirs.v, theirs.o)
    places = torch.arange(TOKENS)  # version 4 asks for them, version 5 counts
    attend_alike(own, table, projections, lambda x: theirs(x, mask=hidden, cache_position=places)[0])


@needs_x_transformers
@SIDES
def test_attention_of_x_transformers(causal):
    """Logits divided by the root of the head's width, the bias multiplied by it."""
    from x_transformers.x_transformers import Attention as Theirs
    from x_transformers.x_transformers import RelativePositionBias

    theirs = Theirs(dim=DIM, dim_head=WIDTH, heads=HEADS, causal=causal).double()
    table = RelativePositionBias(math.sqrt(WIDTH), causal, heads=HEADS).double()
    own = build("T5", causal=causal, multiplier="root", std=1.0)
    projections = (theirs.to_q, theirs.to_k, theirs.to_v, theirs.to_out)
    attend_alike(own, table.relative_attention_bias.weight, projections, lambda x: theirs(x, rel_pos=table))


@needs_x_transformers
@SIZES
@SIDES
def test_relative_position_bias_of_x_transformers(causal, buckets, distance):
    from x_transformers.x_transformers import RelativePositionBias

    theirs = RelativePositionBias(math.sqrt(WIDTH), causal, buckets, distance, HEADS).double()
    own = build("T5", causal=causal, buckets=buckets, distance=distance, multiplier="root", std=1.0)
    own.load_state_dict({"weight": theirs.relative_attention_bias.weight.detach().clone()})
    agree(own, [(own.weight, theirs.relative_attention_bias.weight)], theirs(TOKENS, TOKENS), causal)


@needs_x_transformers
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("distance", ["log", "linear"])
@SIDES
def test_dynamic_position_bias_of_x_transformers(causal, distance, depth):
    """In float32, since theirs makes its distances so; ours multiplies in float64 and rounds the bias."""
    from x_transformers.x_transformers import DynamicPositionBias

    theirs = DynamicPositionBias(DIM // 4, heads=HEADS, depth=depth, log_distance=distance == "log")
    own = build("DynamicBias", causal=causal, distance=distance, depth=depth).float()
    layers = [module for module in theirs.modules() if isinstance(module, nn.Linear)]
    pairs = []
    for mine, other in zip(own.layers, layers, strict=True):
        for name, parameter in mine.named_parameters():
            parameter.data.copy_(getattr(other, name))
            pairs.append((parameter, getattr(other, name)))
    expected = theirs(TOKENS, TOKENS)
    without = expected - layers[-1].bias.view(-1, 1, 1)  # a constant of the head, which ours does not have
    torch.testing.assert_close(without.softmax(-1), expected.softmax(-1), rtol=0, atol=1e-5)
    agree(own, pairs, without, causal, tolerance=1e-5)


def attend_alike(
    own: PositionEncoding, table: Tensor, projections: tuple[nn.Linear, ...], theirs: Callable[[Tensor], Tensor]
) -> None:
    """What a layer of attention gives, and the gradients of its table and of its queries, keys and values."""
    geometry, causal = own.geometry, own.geometry.causal
    own.load_state_dict({"weight": table.detach().clone()})
    plain = {"norm": "RMSNorm", "eps": 1e-6, "qk_norm": "none", "qkv_bias": False, "out_bias": False}
    layer = Attention(geometry, Eager(geometry), **plain).double()
    *inner, out = projections
    layer.load_state_dict({"qkv.weight": torch.cat([part.weight for part in inner]), "out.weight": out.weight})
    x, weights = torch.randn(2, 2, TOKENS, DIM, dtype=torch.float64)
    at = torch.arange(float(TOKENS)).unsqueeze(-1)
    mine, expected = layer(x, own(at, at, TOKENS), Mask(causal=causal)), theirs(x)
    assert expected.std() > 0.01
    # x-transformers and version 4 of transformers take the softmax in float32, whatever its argument.
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)
    for result in (mine, expected):
        (result * weights).sum().backward()
    assert table.grad.abs().max() > 1e-2
    torch.testing.assert_close(own.weight.grad, table.grad, rtol=0, atol=1e-5)
    grads = torch.cat([part.weight.grad for part in inner])
    torch.testing.assert_close(layer.qkv.weight.grad, grads, rtol=0, atol=1e-5)


def agree(
    own: PositionEncoding,
    pairs: list[tuple[Tensor, Tensor]],
    expected: Tensor,
    causal: bool,
    tolerance: float = 1e-12,
) -> None:
    """The bias wherever a mask lets it be seen, and gradients of a number that depends on all of that."""
    visible = seen(causal)
    weights = torch.randn(HEADS, TOKENS, TOKENS, dtype=expected.dtype)
    mine, expected = (values.masked_fill(~visible, 0.0) for values in (bias(own), expected))
    assert expected.std() > 1e-3
    torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance)
    (mine * weights).sum().backward()
    (expected * weights).sum().backward()
    for parameter, other in pairs:
        scale = float(other.grad.abs().max())
        assert scale > 0
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=10 * tolerance * scale)
