"""Distances: which distances a table is asked for, and that autocast stays out of it."""

import pytest
import torch
from torch import Tensor
from zoo_positions.distances import Distances

from zoo.errors import ZooError
from zoo.position import Toeplitz


class Itself(Distances):
    """The bias is head + distance; a product stands in for what autocast would round."""

    def table(self, distances: Tensor) -> Tensor:
        one = torch.ones(1, 1)
        away = (distances.float().unsqueeze(-1) @ one).T
        return torch.arange(float(self.geometry.heads)).unsqueeze(-1) + away


@pytest.mark.parametrize(("causal", "lowest", "count"), [(True, 0, 600), (False, -599, 1199)])
def test_a_table_covers_the_extent_and_no_more(shape, causal, lowest, count):
    at = torch.tensor([[0.0], [599.0], [3.0]])
    bias = Itself(shape(causal=causal))(at, at, 600).bias
    assert type(bias) is Toeplitz
    assert bias.lowest == lowest
    assert bias.tensors[0].shape == (2, count)
    rows = bias.block(slice(0, 3), slice(0, 3))[0, 1] - 1
    assert rows.tril().tolist() == [[0, 0, 0], [599, 0, 0], [3, -596 if not causal else 0, 0]]


def test_autocast_rounds_no_distance(shape):
    at = torch.tensor([[257.0], [0.0]])
    with torch.autocast("cpu", torch.bfloat16):
        bias = Itself(shape())(at, at, 258).bias
    assert bias.tensors[0].dtype == torch.float32
    assert bias.block(slice(0, 1), slice(1, 2)).flatten().tolist() == [257.0, 258.0]


def test_a_grid_is_refused_by_name(shape):
    with pytest.raises(ZooError, match=r"Itself measures distance along one axis, and this model has 2.*position RoPE"):
        Itself(shape(length=(4, 4)))
