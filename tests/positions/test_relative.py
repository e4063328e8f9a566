"""RelativeBias: a number for each offset of two patches, and another grid's picture of the table."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from zoo_positions.relative import RelativeBias

from zoo.errors import ZooError
from zoo.position import Pointwise
from zoo.vit import grid


def whole(bias: Pointwise) -> torch.Tensor:
    tokens = slice(0, bias.prefix + bias.queries)
    return bias.block(tokens, tokens)


@pytest.mark.parametrize("length", [(3, 5), (5, 3), (1, 4), (1, 1)])
@pytest.mark.parametrize("prefix", [0, 3])
def test_each_pair_reads_the_number_of_its_offset(shape, length, prefix):
    height, width = length
    relative = RelativeBias(shape(heads=4, kv_heads=2, length=length, prefix=prefix, causal=False), std=1.0).double()
    assert relative.table.shape == (4, 2 * height - 1, 2 * width - 1)
    at = grid(*length)
    bias = relative(at, at, len(at)).bias
    assert isinstance(bias, Pointwise)
    got = whole(bias)
    assert got.shape == (1, 4, prefix + len(at), prefix + len(at))
    assert got[:, :, :prefix].eq(0).all()
    assert got[:, :, :, :prefix].eq(0).all()
    for i in range(len(at)):
        for j in range(len(at)):
            dy, dx = i // width - j // width, i % width - j % width
            expected = relative.table[:, dy + height - 1, dx + width - 1]
            assert torch.equal(got[0, :, prefix + i, prefix + j], expected)


def test_the_patches_may_come_in_any_order_and_number(shape):
    relative, at = RelativeBias(shape(length=(3, 5), causal=False)), grid(3, 5)
    full, order = whole(relative(at, at, 15).bias), torch.randperm(15)[:9]
    assert torch.equal(whole(relative(at[order], at[order], 15).bias), full[..., order, :][..., order])
    assert torch.equal(relative(at[4:6], at, 15).bias.block(slice(0, 2), slice(0, 15)), full[:, :, 4:6])
    batch = torch.stack((at[order], at[:9]))
    both = whole(relative(batch, batch, 15).bias)
    assert torch.equal(both[0], full[0][:, order][..., order])
    assert torch.equal(both[1], full[0][:, :9, :9])


@pytest.mark.parametrize("resample", ["none", "bicubic"])
def test_shift_changes_nothing(shape, resample):
    relative, at = RelativeBias(shape(length=(3, 5), causal=False), resample=resample), grid(3, 5)
    assert relative.relative
    assert torch.equal(whole(relative(at + 40, at + 40, 15).bias), whole(relative(at, at, 15).bias))


def test_the_first_numbers(shape):
    torch.manual_seed(0)
    built = shape(heads=8, length=(20, 30), causal=False)
    table = RelativeBias(built).table
    assert table.dtype == torch.float32
    assert table.requires_grad
    assert table.std().item() == pytest.approx(0.02, rel=0.03)
    assert abs(table.mean().item()) < 0.001
    wide = RelativeBias(built, std=3.0).table
    assert wide.abs().max() <= 2  # cut there, as the reference does whatever its deviation
    assert wide.std() > 0.9
    assert RelativeBias(built, std=0.0).table.eq(0).all()
    assert RelativeBias(built).per_layer


@pytest.mark.parametrize("new", [(4, 5), (3, 6), (5, 3)])
def test_patches_farther_apart_than_any_that_were_trained_are_refused(shape, new):
    relative, at = RelativeBias(shape(length=(3, 5), causal=False)), grid(*new)
    sentence = rf"offset within 3 x 5 patches and none for all of {new[0]} x {new[1]}.*resample bicubic.*zoo extend"
    with pytest.raises(ZooError, match=sentence):
        relative(at, at, len(at))


def test_a_smaller_grid_reads_the_middle_of_the_table(shape):
    relative, at = RelativeBias(shape(length=(3, 5), causal=False)), grid(2, 4)
    got = whole(relative(at, at, 8).bias)
    for i in range(8):
        for j in range(8):
            assert torch.equal(got[0, :, i, j], relative.table[:, i // 4 - j // 4 + 2, i % 4 - j % 4 + 4])


@pytest.mark.parametrize("new", [(4, 7), (5, 3), (2, 2), (3, 6)])
def test_another_grid_reads_the_table_as_a_picture(shape, new):
    relative, at = RelativeBias(shape(length=(3, 5), causal=False), std=1.0, resample="bicubic"), grid(*new)
    height, width = new
    picture = functional.interpolate(relative.table[None], (2 * height - 1, 2 * width - 1), mode="bicubic")[0]
    got = whole(relative(at, at, len(at)).bias)
    for i in range(len(at)):
        for j in range(len(at)):
            dy, dx = i // width - j // width, i % width - j % width
            assert torch.equal(got[0, :, i, j], picture[:, dy + height - 1, dx + width - 1])
    some = relative(at[1:3], at, len(at)).bias  # the keys tell the grid
    assert torch.equal(some.block(slice(0, 2), slice(0, len(at))), got[:, :, 1:3])
    with pytest.raises(ZooError, match="RelativeBias cannot tell which grid"):
        relative(at[1:], at[1:], len(at))


def test_the_trained_grid_is_never_resampled(shape):
    built, at = shape(length=(3, 5), causal=False), grid(3, 5)
    torch.manual_seed(0)
    plain, able = RelativeBias(built), RelativeBias(built, resample="bicubic")
    able.load_state_dict(plain.state_dict())
    assert torch.equal(whole(able(at, at, 15).bias), whole(plain(at, at, 15).bias))


@pytest.mark.parametrize(("resample", "new"), [("none", (2, 3)), ("bicubic", (3, 2))])
def test_the_table_gets_the_gradients_of_its_look_ups(shape, resample, new):
    relative = RelativeBias(shape(length=(2, 3), causal=False), std=1.0, resample=resample).double()
    at, weight = grid(*new), torch.randn(1, 2, 6, 6, dtype=torch.float64)

    def values(table: torch.Tensor) -> torch.Tensor:
        return whole(torch.func.functional_call(relative, {"table": table}, (at, at, 6)).bias)

    assert torch.autograd.gradcheck(values, (relative.table,))
    bias = relative(at, at, 6).bias
    assert not any(isinstance(tensor, nn.Parameter) for tensor in bias.tensors)
    (whole(bias) * weight).sum().backward()
    if resample == "none":
        expected = torch.zeros_like(relative.table)
        for i in range(6):
            for j in range(6):
                expected[:, i // 3 - j // 3 + 1, i % 3 - j % 3 + 2] += weight[0, :, i, j]
        torch.testing.assert_close(relative.table.grad, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("resample", ["none", "bicubic"])
def test_half_precision_and_autocast_leave_it_float32(shape, resample):
    relative, at = RelativeBias(shape(length=(3, 5), causal=False), resample=resample), grid(3, 4)
    plain = whole(relative(at, at, 12).bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whole(relative(at, at, 12).bias), plain)
    assert torch.equal(whole(relative.bfloat16()(at, at, 12).bias), plain)
    other = RelativeBias(shape(length=(3, 5), causal=False), resample=resample)
    other.load_state_dict(relative.state_dict())
    assert torch.equal(whole(other(at, at, 12).bias), plain)


def test_it_can_be_built_without_memory(shape):
    with torch.device("meta"):
        relative = RelativeBias(shape(length=(3, 5), causal=False), resample="bicubic")
    at = torch.zeros(2, 2, device="meta")
    assert relative(at, at, 2).bias.tensors[0].shape == (2, 45)


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({}, {}, r"this model has 1 axis\. For text, .*position T5"),
        ({"length": (2, 2, 2)}, {}, "this model has 3 axes"),
        ({"length": (2, 2)}, {"std": -1.0}, r"std -1\.0.*position\.std 0\.02"),
    ],
)
def test_refusals(shape, changes, arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        RelativeBias(shape(**changes), **arguments)


def test_another_grid_may_be_stored(shape):
    built, at = shape(heads=2, length=(2, 3), causal=False), grid(4, 5)
    relative = RelativeBias(built, grid=[4, 5], std=1.0)
    assert relative.table.shape == (2, 7, 9)
    assert relative.pinned() == {"grid": [4, 5]}
    assert RelativeBias(built).pinned() == {"grid": [2, 3]}
    got = whole(relative(at, at, 20).bias)
    assert torch.equal(got[0, :, 0, 19], relative.table[:, 0, 0])
    assert torch.equal(got[0, :, 19, 0], relative.table[:, 6, 8])


@pytest.mark.parametrize("antialias", [False, True])
def test_a_smaller_grid_reads_a_picture_with_each_interpolation(shape, antialias):
    built, at = shape(heads=2, length=(4, 6), causal=False), grid(2, 3)
    relative = RelativeBias(built, std=1.0, resample="linear", antialias=antialias)
    picture = functional.interpolate(relative.table[None], (3, 5), mode="bilinear", antialias=antialias)[0]
    got = whole(relative(at, at, 6).bias)
    torch.testing.assert_close(got[0, :, 0, 5], picture[:, 0, 0])
    torch.testing.assert_close(got[0, :, 5, 0], picture[:, 2, 4])


def test_smoothing_without_resampling_is_refused(shape):
    with pytest.raises(ZooError, match=r"RelativeBias smooths by antialias only what.*resample bicubic"):
        RelativeBias(shape(length=(2, 3), causal=False), antialias=True)
