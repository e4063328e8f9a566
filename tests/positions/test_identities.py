"""Encodings that hold one another as special cases, told by attention weights in float64.

The two sides are different code, so an error in either shows; both see the same content with the same weights.
"""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from zoo_positions.alibi import ALiBi, slopes
from zoo_positions.cope import CoPE
from zoo_positions.fire import EPSILON, FIRE
from zoo_positions.fox import FoX
from zoo_positions.kerple import KERPLE
from zoo_positions.learned import Learned
from zoo_positions.relative import RelativeBias
from zoo_positions.rope import FoPE, RoPE, RoPEMixed, pRoPE, xPos
from zoo_positions.sandwich import Sandwich
from zoo_positions.sinusoidal import Sinusoidal
from zoo_positions.t5 import T5, starts

from zoo import plugins
from zoo.errors import ZooError
from zoo.position import NoPE
from zoo.testing.probe import GEOMETRY, GRID, decoder, line, trunk, weights
from zoo.vit import grid

TOKENS = 24
BOTH_WAYS = replace(GEOMETRY, causal=False)
ROW = replace(BOTH_WAYS, length=(1, TOKENS))
"""A grid of one row, on which a distance is one of text."""


def attention(position, geometry=GEOMETRY, put=None):
    """The attention weights of a float64 model; `put` gives parameters of its encoding by name."""
    model = trunk(position, geometry).double()
    if put:
        model.position.load_state_dict(
            {name: torch.as_tensor(value, dtype=torch.float64) for name, value in put.items()}
        )
    positions = grid(*geometry.length) if geometry.axes == 2 else line(TOKENS)
    return weights(model, positions, len(positions))


def same(one, other, tolerance=1e-11):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def inverse_softplus(x):
    return torch.as_tensor(x, dtype=torch.float64).expm1().log()


def straight(p, a, reach):
    """Parameters of a FIRE whose function is the line that turns its input into KERPLE's logarithm."""
    whole = math.log1p(a * reach) + EPSILON
    return {
        "c": a,
        "multiplier": 1.0,
        "layers.0.weight": [[1.0]],
        "layers.0.bias": [0.0],
        "layers.1.weight": -whole * p.view(-1, 1),
        "layers.1.bias": torch.randn(len(p)),  # the same for all keys
    }


P = torch.tensor([0.3, 0.8, 1.4, 1.9], dtype=torch.float64)


@pytest.mark.parametrize("shared", [False, True])
def test_fire_on_a_line_is_kerples_logarithm(shared):
    fire = attention(partial(FIRE, width=1, threshold=TOKENS, shared=shared), put=straight(P, 0.3, TOKENS))
    same(fire, attention(KERPLE, put={"p": P, "a": [0.3] * 4}))


def test_fire_on_a_grid_of_one_row_is_kerples_logarithm_both_ways():
    fire = attention(partial(FIRE, width=1, threshold=TOKENS), ROW, put=straight(P, 0.3, TOKENS))
    same(fire, attention(KERPLE, BOTH_WAYS, put={"p": P, "a": [0.3] * 4}))


def test_fire_with_a_tiny_c_is_alibi():
    steep = torch.tensor(slopes(4), dtype=torch.float64)
    fire = attention(partial(FIRE, width=1, threshold=TOKENS), put=straight(steep / 1e-9, 1e-9, TOKENS))
    same(fire, attention(ALiBi), 1e-7)


def test_fire_with_ramps_between_whole_distances_is_t5():
    torch.manual_seed(3)
    table, c = torch.randn(8, 4, dtype=torch.float64), 0.1
    whole = math.log1p(c * TOKENS) + EPSILON

    def place(distance):
        return math.log1p(c * distance) / whole

    first, weight, start = [], [], []
    for bucket, begin in enumerate(starts(8, 16)[1:]):  # from one bucket's number to the next within one distance
        left, right = place(begin - 1), place(begin)
        rise = (table[bucket + 1] - table[bucket]) / (right - left)
        first += [left, right]
        weight += [rise, -rise]
        start += [1.0, 1.0]
    put = {
        "c": c,
        "multiplier": 1.0,
        "layers.0.weight": [[x] for x in start],
        "layers.0.bias": -torch.tensor(first, dtype=torch.float64),
        "layers.1.weight": torch.stack(weight, 1),
        "layers.1.bias": table[0],
    }
    fire = attention(partial(FIRE, width=len(first), threshold=TOKENS), put=put)
    same(fire, attention(partial(T5, buckets=8, distance=16), put={"weight": table}))


@pytest.mark.parametrize("geometry", [GEOMETRY, BOTH_WAYS], ids=["causal", "both ways"])
def test_kerples_first_power_is_alibi(geometry):
    put = {"p": torch.zeros(4), "a": inverse_softplus(slopes(4))}  # 2 sigmoid(0) = 1
    kerple = attention(partial(KERPLE, kind="power", parametrization="softplus"), geometry, put)
    same(kerple, attention(ALiBi, geometry))


def test_gates_that_ignore_the_content_are_alibi():
    steep = slopes(4)
    bias = -inverse_softplus(steep)  # log sigmoid(b) = -m
    full = attention(FoX, put={"linear.weight": torch.zeros(4, GEOMETRY.dim), "linear.bias": bias})
    same(full, attention(ALiBi))
    same(attention(partial(FoX, gate="bias"), put={"bias": bias}), attention(ALiBi))
    same(attention(partial(FoX, gate="fixed", shortest=1 / steep[0], longest=1 / steep[-1])), attention(ALiBi))


@pytest.mark.parametrize("geometry", [GEOMETRY, GRID], ids=["text", "grid"])
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_all_waves_are_rope_and_none_are_nope(geometry, pairing):
    rope = attention(partial(RoPE, pairing=pairing), geometry)
    same(attention(partial(pRoPE, fraction=1.0, pairing=pairing), geometry), rope, 0)
    same(attention(partial(RoPE, fraction=1.0, pairing=pairing), geometry), rope, 0)
    same(attention(partial(pRoPE, fraction=0.0, pairing=pairing), geometry), attention(NoPE, geometry))


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_xpos_that_never_shrinks_is_rope(pairing):
    rope = attention(partial(RoPE, pairing=pairing))
    same(attention(partial(xPos, span=1e15, pairing=pairing)), rope)


def test_cope_without_vectors_is_nope():
    same(attention(CoPE, put={"vectors": torch.zeros(GEOMETRY.head_dim, 64)}), attention(NoPE))


PAPER = {"dialect": "paper", "ignore_zero": False}


@pytest.mark.parametrize(
    ("options", "geometry", "waves"),
    [
        ({}, GEOMETRY, 8),
        ({}, GRID, 4),
        (PAPER, replace(GEOMETRY, kv_heads=4), 8),
        (PAPER, replace(GRID, kv_heads=4), 4),
    ],
    ids=["text", "grid", "paper's text", "paper's grid"],
)
def test_fope_without_noise_that_keeps_all_waves_is_rope(options, geometry, waves):
    fope = partial(FoPE, init="eye", num_inv_freq=waves, **options)
    same(attention(fope, geometry), attention(RoPE, geometry))


@pytest.mark.parametrize("kept", [1, 3, 6])
def test_fope_without_noise_that_keeps_some_waves_is_prope(kept):
    fope = partial(FoPE, init="eye", num_inv_freq=kept, padding="identity")
    same(attention(fope), attention(partial(pRoPE, fraction=kept / 8)))


def test_sandwich_is_the_overlap_of_sinusoidal_embeddings():
    model, wide = trunk(Sandwich).double(), Sinusoidal(replace(GEOMETRY, dim=128)).double()
    positions = line(TOKENS).double()
    waves = wide(positions, positions, TOKENS).embedding
    heads = torch.arange(1.0, 5.0, dtype=torch.float64).view(-1, 1, 1)
    bias = model.position(positions, positions, TOKENS).bias.block(slice(0, TOKENS), slice(0, TOKENS))[0]
    expected = 4 / (8 * heads) * (waves @ waves.mT)
    torch.testing.assert_close(bias.tril(), expected.tril(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("layout", ["interleaved", "concatenated", "axiswise"])
@pytest.mark.parametrize("geometry", [GEOMETRY, GRID], ids=["text", "grid"])
def test_a_table_of_sines_is_sinusoidal(geometry, layout):
    positions = grid(*geometry.length) if geometry.axes == 2 else line(geometry.length[0])
    fixed = partial(Sinusoidal, layout=layout)
    table = fixed(geometry).double()(positions, positions, len(positions)).embedding
    same(attention(Learned, geometry, {"table": table}), attention(fixed, geometry))


def test_alibi_on_a_grid_of_one_row_is_alibi():
    same(attention(ALiBi, ROW), attention(ALiBi, BOTH_WAYS))


def test_a_table_of_a_grid_of_one_row_is_a_table_of_text():
    table = torch.randn(TOKENS, GEOMETRY.dim, generator=torch.Generator().manual_seed(4))
    text = attention(partial(Learned, rows=TOKENS), BOTH_WAYS, {"table": table})
    same(attention(Learned, ROW, {"table": table}), text, 0)


def test_a_relative_bias_on_a_grid_of_one_row_is_t5_with_a_bucket_for_each_distance():
    bias = torch.randn(4, 2 * TOKENS - 1, generator=torch.Generator().manual_seed(5))  # from 1 - TOKENS on
    side = 2 * TOKENS
    weight = torch.zeros(2 * side, 4)
    weight[:TOKENS] = bias[:, TOKENS - 1 :].T  # keys before the query
    weight[side + 1 : side + TOKENS] = bias[:, : TOKENS - 1].flip(1).T
    t5 = attention(partial(T5, buckets=2 * side, distance=4 * side), BOTH_WAYS, {"weight": weight})
    same(attention(RelativeBias, ROW, {"table": bias.unsqueeze(1)}), t5, 0)


def test_mixed_frequencies_on_a_grid_of_one_row_are_rope():
    waves = RoPE(GEOMETRY).double().frequencies  # [1, pairs]
    learned = torch.randn(2, 2, 8, dtype=torch.float64)
    learned[1] = waves
    mixed = attention(partial(RoPEMixed, pairing="half"), ROW, {"frequencies": learned})
    same(mixed, attention(RoPE, BOTH_WAYS))


@pytest.mark.parametrize("name", plugins.names("zoo.positions"))
def test_told_positions_that_count_up_are_no_news(name):
    try:
        plugins.load("zoo.positions", name)(GEOMETRY)
    except ZooError as reason:
        pytest.skip(str(reason))
    model = decoder(plugins.load("zoo.positions", name))
    tokens = torch.arange(48).view(2, TOKENS) * 7 % 32
    with torch.no_grad():
        plain = model(tokens, extent=TOKENS)
        same(model(tokens, extent=TOKENS, positions=torch.arange(TOKENS)), plain, 0)
        same(model(tokens, extent=TOKENS, positions=torch.arange(TOKENS).expand(2, -1)), plain)


def test_what_is_not_equal_is_told_apart():
    """Each comparison of this file looks at weights like these."""
    rope = attention(RoPE)
    for other in (NoPE, partial(pRoPE, fraction=0.75), xPos, partial(RoPE, base=9000.0), partial(FoPE, init="eye")):
        assert (attention(other) - rope).abs().max() > 1e-6
    assert (attention(KERPLE) - attention(FIRE)).abs().max() > 1e-3
    assert (attention(ALiBi) - attention(partial(FoX, gate="fixed"))).abs().max() > 1e-3
