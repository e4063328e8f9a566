"""ALiBi: golden slopes, an independent recursion, and the distance."""

import math

import pytest
import torch
from torch import nn
from zoo_positions.alibi import ALiBi

from zoo.position import Pointwise, Slopes
from zoo.vit import grid

EIGHT = [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]
GOLDEN = {
    8: EIGHT,
    12: [*EIGHT, 0.70710678, 0.35355339, 0.1767767, 0.08838835],
    6: [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125],
}


def recursion(heads: int) -> list[float]:
    """A geometric series whose ratio is its first term, and a detour through twice as many heads otherwise."""
    if math.log2(heads).is_integer():
        first = 2 ** -(2 ** -(math.log2(heads) - 3))
        return [first * first**head for head in range(heads)]
    below = 2 ** math.floor(math.log2(heads))
    return recursion(below) + recursion(2 * below)[0::2][: heads - below]


def steepness(alibi: ALiBi) -> torch.Tensor:
    at = torch.arange(2.0).view(-1, 1)
    return alibi(at, at, 2).bias.tensors[0]


@pytest.mark.parametrize("heads", GOLDEN)
@pytest.mark.parametrize("trainable", [False, True])
def test_golden_slopes(shape, heads, trainable):
    got = steepness(ALiBi(shape(heads=heads), trainable=trainable))
    torch.testing.assert_close(got, torch.tensor(GOLDEN[heads]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 7, 16, 20, 25, 40, 71])
def test_slopes_of_any_number_of_heads(shape, heads):
    got = steepness(ALiBi(shape(heads=heads)))
    torch.testing.assert_close(got, torch.tensor(recursion(heads)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("causal", [True, False])
def test_the_bias_is_minus_slope_times_distance(shape, causal):
    rows, columns = [3.0, 9.0], [0.0, 3.0, 4.0, 9.0, 11.0]
    bias = ALiBi(shape(heads=4, causal=causal))(
        torch.tensor(rows).unsqueeze(-1), torch.tensor(columns).unsqueeze(-1), 12
    ).bias
    assert type(bias) is Slopes
    got = bias.block(slice(0, 2), slice(0, 5))
    expected = [[[-slope * abs(i - j) for j in columns] for i in rows] for slope in recursion(4)]
    torch.testing.assert_close(got, torch.tensor([expected]), rtol=1e-6, atol=0)


def test_positions_of_their_own_per_example_and_a_prefix(shape):
    at = torch.tensor([[[0.0], [1.0], [2.0]], [[0.0], [0.0], [1.0]]])
    bias = ALiBi(shape(heads=2, prefix=1, causal=False))(at, at, 3).bias
    got = bias.block(slice(0, 4), slice(0, 4))
    assert got.shape == (2, 2, 4, 4)
    assert got[:, :, 0].eq(0).all()
    assert got[:, :, :, 0].eq(0).all()
    assert got[0, 0, 3, 1:].tolist() == pytest.approx([-2 * 2**-4, -(2**-4), 0.0])
    assert got[1, 0, 3, 1:].tolist() == pytest.approx([-(2**-4), -(2**-4), 0.0])


def test_shift_changes_nothing(shape):
    alibi, at = ALiBi(shape()), torch.arange(9.0).view(-1, 1)
    assert alibi.relative
    whole = slice(0, 9)
    moved = alibi(at + 500, at + 500, 600).bias.block(whole, whole)
    torch.testing.assert_close(moved, alibi(at, at, 9).bias.block(whole, whole), rtol=0, atol=0)


def test_fixed_slopes_are_a_constant_and_trained_ones_a_parameter_that_no_rung_holds(shape):
    assert not ALiBi(shape()).state_dict()
    alibi, at = ALiBi(shape(heads=4), trainable=True), torch.arange(3.0).view(-1, 1)
    assert list(alibi.state_dict()) == ["log_slopes"]
    bias = alibi(at, at, 3).bias
    assert not any(isinstance(tensor, nn.Parameter) for tensor in bias.tensors)
    bias.block(slice(0, 3), slice(0, 3)).sum().backward()
    distances = 8.0  # of a row of three: 0 1 2, 1 0 1, 2 1 0
    torch.testing.assert_close(alibi.log_slopes.grad, -distances * torch.tensor(recursion(4)))


def euclid(one: list[float], other: list[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)))


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("length", [(3, 5), (5, 3), (1, 4)])
def test_on_a_grid_the_distance_is_the_straight_line(shape, length, trainable):
    alibi = ALiBi(shape(heads=6, length=length, prefix=2, causal=False), trainable=trainable).double()
    keys = grid(*length).double()
    queries = keys.flip(0)[:3] + 1.0
    bias = alibi(queries, keys, len(keys)).bias
    assert type(bias) is Pointwise
    assert len({tensor.untyped_storage().data_ptr() for tensor in bias.tensors}) == 5  # none a view, for FlexAttention
    got = bias.block(slice(0, 5), slice(0, 2 + len(keys)))
    assert got[:, :, :2].eq(0).all()
    assert got[:, :, :, :2].eq(0).all()
    expected = [[[-slope * euclid(i, j) for j in keys.tolist()] for i in queries.tolist()] for slope in recursion(6)]
    torch.testing.assert_close(got[0, :, 2:, 2:], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_examples_with_grids_of_their_own(shape):
    alibi, at = ALiBi(shape(length=(2, 3), causal=False)), torch.stack((grid(2, 3), grid(3, 2).flip(0)))
    got = alibi(at, at, 6).bias.block(slice(0, 6), slice(0, 6))
    for row in range(2):
        alone = alibi(at[row], at[row], 6).bias.block(slice(0, 6), slice(0, 6))
        assert torch.equal(got[row], alone[0])
    assert not torch.equal(got[0], got[1])


def test_a_row_of_patches_is_a_text_read_both_ways(shape):
    patches, words = grid(1, 7), torch.arange(7.0).view(-1, 1)
    wide = ALiBi(shape(length=(1, 7), causal=False))(patches, patches, 7).bias.block(slice(0, 7), slice(0, 7))
    long = ALiBi(shape(length=(7,), causal=False))(words, words, 7).bias.block(slice(0, 7), slice(0, 7))
    torch.testing.assert_close(wide, long, rtol=0, atol=0)


def test_trained_slopes_of_a_grid_get_the_gradients_of_the_sum(shape):
    alibi, at = ALiBi(shape(heads=2, length=(2, 3), causal=False), trainable=True).double(), grid(2, 3).double()

    def values(log_slopes: torch.Tensor) -> torch.Tensor:
        bias = torch.func.functional_call(alibi, {"log_slopes": log_slopes}, (at, at, 6)).bias
        return bias.block(slice(0, 6), slice(0, 6))

    assert torch.autograd.gradcheck(values, (alibi.log_slopes,))
    values(alibi.log_slopes).sum().backward()
    total = sum(euclid(i, j) for i in at.tolist() for j in at.tolist())
    expected = -total * torch.tensor(recursion(2), dtype=torch.float64)
    torch.testing.assert_close(alibi.log_slopes.grad, expected)
