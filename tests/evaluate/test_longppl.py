"""LongPPL with an evaluator whose key tokens are known: a copier needs exactly the tokens that it copies from."""

import math

import pytest
import torch

from zoo.data.tokenizer import train
from zoo.errors import Unfit
from zoo.evaluate.longppl import key_tokens, longppl, near, spans
from zoo.evaluate.setting import Setting


@pytest.fixture
def copies():
    """Documents that repeat themselves after 40 bytes, all of them different."""
    random = torch.Generator().manual_seed(0)
    return ["".join(chr(48 + n) for n in torch.randperm(40, generator=random).tolist()) * 4 for _ in range(2)]


def test_the_near_context_shrinks_with_the_text():
    assert near(131072) == near(16384) == (4096, 1024)
    assert near(128) == (32, 8)
    assert near(4) == (2, 1)


def test_key_tokens_are_those_that_are_copied_from_afar(reading, copier, copies):
    tokens = torch.tensor(list(copies[0].encode()[:128]))
    key = key_tokens(reading(copier(40)), tokens)
    wanted = torch.arange(128) >= 40  # before, there was nothing to copy; the near context of 32 never reaches
    assert torch.equal(key, wanted)
    assert not key_tokens(reading(copier(20)), tokens).any()  # copies what does not repeat
    assert not key_tokens(
        reading(copier(8)), torch.tensor(list((copies[0][:8] * 20).encode()[:128]))
    ).any()  # it is near


def test_longppl_is_the_perplexity_of_the_key_tokens(reading, copier, copies):
    setting = Setting(lengths=(128,), texts=copies, long=copies)
    evaluator, random = reading(copier(40)), reading()
    own = longppl(evaluator, 128, setting, evaluator)
    assert own["longppl"] < 1.1
    assert (own["key"], own["tokens"], own["near"]) == (2 * 88, 2 * 127, 32)
    other = longppl(random, 128, setting, evaluator)
    losses = [random.losses(torch.tensor([list(text.encode()[:128])]))[0, 39:] for text in copies]
    assert other["longppl"] == pytest.approx(math.exp(float(torch.cat(losses).double().mean())), rel=1e-5)


def test_another_tokenizer_counts_tokens_that_share_a_byte(reading, copier, copies, monkeypatch):
    setting = Setting(lengths=(128,), texts=copies, long=copies)
    evaluator, other = reading(copier(40)), reading(vocabulary=300)
    other.tokenizer = train(copies, 300)
    found = longppl(other, 128, setting, evaluator)
    count = 0
    for text in copies:
        ends = [end for end in spans(other, other.tokenizer.encode(text)) if end <= 128]
        count += sum(end > 40 for end in ends[1:])
    assert found["key"] == count


def test_an_evaluator_that_finds_nothing(reading, text):
    setting = Setting(lengths=(64,), texts=text(1, 64), long=text(1, 64))
    with pytest.raises(Unfit, match="finds no token"):
        longppl(reading(), 64, setting, reading())
