"""RoPEMixed: angles by hand, the directions that it starts from, and what rotation promises."""

import math
from functools import partial

import pytest
import torch
from zoo_positions.rope import RoPE, RoPEMixed
from zoo_positions.scaling import DistanceScaling, DynamicDistanceScaling

from zoo.errors import ZooError
from zoo.vit import grid


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_each_pair_turns_by_its_own_mixture(shape, pairing, kv_heads):
    torch.manual_seed(0)
    geometry = shape(heads=4, kv_heads=kv_heads, length=(3, 5), prefix=2, causal=False)
    mixed, at, x = RoPEMixed(geometry, pairing=pairing).double(), grid(3, 5).double(), draw(1, 4, 17, 8)
    assert mixed.frequencies.shape == (2, kv_heads, 4)
    rotation = mixed(at, at, 15).rotation
    got = rotation.apply(x)
    assert torch.equal(got[:, :, :2], x[:, :, :2])
    for head in range(4):
        slow = mixed.frequencies[:, head * kv_heads // 4].tolist()
        for token, (row, column) in enumerate(at.tolist()):
            for t in range(4):
                first, second = (2 * t, 2 * t + 1) if pairing == "interleaved" else (t, t + 4)
                angle = row * slow[0][t] + column * slow[1][t]
                a, b = (x[0, head, 2 + token, channel].item() for channel in (first, second))
                turned = got[0, head, 2 + token, [first, second]].tolist()
                expected = [
                    a * math.cos(angle) - b * math.sin(angle),
                    b * math.cos(angle) + a * math.sin(angle),
                ]
                assert turned == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(got.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("base", [10.0, 100.0])
def test_it_starts_with_two_directions_at_right_angles_in_each_head(shape, base):
    torch.manual_seed(0)
    mixed = RoPEMixed(shape(heads=64, head_dim=16, length=(3, 5), causal=False), base=base)
    assert mixed.frequencies.dtype == torch.float32
    y, x = mixed.frequencies.detach().double()
    sizes = torch.tensor([math.pow(base, -4 * t / 16) for t in range(4)], dtype=torch.float64)
    torch.testing.assert_close((x.square() + y.square()).sqrt(), sizes.repeat(64, 2), rtol=1e-6, atol=0)
    first, second = torch.atan2(y, x)[:, :4], torch.atan2(y, x)[:, 4:]
    torch.testing.assert_close(first, first[:, :1].expand(-1, 4), rtol=0, atol=1e-6)  # one direction a head
    torch.testing.assert_close(x[:, 4:], -y[:, :4], rtol=1e-5, atol=1e-6)  # and a quarter turn on
    torch.testing.assert_close(y[:, 4:], x[:, :4], rtol=1e-5, atol=1e-6)
    angles = first[:, 0].sort().values
    assert (angles.diff() > 1e-4).all()
    for quarter in range(4):
        low = -math.pi + quarter * math.pi / 2
        assert ((angles > low) & (angles < low + math.pi / 2)).sum() >= 6
    assert second.shape == (64, 4)


def test_each_layer_draws_its_own(shape):
    torch.manual_seed(0)
    geometry = shape(length=(3, 5), causal=False)
    one, other = RoPEMixed(geometry), RoPEMixed(geometry)
    assert one.per_layer
    assert not torch.equal(one.frequencies, other.frequencies)
    torch.manual_seed(0)
    other.reset_parameters()
    assert torch.equal(one.frequencies, other.frequencies)


def test_axial_frequencies_give_the_axial_form(shape):
    """RoPE's table on a grid is the case in which every frequency lies along an axis."""
    geometry, at = shape(length=(3, 5), causal=False), grid(3, 5)
    axial, mixed = RoPE(geometry, base=100.0), RoPEMixed(geometry, pairing="half")
    with torch.no_grad():
        mixed.frequencies.zero_()
        mixed.frequencies[0, :, :2] = axial.frequencies[0]
        mixed.frequencies[1, :, 2:] = axial.frequencies[1]
    x = draw(1, 2, 15, 8).float()
    expected = axial(at, at, 15).rotation.apply(x)
    torch.testing.assert_close(mixed(at, at, 15).rotation.apply(x), expected, rtol=0, atol=1e-6)


def test_shift_changes_nothing(shape):
    mixed, at = RoPEMixed(shape(length=(3, 5), causal=False)).double(), grid(3, 5).double()
    assert mixed.relative
    q, k = draw(1, 2, 15, 8), draw(1, 2, 15, 8).flip(2)
    logits = []
    for move in (torch.zeros(2), torch.tensor([40.0, 7.0])):
        turned = mixed(at + move, at + move, 15).rotation(q, k)
        logits.append(turned[0] @ turned[1].mT)
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-10)
    assert not torch.allclose(logits[0], q @ k.mT, atol=0.1)


def test_examples_with_positions_of_their_own(shape):
    mixed, x = RoPEMixed(shape(heads=4, kv_heads=2, length=(2, 3), causal=False)), draw(2, 4, 6, 8).float()
    at = torch.stack((grid(2, 3), grid(3, 2) + 5))
    both = mixed(at, at, 6).rotation
    assert both.cos.shape == (2, 2, 6, 4)
    for row in range(2):
        alone = mixed(at[row], at[row], 6).rotation.apply(x[row : row + 1])
        torch.testing.assert_close(both.apply(x)[row : row + 1], alone, rtol=0, atol=1e-6)


def test_a_small_and_a_large_extent_agree(shape):
    mixed, at = RoPEMixed(shape(length=(3, 5), causal=False)), grid(20, 30)
    near, far = (mixed(at, at, extent).rotation for extent in (600, 200_000))
    assert near.cos.dtype == far.cos.dtype == torch.float32
    torch.testing.assert_close(near.cos, far.cos, rtol=0, atol=1e-5)
    exact = mixed.double()(at, at, 600).rotation
    torch.testing.assert_close(near.sin.double(), exact.sin, rtol=0, atol=1e-5)


def test_the_frequencies_get_the_gradients_of_the_angles(shape):
    mixed, at = RoPEMixed(shape(head_dim=4, length=(2, 3), causal=False)).double(), grid(2, 3)

    def tables(frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rotation = torch.func.functional_call(mixed, {"frequencies": frequencies}, (at, at, 6)).rotation
        return rotation.cos, rotation.sin

    assert torch.autograd.gradcheck(tables, (mixed.frequencies,))


def test_half_precision_and_autocast_leave_it_float32(shape):
    mixed, at = RoPEMixed(shape(length=(3, 5), causal=False)), grid(30, 50)
    plain = mixed(at, at, 1500).rotation
    assert plain.cos.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        cast = mixed(at, at, 1500).rotation
    half = mixed.bfloat16()(at, at, 1500).rotation
    other = RoPEMixed(shape(length=(3, 5), causal=False))
    other.load_state_dict(mixed.state_dict())
    for found in (cast, half, other(at, at, 1500).rotation):
        assert torch.equal(found.cos, plain.cos)
        assert torch.equal(found.sin, plain.sin)


def test_it_can_be_built_without_memory(shape):
    with torch.device("meta"):
        mixed = RoPEMixed(shape(length=(3, 5), causal=False))
    assert mixed.frequencies.is_meta
    mixed.to_empty(device="cpu").reset_parameters()
    assert mixed.frequencies.square().sum(0).amax().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({}, {}, r"mixes rows and columns, and this model has 1 axis\..*position RoPE"),
        ({"length": (2, 2, 2)}, {}, "this model has 3 axes"),
        ({"length": (2, 2), "head_dim": 6}, {}, r"multiple of 4; here it is 6.*head_dim"),
        ({"length": (2, 2)}, {"base": 1.0}, r"cannot have the base 1\.0"),
    ],
)
def test_refusals(shape, changes, arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        RoPEMixed(shape(**changes), **arguments)


def test_an_extension_divides_rows_and_columns(shape):
    geometry = shape(heads=4, length=(3, 5), causal=False)
    plain, far = (
        RoPEMixed(geometry).double(),
        RoPEMixed(geometry, extension=partial(DistanceScaling, factor=2.0)).double(),
    )
    far.load_state_dict(plain.state_dict())
    at = grid(3, 5).double()
    assert torch.equal(far(2 * at, 2 * at, 60).rotation.cos, plain(at, at, 15).rotation.cos)
    assert not torch.allclose(far(at, at, 15).rotation.cos, plain(at, at, 15).rotation.cos, atol=0.1)
    with pytest.raises(ZooError, match="2 axes"):
        RoPEMixed(geometry, extension=DynamicDistanceScaling)
