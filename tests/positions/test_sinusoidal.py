"""Sinusoidal against Python's own sine and cosine."""

import math

import pytest
import torch
from zoo_positions.sinusoidal import Sinusoidal

from zoo.errors import ZooError
from zoo.vit import grid


def by_hand(position: float, dim: int, base: float, layout: str) -> list[float]:
    row = [0.0] * dim
    for t in range(dim // 2):
        angle = position / math.pow(base, 2 * t / dim)
        sine, cosine = (2 * t, 2 * t + 1) if layout == "interleaved" else (t, t + dim // 2)
        row[sine], row[cosine] = math.sin(angle), math.cos(angle)
    return row


@pytest.mark.parametrize("layout", ["interleaved", "concatenated"])
@pytest.mark.parametrize(("base", "dim"), [(10000.0, 16), (500.0, 6)])
def test_equals_plain_arithmetic(shape, layout, base, dim):
    sinusoidal = Sinusoidal(shape(dim=dim), base=base, layout=layout)
    where = [0, 1, 7, 63, 1000]
    at = torch.tensor(where, dtype=torch.float32).unsqueeze(-1)
    expected = torch.tensor([by_hand(p, dim, base, layout) for p in where], dtype=torch.float64)
    got = sinusoidal(at, at, 1024).embedding
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(sinusoidal.double()(at, at, 1024).embedding, expected, rtol=0, atol=1e-12)


def test_the_first_layout_is_the_papers(shape):
    at = torch.tensor([[1.0]])
    first = Sinusoidal(shape())(at, at, 2).embedding[0, :2]
    torch.testing.assert_close(first, torch.tensor([math.sin(1), math.cos(1)]), rtol=0, atol=1e-7)


def test_scale_and_batches(shape):
    at = torch.arange(6.0).view(2, 3, 1)
    plain = Sinusoidal(shape())(at, at, 6).embedding
    assert plain.shape == (2, 3, 16)
    torch.testing.assert_close(Sinusoidal(shape(), scale=0.25)(at, at, 6).embedding, plain / 4, rtol=0, atol=0)
    torch.testing.assert_close(Sinusoidal(shape())(at[1], at[1], 6).embedding, plain[1], rtol=0, atol=1e-6)


def patch_by_hand(y: float, x: float, dim: int, base: float, layout: str) -> list[float]:
    """One patch, from the lists that a paper would write down."""
    waves = [math.pow(base, -i / (dim // 4)) for i in range(dim // 4)]
    sines, cosines = ([[wave(p * w) for w in waves] for p in (y, x)] for wave in (math.sin, math.cos))
    if layout == "interleaved":
        return [part for axis in (0, 1) for pair in zip(sines[axis], cosines[axis], strict=True) for part in pair]
    if layout == "concatenated":
        return sines[0] + sines[1] + cosines[0] + cosines[1]
    return sines[1] + cosines[1] + sines[0] + cosines[0]  # MAE: the columns first


@pytest.mark.parametrize("layout", ["interleaved", "concatenated", "axiswise"])
@pytest.mark.parametrize(("base", "dim"), [(10000.0, 24), (100.0, 4)])
def test_on_a_grid_the_axes_share_the_channels(shape, layout, base, dim):
    sinusoidal = Sinusoidal(shape(dim=dim, length=(3, 5), prefix=1, causal=False), base=base, layout=layout)
    at = torch.cat((grid(3, 5), torch.tensor([[200.0, 7.0]])))
    expected = torch.tensor([patch_by_hand(y, x, dim, base, layout) for y, x in at.tolist()], dtype=torch.float64)
    got = sinusoidal(at, at, 16).embedding
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(sinusoidal.double()(at, at, 16).embedding, expected, rtol=0, atol=1e-12)


def test_batches_of_patches(shape):
    at = torch.stack((grid(2, 3), grid(3, 2)))
    for layout in ("interleaved", "concatenated", "axiswise"):
        sinusoidal = Sinusoidal(shape(length=(2, 3), causal=False), layout=layout)
        both = sinusoidal(at, at, 6).embedding
        assert both.shape == (2, 6, 16)
        for row in range(2):
            torch.testing.assert_close(both[row], sinusoidal(at[row], at[row], 6).embedding, rtol=0, atol=1e-6)


def test_in_text_an_axis_after_the_other_is_one_axis(shape):
    at = torch.arange(9.0).view(-1, 1)
    one, other = (Sinusoidal(shape(), layout=layout)(at, at, 9).embedding for layout in ("concatenated", "axiswise"))
    assert torch.equal(one, other)


def test_refusals(shape):
    with pytest.raises(ZooError, match=r"each of 2 axes, so a dim that is a multiple of 4; here it is 14.*model\.dim"):
        Sinusoidal(shape(dim=14, length=(4, 4)))
    with pytest.raises(ZooError, match=r"each of 1 axes, so a dim that is a multiple of 2; here it is 15"):
        Sinusoidal(shape(dim=15))
    with pytest.raises(ZooError, match=r"cannot have the base 1\.0"):
        Sinusoidal(shape(), base=1.0)
