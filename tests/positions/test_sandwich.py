"""Sandwich: golden values, a scalar oracle, the product of sinusoidal embeddings, refusals."""

import math

import pytest
import torch
from zoo_positions.sandwich import Sandwich, overlap
from zoo_positions.sinusoidal import Sinusoidal

from zoo.errors import ZooError
from zoo.position import Toeplitz

GOLDEN = {0: 64.0, 1: 62.093684, 2: 57.381861, 10: 42.820023, 100: 30.543455, 1000: 10.177728}


def line(tokens: int) -> torch.Tensor:
    return torch.arange(float(tokens)).unsqueeze(-1)


def value(head: int, heads: int, away: int, width: int) -> float:
    waves = [10000 ** (-2 * t / width) for t in range(width // 2)]
    return heads / (8 * (head + 1)) * math.fsum(math.cos(away * wave) for wave in waves)


def test_golden_values(shape):
    at = line(1001)
    found = Sandwich(shape(heads=8))(at, at, 1001).bias.tensors[0]
    for distance, number in GOLDEN.items():  # heads / (8 h) is 1 for the first of 8 heads, 1/8 for the last
        assert found[0, distance].item() == pytest.approx(number, rel=1e-6)
        assert found[7, distance].item() == pytest.approx(number / 8, rel=1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("width", [128, 2, 10])
def test_the_bias_is_a_sum_of_cosines(shape, causal, width):
    sandwich = Sandwich(shape(heads=3, causal=causal), width=width)
    rows, columns = [3, 30, 9], [0, 3, 4, 9, 30]
    queries, keys = (torch.tensor(at).float().unsqueeze(-1) for at in (rows, columns))
    bias = sandwich(queries, keys, 31).bias
    assert type(bias) is Toeplitz
    assert bias.tensors[0].shape == (3, 31 if causal else 61)
    got = bias.block(slice(0, 3), slice(0, 5))
    for head in range(3):
        for row, i in enumerate(rows):
            for column, j in enumerate(columns):
                away = max(i - j, 0) if causal else abs(i - j)
                assert got[0, head, row, column].item() == pytest.approx(value(head, 3, away, width), rel=1e-6)


def test_it_is_the_product_of_sinusoidal_embeddings(shape):
    at = line(40)
    waves = Sinusoidal(shape(dim=128))(at, at, 40).embedding
    got = Sandwich(shape(heads=8, causal=False))(at, at, 40).bias.block(slice(0, 40), slice(0, 40))
    torch.testing.assert_close(got[0, 0], waves @ waves.T, rtol=0, atol=1e-4)


def test_positions_of_their_own_per_example_and_a_prefix(shape):
    at = torch.tensor([[[0.0], [1.0], [2.0]], [[0.0], [0.0], [1.0]]])
    got = Sandwich(shape(prefix=1, causal=False))(at, at, 3).bias.block(slice(0, 4), slice(0, 4))
    assert got.shape == (2, 2, 4, 4)
    assert got[:, :, 0].eq(0).all()
    assert got[:, :, :, 0].eq(0).all()
    assert got[0, 0, 3, 1:].tolist() == pytest.approx([value(0, 2, away, 128) for away in (2, 1, 0)])
    assert got[1, 0, 3, 1:].tolist() == pytest.approx([value(0, 2, away, 128) for away in (1, 1, 0)])


def test_far_distances_are_summed_in_float64(shape):
    far = 100_000
    found = Sandwich(shape(heads=1))(line(far + 1), line(1), far + 1).bias.tensors[0]
    assert found[0, far].item() == pytest.approx(value(0, 1, far, 128), abs=1e-6)
    exact = Sandwich(shape(heads=1)).double()(line(far + 1), line(1), far + 1).bias.tensors[0]
    assert exact.dtype == torch.float64
    assert exact[0, far].item() == pytest.approx(value(0, 1, far, 128), abs=1e-10)


def test_what_inference_kept_may_be_trained_with(shape):
    overlap.cache_clear()
    sandwich, at = Sandwich(shape()), line(5)
    with torch.inference_mode():
        sandwich(at, at, 5)
    gain = torch.ones(2, 1, requires_grad=True)
    (gain * sandwich(at, at, 5).bias.tensors[0]).sum().backward()  # saved for backward: no tensor of inference
    assert gain.grad.abs().min() > 0


def test_nothing_is_learned_or_stored(shape):
    sandwich = Sandwich(shape())
    assert not sandwich.state_dict()
    assert not list(sandwich.parameters())


@pytest.mark.parametrize("width", [0, 7, -2])
def test_a_width_without_whole_waves_is_refused(shape, width):
    with pytest.raises(ZooError, match=rf"width {width}: each wave takes two channels.*position.width 128"):
        Sandwich(shape(), width=width)


def test_a_grid_is_refused(shape):
    with pytest.raises(ZooError, match=r"one axis, and this model has 2.*position RoPE"):
        Sandwich(shape(length=(4, 4)))
