"""Scaling of distances and buckets: scalar oracles of each encoding at the scaled distance, rungs, refusals."""

import math
from functools import partial

import pytest
import torch
from zoo_positions.alibi import ALiBi
from zoo_positions.dynamic import DynamicBias
from zoo_positions.fire import FIRE
from zoo_positions.kerple import KERPLE
from zoo_positions.sandwich import Sandwich
from zoo_positions.scaling import BucketScaling, DistanceScaling, DynamicDistanceScaling
from zoo_positions.t5 import T5

from zoo import checkpoints, plugins
from zoo.errors import ZooError
from zoo.matrix import taken
from zoo.position import Pointwise, Slopes, Toeplitz
from zoo.vit import grid

SCALED = (ALiBi, T5, KERPLE, Sandwich, DynamicBias)
FACTORS = pytest.mark.parametrize("factor", [2, 2.5, 4])


def by(factor: float):
    return partial(DistanceScaling, factor=factor)


def line(tokens: int) -> torch.Tensor:
    return torch.arange(float(tokens)).unsqueeze(-1)


def seen(encoding, extent: int, tokens: int | None = None) -> torch.Tensor:
    """The bias between the first tokens of a request, [heads, tokens, tokens]."""
    at, whole = line(tokens or extent), slice(0, tokens or extent)
    return encoding(at, at, extent).bias.block(whole, whole)[0]


def same(make, **changes):
    """With and without an extension, from the same draws."""
    torch.manual_seed(3)
    return make(**changes)


def bucket(distance: int, buckets: int, last: float) -> int:
    """T5's formula by a logarithm in float64."""
    fine = buckets // 2
    if distance < fine:
        return distance
    coarse = math.log(distance / fine) / math.log(last / fine) * (buckets - fine)
    return min(buckets - 1, fine + math.floor(coarse + 1e-9))


# ALiBi: the paper's slopes.


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize(("extent", "expected"), [(16, 1), (64, 1), (65, 64 / 65), (128, 1 / 2), (256, 1 / 4)])
def test_dynamic_slopes_are_scaled_by_the_trained_length_over_the_requests(shape, extent, expected, trainable):
    """m_h L / max(L, L') with L = 64 and the slopes 1/4, 1/16, 1/64, 1/256 of four heads."""
    alibi = ALiBi(shape(heads=4), trainable=trainable, extension=DynamicDistanceScaling)
    bias = alibi(line(2), line(2), extent).bias
    assert type(bias) is Slopes
    wanted = torch.tensor([0.25, 0.0625, 0.015625, 0.00390625]) * expected
    torch.testing.assert_close(bias.tensors[0], wanted, rtol=1e-6, atol=0)


@FACTORS
def test_static_slopes_are_divided_whatever_the_request(shape, factor):
    alibi = ALiBi(shape(heads=2), extension=by(factor))
    for extent in (3, 64, 300):
        got = seen(alibi, extent, 3)[:, 2, 0].tolist()
        assert got == pytest.approx([-2 / 16 / factor, -2 / 256 / factor])


def test_on_a_grid_slopes_are_divided_and_the_rung_stays(shape):
    geometry, at = shape(heads=2, length=(2, 3), causal=False), grid(2, 3)
    bias = ALiBi(geometry, extension=by(4))(at, at, 6).bias
    assert type(bias) is Pointwise
    got = bias.block(slice(0, 6), slice(0, 6))[0, :, 0, 5].tolist()
    assert got == pytest.approx([-math.sqrt(5) / 16 / 4, -math.sqrt(5) / 256 / 4])


# T5


@FACTORS
@pytest.mark.parametrize("causal", [True, False])
def test_t5_sorts_the_whole_part_of_the_scaled_distance(shape, factor, causal):
    t5 = T5(shape(causal=causal), buckets=8, distance=20, extension=by(factor))
    got, half = seen(t5, 90), 8 if causal else 4
    for i, j in ((0, 0), (1, 0), (3, 0), (7, 2), (50, 1), (89, 0), (0, 1), (0, 3), (0, 5), (5, 89)):
        if causal and j > i:
            continue
        away = math.floor(abs(i - j) / factor)
        where = bucket(away, half, 20) + (4 if j > i and away else 0)
        assert torch.equal(got[:, i, j], t5.weight[where])


@FACTORS
def test_each_bucket_becomes_factor_times_as_wide(shape, factor):
    plain, wide = (T5(shape(), extension=extension) for extension in (None, by(factor)))
    distances = torch.arange(1000)
    with torch.no_grad():
        for each in (plain, wide):
            each.weight.copy_(torch.arange(32.0).unsqueeze(-1).expand(-1, 2))
    starts = [plain.table(distances)[0].tolist().index(number) for number in range(32)]
    assert [wide.table(distances, factor)[0].tolist().index(number) for number in range(32)] == [
        math.ceil(start * factor) for start in starts
    ]


def test_a_later_key_is_never_sorted_as_one_at_distance_0(shape):
    """No model of both directions has trained that row: the nearest keys share the row of the token itself."""
    t5 = T5(shape(causal=False), extension=by(4))
    seen(t5, 60).sum().backward()
    assert t5.weight.grad[16].eq(0).all()
    assert t5.weight.grad[17].ne(0).all()


@FACTORS
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 100), (7, 31)])
def test_scaled_buckets_end_farther_out_and_near_ones_stay(shape, factor, buckets, distance):
    t5 = T5(shape(), buckets=buckets, distance=distance, extension=partial(BucketScaling, factor=factor))
    last = round(distance * factor)
    expected = [bucket(away, buckets, last) for away in range(1000)]
    assert t5.bucket(torch.arange(1000)).tolist() == expected
    assert expected[: buckets // 2] == list(range(buckets // 2))
    assert torch.equal(seen(t5, 700)[:, 699, 0], t5.weight[expected[699]])
    assert torch.equal(t5.to("cpu").starts, t5.starts)


def test_scaled_buckets_of_both_directions(shape):
    t5 = T5(shape(causal=False), buckets=8, distance=20, extension=partial(BucketScaling, factor=3))
    expected = [4 * (away < 0) + bucket(abs(away), 4, 60) for away in range(-100, 101)]
    assert t5.bucket(torch.arange(-100, 101)).tolist() == expected


# The others: their formulas at d / factor.


@FACTORS
@pytest.mark.parametrize("kind", ["log", "power"])
def test_kerple(shape, kind, factor):
    kerple = KERPLE(shape(), kind=kind, extension=by(factor))
    with torch.no_grad():
        kerple.p.fill_(1.5)
        kerple.a.fill_(0.3)
    got = seen(kerple, 101)
    for away in (0, 1, 2, 10, 100):
        near = away / factor
        wanted = -1.5 * math.log(1 + 0.3 * near) if kind == "log" else -0.3 * near**1.5
        assert got[0, 100, 100 - away].item() == pytest.approx(wanted, rel=1e-5, abs=1e-7)


@FACTORS
@pytest.mark.parametrize("causal", [True, False])
def test_sandwich(shape, causal, factor):
    got = seen(Sandwich(shape(causal=causal), width=10, extension=by(factor)), 101)
    for away in (0, 1, 2, 10, 100):
        wanted = 2 / 8 * math.fsum(math.cos(away / factor * 10000 ** (-2 * t / 10)) for t in range(5))
        assert got[0, 100, 100 - away].item() == pytest.approx(wanted, rel=1e-5)
        if not causal:
            assert got[0, 0, away].item() == pytest.approx(wanted, rel=1e-5)


@FACTORS
@pytest.mark.parametrize("distance", ["log", "linear"])
def test_dynamic_bias(shape, distance, factor):
    made = DynamicBias(shape(causal=False), distance=distance, extension=by(factor))
    got = seen(made, 50)
    first, second, last = made.layers
    for i, j in ((0, 0), (49, 0), (7, 4), (0, 49), (3, 9)):
        x = (i - j) / factor
        x = math.copysign(math.log(1 + abs(x)), x) if distance == "log" else x
        hidden = torch.nn.functional.silu(first.weight[:, 0] * x + first.bias)
        wanted = last.weight @ torch.nn.functional.silu(second.weight @ hidden + second.bias)
        torch.testing.assert_close(got[:, i, j], wanted, rtol=1e-4, atol=1e-5)


# All of them.


@pytest.mark.parametrize("encoding", SCALED)
@pytest.mark.parametrize("causal", [True, False])
def test_a_factor_of_1_changes_no_bit_and_no_rung(shape, encoding, causal):
    extensions = [by(1), DynamicDistanceScaling, *([partial(BucketScaling, factor=1)] if encoding is T5 else [])]
    plain = same(encoding, geometry=shape(causal=causal))
    for extension in extensions:
        other = same(encoding, geometry=shape(causal=causal), extension=extension)
        assert torch.equal(seen(plain, 64), seen(other, 64))
        assert type(other(line(9), line(9), 300).bias) is type(plain(line(9), line(9), 300).bias)
        assert plain.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize("encoding", SCALED)
def test_a_dynamic_request_of_twice_the_length_is_a_static_one_of_factor_2(shape, encoding):
    fixed = same(encoding, geometry=shape(), extension=by(2))
    moving = same(encoding, geometry=shape(), extension=DynamicDistanceScaling)
    assert torch.equal(seen(fixed, 128), seen(moving, 128))
    assert not torch.equal(seen(moving, 129, 64), seen(moving, 128, 64))


@pytest.mark.parametrize("encoding", SCALED[1:])
def test_a_table_stays_one_of_distances(shape, encoding):
    bias = encoding(shape(), extension=by(4))(line(9), line(9), 300).bias
    assert type(bias) is Toeplitz
    assert bias.tensors[0].shape == (2, 300)
    assert bias.tensors[0].dtype == torch.float32


@pytest.mark.parametrize("factor", [0.5, 0, -1, math.inf, math.nan])
def test_a_factor_below_1_is_refused(shape, factor):
    for kind in (DistanceScaling, BucketScaling):
        with pytest.raises(ZooError, match=rf"{kind.__name__} reads `factor` times as far.*got .*factor 4"):
            T5(shape(), extension=partial(kind, factor=factor))


def test_a_grid_has_no_length_to_choose_by(shape):
    with pytest.raises(ZooError, match=r"on 2 axes.*no length.*extension DistanceScaling"):
        ALiBi(shape(length=(4, 4), causal=False), extension=DynamicDistanceScaling)


def test_who_takes_what():
    names = {kind: {e for e, one in plugins.classes("zoo.positions").items() if issubclass(kind, taken(one))}
             for kind in (DistanceScaling, DynamicDistanceScaling, BucketScaling)}  # fmt: skip
    assert names[DistanceScaling] == names[DynamicDistanceScaling] == {kind.__name__ for kind in SCALED} | {"RoPEMixed"}
    assert names[BucketScaling] == {"T5"}
    assert taken(FIRE) == ()


@pytest.mark.parametrize(
    ("position", "extension", "sentence"),
    [
        ("ALiBi", "YaRN", r"YaRN does not extend ALiBi, which takes DistanceScaling, DynamicDistanceScaling\."),
        ("RoPE", "DistanceScaling", r"DistanceScaling does not extend RoPE, which takes ABF, .*YaRN\."),
        ("FIRE", "DistanceScaling", r"FIRE takes no extension, because .*any length.*Those that take some: ALiBi, "),
        ("NoPE", "YaRN", r"NoPE takes no extension\. Those"),
    ],
)
def test_a_checkpoint_with_a_wrong_pair_says_so(position, extension, sentence):
    node = {"class_path": position, "init_args": {"extension": {"class_path": extension, "init_args": {"factor": 4}}}}
    with pytest.raises(ZooError, match=sentence):
        checkpoints.callable_of(node, "zoo.positions")
