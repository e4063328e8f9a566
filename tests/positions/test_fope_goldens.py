"""FoPE's golden values, measured with the authors' module (A to E, R) and with vLLM's (P), printed to six decimals."""

import pytest
import torch
from zoo_positions.rope import FoPE

from zoo.position import Rotation

PRINTED = 1.5e-6  # 1e-6, and half a unit of the last printed decimal


def coefficients(fope: FoPE, anchor_step: int = 1) -> None:
    """The deterministic matrices of the goldens."""
    for coef, sign in ((fope.sin_coef, 1), (fope.cos_coef, -1)):
        for n in range(coef.shape[0]):
            for i in range(coef.shape[1]):
                for j in range(coef.shape[2]):
                    noise = sign * (0.10 * (i + 1) - 0.05 * (j + 1) + 0.01 * n)
                    coef.data[n, i, j] = float(i == j * anchor_step) + noise


def ramp(heads: int) -> torch.Tensor:
    """[1, heads, 1, 8] with 0.1 (c + 1) + 0.01 n."""
    return torch.tensor([[[[0.1 * (c + 1) + 0.01 * n for c in range(8)]] for n in range(heads)]])


def column(*positions: float) -> torch.Tensor:
    return torch.tensor(positions, dtype=torch.float32).unsqueeze(-1)


GOLDEN = [  # case, floor, further arguments, columns per anchor step, head, position, output
    ("A", 64, {}, 1, 0, 0, [0.08, 0.18, -0.4, -0.4, 0.4, 0.54, 1.0, 1.2]),
    ("A", 64, {}, 1, 0, 1, [-0.412856, 0.113211, -0.4, -0.4, 0.27187, 0.559266, 1.0, 1.2]),
    ("A", 64, {}, 1, 0, 5, [0.481263, -0.158456, -0.4, -0.4, -0.024575, 0.579368, 1.0, 1.2]),
    ("A", 64, {}, 1, 0, 63, [-0.010461, 0.168877, -0.4, -0.4, 0.411136, 0.543623, 1.0, 1.2]),
    ("A", 64, {}, 1, 0, 100, [0.40115, 0.208021, -0.4, -0.4, 0.411203, -0.572783, 1.0, 1.2]),
    ("A", 64, {}, 1, 1, 100, [0.422065, 0.212812, -0.4, -0.4, 0.413247, -0.588667, 1.02, 1.22]),
    ("B", 1024, {}, 2, 0, 1, [-0.439105, 0.126902, -0.4, -0.4, 0.147126, 0.424672, 1.0, 1.2]),
    ("B", 1024, {}, 2, 0, 100, [0.282459, -0.469988, -0.4, -0.4, 0.364702, 0.500762, 1.0, 1.2]),
    ("B", 1024, {}, 2, 1, 100, [0.295033, -0.474289, -0.4, -0.4, 0.365669, 0.511601, 1.02, 1.22]),
    ("C", 64, {"normalize": True}, 1, 0, 1, [-0.328879, 0.139101, -0.4, -0.4, 0.302399, 0.616969, 1.0, 1.2]),
    ("C", 64, {"normalize": True}, 1, 0, 100, [0.373669, 0.158598, -0.4, -0.4, 0.539557, -0.612247, 1.0, 1.2]),
    (
        *("E", 64, {"ignore_zero": False}, 1, 0, 1),
        [-0.472856, 0.013211, 0.199137, 0.36893, -0.02813, 0.259266, 0.392961, 0.569565],
    ),
]


@pytest.mark.parametrize(("case", "floor", "arguments", "step", "head", "position", "expected"), GOLDEN)
def test_goldens_of_the_paper_dialect(shape, case, floor, arguments, step, head, position, expected):
    fope = FoPE(shape(length=(floor,)), dialect="paper", **arguments)
    coefficients(fope, step)
    at = column(position)
    got = fope(at, at, 128).rotation.apply(ramp(2))[0, head, 0]
    torch.testing.assert_close(got, torch.tensor(expected), rtol=0, atol=PRINTED)


def test_golden_d_the_pseudo_codes_sign(shape):
    fope = FoPE(shape(), dialect="paper")
    coefficients(fope)
    at = column(100)
    plus = fope(at, at, 128).rotation
    got = Rotation(plus.cos, -plus.sin, plus.frequencies).apply(ramp(2))[0, 0, 0]
    expected = [-0.212137, -0.510087, 1.0, 1.2, 0.533861, -0.333414, 0.4, 0.4]
    torch.testing.assert_close(got, torch.tensor(expected), rtol=0, atol=PRINTED)


def test_golden_p_of_the_production_dialect_with_grouped_heads(shape):
    fope = FoPE(shape(heads=4, kv_heads=2, length=(1024,)))
    assert fope.sin_coef.shape == (2, 3, 3)
    coefficients(fope)
    at = column(100)
    q, k = fope(at, at, 128).rotation(ramp(4), ramp(2))
    expected = [
        [0.282459, 0.085432, -0.512768, -0.4, 0.364702, -0.603961, 0.670771, 1.2],
        [0.294588, 0.081101, -0.516983, -0.4, 0.368773, -0.616894, 0.685873, 1.22],
        [0.307127, 0.076826, -0.521497, -0.4, 0.369662, -0.633781, 0.696248, 1.24],
        [0.31922, 0.07246, -0.525747, -0.4, 0.373656, -0.646792, 0.711272, 1.26],
    ]
    torch.testing.assert_close(q[0, :, 0], torch.tensor(expected), rtol=0, atol=PRINTED)
    keys = [expected[0], [0.295033, 0.081192, -0.517247, -0.4, 0.365669, -0.620771, 0.681224, 1.22]]
    torch.testing.assert_close(k[0, :, 0], torch.tensor(keys), rtol=0, atol=PRINTED)


def test_golden_r_the_authors_seeds_give_our_matrices(shape):
    sixty = shape(heads=8, head_dim=64, length=(512,))
    torch.manual_seed(1234)
    fope = FoPE(sixty, dialect="paper", gain=0.3)
    assert fope.sin_coef.sum().item() == pytest.approx(127.071229, abs=5e-4)
    assert fope.cos_coef.sum().item() == pytest.approx(128.662203, abs=5e-4)
    assert fope.sin_coef[0, 0, :3].tolist() == pytest.approx([0.991352, -0.051488, -0.004629], abs=PRINTED)
    assert fope.cos_coef[7, 15, -3:].tolist() == pytest.approx([0.022228, 0.011154, 1.006293], abs=PRINTED)
