"""FoPE on a grid: a FoPE of half the width along each axis, with that axis's own floor."""

import math

import pytest
import torch
from zoo_positions.rope import FoPE, RoPE

from zoo.errors import ZooError
from zoo.vit import grid

BOTH = pytest.mark.parametrize("dialect", ["production", "paper"])


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@BOTH
@pytest.mark.parametrize("padding", ["diagonal", "identity"])
def test_equals_sums_of_plain_arithmetic(shape, dialect, padding):
    torch.manual_seed(0)
    geometry = shape(head_dim=32, length=(8, 70), prefix=2, causal=False)
    fope = FoPE(geometry, dialect=dialect, padding=padding, base=100.0, gain=2.0).double()
    parts, at = (fope, fope.columns), torch.tensor([[0.0, 0.0], [1.0, 3.0], [7.0, 69.0], [20.0, 4.0]])
    waves = [[w for t in range(8) if (w := math.pow(100.0, -t / 8)) > 2 * math.pi / n] for n in (8, 70)]
    assert [part.kept for part in parts] == [len(axis) for axis in waves] == [1, 5]
    series = [min(len(axis), 4) if dialect == "paper" else len(axis) for axis in waves]
    got = fope(at, at, 560).rotation
    assert got.cos.shape == got.sin.shape == (1, 2, 4, 16)
    for n in range(2):
        for row, place in enumerate(at.tolist()):
            cos, sin = [], []
            for axis in (0, 1):
                for j in range(series[axis]):
                    own = [place[axis] * w for w in waves[axis]]
                    cos.append(sum(math.cos(w) * c for w, c in zip(own, parts[axis].cos_coef[n, :, j], strict=True)))
                    sin.append(sum(math.sin(w) * c for w, c in zip(own, parts[axis].sin_coef[n, :, j], strict=True)))
                cos += [1.0] * (8 - series[axis])
                sin += [1.0 if padding == "diagonal" else 0.0] * (8 - series[axis])
            assert got.cos[0, n, row].tolist() == pytest.approx([float(c) for c in cos], abs=1e-10)
            assert got.sin[0, n, row].tolist() == pytest.approx([float(s) for s in sin], abs=1e-10)
    x = draw(1, 2, 6, 32)
    turned = got.apply(x)
    assert torch.equal(turned[:, :, :2], x[:, :, :2])
    first, second = x[:, :, 2:, :16], x[:, :, 2:, 16:]
    expected = torch.cat((first * got.cos - second * got.sin, second * got.cos + first * got.sin), -1)
    torch.testing.assert_close(turned[:, :, 2:], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"trainable": True},
        {"normalize": True},
        {"dialect": "paper"},
        {"dialect": "paper", "trainable": True, "padding": "identity"},
        {"dialect": "paper", "ignore_zero": False},
    ],
)
def test_each_half_is_a_fope_of_its_axis(shape, arguments):
    torch.manual_seed(0)
    fope = FoPE(shape(head_dim=16, length=(10, 80), causal=False), **arguments)
    at, tables = grid(10, 80), []
    for axis, part in enumerate((fope, fope.columns)):
        alone = FoPE(shape(head_dim=8, length=(fope.geometry.length[axis],)), **arguments)
        alone.load_state_dict({name: value for name, value in part.state_dict().items() if "columns" not in name})
        assert alone.sin_coef.requires_grad == part.sin_coef.requires_grad == ("trainable" in arguments)
        rotation = alone(at[:, axis : axis + 1], at, 800).rotation
        tables.append((rotation.cos, rotation.sin))
    got = fope(at, at, 800).rotation
    assert torch.equal(got.cos, torch.cat([cos for cos, _ in tables], -1))
    assert torch.equal(got.sin, torch.cat([sin for _, sin in tables], -1))


@BOTH
def test_the_floor_is_the_grids_and_not_the_number_of_patches(shape, dialect):
    fope = FoPE(shape(head_dim=64, length=(14, 28), causal=False), dialect=dialect, base=100.0)
    assert fope.pinned() == {"floor": [14, 28], "num_inv_freq": [3, 6]}
    assert fope.frequencies.shape == (1, 3)
    assert fope.columns.frequencies.shape == (1, 6)
    at = grid(2, 2)
    seen = fope(at, at, 4).rotation.frequencies
    assert seen.shape == (2, 6)
    assert seen[0, 3:].eq(0).all()
    assert torch.equal(seen[1], fope.columns.frequencies[0])


def test_a_longer_model_keeps_floors_and_matrices_by_the_pinned_arguments(shape):
    first = FoPE(shape(head_dim=32, length=(8, 70), causal=False), base=100.0)
    larger = FoPE(shape(head_dim=32, length=(90, 90), causal=False), base=100.0, **first.pinned())
    assert larger.pinned() == first.pinned()
    larger.load_state_dict(first.state_dict())
    at = grid(9, 9)
    assert torch.equal(larger(at, at, 81).rotation.cos, first(at, at, 81).rotation.cos)


def test_one_number_serves_both_axes(shape):
    geometry = shape(head_dim=32, length=(4, 6), causal=False)
    assert FoPE(geometry, floor=8, base=100.0).pinned() == {"floor": [8, 8], "num_inv_freq": [1, 1]}
    assert FoPE(geometry, num_inv_freq=3).pinned() == {"floor": [4, 6], "num_inv_freq": [3, 3]}
    mixed = FoPE(geometry, floor=(8, 70), base=100.0)
    assert mixed.pinned() == {"floor": [8, 70], "num_inv_freq": [1, 5]}


@pytest.mark.parametrize("length", [(8, 70), (9, 9)])
def test_without_noise_the_kept_pairs_are_axial_rope(shape, length):
    geometry, at, x = shape(head_dim=32, length=length, causal=False), grid(*length), draw(1, 2, math.prod(length), 32)
    fope, rope = (kind(geometry, base=100.0, **more).double() for kind, more in ((FoPE, {"init": "eye"}), (RoPE, {})))
    assert fope.relative
    mixed, plain = (encoding(at, at, len(at)).rotation.apply(x) for encoding in (fope, rope))
    for start, kept in ((0, fope.kept), (8, fope.columns.kept)):
        for half in (0, 16):
            pairs = slice(half + start, half + start + kept)
            torch.testing.assert_close(mixed[..., pairs], plain[..., pairs], rtol=0, atol=1e-12)
            rest = slice(half + start + kept, half + start + 8)
            assert not torch.allclose(mixed[..., rest], plain[..., rest], atol=0.1)


@BOTH
@pytest.mark.parametrize(("gain", "relative"), [(0.0, True), (0.3, False)])
def test_shifting_all_patches_changes_attention_exactly_when_there_is_noise(shape, dialect, gain, relative):
    torch.manual_seed(0)
    fope = FoPE(shape(head_dim=32, length=(20, 30), causal=False), dialect=dialect, gain=gain).double()
    assert fope.relative is relative
    at, q, k = grid(3, 4).double(), draw(1, 2, 12, 32), draw(1, 2, 12, 32).flip(2)
    logits = []
    for move in (torch.zeros(2), torch.tensor([5.0, 11.0])):
        turned = fope(at + move, at + move, 600).rotation(q, k)
        logits.append(turned[0] @ turned[1].mT)
    moved = (logits[1] - logits[0]).abs().max().item()
    assert moved < 1e-10 if relative else moved > 1e-2


def test_noise_in_the_columns_alone_is_noise(shape):
    geometry = shape(head_dim=32, length=(20, 30), causal=False)
    clean, noisy = FoPE(geometry, init="eye"), FoPE(geometry)
    clean.columns.load_state_dict(noisy.columns.state_dict())
    assert not clean.relative


def test_examples_with_positions_of_their_own(shape):
    fope, x = FoPE(shape(heads=4, kv_heads=2, length=(8, 9), causal=False)), draw(2, 4, 6, 8).float()
    at = torch.stack((grid(2, 3), grid(3, 2) + 5))
    both = fope(at, at, 72).rotation
    assert both.cos.shape == (2, 2, 6, 4)
    for row in range(2):
        alone = fope(at[row], at[row], 72).rotation.apply(x[row : row + 1])
        torch.testing.assert_close(both.apply(x)[row : row + 1], alone, rtol=0, atol=1e-6)


@BOTH
def test_matrices_of_both_axes_are_drawn_stored_and_trained(shape, dialect):
    torch.manual_seed(0)
    geometry, at = shape(length=(8, 9), causal=False), grid(8, 9)
    fope = FoPE(geometry, dialect=dialect, trainable=True).double()
    names = ["columns.cos_coef", "columns.sin_coef", "cos_coef", "sin_coef"]
    assert sorted(fope.state_dict()) == names
    assert not torch.equal(fope.sin_coef, fope.columns.sin_coef)

    def tables(*coefs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = dict(zip(names, coefs, strict=True))
        rotation = torch.func.functional_call(fope, state, (at, at, 72)).rotation
        return rotation.cos, rotation.sin

    assert torch.autograd.gradcheck(tables, tuple(dict(fope.named_parameters())[name] for name in names))
    before = {name: value.clone() for name, value in fope.state_dict().items()}
    fope.reset_parameters()
    assert not any(torch.equal(before[name], value) for name, value in fope.state_dict().items())
    assert fope.per_layer is (dialect == "paper")


def test_casting_leaves_it_float32(shape):
    fope, at = FoPE(shape(length=(8, 9), causal=False)), grid(40, 30)
    plain = fope(at, at, 1200).rotation
    half = fope.bfloat16()(at, at, 1200).rotation
    assert torch.equal(half.cos, plain.cos)
    assert torch.equal(half.sin, plain.sin)
    assert fope.double()(at, at, 1200).rotation.cos.dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({"head_dim": 6}, {}, r"as many for rows as for columns, a head_dim of 4, 8, 12 \.\.\.; here it is 6"),
        ({"head_dim": 4}, {"dialect": "paper"}, "needs a head_dim of 8 or more; this model's is 4"),
        ({"length": (6, 9)}, {}, r"cannot keep 0 of the 2 waves of 4 channels .* floor 6\)\. Raise"),
        ({"length": (9, 6)}, {}, r"cannot keep 0 of the 2 waves of 4 channels .* floor 6\)\. Raise"),
        ({}, {"num_inv_freq": 3}, "cannot keep 3 of the 2 waves"),
        ({}, {"floor": [9, 9, 9]}, r"takes one floor, or one for each of 2 axes; got \[9, 9, 9\]"),
        ({"length": (64,)}, {"floor": [64, 64]}, r"takes one floor, or one for each of 1 axes"),
    ],
)
def test_refusals(shape, changes, arguments, sentence):
    geometry = shape(**{"length": (8, 9), "causal": False} | changes)
    with pytest.raises(ZooError, match=sentence):
        FoPE(geometry, **arguments)
