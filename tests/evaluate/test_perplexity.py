"""Perplexity against plain loops, positions against their total, and models whose reach is known."""

import math

import pytest
import torch
from torch.nn import functional

from zoo.errors import Unfit
from zoo.evaluate import perplexity as measures
from zoo.evaluate.setting import Setting


def setting(texts, *lengths, **numbers):
    return Setting(lengths=lengths, texts=texts, long=texts, **numbers)


def tokens(reader, text, count):
    return torch.tensor(reader.tokenizer.encode(text)[:count])


@torch.no_grad()
def sum_of_losses(reader, window, scored):
    """Of the last tokens of a window, in float64, from all its logits."""
    logits = reader.model(window[None, :-1])[0].double()
    losses = functional.cross_entropy(logits, window[1:], reduction="none")
    return float(losses[-scored:].sum())


@torch.no_grad()
def documented_loop(reader, text, size, stride):
    """The loop of transformers' page on perplexity, over one text: sum of weighted losses, and of weights."""
    end_before, total, weights = 0, 0.0, 0
    for begin in range(0, len(text), stride):
        end = min(begin + size, len(text))
        labels = text[begin:end].clone()
        labels[: len(labels) - (end - end_before)] = -100
        logits = reader.model(text[None, begin:end])[0].double()
        loss = functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100)  # the mean, as the model's `loss`
        valid = int((labels != -100).sum()) - 1
        total, weights, end_before = total + float(loss) * valid, weights + valid, end
        if end == len(text):
            break
    return total, weights


@pytest.mark.parametrize("stride", [8, 13, 24])
def test_hugging_face_convention(reading, text, stride):
    reader, texts = reading(), text(3, 100)
    found = measures.perplexity(reader, 24, setting(texts, 24, 80, windowing="huggingface", stride=stride))
    parts = [documented_loop(reader, tokens(reader, one, 80), 24, stride) for one in texts]
    wanted = math.exp(sum(total for total, _ in parts) / sum(weight for _, weight in parts))
    assert found["perplexity"] == pytest.approx(wanted, rel=1e-6)


def test_yarn_convention(reading, text):
    reader, texts = reading(), text(2, 100)
    found = measures.perplexity(reader, 16, setting(texts, 16, 60, windowing="yarn", stride=5))
    means = []
    for one in texts:
        ids, before = tokens(reader, one, 60), 0
        for begin in range(0, 60, 5):
            end = min(begin + 15, 60)
            window = torch.cat((torch.tensor([reader.tokenizer.end]), ids[begin:end]))
            means.append(sum_of_losses(reader, window, end - before) / (end - before))
            before = end
            if end == 60:
                break
    assert found["nats"] == pytest.approx(sum(means) / len(means), rel=1e-6)


def test_yarn_windows_begin_with_the_start_of_a_document_where_there_is_one(reading, text, monkeypatch):
    """Of a model whose BOS is not its EOS the end would be a token that never stood before a text."""
    reader, read = reading(vocabulary=300), []
    losses = reader.losses
    monkeypatch.setattr(reader, "losses", lambda tokens: read.append(tokens) or losses(tokens))
    for start, first in ((299, 299), (None, reader.tokenizer.end)):
        monkeypatch.setattr(reader.tokenizer, "start", start)
        read.clear()
        measures.perplexity(reader, 16, setting(text(2, 100), 16, 60, windowing="yarn", stride=5))
        assert {int(row[0]) for rows in read for row in rows} == {first}


@pytest.mark.parametrize(("windowing", "fits"), [("sliding", 24), ("huggingface", 24), ("yarn", 23)])
def test_windows_leave_nothing_between_them(reading, text, windowing, fits):
    texts = text(1, 100)
    with pytest.raises(Unfit, match=f"leave tokens out.*--stride {fits}"):
        measures.perplexity(reading(), 24, setting(texts, 24, 80, windowing=windowing, stride=fits + 1))
    assert measures.perplexity(reading(), 24, setting(texts, 24, 80, windowing=windowing, stride=fits))["windows"] == 4


def test_fixed_windows(reading, text):
    reader, texts = reading(), text(3, 100)
    found = measures.perplexity(reader, 20, setting(texts, 20, 70))
    parts = [
        sum_of_losses(reader, tokens(reader, one, 70)[start : start + 20], 19) for one in texts for start in (0, 20, 40)
    ]
    assert found["nats"] == pytest.approx(sum(parts) / (9 * 19), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(sum(parts) / (9 * 19)), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(sum(parts) / (9 * 19) / math.log(2), rel=1e-6)  # a token is a byte
    assert (found["tokens"], found["documents"], found["windows"]) == (9 * 19, 3, 9)
    assert found["low"] < found["perplexity"] < found["high"]


def test_sliding_by_a_window_is_fixed(reading, text):
    reader, texts = reading(), text(3, 100)
    fixed = measures.perplexity(reader, 20, setting(texts, 20, 80))
    sliding = measures.perplexity(reader, 20, setting(texts, 20, 80, windowing="sliding", stride=20))
    assert sliding == fixed


def test_sliding_scores_every_token_once(reading, text):
    reader, texts = reading(), text(2, 100)
    found = measures.perplexity(reader, 20, setting(texts, 20, 77, windowing="sliding", stride=7))
    total = 0.0
    for one in texts:
        ids = tokens(reader, one, 77)
        total += sum_of_losses(reader, ids[:20], 19)
        total += sum(sum_of_losses(reader, ids[s : s + 20], 7) for s in range(7, 57, 7))
        total += sum_of_losses(reader, ids[63:77], 1) if (77 - 20) % 7 else 0.0
    assert found["tokens"] == 2 * 76
    starts = [start for start, _, _ in measures.windows(77, 20, 7)]
    assert starts == list(range(0, starts[-1] + 1, 7))
    assert sum(targets for *_, targets in measures.windows(77, 20, 7)) == 77
    last = next(count for start, end, count in measures.windows(77, 20, 7) if end == 77)
    exact = 0.0
    for one in texts:
        ids = tokens(reader, one, 77)
        for start, end, count in measures.windows(77, 20, 7):
            exact += sum_of_losses(reader, ids[start:end], 19 if start == 0 else count)
    assert last == 77 - (starts[-2] + 20)
    assert found["nats"] == pytest.approx(exact / (2 * 76), rel=1e-6)


def test_one_document_has_no_interval(reading, text):
    found = measures.perplexity(reading(), 16, setting(text(1, 40), 16, 32))
    assert found["low"] is None
    assert found["high"] is None


def test_an_interval_covers_the_mean_of_the_population():
    """Of 400 draws of 12 documents, about 95 in 100 intervals hold the true mean."""
    random, held = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        means = (3 + torch.randn(12, generator=random)).tolist()
        mean, error = measures.by_document(means, [5.0] * 12, list(range(12)))
        held += abs(mean - 3) <= error
    assert 365 <= held <= 393


def test_buckets_sum_to_the_total(reading, text):
    reader, texts = reading(), text(3, 100)
    whole = measures.perplexity(reader, 90, setting(texts, 90))
    found = measures.position(reader, 90, setting(texts, 90))
    total = sum(each["nats"] * each["tokens"] for each in found["buckets"])
    assert total == pytest.approx(whole["nats"] * whole["tokens"], rel=1e-6)
    assert sum(each["tokens"] for each in found["buckets"]) == whole["tokens"] == found["tokens"]
    edges = [each["start"] for each in found["buckets"]] + [found["buckets"][-1]["stop"]]
    assert edges == [1, 2, 4, 8, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 90]


@pytest.mark.parametrize("window", [8, 48])
def test_a_window_gains_nothing_beyond_itself(reading, text, window):
    """One layer with a window: whatever came before is out of sight, so context is worth nothing."""
    cut, free = (reading(length=window + 16, layers=1, position="NoPE", window=given) for given in (window, None))
    numbers = setting(text(2, 300), 256, last=16)
    found = measures.gain(cut, 256, numbers)
    assert found["scored"] == 16 if window == 48 else 12
    assert abs(found["gain"]) < 1e-6
    assert abs(measures.gain(free, 256, numbers)["gain"]) > 1e-3


@pytest.mark.parametrize("distance", [1, 2, 7, 16, 33, 63])
def test_a_copier_reaches_as_far_as_it_copies(reading, copier, text, distance):
    reader = reading(copier(distance))
    texts = [(one * 200)[:160] for one in text(3, distance)]  # what comes is what stood there `distance` tokens ago
    found = measures.gain(reader, 160, setting(texts, 96, 160, last=16))
    assert found["reach"] == distance
    curve = {each["context"]: each["nats"] for each in found["contexts"]}
    assert curve[144] < 0.1


def test_gain_scores_the_same_last_tokens_at_every_length(reading, copier, text):
    reader, texts = reading(copier(63)), [(one * 3)[:160] for one in text(3, 63)]
    numbers = setting(texts, 48, 96, 160, last=16)

    def by_hand(size):
        return sum(sum_of_losses(reader, tokens(reader, one, 160)[-size:], 16) for one in texts) / (3 * 16)

    for length in (96, 160):
        found = measures.gain(reader, length, numbers)
        assert found["short"] == pytest.approx(by_hand(48), rel=1e-6)
        assert found["long"] == pytest.approx(by_hand(length), rel=1e-6, abs=1e-6)
        assert found["gain"] > 1  # it copies from beyond what it was trained on: that is worth something
        assert found["low"] < found["gain"] < found["high"]
    assert all(
        each["nats"] == pytest.approx(by_hand(each["context"] + 16), rel=1e-6, abs=1e-6) for each in found["contexts"]
    )


def test_gain_is_for_lengths_beyond_training(reading, text):
    reader = reading()
    with pytest.raises(Unfit, match="not beyond"):
        measures.gain(reader, 32, setting(text(2, 64), 32, 64))
    beyond = measures.gain(reader, 48, setting(text(2, 64), 32, 48, 64))
    assert "reach" not in beyond  # only at the longest
    assert beyond["gain"] == pytest.approx(beyond["short"] - beyond["long"], rel=1e-9)


def test_shifting_is_nothing_to_a_relative_encoding(reading, text):
    texts = text(2, 200)
    flat = measures.offset(reading(), 160, setting(texts, 64, 160))["offsets"]
    assert [each["offset"] for each in flat] == [0, 32, 128]
    assert max(each["nats"] for each in flat) - min(each["nats"] for each in flat) < 1e-4
    moved = measures.offset(reading(position="Sinusoidal"), 160, setting(texts, 64, 160))["offsets"]
    assert max(each["nats"] for each in moved) - min(each["nats"] for each in moved) > 1e-3


def test_positions_beyond_a_table_are_refused_one_by_one(reading, text):
    found = measures.offset(reading(position="Learned"), 32, setting(text(2, 200), 32, offsets=(0, 5)))["offsets"]
    assert "nats" in found[0]
    assert "zoo extend" in found[1]["refused"]
    asked = measures.offset(reading(position="Learned"), 32, setting(text(2, 200), 32, 64))["offsets"]
    assert ["refused" in each for each in asked] == [False, True]
    with pytest.raises(Unfit, match="zoo extend"):
        measures.offset(reading(position="Learned"), 32, setting(text(2, 200), 32, offsets=(5,)))
