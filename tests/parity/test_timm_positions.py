"""Encodings on grids against timm's, each side computed by its own code: outputs and gradients.

`tox -e parity-timm` has the environment; see test_timm.py for why two operators of torchvision are declared here.
"""

import importlib.util

import pytest
import torch
from torch.nn import functional

from zoo import plugins
from zoo.kernel import Eager
from zoo.position import Geometry
from zoo.vit import grid

pytestmark = pytest.mark.parity
if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed here: tox -e parity-timm", allow_module_level=True)

torchvision = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        torchvision.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.layers import RotaryEmbeddingMixed, apply_rot_embed_cat, resample_abs_pos_embed  # noqa: E402
from timm.layers.pos_embed_rel import RelPosBias, resize_rel_pos_bias_table_simple  # noqa: E402
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed  # noqa: E402
from timm.models.swin_transformer_v2 import WindowAttention  # noqa: E402

HEADS = 4
Sinusoidal, Learned, RelativeBias, LogCPB, RoPEMixed = (
    plugins.load("zoo.positions", name) for name in ("Sinusoidal", "Learned", "RelativeBias", "LogCPB", "RoPEMixed")
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def patches(length: tuple[int, int], prefix: int = 0) -> Geometry:
    return Geometry(dim=64, heads=HEADS, kv_heads=HEADS, head_dim=16, length=length, prefix=prefix, causal=False)


def values(bias) -> torch.Tensor:
    tokens = slice(0, bias.prefix + bias.queries)
    return bias.block(tokens, tokens)


@pytest.mark.parametrize("indexing", ["xy", "ij"])
@pytest.mark.parametrize("shape", [(3, 5), (6, 2)])
def test_mixed_rotation(indexing, shape):
    """timm keeps the column's frequency first with "xy" (RoPE-ViT's weights), the row's with "ij", as we do."""
    theirs = RotaryEmbeddingMixed(64, depth=2, num_heads=HEADS, feat_shape=list(shape), grid_indexing=indexing)
    at, q = grid(*shape), torch.randn(2, HEADS, shape[0] * shape[1], 16)
    down = torch.randn_like(q)
    for layer in range(2):
        ours = RoPEMixed(patches((3, 5)))
        with torch.no_grad():
            own = theirs.freqs[:, layer]
            ours.frequencies.copy_(own.flip(0) if indexing == "xy" else own)
        expected = apply_rot_embed_cat(q, theirs.get_embed(list(shape))[layer])
        got = ours(at, at, len(at)).rotation.apply(q)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        assert not torch.allclose(expected, q, atol=0.1)
        theirs.zero_grad()
        (expected * down).sum().backward()
        (got * down).sum().backward()
        slope = theirs.freqs.grad[:, layer]
        assert slope.abs().max() > 1
        torch.testing.assert_close(ours.frequencies.grad, slope.flip(0) if indexing == "xy" else slope)


def test_mixed_frequencies_start_alike():
    """Same magnitudes, and in each head two directions at right angles in the same order."""
    theirs = RotaryEmbeddingMixed(64, depth=1, num_heads=HEADS, temperature=20.0).freqs[:, 0].flip(0)
    ours = RoPEMixed(patches((3, 5)), base=20.0).frequencies
    for one, other in ((theirs, ours), (ours, theirs)):
        direction = torch.atan2(one[0, :, 0], one[1, :, 0]) - torch.atan2(other[0, :, 0], other[1, :, 0])
        cos, sin = direction.cos()[:, None], direction.sin()[:, None]
        turned = torch.stack((other[0] * cos + other[1] * sin, other[1] * cos - other[0] * sin))
        torch.testing.assert_close(turned, one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["bicubic", "linear"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("new", [(7, 9), (2, 3), (3, 8), (6, 4)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_resampling_a_learned_table(antialias, new, prefix, mode):
    """timm's own default is antialias; DeiT's and RoPE-ViT's code has none. Prefix rows are left out on both sides."""
    ours = Learned(patches((4, 6), prefix), std=1.0, resample=mode, antialias=antialias)
    theirs = torch.cat((torch.randn(prefix, 64), ours.table.detach()))[None].requires_grad_()
    word = "bicubic" if mode == "bicubic" else "bilinear"
    expected = resample_abs_pos_embed(theirs, list(new), [4, 6], prefix, interpolation=word, antialias=antialias)
    expected = expected[0, prefix:]
    at = grid(*new)
    got = ours(at, at, len(at)).embedding
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    down = torch.randn_like(got)
    (expected * down).sum().backward()
    (got * down).sum().backward()
    torch.testing.assert_close(ours.table.grad, theirs.grad[0, prefix:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["bicubic", "linear"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("factor", [1.5, 2.0, 3.5])
@pytest.mark.parametrize("prefix", [0, 5])
def test_the_table_that_an_extension_stores(antialias, factor, prefix, mode):
    geometry = patches((4, 6), prefix)
    method = plugins.load("zoo.extensions", "Resampling")(factor=factor, mode=mode, antialias=antialias)
    old = Learned(geometry, std=1.0)
    new = Learned(geometry, **method.rewrite({"class_path": "Learned", "init_args": {}}, geometry)["init_args"])
    method.migrate(old, new)
    theirs = torch.cat((torch.randn(prefix, 64), old.table.detach()))[None]
    size, word = [round(4 * factor), round(6 * factor)], "bicubic" if mode == "bicubic" else "bilinear"
    expected = resample_abs_pos_embed(theirs, size, [4, 6], prefix, interpolation=word, antialias=antialias)
    assert torch.equal(expected[0, :prefix], theirs[0, :prefix])
    torch.testing.assert_close(new.table.detach(), expected[0, prefix:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 7), (3, 5), (5, 2), (1, 4)])
def test_relative_bias(shape):
    theirs, ours, at = RelPosBias(shape, HEADS), RelativeBias(patches(shape)), grid(*shape)
    torch.nn.init.normal_(theirs.relative_position_bias_table)
    with torch.no_grad():
        ours.table.copy_(theirs.relative_position_bias_table.T.view_as(ours.table))
    expected, got = theirs.get_bias(), values(ours(at, at, len(at)).bias)
    assert torch.equal(got, expected)
    down = torch.randn_like(got)
    (expected * down).sum().backward()
    (got * down).sum().backward()
    slope = theirs.relative_position_bias_table.grad.T.view_as(ours.table)
    torch.testing.assert_close(ours.table.grad, slope, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [((3, 5), (5, 4)), ((7, 7), (12, 12)), ((7, 7), (4, 4))])
def test_relative_bias_of_another_window(old, new):
    """The bicubic way, which Swin's authors take; timm's default interpolates at BEiT's unequal steps."""
    ours, at = RelativeBias(patches(old), std=1.0, resample="bicubic"), grid(*new)
    target = RelPosBias(new, HEADS)
    table = ours.table.detach().clone().requires_grad_()
    resized = resize_rel_pos_bias_table_simple(table, new, (HEADS, 2 * new[0] - 1, 2 * new[1] - 1))
    index = target.relative_position_index.view(-1)
    expected = resized.flatten(1)[:, index].view(1, HEADS, len(at), len(at))
    got = values(ours(at, at, len(at)).bias)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    down = torch.randn_like(got)
    (expected * down).sum().backward()
    (got * down).sum().backward()
    torch.testing.assert_close(ours.table.grad, table.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [4, 64])
@pytest.mark.parametrize("base", [100.0, 10000.0])
def test_sines_and_cosines_on_a_grid(dim, base):
    """timm's default is our "concatenated"; MoCo v3's and MAE's order is timm's interleaved one of (column, row)."""
    geometry = Geometry(dim=dim, heads=1, kv_heads=1, head_dim=dim, length=(3, 5), causal=False)
    at = grid(3, 5)
    expected = build_sincos2d_pos_embed([3, 5], dim, base)
    got = Sinusoidal(geometry, base=base, layout="concatenated")(at, at, 15).embedding
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    expected = build_sincos2d_pos_embed([3, 5], dim, base, interleave_sin_cos=True)
    got = Sinusoidal(geometry, base=base, layout="axiswise")(at.flip(-1), at, 15).embedding
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("trained", "window"), [((7, 7), (7, 7)), ((3, 5), (3, 5)), ((3, 5), (6, 8)), ((8, 8), (4, 6)), ((1, 4), (3, 4))]
)
def test_log_spaced_continuous_bias(trained, window):
    """Through all of Swin v2's attention; its offsets are float32 even in a float64 model, so to six digits."""
    theirs = WindowAttention(64, window, HEADS, pretrained_window_size=trained).double()
    for parameter in theirs.cpb_mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    geometry, at = patches(trained), grid(*window)
    ours = LogCPB(geometry).double()
    ours.network.load_state_dict(theirs.cpb_mlp.state_dict())
    x = torch.randn(2, len(at), 64, dtype=torch.float64)
    expected = theirs(x)

    bias = ours(at, at, len(at)).bias
    q, k, v = functional.linear(x, theirs.qkv.weight).unflatten(-1, (3, HEADS, 16)).permute(2, 0, 3, 1, 4)
    q = functional.normalize(q, dim=-1) * theirs.logit_scale.exp()
    out = Eager(geometry)(q, functional.normalize(k, dim=-1), v, bias=bias)
    got = theirs.proj(out.transpose(1, 2).flatten(-2))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
    assert expected.std() > 0.1
    assert values(bias).std() > 0.5

    down = torch.randn_like(x)
    wanted = list(theirs.cpb_mlp.parameters())
    slopes = torch.autograd.grad((expected * down).sum(), wanted)
    found = torch.autograd.grad((got * down).sum(), list(ours.parameters()))
    for slope, other in zip(slopes, found, strict=True):
        assert slope.abs().max() > 1e-2
        torch.testing.assert_close(other, slope, rtol=0, atol=2e-6 * float(slope.abs().max()))
