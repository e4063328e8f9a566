"""RoPE against multiplication by complex numbers, in float64."""

import math

import pytest
import torch
from zoo_positions.rope import RoPE

from zoo.errors import ZooError
from zoo.position import EXACT


def turned(x: torch.Tensor, turns: torch.Tensor, *, interleaved: bool = False) -> torch.Tensor:
    """x [batch, heads, tokens, width] with its pairs, as complex numbers, multiplied by exp(i turns)."""
    if interleaved:
        return torch.view_as_real(
            torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.exp(1j * turns)
        ).flatten(-2)
    real, imaginary = x.chunk(2, -1)
    z = torch.complex(real, imaginary) * torch.exp(1j * turns)
    return torch.cat((z.real, z.imag), -1)


def waves(width: int, base: float) -> torch.Tensor:
    return torch.tensor([math.exp(-2 * t / width * math.log(base)) for t in range(width // 2)], dtype=torch.float64)


def draw(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("base", [10000.0, 77.0])
def test_equals_complex_multiplication(shape, pairing, base):
    rope = RoPE(shape(), base=base, pairing=pairing)
    at = torch.tensor([0.0, 1.0, 2.0, 40.0, 1000.0]).unsqueeze(-1)
    q, k = draw(2, 2, 5, 8), draw(2, 1, 5, 8)
    turns = at.double() * waves(8, base)
    single = rope(at, at, 1001).rotation(q.float(), k.float())
    double = rope.double()(at, at, 1001).rotation(q, k)
    for got, exact, x in zip(single, double, (q, k), strict=True):
        expected = turned(x, turns, interleaved=pairing == "interleaved")
        torch.testing.assert_close(exact, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-4)


def test_positions_of_their_own_per_example(shape):
    rope, q = RoPE(shape()), draw(2, 2, 3, 8).float()
    at = torch.tensor([[[0.0], [1.0], [2.0]], [[0.0], [0.0], [1.0]]])
    both = rope(at, at, 3).rotation.apply(q)
    for row in range(2):
        alone = rope(at[row], at[row], 3).rotation.apply(q[row : row + 1])
        torch.testing.assert_close(both[row : row + 1], alone, rtol=0, atol=1e-6)


def test_interleaved_is_half_with_its_channels_permuted(shape):
    at, x = torch.arange(6.0).view(-1, 1), draw(1, 2, 6, 8).float()
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # channels of "interleaved" in the order of "half"
    half = RoPE(shape())(at, at, 6).rotation.apply(x[..., order])
    interleaved = RoPE(shape(), pairing="interleaved")(at, at, 6).rotation.apply(x)
    torch.testing.assert_close(interleaved[..., order], half, rtol=0, atol=0)
    assert not torch.allclose(interleaved, RoPE(shape())(at, at, 6).rotation.apply(x), atol=1e-2)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize(("fraction", "rotated"), [(0.25, 4), (0.5, 8), (0.4, 6), (0.99, None)])
def test_partial_turns_the_leading_channels_over_a_spectrum_of_their_own(shape, pairing, fraction, rotated):
    if rotated is None:
        with pytest.raises(ZooError, match="cannot rotate 15 channels"):
            RoPE(shape(head_dim=16), fraction=fraction, pairing=pairing)
        return
    rope = RoPE(shape(head_dim=16), fraction=fraction, pairing=pairing).double()
    at, x = torch.arange(7.0).view(-1, 1), draw(1, 2, 7, 16)
    got = rope(at, at, 7).rotation.apply(x)
    head = turned(x[..., :rotated], at.double() * waves(rotated, 10000.0), interleaved=pairing == "interleaved")
    torch.testing.assert_close(got, torch.cat((head, x[..., rotated:]), -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("grid", [(3, 5), (4, 1)])
def test_a_grid_turns_half_of_the_pairs_with_rows_and_half_with_columns(shape, pairing, grid):
    at = torch.tensor([[y, x] for y in range(grid[0]) for x in range(grid[1])], dtype=torch.float32)
    rope = RoPE(shape(length=grid, head_dim=16, causal=False), base=100.0, pairing=pairing).double()
    each = [100.0 ** (-4 * t / 16) for t in range(4)]
    turns = torch.tensor([[y * w for w in each] + [x * w for w in each] for y, x in at.tolist()], dtype=torch.float64)
    x = draw(2, 2, len(at), 16)
    encoding = rope(at, at, len(at))
    torch.testing.assert_close(
        encoding.rotation.apply(x), turned(x, turns, interleaved=pairing == "interleaved"), rtol=0, atol=1e-12
    )
    assert encoding.rotation.frequencies.shape == (2, 4)


def test_a_prefix_is_left_as_it_is(shape):
    at, x = torch.arange(4.0).view(-1, 1), draw(1, 2, 7, 8).float()
    got = RoPE(shape(prefix=3))(at, at, 4).rotation.apply(x)
    torch.testing.assert_close(got[:, :, :3], x[:, :, :3], rtol=0, atol=0)
    torch.testing.assert_close(got[:, :, 3:], RoPE(shape())(at, at, 4).rotation.apply(x[:, :, 3:]), rtol=0, atol=0)


def test_logits_depend_on_distance_only(shape):
    rope, at = RoPE(shape()).double(), torch.arange(6.0).view(-1, 1)
    q, k = draw(1, 2, 6, 8), draw(1, 2, 6, 8).flip(2)
    logits = []
    for shift in (0.0, 300.0):
        turned_q, turned_k = rope(at + shift, at + shift, 400).rotation(q, k)
        logits.append(turned_q @ turned_k.transpose(-1, -2))
    assert rope.relative
    torch.testing.assert_close(*logits, rtol=0, atol=1e-10)
    assert not torch.allclose(logits[0], q @ k.transpose(-1, -2), atol=1e-1)


def test_one_token_at_a_time_equals_all_at_once(shape):
    rope, at, q = RoPE(shape()), torch.arange(20.0).view(-1, 1), draw(1, 2, 20, 8).float()
    whole = rope(at, at, 20).rotation.apply(q)
    steps = [rope(at[t : t + 1], at[: t + 1], 20).rotation.apply(q[:, :, t : t + 1]) for t in range(20)]
    torch.testing.assert_close(torch.cat(steps, 2), whole, rtol=0, atol=1e-6)


def test_frequencies_keep_the_references_order_of_operations(shape):
    for base, width in ((10000.0, 64), (5e5, 128)):
        rope = RoPE(shape(head_dim=width), base=base)
        expected = 1.0 / (base ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width))
        assert torch.equal(rope.frequencies, expected[None])
        assert rope.frequencies.dtype == torch.float32


def test_angles_are_float32_products_up_to_the_limit_and_float64_beyond(shape):
    rope = RoPE(shape(head_dim=64))
    for extent in (EXACT, EXACT + 1):
        at = torch.arange(EXACT - 200, EXACT).float().unsqueeze(-1)
        rotation = rope(at, at, extent).rotation
        rounded = (at * rope.frequencies).double()
        exact = at.double() * rope.frequencies.double()
        assert rotation.cos.dtype == torch.float32
        mine, other = (rounded, exact) if extent == EXACT else (exact, rounded)
        torch.testing.assert_close(rotation.cos[0, 0].double(), mine.cos(), rtol=0, atol=1e-6)
        assert (rotation.cos[0, 0].double() - other.cos()).abs().max() > 1e-3
        torch.testing.assert_close(rotation.sin[0, 0].double(), mine.sin(), rtol=0, atol=1e-6)


def test_far_positions_are_exact(shape):
    """At a million, where a float32 angle is wrong by 0.03 rad, neighbours are still one wave apart."""
    rope, far = RoPE(shape(head_dim=64)), 1_000_000.0
    at = torch.tensor([[far], [far + 1]])
    cos, sin = (
        rope(at, at, 1_000_002).rotation.cos.double()[0, 0],
        rope(at, at, 1_000_002).rotation.sin.double()[0, 0],
    )
    torch.testing.assert_close(cos[1] * cos[0] + sin[1] * sin[0], rope.frequencies[0].double().cos(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({"head_dim": 7}, {}, r"cannot rotate 7 channels .* multiple of 2"),
        ({"head_dim": 6, "length": (4, 4)}, {}, r"cannot rotate 6 channels .* each of 2 axes, so a multiple of 4"),
        ({}, {"fraction": 0.1}, "cannot rotate 0 channels"),
        ({}, {"fraction": 0.0}, r"a fraction 0\.0 of a head. Give more than 0 and at most 1"),
        ({}, {"fraction": 1.5}, r"a fraction 1\.5 of a head"),
        ({}, {"base": 0.0}, r"cannot have the base 0\.0.*--model.position.base 10000"),
    ],
)
def test_refusals(shape, changes, arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        RoPE(shape(**changes), **arguments)
