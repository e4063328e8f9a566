"""Decoding the ids that a model adds: piece by piece, the same as decoding all of them behind the prompt."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "hub"))
import folders
import pieces
import torch

from zoo import checkpoints
from zoo.data import tokenizer
from zoo.data.tokenizer import Continuation, Tokenizer
from zoo.hub.foreign import Foreign

KINDS = (
    "bytes",
    "own BPE",
    "gpt2",
    "byte-level",
    "Mistral",
    "Llama 2",
    "without a space before",
    "Metaspace",
    "wordpiece",
    "marks at the end of words",
)
TEXTS = (
    "The quick brown fox",
    " jumps",
    "  two  spaces ",
    "naïve 中文 🎉🎉 end",
    "a\n\n\tb",
    "\n",
    " ",
    "don't",
    "\ufffd",
    "🎉",
)


def build(kind: str) -> Tokenizer:
    """A tokenizer of a kind."""
    if kind == "bytes":
        return Tokenizer("bytes")
    if kind == "own BPE":
        return tokenizer.train([pieces.TEXT], 400)
    if kind == "gpt2":
        if "ZOO_SHARED" not in os.environ:
            pytest.skip("ZOO_SHARED is not set: the published BPE files are not at hand")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TIKTOKEN_CACHE_DIR", f"{os.environ['ZOO_SHARED']}/data/tokenizers/tiktoken_cache")
            return tokenizer.load("gpt2")
    if kind == "byte-level":
        return Foreign(kind, pieces.byte_level())
    if kind in ("wordpiece", "marks at the end of words"):
        return Foreign(kind, pieces.words(kind))
    if kind == "Metaspace":
        text = pieces.sentencepiece()
        found = Foreign(kind, text)
        from tokenizers import decoders

        found.library.decoder = decoders.Metaspace()
        return Foreign(kind, found.library.to_str())
    form = "llama2" if kind == "Llama 2" else "mistral"
    return Foreign(kind, pieces.sentencepiece(form=form, prefix=kind != "without a space before"))


@pytest.fixture(scope="module", params=KINDS)
def coder(request: pytest.FixtureRequest) -> Tokenizer:
    return build(request.param)


def joined(coder: Tokenizer, prompt: list[int], ids: list[int]) -> str:
    """All pieces of a continuation."""
    continuation = Continuation(coder, prompt)
    return "".join([*(continuation.add(number) for number in ids), continuation.finish()])


def test_the_pieces_are_the_end_of_the_whole_text(coder: Tokenizer) -> None:
    for prompt in TEXTS:
        for text in TEXTS:
            before, ids = coder.encode(prompt), coder.encode(f"{prompt}{text}")
            count = next((n for n, pair in enumerate(zip(before, ids, strict=False)) if len({*pair}) > 1), len(before))
            before, ids = ids[:count], ids[count:]
            if coder.decode(before).endswith("\ufffd"):
                continue  # in the middle of a character
            whole = coder.decode([*before, *ids])
            assert joined(coder, before, ids) == whole[len(coder.decode(before)) :]
            assert coder.decode_continuation(before, ids) == whole[len(coder.decode(before)) :]


def test_whatever_a_model_says_pieces_are_the_end_of_the_whole_text(coder: Tokenizer) -> None:
    """Bytes that make no character, marks, and numbers that are not of the vocabulary among them."""
    rng = random.Random(0)
    for _ in range(150):
        prompt = coder.encode(rng.choice(TEXTS[:4]) + "x")
        ids = [rng.randrange(coder.vocabulary + 3) for _ in range(rng.randrange(1, 30))]
        if not hasattr(coder, "library"):
            ids += rng.choices(coder.encode(TEXTS[3]), k=3)
        else:  # a run of bytes that are mostly the beginning or the middle of a character
            ids[3:3] = [number for number in rng.choices(coder.encode("🎉é"), k=4) if number is not None]
        whole, before = coder.decode([*prompt, *ids]), coder.decode(prompt)
        assert whole.startswith(before)
        assert joined(coder, prompt, ids) == whole[len(before) :], ids


def test_no_piece_is_taken_back_and_none_is_late(coder: Tokenizer) -> None:
    """What is given out is a beginning of what comes, and all of it where an ordinary token ends a word."""
    prompt, ids = coder.encode("The fox"), coder.encode("The fox jumps over the dog")[len(coder.encode("The fox")) :]
    continuation, shown = Continuation(coder, prompt), ""
    for count, number in enumerate(ids, 1):
        shown += continuation.add(number)
        assert shown == coder.decode([*prompt, *ids[:count]])[len(coder.decode(prompt)) :]
        assert continuation.pending() == ""
    assert shown == coder.decode_continuation(prompt, ids)


@pytest.mark.parametrize("kind", ["Mistral", "Llama 2", "Metaspace"])
def test_a_word_that_a_model_adds_keeps_its_space(kind: str) -> None:
    coder = build(kind)
    prompt, ids = coder.encode("The quick"), coder.encode("The quick brown fox")[len(coder.encode("The quick")) :]
    assert coder.decode(ids) == "brown fox", "by itself it has none"
    assert coder.decode_continuation(prompt, ids) == " brown fox"
    assert coder.decode_continuation([], ids) == "brown fox", "and none where it begins a text"
    assert coder.decode_continuation([1], ids) == " brown fox", "behind <s>, which is written out here, it has one"
    assert coder.decode([coder.vocabulary + 7, *ids]) == "\ufffd brown fox"


def test_marks_are_left_out_where_they_are_not_wanted() -> None:
    coder = build("Mistral")
    prompt = coder.encode("The fox")
    ids = [*coder.encode("The fox jumps")[len(prompt) :], 1, *coder.encode("The fox over")[len(prompt) :], 2]
    assert coder.decode_continuation(prompt, ids) == " jumps<s> over</s>"
    assert coder.decode_continuation(prompt, ids, special=False) == " jumps over"


def test_a_long_continuation_costs_no_more_per_id_than_a_short_one() -> None:
    coder = build("Mistral")
    continuation = Continuation(coder, coder.encode("The fox " * 200))
    for number in coder.encode("jumps over the dog " * 200):
        continuation.add(number)
        assert len(continuation.ids) < 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose tokenizer is SentencePiece's."""
    path = folders.write(
        tmp_path_factory.mktemp("continuation") / "llama", {**folders.LLAMA, "vocab_size": 512, "eos_token_id": 2}
    )
    (path / "tokenizer.json").write_text(pieces.sentencepiece())
    return path


@pytest.fixture
def says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids that every model says here: of ' jumps 🎉\\n over', whose first word has a space."""
    coder = Tokenizer.restore(checkpoints.listed(folder).about["tokenizer"])
    ids = coder.encode("The fox jumps 🎉\n over")[len(coder.encode("The fox")) :]
    for place in ("zoo.generate.stream", "zoo.callbacks.release.stream"):
        monkeypatch.setattr(place, lambda *_, **__: (torch.tensor([number]) for number in ids))
    return ids


def test_generate_prints_the_whole_text(
    folder: Path, says: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from zoo.cli import generate

    generate([str(folder), "--prompt", "The fox"])
    assert capsys.readouterr().out == "The fox jumps 🎉\n over\n"
    says[1:] = says[1:4]  # the end of the request is in the middle of a character
    generate([str(folder), "--prompt", "The fox"])
    assert capsys.readouterr().out.rstrip("\ufffd\n").startswith("The fox ju")
    says[:] = [2]
    generate([str(folder), "--prompt", "The fox"])
    assert capsys.readouterr().out == "The fox\n"


def test_the_sample_at_the_end_of_a_run_is_the_whole_text(folder: Path, says: list[int]) -> None:
    from types import SimpleNamespace

    from zoo.callbacks.release import Release

    found = checkpoints.read(folder)
    data = SimpleNamespace(tokenizer=Tokenizer.restore(found.about["tokenizer"]))
    task = SimpleNamespace(network=found.network(), length=64)
    text = Release(prompt="The fox").sample(task, SimpleNamespace(datamodule=data))  # type: ignore[arg-type]
    assert text == "The fox jumps 🎉\n over"


def test_a_measured_answer_is_the_end_of_the_whole_text(folder: Path, says: list[int]) -> None:
    from types import SimpleNamespace

    from zoo.evaluate.reader import Reader

    reader = Reader(checkpoints.read(folder), "llama")
    script = iter([*says, 2])
    logits = torch.eye(512)
    reader.model = SimpleNamespace(  # type: ignore[assignment]
        hidden=lambda *_, **__: torch.zeros(1, 1, 1), head=lambda _: logits[[next(script)]], refusal=lambda _: None
    )
    heard: list[str] = []
    answer = reader.answer(reader.tokenizer.encode("The fox"), 40, stop=lambda text: bool(heard.append(text)))
    assert answer == heard[-1] == " jumps 🎉\n over"
    assert " jumps 🎉\n" in heard, "a stop string is seen with the token that ends it"
