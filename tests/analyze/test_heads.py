"""Heads: attention that is known gives the numbers that follow; blocks of rows are the whole; nothing is changed."""

import math

import pytest
import torch

from zoo.analyze.heads import Heads
from zoo.analyze.run import analyze, places, watch
from zoo.analyze.watch import watched
from zoo.errors import Unfit
from zoo.kernel import attend
from zoo.vit import grid


def layers(subject):
    return analyze(subject)["heads"]["layers"]


def test_uniform_causal_attention(text, mute):
    tokens = 32
    subject = mute(text("NoPE", length=tokens))
    for layer in layers(subject):
        assert layer["distance"] == pytest.approx([sum(i / 2 for i in range(tokens)) / tokens] * 4, rel=1e-5)
        entropy = sum(math.log(i + 1) for i in range(tokens)) / tokens
        assert layer["entropy"] == pytest.approx([entropy] * 4, rel=1e-5)
        sink = sum(1 / (i + 1) for i in range(1, tokens)) / (tokens - 1)
        assert layer["sink"] == pytest.approx([sink] * 4, rel=1e-5)
        assert layer["redundancy"] == pytest.approx(1.0, abs=1e-6)
        assert layer["nothing"] == pytest.approx([0.0] * 4, abs=1e-6)


def test_a_window_of_one_token_is_the_token_itself(text):
    for layer in layers(text("RoPE", model={"window": 1})):
        assert layer["distance"] == [0.0] * 4
        assert layer["entropy"] == pytest.approx([0.0] * 4, abs=1e-6)
        assert layer["sink"] == [0.0] * 4


def test_attention_to_the_first_token_only(text, mute):
    """A bias that grows by 100 with each token back leaves the first."""
    subject = mute(text("ALiBi"))
    position = subject.trunk.position
    position.slopes = torch.full_like(position.slopes, -100.0)
    for layer in layers(subject):
        assert layer["sink"] == pytest.approx([1.0] * 4)
        assert layer["distance"] == pytest.approx([sum(range(32)) / 32] * 4)


def test_identical_heads_are_redundant_and_others_are_not(text):
    subject = text("RoPE")
    heads = analyze(subject)["heads"]
    assert 0 < heads["redundancy"] < 0.99
    for block in subject.trunk.blocks:
        with torch.no_grad():
            for part in block.attention.qkv.weight[:64].view(2, 4, 8, 32):
                part[1:] = part[0]
    again = analyze(subject)["heads"]
    assert again["redundancy"] == pytest.approx(1.0, abs=1e-6)
    assert again["layers"][0]["similarity"] == [pytest.approx([1.0] * 4, abs=1e-6)] * 4


@pytest.mark.parametrize("position", ["RoPE", "ALiBi", "FIRE", "CoPE", "FoX"])
def test_weights_are_those_of_the_definition_and_of_any_blocks(text, position):
    subject, seen = text(position, batch=1, model={"kv_heads": 2}), []
    with torch.inference_mode():
        watch(subject, seen.append)
        for layer in seen:
            call, rows = layer.softmax, slice(0, 32)
            eye = torch.eye(32).expand(1, 2, -1, -1)
            dense = attend(call.q, call.k, eye, call.bias, call.visible(rows), call.scale, rows)
            for room in (1, 1000, 10**9):
                blocks = torch.cat([w for _, w in call.blocks(room=room)], 2)
                torch.testing.assert_close(blocks, dense, rtol=1e-5, atol=1e-6)


def test_no_block_is_larger_than_its_room(text):
    seen = []
    with torch.inference_mode():
        watch(text("RoPE", batch=1), seen.append)
    for room in (1, 500, 1000):
        blocks = list(seen[0].softmax.blocks(room=room))
        assert all(w.numel() <= max(room, 4 * 32) for _, w in blocks)
        assert [rows.start for rows, _ in blocks] == [0, *(rows.stop for rows, _ in blocks[:-1])]


def test_numbers_are_those_of_a_plain_loop(text):
    subject, seen = text("RoPE", batch=1, read=12), []
    with torch.inference_mode():
        watch(subject, seen.append)
        w = torch.cat([w for _, w in seen[1].softmax.blocks()], 2)[0]
    found = layers(subject)[1]
    for head in range(4):
        distance = sum(w[head, i, j].item() * (i - j) for i in range(12) for j in range(i + 1)) / 12
        entropy = -sum(p * math.log(p) for p in w[head].flatten().tolist() if p > 0) / 12
        assert found["distance"][head] == pytest.approx(distance, rel=1e-4)
        assert found["entropy"][head] == pytest.approx(entropy, rel=1e-4)
        for other in range(4):
            alike = sum(
                torch.nn.functional.cosine_similarity(w[head, i], w[other, i], dim=0).item() for i in range(1, 12)
            )
            assert found["similarity"][head][other] == pytest.approx(alike / 11, rel=1e-4)


def test_distances_on_a_grid(images, mute):
    """Uniform attention: each of 2 prefix tokens and 15 patches gets 1/17."""
    subject = mute(images("NoPE"))
    away = [math.dist(a, b) for a in grid(3, 5).tolist() for b in grid(3, 5).tolist()]
    for layer in layers(subject):
        assert layer["distance"] == pytest.approx([sum(away) / 15 / 15] * 4, rel=1e-5)
        assert layer["entropy"] == pytest.approx([math.log(17)] * 4, rel=1e-5)
        assert layer["sink"] == pytest.approx([2 / 17] * 4, rel=1e-5)


def test_a_null_token_takes_its_share(text, images, mute):
    for layer in layers(mute(text("NoPE", kernel="OffByOne"))):
        assert layer["nothing"] == pytest.approx([sum(1 / (i + 2) for i in range(32)) / 32] * 4, rel=1e-4)
        assert layer["distance"] == pytest.approx([15.5 / 2] * 4, rel=1e-4)
    for layer in layers(mute(text("ALiBi", kernel="Sink", read=8))):
        assert all(0.05 < share < 0.5 for share in layer["nothing"])


def test_other_forms(text):
    assert analyze(text("RoPE", kernel="Cosine"))["heads"]["redundancy"] < 0.99
    for kernel in ("Sigmoid", "LinearAttention"):
        found = analyze(text("NoPE", kernel=kernel))
        assert found["heads"] is None
        assert "no softmax of dot products" in found["absent"]["heads"]
    with pytest.raises(Unfit, match="no softmax of dot products"):
        Heads(torch.zeros(3, 1), 0).value()


def test_watching_changes_nothing_and_leaves_nothing(text):
    for position in ("RoPE", "FIRE", "PoPE"):
        subject = text(position)
        before = subject.model(subject.inputs)
        with watched(subject.trunk, lambda layer: None):
            assert torch.equal(subject.model(subject.inputs), before)
        for module in subject.model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
        assert torch.equal(subject.model(subject.inputs), before)


def test_one_head_has_no_redundancy(text):
    found = analyze(text("RoPE", model={"heads": 1}))
    assert found["heads"]["redundancy"] is None
    assert found["heads"]["layers"][0]["similarity"] == [[pytest.approx(1.0)]]


def test_places(text, images):
    assert places(text("NoPE", read=3)).tolist() == [[0.0], [1.0], [2.0]]
    assert places(images("NoPE")).shape == (15, 2)
