"""FoPE read further by the extensions of waves: what they move, and that a shift is felt where there is noise."""

import math

import pytest
import torch
from zoo_positions.rope import FoPE, RoPE

from zoo import plugins
from zoo.errors import ZooError
from zoo.vit import grid

EXTENSIONS = plugins.classes("zoo.extensions")
STATIC = ["ABF", "ByParts", "Linear", "Llama3", "LongRoPE", "NTK", "Resonance", "YaRN"]


def column(*positions):
    return torch.tensor(positions, dtype=torch.float32).unsqueeze(-1)


def draw(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def scores(encoding, offset, extent=512):
    """Products of a query and a key at some distances, float64, moved by `offset` together."""
    q, k = draw(1, 2, 6, 64).double(), draw(1, 2, 6, 64).double().flip(-1)
    at = column(0, 3, 10, 40, 41, 100).double() + offset
    q, k = encoding.double()(at, at, extent).rotation(q, k)
    return q @ k.mT


@pytest.mark.parametrize("method", STATIC)
def test_a_shift_changes_no_score_unless_there_is_noise(shape, method):
    kind = EXTENSIONS[method]
    extension = kind if method == "Resonance" else lambda series: kind(series, factor=4.0)
    geometry = shape(head_dim=64, length=(128,))
    clean = RoPE(geometry, extension=extension), FoPE(geometry, init="eye", extension=extension)
    torch.manual_seed(0)
    noisy = FoPE(geometry, gain=0.3, extension=extension)
    for encoding in clean:
        torch.testing.assert_close(scores(encoding, 317), scores(encoding, 0), rtol=0, atol=1e-9)
    assert (scores(noisy, 317) - scores(noisy, 0)).abs().max() > 0.01
    assert [encoding.relative for encoding in (*clean, noisy)] == [True, True, False]


def test_a_sine_unlike_its_cosine_feels_a_shift(shape):
    fope = FoPE(shape(head_dim=64, length=(128,)), init="eye", trainable=True)
    assert fope.relative
    with torch.no_grad():
        fope.sin_coef *= 1.5
    assert not fope.relative
    assert (scores(fope, 317) - scores(fope, 0)).abs().max() > 0.01


def test_an_extension_moves_kept_waves_only_and_its_factor_multiplies_every_pair(shape):
    geometry = shape(head_dim=64, length=(512,))
    rope = RoPE(geometry, extension=lambda series: EXTENSIONS["YaRN"](series, factor=4.0))
    fope = FoPE(
        geometry, init="eye", padding="identity", extension=lambda series: EXTENSIONS["YaRN"](series, factor=4.0)
    )
    at = column(0, 1, 500, 2000)
    mine, theirs = fope(at, at, 2048).rotation, rope(at, at, 2048).rotation
    assert mine.factor == theirs.factor == pytest.approx(0.1 * math.log(4) + 1)
    assert torch.equal(mine.frequencies, theirs.frequencies[:, :16])
    assert torch.equal(mine.cos[0, 0, :, :16], theirs.cos[0, 0, :, :16])
    assert torch.equal(mine.sin[0, 0, :, :16], theirs.sin[0, 0, :, :16])
    torch.testing.assert_close(mine.cos[..., 16:], torch.full_like(mine.cos[..., 16:], mine.factor))
    assert fope.pinned() == FoPE(geometry).pinned()


def test_a_dynamic_extension_follows_the_request(shape):
    geometry = shape(head_dim=64, length=(512,))
    rope = RoPE(geometry, extension=EXTENSIONS["DynamicNTK"])
    fope = FoPE(geometry, init="eye", extension=EXTENSIONS["DynamicNTK"])
    at = column(0, 1)
    for extent in (512, 1024, 4096):
        mine, theirs = (each(at, at, extent).rotation for each in (fope, rope))
        assert torch.equal(mine.frequencies, theirs.frequencies[:, :16])
        assert torch.equal(mine.sin[0, 0, :, :16], theirs.sin[0, 0, :, :16])
    with pytest.raises(ZooError, match="DynamicNTK chooses by the extent"):
        FoPE(shape(head_dim=64, length=(16, 16)), extension=EXTENSIONS["DynamicNTK"])


def test_on_a_grid_both_axes_are_extended(shape):
    geometry = shape(head_dim=64, length=(16, 32), causal=False)
    fope = FoPE(geometry, base=100.0, init="eye", extension=lambda series: EXTENSIONS["Linear"](series, factor=2.0))
    plain = FoPE(geometry, base=100.0, init="eye")
    at = grid(16, 32)[:40]
    for part in ("cos", "sin"):
        longer, shorter = (getattr(each(x, x, 2048).rotation, part) for each, x in ((fope, 2 * at), (plain, at)))
        assert torch.equal(longer, shorter)
