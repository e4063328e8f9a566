"""Lengths as people write them."""

import pytest

from zoo.errors import ZooError
from zoo.lengths import length, lengths, short


@pytest.mark.parametrize(
    ("word", "tokens"), [("512", 512), ("1k", 1024), (" 32K ", 32768), ("1m", 2**20), ("1.5k", 1536)]
)
def test_a_word_is_a_number(word, tokens):
    assert length(word) == tokens


@pytest.mark.parametrize("word", ["", "k", "-4", "0", "1.3", "0.0001k", "8 k", "1g", "١k²", "2048m", "9" * 400])
def test_what_is_no_length(word):
    with pytest.raises(ZooError, match="512, 1k"):
        length(word)


def test_a_list_rises():
    assert lengths("2k,512, 1k,1024") == (512, 1024, 2048)


@pytest.mark.parametrize("words", ["", ",", " , "])
def test_a_list_of_none(words):
    with pytest.raises(ZooError, match="no length in"):
        lengths(words)


@pytest.mark.parametrize("tokens", [1, 512, 1000, 1024, 1536, 32768, 2**20])
def test_short_is_read_back(tokens):
    assert length(short(tokens)) == tokens
    assert short(32768) == "32k"
