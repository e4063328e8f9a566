"""From text to numbers and back, through tiktoken: its named encodings, a .tiktoken file, bytes, or a BPE of one's own.

Whatever its origin, a vocabulary becomes tiktoken ranks, so there is one encoder and one thing for a checkpoint to
store. A BPE is trained by Hugging Face's `tokenizers` on the training part of the corpus at hand, with GPT-2's rule
for splitting text into words; the trainer's merges are applied in the order of their numbers, which is what ranks are.

Text never produces the end-of-document number: a '<|endoftext|>' written in a document is ordinary text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
import json
import os
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import tiktoken
import tiktoken.load

from zoo.errors import ZooError, listing, near
from zoo.limits import unpack

END = "<|endoftext|>"
KINDS = {"tokenizers": "zoo.hub.foreign"}
"""Modules that restore other kinds than ours."""
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


class Tokenizer:
    """Text to token numbers and back; `restore` rebuilds it from what `describe` says.

    Args:
        name: 'bytes', the name of a tiktoken encoding, or any name for ranks of one's own.
        ranks: tiktoken ranks; None for bytes and named encodings.
        pattern: how text is split into words before merging, where ranks are given.
    """

    start: int | None = None
    """What begins a document, where there is such a token; ours have none."""

    def __init__(self, name: str, ranks: dict[bytes, int] | None = None, pattern: str = PATTERN) -> None:
        self.name, self.ranks, self.pattern = name, ranks, pattern
        self.encoding: tiktoken.Encoding | None = None
        if ranks is not None:
            self.end = max(ranks.values()) + 1
            special = {END: self.end}
            with _telling_panics(name):
                self.encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
            self.vocabulary = self.end + 1
        elif name == "bytes":
            self.end, self.vocabulary = 256, 257
        else:
            self.encoding = _named(name)
            self.end, self.vocabulary = self.encoding.eot_token, self.encoding.n_vocab

    def encode(self, text: str) -> list[int]:
        """The numbers of a text, without an end."""
        if self.encoding is None:
            return list(text.encode(errors="replace"))
        with _telling_panics(self.name):
            return self.encoding.encode_ordinary(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the numbers; what is no text, or no number of this vocabulary, becomes U+FFFD."""
        return b"".join(map(self._bytes, ids)).decode(errors="replace")

    def decode_continuation(self, prompt: Sequence[int], ids: Iterable[int], *, special: bool = True) -> str:
        """The text that `ids` add to a prompt: the end of the text that all of them have together.

        Args:
            prompt: The ids before them.
            ids: The ids to decode.
            special: Whether special tokens among them, and numbers without a token, are written out or left out.
        """
        continuation = Continuation(self, prompt)
        parts = [continuation.add(number) for number in ids if special or not self.is_special(number)]
        return "".join([*parts, continuation.finish()])

    @property
    def prefix(self) -> int:
        """What stands before the first token of a text that is scored: the start, else the end of a document."""
        return self.end if self.start is None else self.start

    def encode_prefix(self) -> list[int]:
        """The numbers that the tokenizer itself puts before every text, as in transformers: none in ours."""
        return []

    def is_special(self, number: int) -> bool:
        """Whether a number is no text: a mark, such as the end of a document, or no number of this vocabulary."""
        return number == self.end or not 0 <= number < self.vocabulary

    def is_open(self, number: int) -> bool:
        """Whether the text of the numbers before, this one included, may change when another follows."""
        return False

    def sizes(self, ids: Iterable[int]) -> list[int]:
        """How many bytes of text each number stands for."""
        return [len(self._bytes(number)) for number in ids]

    def _bytes(self, number: int) -> bytes:
        if number == self.end:
            return END.encode()
        try:
            return self.encoding.decode_single_token_bytes(number) if self.encoding else bytes([number])
        except (KeyError, ValueError, OverflowError):
            return "\ufffd".encode()

    def describe(self) -> dict[str, Any]:
        """All that `restore` needs, in plain strings."""
        if self.ranks is None:
            return {"name": self.name}
        packed = base64.b64encode(zlib.compress(_write(self.ranks), 9)).decode()
        return {"name": self.name, "ranks": packed, "pattern": self.pattern}

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Tokenizer:
        """The tokenizer that was described."""
        if (kind := description.get("kind")) in KINDS:
            return importlib.import_module(KINDS[kind]).restored(description)
        try:
            name, packed = description["name"], description.get("ranks")
            if packed is None:
                return cls(name)
            return cls(name, _parse(unpack(base64.b64decode(packed), "The stored tokenizer")), description["pattern"])
        except ZooError:
            raise
        except Exception as error:  # whatever tiktoken makes of it
            raise ZooError(f"The stored description of a tokenizer is damaged: {error}.") from error

    @property
    def digest(self) -> str:
        """The same for tokenizers that give the same numbers."""
        told = {**self.describe(), "ranks": hashlib.sha256(_write(self.ranks or {})).hexdigest()}
        told["name"] = "" if self.ranks else self.name
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.name, self.ranks, self.pattern)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name}, vocabulary {self.vocabulary})"

    def save(self, path: Path) -> None:
        """Write the ranks as a .tiktoken file, whole or not at all."""
        assert self.ranks is not None
        _put(path, _write(self.ranks))


class Continuation:
    """The text that new ids add to a prompt, piece by piece; the pieces are the end of what decoding all of them gives.

    By itself an id may have another text: SentencePiece's first one loses its space, and a character may be spread over
    several. So a few ids before are decoded too, and what a further id may still change is held back.

    Args:
        tokenizer: Whose ids they are.
        prompt: The ids before them, the whole of a text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.ids, self.given = list(prompt), 0
        self._advance()

    def add(self, number: int) -> str:
        """The text that is certain with one more id: none in the middle of a character."""
        self.ids.append(number)
        if self.tokenizer.is_open(number):
            return ""
        text = self.pending()
        if text.endswith("\ufffd"):  # perhaps the beginning of a character
            self.given += len(text) - 1
            return text[:-1]
        self._advance()
        return text

    def pending(self) -> str:
        """The text of the ids so far that has not been given out."""
        return self.tokenizer.decode(self.ids)[self.given :]

    def finish(self) -> str:
        """The rest, where no more ids come."""
        text = self.pending()
        self._advance()
        return text

    def _advance(self) -> None:
        """Keep the last ids only, from one on whose text does not depend on those before it."""
        last = next((n for n in range(len(self.ids) - 1, 0, -1) if not self.tokenizer.is_open(self.ids[n])), 0)
        self.ids = self.ids[last:]
        self.given = len(self.tokenizer.decode(self.ids))


def load(name: str) -> Tokenizer:
    """The tokenizer of a name or a file; 'bpe' is not among them, for it must be trained."""
    if name == "bytes" or name in tiktoken.list_encoding_names():
        return Tokenizer(name)
    path = Path(name).expanduser()
    if path.is_file():
        try:
            ranks = _parse(path.read_bytes())
        except (ValueError, OSError) as error:
            raise ZooError(
                f"The tokenizer file {name} is not a .tiktoken file: {error}.\n"
                "  Each of its lines is a token in base64, a space, and its rank."
            ) from error
        return Tokenizer(path.stem, ranks)
    known = ["bpe", "bytes", *sorted(tiktoken.list_encoding_names())]
    close = f"  Did you mean {listing(near(name, known))}?\n" if near(name, known) else ""
    raise ZooError(
        f"There is no tokenizer {name}: neither a file nor a name.\n{close}"
        f"  Names: {listing(known)}; or the path of a .tiktoken file."
    )


def train(texts: Iterable[str], vocabulary: int, name: str = "bpe") -> Tokenizer:
    """A byte-level BPE of the given size, its end included; smaller where the text has no more pairs to merge."""
    from tokenizers import Tokenizer as Trained
    from tokenizers import models, pre_tokenizers, trainers

    if vocabulary < 257:
        raise ZooError(f"A BPE needs a vocabulary of at least 257, 256 bytes and an end; {vocabulary} were asked for.")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trained = Trained(models.BPE())
    trained.pre_tokenizer = words
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1, initial_alphabet=words.alphabet(), special_tokens=[], show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    byte = letters()
    ranks = {bytes(byte[char] for char in token): rank for token, rank in trained.get_vocab().items()}
    return Tokenizer(name, ranks)


def letters() -> dict[str, int]:
    """The characters that stand for bytes in byte-level BPE since GPT-2: themselves where printable."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def spelled(ranks: Iterable[bytes]) -> dict[bytes, str]:
    """Tokens in those characters."""
    names = {byte: letter for letter, byte in letters().items()}
    return {token: "".join(names[byte] for byte in token) for token in ranks}


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two tokens that make each of more than one byte, in the order of the ranks.

    They are what merging by rank, as encoding does, leaves of its bytes when all merges of lower rank have been made.
    Raises ZooError for a token that no merge of others makes.
    """
    found = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            if (least := min(pairs)) >= rank:
                raise ZooError(f"The token {token!r} cannot be made by merging smaller ones.")
            at = pairs.index(least)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
    return found


def _write(ranks: dict[bytes, int]) -> bytes:
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered)


def _parse(content: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"line {number} is {line[:40]!r}") from error
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"{len(missing)} of the 256 single bytes have no rank")
    if len(set(ranks.values())) != len(ranks) or min(ranks.values()) < 0:
        raise ValueError("two tokens have one rank, or a rank is negative")
    return ranks


def _named(name: str) -> tiktoken.Encoding:
    with _careful(name):
        return tiktoken.get_encoding(name)


@contextmanager
def _telling_panics(name: str) -> Iterator[None]:
    """Say in a sentence what tiktoken ends with, which is no Exception where its compiled part gives up."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or [""])[0][:160]
        raise ZooError(
            f"The tokenizer {name} is damaged, or its pattern does not end on this text: {reason}."
        ) from None


_patching = threading.Lock()


@contextmanager
def _careful(name: str) -> Iterator[None]:
    """Let tiktoken find its files in its cache or the network, without deleting a file or waiting for ever.

    tiktoken itself removes a cached file whose content it does not expect, and asks the network without a time limit.
    """

    def fetch(blobpath: str, expected_hash: str | None = None) -> bytes:
        source, expected = blobpath, expected_hash
        default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
        folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
        cached = Path(folder, hashlib.sha1(source.encode()).hexdigest())
        if folder and cached.is_file():
            content = cached.read_bytes()
            if expected and hashlib.sha256(content).hexdigest() != expected:
                raise ZooError(
                    f"The file {cached} of tiktoken's cache is damaged: it is not what {name} needs.\n"
                    "  Remove it, and tiktoken will fetch it anew."
                )
            return content
        content = _download(name, source)
        if expected and hashlib.sha256(content).hexdigest() != expected:
            raise ZooError(f"What {source} sent is not the file that the tokenizer {name} needs.   Try again.")
        if folder:
            cached.parent.mkdir(parents=True, exist_ok=True)
            _put(cached, content)
        return content

    with _patching:
        original, tiktoken.load.read_file_cached = tiktoken.load.read_file_cached, fetch
        try:
            yield
        finally:
            tiktoken.load.read_file_cached = original


def _download(name: str, source: str) -> bytes:
    import requests

    try:
        answer = requests.get(source, timeout=(5, 60))
        answer.raise_for_status()
    except requests.RequestException as error:
        raise ZooError(
            f"The files of the tokenizer {name} are neither in tiktoken's cache nor can they be fetched.\n"
            "  Set the variable TIKTOKEN_CACHE_DIR to a folder that holds them, or do without:"
            "   Try:  --data.tokenizer bytes"
        ) from error
    return answer.content


def _put(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
