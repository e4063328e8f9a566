"""xPos: the formula by complex numbers one at a time, far positions, and what numbers cannot hold."""

import cmath
import math

import pytest
import torch
from zoo_kernels.flex import Flex
from zoo_kernels.sdpa import SDPA
from zoo_kernels.tiled import Tiled
from zoo_positions.rope import RoPE, xPos

from zoo.cache import Cache
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.kernel import Eager, Mask
from zoo.matrix import request

END = 32_768


def draw(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def zeta(t: int, width: int) -> float:
    return (2 * t + 0.4 * width) / (1.4 * width)


def pairs(row: list[float], pairing: str) -> list[complex]:
    half = len(row) // 2
    if pairing == "half":
        return [complex(row[t], row[t + half]) for t in range(half)]
    return [complex(row[2 * t], row[2 * t + 1]) for t in range(half)]


def stretched(row: list[float], at: float, centre: float, sign: int, span: float, pairing: str) -> list[complex]:
    """One head of one token as the references compute it: sign is 1 for a query and -1 for a key."""
    width = len(row)
    return [
        z * cmath.exp(1j * at * 10000.0 ** (-2 * t / width)) * zeta(t, width) ** (sign * (at - centre) / span)
        for t, z in enumerate(pairs(row, pairing))
    ]


def product(q: list[float], k: list[float], distance: float, span: float, pairing: str) -> float:
    """The logit of a query and a key so far apart: no centre, no absolute position."""
    width = len(q)
    return sum(
        (a * b.conjugate() * cmath.exp(1j * distance * 10000.0 ** (-2 * t / width))).real
        * zeta(t, width) ** (distance / span)
        for t, (a, b) in enumerate(zip(pairs(q, pairing), pairs(k, pairing), strict=True))
    )


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize(("span", "extent"), [(512.0, 1001), (40.0, 1500)])
def test_equals_the_formula(shape, pairing, span, extent):
    xpos = xPos(shape(), span=span, pairing=pairing)
    at = [0.0, 1.0, 2.0, 40.0, 1000.0]
    positions, q, k = torch.tensor(at).unsqueeze(-1), draw(1, 2, 5, 8), draw(1, 1, 5, 8, seed=1)
    single = xpos(positions, positions, extent).rotation(q.float(), k.float())
    double = xpos.double()(positions, positions, extent).rotation(q, k)
    for got, exact, x, sign in zip(single, double, (q, k), (1, -1), strict=True):
        for h in range(x.shape[1]):
            for n in range(5):
                expected = stretched(x[0, h, n].tolist(), at[n], extent // 2, sign, span, pairing)
                assert pairs(exact[0, h, n].tolist(), pairing) == pytest.approx(expected, rel=1e-10)
                assert pairs(got[0, h, n].tolist(), pairing) == pytest.approx(expected, rel=1e-3)


def test_how_fast_the_pairs_shrink(shape):
    """zeta runs from 2/7 to nearly 1, whatever the width."""
    at = torch.tensor([[256.0], [768.0]])
    growth = xPos(shape(head_dim=64)).double()(at, at, 1024).rotation.growth[0, 0]
    found = growth[1] / growth[0]
    assert found[0].item() == pytest.approx(2 / 7)
    assert found[31].item() == pytest.approx((62 + 25.6) / 89.6)
    torch.testing.assert_close(growth[0] * growth[1], torch.ones(32).double())  # the centre is in the middle


def test_products_know_the_distance_only_and_shrink_with_it(shape):
    xpos, q, k = xPos(shape()), draw(1, 1, 6, 8), draw(1, 1, 6, 8, seed=1)
    for start in (0, 17, 5000, END - 6):
        at = torch.arange(start, start + 6).float().unsqueeze(-1)
        turned_q, turned_k = xpos(at, at, END).rotation(q, k)
        got = turned_q @ turned_k.mT
        for n in range(6):
            for m in range(n + 1):
                expected = product(q[0, 0, n].tolist(), k[0, 0, m].tolist(), n - m, 512.0, "interleaved")
                # a float32 angle near 32 768 is off by 0.002
                assert got[0, 0, n, m].item() == pytest.approx(expected, abs=1e-5 if start < 100 else 2e-2)
    assert xpos.relative
    same = draw(1, 1, 1, 8).expand(1, 1, 3, 8)
    at = torch.tensor([[0.0], [20_000.0], [32_767.0]])
    turned_q, turned_k = xpos.double()(at, at, END).rotation(same, same)
    far = (turned_q @ turned_k.mT)[0, 0]
    assert far[1, 1] == pytest.approx(float(same[0, 0, 0].square().sum()))
    assert abs(far[2, 0]) < abs(far[2, 1]) < abs(far[2, 2])


def test_the_centre_cancels(shape):
    """The same tokens in requests of other extents."""
    xpos, at, q, k = xPos(shape()).double(), torch.arange(9.0).unsqueeze(-1), draw(1, 2, 9, 8), draw(1, 2, 9, 8, seed=1)
    logits = []
    for extent in (9, 10, 4000, END):
        turned_q, turned_k = xpos(at, at, extent).rotation(q, k)
        logits.append(turned_q @ turned_k.mT)
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_an_infinite_span_is_rope(shape, pairing):
    at, q, k = torch.arange(0, 9e5, 1e5).unsqueeze(-1), draw(1, 2, 9, 8).float(), draw(1, 2, 9, 8, seed=1).float()
    found = xPos(shape(), span=math.inf, pairing=pairing)(at, at, 10**6).rotation(q, k)
    expected = RoPE(shape(), pairing=pairing)(at, at, 10**6).rotation(q, k)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_positions_of_their_own_per_example(shape):
    xpos, q, k = xPos(shape()), draw(2, 2, 3, 8).float(), draw(2, 2, 3, 8, seed=1).float()
    at = torch.tensor([[[0.0], [1.0], [2.0]], [[300.0], [0.0], [1.0]]])
    both = xpos(at, at, 400).rotation(q, k)
    for row in range(2):
        alone = xpos(at[row], at[row], 400).rotation(q[row : row + 1], k[row : row + 1])
        for one, two in zip(both, alone, strict=True):
            torch.testing.assert_close(one[row : row + 1], two, rtol=0, atol=1e-6)


@pytest.mark.parametrize("span", [512.0, 16.0])
def test_decoding_far_beyond_the_prompt(span):
    """Keys cached under one centre meet queries under the same, 8 tokens or 1000 later."""
    torch.manual_seed(0)
    model = Decoder(
        vocabulary=32,
        length=16,
        dim=32,
        heads=4,
        kv_heads=2,
        layers=2,
        std=0.3,
        position=lambda geometry: xPos(geometry, span=span),
    ).double()
    tokens, cache = torch.arange(1024).view(1, -1) * 7 % 32, Cache(1024)
    full = model(tokens)
    steps = [model(part, cache=cache) for part in tokens.split((8, 1, 1, 500, 1, 1, 510, 1, 1), 1)]
    torch.testing.assert_close(torch.cat(steps, 1), full, rtol=0, atol=1e-9)
    other = Cache(END if span == 512 else 999)  # another centre: the same logits
    torch.testing.assert_close(model(tokens[:, :300], cache=other), full[:, :300], rtol=0, atol=1e-9)


FAR = torch.tensor([0.0, 1.0, 200.0, 16_000.0, 32_000.0, 32_766.0, 32_767.0]).unsqueeze(-1)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [Eager, SDPA, Tiled, Flex])
def test_kernels_at_the_farthest_end(shape, kernel, kind):
    """What the mask hides there is 3.5^64 times what is seen, and must reach neither values nor gradients."""
    geometry = shape(heads=2, head_dim=16)
    q, k, v, way = (draw(1, 2, 7, 16, seed=n) for n in range(4))
    oracle = torch.zeros(1, 2, 7, 7, dtype=torch.float64)
    for h in range(2):
        for n in range(7):
            for m in range(7):
                distance = float(FAR[n] - FAR[m])
                found = product(q[0, h, n].tolist(), k[0, h, m].tolist(), distance, 512.0, "interleaved")
                oracle[0, h, n, m] = found if m <= n else -math.inf
    expected = (oracle / 4).softmax(-1) @ v
    q, k, v = (x.to(kind).requires_grad_(kernel is not Flex) for x in (q, k, v))
    turned = xPos(geometry)(FAR, FAR, END).rotation(q, k)
    assert all(part.isfinite().all() and part.dtype == kind for part in turned)
    out = kernel(geometry)(*turned, v, mask=Mask(causal=True), scale=0.25)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-3 if kind == torch.float32 else 3e-2)
    if kernel is not Flex:
        out.backward(way.to(kind))
        assert all(x.grad.isfinite().all() and x.grad.abs().max() < 100 for x in (q, k, v))


def test_float16_holds_eight_spans_and_no_more(shape):
    at = torch.tensor([0.0, 2000.0, 4094.0, 4095.0]).unsqueeze(-1)
    q, k = draw(1, 2, 4, 8), draw(1, 2, 4, 8, seed=1)
    xpos = xPos(shape())
    small = xpos(at, at, 4096).rotation(q.half(), k.half())
    exact = xpos(at, at, 4096).rotation(q.half().double(), k.half().double())
    for got, expected in zip(small, exact, strict=True):
        assert got.dtype == torch.float16
        torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-6)
    rotation = xpos(at, at, 4097).rotation
    with pytest.raises(ZooError, match=r"room for 8 spans. Try:  --trainer.precision bf16-mixed"):
        rotation(q.half(), k.half())
    assert rotation(q.bfloat16(), k.bfloat16())[0].isfinite().all()


def test_the_table_of_the_rotation_stays_plain(shape):
    at = torch.arange(5.0).unsqueeze(-1)
    ours, rope = (kind(shape(), pairing="interleaved")(at, at, 5).rotation for kind in (xPos, RoPE))
    assert torch.equal(ours.cos, rope.cos)
    assert torch.equal(ours.sin, rope.sin)
    assert torch.equal(ours.frequencies, rope.frequencies)
    asked = request(xPos(shape()))
    assert asked.rotation
    assert not asked.isometric
    assert asked.head_dim == asked.value_dim == 8


def test_half_precision_changes_no_bit(shape):
    at = torch.arange(END - 40, END).float().unsqueeze(-1)
    before = xPos(shape())(at, at, END).rotation
    with torch.device("meta"):
        empty = xPos(shape())
    others = [xPos(shape()).bfloat16(), xPos(shape()).double().half().float(), empty.to_empty(device="cpu")]
    with torch.autocast("cpu", torch.bfloat16):
        found = [other(at, at, END).rotation for other in others]
    for after in found:
        for name in ("cos", "sin", "growth"):
            assert getattr(after, name).dtype == torch.float32
            assert torch.equal(getattr(before, name), getattr(after, name))
    exact = xPos(shape()).double()(at, at, END).rotation
    torch.testing.assert_close(before.growth.double(), exact.growth, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({"causal": False}, {}, r"causal models only.*the future would grow.*--model.position RoPE"),
        ({"length": (4, 4), "causal": False}, {}, r"one axis, and this model has 2.*--model.position RoPE"),
        ({"prefix": 3}, {}, r"the 3 prefix tokens of this model have none"),
        ({"head_dim": 7}, {}, r"even head_dim; here it is 7"),
        ({}, {"span": 0.0}, r"over a span of 0\.0. Give more than 0"),
        ({}, {"span": math.nan}, r"over a span of nan"),
        ({}, {"base": 0.5}, r"cannot have the base 0\.5"),
        ({"length": (END + 1,)}, {}, r"reaches 32768 tokens, and 32769 were asked for.*--model.position.span 513"),
        ({"length": (65,)}, {"span": 1.0}, r"span of 1 reaches 64 tokens, and 65"),
    ],
)
def test_refusals(shape, changes, arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        xPos(shape(**changes), **arguments)


def test_a_request_beyond_the_reach_is_refused(shape):
    xpos, at = xPos(shape(length=(64,))), torch.arange(3.0).unsqueeze(-1)
    xpos(at, at, END)
    with pytest.raises(ZooError, match="reaches 32768 tokens, and 32769"):
        xpos(at, at, END + 1)
