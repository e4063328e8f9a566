"""T5: golden bounds of the buckets, a scalar oracle, the references' scales and first tables, gradients, refusals."""

import math

import pytest
import torch
from torch import nn
from zoo_positions.t5 import T5, starts

from zoo.errors import ZooError
from zoo.position import Toeplitz

FINE = list(range(16))
GOLDEN = {
    (32, 128): [*FINE, 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113],
    (32, 1024): [*FINE, 16, 21, 27, 35, 46, 59, 77, 99, 128, 166, 216, 280, 363, 470, 609, 790],
}
SETTINGS = [(32, 128), (32, 1024), (16, 128), (16, 64), (64, 256), (33, 100), (7, 31), (2, 2), (3, 50), (32, 17)]


def bucket(distance: int, buckets: int, last: int) -> int:
    """By a logarithm in float64; what is a whole number but for rounding is taken for one."""
    fine = buckets // 2
    if distance < fine:
        return distance
    coarse = math.log(distance / fine) / math.log(last / fine) * (buckets - fine)
    return min(buckets - 1, fine + math.floor(coarse + 1e-9))


def line(tokens: int) -> torch.Tensor:
    return torch.arange(float(tokens)).unsqueeze(-1)


def table(t5: T5, extent: int) -> torch.Tensor:
    """The biases by distance, [heads, distances]."""
    at = line(extent)
    return t5(at, at, extent).bias.tensors[0]


@pytest.mark.parametrize(("buckets", "distance"), GOLDEN)
def test_golden_starts_of_the_buckets(shape, buckets, distance):
    assert starts(buckets, distance) == GOLDEN[buckets, distance]
    t5 = T5(shape(), buckets=buckets, distance=distance)
    found = t5.bucket(torch.arange(2000)).tolist()
    assert [found.index(number) for number in range(buckets)] == GOLDEN[buckets, distance]
    assert found == sorted(found)


@pytest.mark.parametrize(("buckets", "distance"), SETTINGS)
def test_buckets_of_a_causal_model(shape, buckets, distance):
    t5 = T5(shape(), buckets=buckets, distance=distance)
    expected = [bucket(away, buckets, distance) for away in range(1100)]
    assert t5.bucket(torch.arange(1100)).tolist() == expected
    assert expected[-1] == buckets - 1


@pytest.mark.parametrize(("buckets", "distance"), [s for s in SETTINGS if s[0] % 2 == 0 and s[0] > 2])
def test_the_other_half_of_the_buckets_is_for_later_keys(shape, buckets, distance):
    half = buckets // 2
    t5 = T5(shape(causal=False), buckets=buckets, distance=distance)
    expected = [half * (away < 0) + bucket(abs(away), half, distance) for away in range(-1100, 1101)]
    assert t5.bucket(torch.arange(-1100, 1101)).tolist() == expected
    assert half not in expected  # a later key at distance 0


def test_a_bound_that_is_a_whole_number_starts_its_bucket():
    """16 * 64^(8/16) = 128 and 8 * 16^(6/8) = 64, which a rounded logarithm may put on either side."""
    assert starts(32, 1024)[24] == 128
    assert starts(16, 128)[8:] == [8, 12, 16, 23, 32, 46, 64, 91]
    assert starts(32, 10**9)[-1] == math.ceil(16 * (10**9 / 16) ** (15 / 16))


@pytest.mark.parametrize("causal", [True, False])
def test_the_bias_is_the_row_of_the_bucket(shape, causal):
    t5 = T5(shape(heads=3, causal=causal), buckets=8, distance=20)
    rows, columns = [3, 30, 9], [0, 3, 4, 9, 30]
    queries, keys = (torch.tensor(at).float().unsqueeze(-1) for at in (rows, columns))
    bias = t5(queries, keys, 31).bias
    assert type(bias) is Toeplitz
    assert bias.tensors[0].shape == (3, 31 if causal else 61)
    got = bias.block(slice(0, 3), slice(0, 5))
    for row, i in enumerate(rows):
        for column, j in enumerate(columns):
            if causal and j > i:
                continue  # hidden
            where = bucket(i - j, 8, 20) if causal else 4 * (j > i) + bucket(abs(i - j), 4, 20)
            assert torch.equal(got[0, :, row, column], t5.weight[where])


def test_positions_of_their_own_per_example_and_a_prefix(shape):
    t5 = T5(shape(prefix=1, causal=False))
    at = torch.tensor([[[0.0], [1.0], [2.0]], [[0.0], [0.0], [1.0]]])
    got = t5(at, at, 3).bias.block(slice(0, 4), slice(0, 4))
    assert got.shape == (2, 2, 4, 4)
    assert got[:, :, 0].eq(0).all()
    assert got[:, :, :, 0].eq(0).all()
    assert torch.equal(got[0, :, 3, 1], t5.weight[2])
    assert torch.equal(got[1, :, 3, 1], t5.weight[1])
    assert torch.equal(got[1, :, 1, 3], t5.weight[17])


def test_the_references_can_be_written_down(shape):
    geometry = shape(dim=48, heads=4, head_dim=12)
    root, at = math.sqrt(12), line(40)
    for settings, multiplier, scale, std in (
        ({}, 1, 1, 0.02),
        ({"logits": "unscaled", "std": "dim"}, 1, root, 1 / math.sqrt(48)),
        ({"multiplier": "root", "std": "xavier"}, root, 1, math.sqrt(2 / 36)),
        ({"multiplier": "root", "std": 1.0}, root, 1, 1),
        ({"multiplier": 2.5}, 2.5, 1, 0.02),
    ):
        t5 = T5(geometry, **settings)
        encoding = t5(at, at, 40)
        assert encoding.scale == pytest.approx(scale)
        assert t5.std == pytest.approx(std)
        torch.testing.assert_close(encoding.bias.tensors[0][:, 20], t5.weight[17] * multiplier)


@pytest.mark.parametrize("std", ["dim", "xavier", 0.3, 0.0])
def test_the_first_table_is_normal_with_the_given_deviation(shape, std):
    torch.manual_seed(0)
    t5 = T5(shape(dim=640, heads=64), buckets=512, distance=4096, std=std)
    expected = {"dim": 640**-0.5, "xavier": (2 / 576) ** 0.5}.get(std, std)
    assert t5.weight.shape == (512, 64)
    assert t5.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert abs(t5.weight.mean().item()) <= expected / 20


def test_xavier_is_torchs(shape):
    torch.manual_seed(0)
    t5 = T5(shape(heads=12), std="xavier")
    torch.manual_seed(0)
    expected = nn.init.xavier_normal_(torch.empty(32, 12))
    torch.testing.assert_close(t5.weight.detach(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_of_the_table(shape, causal):
    t5 = T5(shape(heads=3, causal=causal), buckets=8, distance=20, multiplier="root").double()
    assert torch.autograd.gradcheck(lambda weight: of(t5, weight), (t5.weight,))
    table(t5, 200).sum().backward()
    lengths = torch.bincount(t5.bucket(torch.arange(0 if causal else -199, 200)), minlength=8)
    torch.testing.assert_close(t5.weight.grad, (lengths * math.sqrt(8)).double().unsqueeze(-1).expand(-1, 3))


def of(t5: T5, weight: torch.Tensor) -> torch.Tensor:
    """The table as a function of the parameter."""
    at = line(40).double()
    return torch.func.functional_call(t5, {"weight": weight}, (at, at, 40)).bias.tensors[0]


def test_the_buckets_are_a_constant_that_no_state_dict_holds(shape):
    t5 = T5(shape())
    assert list(t5.state_dict()) == ["weight"]
    assert t5.starts.dtype == torch.int64
    assert t5.double().half().starts.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        ({"length": (4, 4)}, {}, r"one axis, and this model has 2.*position RoPE"),
        ({}, {"buckets": 1}, r"into 1 buckets.*at least 2:"),
        ({"causal": False}, {"buckets": 2}, "into 2 buckets.*an even number, at least 4"),
        ({"causal": False}, {"buckets": 33}, "into 33 buckets.*an even number"),
        ({}, {"distance": 16}, r"at the distance 16: the fine ones alone reach 16.*distance 128"),
        ({"causal": False}, {"distance": 8}, r"at the distance 8: the fine ones alone reach 8.*distance 64"),
        ({}, {"std": -0.1}, "std -0.1"),
    ],
)
def test_refusals(shape, change, settings, sentence):
    with pytest.raises(ZooError, match=sentence):
        T5(shape(**change), **settings)
    T5(shape(), buckets=33, distance=17)
