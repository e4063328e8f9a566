"""Conversions: FoPE from RoPE by what RoPE does to the same vectors, DroPE by a decoder that never had positions."""

import math
from dataclasses import replace

import pytest
import torch
from zoo_positions.rope import RoPE, pRoPE
from zoo_positions.rope.conversions import DroPE
from zoo_positions.rope.conversions import FoPE as ToFoPE

from zoo import checkpoints
from zoo.checkpoints import folder
from zoo.data.tokenizer import Tokenizer
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.extend import plan
from zoo.extend.figures import figures, summary, table
from zoo.extend.source import read
from zoo.kernel import Eager
from zoo.position import NoPE
from zoo.vit import grid

SIZE = {"vocabulary": 257, "length": 64, "dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "std": 0.3}
PARTIAL = {"fraction": 0.5, "pairing": "interleaved", "base": 500.0}


def store(path, position="RoPE", own=None, **more):
    """A checkpoint with random weights, as a folder."""
    torch.manual_seed(5)
    place = {"class_path": position, "init_args": own or {}}
    kernel = {"class_path": "Eager", "init_args": {}}
    network = {"class_path": "zoo.decoder.Decoder", "init_args": {**SIZE, "position": place, "kernel": kernel, **more}}
    about = {"format": 1, "zoo": "0", "network": network, "tokenizer": Tokenizer("bytes").describe()}
    folder.write(path, about | {"plugins": {}}, checkpoints.build(network).state_dict(), "the old card")
    return path


def converted(path, method, to=128, **own):
    """A plan, the network that comes of it, with its weights, and all of these."""
    planned = plan(read(path), to, method, {name: str(value) for name, value in own.items()})
    weights = {name: each for name, each in checkpoints.read(path).weights.items() if name not in planned.dropped}
    weights |= planned.added
    network = checkpoints.build(planned.about["network"])
    network.load_state_dict(weights)
    return planned, network.eval(), weights


def logits(network, tokens=100):
    with torch.no_grad():
        return network(torch.arange(tokens)[None] * 7 % 257)


def column(*positions):
    return torch.tensor(positions, dtype=torch.float32).unsqueeze(-1)


def draw(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def rebuilt(conversion, node, geometry, seed=0):
    """The FoPE that a conversion makes of a freshly built encoding, and that encoding."""
    torch.manual_seed(seed)
    old = checkpoints.callable_of(node, "zoo.positions")(geometry)
    told = conversion.rewrite(node, geometry)
    new = checkpoints.callable_of(told, "zoo.positions")(geometry)
    with torch.no_grad():
        conversion.migrate(old, new)
    return old, new, told["init_args"]


def turned(encoding, at, extent, q, k):
    return encoding(at, at, extent).rotation(q, k)


def pairs(x, interleaved):
    """[..., pairs, 2] of what a rotation has for channels."""
    return x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)


# RoPE to FoPE, the lossless start.


@pytest.mark.parametrize(
    ("position", "own", "more", "asked"),
    [
        ("RoPE", {}, {}, {}),
        ("RoPE", PARTIAL, {}, {}),
        ("pRoPE", {"fraction": 0.5, "pairing": "interleaved"}, {}, {}),
        ("RoPE", {"base": 500.0}, {"kv_heads": 4}, {"dialect": "paper"}),
        ("RoPE", PARTIAL, {"kv_heads": 4}, {"dialect": "paper", "trainable": True}),
    ],
)
def test_without_clipping_logits_are_those_of_the_parent(tmp_path, position, own, more, asked):
    path = store(tmp_path / "a", position, own, **more)
    planned, network, _ = converted(path, "FoPE", clip="false", **asked)
    expected = logits(checkpoints.read(path).network())
    assert planned.about["network"]["init_args"]["position"]["class_path"] == "FoPE"
    assert (logits(network) - expected).abs().max() <= 1e-5
    assert expected.std() > 0.1  # it says something
    told = figures(planned)
    assert told["unchanged"]
    assert [row["ratio"] for row in told["waves"] if row["frequency"]["before"]] == [1.0] * sum(
        row["frequency"]["before"] > 0 for row in told["waves"]
    )


@pytest.mark.parametrize("own", [{}, PARTIAL, {"base": 500.0, "pairing": "interleaved"}])
@pytest.mark.parametrize(("dialect", "grouped"), [("production", 2), ("paper", 4)])
def test_with_clipping_kept_pairs_are_bit_equal_and_dropped_ones_unrotated(shape, own, dialect, grouped):
    geometry = shape(heads=4, kv_heads=grouped, head_dim=32, length=(64,))
    node = {"class_path": "RoPE", "init_args": own}
    rope, fope, told = rebuilt(ToFoPE(factor=4.0, dialect=dialect), node, geometry)
    rotated = int(own.get("fraction", 1) * 32)
    waves = [own.get("base", 1e4) ** (-2 * i / rotated) for i in range(rotated // 2)]
    kept = sum(wave * 64 > 2 * math.pi for wave in waves)
    assert 0 < kept < len(waves)
    assert (told["num_inv_freq"], told["floor"], fope.per_layer) == (kept, 64, dialect == "paper")
    q, k, at = draw(2, 4, 50, 32), draw(2, grouped, 50, 32), torch.arange(50).float()[:, None] * 5
    for mine, theirs, raw in zip(turned(fope, at, 256, q, k), turned(rope, at, 256, q, k), (q, k), strict=True):
        assert torch.equal(mine[..., rotated:], raw[..., rotated:])
        mine, theirs, raw = (pairs(x[..., :rotated], "pairing" in own) for x in (mine, theirs, raw))
        assert torch.equal(mine[..., :kept, :], theirs[..., :kept, :])
        assert torch.equal(mine[..., kept:, :], raw[..., kept:, :])
        assert not torch.equal(theirs[..., kept:, :], raw[..., kept:, :])


def test_on_a_grid_each_axis_is_clipped_by_itself(shape):
    geometry = shape(heads=2, head_dim=32, length=(8, 200), causal=False)
    node = {"class_path": "RoPE", "init_args": {"base": 100.0}}
    at = grid(8, 200)[::7]
    q = draw(1, 2, len(at), 32)
    rope, fope, told = rebuilt(ToFoPE(factor=2.0), node, geometry)
    kept = [sum(100.0 ** (-i / 8) * n > 2 * math.pi for i in range(8)) for n in (8, 200)]
    assert told["num_inv_freq"] == kept == [1, 7]
    assert told["floor"] == [8, 200]
    mine, theirs = (pairs(turned(each, at, 1600, q, q)[0], False) for each in (fope, rope))
    alike = [*range(kept[0]), *range(8, 8 + kept[1])]
    assert torch.equal(mine[..., alike, :], theirs[..., alike, :])
    rest = [pair for pair in range(16) if pair not in alike]
    assert torch.equal(mine[..., rest, :], pairs(q, False)[..., rest, :])
    rope, fope, _ = rebuilt(ToFoPE(factor=2.0, clip=False), node, geometry)
    for mine, theirs in zip(turned(fope, at, 1600, q, q), turned(rope, at, 1600, q, q), strict=True):
        assert torch.equal(mine, theirs)


def test_the_floor_is_the_length_of_first_training_whatever_the_target(shape):
    node = {"class_path": "RoPE", "init_args": {}}
    for factor in (1.0, 2.0, 64.0):
        assert rebuilt(ToFoPE(factor=factor), node, shape(head_dim=64, length=(512,)))[2]["num_inv_freq"] == 16
    assert rebuilt(ToFoPE(factor=2.0, floor=1024), node, shape(head_dim=64, length=(512,)))[2]["num_inv_freq"] == 18
    kept = pRoPE(shape(head_dim=64), fraction=0.25).kept
    node = {"class_path": "pRoPE", "init_args": {"fraction": 0.25}}
    assert rebuilt(ToFoPE(factor=2.0), node, shape(head_dim=64, length=(512,)))[2]["num_inv_freq"] == kept == 8


# The official start.


def test_the_official_start_is_the_authors_and_is_drawn_twice_alike(tmp_path):
    path = store(tmp_path / "a")
    (planned, network, _), (again, _, _) = (converted(path, "FoPE", start="official", gain=0.5) for _ in range(2))
    assert planned.added.keys() == {f"trunk.positions.0.{name}_coef" for name in ("sin", "cos")}
    for name, weight in planned.added.items():
        assert weight.shape == (2, 3, 3)  # 10^(-i / 2) > 2 pi / 64
        assert torch.equal(weight, again.added[name])
        assert weight[0].diagonal().min() > 0.5
        assert (weight != 0).all()
    position = network.trunk.position
    assert (position.padding, position.gain, position.init) == ("diagonal", 0.5, "eye_xavier_norm")
    q = draw(1, 2, 5, 16)
    out = pairs(turned(position, torch.arange(5.0)[:, None], 64, q, q)[0], False)
    x, y = pairs(q, False)[..., 3:, :].unbind(-1)
    assert torch.equal(out[..., 3:, 0], x - y)
    assert torch.equal(out[..., 3:, 1], x + y)
    assert not figures(planned)["unchanged"]
    assert not figures(converted(path, "FoPE", start="official", clip="false")[0])["unchanged"]


def test_the_official_start_in_the_paper_dialect_is_one_per_layer_and_anchored_as_the_authors_have_it(tmp_path):
    path = store(tmp_path / "a", dim=128, heads=2, kv_heads=2, length=1024)
    planned, _, _ = converted(path, "FoPE", 2048, start="official", dialect="paper")
    names = [f"trunk.positions.{layer}.{name}_coef" for layer in range(2) for name in ("sin", "cos")]
    assert sorted(planned.added) == sorted(names)
    assert len({weight[0, 0, 0].item() for weight in planned.added.values()}) == 4
    for weight in planned.added.values():
        assert weight.shape == (2, 18, 16)
        assert [(row, at) for row, at in (weight[0] > 0.5).nonzero().tolist()] == [(2 * j, j) for j in range(9)]


# Frequencies of YaRN.


def test_yarn_after_moves_the_kept_waves_as_the_authors_code_measures(shape):
    """At 64 channels and from 512 to 8192 positions waves stay up to number 3, and fall linearly to 1/16 at 16."""
    geometry, node = shape(head_dim=64, length=(512,)), {"class_path": "RoPE", "init_args": {}}
    rope, fope, told = rebuilt(ToFoPE(factor=16.0, yarn_after=True), node, geometry)
    expected = [1 - (1 - 1 / 16) * min(max((i - 3) / 13, 0), 1) for i in range(16)]
    torch.testing.assert_close(
        fope.frequencies[0] / rope.frequencies[0, :16], torch.tensor(expected), rtol=0, atol=1e-6
    )
    assert fope(column(1), column(1), 8192).rotation.factor == 1
    assert told["extension"] == {"class_path": "YaRN", "init_args": {"factor": 16.0, "attention": 1.0}}
    assert fope.sin_coef.shape == rebuilt(ToFoPE(factor=16.0), node, geometry)[1].sin_coef.shape


def test_a_fope_checkpoint_is_extended_by_methods_of_waves(tmp_path):
    path = store(tmp_path / "a", "FoPE", {"gain": 0.4})
    planned, network, _ = converted(path, "YaRN", 256)
    arguments = planned.about["network"]["init_args"]["position"]["init_args"]
    assert arguments == {"gain": 0.4, "extension": {"class_path": "YaRN", "init_args": {"factor": 4.0}}}
    assert not planned.added
    assert network.trunk.position.factor > 1
    told = figures(planned)
    assert told["waves"][0]["ratio"] == 1
    assert told["waves"][-1]["ratio"] < 1
    assert logits(network).isfinite().all()


# FoPE to FoPE.


def grown(shape, size, start="lossless", conversion=None, **own):
    geometry = shape(heads=2, head_dim=size, length=(512,))
    node = {"class_path": "FoPE", "init_args": own}
    return rebuilt(conversion or ToFoPE(factor=2.0, start=start), node, geometry)


def test_expanding_keeps_the_trained_block_and_its_series(shape):
    old, new, told = grown(shape, 64, gain=0.5)
    assert told == {"gain": 0.5, "floor": 1024, "num_inv_freq": 18}
    at = column(0, 1, 100, 900)
    for name in ("sin_coef", "cos_coef"):
        before, after = getattr(old, name), getattr(new, name)
        assert torch.equal(after[:, :16, :16], before)
        assert torch.equal(after[:, 16:, 16:], torch.eye(2).expand(2, 2, 2))
        assert not after[:, 16:, :16].any()
        assert not after[:, :16, 16:].any()
    one, two = (each(at, at, 1024).rotation for each in (old, new))
    for part in ("cos", "sin"):
        series, before = getattr(two, part), getattr(one, part)
        torch.testing.assert_close(series[..., :16], before[..., :16], rtol=0, atol=1e-6)
        assert torch.equal(series[..., 18:], before[..., 18:])
    waves = 10000.0 ** (-torch.arange(16, 18) / 32)
    torch.testing.assert_close(two.cos[0, 1, :, 16:18], (at * waves).cos(), rtol=0, atol=1e-5)


def test_expanding_officially_draws_what_is_new(shape):
    old, new, _ = grown(shape, 128, "official", gain=0.5)
    assert new.sin_coef.shape == (2, 36, 36)
    fresh = new.sin_coef[:, :31, 31:]
    assert torch.equal(new.sin_coef[:, :31, :31], old.sin_coef)
    assert fresh.std() == pytest.approx(0.5 * math.sqrt(2 / (36 * (36 + 2))), rel=0.2)
    assert new.sin_coef[0, 31:, 31:].diagonal().min() > 0.5
    eye, clean, _ = grown(shape, 64, "official", init="eye")
    assert eye.init == "eye"
    assert (clean.sin_coef[:, 16:] != 0).all()  # official means noise


@pytest.mark.parametrize(
    ("size", "before", "after", "ones"),
    [(64, (16, 16), (18, 16), [(16, 8)]), (128, (31, 31), (36, 32), [(32, 16), (34, 17)])],
)
def test_expanding_the_paper_dialect(shape, size, before, after, ones):
    """The sizes and the anchors of the authors' own expansion from 512 to 1024."""
    old, new, _ = grown(shape, size, "official", dialect="paper")
    assert (old.sin_coef.shape[1:], new.sin_coef.shape[1:]) == (before, after)
    rows, columns = before
    assert torch.equal(new.cos_coef[:, :rows, :columns], old.cos_coef)
    assert [(at[0] + rows, at[1]) for at in (new.cos_coef[0, rows:] > 0.5).nonzero().tolist()] == ones
    _, new, _ = grown(shape, size, "lossless", dialect="paper")
    assert not new.cos_coef[:, rows:, :columns].any()
    expected = torch.zeros(after[0], after[1] - columns)
    for series in range(columns, after[1]):
        expected[series, series - columns] = 1
    assert torch.equal(new.cos_coef[0, :, columns:], expected)


def test_constants_of_the_paper_dialect_become_waves(shape):
    """What the lossless start of the paper dialect gives, expanded in its turn."""
    geometry = shape(heads=2, head_dim=64, length=(512,))
    first = ToFoPE(factor=1.0, dialect="paper").rewrite({"class_path": "RoPE", "init_args": {}}, geometry)
    old, new, told = rebuilt(ToFoPE(factor=2.0), first, geometry)
    assert (first["init_args"]["num_inv_freq"], told["num_inv_freq"]) == (16, 18)
    assert new.sin_coef.shape == old.sin_coef.shape == (2, 32, 32)
    rope, at = RoPE(geometry), column(0, 7, 900)
    mine, theirs = new(at, at, 1024).rotation, rope(at, at, 1024).rotation
    assert torch.equal(mine.sin[0, 0, :, :18], theirs.sin[0, 0, :, :18])
    assert not mine.sin[..., 18:].any()
    noisy = {**first, "init_args": first["init_args"] | {"init": "eye_xavier_norm"}}
    old, new, _ = rebuilt(ToFoPE(factor=2.0), noisy, geometry)
    same = [*range(16), *range(18, 32)]
    assert torch.equal(new.sin_coef[:, same][:, :, same], old.sin_coef[:, same][:, :, same])
    assert torch.equal(new.sin_coef[0, 16:18], torch.eye(32)[16:18])


def test_an_expanded_checkpoint_names_what_it_reads(tmp_path):
    path = store(tmp_path / "a", "FoPE", {"trainable": True}, dim=256)  # 64 channels a head
    planned, network, weights = converted(path, "FoPE", 256)
    assert weights["trunk.positions.0.sin_coef"].shape == (2, 13, 13)
    told = planned.about["network"]["init_args"]["position"]["init_args"]
    assert {"floor": 256, "num_inv_freq": len(network.trunk.position.frequencies[0])}.items() <= told.items()
    assert network.trunk.position.sin_coef.requires_grad
    text = table(figures(planned))
    rows = [line.split() for line in text.splitlines() if line[:4].strip().isdigit()]
    assert len(rows) == 13
    assert rows[8][1] != "stands"
    assert rows[9][1] == "stands"
    assert rows[-1][1:3] == ["stands", "still"]  # until now
    assert float(rows[-1][4]) == pytest.approx(2 * math.pi * 10000 ** (12 / 32), abs=0.01)


# DroPE.


@pytest.mark.parametrize("position", ["RoPE", "pRoPE", "xPos", "FoPE"])
def test_drope_leaves_a_decoder_without_positions(tmp_path, position):
    path = store(tmp_path / "a", position, {"base": 500.0})
    planned, network, weights = converted(path, "DroPE", 256)
    byhand = Decoder(position=NoPE, kernel=Eager, **SIZE)
    byhand.load_state_dict(weights)
    assert torch.equal(logits(network), logits(byhand.eval()))
    assert not planned.added
    parent = checkpoints.read(path).weights
    assert all(torch.equal(weight, parent[name]) for name, weight in weights.items())
    assert planned.dropped == {name for name in parent if "_coef" in name}
    assert planned.about["extended"]["base"] == 500
    told = figures(planned)
    assert not told["unchanged"]
    assert "recalibrate by training on at the original length" in "\n".join(summary(told))


def test_drope_multiplies_logits_where_it_is_told_to(tmp_path):
    path = store(tmp_path / "a", "NoPE")
    planned, network, weights = converted(path, "DroPE", 256, temperature=0.5)
    scale = 1 + 0.5 * math.log(4)
    assert planned.about["network"]["init_args"]["position"] == {"class_path": "NoPE", "init_args": {"scale": scale}}
    width = SIZE["dim"] // SIZE["heads"]
    for name, weight in weights.items():  # the same, by the queries
        if name.endswith("qkv.weight"):
            weight[: SIZE["heads"] * width] *= scale
    byhand = Decoder(position=NoPE, kernel=Eager, **SIZE)
    byhand.load_state_dict(weights)
    torch.testing.assert_close(logits(network), logits(byhand.eval()), rtol=1e-4, atol=1e-4)
    plain = converted(path, "DroPE", 256)
    assert (logits(plain[1]) - logits(network)).abs().max() > 0.01
    assert (figures(plain[0])["unchanged"], figures(planned)["unchanged"]) == (True, False)


# What is refused.


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"gain": 0.3}, "has no noise"),
        ({"clip": False, "floor": 100}, "has no floor"),
        ({"floor": [10, 10]}, "FoPE takes one floor, or one for each of 1 axes"),
        ({"dialect": "paper"}, "--dialect production"),
        ({"floor": 6}, "none of them completes a turn within 6 positions.   Try:  --clip false"),
    ],
)
def test_what_contradicts_itself(shape, asked, sentence):
    with pytest.raises(ZooError) as error:
        ToFoPE(factor=2.0, **asked).rewrite({"class_path": "RoPE", "init_args": {}}, shape(heads=4, kv_heads=2))
    assert sentence in str(error.value)


def test_what_there_is_none_of(shape):
    geometry = shape(head_dim=64, length=(512,))
    with pytest.raises(ZooError, match="none already"):
        ToFoPE(factor=2.0).rewrite({"class_path": "pRoPE", "init_args": {"fraction": 0.0}}, geometry)
    node = {"class_path": "FoPE", "init_args": {}}
    with pytest.raises(ZooError, match="this model has the production one"):
        ToFoPE(factor=2.0, dialect="paper").rewrite(node, geometry)
    with pytest.raises(ZooError, match="has no wave to add: it keeps 16 of 32"):
        ToFoPE(factor=1.01).rewrite(node, geometry)
    assert ToFoPE(factor=1.01, yarn_after=True).rewrite(node, geometry)["init_args"]["num_inv_freq"] == 16
    more = {"class_path": "FoPE", "init_args": {"num_inv_freq": 25}}  # as many as were trained, whatever the floor
    assert ToFoPE(factor=2.0, yarn_after=True).rewrite(more, geometry)["init_args"]["num_inv_freq"] == 25
    assert ToFoPE(factor=1.01, clip=False).rewrite(node, geometry)["init_args"]["num_inv_freq"] == 32


def test_drope_needs_a_causal_model_and_numbers_that_make_sense(shape):
    with pytest.raises(ZooError, match="bag of tokens"):
        DroPE(factor=2.0).rewrite({"class_path": "RoPE", "init_args": {}}, replace(shape(), causal=False))
    for wrong in (-0.1, math.inf, math.nan):
        with pytest.raises(ZooError, match="logits"):
            DroPE(factor=2.0, temperature=wrong)
    for wrong in (0.0, -1.0, math.inf):
        with pytest.raises(ZooError, match="above 0"):
            NoPE(shape(), scale=wrong)


def test_no_conversion_is_chosen_for_anybody_and_none_is_stacked(tmp_path):
    with pytest.raises(ZooError, match=r"xPos takes no extension\..* What converts it: DroPE\."):
        plan(read(store(tmp_path / "a", "xPos")), 128)
    rope = read(store(tmp_path / "b"))
    assert plan(rope, 128).step["method"] == "YaRN"
    for method in ("Resonance+FoPE", "FoPE+YaRN"):
        with pytest.raises(ZooError, match="FoPE puts another encoding in the place of RoPE, alone"):
            plan(rope, 128, method)
    with pytest.raises(ZooError, match="FoPE takes no argument start_"):
        plan(rope, 128, "FoPE", {"start_": "official"})
