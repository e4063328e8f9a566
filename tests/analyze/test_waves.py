"""Waves: the formula's wavelengths, FoPE's own matrices found from its tables, energy where it was put."""

import math

import pytest
import torch

from zoo.analyze.run import analyze
from zoo.analyze.waves import describe, survey


@pytest.mark.parametrize(("name", "numbers"), [("RoPE", {}), ("RoPE", {"pairing": "interleaved"}), ("xPos", {})])
def test_wavelengths_of_rope(text, name, numbers):
    found = survey(text(name, length=64, model={"head_dim": 32}, base=500.0, **numbers).trunk.position, 64)
    assert found["pairs"] == [{"axis": 0, "wave": pair} for pair in range(16)]
    assert not found["mixed"]
    for pair, wave in enumerate(found["axes"][0]):
        length = 2 * math.pi * 500 ** (2 * pair / 32)
        assert wave["wavelength"] == pytest.approx(length, rel=1e-5)
        assert wave["rotations"] == pytest.approx(64 / length, rel=1e-5)
        assert wave["undertrained"] == (length > 64)


def test_a_wave_of_exactly_one_turn_is_trained():
    assert not describe(2 * math.pi / 64, 64)["undertrained"]
    assert describe(2 * math.pi / 65, 64)["undertrained"]
    assert describe(0.0, 64) == {"frequency": 0.0, "wavelength": None, "rotations": 0.0, "undertrained": False}


@pytest.mark.parametrize("dialect", ["production", "paper"])
def test_the_matrices_of_fope(text, dialect):
    subject = text("FoPE", length=128, model={"head_dim": 32}, dialect=dialect, gain=0.5)
    position = subject.trunk.positions[-1]
    found = survey(position, 128)
    assert found["mixed"]
    assert found["error"] < 1e-3
    waves, series = position.cos_coef.shape[1:]
    for name in ("cos", "sin"):
        matrix = torch.tensor(found["coefficients"][0][name])
        torch.testing.assert_close(
            matrix[:, :waves, :series], getattr(position, f"{name}_coef").detach().double(), rtol=0, atol=2e-3,
            check_dtype=False,
        )  # fmt: skip
        assert matrix[:, :waves, series:].abs().max() < 1e-3
        torch.testing.assert_close(matrix[:, waves, series:], torch.ones(4, 16 - series), rtol=0, atol=1e-3)
    assert [pair is not None for pair in found["pairs"]] == [True] * series + [False] * (16 - series)
    assert len(analyze(subject)["spectrum"]["encodings"]) == (1 if dialect == "production" else 2)


def test_fope_without_noise_is_not_mixed_where_pairs_stand_still(text):
    found = survey(text("FoPE", length=128, init="eye", padding="identity").trunk.position, 128)
    assert not found["mixed"]
    assert found["pairs"][-1] is None


def test_still_pairs(text):
    found = survey(text("pRoPE", fraction=0.5, model={"head_dim": 16}).trunk.position, 32)
    assert [pair and pair["wave"] for pair in found["pairs"]] == [0, 1, 2, 3, *[None] * 4]
    assert found["axes"][0][-1]["wavelength"] is None


def test_axes_of_a_grid(images):
    found = survey(images("RoPE", base=100.0).trunk.position, 15)
    assert [(pair["axis"], pair["wave"]) for pair in found["pairs"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found["trained"] == [3, 5]
    assert [wave["rotations"] for wave in found["axes"][1]] == pytest.approx([5 / (2 * math.pi), 0.5 / (2 * math.pi)])


def test_directions_of_mixed_pairs(images):
    subject = images("RoPEMixed")
    document = analyze(subject)["spectrum"]
    own = subject.trunk.positions[1].frequencies.permute(1, 2, 0)
    assert document["encodings"][1]["vectors"] == own.tolist()
    assert document["layers"][1]["encoding"] == 1
    assert all(0 <= share <= 1 for share in document["layers"][0]["undertrained"])


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_energy_is_where_it_was_put(text, pairing):
    subject = text("RoPE", pairing=pairing)
    kept = [2, 6] if pairing == "half" else [4, 5]  # pair 2 of 4
    for block in subject.trunk.blocks:
        with torch.no_grad():
            rows = block.attention.qkv.weight[:64].view(8, 8, 32)
            rows[:, [channel for channel in range(8) if channel not in kept]] = 0.0
    for layer in analyze(subject)["spectrum"]["layers"]:
        energy = torch.tensor(layer["energy"])
        assert (energy[:, 2] > 0.01).all()
        assert energy[:, [0, 1, 3]].abs().max() == 0
        assert layer["undertrained"] == pytest.approx([1.0] * 4)  # 628 tokens long


def test_energy_by_hand(text):
    """mean |q| mean |k| over the text, of the first layer, from the weights."""
    subject = text("RoPE", fraction=0.5, batch=2)
    block = subject.trunk.blocks[0]
    x = block.norm1(subject.model.embedding(subject.inputs))
    qkv = block.attention.qkv(x).unflatten(-1, (12, 8))
    q, k = qkv[:, :, 0], qkv[:, :, 4]  # of head 0
    layer = analyze(subject)["spectrum"]["layers"][0]
    for pair in range(2):
        one, other = (part[..., [pair, pair + 2]].norm(dim=-1).mean() for part in (q, k))
        assert layer["energy"][0][pair] == pytest.approx((one * other / 8**0.5).item(), rel=1e-4)
    one, other = (part[..., 4:].norm(dim=-1).mean() for part in (q, k))
    assert layer["still"][0] == pytest.approx((one * other / 8**0.5).item(), rel=1e-4)


def test_wide_rotations_have_a_wave_a_channel(text):
    document = analyze(text("PoPE"))["spectrum"]
    assert len(document["encodings"][0]["pairs"]) == 8
    assert "steady" not in document["layers"][0]


def test_nothing_turns(text):
    assert survey(text("ALiBi").trunk.position, 32) is None
    found = analyze(text("ALiBi"))
    assert found["spectrum"] is None
    assert "no waves" in found["absent"]["spectrum"]
