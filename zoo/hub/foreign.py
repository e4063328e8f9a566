"""A tokenizer as the library `tokenizers` stores it (tokenizer.json), with the interface of ours.

Its numbers are transformers' numbers of the same text, without what a template would put around it. Our rule holds
beside: text never produces the number that ends a document.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterable
from typing import Any

from zoo.data.tokenizer import END, Tokenizer, letters
from zoo.errors import ZooError
from zoo.limits import unpack

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""How a vocabulary of SentencePiece calls a byte."""


class Foreign(Tokenizer):
    """Text to token numbers and back, as tokenizer.json says.

    Raises ZooError for text that is no such file, and where nothing ends a document.

    Args:
        name: For people.
        text: The content of the file.
        end: What ends a document, by its text or its number (default: a token that is called so).
        start: What begins a document, by its number (default: the token that the file puts before every text).
    """

    def __init__(self, name: str, text: str, end: str | int | None = None, start: int | None = None) -> None:
        from tokenizers import Tokenizer as Library

        check_in_child(name, text)
        try:
            self.library = Library.from_str(text)
        except Exception as error:  # the library raises no other
            raise ZooError(f"The tokenizer {name} is damaged: {str(error).splitlines()[0][:160]}.") from None
        self.library.no_padding()
        self.library.no_truncation()
        self.name, self.text, self.ranks, self.encoding = name, text, None, None
        self.vocabulary = max(self.library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        names = [name for name in (end, END, "</s>") if isinstance(name, str)]
        numbers = [end] if isinstance(end, int) else [self.library.token_to_id(name) for name in names]
        known = [number for number in numbers if number is not None and 0 <= number < self.vocabulary]
        if not known:
            raise ZooError(f"Nothing in the tokenizer {name} is known to end a document: its eos_token is not told.")
        self.end = known[0]
        self.told = self.library.id_to_token(self.end) or END
        self.letters = letters() if '"ByteLevel"' in text else None
        added = self.library.get_added_tokens_decoder()
        self.special = {number for number, token in added.items() if token.special} | {self.end}
        self.bytes = {self.library.token_to_id(f"<0x{byte:02X}>") for byte in range(256)} - {None}
        self.given_start = start
        bare, whole = (self.library.encode("a", add_special_tokens=told).ids for told in (False, True))
        first = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
        self.template = whole[:first], whole[first + len(bare) :]
        """The numbers that the file puts before and behind every text (its post_processor)."""
        before = self.encode_prefix()
        if start is None or not 0 <= start < self.vocabulary:
            start = before[0] if before else None
        self.start = start

    def encode_prefix(self) -> list[int]:
        return list(self.template[0])

    def is_special(self, number: int) -> bool:
        return number in self.special or not self._is_known(number)

    def is_open(self, number: int) -> bool:
        return number in self.bytes  # a run of bytes is decoded as a whole

    def encode(self, text: str) -> list[int]:
        """The numbers of a text; one in which the end is written out is taken as plain text throughout."""
        for plain in (False, True):  # whether it is written out depends on the normalizer too, so the numbers say it
            self.library.encode_special_tokens = plain
            found = self.library.encode(text, add_special_tokens=False).ids
            if self.end not in found:
                break
        return [number for number in found if number != self.end]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the numbers; one that is not of this vocabulary becomes U+FFFD."""
        parts, run = list[str](), list[int]()
        for number in ids:
            if self._is_known(number):
                run.append(number)
            else:
                parts += [self._decode_run(run, first=not parts), "\ufffd"]
                run = []
        return "".join([*parts, self._decode_run(run, first=not parts)])

    def _is_known(self, number: int) -> bool:
        """Whether there is a token of this number."""
        return 0 <= number < self.vocabulary and self.library.id_to_token(number) is not None

    def _decode_run(self, run: list[int], *, first: bool) -> str:
        """The text of numbers of the vocabulary, as it is at the beginning of a text or behind other tokens."""
        if first:
            return self.library.decode(run, skip_special_tokens=False)
        before = len(self.library.decode([self.end], skip_special_tokens=False))
        return self.library.decode([self.end, *run], skip_special_tokens=False)[before:]

    def _bytes(self, number: int) -> bytes:
        token = self.library.id_to_token(number) if 0 <= number < self.vocabulary else None
        if token is None:
            return "\ufffd".encode()
        if self.letters is not None and all(letter in self.letters for letter in token):
            return bytes(self.letters[letter] for letter in token)
        if found := BYTE.fullmatch(token):
            return bytes([int(found[1], 16)])
        return token.replace("\u2581", " ").encode()

    def describe(self) -> dict[str, Any]:
        packed = base64.b64encode(zlib.compress(self.text.encode(), 9)).decode()
        start = {} if self.given_start is None else {"start": self.given_start}
        return {"name": self.name, "kind": "tokenizers", "packed": packed, "end": self.end, **start}

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.end} {self.text}".encode()).hexdigest()[:16]

    def __reduce__(self) -> tuple[Any, ...]:
        return Foreign, (self.name, self.text, self.end, self.given_start)


REASON = re.compile(r"\w*Error|Exception: |memory allocation")
"""How a line begins that says why the library gave up."""
CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]),) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from tokenizers import Tokenizer
text = sys.stdin.buffer.read().decode()
found = Tokenizer.from_str(text)
found.no_padding()
found.no_truncation()
found.encode("Hello world, 12 naive words.", add_special_tokens=False)
"""
MEMORY, MORE, SECONDS = 384 << 20, 30, 15
"""Bytes of addresses, more of them for each byte of a file, and seconds of a processor, in which any in use is opened.

One of 250 000 tokens in 10 MiB took 274 MB.
"""


def check_in_child(name: str, text: str) -> None:
    """Open a tokenizer.json in a process of its own, with a limit on its memory.

    A normalizer or a pattern may need any amount of it, for want of which the library ends the whole process.

    Raises ZooError where the process does not end well.
    """
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    if digest in OPENED:
        return
    words = [sys.executable, "-I", "-c", CHILD, str(MEMORY + MORE * len(text)), str(SECONDS)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            words, input=text.encode(errors="replace"), capture_output=True, env=environment, timeout=4 * SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ZooError(f"The tokenizer {name} is damaged: it takes over {SECONDS} seconds to open.") from None
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if REASON.match(line)]
        reason = lines[-1].removeprefix("Exception: ")[:160] if lines else "the library gave up on it"
        raise ZooError(f"The tokenizer {name} is damaged: {reason}.")
    OPENED.add(digest)


OPENED: set[str] = set()
"""Digests of the tokenizers that a child has opened."""


def restored(description: dict[str, Any]) -> Foreign:
    """The tokenizer that was described."""
    try:
        name, start = str(description["name"]), description.get("start")
        text = unpack(base64.b64decode(description["packed"]), f"The stored tokenizer {name}").decode()
        return Foreign(name, text, int(description["end"]), None if start is None else int(start))
    except (KeyError, TypeError, ValueError, OverflowError, zlib.error) as error:
        raise ZooError(f"The stored description of a tokenizer is damaged: {error}.") from error
