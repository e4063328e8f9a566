"""Extensions of RoPE against golden numbers that reference implementations gave, and against their own formulas.

A row holds w'_t / w_t, new frequencies over those of training, at some waves t, and the attention factor.
"""

import math
from functools import partial

import pytest
import torch
from zoo_positions.rope import PoPE, RoPE, pRoPE
from zoo_positions.rope.extensions import ABF, NTK, ByParts, DynamicNTK, Linear, Llama3, LongRoPE, Resonance, YaRN
from zoo_positions.rope.extensions.yarn import bounds

from zoo import plugins
from zoo.cache import Cache
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.extension import Series, WaveExtension

LLAMA2 = Series(base=1e4, width=128, length=4096), (0, 8, 16, 24, 32, 40, 48, 56, 63), 8.0
LLAMA3 = Series(base=5e5, width=128, length=8192), (0, 8, 16, 24, 32, 40, 48, 56, 63), 4.0
PYTHIA = Series(base=1e4, width=16, length=2048), tuple(range(8)), 16.0
SMALL = Series(base=1e4, width=64, length=512), (0, 4, 8, 12, 16, 20, 24, 28, 31), 8.0
FAR = {LLAMA2[0]: 32768, LLAMA3[0]: 32768, PYTHIA[0]: 32768, SMALL[0]: 4096}
"""The extent that a row was computed for."""

STATIC = {
    "Linear": Linear,
    "NTK": NTK,
    "ByParts": ByParts,
    "YaRN": YaRN,
    "YaRN rounded": partial(YaRN, truncate=True),
    "YaRN not rounded": partial(YaRN, truncate=False),
    "Llama3": Llama3,
    "ABF": ABF,
}
ALL = {**STATIC, "DynamicNTK": DynamicNTK, "LongRoPE": LongRoPE, "Resonance": lambda series, factor: Resonance(series)}


def rise(series: Series, factor: float) -> list[float]:
    """The list of divisors that the rows of LongRoPE were computed with."""
    return [min(factor, 1 + t / 2) for t in range(series.width // 2)]


def longrope(series: Series, factor: float) -> LongRoPE:
    return LongRoPE(series, factor=factor, long=rise(series, factor))


def just_enough(series: Series, factor: float) -> DynamicNTK:
    return DynamicNTK(series)


rounded, exact = partial(YaRN, truncate=True), partial(YaRN, truncate=False)
ROWS = [
    # Llama 2
    (LLAMA2, Linear, 1, "0.125 0.125 0.125 0.125 0.125 0.125 0.125 0.125 0.125"),
    (LLAMA2, NTK, 1, "1 0.767930 0.589717 0.452862 0.347766 0.267060 0.205084 0.157490 0.125"),
    (LLAMA2, DynamicNTK, 1, "1 0.598455 0.358149 0.214336 0.128271 0.076764 0.045940 0.027493 0.017544"),
    (LLAMA2, just_enough, 1, "1 0.767930 0.589717 0.452862 0.347766 0.267060 0.205084 0.157490 0.125"),
    (LLAMA2, YaRN, 1.20794415, "1 1 1 0.865385 0.596154 0.326923 0.125 0.125 0.125"),
    (LLAMA2, exact, 1.20794415, "1 1 1 0.888982 0.598313 0.307645 0.125 0.125 0.125"),
    (LLAMA2, ByParts, 1, "1 1 1 0.678645 0.280778 0.154961 0.125 0.125 0.125"),
    (LLAMA2, Llama3, 1, "1 1 1 1 1 0.434600 0.125 0.125 0.125"),
    (LLAMA2, longrope, 1.11803399, "1 0.2 0.125 0.125 0.125 0.125 0.125 0.125 0.125"),
    # Llama 3
    (LLAMA3, Linear, 1, "0.25 0.25 0.25 0.25 0.25 0.25 0.25 0.25 0.25"),
    (LLAMA3, NTK, 1, "1 0.838587 0.703228 0.589717 0.494529 0.414705 0.347766 0.291632 0.25"),
    (LLAMA3, DynamicNTK, 1, "1 0.722016 0.521307 0.376392 0.271761 0.196216 0.141671 0.102289 0.076923"),
    (LLAMA3, just_enough, 1, "1 0.838587 0.703228 0.589717 0.494529 0.414705 0.347766 0.291632 0.25"),
    (LLAMA3, YaRN, 1.13862944, "1 1 1 0.735294 0.382353 0.25 0.25 0.25 0.25"),
    (LLAMA3, exact, 1.13862944, "1 1 1 0.737375 0.382408 0.25 0.25 0.25 0.25"),
    (LLAMA3, partial(ByParts, attention=1.13862944), 1.13862944, "1 1 1 0.455842 0.270416 0.25 0.25 0.25 0.25"),
    (LLAMA3, Llama3, 1, "1 1 1 1 0.460962 0.25 0.25 0.25 0.25"),
    (LLAMA3, longrope, 1.07417231, "1 0.25 0.25 0.25 0.25 0.25 0.25 0.25 0.25"),
    # Pythia, of whose 64 channels 16 rotate
    (PYTHIA, Linear, 1, "0.0625 0.0625 0.0625 0.0625 0.0625 0.0625 0.0625 0.0625"),
    (PYTHIA, NTK, 1, "1 0.672950 0.452862 0.304753 0.205084 0.138011 0.092875 0.0625"),
    (PYTHIA, DynamicNTK, 1, "1 0.456785 0.208653 0.095309 0.043536 0.019887 0.009084 0.004149"),
    (PYTHIA, just_enough, 1, "1 0.672950 0.452862 0.304753 0.205084 0.138011 0.092875 0.0625"),
    (PYTHIA, rounded, 1.27725887, "1 1 1 0.765625 0.531250 0.296875 0.0625 0.0625"),
    (PYTHIA, YaRN, 1.27725887, "1 1 1 0.693552 0.382121 0.070691 0.0625 0.0625"),
    (PYTHIA, partial(ByParts, attention=1.27725887), 1.27725887, "1 1 1 0.343974 0.130831 0.063430 0.0625 0.0625"),
    (PYTHIA, Llama3, 1, "1 1 1 1 0.768592 0.072107 0.0625 0.0625"),
    (PYTHIA, longrope, 1.16774842, "1 0.666667 0.5 0.4 0.333333 0.285714 0.25 0.222222"),
    # small
    (SMALL, Linear, 1, "0.125 0.125 0.125 0.125 0.125 0.125 0.125 0.125 0.125"),
    (SMALL, NTK, 1, "1 0.764667 0.584715 0.447112 0.341892 0.261434 0.199910 0.152864 0.125"),
    (SMALL, DynamicNTK, 1, "1 0.593520 0.352266 0.209077 0.124091 0.073651 0.043713 0.025945 0.017544"),
    (SMALL, just_enough, 1, "1 0.764667 0.584715 0.447112 0.341892 0.261434 0.199910 0.152864 0.125"),
    (SMALL, YaRN, 1.20794415, "1 0.932692 0.663462 0.394231 0.125 0.125 0.125 0.125 0.125"),
    (SMALL, exact, 1.20794415, "1 0.945320 0.654651 0.363982 0.125 0.125 0.125 0.125 0.125"),
    (SMALL, ByParts, 1, "1 0.824112 0.326779 0.169508 0.125 0.125 0.125 0.125 0.125"),
    (SMALL, Llama3, 1, "1 1 1 0.584916 0.125 0.125 0.125 0.125 0.125"),
    (SMALL, longrope, 1.15470054, "1 0.333333 0.2 0.142857 0.125 0.125 0.125 0.125 0.125"),
    # Resonance, of the plain waves and of YaRN's
    (
        LLAMA2,
        lambda series, factor: Resonance(series),
        1,
        "1.047198 0.993459 0.997331 0.998451 1.000507 0.999959 1.000029 1.000009 1.000003",
    ),
    (
        LLAMA2,
        lambda series, factor: Resonance(series, extension=partial(YaRN, factor=factor)),
        1.20794415,
        "1.047198 0.993459 0.997331 0.863877 0.596128 0.326903 0.125001 0.125 0.125",
    ),
]


def plain(series: Series) -> torch.Tensor:
    return torch.tensor([series.base ** (-2 * t / series.width) for t in range(series.width // 2)], dtype=torch.float64)


@pytest.mark.parametrize(("model", "method", "attention", "row"), ROWS)
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_golden(model, method, attention, row, kind):
    series, waves, factor = model
    frequencies = plain(series).to(kind)
    found, gain = method(series, factor=factor).waves(frequencies, FAR[series])
    ratio = (found.double() / frequencies.double())[list(waves)]
    expected = torch.tensor([float(cell) for cell in row.split()], dtype=torch.float64)
    torch.testing.assert_close(ratio, expected, rtol=0, atol=1e-6)
    assert gain == pytest.approx(attention, abs=1e-8)


@pytest.mark.parametrize(
    ("model", "raw", "whole"),
    [
        (LLAMA2, (20.944482, 45.026881), (20, 46)),
        (LLAMA3, (18.081135, 34.984119), (18, 35)),
        (PYTHIA, (2.016000, 5.026300), (2, 6)),
        (SMALL, (3.247521, 15.288721), (3, 16)),
    ],
)
def test_where_the_ramp_of_yarn_begins_and_ends(model, raw, whole):
    assert bounds(model[0], 1.0, 32.0, False) == pytest.approx(raw, abs=1e-6)
    assert bounds(model[0], 1.0, 32.0, True) == whole


@pytest.mark.parametrize(("factor", "gain"), [(2, 1.0693), (4, 1.1386), (8, 1.2079), (16, 1.2773), (32, 1.3466)])
def test_attention_factors_of_yarn(factor, gain):
    extension = YaRN(LLAMA2[0], factor=factor)
    assert extension.attention == pytest.approx(gain, abs=5e-5)
    assert YaRN(LLAMA2[0], factor=factor, mscale=0.7, mscale_all_dim=0.7).attention == 1
    assert YaRN(LLAMA2[0], factor=factor, attention=0.9).attention == 0.9
    half = YaRN(LLAMA2[0], factor=factor, mscale=0.5, mscale_all_dim=2.0).attention
    assert half == pytest.approx((0.05 * math.log(factor) + 1) / (0.2 * math.log(factor) + 1))


@pytest.mark.parametrize(("length", "factor", "gain"), [(4096, 4, 1.0801), (4096, 32, 1.1902), (2048, 16, 1.1677)])
def test_attention_factors_of_longrope(length, factor, gain):
    series = Series(base=1e4, width=128, length=length)
    for extent in (length, 2 * length):
        assert LongRoPE(series, factor=factor).waves(plain(series), extent)[1] == pytest.approx(gain, abs=5e-5)
    assert LongRoPE(series, factor=factor, attention=1.0).attention == 1


@pytest.mark.parametrize(("model", "further", "base"), [(LLAMA2, 8, 1.8e5), (LLAMA3, 4, 6.3e6), (LLAMA3, 16, 8.0e7)])
def test_default_base_of_abf(model, further, base):
    series = model[0]
    extension = ABF(series, factor=further)
    assert extension.base == pytest.approx(base, rel=0.01)
    found, _ = extension.waves(plain(series), 1)
    expected = [extension.base ** (-2 * t / series.width) for t in range(series.width // 2)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_base_of_ones_own():
    found, gain = ABF(LLAMA3[0], factor=4, base=8e6).waves(plain(LLAMA3[0]), 1)
    torch.testing.assert_close(found[1:2], torch.tensor([8e6 ** (-2 / 128)], dtype=torch.float64), rtol=1e-12, atol=0)
    assert gain == 1
    with pytest.raises(ZooError, match=r"cannot read 4 times as far with the base 600000.*Give 2\.0445e\+06 or more"):
        ABF(LLAMA3[0], factor=4, base=6e5)


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_a_factor_of_1_is_the_identity(name, kind):
    for series in FAR:
        found, gain = STATIC[name](series, factor=1.0).waves(plain(series).to(kind), FAR[series])
        assert torch.equal(found, plain(series).to(kind))
        assert gain == 1


@pytest.mark.parametrize("factor", [1.0, 2.5, 8.0])
def test_dynamic_is_the_identity_within_the_trained_length_and_just_enough_at_1(factor):
    series = SMALL[0]
    extension = DynamicNTK(series, factor=factor)
    for extent in (1, 511, 512):
        assert torch.equal(extension.waves(plain(series), extent)[0], plain(series))
    for extent in (513, 1000, 5000):
        stretch = factor * extent / 512 - (factor - 1)
        found, _ = extension.waves(plain(series), extent)
        assert torch.equal(found, NTK(series, factor=stretch).waves(plain(series), 1)[0])
        assert float(plain(series)[-1] / found[-1]) == pytest.approx(stretch)


def test_longrope_switches_its_lists_by_the_extent():
    series = PYTHIA[0]
    short, long = [1.5] * 8, [2.0 + t for t in range(8)]
    extension = LongRoPE(series, factor=16, short=short, long=long)
    for extent, divisors in ((1, short), (2048, short), (2049, long), (32768, long)):
        found, _ = extension.waves(plain(series), extent)
        torch.testing.assert_close(plain(series) / found, torch.tensor(divisors, dtype=torch.float64))


def test_longrope_starts_where_its_search_would():
    series, count = SMALL[0], 32
    low, high = (64 * math.log(512 / (2 * math.pi * turns)) / (2 * math.log(1e4)) for turns in (32, 1))
    expected = [1 + 7 * min(max((t - low) / (high - low), 0), 1) for t in range(count)]
    assert LongRoPE(series, factor=8).long == pytest.approx(expected)
    assert LongRoPE(series, factor=8).short == [1.0] * count


def test_resonance_has_whole_periods():
    for series in FAR:
        for inner in (None, partial(NTK, factor=3.7), partial(DynamicNTK, factor=2.0)):
            extension = Resonance(series, extension=inner)
            assert extension.dynamic == (getattr(inner, "func", None) is DynamicNTK)
            periods = 2 * math.pi / extension.waves(plain(series), FAR[series])[0]
            torch.testing.assert_close(periods, periods.round(), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("name", ["NTK", "YaRN", "Llama3", "DynamicNTK", "LongRoPE", "ABF"])
def test_far_out_the_same_float32_frequencies_are_multiplied_in_float64(shape, name):
    rope = RoPE(shape(), extension=partial(ALL[name], factor=4.0))
    for extent in (131_072, 131_073):
        frequencies, gain = rope.request(extent)
        assert frequencies.dtype == torch.float32
        angle = (extent - 1) * (frequencies.double() if extent > 131_072 else frequencies)
        rotation = rope.turn(torch.full((1, 1), extent - 1.0), extent)
        assert torch.equal(rotation.cos.flatten(), angle.cos().float().flatten() * gain)


def test_few_waves_are_not_rounded_and_many_are():
    for width, cut in ((32, False), (34, True)):
        series = Series(base=1e4, width=width, length=1024)
        auto, told = YaRN(series, factor=4), YaRN(series, factor=4, truncate=cut)
        assert (auto.low, auto.high) == (told.low, told.high)
        assert float(auto.low).is_integer() == cut


def test_where_no_wave_turned_in_training_yarn_interpolates_all():
    series = Series(base=100.0, width=8, length=4)
    found, _ = YaRN(series, factor=2).waves(plain(series), 8)
    torch.testing.assert_close(found, plain(series) / 2)
    torch.testing.assert_close(ByParts(series, factor=2).waves(plain(series), 8)[0], found)


# In RoPE, and in a decoder.


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_in_rope_it_turns_the_rotated_channels_and_leaves_the_others(shape, name, fraction):
    extension, extent = partial(ALL[name], factor=4.0), 200
    rope = RoPE(shape(head_dim=16), fraction=fraction, extension=extension).double()
    series = Series(base=1e4, width=int(16 * fraction), length=64)
    waves, gain = extension(series).waves(plain(series), extent)
    at = torch.arange(190.0, 200.0).unsqueeze(-1)
    x = torch.randn(1, 2, 10, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = rope(at, at, extent).rotation
    found, width = rotation.apply(x), series.width
    first, second = x[..., :width].chunk(2, -1)
    turned = torch.complex(first, second) * torch.exp(1j * at.double() * waves) * gain
    torch.testing.assert_close(
        found[..., :width], torch.cat((turned.real, turned.imag), -1), rtol=0, atol=1e-6 if "Res" in name else 1e-9
    )
    assert torch.equal(found[..., width:], x[..., width:])
    assert rotation.factor == gain
    assert rotation.isometric == (gain == 1)
    torch.testing.assert_close(rotation.frequencies[0], waves)


@pytest.mark.parametrize("name", ALL)
def test_scores_depend_on_the_distance_only(shape, name):
    rope = RoPE(shape(), extension=partial(ALL[name], factor=4.0)).double()
    q, k = torch.randn(2, 1, 2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at, scores = torch.arange(6.0).unsqueeze(-1), []
    for shift in (0.0, 1.0, 250.0):
        turned_q, turned_k = rope(at + shift, at + shift, 256).rotation(q, k)
        scores.append(turned_q @ turned_k.mT)
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(scores[2], scores[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("length", [8, 64])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_prefill_is_token_by_token(name, length, fraction):
    torch.manual_seed(0)
    position = partial(RoPE, fraction=fraction, extension=partial(ALL[name], factor=4.0))
    model = Decoder(vocabulary=40, length=length, dim=32, layers=2, heads=2, position=position, std=0.3).double().eval()
    tokens = torch.randint(0, 40, (2, 24))
    with torch.no_grad():
        full, cache = model(tokens), Cache(24)
        steps = [model(tokens[:, :5], cache=cache), *(model(tokens[:, t : t + 1], cache=cache) for t in range(5, 24))]
    torch.testing.assert_close(torch.cat(steps, 1), full, rtol=0, atol=1e-8)
    untouched = Decoder(
        vocabulary=40, length=length, dim=32, layers=2, heads=2, position=partial(RoPE, fraction=fraction), std=0.3
    )
    untouched.double().eval().load_state_dict(model.state_dict())
    same = name == "DynamicNTK" and length == 64
    assert torch.allclose(untouched(tokens), full, atol=1e-12) == same


@pytest.mark.parametrize("name", ALL)
def test_a_model_in_half_precision_keeps_its_angles(shape, name):
    exact, half = (RoPE(shape(), extension=partial(ALL[name], factor=4.0)) for _ in range(2))
    half = half.bfloat16()
    at = torch.arange(32_000.0, 32_010.0).unsqueeze(-1)
    for extent in (64, 32_768):
        one, two = (rope(at, at, extent).rotation for rope in (exact, half))
        assert two.cos.dtype == torch.float32
        assert torch.equal(one.cos, two.cos)
        assert torch.equal(one.frequencies, two.frequencies)


@pytest.mark.parametrize("name", ["Linear", "NTK", "ByParts", "YaRN", "Llama3", "ABF"])
def test_a_grid_is_extended_along_each_axis_by_its_own_length(shape, name):
    lengths = (16, 12)
    rope = RoPE(shape(length=lengths, head_dim=16, causal=False), extension=partial(STATIC[name], factor=2.0))
    for axis, length in enumerate(lengths):
        series = Series(base=1e4, width=8, length=length, axes=2)
        waves, gain = STATIC[name](series, factor=2.0).waves(plain(series).float(), 1)
        assert torch.equal(rope.frequencies[axis], waves)
        assert rope.factor == gain


@pytest.mark.parametrize("name", ["Linear", "NTK", "YaRN"])
def test_prope_moves_the_waves_that_turn(shape, name):
    extension = partial(STATIC[name], factor=4.0)
    plain_rope = RoPE(shape(head_dim=16), extension=extension)
    some = pRoPE(shape(head_dim=16), fraction=0.5, extension=extension)
    assert torch.equal(some.frequencies[0, :4], plain_rope.frequencies[0, :4])
    assert torch.equal(some.frequencies[0, 4:], torch.zeros(4))
    assert some.factor == plain_rope.factor
    assert torch.equal(pRoPE(shape(head_dim=16), fraction=0.0, extension=extension).frequencies, torch.zeros(1, 8))


def test_pope_has_a_wave_for_each_channel(shape):
    pope = PoPE(shape(), extension=partial(YaRN, factor=4.0))
    series = Series(base=1e4, width=16, length=64)
    waves, gain = YaRN(series, factor=4.0).waves(plain(series).float(), 1)
    torch.testing.assert_close(pope.frequencies[0], waves)
    at = torch.zeros(1, 1)
    rotation = pope(at, at, 1).rotation
    q, k = torch.randn(2, 1, 2, 1, 8)
    logit = [(a * b).sum() for a, b in (rotation(q, k), PoPE(shape())(at, at, 1).rotation(q, k))]
    torch.testing.assert_close(logit[0], logit[1] * gain**2)


def grid_of(kind):
    return lambda **arguments: kind(Series(base=1e4, width=16, length=8, axes=2), **arguments)


@pytest.mark.parametrize(
    ("make", "arguments", "sentence"),
    [
        (Linear, {"factor": 0.5}, r"Linear reads `factor` times as far .* 1 or more; got 0\.5.*--model.position.ext"),
        (YaRN, {"factor": math.nan}, "1 or more; got nan"),
        (NTK, {"factor": math.inf}, "1 or more; got inf"),
        (DynamicNTK, {"factor": 0.99}, r"DynamicNTK reads .* got 0\.99"),
        (ByParts, {"factor": 2, "slow": 32, "fast": 1}, "0 < slow < fast; got slow 32 and fast 1"),
        (Llama3, {"factor": 2, "low": 4.0}, "0 < slow < fast"),
        (YaRN, {"factor": 2, "slow": 0.0}, "0 < slow < fast"),
        (YaRN, {"factor": 2, "attention": 0.0}, r"above 0; got 0\.0"),
        (YaRN, {"factor": 2, "attention": 1.0, "mscale": 2.0}, "an attention factor, or mscale and mscale_all_dim"),
        (YaRN, {"factor": 2, "mscale_all_dim": -1.0}, "both 0 or more"),
        (LongRoPE, {"factor": 2, "long": [1.0] * 7}, "a list of 8 numbers above 0.*got 7"),
        (LongRoPE, {"factor": 2, "short": [0.0] * 8}, "`short` is a list of 8 numbers above 0"),
        (grid_of(LongRoPE), {"factor": 2}, "on 2 axes that is a number of patches.*extension YaRN"),
        (grid_of(DynamicNTK), {"factor": 2}, "on 2 axes that is a number of patches.*extension NTK"),
    ],
)
def test_refusals(make, arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        make(PYTHIA[0], **arguments) if isinstance(make, type) else make(**arguments)


def test_too_few_waves_and_lengths_are_refused():
    for kind in (NTK, DynamicNTK):
        with pytest.raises(ZooError, match="here one wave is both"):
            kind(Series(base=1e4, width=2, length=64), factor=2.0)
    with pytest.raises(ZooError, match="trained lengths of 2 or more"):
        LongRoPE(Series(base=1e4, width=16, length=1), factor=2.0)
    with pytest.raises(ZooError, match="over 6 positions none did"):
        ABF(Series(base=1e4, width=16, length=6), factor=2.0)


def test_a_bad_base_is_said_before_any_logarithm(shape):
    with pytest.raises(ZooError, match="cannot have the base"):
        RoPE(shape(), base=0.0, extension=partial(YaRN, factor=2.0))


def test_axes_share_one_attention_factor(shape):
    class Uneven(Linear):
        def waves(self, frequencies, extent):
            return frequencies, float(self.series.length)

    RoPE(shape(length=(4, 4), causal=False), extension=partial(Uneven, factor=2.0))
    with pytest.raises(ZooError, match="attention factors that differ"):
        RoPE(shape(length=(4, 6), causal=False), extension=partial(Uneven, factor=2.0))


def test_everything_here_is_installed():
    installed = plugins.classes("zoo.extensions").items()
    assert {name.split()[0] for name in ALL} == {name for name, found in installed if issubclass(found, WaveExtension)}
