"""Text as blocks of tokens: the data module that joins corpus, split, tokenizer, cache and loaders.

What a run is fed is decided by three things, each with its digest: the corpus, the split and the tokenizer. Tokens
are kept in a cache under those digests; everything later (length, batch, workers) is a view of them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from zoo.data import corpus, tokenizer
from zoo.data.corpus import Corpus
from zoo.data.digests import default_cache
from zoo.data.loader import Loader, SentenceLoader, overfits
from zoo.data.positions import Placement
from zoo.data.split import PARTS, Split, digest_text, part_of
from zoo.data.stream import Packer, Stream, read_texts
from zoo.data.tokenizer import Tokenizer
from zoo.data.tokens import Blocks, Stored, tokenise
from zoo.errors import ZooError

PROCESSES = 1024  # that load batches at most
HEAD = 20_000  # documents of a stream among which those to validate and test on are sought
TRAINED = 64_000_000  # characters that a BPE is trained on at most
RULE = 2  # of parting a corpus: what is kept under an older one has other documents in its parts
NEEDED = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",), "predict": ("test",)}


class Text(L.LightningDataModule):
    """Text in blocks of tokens, split by document: of files, of a Hugging Face data set, or Python's own library.

    A batch is a dict of `tokens`, int64 [batch, length + 1], and `documents`, int32 [batch, length + 1], which numbers
    the documents within each block. A document ends with its end token.

    Args:
        files: a file, a folder, a glob, or a list of these: .txt, .jsonl, .parquet, source code; also .gz, .xz, .bz2.
            Without files and dataset: the standard library of this Python.
        dataset: the name of a data set on the Hugging Face hub, such as allenai/c4.
        subset: its configuration, such as en.
        column: which column of .jsonl, .parquet or the data set holds the text.
        streaming: tokenise while training instead of before; for data too large to store.
        tokenizer: bpe (trained on the training documents), bytes, a tiktoken encoding such as gpt2, or a .tiktoken
            file.
        vocabulary: size of the trained bpe.
        length: tokens per block; without it, the length that the model is first trained at.
        positions: full counts them from 0; pose and cream train all positions up to the model's reach with blocks that
            are shorter (zoo.data.positions). Validation and test count from 0.
        batch: blocks per process and step.
        valid: share of the text to validate on.
        test: share of the text to test on.
        valid_files: files to validate on, instead of a share; training documents that equal one of them are left out.
        test_files: files to test on, instead of a share; the same.
        workers: processes that load batches; 0 loads in the training process.
        seed: origin of the split and of the order of blocks.
        cache: folder for tokens and trained vocabularies; without it, $ZOO_CACHE or ~/.cache/zoo.
        limit: take at most so many characters of the corpus, in whole documents.
    """

    def __init__(
        self,
        files: str | list[str] | None = None,
        dataset: str | None = None,
        subset: str | None = None,
        column: str = "text",
        streaming: bool = False,
        tokenizer: str = "bpe",
        vocabulary: int = 4096,
        length: int | None = None,
        positions: Literal["full", "pose", "cream"] = "full",
        batch: int = 32,
        valid: float = 0.05,
        test: float = 0.05,
        valid_files: str | list[str] | None = None,
        test_files: str | list[str] | None = None,
        workers: int = 2,
        seed: int = 0,
        cache: str | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__()
        if files and dataset:
            # A recipe names its data set; files on the command line take its place.
            rank_zero_info(f"Data: the files given, instead of the data set {dataset}")
            dataset, subset, streaming = None, None, False
        if min(valid, test) < 0 or valid + test >= 1:
            raise ZooError(f"Shares of {valid} to validate on and {test} to test on leave nothing to train on.")
        for name, number in (("batch", batch), ("length", length), ("limit", limit)):
            if number is not None and number < 1:
                raise ZooError(f"--data.{name} must be at least 1, not {number}.")
        if not 0 <= workers <= PROCESSES or seed < 0:
            raise ZooError(
                f"--data.workers must be from 0 to {PROCESSES} and --data.seed at least 0, not {workers} and {seed}."
            )
        self.files, self.dataset, self.subset, self.column, self.streaming = files, dataset, subset, column, streaming
        self.given, self.size, self.length, self.batch = tokenizer, vocabulary, length, batch
        self.positions = positions
        self.shares = {"valid": valid, "test": test}
        self.others = {"valid": valid_files, "test": test_files}
        self.workers, self.seed, self.limit = workers, seed, limit
        self.cache = Path(cache).expanduser() if cache else default_cache()
        self._tokenizer: Tokenizer | None = None
        self._opened: dict[str, Stored | None] = {}
        self._blocks: dict[str, Blocks] = {}

    def use(self, tokenizer: Tokenizer) -> None:
        """Take a checkpoint's tokenizer instead of the one that was asked for."""
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; one to be trained is there after `prepare_data` or `setup`."""
        if self._tokenizer is None:
            if self.given == "bpe":
                raise ZooError("The tokenizer is trained on the data, and the data have not been prepared yet.")
            self._tokenizer = tokenizer.load(self.given)
        return self._tokenizer

    @property
    def vocabulary(self) -> int:
        """How many numbers there are, the end included; before a bpe is trained, the size asked for."""
        return self.size if self._tokenizer is None and self.given == "bpe" else self.tokenizer.vocabulary

    @property
    def digest(self) -> str:
        """The same for the same corpus."""
        return self._corpus.digest

    @property
    def summary(self) -> str:
        """One line about the data, for a card."""
        told = f"Text: {self._corpus.origin}, digest {self._corpus.digest}; tokenizer {self.tokenizer.name}."
        if self._corpus.compared:
            return told
        known = f"the names of {len(self._corpus.files)} files" if self._corpus.files else "its name"
        known = f"revision {self._corpus.revision} and {known}" if self._corpus.revision else known
        return f"{told} The contents of the stream were not compared: known are {known}."

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which text is trained on, as plain values: two runs with equal ones read the same text.

        `corpus` is the digest of the corpus, `split` that of what is held out of it, `files` the names of a stream's
        files in their order, `revision` that of a hub's data set, and `compared` tells whether `corpus` is of
        'contents' or, for a stream of the hub, of 'names' only.
        """
        return {
            "corpus": self._corpus.digest,
            "split": self._key("split"),
            "files": list(self._corpus.files),
            "revision": self._corpus.revision,
            "compared": "contents" if self._corpus.compared else "names",
        }

    # What is on disk

    def prepare_data(self) -> None:
        """Download, tokenise and store what the trainer is about to need, in one process for all."""
        for part in self._needed(None):
            self._stored(part)

    def setup(self, stage: str | None = None) -> None:
        """Open what the stage needs; the same work as `prepare_data` where another machine did that."""
        length = self._length()
        for part in self._needed(stage):
            stored = self._stored(part)
            if stored is None:
                continue
            placement = self._placement() if part == "train" else None
            blocks = Blocks(stored, length, length if stored.about["gap"] else 0, placement)
            if not len(blocks):
                raise ZooError(self._short(part, stored, length))
            self._blocks[part] = blocks

    def _needed(self, stage: str | None) -> tuple[str, ...]:
        trainer = self.trainer
        stage = stage or (trainer.state.fn.value if trainer is not None and trainer.state.fn else None)
        parts = NEEDED.get(stage, PARTS) if stage else PARTS
        return tuple(part for part in parts if part == "train" or self.others[part] or self.shares[part])

    def _length(self) -> int:
        if self.length is not None:
            return self.length
        model = self.trainer.lightning_module if self.trainer is not None else None
        length = getattr(model, "length", None)
        if not isinstance(length, int):
            raise ZooError(
                "The length of a block is not known: there is no model that has one.  Try:  --data.length 256"
            )
        return length

    def _placement(self) -> Placement | None:
        if self.positions == "full":
            return None
        reach = getattr(self.trainer.lightning_module if self.trainer is not None else None, "reach", None)
        if not isinstance(reach, int):
            raise ZooError(f"Positions by {self.positions} are those that a model reads, and there is no model.")
        return Placement(self.positions, self._length(), reach, self.seed)

    def _short(self, part: str, stored: Stored, length: int) -> str:
        about = stored.about
        verb = {"train": "train", "valid": "validate", "test": "test"}[part]
        gap = f", of which {length} are left out after the cut" if about["gap"] else ""
        ways = "  Use more text, or a shorter --data.length"
        ways += "." if part == "train" else f", or a larger --data.{part}, or --data.{part} 0 to do without."
        return (
            f"There is too little text to {verb} on: {about['tokens']} tokens in {about['documents']} documents{gap};"
            f" one block of length {length} takes {length + 1}.\n{ways}"
        )

    @cached_property
    def _corpus(self) -> Corpus:
        if self.dataset:
            return corpus.hub(self.dataset, self.subset, self.column, self.streaming, self.cache / "rows")
        if self.files:
            return corpus.local(self.files, self.column, self.streaming, self.cache / "rows")
        return corpus.library()

    @cached_property
    def _held(self) -> dict[str, Corpus]:
        """The documents that somebody else than us set aside for a part."""
        given = {part: files for part, files in self.others.items() if files}
        named = {part: corpus.local(files, self.column, False, self.cache / "rows") for part, files in given.items()}
        return {**self._corpus.parts, **named}

    @cached_property
    def _held_texts(self) -> frozenset[bytes]:
        """Digests of the documents that are held out by name; no document that equals one is trained on.

        Of a stream's parts these are its first documents, which are all that is validated and tested on.
        """
        return frozenset(
            digest_text(text) for held in self._held.values() for text in self._apart(held)["text"] if text
        )

    @cached_property
    def _own(self) -> dict[str, float]:
        """The shares that must come out of the corpus itself."""
        return {part: 0.0 if part in self._held else share for part, share in self.shares.items()}

    @cached_property
    def _split(self) -> Split | _Head:
        rows = self._corpus.load()
        if not isinstance(rows, Dataset):
            return _Head(rows, self.seed, **self._own, held=self._held_texts)
        split = Split(rows, **self._own, seed=self.seed, limit=self.limit, held=self._held_texts)
        left_out = {
            "undecodable or without text": split.unread,
            "empty": split.empty,
            "equal to held-out ones": split.held,
            "copies of others": split.copies if split.cut else 0,
        }
        said = "".join(f", {count} {kind} left out" for kind, count in left_out.items() if count)
        if split.copies and not split.cut:
            said += f", {split.copies} copies of others in the parts of these"
        limited = f", limited to {self.limit} characters by --data.limit" if self.limit else ""
        rank_zero_info(
            f"Corpus: {self._corpus.origin}: {split.documents} documents, {split.characters} characters"
            f"{said}{limited}; digest {self._corpus.digest}"
        )
        if split.cut:
            rank_zero_info(
                f"The corpus has {split.documents} document(s), fewer than the parts it is split into: the longest is "
                f"cut into {len(split.pieces)}, and after each cut one block is left out."
            )
        return split

    def _key(self, *words: Any) -> str:
        held = {part: found.digest for part, found in self._held.items()}
        about = [RULE, self._corpus.digest, held, self._own, self.seed, self.limit, self.streaming, *words]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]

    def _make(self) -> Tokenizer:
        """The tokenizer: a checkpoint's, a named one, or one trained on this training part, now or earlier."""
        if self._tokenizer is None and self.given == "bpe":
            path = self.cache / "tokenizers" / f"bpe-{self.size}-{self._key()}.tiktoken"
            if path.is_file():
                self._tokenizer = tokenizer.load(str(path))
                rank_zero_info(f"Tokenizer: the BPE of {self._tokenizer.vocabulary} trained earlier on these documents")
            else:
                self._tokenizer = tokenizer.train(_upto(self._split["train"], TRAINED), self.size)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._tokenizer.save(path)
                rank_zero_info(f"Tokenizer: a BPE of {self._tokenizer.vocabulary}, trained on the training documents")
        return self.tokenizer

    def _stored(self, part: str) -> Stored | None:
        """The tokens of a part, from the cache or put there; None for the training part of a stream."""
        if part not in self._opened:
            self._opened[part] = self._open(part)
        return self._opened[part]

    def _open(self, part: str) -> Stored | None:
        try:
            made = self._make()
            if self.streaming and part == "train":
                return None
            held = self._held.get(part)
            key = self._key(part, made.digest)
            folder = self.cache / "tokens" / f"{part}-{key}"
            if folder.exists():
                stored = Stored(folder)
                about = stored.about
                rank_zero_info(
                    f"Tokens ({part}): {about['tokens']} of {about['documents']} documents of {about['origin']}, "
                    f"digest {about['digest']}, from the cache {folder}"
                )
                return stored
            rows, gap = (self._apart(held), False) if held else (self._split[part], self._split.cut and part != "train")
            source = held or self._corpus
            about = {"part": part, "origin": source.origin, "digest": source.digest, "gap": gap}
            tokenise(rows, made, folder, about, self.workers)
            stored = Stored(folder)
            rank_zero_info(
                f"Tokens ({part}): {stored.about['tokens']} of {stored.about['documents']} documents, "
                f"tokenizer {made.name}, kept in {folder}"
            )
            return stored
        except OSError as error:
            raise ZooError(
                f"The cache {self.cache} cannot be written or read: {error}.   Try:  --data.cache FOLDER"
            ) from error

    def _apart(self, held: Corpus) -> Dataset:
        rows = held.load()
        if isinstance(rows, Dataset):
            return Split(rows, 0.0, 0.0, self.seed)["train"]
        return _Head(rows, self.seed, 0.0, 0.0)["train"]

    def documents(self, part: str) -> tuple[str, Dataset]:
        """The origin and the whole documents of a part, as text."""
        held = self._held.get(part)
        return (held or self._corpus).origin, self._apart(held) if held else self._split[part]

    # What is fed

    def train_dataloader(self) -> DataLoader:
        """Shuffled blocks, or the stream; either can be stored and taken up in the middle."""
        rank, world, finished = placed(self.trainer)
        if not self.streaming:
            shuffle = not overfits(self.trainer)
            return Loader(
                self._part("train"),
                self.batch,
                self.seed,
                shuffle,
                self.workers,
                rank,
                world,
                finished=finished,
                even=True,
            )
        if overfits(self.trainer):
            raise ZooError(
                "overfit_batches reads the same batches in every epoch, and a stream reads on.   "
                "Try:  --data.streaming false, or --trainer.limit_train_batches N"
            )
        pack = partial(
            Packer,
            tokenizer=self.tokenizer,
            length=self._length(),
            batch=self.batch,
            **self._own,
            seed=self.seed,
            limit=self.limit,
            placement=self._placement(),
            held=self._held_texts,
        )
        return Stream(self._split.rows, pack, self.workers, rank, world, finished)

    def val_dataloader(self) -> DataLoader | list[Any]:
        """The blocks to validate on, each once and in order; none where their share is 0."""
        return self._ordered("valid", optional=True)

    def test_dataloader(self) -> DataLoader | list[Any]:
        """The blocks to test on, each once and in order."""
        return self._ordered("test")

    def predict_dataloader(self) -> DataLoader | list[Any]:
        """The blocks to test on."""
        blocks = self._part("test")
        return SentenceLoader(blocks, batch_size=self.batch, num_workers=self.workers)

    def _ordered(self, part: str, optional: bool = False) -> DataLoader | list[Any]:
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if optional and part not in self._blocks and fitting:
            return []
        rank, world, _ = placed(self.trainer)
        return Loader(self._part(part), self.batch, self.seed, False, self.workers, rank, world)

    def _part(self, part: str) -> Blocks:
        if part in self._blocks:
            return self._blocks[part]
        if part != "train" and not (self.shares[part] or self.others[part]):
            raise ZooError(f"No text was set aside: --data.{part} is 0.   Try:  --data.{part} 0.05")
        raise ZooError(f"The part {part!r} of the text has not been set up.")


def placed(trainer: L.Trainer | None) -> tuple[int, int, Callable[[], int] | None]:
    """Rank and number of those that read for training, and the trainer's count of batches finished in this epoch.

    Processes that share each sequence read the same ones in the same order: they are one reader.
    """
    if trainer is None:
        return 0, 1, None
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    shared = getattr(trainer.lightning_module, "sequence_parallel", 1)
    return trainer.global_rank // shared, trainer.world_size // shared, lambda: progress.current.processed


class _Head:
    """The first documents of a stream, split: those to hold out are sought among them, all others are trained on."""

    cut = False

    def __init__(self, rows: Any, seed: int, valid: float, test: float, held: frozenset[bytes] = frozenset()) -> None:
        self.rows, self.seed, self.valid, self.test, self.held = rows, seed, valid, test, held

    def __getitem__(self, part: str) -> Dataset:
        first = itertools.islice(read_texts(self.rows), HEAD)
        texts = [text for text in first if text and part_of(text, self.valid, self.test, self.seed) == part]
        if self.held:
            texts = [text for text in texts if digest_text(text) not in self.held]
        return Dataset.from_dict({"text": texts})


def _upto(rows: Dataset, characters: int) -> Iterator[str]:
    """The texts of the rows, as long as they have no more characters than that in all."""
    for row in rows:
        if (characters := characters - len(row["text"])) < 0:
            return
        yield row["text"]
