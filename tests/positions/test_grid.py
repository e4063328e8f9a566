"""Grids: their size, tables over offsets against loops, and bicubic stretching against cubic convolution by hand."""

import math

import pytest
import torch
from zoo_positions.grid import filled, look_up, offsets, resampled, size, stretched

from zoo.errors import ZooError
from zoo.position import Pointwise
from zoo.vit import grid


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_size_is_what_the_positions_span():
    assert size(grid(3, 5), (9, 9)) == (3, 5)
    assert size(grid(3, 5)[torch.randperm(15)] + 7, (9, 9)) == (3, 5)
    assert size(torch.tensor([[2.0, 1.0]]), (9, 9)) == (1, 1)
    apart = torch.stack((grid(2, 6), grid(2, 6) + 50))  # each example has a grid of its own
    assert size(apart, (9, 9)) == (2, 6)
    assert size(torch.stack((grid(2, 6), grid(6, 2))), (9, 9)) == (6, 6)
    assert size(grid(3, 5).to("meta"), (4, 6)) == (4, 6)


def test_a_grid_with_holes_has_no_size_to_resample_to():
    assert filled(grid(3, 5), (3, 5), "It") == (3, 5)
    with pytest.raises(ZooError, match=r"It cannot tell .* 14 positions do not fill the grid of 3 x 5 .*resample none"):
        filled(grid(3, 5)[torch.arange(15) != 7], (3, 5), "It")
    assert filled(grid(3, 5).to("meta"), (4, 6), "It") == (4, 6)


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (1, 4), (4, 1), (1, 1)])
def test_rows_of_a_table_are_offsets(shape):
    height, width = shape
    expected = [[dy, dx] for dy in range(1 - height, height) for dx in range(1 - width, width)]
    assert offsets(shape).tolist() == expected


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (1, 5), (5, 1)])
@pytest.mark.parametrize("prefix", [0, 2])
def test_a_look_up_equals_a_loop(shape, prefix):
    height, width = shape
    table, queries = draw(3, (2 * height - 1) * (2 * width - 1)), grid(*shape).flip(0)[: height + width - 1]
    keys = grid(*shape)
    bias = look_up(table, queries, keys, shape, prefix=prefix)
    assert isinstance(bias, Pointwise)
    got = bias.block(slice(0, prefix + len(queries)), slice(0, prefix + len(keys)))
    assert got.shape == (1, 3, prefix + len(queries), prefix + len(keys))
    assert got[:, :, :prefix].eq(0).all()
    assert got[:, :, :, :prefix].eq(0).all()
    picture = table.view(3, 2 * height - 1, 2 * width - 1)
    for i, (y, x) in enumerate(queries.int().tolist()):
        for j, (v, u) in enumerate(keys.int().tolist()):
            expected = picture[:, y - v + height - 1, x - u + width - 1]
            assert torch.equal(got[0, :, prefix + i, prefix + j], expected)
            one = bias.value(*(torch.tensor(n) for n in (0, 1, i, j)), *bias.tensors)
            assert one == expected[1]
    assert torch.equal(
        bias.heads(1, 3).block(slice(prefix, prefix + 2), slice(prefix, prefix + 3)),
        got[:, 1:, prefix : prefix + 2, prefix : prefix + 3],
    )


def test_examples_with_positions_of_their_own():
    table, at = draw(2, 15), torch.stack((grid(2, 3), grid(2, 3).flip(0) + 4))
    got = look_up(table, at, at, (2, 3)).block(slice(0, 6), slice(0, 6))
    for row in range(2):
        alone = look_up(table, at[row], at[row], (2, 3)).block(slice(0, 6), slice(0, 6))
        assert torch.equal(got[row], alone[0])
    assert not torch.equal(got[0], got[1])


def test_each_offset_gets_the_gradients_of_all_its_pairs():
    table = draw(2, 15).requires_grad_()
    weight = draw(1, 2, 6, 6)
    (look_up(table * 1, grid(2, 3), grid(2, 3), (2, 3)).block(slice(0, 6), slice(0, 6)) * weight).sum().backward()
    expected = torch.zeros(2, 3, 5, dtype=torch.float64)
    for i in range(6):
        for j in range(6):
            expected[:, i // 3 - j // 3 + 1, i % 3 - j % 3 + 2] += weight[0, :, i, j]
    torch.testing.assert_close(table.grad, expected.view(2, 15), rtol=0, atol=1e-12)


def cubic(x: float, a: float) -> float:
    """The kernel of cubic convolution."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def hat(x: float, _: float) -> float:
    return max(0.0, 1 - abs(x))


def drawn(line: list[float], length: int, mode: str, antialias: bool, ends: bool = False) -> list[float]:
    """One line to another length: pixel centres at halves or ends on ends, the border repeated; antialias as in
    Pillow."""
    scale, out, kernel = len(line) / length, [], cubic if mode == "bicubic" else hat
    for n in range(length):
        centre = n * (len(line) - 1) / (length - 1) if ends else (n + 0.5) * scale - 0.5
        if antialias:
            wide = max(scale, 1.0)
            near = [m for m in range(len(line)) if abs(m - centre) < 2 * wide]
            weights = [kernel((m - centre) / wide, -0.5) for m in near]
            out.append(sum(w * line[m] for w, m in zip(weights, near, strict=True)) / sum(weights))
        else:
            taps = range(math.floor(centre) - 1, math.floor(centre) + 3)
            weights = [kernel(m - centre, -0.75) for m in taps]
            values = [line[min(max(m, 0), len(line) - 1)] for m in taps]
            out.append(sum(w * value for w, value in zip(weights, values, strict=True)))
    return out


@pytest.mark.parametrize("mode", ["bicubic", "linear"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), [((4, 6), (7, 9)), ((4, 6), (3, 2)), ((5, 3), (2, 8)), ((1, 4), (3, 1))])
def test_resampling_equals_convolution(old, new, mode, antialias):
    tables = draw(2, *old)
    got = resampled(tables, new, mode, antialias)
    for channel in range(2):
        wide = [drawn(row, new[1], mode, antialias) for row in tables[channel].tolist()]
        high = [drawn(list(column), new[0], mode, antialias) for column in zip(*wide, strict=True)]
        expected = torch.tensor(high, dtype=torch.float64).T
        torch.testing.assert_close(got[channel], expected, rtol=0, atol=1e-12)
    if antialias and min(o / n for o, n in zip(old, new, strict=True)) > 1:
        assert not torch.allclose(got, resampled(tables, new, mode), atol=1e-2)
    if antialias and mode == "bicubic":  # another cubic, wherever the size is another
        assert not torch.allclose(got, resampled(tables, new, mode), atol=1e-2)


@pytest.mark.parametrize("mode", ["bicubic", "linear"])
@pytest.mark.parametrize(("old", "new"), [(4, 7), (5, 20), (1, 3), (2, 3)])
def test_a_line_is_stretched_with_its_ends_aligned(old, new, mode):
    lines = draw(3, old)
    got = stretched(lines, new, mode)
    rows = [drawn(line, new, mode, False, ends=True) for line in lines.tolist()]
    expected = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(got[:, [0, -1]], lines[:, [0, -1]], rtol=0, atol=1e-12)
