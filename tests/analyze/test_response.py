"""Response: a correlation by loops, a wave that is known, a Fourier series that adds up; curves of biases; streams."""

import math

import pytest
import torch

from zoo.analyze.response import correlate, thin, transform
from zoo.analyze.run import analyze
from zoo.analyze.streams import Streams, power


def test_correlation_is_a_plain_loop():
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 7, 3, dtype=torch.float64)
    found = correlate(q, k, (7,))
    for offset in range(-6, 7):
        pairs = [(q[1, i] @ k[1, i - offset]).item() for i in range(7) if 0 <= i - offset < 7]
        assert found[1, offset + 6].item() == pytest.approx(sum(pairs) / len(pairs))


def test_correlation_on_a_grid_is_a_plain_loop():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 6, 3, dtype=torch.float64)
    found = correlate(q, k, (2, 3))
    for dy in (-1, 0, 1):
        for dx in (-2, 0, 1):
            pairs = [
                (q[0, y * 3 + x] @ k[0, (y - dy) * 3 + x - dx]).item()
                for y in range(2) for x in range(3) if 0 <= y - dy < 2 and 0 <= x - dx < 3
            ]  # fmt: skip
            assert found[0, dy + 1, dx + 2].item() == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize("cycles", [3, 10, 20])
def test_a_cosine_peaks_at_its_frequency(cycles):
    curve = 5 + 2 * torch.cos(2 * math.pi * cycles * torch.arange(64, dtype=torch.float64) / 64)
    found = transform(curve)
    assert found.argmax() + 1 == cycles
    assert found.max().item() == pytest.approx(2.0, rel=1e-6)
    assert found[(torch.arange(32) + 1 - cycles).abs() > 1].max() < 1e-9


def test_the_response_of_equal_tokens_is_the_rotation_s_series(text):
    """Every token the same: measured = positions alone = sum over waves of steady cos(w d + phase)."""
    subject = text("RoPE", length=48, base=50.0)
    subject.inputs.fill_(7)
    found = analyze(subject)
    entry, energy = found["response"]["layers"][0], found["spectrum"]["layers"][0]
    waves = [wave["frequency"] for wave in found["spectrum"]["encodings"][0]["axes"][0]]
    for head in range(4):
        series = [
            sum(
                a * math.cos(w * d + phase)
                for a, w, phase in zip(energy["steady"][head], waves, energy["phase"][head], strict=True)
            )
            for d in range(48)
        ]
        assert entry["measured"][head] == pytest.approx(series, abs=1e-3)
        assert entry["positions"][head] == pytest.approx(series, abs=1e-3)
        assert energy["energy"][head] == pytest.approx(energy["steady"][head], rel=1e-4)


def test_a_model_with_one_wave_responds_with_it(text):
    """The first pair of RoPE turns by 1 radian a token: a period of 2 pi."""
    subject = text("RoPE", length=128)
    subject.inputs.fill_(7)
    with torch.no_grad():
        rows = subject.trunk.blocks[0].attention.qkv.weight[:64].view(8, 8, 32)
        rows[:, [1, 2, 3, 5, 6, 7]] = 0.0
    found = analyze(subject)["response"]
    amplitude = torch.tensor(found["layers"][0]["amplitude"])
    for head in range(4):
        peak = found["frequencies"][int(amplitude[head].argmax())]
        assert peak == pytest.approx(1 / (2 * math.pi), abs=1 / 64)


def test_an_encoding_without_rotation_has_no_series(text):
    entry = analyze(text("ALiBi"))["response"]["layers"][0]
    assert entry["positions"] is None
    assert len(entry["measured"][0]) == 32


def test_thin():
    assert thin(5) == [0, 1, 2, 3, 4]
    few = thin(100_000)
    assert few[:3] == [0, 1, 2]
    assert few[-1] == 99_999
    assert few == sorted(set(few))
    assert len(few) <= 512


def test_alibi_is_a_line_with_its_slope(text):
    found = analyze(text("ALiBi", length=200))["bias"]
    assert found["queries"] == [128, 200]
    for layer in found["layers"]:
        assert layer["rung"] == "Slopes"
        assert not layer["content"]
        for part, query in enumerate(found["queries"]):
            for head, curve in enumerate(layer["values"][part]):
                assert curve == pytest.approx([-d / 4 ** (head + 1) for d in range(query)], abs=1e-4)


def test_a_map_of_the_logits_is_measured(text):
    """CoPE with vectors: the change of the logits, by its own formula."""
    subject = text("CoPE", batch=1, read=6, positions=4)
    assert set(torch.tensor(analyze(subject)["bias"]["layers"][0]["values"][0]).flatten().tolist()) == {0.0}
    with torch.no_grad():
        for position in subject.trunk.positions:
            position.vectors.normal_()
    block, position = subject.trunk.blocks[0], subject.trunk.positions[0]
    qkv = block.attention.qkv(block.norm1(subject.model.embedding(subject.inputs)))[0].unflatten(-1, (12, 8))
    q, k = qkv[5, 0], qkv[:, 4]
    gates = (k @ q / 8**0.5).sigmoid()
    for back in range(6):
        place = min(3.0, gates[5 - back :].sum().item())
        low = min(int(place), 2)
        low_, high = (q @ position.vectors[:, n] for n in (low, low + 1))
        expected = (low_ + (place - low) * (high - low_)).item()
        got = analyze(subject)["bias"]["layers"][0]["values"][0][0][back]
        assert got == pytest.approx(expected, abs=1e-4)


def test_a_bias_of_the_content_says_so(text):
    layer = analyze(text("FoX"))["bias"]["layers"][0]
    assert layer["content"]
    low, mean, high = (torch.tensor(layer[key][0]) for key in ("low", "values", "high"))
    assert (low <= mean + 1e-6).all()
    assert (mean <= high + 1e-6).all()
    assert (low < high)[:, 1:].any()


def test_a_table_over_offsets(images):
    subject = images("RelativeBias")
    found = analyze(subject)["bias"]
    for number, layer in enumerate(found["layers"]):
        table = subject.trunk.positions[number].table
        torch.testing.assert_close(torch.tensor(layer["values"]), table.detach(), rtol=1e-5, atol=1e-6)
    assert found["offsets"] == [[-2, 2], [-4, 4]]


def test_power_of_a_wave_is_in_its_band():
    """Three cycles in 32 tokens, added to a constant, are all in the band of 3 to 4."""
    x = 4 + torch.cos(2 * math.pi * 3 * torch.arange(32) / 32)[None, :, None].expand(1, -1, 5)
    streams = Streams((32,), 0)
    shares = streams.banded(power(x, (32,)))
    assert (shares / shares.sum()).tolist() == pytest.approx([0, 0, 1, 0, 0], abs=1e-9)
    assert streams.used.tolist() == [-1, 0, 1, 2, 3, 4]


def test_blocks_that_add_nothing_change_nothing(text):
    subject = text("RoPE", length=30)
    with torch.no_grad():
        subject.trunk.blocks[0].attention.out.weight.zero_()
        subject.trunk.blocks[0].feed_forward.down.weight.zero_()
    first, second = analyze(subject)["streams"]["layers"]
    assert first["change"] == pytest.approx(0.0, abs=1e-6)
    assert second["change"] > 1e-3
    assert sum(second["fed"]["share"]) == pytest.approx(1.0)
    assert sum(first["before"]["share"]) == pytest.approx(1.0)


@pytest.mark.parametrize("norm_at", ["before", "after"])
def test_streams_add_up(text, norm_at):
    """before + attended + fed = after, in either place of the norms."""
    from zoo.analyze.run import watch

    seen = []
    with torch.inference_mode():
        watch(text("RoPE", model={"norm_at": norm_at}), seen.append)
    for layer in seen:
        torch.testing.assert_close(layer.before + layer.attended + layer.fed, layer.after)
