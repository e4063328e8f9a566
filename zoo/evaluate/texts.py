"""Which documents are read: files that are named, or what a checkpoint's own data set aside for testing.

A model that has trained on Python's standard library must not be measured on what it has learned by heart, so without
files the documents are those that its run set aside, and the report says which. They are found anew, by the run's own
rule: where its files have changed since, or Python has, they may be others. What chooses between models, as a search
does, reads what the run validated on, so that what is measured afterwards has not been chosen by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from zoo.data import Text, corpus
from zoo.data.section import announce_sources, own_module, plain_arguments, refuse_sources, stored_section
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ZooError, listing
from zoo.lengths import short

WIDE = 64
"""Characters that no tokenizer makes into one token throughout a text."""
FEW = 4
"""Documents below which a choice between models would be a choice of document."""
SAMPLE = 4000
"""Documents of a part among which long ones are looked for."""


@dataclass(frozen=True)
class Documents:
    """Texts, where they come from, and a digest that is the same for the same texts."""

    origin: str
    texts: list[str]

    @property
    def digest(self) -> str:
        """Of the texts, in their order."""
        found = hashlib.sha256()
        for text in self.texts:
            found.update(hashlib.sha256(text.encode(errors="replace")).digest())
        return found.hexdigest()[:16]

    def long(self, tokenizers: Sequence[Tokenizer], length: int, most: int) -> tuple[list[str], int]:
        """Texts that hold `length` tokens in every tokenizer, cut there, and how many are too short.

        Of more than `most` those are taken that lie evenly in the order of the documents.
        """
        found, longest = [], 0
        for text in self.texts:
            start = text[: WIDE * length]
            held = min(len(one.encode(start)) for one in tokenizers)
            longest = max(longest, held)
            if held >= length:
                found.append(start)
        if not found:
            raise ZooError(
                f"None of the {len(self.texts)} documents of {self.origin} holds {short(length)} tokens; the longest "
                f"has {longest}.   Try:  --lengths {longest}, or --files with longer texts"
            )
        few = min(len(found), most)
        return [found[index * len(found) // few] for index in range(few)], len(self.texts) - len(found)


def named(files: list[str], column: str = "text") -> Documents:
    """The documents of files, folders or globs: one a file, or one a row of .jsonl and .parquet."""
    try:
        rows = corpus.local(files, column).load()
    except ZooError as error:
        told = str(error).partition("   Try:  --data.column")[0]
        raise ZooError(told.replace("--data.files", "--files")) from None
    return gathered(", ".join(Path(name).name for name in files), rows)


def held_out(about: Mapping[str, Any], opens: bool = False) -> Documents:
    """What the data section of a checkpoint set aside for testing; of the standard library where it says nothing.

    Args:
        about: The description of the checkpoint.
        opens: Whether files that the description names are opened, as the Trainer's commands do.
    """
    return set_aside(about, stored_data(about, opens))


def chosen(files: list[str], about: Mapping[str, Any]) -> Documents:
    """The documents of files that a user names, or what the run of a checkpoint held out of them for testing.

    The second is read where the files are those that the checkpoint was trained on, which their digest tells.
    """
    own = recognised(files, about)
    return set_aside(about, own) if own is not None else named(files)


def recognised(files: list[str], about: Mapping[str, Any]) -> Text | None:
    """The data of a checkpoint's run, where these files are its corpus; None where they are others."""
    section = stored_section(about)
    if own_module(section) is not Text or about.get("corpus") is None:
        return None
    arguments = plain_arguments(section, Text, "The checkpoint")
    if arguments.get("dataset") or not arguments.get("files"):
        return None
    elsewhere = [str(arguments.pop(name)) for name in ("valid_files", "test_files") if arguments.get(name)]
    data = Text(**arguments | {"files": list(files), "tokenizer": "bytes"})
    if data.digest == about["corpus"] and elsewhere:
        raise ZooError(
            f"The checkpoint was trained on all of {listing(files)}, and what it was validated and tested on is in "
            f"{listing(elsewhere)}.   Try:  --files with those"
        )
    return data if data.digest == about["corpus"] else None


def set_aside(about: Mapping[str, Any], data: Text) -> Documents:
    """What a run held out for testing."""
    origin, rows = data.documents("test")
    if not len(rows):
        raise ZooError(
            f"The run of this checkpoint held out no document of {origin} for testing.   "
            "Try:  --files with texts that it was not trained on"
        )
    return gathered(f"held-out documents of {origin}" if same(about, data) else changed(origin), rows)


def validated(
    about: Mapping[str, Any],
    tokenizers: Sequence[Tokenizer],
    length: int,
    most: int,
    data: Text | None = None,
) -> Documents:
    """What a checkpoint's run validated on, as at most `most` documents that hold `length` tokens, cut there.

    Where fewer than `FEW` of those are so long, documents that it trained on are read instead. None of them equals a
    document that was set aside for testing.

    Args:
        about: The description of the checkpoint.
        tokenizers: In all of which a document is so long.
        length: In tokens.
        most: Number of documents.
        data: The data of its run (default: those that the description names, where they are no files).
    """
    if own_module(stored_section(about)) is not Text:
        raise ZooError("This checkpoint does not say which text it was trained on.   Try:  --files TEXT...")
    data = data or stored_data(about)
    apart = set(data.documents("test")[1]["text"])
    refused = None
    for part, verb in (("valid", "validated"), ("train", "trained")):
        origin, rows = data.documents(part)
        rows = rows.select(range(0, len(rows), len(rows) // SAMPLE + 1))
        texts = [text for text in rows["text"] if text and text not in apart]
        origin = f"documents of {origin} that it {verb} on" if same(about, data) else changed(origin)
        if not texts:
            continue
        try:
            long, _ = Documents(origin, texts).long(tokenizers, length, most)
        except ZooError as error:
            refused = error
            continue
        if len(long) >= min(FEW, most) or part == "train":
            return Documents(origin, long)
    raise refused or ZooError(f"There is no text in {data.documents('train')[0]}.   Try:  --files TEXT...")


def stored_data(about: Mapping[str, Any], opens: bool = False) -> Text:
    """The data that a checkpoint was trained on; of the standard library where it names none.

    Raises ZooError where they are another program's, come from a hub, or are files and `opens` is false.
    """
    section = stored_section(about)
    module = own_module(section) if section else Text
    if module is None:
        raise ZooError("This checkpoint was trained on data of another program.   Try:  --files TEXT...")
    arguments = plain_arguments(section, Text, "The checkpoint") if module is Text else {}
    if arguments.get("streaming") or arguments.get("dataset"):
        raise ZooError(
            "This checkpoint's data come from a stream or a hub, and what it held out is not at hand.   "
            "Try:  --files TEXT..."
        )
    (announce_sources if opens else refuse_sources)(arguments, "This checkpoint")
    return Text(**arguments | {"tokenizer": "bytes"})


def same(about: Mapping[str, Any], data: Text) -> bool:
    """Whether the corpus is the one of training, as far as is known."""
    return about.get("corpus") in (None, data.digest)


def changed(origin: str) -> str:
    """Another Python's library, or files that have changed, are split otherwise: some may have been trained on."""
    return f"{origin}, which is not the text that it was trained on: some documents may be in both"


def gathered(origin: str, rows: Any) -> Documents:
    """All texts of a data set, without the empty ones."""
    assert isinstance(rows, Dataset)
    texts = [text for text in rows["text"] if text]
    if not texts:
        raise ZooError(f"There is no text in {origin}.")
    return Documents(origin, texts)
