"""Sinusoidal against Python's own sine and cosine."""

import math

import pytest
import torch
from zoo_positions.sinusoidal import Sinusoidal

from zoo.errors import ZooError


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


def test_refusals(shape):
    with pytest.raises(ZooError, match=r"tells one axis, and this model has 2.*position RoPE"):
        Sinusoidal(shape(length=(4, 4)))
    with pytest.raises(ZooError, match=r"needs an even dim.*here it is 15"):
        Sinusoidal(shape(dim=15))
    with pytest.raises(ZooError, match=r"cannot have the base 1\.0"):
        Sinusoidal(shape(), base=1.0)
