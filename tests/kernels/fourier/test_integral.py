"""FourierIntegral and FourierRadial against float64 by other code, in C++ and in torch."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from zoo_kernels.fourier import FourierIntegral, FourierQuartic, FourierRadial, native
from zoo_kernels.rbf import RBF
from zoo_positions.alibi import ALiBi
from zoo_positions.rope import RoPE

from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.kernel import Mask, Request
from zoo.position import Geometry, Toeplitz

needs_compiler = pytest.mark.skipif(native.library()[0] is None, reason=f"not compiled: {native.library()[1]}")
IMPLEMENTATIONS = ["torch", pytest.param("native", marks=needs_compiler)]


def geometry(heads=3, kv_heads=None, width=6, causal=True):
    return Geometry(
        dim=heads * width, heads=heads, kv_heads=kv_heads or heads, head_dim=width, length=(16,), causal=causal
    )


def kernel(kind=FourierIntegral, *, heads=3, kv_heads=None, width=6, **settings):
    built = kind(geometry(heads, kv_heads, width), **settings)
    with torch.no_grad():  # what starts alike everywhere would tell nothing
        for parameter in built.parameters():
            parameter += torch.linspace(-0.2, 0.3, parameter.numel()).view_as(parameter)
    return built


def oracle(q, k, v, radius, power, *, bias=None, visible=None, null=None, planes=None):
    """The formula by loops over channels in NumPy's float64, with its gradients written out.

    q, k, v: [batch, heads, tokens, width]; radius [heads, components]; power [heads]; planes: pairs of channels.
    """
    q, k, v = (np.asarray(x.detach(), dtype=np.float64) for x in (q, k, v))
    components = planes or [(d,) for d in range(q.shape[-1])]
    score = np.zeros((*q.shape[:3], k.shape[2]))
    for c, channels in enumerate(components):
        r = radius[None, :, c, None, None]
        u = r * np.sqrt(sum((q[..., d, None] - k[..., None, :, d]) ** 2 for d in channels))
        score += power[None, :, None, None] * np.log(np.abs(np.sinc(u / np.pi)))
    if bias is not None:
        score = score + bias
    if visible is not None:
        score = np.where(visible, score, -np.inf)
    top = score.max(-1, keepdims=True) if null is None else np.maximum(score.max(-1, keepdims=True), null)
    top = np.where(np.isfinite(top), top, 0)
    weights = np.exp(score - top)
    total = weights.sum(-1, keepdims=True) + (0 if null is None else np.exp(null - top))
    weights = weights / np.where(total == 0, 1, total)
    return weights @ v, weights, score


def numbers(built):
    radius = built.bandwidth.log_radius.detach().double().exp()
    channels = built.geometry.head_dim // (2 if built.pairs else 1)
    radius = radius.expand(built.geometry.heads, channels).numpy()
    power = built.bandwidth.log_power
    power = power.detach().double().exp().numpy() if power is not None else np.full(len(radius), built.bandwidth.power)
    return radius, power


def tensors(heads=3, queries=9, keys=11, width=6, batch=2, spread=1.0, kv_heads=None):
    draw = torch.Generator().manual_seed(1)
    shapes = (heads, queries), (kv_heads or heads, keys), (kv_heads or heads, keys)
    return [
        torch.randn(batch, h, n, width, generator=draw) * (spread if i < 2 else 1) for i, (h, n) in enumerate(shapes)
    ]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("per", ["layer", "head", "channel", "both"])
@pytest.mark.parametrize("power", [0.7, 2.0, 4.0])
def test_values_are_the_formulas(implementation, per, power):
    built = kernel(per=per, power=power, implementation=implementation)
    q, k, v = tensors()
    out = built(q, k, v, scale=6**-0.5)
    expected, _, _ = oracle(q, k, v, *numbers(built))
    assert np.abs(out.detach().numpy() - expected).max() < 2e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_of_planes(implementation):
    q, k, v = tensors(width=8)
    halves = kernel(FourierRadial, width=8, implementation=implementation)
    expected, _, _ = oracle(q, k, v, *numbers(halves), planes=[(0, 4), (1, 5), (2, 6), (3, 7)])
    assert np.abs(halves(q, k, v, scale=8**-0.5).detach().numpy() - expected).max() < 2e-6
    neighbours = kernel(FourierRadial, width=8, pairing="interleaved", implementation=implementation)
    expected, _, _ = oracle(q, k, v, *numbers(neighbours), planes=[(0, 1), (2, 3), (4, 5), (6, 7)])
    assert np.abs(neighbours(q, k, v, scale=8**-0.5).detach().numpy() - expected).max() < 2e-6
    partial = kernel(FourierRadial, width=8, fraction=0.5, implementation=implementation)
    expected, _, _ = oracle(q, k, v, *numbers(partial), planes=[(0, 2), (1, 3), (4, 6), (5, 7)])
    assert np.abs(partial(q, k, v, scale=8**-0.5).detach().numpy() - expected).max() < 2e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_scale_of_an_encoding_multiplies_the_power(implementation):
    q, k, v = tensors()
    built = kernel(power=2.0, implementation=implementation)
    radius, power = numbers(built)
    expected, _, _ = oracle(q, k, v, radius, power * 1.5)
    assert np.abs(built(q, k, v, scale=1.5 * 6**-0.5).detach().numpy() - expected).max() < 2e-6


def hard(width=12):
    """Queries and keys that are the same, differ by multiples of pi, hardly differ, and are far from each other."""
    draw = torch.Generator().manual_seed(2)
    k = torch.randn(1, 2, 40, width, generator=draw)
    q = torch.cat((k[:, :, :10], torch.randn(1, 2, 27, width, generator=draw) * 3), 2)
    q[:, :, 10:14] = k[:, :, 10:14]
    q[:, :, 10:14, 0] += torch.tensor([math.pi, -math.pi, 2 * math.pi, 3 * math.pi])
    q[:, :, 14:17] = k[:, :, 14:17] + torch.tensor([1e-4, 1e-7, 1e-20]).view(3, 1)
    return q, k, torch.randn(1, 2, 40, width, generator=draw)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", [FourierIntegral, FourierRadial])
@pytest.mark.parametrize("power", [2.0, 4.0])
@pytest.mark.parametrize("radius", [0.3, 1.0])
def test_gradients_at_ties_zeros_and_far_apart(implementation, kind, power, radius):
    """Against autograd through the definition, in float64."""
    settings = {"radius": radius, "power": power, "learn_power": True, "null": -9.0}
    built = kernel(kind, heads=2, width=12, implementation=implementation, **settings)
    q, k, v = hard()
    visible = torch.ones(37, 40).tril(3) > 0
    line = torch.linspace(-1, 1, 76).repeat(2, 1)

    def gradients(call, kind):
        leaves = [x.to(kind).requires_grad_() for x in (q, k, v, line)]
        at = [torch.arange(n, dtype=torch.float32) for n in (37, 40)]
        bias = Toeplitz(leaves[3] * 1, *at, lowest=-39)
        push = torch.randn(1, 2, 37, 12, generator=torch.Generator().manual_seed(3)).to(kind)
        out = call(*leaves[:3], bias=bias, mask=Mask(causal=True, offset=3), scale=12**-0.5)
        return [out, *torch.autograd.grad((out * push).sum(), [*leaves, *built.parameters()])]

    assert visible.any()
    found = gradients(built, torch.float32)
    expected = gradients(built.double().reference, torch.float64)
    for name, x, y in zip(("values", "q", "k", "v", "bias", "R", "p"), found, expected, strict=True):
        assert x.isfinite().all(), name
        error = (x.double() - y).abs().max() / (1 + y.abs().max())
        assert error < (2e-5 if radius < 1 else 3e-4), (name, float(error))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_that_see_nothing_give_zero(implementation):
    q, k, v = (x.requires_grad_() for x in tensors(queries=11))
    built = kernel(implementation=implementation)
    out = built(q, k, v, mask=Mask(causal=True, padding=torch.tensor([4, 11])), scale=0.4)
    assert (out[0, :, :4] == 0).all()
    assert (out[1] == 0).all()
    for gradient in torch.autograd.grad(out.sum(), [q, k, v, *built.parameters()]):
        assert gradient.isfinite().all()
    assert out[0, :, 4:].abs().min() > 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("width", [2, 10, 64, 130])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 17), (130, 67)])
def test_any_width_and_length(implementation, width, queries, keys):
    q, k, v = tensors(2, queries, keys, width)
    built = FourierRadial(geometry(2, width=width), implementation=implementation)
    out = built(q, k, v, scale=width**-0.5)
    half = width // 2
    expected, _, _ = oracle(q, k, v, *numbers(built), planes=[(d, d + half) for d in range(half)])
    assert np.abs(out.detach().numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_underflows(implementation):
    """At width 64, R 1 and unit variance the product of the release is 0 for most pairs; at 3, for all."""
    for spread in (1.0, 3.0):
        q, k, v = (x.requires_grad_() for x in tensors(1, 50, 60, 64, spread=spread))
        built = FourierIntegral(geometry(1, width=64), radius=1.0, implementation=implementation)
        out = built(q, k, v, scale=1 / 8)
        expected, weights, score = oracle(q, k, v, *numbers(built))
        assert out.isfinite().all()
        assert score.min() < -87.3  # ln of the least float32
        assert np.abs(out.detach().numpy() - expected).max() < 1e-3
        for gradient in torch.autograd.grad(out.square().sum(), (q, k, v)):
            assert gradient.isfinite().all()
        assert np.allclose(weights.sum(-1), 1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_not_hidden(implementation, bad):
    q, k, v = tensors()
    q[0, 1, 3, 2] = bad
    out = kernel(implementation=implementation)(q, k, v, scale=0.4)
    assert out[0, 1, 3].isnan().all()
    assert out[0, 1, 4].isfinite().all()
    q, k, v = tensors()
    k[0, 1, 3, 2] = bad
    out = kernel(implementation=implementation)(q, k, v, scale=0.4)
    assert out[0, 1].isnan().all()
    assert out[0, 0].isfinite().all()


@needs_compiler
@pytest.mark.parametrize("kind", [FourierIntegral, FourierRadial])
@pytest.mark.parametrize("spread", [0.2, 1.0, 4.0])
def test_threads_and_blocks_change_nothing(kind, spread, monkeypatch):
    q, k, v = (x.requires_grad_() for x in tensors(2, 70, 70, 20, spread=spread))
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        built = kind(geometry(2, width=20), radius=1.0)
        out = built(q, k, v, mask=Mask(causal=True), scale=0.2)
        found.append([out, *torch.autograd.grad(out.square().sum(), [q, k, v, *built.parameters()])])
    for other in found[1:]:
        for x, y in zip(other, found[0], strict=True):
            assert torch.equal(x, y)


class TestRelease:
    """What the official release got wrong or does silently; arXiv:2206.00206."""

    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_one_radius_serves_all_channels(self, implementation):
        """Its kernel reads one R per channel beyond the end of a parameter of length one."""
        q, k, v = tensors()
        one = FourierIntegral(geometry(), radius=1.3, per="layer", implementation=implementation)
        every = FourierIntegral(geometry(), radius=1.3, per="both", implementation=implementation)
        assert one.bandwidth.log_radius.numel() == 1
        torch.testing.assert_close(one(q, k, v, scale=0.4), every(q, k, v, scale=0.4), rtol=0, atol=0)
        expected, _, _ = oracle(q, k, v, np.full((3, 6), 1.3), np.full(3, 4.0 * 0.4 * 6**0.5))
        assert np.abs(one(q, k, v, scale=0.4).detach().numpy() - expected).max() < 2e-6

    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_more_than_1024_keys_have_gradients(self, implementation):
        """It launches blocks of as many threads as keys, which a GPU refuses unnoticed above 1024."""
        q, k, v = (x.requires_grad_() for x in tensors(1, 5, 1500, 4, batch=1))
        built = FourierIntegral(geometry(1, width=4), implementation=implementation)
        out = built(q, k, v, scale=0.5)
        found = torch.autograd.grad(out.square().sum(), [q, k, v, *built.parameters()])
        exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
        out = built.double().reference(*exact, scale=0.5)
        for x, y in zip(found, torch.autograd.grad(out.square().sum(), [*exact, *built.parameters()]), strict=True):
            assert y.abs().max() > 0
            assert (x - y).abs().max() < 1e-5 * (1 + y.abs().max())

    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_its_guard_is_a_null_key_off_by_default(self, implementation):
        """attn / (attn.sum(keys) + 1e-6), masked positions being 0."""
        q, k, v = tensors(2, 9, 9, 16, spread=0.6)
        visible = torch.ones(9, 9).tril() > 0
        official = {"radius": "official", "per": "layer", "implementation": implementation}
        guarded = FourierIntegral(geometry(2, width=16), null=math.log(1e-6), **official)
        plain = FourierIntegral(geometry(2, width=16), **official)
        assert plain.null is None
        assert guarded.bandwidth.log_radius.exp().item() == pytest.approx(2)
        apart = (q.unsqueeze(-2) - k.unsqueeze(-3)).double()
        weights = torch.sinc(2.0 * apart / math.pi).prod(-1).pow(4).masked_fill(~visible, 0)
        for built, guard in ((guarded, 1e-6), (plain, 0.0)):
            expected = weights / (weights.sum(-1, keepdim=True) + guard) @ v.double()
            out = built(q, k, v, mask=Mask(causal=True), scale=0.25)
            torch.testing.assert_close(out.double(), expected, rtol=2e-5, atol=2e-5)
        assert (guarded(q, k, v, scale=0.25) - plain(q, k, v, scale=0.25)).abs().max() > 1e-3


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_start_is_matched_to_softmax(implementation):
    """Of a narrow sinc the Gaussian, whose precision is that of softmax's dot products; RBF is that Gaussian."""
    q, k, v = (x / 10 if i < 2 else x for i, x in enumerate(tensors(3, 20, 20, 16)))
    built = FourierIntegral(geometry(width=16), implementation=implementation)
    assert built.bandwidth.log_radius.exp().mean().item() == pytest.approx(math.sqrt(3 / (4 * math.sqrt(16))))
    torch.testing.assert_close(
        built(q, k, v, scale=0.25), RBF(geometry(width=16))(q, k, v, scale=0.25), atol=2e-5, rtol=0
    )


def test_quartic_comes_nearer_than_the_gaussian():
    q, k, v = tensors(3, 30, 30, 16)
    exact = FourierIntegral(geometry(width=16))(q, k, v, scale=0.25)
    fourth = FourierQuartic(geometry(width=16))(q, k, v, scale=0.25)
    second = RBF(geometry(width=16))(q, k, v, scale=0.25)
    error = [((x - exact).norm() / exact.norm()).item() for x in (fourth, second)]
    assert error[0] < 0.02 < error[1]
    assert error[0] < error[1] / 5


def test_planes_do_not_see_where_tokens_stand_and_channels_do():
    rope, at = RoPE(geometry(2, width=16)), torch.arange(12.0).unsqueeze(-1)
    q, k, v = tensors(2, 12, 12, 16)

    def attention(kind, start):
        turn = rope(at + start, at + start, 64).rotation
        return kind(geometry(2, width=16), radius=1.0)(*turn(q, k), v, scale=0.25)

    radial, product = ([attention(kind, start) for start in (0, 37)] for kind in (FourierRadial, FourierIntegral))
    torch.testing.assert_close(*radial, atol=1e-4, rtol=0)
    assert (product[0] - product[1]).abs().max() > 0.1


def test_rotations_are_refused_with_ways_out():
    sizes = {"vocabulary": 11, "length": 8, "dim": 16, "layers": 1, "heads": 2}
    with pytest.raises(ZooError, match=r"channel by channel.*ALiBi.*FourierRadial goes with RoPE"):
        Decoder(**sizes, position=RoPE, kernel=FourierIntegral)
    with pytest.raises(ZooError, match=r"channel by channel.*RBF goes with RoPE"):
        Decoder(**sizes, position=RoPE, kernel=FourierQuartic)
    neighbours, half = partial(RoPE, pairing="interleaved"), partial(RoPE, fraction=0.5)
    with pytest.raises(ZooError, match=r"pairs are interleaved, and FourierRadial's half.*pairing interleaved"):
        Decoder(**sizes, position=neighbours, kernel=FourierRadial)
    with pytest.raises(ZooError, match=r"pairs 8 channels and this encoding rotates 4.*fraction 0.5"):
        Decoder(**sizes, position=half, kernel=FourierRadial)
    Decoder(**sizes, position=neighbours, kernel=partial(FourierRadial, pairing="interleaved"))
    Decoder(**sizes, position=half, kernel=partial(FourierRadial, fraction=0.5))
    Decoder(**sizes, position=ALiBi, kernel=FourierIntegral)
    with pytest.raises(ZooError, match=r"in pairs, and a head has 5"):
        FourierRadial(geometry(width=5))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"power": 0.0}, r"power p of sinc is a number above 0; got 0"),
        ({"power": math.inf}, r"power p of sinc is a number above 0"),
        ({"power": math.nan}, r"power p of sinc is a number above 0"),
        ({"power": 1e300}, r"power p of sinc is a number above 0"),
        ({"radius": 1e-50}, r"matched, or official; got 1e-50"),
        ({"radius": True}, r"matched, or official; got True"),
        ({"null": math.nan}, r"null logit of FourierIntegral is a finite number, or none; got nan"),
        ({"implementation": "trition"}, r"runs as auto, triton, native, torch; got trition"),
        ({"block": 2.5}, r"a whole number of queries, at least 1, and got 2.5"),
        ({"radius": -1.0}, r"radius R is a number above 0, matched, or official; got -1"),
        ({"radius": "wide"}, r"matched, or official; got wide"),
        ({"per": "token"}, r"layer, head, channel, or both; got token"),
        ({"block": 0}, r"a whole number of queries, at least 1, and got 0"),
    ],
)
def test_numbers_that_make_no_sense(settings, sentence):
    with pytest.raises(ZooError, match=sentence):
        FourierIntegral(geometry(), **settings)


def test_types_that_nobody_computes_are_refused():
    asked = Request(head_dim=6, value_dim=6, device="cpu", dtype=torch.float32, training=True)
    assert FourierIntegral(geometry()).refuses(asked) == []
    (reason,) = FourierIntegral(geometry()).refuses(replace(asked, dtype=torch.complex64))
    assert "complex64" in reason
    with pytest.raises(ZooError, match=r"cannot run in C\+\+: it .* float32 on a CPU, and this is torch.float64"):
        FourierIntegral(geometry(), implementation="native").double()(*(x.double() for x in tensors()))


def test_half_precision_is_taken_apart_in_float32():
    q, k, v = (x.to(torch.bfloat16) for x in tensors(2, 40, 40, 16))
    built = FourierIntegral(geometry(2, width=16), radius=1.0).to(torch.bfloat16)
    out = built(q, k, v, scale=0.25)
    assert out.dtype == torch.bfloat16
    expected = built(q.float(), k.float(), v.float(), scale=0.25)
    assert torch.equal(out, expected.to(torch.bfloat16))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", [FourierIntegral, FourierRadial])
def test_only_differences_count_wherever_they_are(implementation, kind):
    """With few keys too, of which C++ computes more lanes than there are keys."""
    built = kernel(kind, heads=1, width=2, radius=1.0, per="layer", implementation=implementation)
    away = torch.full((1, 1, 1, 2), 2.0**16)
    q, k, v = (
        torch.zeros(1, 1, 1, 2),
        torch.tensor([[0.0, 0.5], [1, 1], [2, 0.25]]).view(1, 1, 3, 2),
        torch.eye(3)[None, None],
    )
    found = []
    for start in (0 * away, away):
        here = [(start + x).requires_grad_() for x in (q, k)]
        built.bandwidth.log_radius.data.zero_()
        out = built(*here, v, scale=2**-0.5)
        found.append([out, *torch.autograd.grad(out.square().sum(), here)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", [FourierIntegral, FourierRadial])
@pytest.mark.parametrize("far", [1e7, 1e9, 1e10, 1e12, 1e15])
def test_a_key_out_of_sight_gets_no_weight(implementation, kind, far):
    """Beyond 1e7 float32 has no sine to speak of; a run that diverges has such keys."""
    q = torch.zeros(1, 1, 1, 16, requires_grad=True)
    k = torch.ones(1, 1, 9, 16) * 0.1
    k[0, 0, 4, 3] = far
    built = kind(geometry(1, width=16), radius=1.0, implementation=implementation)
    out = built(q, k, torch.eye(9)[None, None], scale=0.25)
    assert float(out[..., 4].detach()) < 1e-20
    torch.testing.assert_close(out[0, 0, 0, [0, 8]], torch.full((2,), 1 / 8))
    assert torch.autograd.grad(out[..., 0].sum(), q)[0].isfinite().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("k", "v"),
    [
        ((2, 3, 5, 8), (2, 3, 5, 6)),
        ((1, 3, 5, 6), (2, 3, 5, 6)),
        ((2, 2, 5, 6), (2, 2, 5, 6)),
        ((2, 3, 5, 6), (2, 3, 4, 6)),
    ],
)
def test_tensors_that_do_not_belong_together(implementation, k, v):
    built = FourierIntegral(geometry(), per="layer", implementation=implementation)
    with pytest.raises(ZooError, match=r"takes queries \[batch, heads, queries, width\].* got \[2, 3, 4, 6\]"):
        built(torch.zeros(2, 3, 4, 6), torch.zeros(k), torch.zeros(v))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss", [torch.sum, lambda x: x.square().sum()])
def test_a_second_derivative_is_refused_by_every_path(implementation, loss):
    built = kernel(implementation=implementation)
    q, k, v = (x.requires_grad_() for x in tensors())
    radius = built.bandwidth.log_radius
    for first in (radius, q, k):
        for second in (radius, q, v):
            (slope,) = torch.autograd.grad(loss(built(q, k, v)), first, create_graph=True)
            with pytest.raises(RuntimeError, match="cannot be differentiated once more"):
                torch.autograd.grad(slope.square().sum(), second)
    loss(built(q, k, v)).backward()  # once is fine


class TestBuilding:
    """The C++ library is built once, whole or not at all, and its lack is said in one line."""

    CALL = """
import logging, sys, torch
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from zoo.position import Geometry
from zoo_kernels.fourier import FourierIntegral
kernel = FourierIntegral(Geometry(dim=8, heads=1, kv_heads=1, head_dim=8, length=(4,)))
x = torch.randn(1, 1, 4, 8)
for _ in range(2):
    assert kernel(x, x, x).isfinite().all()
"""

    def run(self, folder, **changes):
        env = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder), **changes}
        command = [sys.executable, "-c", self.CALL]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @needs_compiler
    def test_processes_build_at_the_same_time(self, tmp_path):
        together = [self.run(tmp_path) for _ in range(2)]
        for process in together:
            told, _ = process.communicate(timeout=120)
            assert process.returncode == 0, told
            assert told == "kernel: Fourier attention runs in C++\n"
        assert sorted(path.suffix for path in tmp_path.iterdir()) == [".sha256", ".so"]

    COMPILER = "env g++"
    """A command of several words."""

    @pytest.fixture(scope="class")
    def built(self, tmp_path_factory):
        """A folder with a library that was built there."""
        folder = tmp_path_factory.mktemp("built")
        assert self.run(folder, CXX=self.COMPILER).wait(timeout=120) == 0
        return folder

    @needs_compiler
    @pytest.mark.parametrize("content", ["cut", "garbage", "empty", "alone"])
    def test_a_library_that_is_not_whole_is_built_anew(self, built, tmp_path, content):
        """To load one that is cut off would end the process."""
        for path in built.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (path,) = tmp_path.glob("*.so")
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[:20000], "garbage": b"x" * 5000, "empty": b"", "alone": whole}[content])
        if content == "alone":
            path.with_suffix(".sha256").unlink()
        told, _ = (process := self.run(tmp_path, CXX=self.COMPILER)).communicate(timeout=120)
        assert (process.returncode, told) == (0, "kernel: Fourier attention runs in C++\n")
        assert path.stat().st_size == len(whole)

    @pytest.mark.parametrize(
        ("compiler", "reason"),
        [
            ("", "there is no compiler"),
            ("g++ '", "CXX is no command"),
            ("false", "false failed"),
            (f"{sys.executable} -c 'import sys; sys.exit(\"x.cpp:1: error: no such thing\")'", "error: no such thing"),
        ],
    )
    def test_a_compiler_that_fails_is_named(self, tmp_path, compiler, reason):
        told, _ = (process := self.run(tmp_path, CXX=compiler)).communicate(timeout=120)
        assert process.returncode == 0, told
        (line,) = told.splitlines()
        assert f"not in C++ ({reason}" in line or reason in line

    def test_a_compiler_that_does_not_end(self, tmp_path, monkeypatch):
        monkeypatch.setenv("CXX", "sleep")
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
        monkeypatch.setattr(native, "PATIENCE", 0.2)
        own = subprocess.run
        monkeypatch.setattr(native.subprocess, "run", lambda command, **how: own(["sleep", "60"], **how))
        assert native.found() == (None, "sleep did not come to an end within 0.2 seconds")

    def test_a_folder_that_takes_no_files_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        told, _ = (process := self.run(tmp_path / "file" / "x")).communicate(timeout=120)
        assert process.returncode == 0, told
        (line,) = told.splitlines()
        assert "TORCH_EXTENSIONS_DIR names another folder" in line

    @needs_compiler
    def test_threads_ask_at_the_same_time(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
        native.library.cache_clear()
        try:
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda _: native.library(), range(4)))
        finally:
            native.library.cache_clear()
        assert all(library is not None for library, _ in found)

    def test_without_a_compiler_one_line_says_so(self, tmp_path):
        process = self.run(tmp_path, CXX=str(tmp_path / "none"))
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 0, told
        (line,) = told.splitlines()
        assert "runs in plain torch; not in C++ (" in line
        assert "apt install g++" in line
        assert list(tmp_path.iterdir()) == []
