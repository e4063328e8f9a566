"""Tokenizers: against published numbers, against the trainer's own encoder, and against every unfit file."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import requests
import tiktoken
import tiktoken.registry
from hypothesis import given, settings
from hypothesis import strategies as some

from zoo.data import tokenizer
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ZooError

STRANGE = [
    "",
    "a",
    " ",
    "\n\n\t",
    "Gödel ☃ 日本語 🎉",
    "<|endoftext|>",
    "it's  we'll\r\n  x" * 50,
    "\x00\x7f",
    "a" * 5000,
]


@pytest.fixture(scope="module")
def source() -> str:
    return Path(json.__file__).read_text() + Path(json.decoder.__file__).read_text()


@pytest.fixture(scope="module")
def trained(source: str) -> Tokenizer:
    return tokenizer.train([source], 600)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """tiktoken as in a new process, with an empty cache and no network."""
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))

    def unreachable(*_: object, **__: object) -> None:
        raise requests.ConnectionError("no network in this test")

    monkeypatch.setattr(requests, "get", unreachable)
    return tmp_path


@pytest.fixture
def published(fresh: Path) -> Path:
    """The published files, in a copy of the cache."""
    if "ZOO_SHARED" not in os.environ:
        pytest.skip("ZOO_SHARED is not set: the published BPE files are not at hand")
    return Path(
        shutil.copytree(f"{os.environ['ZOO_SHARED']}/data/tokenizers/tiktoken_cache", fresh, dirs_exist_ok=True)
    )


def test_published_numbers(published: Path) -> None:
    gpt2 = tokenizer.load("gpt2")
    assert gpt2.encode("Hello world! RoPE θ=10000.")[:7] == [15496, 995, 0, 5564, 11401, 7377, 116]
    assert (gpt2.end, gpt2.vocabulary, gpt2.name) == (50256, 50257, "gpt2")
    assert tokenizer.load("cl100k_base").encode("Hello world! RoPE θ=10000.")[:4] == [9906, 1917, 0, 12093]
    for text in STRANGE:
        assert gpt2.decode(gpt2.encode(text)) == text
    assert gpt2.end not in gpt2.encode("<|endoftext|>")
    assert gpt2.describe() == {"name": "gpt2"}
    assert Tokenizer.restore(gpt2.describe()).digest == gpt2.digest
    assert pickle.loads(pickle.dumps(gpt2)).encode("again") == gpt2.encode("again")


def test_a_file_of_ranks_is_the_encoding(published: Path, tmp_path: Path) -> None:
    gpt2 = tiktoken.get_encoding("gpt2")
    path = tmp_path / "mine.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % r for t, r in gpt2._mergeable_ranks.items()))
    mine = tokenizer.load(str(path))
    assert (mine.name, mine.end, mine.vocabulary) == ("mine", 50256, 50257)
    for text in STRANGE:
        assert mine.encode(text) == gpt2.encode_ordinary(text)


def test_a_damaged_cache_is_told_and_left_alone(published: Path) -> None:
    path = published / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    with pytest.raises(ZooError, match="cache is damaged"):
        tokenizer.load("gpt2")
    assert path.read_bytes() == b"damaged"


def test_without_cache_and_network(fresh: Path) -> None:
    with pytest.raises(ZooError, match="TIKTOKEN_CACHE_DIR") as told:
        tokenizer.load("gpt2")
    assert "--data.tokenizer bytes" in str(told.value)
    assert not list(fresh.iterdir())


def test_what_is_fetched_is_checked_and_kept(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = requests.Response()
    answer.status_code, answer._content = 200, b"a login page"
    monkeypatch.setattr(requests, "get", lambda *_, **__: answer)
    with pytest.raises(ZooError, match="is not the file that the tokenizer gpt2 needs"):
        tokenizer.load("gpt2")
    assert not list(fresh.iterdir())


def test_bytes() -> None:
    plain = tokenizer.load("bytes")
    assert (plain.vocabulary, plain.end) == (257, 256)
    assert plain.encode("aä") == [97, 0xC3, 0xA4]
    assert plain.decode([97, 0xC3, 256, 999]) == "a\ufffd<|endoftext|>\ufffd"
    assert Tokenizer.restore(plain.describe()).encode("x") == [120]
    for text in STRANGE:
        assert plain.decode(plain.encode(text)) == text


def test_trained_is_as_large_as_asked_and_repeatable(source: str, trained: Tokenizer) -> None:
    assert (trained.vocabulary, trained.end) == (600, 599)
    assert tokenizer.train([source], 600).ranks == trained.ranks
    assert len(trained.encode(source)) < 0.6 * len(source)
    assert max(trained.encode(source)) < trained.end
    assert tokenizer.train(["ab ab"], 4096).vocabulary < 300


def test_trained_agrees_with_the_trainers_own_encoder(source: str, trained: Tokenizer) -> None:
    from tokenizers import Tokenizer as Other
    from tokenizers import models, pre_tokenizers, trainers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other = Other(models.BPE())
    other.pre_tokenizer = words
    alphabet = words.alphabet()
    other.train_from_iterator(
        [source], trainers.BpeTrainer(vocab_size=599, initial_alphabet=alphabet, show_progress=False)
    )
    for text in [source, *STRANGE]:
        assert trained.encode(text) == other.encode(text).ids


@settings(max_examples=100, deadline=None)
@given(some.text())
def test_any_text_comes_back(trained: Tokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text


def test_a_description_rebuilds(trained: Tokenizer, source: str, tmp_path: Path) -> None:
    described = json.loads(json.dumps(trained.describe()))
    again = Tokenizer.restore(described)
    assert (again.digest, again.name, again.end) == (trained.digest, "bpe", 599)
    assert again.encode(source) == trained.encode(source)
    assert pickle.loads(pickle.dumps(trained)).encode(source) == trained.encode(source)
    trained.save(tmp_path / "own.tiktoken")
    loaded = tokenizer.load(str(tmp_path / "own.tiktoken"))
    assert loaded.ranks == trained.ranks
    assert loaded.digest == trained.digest != tokenizer.load("bytes").digest
    assert [path.name for path in tmp_path.iterdir()] == ["own.tiktoken"]
    with pytest.raises(ZooError, match="description of a tokenizer is damaged"):
        Tokenizer.restore({"name": "bpe", "ranks": "AAAA", "pattern": "x"})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{}", "line 1 is"),
        (b"\xff\xfe\x00", "line 1 is"),
        (b"YQ== 0\nYg== zwei\n", "line 2 is"),
        (b"YQ== 0\n", "255 of the 256 single bytes have no rank"),
        (b"".join(base64.b64encode(bytes([b])) + b" 7\n" for b in range(256)), "two tokens have one rank"),
        (b"", "256 of the 256 single bytes"),
    ],
)
def test_a_file_that_is_none_gets_a_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "x.tiktoken").write_bytes(content)
    with pytest.raises(ZooError, match=r"is not a .tiktoken file") as told:
        tokenizer.load(str(tmp_path / "x.tiktoken"))
    assert sentence in str(told.value)


def test_unknown_names_get_the_near_ones() -> None:
    with pytest.raises(ZooError, match="Did you mean gpt2"):
        tokenizer.load("gpt-2")
    with pytest.raises(ZooError, match="at least 257"):
        tokenizer.train(["text"], 256)
