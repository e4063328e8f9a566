"""p-RoPE: which pairs turn, by complex numbers one at a time, and what it is at both ends."""

import cmath

import pytest
import torch
from zoo_positions.rope import RoPE, pRoPE

from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.position import NoPE


def draw(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def turned(row: list[float], at: float, base: float, turning: int, pairing: str) -> list[float]:
    """One head of one token: pair t < turning is multiplied by exp(i at base^(-2t / d))."""
    width, out = len(row), list(row)
    for t in range(turning):
        first, second = (t, t + width // 2) if pairing == "half" else (2 * t, 2 * t + 1)
        z = complex(row[first], row[second]) * cmath.exp(1j * at * base ** (-2 * t / width))
        out[first], out[second] = z.real, z.imag
    return out


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize(("fraction", "turning"), [(0.75, 6), (0.25, 2), (0.3, 2), (0.99, 7)])
def test_fast_pairs_turn_by_their_own_wave_and_slow_ones_stand(shape, pairing, fraction, turning):
    prope = pRoPE(shape(head_dim=16), base=77.0, fraction=fraction, pairing=pairing)
    at, x = [0.0, 1.0, 5.0, 1000.0], draw(1, 2, 4, 16)
    positions = torch.tensor(at).unsqueeze(-1)
    expected = torch.tensor(
        [[[turned(x[0, h, n].tolist(), at[n], 77.0, turning, pairing) for n in range(4)] for h in range(2)]],
        dtype=torch.float64,
    )
    single = prope(positions, positions, 1001).rotation(x.float(), x.float())
    double = prope.double()(positions, positions, 1001).rotation(x, x)
    for got, exact in zip(single, double, strict=True):
        torch.testing.assert_close(exact, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-4)
    assert not torch.allclose(expected[..., :turning], x[..., :turning], atol=0.1)


@pytest.mark.parametrize(
    ("fraction", "width", "turning"),
    [(0.25, 256, 32), (0.25, 512, 64), (0.75, 64, 24), (0.1, 128, 6), (0.5, 6, 1), (1.0, 6, 3), (0.0, 8, 0)],
)
def test_how_many_waves_turn(shape, fraction, width, turning):
    waves = pRoPE(shape(head_dim=width), fraction=fraction).frequencies
    assert waves.shape == (1, width // 2)
    assert int((waves > 0).sum()) == turning
    assert bool((waves[:, :turning] > 0).all())


def test_it_is_not_partial_rotary(shape):
    """Partial rotary squeezes a whole spectrum into the rotated channels; here the slow waves are missing."""
    waves, partial = (kind(shape(head_dim=64), fraction=0.5).frequencies[0] for kind in (pRoPE, RoPE))
    assert waves[15] == RoPE(shape(head_dim=64)).frequencies[0, 15]
    assert waves[15] > 70 * partial[15]


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_a_fraction_of_one_is_rope(shape, pairing):
    at, x = torch.arange(9.0).unsqueeze(-1) * 1000, draw(1, 2, 9, 8).float()
    ours, rope = (kind(shape(), base=500.0, pairing=pairing)(at, at, 9000).rotation for kind in (whole, RoPE))
    for name in ("cos", "sin", "frequencies"):
        assert torch.equal(getattr(ours, name), getattr(rope, name))
    assert torch.equal(ours.apply(x), rope.apply(x))


def whole(geometry, **changes) -> pRoPE:
    return pRoPE(geometry, fraction=1.0, **changes)


def test_a_fraction_of_zero_is_nope(shape):
    tokens = torch.arange(40).view(2, 20) * 7 % 32
    logits = []
    for position in (NoPE, lambda geometry: pRoPE(geometry, fraction=0.0), pRoPE):
        torch.manual_seed(0)
        model = Decoder(vocabulary=32, length=32, dim=32, heads=2, layers=2, position=position, std=0.3)
        logits.append(model(tokens))
    assert torch.equal(logits[0], logits[1])
    assert (logits[0] - logits[2]).abs().max() > 0.1


def test_each_axis_of_a_grid_keeps_its_fast_waves(shape):
    at = torch.tensor([[y, x] for y in range(3) for x in range(5)], dtype=torch.float32)
    prope = pRoPE(shape(length=(3, 5), head_dim=16, causal=False), base=100.0, fraction=0.5).double()
    x = draw(1, 2, 15, 16)
    rotation = prope(at, at, 15).rotation
    assert rotation.frequencies.tolist() == [[1.0, pytest.approx(100**-0.25), 0, 0]] * 2
    turns = torch.tensor([[y, y * 100**-0.25, 0, 0, x, x * 100**-0.25, 0, 0] for y, x in at.tolist()]).double()
    z = torch.complex(x[..., :8], x[..., 8:]) * torch.exp(1j * turns)
    torch.testing.assert_close(rotation.apply(x), torch.cat((z.real, z.imag), -1), rtol=0, atol=1e-6)


def test_slow_pairs_stand_still_anywhere(shape):
    at, x = torch.tensor([[0.0], [32_767.0], [1e6]]), draw(1, 2, 3, 8).float()
    got = pRoPE(shape(), fraction=0.5)(at, at, 1_000_001).rotation.apply(x)
    assert torch.equal(got[..., 2:4], x[..., 2:4])
    assert torch.equal(got[..., 6:], x[..., 6:])
    assert not torch.allclose(got[:, :, 1:, :2], x[:, :, 1:, :2], atol=1e-2)


def test_moving_the_module_brings_no_wave_back(shape):
    prope, at = pRoPE(shape(head_dim=64)), torch.arange(32_000.0, 32_008.0).unsqueeze(-1)
    before = prope(at, at, 32_768).rotation
    with torch.device("meta"):
        empty = pRoPE(shape(head_dim=64))
    for other in (prope.double().bfloat16().float(), empty.to_empty(device="cpu")):
        after = other(at, at, 32_768).rotation
        assert torch.equal(before.cos, after.cos)
        assert torch.equal(before.sin, after.sin)
    assert not prope.state_dict()


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({"head_dim": 7}, {}, r"each of 1 axes, so that head_dim is a multiple of 2; here it is 7"),
        ({"head_dim": 6, "length": (4, 4)}, {}, "a multiple of 4; here it is 6"),
        ({}, {"fraction": -0.1}, r"a fraction -0\.1 of the pairs. Give at least 0 and at most 1"),
        ({}, {"fraction": 1.5}, r"a fraction 1\.5 of the pairs"),
        ({"head_dim": 2}, {}, r"none of the 1 pairs.*--model.position.fraction at least 1, or 0"),
        ({}, {"fraction": 0.2}, r"none of the 4 pairs.*--model.position.fraction at least 0\.25, or 0"),
        ({}, {"base": 1.0}, r"cannot have the base 1\.0"),
    ],
)
def test_refusals(shape, changes, arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        pRoPE(shape(**changes), **arguments)
