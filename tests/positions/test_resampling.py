"""Resampling: tables of more positions, against timm's numbers and loops by hand, and what it says of the result."""

import pytest
import torch
from zoo_positions.learned import Learned
from zoo_positions.relative import RelativeBias
from zoo_positions.resampling import Resampling

from zoo.errors import ZooError
from zoo.vit import grid

TIMM = {  # timm 1.0.31, resample_abs_pos_embed: the first channel of 4 x 6, from sin(0.7 n) as 3 x 4 x 2
    ("bicubic", False): """
        -0.038345 0.593856 1.011521 0.521159 -0.371757 -1.012476 -0.470549 0.257079 0.94347 0.811514 -0.002766
        -0.732687 -0.932089 -0.267775 0.601264 0.990354 0.498414 -0.159141 -1.090351 -0.602462 0.231518 0.928795
        0.770602 0.294827""",
    ("bicubic", True): """
        -0.030815 0.530142 0.989049 0.472476 -0.371392 -0.977291 -0.449829 0.201035 0.886224 0.758185 -0.02242
        -0.684423 -0.884799 -0.269357 0.548011 0.949917 0.432061 -0.148416 -1.063037 -0.586138 0.18644 0.927473
        0.707131 0.294702""",
    ("linear", False): """
        0.0 0.492725 0.877039 0.443398 -0.268294 -0.871576 -0.394542 0.192809 0.760091 0.679814 0.051927 -0.55589
        -0.761733 -0.169254 0.503621 0.825206 0.395111 -0.11538 -0.979178 -0.472777 0.193121 0.83111 0.646863
        0.303118""",
}
TIMM["linear", True] = TIMM["linear", False]  # the same where nothing is skipped


def node(name="Learned", **own):
    return {"class_path": name, "init_args": own}


def become(kind, geometry, method, **own):
    """An encoding before and after a conversion, as `zoo extend` builds them, and the description of the second."""
    told = method.rewrite(node(kind.__name__, **own), geometry)
    old, new = kind(geometry, **own), kind(geometry, **told["init_args"])
    with torch.no_grad():
        torch.nn.init.normal_(old.table)
    method.migrate(old, new)
    return old, new, told["init_args"]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bicubic", "linear"])
def test_a_table_becomes_the_one_that_timm_makes_of_it(shape, mode, antialias):
    geometry = shape(dim=2, length=(3, 4), prefix=1, causal=False)
    method = Resampling(factor=1.5, mode=mode, antialias=antialias)
    old = Learned(geometry)
    with torch.no_grad():
        old.table.copy_((torch.arange(24).double() * 0.7).sin().view(12, 2))
    new = Learned(geometry, grid=[4, 6])
    method.migrate(old, new)
    expected = torch.tensor([float(word) for word in TIMM[mode, antialias].split()])
    torch.testing.assert_close(new.table[:, 0].detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bicubic", "linear"])
@pytest.mark.parametrize("kind", [Learned, RelativeBias])
def test_what_is_stored_is_what_is_read_in_flight(shape, kind, mode, antialias):
    """And the child reads other grids as pictures of its own table."""
    geometry, at = shape(heads=2, length=(4, 6), prefix=2, causal=False), grid(6, 9)
    old, new, own = become(kind, geometry, Resampling(factor=1.5, mode=mode, antialias=antialias))
    assert own == {"grid": [6, 9], "resample": mode, "antialias": antialias}
    flying = kind(geometry, resample=mode, antialias=antialias)
    flying.load_state_dict(old.state_dict())
    for one, other in zip(told(new, at), told(flying, at), strict=True):
        assert torch.equal(one, other)
    back = kind(shape(heads=2, length=(6, 9), prefix=2, causal=False), resample=mode, antialias=antialias)
    back.load_state_dict(new.state_dict())
    for one, other in zip(told(new, grid(4, 6)), told(back, grid(4, 6)), strict=True):
        assert torch.equal(one, other)


def told(encoding, at):
    """What an encoding tells, as tensors."""
    said = encoding(at, at, len(at))
    if said.embedding is not None:
        return [said.embedding]
    tokens = slice(0, said.bias.prefix + said.bias.queries)
    return [said.bias.block(tokens, tokens)]


@pytest.mark.parametrize(("length", "factor"), [(5, 2.0), (8, 4.0), (7, 1.5)])
def test_a_text_is_drawn_out_between_its_ends(shape, length, factor):
    old, new, own = become(Learned, shape(length=(length,)), Resampling(factor=factor))
    rows = round(length * factor)
    assert own == {"rows": rows}
    assert new.table.shape == (rows, 16)
    trained = old.table.tolist()
    for row in range(rows):
        place = row * (length - 1) / (rows - 1)
        low = min(int(place), length - 2)
        for channel in range(16):
            expected = trained[low][channel] * (low + 1 - place) + trained[low + 1][channel] * (place - low)
            assert new.table[row, channel].item() == pytest.approx(expected, abs=1e-5)
    smooth = become(Learned, shape(length=(length,)), Resampling(factor=factor, mode="bicubic"))
    assert torch.allclose(smooth[1].table[[0, -1]], smooth[0].table[[0, -1]], atol=1e-6)


def test_other_settings_stay(shape):
    own = Resampling(factor=2.0).rewrite(node(std=0.5), shape(length=(4,)))
    assert own == node(std=0.5, rows=8)
    own = Resampling(factor=2.0).rewrite(node("RelativeBias", std=0.5), shape(length=(2, 3)))
    assert own == node("RelativeBias", std=0.5, grid=[4, 6], resample="bicubic", antialias=False)


def test_a_table_that_was_resampled_before_is_drawn_out_again(shape):
    """The factor counts from first training."""
    geometry = shape(length=(4, 4), causal=False)
    old, new, own = become(Learned, geometry, Resampling(factor=2.0), grid=[6, 6])
    assert own["grid"] == [8, 8]
    assert torch.equal(new.table, old.picture((8, 8), "bicubic").reshape(64, 16))
    assert become(Learned, shape(length=(4,)), Resampling(factor=3.0), rows=8)[2] == {"rows": 12}


@pytest.mark.parametrize("factor", [0.5, 0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_below_one_is_refused(factor):
    with pytest.raises(ZooError, match="1 or more; got"):
        Resampling(factor=factor)


def test_what_makes_no_sense_is_refused(shape):
    with pytest.raises(ZooError, match=r"a text skips none"):
        Resampling(factor=2.0, antialias=True).rewrite(node(), shape(length=(4,)))
    with pytest.raises(ZooError, match=r"a table of 16 rows, and reads 8 positions as it is.*--to 32"):
        Resampling(factor=2.0).rewrite(node(rows=16), shape(length=(4,)))
