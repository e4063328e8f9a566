"""The reader against the model's own forward pass, all at once."""

import math

import pytest
import torch
from torch.nn import functional

from zoo import plugins
from zoo.decoder import Decoder
from zoo.errors import Unfit, ZooError
from zoo.evaluate import reader as module
from zoo.generate import generate
from zoo.matrix import GEOMETRY


def serves_text(name):
    try:
        plugins.load("zoo.positions", name)(GEOMETRY)
    except ZooError:
        return False
    return True


@pytest.mark.parametrize("local", [{}, {"window": 7, "sinks": 2}, {"window": 7, "nope_every": 2}], ids=str)
@pytest.mark.parametrize("name", [name for name in plugins.names("zoo.positions") if serves_text(name)])
def test_reading_by_rows_is_reading_at_once(name, local):
    torch.manual_seed(0)
    shape = {"vocabulary": 50, "length": 64, "dim": 32, "layers": 3, "heads": 4, "kv_heads": 2}
    try:
        model = Decoder(position=plugins.load("zoo.positions", name), **shape, **local).eval()
    except ZooError:
        assert local.get("nope_every")  # an embedding cannot be spared
        return
    tokens = torch.randint(50, (2, 50))
    with torch.no_grad():
        torch.testing.assert_close(model.read(tokens, rows=16), model.hidden(tokens), rtol=1e-5, atol=1e-5)
        at = torch.arange(10, 60)
        found = model.read(tokens, positions=at, extent=64, rows=16)
        wanted = model.hidden(tokens, positions=at, extent=64)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_positions_need_an_extent():
    model = Decoder(vocabulary=8, length=8, dim=8, layers=1, heads=1)
    with pytest.raises(ZooError, match="extent"):
        model.read(torch.zeros(1, 4, dtype=torch.long), positions=torch.arange(4))


def test_losses_are_cross_entropies(reading, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 16)
    reader = reading()
    tokens = torch.randint(256, (3, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = reader.model(tokens[:, :-1])
        wanted = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(3, -1)
        shifted = reader.model(tokens[:, :-1], positions=torch.arange(40, 99), extent=100)
        later = functional.cross_entropy(shifted.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(3, -1)
    torch.testing.assert_close(reader.losses(tokens), wanted, rtol=1e-5, atol=1e-5)
    found = reader.losses(tokens, positions=torch.arange(40, 100), extent=100)
    torch.testing.assert_close(found, later, rtol=1e-5, atol=1e-5)


def test_an_answer_is_greedy_generation(reading, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 5)  # the prompt is read in pieces
    reader = reading()
    prompt = reader.tokenizer.encode("the way of all")
    ids = generate(reader.model, torch.tensor([prompt]), 12, temperature=0.0)[0].tolist()
    assert reader.answer(prompt, 12) == reader.tokenizer.decode(ids)
    stopped = reader.answer(prompt, 12, stop=lambda text: len(text) >= 3)
    assert reader.tokenizer.decode(ids).startswith(stopped)
    assert len(stopped) == 3


def test_an_answer_ends_with_the_document(reading):
    reader = reading(head_bias=True, tied=False)
    with torch.no_grad():
        reader.model.head.bias[reader.tokenizer.end] = 1e4
    assert reader.answer([65], 5) == ""


def test_what_is_no_number_is_refused(reading):
    reader = reading(head_bias=True, tied=False)
    with torch.no_grad():
        reader.model.head.bias[7] = math.nan
    with pytest.raises(Unfit, match="losses that are no numbers"):
        reader.losses(torch.zeros(2, 9, dtype=torch.long))
    with pytest.raises(Unfit, match="no numbers after 4 tokens"):
        reader.answer([65] * 4, 3)


def test_what_does_not_fit_is_refused(reading):
    reader = reading(position="Learned")
    assert reader.refusal(32) is None
    assert "zoo extend" in reader.refusal(33)
    assert len(reader.answer([65] * 30, 2)) > 0
    for call in (lambda: reader.answer([65] * 30, 3), lambda: reader.losses(torch.zeros(1, 33, dtype=torch.long))):
        with pytest.raises(Unfit, match="33 tokens cannot be read"):
            call()
    with pytest.raises(Unfit, match="empty"):
        reader.answer([], 3)
