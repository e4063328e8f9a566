"""DynamicBias: a scalar oracle, what is derived and pinned, gradients, far distances, refusals."""

import math

import pytest
import torch
from torch import nn
from zoo_positions.dynamic import DynamicBias

from zoo.errors import ZooError
from zoo.position import Toeplitz

DISTANCES = pytest.mark.parametrize("distance", ["log", "linear"])


def line(tokens: int) -> torch.Tensor:
    return torch.arange(float(tokens)).unsqueeze(-1)


def network(dynamic: DynamicBias, away: int, distance: str) -> list[float]:
    """The network by loops over units."""
    x = [math.copysign(math.log(1 + abs(away)), away) if distance == "log" else float(away)]
    *hidden, last = dynamic.layers
    for layer in hidden:
        sums = zip(product(layer, x), layer.bias.tolist(), strict=True)
        x = [(value + b) / (1 + math.exp(-value - b)) for value, b in sums]
    return product(last, x)


def product(layer: nn.Linear, x: list[float]) -> list[float]:
    return [math.fsum(w * value for w, value in zip(row, x, strict=True)) for row in layer.weight.tolist()]


@DISTANCES
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_the_bias_is_the_network_of_the_signed_distance(shape, distance, depth, causal):
    torch.manual_seed(0)
    dynamic = DynamicBias(shape(heads=3, causal=causal), distance=distance, depth=depth, width=5)
    rows, columns = [3, 30, 9], [0, 3, 4, 9, 30]
    queries, keys = (torch.tensor(at).float().unsqueeze(-1) for at in (rows, columns))
    bias = dynamic(queries, keys, 31).bias
    assert type(bias) is Toeplitz
    assert bias.tensors[0].shape == (3, 31 if causal else 61)
    assert bias.tensors[0].dtype == torch.float32
    got = bias.block(slice(0, 3), slice(0, 5))
    for row, i in enumerate(rows):
        for column, j in enumerate(columns):
            away = max(i - j, 0) if causal else i - j
            expected = network(dynamic, away, distance)
            assert got[0, :, row, column].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_positions_of_their_own_per_example_and_a_prefix(shape):
    dynamic = DynamicBias(shape(prefix=1, causal=False))
    at = torch.tensor([[[0.0], [1.0], [2.0]], [[0.0], [0.0], [1.0]]])
    got = dynamic(at, at, 3).bias.block(slice(0, 4), slice(0, 4))
    assert got.shape == (2, 2, 4, 4)
    assert got[:, :, 0].eq(0).all()
    assert got[:, :, :, 0].eq(0).all()
    for row, column, away in ((3, 1, 1), (3, 2, 1), (1, 3, -1), (2, 1, 0)):
        assert got[1, :, row, column].tolist() == pytest.approx(network(dynamic, away, "log"), rel=1e-5, abs=1e-6)


def test_the_width_is_a_quarter_of_the_models_and_pinned(shape):
    dynamic = DynamicBias(shape(dim=48))
    assert dynamic.pinned() == {"width": 12}
    assert [tuple(layer.weight.shape) for layer in dynamic.layers] == [(12, 1), (12, 12), (2, 12)]
    assert DynamicBias(shape(dim=48), width=7).pinned() == {"width": 7}
    assert DynamicBias(shape(dim=2)).width == 1


def test_layers_start_as_torchs_and_only_the_last_has_no_bias(shape):
    torch.manual_seed(0)
    dynamic = DynamicBias(shape(dim=48, heads=6))
    torch.manual_seed(0)
    expected = [nn.Linear(1, 12), nn.Linear(12, 12), nn.Linear(12, 6, bias=False)]
    for mine, theirs in zip(dynamic.layers, expected, strict=True):
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(one, two) for one, two in zip(mine.parameters(), theirs.parameters(), strict=True))


@DISTANCES
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_of_the_table(shape, distance, causal):
    torch.manual_seed(0)
    dynamic = DynamicBias(shape(heads=3, causal=causal), distance=distance, width=4).double()
    names, at = [name for name, _ in dynamic.named_parameters()], line(9).double()

    def of(*parameters: torch.Tensor) -> torch.Tensor:
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(dynamic, given, (at, at, 9)).bias.tensors[0]

    assert torch.autograd.gradcheck(of, tuple(dynamic.parameters()))


@pytest.mark.parametrize("coarse", ["high", "medium"])
def test_fast_products_do_not_blur_far_distances(shape, coarse):
    torch.manual_seed(0)
    dynamic, at = DynamicBias(shape(), distance="linear"), line(4100)
    exact = dynamic(at, at, 4100).bias.tensors[0]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(coarse)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = dynamic(at, at, 4100).bias.tensors[0]
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, exact)
    assert (exact[:, 4097] - exact[:, 4096]).abs().min() > 0


@pytest.mark.parametrize("settings", [{"depth": 0}, {"width": 0}, {"width": -3}])
def test_a_network_without_hidden_units_is_refused(shape, settings):
    with pytest.raises(ZooError, match=r"hidden layers of -?\d+ units. Give at least 1 of each"):
        DynamicBias(shape(), **settings)


def test_a_grid_is_refused(shape):
    with pytest.raises(ZooError, match=r"one axis, and this model has 2.*position RoPE"):
        DynamicBias(shape(length=(4, 4)))
