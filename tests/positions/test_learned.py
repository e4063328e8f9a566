"""Learned: rows of a table, and a refusal beyond its end."""

import pytest
import torch
from zoo_positions.learned import Learned

from zoo.errors import ZooError


def test_a_position_reads_its_row(shape):
    learned = Learned(shape(length=(5,)))
    at = torch.tensor([[3.0], [0.0], [4.0]])
    torch.testing.assert_close(learned(at, at, 5).embedding, learned.table[[3, 0, 4]], rtol=0, atol=0)
    packed = torch.stack((at, at.flip(0)))
    torch.testing.assert_close(learned(packed, packed, 5).embedding[1], learned.table[[4, 0, 3]], rtol=0, atol=0)


def test_a_patch_reads_row_times_width_plus_column(shape):
    learned = Learned(shape(length=(2, 3)))
    at = torch.tensor([[y, x] for y in range(2) for x in range(3)], dtype=torch.float32)
    torch.testing.assert_close(learned(at, at, 6).embedding, learned.table, rtol=0, atol=0)
    torch.testing.assert_close(learned(at[4:5], at, 6).embedding[0], learned.table[1 * 3 + 1], rtol=0, atol=0)


def test_the_table_is_normal_with_the_given_deviation(shape):
    torch.manual_seed(0)
    for std in (0.02, 0.5):
        table = Learned(shape(dim=64, length=(256,)), std=std).table
        assert table.shape == (256, 64)
        assert table.requires_grad
        assert table.std().item() == pytest.approx(std, rel=0.05)
        assert abs(table.mean().item()) < std / 20
    assert Learned(shape(), std=0.0).table.eq(0).all()


def test_a_request_beyond_the_table_is_refused(shape):
    learned, at = Learned(shape(length=(4,))), torch.zeros(1, 1)
    with pytest.raises(ZooError, match=r"each of 4 positions and cannot serve a request of 5 positions.*position RoPE"):
        learned(at, at, 5)
    late = torch.tensor([[4.0]])
    with pytest.raises(ZooError, match="a position that is not in it"):
        learned(late, late, 4)


@pytest.mark.parametrize("patch", [(2.0, 0.0), (0.0, 3.0)])
def test_a_patch_beyond_the_grid_is_refused_on_either_axis(shape, patch):
    at = torch.tensor([patch])  # (0, 3) would read the first patch of the next row
    with pytest.raises(ZooError, match="each of 2 x 3 positions"):
        Learned(shape(length=(2, 3)))(at, at, 6)


def test_a_negative_deviation_is_refused(shape):
    with pytest.raises(ZooError, match="std -1"):
        Learned(shape(), std=-1.0)


def test_only_rows_that_were_read_get_gradients(shape):
    learned, at = Learned(shape(length=(4,))), torch.tensor([[1.0], [1.0], [3.0]])
    learned(at, at, 4).embedding.sum().backward()
    assert learned.table.grad[:, 0].tolist() == [0.0, 2.0, 0.0, 1.0]
