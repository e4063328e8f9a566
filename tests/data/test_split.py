"""Parts are made of whole documents, and of the right amount of text."""

from __future__ import annotations

import random
from typing import Any

import pytest
from datasets import Dataset

from zoo.data.split import Split, digest_text, part_of
from zoo.errors import ZooError

PARTS = ("train", "valid", "test")


def documents(count: int, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return [f"{n}:" + "x" * chance.randrange(10, 2000) for n in range(count)]


def split(texts: list[str | None], valid: float = 0.1, test: float = 0.1, **more: Any) -> Split:
    return Split(Dataset.from_dict({"text": texts}), valid, test, **{"seed": 0, **more})


@pytest.mark.parametrize("count", [3, 4, 17, 300])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_document_is_in_one_part(count: int, seed: int) -> None:
    texts = documents(count, seed)
    parts = split(texts, seed=seed)
    found = {part: list(parts[part]["text"]) for part in PARTS}
    assert sorted(text for part in found.values() for text in part) == sorted(texts)
    assert all(found.values())
    assert not parts.cut
    again = split(texts, seed=seed)
    assert {part: list(again[part]["text"]) for part in PARTS} == found


def test_shares_are_of_the_text() -> None:
    parts = split(documents(300))
    total = sum(parts.lengths)
    for part in ("valid", "test"):
        share = sum(map(len, parts[part]["text"])) / total
        assert 0.08 < share <= 0.1


def test_seeds_give_other_parts_and_a_share_of_zero_none() -> None:
    texts = documents(50)
    assert split(texts, seed=1).members != split(texts, seed=2).members
    assert not len(split(texts, valid=0)["valid"])
    assert len(split(texts, valid=0, test=0)["train"]) == 50


def test_one_large_document_is_left_to_train_on() -> None:
    for seed in range(20):
        parts = split(["a", "b", "c", "d" * 97], valid=0.04, test=0.01, seed=seed)
        assert "d" * 97 in parts["train"]["text"]


def test_undecodable_and_empty_documents_are_left_out() -> None:
    parts = split([None, "", *documents(9)])
    assert (parts.unread, parts.documents) == (1, 9)
    with pytest.raises(ZooError, match="of 2 documents 1 cannot be decoded"):
        split([None, ""])


def test_a_single_document_is_cut_between_lines() -> None:
    text = "".join(f"line {n} of the only document\n" for n in range(1000))
    parts = split([text])
    assert parts.cut
    found = {part: parts[part]["text"] for part in PARTS}
    assert [len(texts) for texts in found.values()] == [1, 1, 1]
    train, valid, test = (found[part][0] for part in PARTS)
    assert train + valid + test == text
    assert all(piece.endswith("\n") for piece in (train, valid, test))
    assert 0.095 < len(test) / len(text) < 0.105


def test_two_documents_and_three_parts() -> None:
    parts = split(["short " * 10, "long " * 1000])
    assert parts.cut
    assert parts["train"]["text"][0] == "short " * 10
    assert "".join([parts["train"]["text"][1], *parts["valid"]["text"], *parts["test"]["text"]]) == "long " * 1000
    assert not split(["one", "two"], test=0).cut


def test_a_limit_takes_whole_documents() -> None:
    texts = documents(100)
    parts = split(texts, limit=20_000)
    assert 15_000 < parts.characters <= 20_000
    assert {text for part in PARTS for text in parts[part]["text"]} <= set(texts)
    with pytest.raises(ZooError, match="the shortest has 10 characters"):
        split(["x" * 10, "x" * 11], limit=9)


def test_documents_of_a_stream_know_their_part() -> None:
    texts = documents(3000)
    parts = [part_of(text, 0.1, 0.2, 0) for text in texts]
    assert parts == [part_of(text, 0.1, 0.2, 0) for text in texts]
    assert 0.07 < parts.count("valid") / 3000 < 0.13
    assert 0.17 < parts.count("test") / 3000 < 0.23
    assert set(part_of(text, 0.0, 0.0, 0) for text in texts) == {"train"}


@pytest.mark.parametrize("seed", range(6))
def test_all_copies_of_a_document_are_in_one_part(seed: int) -> None:
    texts = documents(200, seed)
    texts += random.Random(seed).choices(texts, k=60)
    random.Random(seed + 1).shuffle(texts)
    parts = split(texts, seed=seed)
    found = {part: set(parts[part]["text"]) for part in PARTS}
    assert not found["train"] & found["valid"] | found["train"] & found["test"] | found["valid"] & found["test"]
    assert sorted(text for part in PARTS for text in parts[part]["text"]) == sorted(texts)
    assert parts.copies == 60
    share = sum(map(len, parts["valid"]["text"])) / parts.characters
    assert 0.03 < share < 0.2


@pytest.mark.parametrize("seed", range(3))
def test_documents_without_copies_stay_where_they_were(seed: int) -> None:
    """The draw depends on lengths and places: a copy of the same length moves itself at most."""
    texts = [f"{n:03d}:".ljust(random.Random(n).randrange(10, 40), "x") for n in range(300)]
    plain = split(texts, seed=seed)
    twin = {}
    for n, text in enumerate(texts):
        twin.setdefault(len(text), n)
    copies = [n for n in range(150, 300, 10) if twin[len(texts[n])] < n]
    assert len(copies) > 10
    alike = split([texts[twin[len(text)]] if n in copies else text for n, text in enumerate(texts)], seed=seed)
    moved = {n for part in PARTS for n in {*plain.members[part]} ^ {*alike.members[part]}}
    assert moved
    assert moved <= set(copies)


@pytest.mark.parametrize("count", [4, 5, 20])
@pytest.mark.parametrize("times", [2, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_part_is_empty_however_many_copies_there_are(count: int, times: int, seed: int) -> None:
    texts = documents(count, seed) * times
    parts = split(texts, seed=seed)
    found = {part: set(parts[part]["text"]) for part in PARTS}
    assert all(found.values())
    assert not parts.cut
    assert sum(map(len, found.values())) == count
    assert sum(len(parts[part]) for part in PARTS) == count * times


def test_copies_of_a_document_that_is_cut_are_left_out() -> None:
    """A whole copy in the training part would hold what was cut off to validate on."""
    text = "".join(f"line {n} of the only document\n" for n in range(1000))
    parts = split([text, text, "short\n", "short\n", text])
    assert parts.cut
    assert (parts.documents, parts.copies) == (2, 3)
    assert [len(parts[part]["text"]) for part in PARTS] == [2, 1, 1]
    train, valid, test = (parts[part]["text"][-1] for part in PARTS)
    assert train + valid + test == text


def test_held_out_texts_are_no_documents() -> None:
    texts = [*documents(50), None, ""]
    held = {digest_text(text) for text in [*texts[:5], "another"]}
    parts = split([*texts, *texts[:3]], held=held)
    assert (parts.held, parts.documents, parts.unread, parts.empty) == (8, 45, 1, 1)
    assert {text for part in PARTS for text in parts[part]["text"]} == set(texts[5:50])
    with pytest.raises(ZooError, match="all 2 documents are held out as well"):
        split(["a", "a", ""], held={digest_text("a")})
