"""Learned: rows of a table, and a refusal beyond its end."""

import pytest
import torch
from torch.nn import functional
from zoo_positions.learned import Learned

from zoo.errors import ZooError
from zoo.vit import grid


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
    sentence = r"each of 4 positions and cannot serve a request of 5 positions.*zoo extend.*position RoPE"
    with pytest.raises(ZooError, match=sentence):
        learned(at, at, 5)
    late = torch.tensor([[4.0]])
    with pytest.raises(ZooError, match="a position that is not in it"):
        learned(late, late, 4)


@pytest.mark.parametrize("patch", [(2.0, 0.0), (0.0, 3.0)])
def test_a_patch_beyond_the_grid_is_refused_on_either_axis(shape, patch):
    at = torch.tensor([patch])  # (0, 3) would read the first patch of the next row
    sentence = "each of 2 x 3 positions and cannot serve a position that is not in it.*resample bicubic.*zoo extend"
    with pytest.raises(ZooError, match=sentence):
        Learned(shape(length=(2, 3)))(at, at, 6)


def test_a_negative_deviation_is_refused(shape):
    with pytest.raises(ZooError, match="std -1"):
        Learned(shape(), std=-1.0)


def test_only_rows_that_were_read_get_gradients(shape):
    learned, at = Learned(shape(length=(4,))), torch.tensor([[1.0], [1.0], [3.0]])
    learned(at, at, 4).embedding.sum().backward()
    assert learned.table.grad[:, 0].tolist() == [0.0, 2.0, 0.0, 1.0]


def test_a_table_of_text_may_have_more_rows_than_the_trained_length(shape):
    learned = Learned(shape(length=(4,)), rows=9)
    assert learned.table.shape == (9, 16)
    at = torch.tensor([[0.0], [4.0], [8.0]])  # such as randomised positions
    torch.testing.assert_close(learned(at, at, 9).embedding, learned.table[[0, 4, 8]], rtol=0, atol=0)
    with pytest.raises(ZooError, match="each of 9 positions and cannot serve a request of 10 positions"):
        learned(at, at, 10)


def test_a_checkpoint_states_the_rows_of_a_text(shape):
    assert Learned(shape(length=(4,))).pinned() == {"rows": 4}
    assert Learned(shape(length=(4,)), rows=9).pinned() == {"rows": 9}
    longer = Learned(shape(length=(32,)), **Learned(shape(length=(4,))).pinned())
    assert longer.table.shape == (4, 16)
    assert Learned(shape(length=(2, 3))).pinned() == {"grid": [2, 3]}


def test_a_table_of_images_may_have_another_grid_than_that_of_training(shape):
    learned, at = Learned(shape(length=(2, 3), causal=False), grid=[4, 5]), grid(4, 5)
    assert learned.table.shape == (20, 16)
    assert torch.equal(learned(at, at, 20).embedding, learned.table)
    assert learned.pinned() == {"grid": [4, 5]}
    with pytest.raises(ZooError, match="each of 4 x 5 positions"):
        learned(grid(5, 4), grid(5, 4), 20)
    picture = Learned(shape(length=(2, 3), causal=False), grid=[4, 5], std=1.0, resample="linear")
    at = grid(2, 3)
    expected = pictured(picture.table, (4, 5), (2, 3), False, "bilinear")
    torch.testing.assert_close(picture(at, at, 6).embedding, expected, rtol=0, atol=1e-6)


def pictured(
    table: torch.Tensor, old: tuple[int, int], new: tuple[int, int], antialias: bool, mode: str = "bicubic"
) -> torch.Tensor:
    """A channel at a time."""
    channels = table.detach().T.reshape(-1, 1, *old)
    return (
        torch.cat([functional.interpolate(c[None], new, mode=mode, antialias=antialias).flatten() for c in channels])
        .view(len(channels), -1)
        .T
    )


@pytest.mark.parametrize("mode", ["bicubic", "linear"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("new", [(5, 9), (2, 3), (3, 8), (6, 3), (6, 4), (12, 2)])
def test_another_grid_reads_the_table_as_a_picture(shape, new, antialias, mode):
    built = shape(length=(4, 6), prefix=3, causal=False)
    learned, at = Learned(built, std=1.0, resample=mode, antialias=antialias), grid(*new)
    got = learned(at, at, len(at)).embedding
    word = "bicubic" if mode == "bicubic" else "bilinear"
    torch.testing.assert_close(got, pictured(learned.table, (4, 6), new, antialias, word), rtol=0, atol=1e-6)
    order = torch.randperm(len(at))
    assert torch.equal(learned(at[order], at[order], len(at)).embedding, got[order])
    assert torch.equal(learned(at[2:4], at, len(at)).embedding, got[2:4])
    batch = at.expand(2, -1, -1)
    assert torch.equal(learned(batch, batch, len(at)).embedding, got.expand(2, -1, -1))
    assert learned.double()(at, at, len(at)).embedding.dtype == torch.float64


def test_antialias_matters_where_the_grid_shrinks(shape):
    built, at = shape(length=(8, 6), causal=False), grid(3, 6)
    torch.manual_seed(0)
    plain = Learned(built, std=1.0, resample="bicubic")
    smooth = Learned(built, std=1.0, resample="bicubic", antialias=True)
    smooth.load_state_dict(plain.state_dict())
    assert (plain(at, at, 18).embedding - smooth(at, at, 18).embedding).abs().max() > 0.1


@pytest.mark.parametrize("antialias", [False, True])
def test_the_trained_grid_reads_the_table_itself(shape, antialias):
    learned = Learned(shape(length=(2, 3), causal=False), resample="bicubic", antialias=antialias)
    at = grid(2, 3)
    assert torch.equal(learned(at, at, 6).embedding, learned.table)


def test_a_part_of_a_grid_is_looked_up_and_cannot_be_resampled(shape):
    built, some = shape(length=(2, 3), causal=False), grid(2, 3)[[0, 2, 5]]
    plain = Learned(built)
    assert torch.equal(plain(some, some, 6).embedding, plain.table[[0, 2, 5]])
    with pytest.raises(ZooError, match=r"Learned cannot tell which grid.* 3 positions do not fill the grid of 2 x 3"):
        Learned(built, resample="bicubic")(some, some, 6)


@pytest.mark.parametrize("antialias", [False, True])
def test_a_resampled_table_gets_the_gradients_of_its_picture(shape, antialias):
    learned = Learned(shape(dim=2, length=(2, 3), causal=False), std=1.0, resample="bicubic", antialias=antialias)
    learned, at = learned.double(), grid(3, 2)

    def embedding(table: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(learned, {"table": table}, (at, at, 6)).embedding

    assert torch.autograd.gradcheck(embedding, (learned.table,))


def test_under_autocast_a_table_is_resampled_in_float32(shape):
    learned, at = Learned(shape(length=(2, 3), causal=False), std=1.0, resample="bicubic"), grid(4, 4)
    plain = learned(at, at, 16).embedding
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(learned(at, at, 16).embedding, plain)
    assert learned.bfloat16()(at, at, 16).embedding.dtype == torch.float32


@pytest.mark.parametrize(
    ("length", "arguments", "sentence"),
    [
        ((2, 3), {"rows": 12}, r"rows from the grid, here 2 x 3, and cannot have 12.*resample bicubic"),
        ((8,), {"rows": 0}, r"at least 1 row, and got 0.*rows 8"),
        ((8,), {"resample": "bicubic"}, r"has 1 axis\. .*position\.rows.*zoo extend"),
        ((2, 2, 2), {"resample": "bicubic"}, r"has 3 axes\. "),
        ((8,), {"grid": [2, 4]}, r"cannot have a grid of \[2, 4\].*rows 8"),
        ((2, 3), {"grid": [12]}, r"a grid of 2 axes, and 12 is none.*position\.grid \[2,3\]"),
        ((2, 3), {"grid": []}, r"nothing is none"),
        ((2, 3), {"grid": [4, 0]}, r"4 x 0 is none"),
        ((2, 3), {"antialias": True}, r"antialias only what it resamples.*resample bicubic"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(shape, length, arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        Learned(shape(length=length), **arguments)
