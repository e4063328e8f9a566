"""PoPE: the logit by its formula one channel at a time, its relation to RoPE, and its way through model and cache."""

import math

import pytest
import torch
from torch import nn
from zoo_kernels.flex import Flex
from zoo_kernels.sdpa import SDPA
from zoo_kernels.tiled import Tiled
from zoo_positions.rope import PoPE, RoPE

from zoo.bias import Bias
from zoo.cache import Cache
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.generate import generate
from zoo.kernel import Eager, Mask
from zoo.layers import Attention
from zoo.matrix import request


def draw(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def logits(q, k, at, phase, base: float = 10000.0) -> torch.Tensor:
    """Unscaled logits of q [heads, tokens, width], k [key heads, tokens, width] at positions, a channel at a time.

    phase is [key heads, channels with a wave].
    """
    groups, channels = len(q) // len(k), phase.shape[1]
    out = torch.zeros(len(q), len(at), len(at), dtype=torch.float64)
    for h in range(len(q)):
        for i, t in enumerate(at):
            for j, s in enumerate(at):
                a, b, shift = q[h, i].tolist(), k[h // groups, j].tolist(), phase[h // groups].tolist()
                waves = sum(
                    softplus(a[c]) * softplus(b[c]) * math.cos((t - s) * base ** (-c / channels) - shift[c])
                    for c in range(channels)
                )
                out[h, i, j] = waves + sum(x * y for x, y in zip(a[channels:], b[channels:], strict=True))
    return out


def products(rotation, q, k) -> torch.Tensor:
    """Unscaled logits as a kernel computes them."""
    q, k = rotation(q, k)
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT


def drawn(pope: PoPE) -> PoPE:
    """With phases in the inside of their range."""
    with torch.no_grad():
        pope.phase.copy_(-6 * draw(*pope.phase.shape, seed=9).sigmoid())
    return pope


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.4])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_equals_the_formula(shape, fraction, kv_heads):
    pope = drawn(PoPE(shape(heads=4, kv_heads=kv_heads), base=500.0, fraction=fraction))
    at = [0.0, 1.0, 3.0, 40.0, 1000.0]
    positions, q, k = torch.tensor(at).unsqueeze(-1), 3 * draw(1, 4, 5, 8), 3 * draw(1, kv_heads, 5, 8, seed=1)
    expected = logits(q[0], k[0], at, pope.phase.double(), 500.0)
    assert pope.phase.shape == (kv_heads, int(8 * fraction))
    single = products(pope(positions, positions, 1001).rotation, q.float(), k.float())
    double = products(pope.double()(positions, positions, 1001).rotation, q, k)
    torch.testing.assert_close(double[0], expected, rtol=0, atol=1e-6)  # torch takes softplus(x) for x beyond 20
    torch.testing.assert_close(single[0].double(), expected, rtol=1e-4, atol=1e-2)


def test_it_is_rope_of_twice_the_width_on_sizes(shape):
    """Without phases: pairs (softplus(x), 0), turned by RoPE."""
    at = torch.arange(0, 600, 100).float().unsqueeze(-1)
    q, k = draw(1, 2, 6, 8), draw(1, 2, 6, 8, seed=1)
    rope = RoPE(shape(head_dim=16), pairing="interleaved").double()(at, at, 600).rotation
    sizes = [torch.stack((nn.functional.softplus(x), torch.zeros_like(x)), -1).flatten(-2) for x in (q, k)]
    pope = PoPE(shape()).double()(at, at, 600).rotation
    torch.testing.assert_close(products(pope, q, k), products(rope, *sizes), rtol=0, atol=1e-12)
    assert torch.equal(pope.frequencies, rope.frequencies)
    assert pope.frequencies.shape == (1, 8)


def test_a_token_of_the_same_position_always_scores_above_zero(shape):
    q, k, at = draw(1, 2, 6, 8) - 2, draw(1, 2, 6, 8, seed=1) - 2, torch.full((6, 1), 7.0)
    assert bool((products(PoPE(shape())(at, at, 8).rotation, q, k) > 0).all())
    assert bool((products(RoPE(shape())(at, at, 8).rotation, q, -k) < 0).any())


def test_logits_depend_on_distance_only(shape):
    pope, q, k = drawn(PoPE(shape())), draw(1, 2, 6, 8).float(), draw(1, 2, 6, 8, seed=1).float()
    at = torch.arange(6.0).unsqueeze(-1)
    near, far = (products(pope(at + start, at + start, 32_768).rotation, q, k) for start in (0, 32_000))
    assert pope.relative
    torch.testing.assert_close(far, near, rtol=0, atol=3e-2)  # a float32 angle near 32 000 is off by 0.002
    pope, q, k = pope.double(), q.double(), k.double()
    near, far = (products(pope(at + start, at + start, 32_768).rotation, q, k) for start in (0, 32_000))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-9)


def test_a_phase_is_exact_where_angles_are_large(shape):
    """Added to an angle near 32 000, a float32 phase would be a multiple of 0.002."""
    pope, at = PoPE(shape()), torch.tensor([[32_000.0]])
    k, found = torch.zeros(1, 2, 1, 8), []
    for phase in (-1.0, -1.0001):
        with torch.no_grad():
            pope.phase.fill_(phase)
        found.append(pope(at, at, 32_001).rotation(k, k)[1][0, 0, 0])
    change = torch.atan2(found[0][8:], found[0][:8]) - torch.atan2(found[1][8:], found[1][:8])
    torch.testing.assert_close(torch.sin(change), torch.full((8,), 1e-4), rtol=2e-2, atol=0)


def test_positions_of_their_own_per_example(shape):
    pope, q, k = drawn(PoPE(shape())), draw(2, 2, 3, 8).float(), draw(2, 2, 3, 8, seed=1).float()
    at = torch.tensor([[[0.0], [1.0], [2.0]], [[0.0], [0.0], [1.0]]])
    both = pope(at, at, 3).rotation(q, k)
    for row in range(2):
        alone = pope(at[row], at[row], 3).rotation(q[row : row + 1], k[row : row + 1])
        for one, two in zip(both, alone, strict=True):
            torch.testing.assert_close(one[row : row + 1], two, rtol=0, atol=1e-6)


def test_a_prefix_stands_at_position_zero(shape):
    at, told = torch.tensor([[0.0], [1.0], [5.0]]), [0.0, 0.0, 0.0, 1.0, 5.0]
    pope, q, k = drawn(PoPE(shape(prefix=2))).double(), draw(1, 2, 5, 8), draw(1, 2, 5, 8, seed=1)
    found = products(pope(at, at, 6).rotation, q, k)[0]
    torch.testing.assert_close(found, logits(q[0], k[0], told, pope.phase), rtol=0, atol=1e-6)


def test_half_of_the_channels_follow_rows_and_half_columns(shape):
    at = torch.tensor([[y, x] for y in range(2) for x in range(3)], dtype=torch.float32)
    pope = drawn(PoPE(shape(length=(2, 3), causal=False), base=100.0)).double()
    q, k = draw(1, 2, 6, 8), draw(1, 2, 6, 8, seed=1)
    found = products(pope(at, at, 6).rotation, q, k)[0]
    expected = sum(
        logits(q[0, ..., part], k[0, ..., part], at[:, axis].tolist(), pope.phase[:, part], 100.0)
        for axis, part in enumerate((slice(0, 4), slice(4, 8)))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


class Lens(Eager):
    """Keeps its weights."""

    def forward(self, q, k, v, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0):
        one = torch.eye(k.shape[2], dtype=q.dtype).expand(*k.shape[:2], -1, -1)
        self.weights = super().forward(q, k, one, bias=bias, mask=mask, scale=scale)
        return super().forward(q, k, v, bias=bias, mask=mask, scale=scale)


def test_the_scale_is_that_of_the_narrow_head(shape):
    """1 / sqrt(d), not 1 / sqrt(2 d), and values as wide as the head."""
    geometry = shape(heads=4, kv_heads=2, dim=32)
    layer = Attention(
        geometry, Lens(geometry), norm="RMSNorm", eps=1e-6, qk_norm="none", qkv_bias=False, out_bias=False
    ).double()
    nn.init.normal_(layer.qkv.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    pope, at, x = drawn(PoPE(geometry)).double(), torch.arange(5.0).unsqueeze(-1), draw(1, 5, 32)
    out = layer(x, pope(at, at, 5), Mask())
    q, k, _ = (x @ layer.qkv.weight.T).view(5, -1, 8).transpose(0, 1).split((4, 2, 2))
    expected = (logits(q, k, at.flatten().tolist(), pope.phase) / math.sqrt(8)).softmax(-1)
    torch.testing.assert_close(layer.kernel.weights[0], expected, rtol=0, atol=1e-6)
    assert out.shape == x.shape


def test_what_is_asked_of_a_kernel(shape):
    asked = request(PoPE(shape(head_dim=64), fraction=0.75))
    assert (asked.head_dim, asked.value_dim, asked.rotation, asked.isometric) == (112, 64, True, False)


@pytest.mark.parametrize("kernel", [SDPA, Tiled, Flex])
@pytest.mark.parametrize("mask", ["causal", "window", "none"])
def test_kernels_of_two_widths(shape, kernel, mask):
    geometry = shape(heads=4, kv_heads=2, head_dim=16)
    made = {"causal": Mask(causal=True), "window": Mask(causal=True, window=5), "none": Mask()}[mask]
    at, found = torch.arange(150.0).unsqueeze(-1), []
    for kind in (Eager, kernel):
        pope = drawn(PoPE(geometry, fraction=0.5))
        leaves = [draw(2, heads, 150, 16, seed=n).float() for n, heads in enumerate((4, 2, 2))]
        with torch.set_grad_enabled(kernel is not Flex):
            leaves = [x.requires_grad_(kernel is not Flex) for x in leaves]
            q, k = pope(at, at, 150).rotation(*leaves[:2])
            assert q.shape[-1] == k.shape[-1] == 24
            out = kind(geometry)(q, k, leaves[2], mask=made, scale=0.25)
        if kernel is not Flex:
            out.backward(draw(2, 4, 150, 16, seed=7).float())
        found.append([out, *(x.grad for x in leaves), pope.phase.grad])
    for one, two in zip(*found, strict=True):
        if one is not None:
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-3)
    assert kernel is Flex or found[0][-1].abs().max() > 0.01


def test_gradients(shape):
    """Of queries, keys and phases, by finite differences."""
    pope = drawn(PoPE(shape(kv_heads=1), fraction=0.5)).double()
    at, q, k = torch.tensor([[0.0], [1.0], [7.0]]), draw(1, 2, 3, 8), draw(1, 1, 3, 8, seed=1)
    start = pope.phase.detach().clone()

    def scores(q, k, phase):
        rotation = torch.func.functional_call(pope, {"phase": phase}, (at, at, 8)).rotation
        return products(rotation, q, k)

    assert torch.autograd.gradcheck(scores, [x.requires_grad_() for x in (q, k, start)])


def test_phases_are_held_within_a_turn(shape):
    pope, at, x = PoPE(shape()).double(), torch.arange(4.0).unsqueeze(-1), draw(1, 2, 4, 8)
    found = []
    edges = (0.0, -2 * math.pi)
    for phase in (*edges, 0.3, -7.0, -3.0):
        with torch.no_grad():
            pope.phase.fill_(phase)
        pope.zero_grad()
        scores = products(pope(at, at, 4).rotation, x, x)
        scores[..., 3, 0].sum().backward()
        found.append((scores.detach(), pope.phase.grad.clone()))
    torch.testing.assert_close(found[2][0], found[0][0], rtol=0, atol=0)
    torch.testing.assert_close(found[3][0], found[1][0], rtol=0, atol=0)
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-9)  # a whole turn is none
    assert [bool(grad.any()) for _, grad in found] == [True, True, False, False, True]


def test_where_phases_start(shape):
    assert not PoPE(shape()).phase.any()
    torch.manual_seed(0)
    pope = PoPE(shape(head_dim=64), phases="uniform")
    assert -2 * math.pi <= pope.phase.min() < -5.5
    assert -0.5 < pope.phase.max() <= 0
    before = pope.phase.detach().clone()
    torch.manual_seed(0)
    pope.reset_parameters()
    assert torch.equal(pope.phase, before)
    pope.phases = "zero"
    pope.reset_parameters()
    assert not pope.phase.any()


def test_a_module_per_layer_or_one_for_all():
    sizes = {"vocabulary": 32, "length": 16, "dim": 32, "heads": 4, "kv_heads": 2, "layers": 3}
    own = Decoder(**sizes, position=PoPE)
    shared = Decoder(**sizes, position=lambda geometry: PoPE(geometry, per_layer=False))
    for model, count in ((own, 3), (shared, 1)):
        phases = [p for name, p in model.named_parameters() if name.endswith("phase")]
        assert [tuple(p.shape) for p in phases] == [(2, 8)] * count
        model(torch.arange(16).view(1, -1)).sum().backward()
        assert all(p.grad.abs().max() > 0 for p in phases)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_decoding_far_beyond_the_prompt(fraction):
    """The cache holds wide keys and narrow values; an extent of 700 does not show in 8 tokens."""
    torch.manual_seed(0)
    model = Decoder(
        vocabulary=32,
        length=16,
        dim=32,
        heads=4,
        kv_heads=2,
        layers=2,
        std=0.3,
        position=lambda geometry: PoPE(geometry, phases="uniform", fraction=fraction),
    ).double()
    tokens, cache = torch.arange(700).view(1, -1) * 7 % 32, Cache(700)
    full = model(tokens)
    parts = tokens.split((8, 1, 1, 300, 1, 1, 386, 1, 1), 1)
    steps = [model(part, cache=cache) for part in parts]
    torch.testing.assert_close(torch.cat(steps, 1), full, rtol=0, atol=1e-9)
    torch.testing.assert_close(model(tokens[:, :8], cache=Cache(700)), full[:, :8], rtol=0, atol=1e-9)
    assert [x.shape[-1] for x in cache.buffers[0]] == [8 + int(8 * fraction), 8]
    prompt = tokens[:, :8]
    new = generate(model, prompt, 40, temperature=0)
    for step in range(40):
        read = torch.cat((prompt, new[:, :step]), 1)
        assert model(read)[0, -1].argmax() == new[0, step]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_arithmetic_is_float32_and_the_result_of_the_inputs_type(shape, kind):
    pope, at = drawn(PoPE(shape())), torch.arange(30_000.0, 30_006.0).unsqueeze(-1)
    q, k = draw(1, 2, 6, 8).to(kind), draw(1, 2, 6, 8, seed=1).to(kind)
    expected = [x.to(kind) for x in pope(at, at, 32_768).rotation(q.float(), k.float())]
    pope.to(kind)
    assert pope.phase.dtype == pope.frequencies.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        found = pope(at, at, 32_768).rotation(q, k)
    assert all(torch.equal(one, two) and one.dtype == kind for one, two in zip(found, expected, strict=True))


def test_the_meta_device_loses_nothing(shape):
    pope, at = drawn(PoPE(shape())), torch.arange(5.0).unsqueeze(-1)
    with torch.device("meta"):
        empty = PoPE(shape())
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(pope.state_dict())
    assert list(pope.state_dict()) == ["phase"]
    one, two = (each(at, at, 5).rotation for each in (pope, filled))
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("cos", "sin", "phase", "frequencies"))


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({}, {"fraction": 0.0}, r"a fraction 0\.0 of a head waves. Give more than 0"),
        ({}, {"fraction": 1.1}, r"a fraction 1\.1 of a head"),
        ({}, {"fraction": 0.1}, r"cannot share 0 channels of a head.*a multiple of 1"),
        ({"head_dim": 7, "length": (4, 4)}, {}, r"cannot share 7 channels .*between 2 axes: it needs a multiple of 2"),
        ({}, {"base": 1.0}, r"cannot have the base 1\.0"),
    ],
)
def test_refusals(shape, changes, arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        PoPE(shape(**changes), **arguments)


def test_an_odd_head_is_served(shape):
    """No pairs are turned: a channel is its own wave."""
    pope, at = PoPE(shape(head_dim=7)).double(), [0.0, 1.0, 9.0]
    q, k = draw(1, 2, 3, 7), draw(1, 2, 3, 7, seed=1)
    positions = torch.tensor(at).unsqueeze(-1)
    found = products(pope(positions, positions, 10).rotation, q, k)[0]
    torch.testing.assert_close(found, logits(q[0], k[0], at, pope.phase), rtol=0, atol=1e-6)
