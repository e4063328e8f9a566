"""Text from files to batches: what a model is fed is the corpus, in order, once, and never what it is examined on."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import random
import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from datasets import Dataset

from zoo.data import Text
from zoo.data import text as module
from zoo.data.tokenizer import Tokenizer, load
from zoo.data.tokens import Blocks, Stored, tokenise
from zoo.errors import ZooError


def corpus(folder: Path, count: int = 40) -> dict[str, str]:
    """Files of prose that tells its documents apart."""
    chance = random.Random(0)
    words = [f"word{n}" for n in range(300)]
    texts = {f"{n:03d}.txt": " ".join(chance.choices(words, k=chance.randrange(20, 200))) for n in range(count)}
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)
    return texts


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    return corpus(tmp_path / "texts")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of the log."""
    lines: list[str] = []
    monkeypatch.setattr(module, "rank_zero_info", lines.append)
    return lines


def make(tmp_path: Path, **more: Any) -> Text:
    settings = {"files": str(tmp_path / "texts"), "tokenizer": "bytes", "length": 64, "batch": 2, "workers": 0}
    return Text(**{**settings, "cache": str(tmp_path / "cache"), **more})


def ready(tmp_path: Path, **more: Any) -> Text:
    data = make(tmp_path, **more)
    data.prepare_data()
    data.setup()
    return data


def flat(blocks: Blocks) -> list[int]:
    """The tokens of blocks that are laid end to end, each overlapping the one before by one."""
    items = [blocks[n]["tokens"].tolist() for n in range(len(blocks))]
    assert all(before[-1] == after[0] for before, after in itertools.pairwise(items))
    return items[0] + [token for item in items[1:] for token in item[1:]]


def test_blocks_are_the_corpus(tmp_path: Path, texts: dict[str, str]) -> None:
    data = ready(tmp_path, valid=0, test=0)
    expected = [number for text in texts.values() for number in [*text.encode(), 256]]
    blocks = data._blocks["train"]
    assert flat(blocks) == expected[: len(blocks) * 64 + 1]
    assert len(expected) - 1 - len(blocks) * 64 < 64


def test_documents_are_numbered_within_a_block(tmp_path: Path, texts: dict[str, str]) -> None:
    blocks = ready(tmp_path, valid=0, test=0)._blocks["train"]
    for n in range(len(blocks)):
        item = blocks[n]
        ends = (item["tokens"] == 256).int()
        assert item["documents"].tolist() == (ends.cumsum(0) - ends).tolist()
        assert (item["tokens"].dtype, item["documents"].dtype) == (torch.int64, torch.int32)


def test_parts_share_no_document(tmp_path: Path, texts: dict[str, str]) -> None:
    data = ready(tmp_path, valid=0.2, test=0.2, length=8)
    found = {}
    for part, blocks in data._blocks.items():
        whole = bytes(number if number < 256 else 0 for number in flat(blocks)).decode()
        found[part] = {text for text in whole.split("\0")[:-1] if text}
        assert found[part] <= set(texts.values())
    assert len(found) == 3
    assert all(found.values())
    assert sum(map(len, found.values())) == len(set.union(*found.values())) >= len(texts) - 3


def test_batches(tmp_path: Path, texts: dict[str, str]) -> None:
    data = ready(tmp_path, workers=2, valid=0.2, test=0.2)
    batches = list(data.train_dataloader())
    assert len(batches) == len(data._blocks["train"]) // 2
    assert {key: tuple(value.shape) for key, value in batches[0].items()} == {"tokens": (2, 65), "documents": (2, 65)}
    seen = {tuple(row) for batch in batches for row in batch["tokens"].tolist()}
    assert len(seen) == 2 * len(batches)
    ordered = [row for batch in data.val_dataloader() for row in batch["tokens"].tolist()]
    assert ordered == [data._blocks["valid"][n]["tokens"].tolist() for n in range(len(data._blocks["valid"]))]
    assert len(list(data.predict_dataloader())) == len(list(data.test_dataloader()))


def test_a_second_run_reuses_the_tokens(
    tmp_path: Path, texts: dict[str, str], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ready(tmp_path, tokenizer="bpe", vocabulary=300)
    assert any("trained on the training documents" in line for line in said)
    assert any("40 documents" in line and f"digest {first._corpus.digest}" in line for line in said)
    monkeypatch.setattr(module, "tokenise", None)
    monkeypatch.setattr(module.tokenizer, "train", None)
    said.clear()
    second = ready(tmp_path, tokenizer="bpe", vocabulary=300, length=32)
    assert [line for line in said if "from the cache" in line and "(train)" in line]
    assert flat(second._blocks["valid"])[:65] == flat(first._blocks["valid"])[:65]
    assert second.tokenizer.ranks == first.tokenizer.ranks


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"valid": 0.3}, {"limit": 9000}, {"tokenizer": "bpe", "vocabulary": 300}, {"files": "more"}]
)
def test_other_settings_are_other_tokens(tmp_path: Path, texts: dict[str, str], change: dict[str, Any]) -> None:
    one = ready(tmp_path, valid=0.2)
    if "files" in change:
        (tmp_path / "texts" / "000.txt").write_text("another text " * 20)
        change = {}
    other = ready(tmp_path, **{"valid": 0.2, **change})
    assert one._blocks["train"].stored.folder != other._blocks["train"].stored.folder


def test_a_trained_vocabulary_knows_only_the_training_part(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(30):
        (folder / f"{n:02d}.txt").write_text(f"{chr(0x4E00 + n)} " * 300)
    data = ready(tmp_path, tokenizer="bpe", vocabulary=400, valid=0.2, test=0.2, length=16)
    trained = {number for number in flat(data._blocks["train"])}
    assert data.vocabulary == data.tokenizer.vocabulary <= 400
    for part in ("valid", "test"):
        letters = data.tokenizer.decode(flat(data._blocks[part])).replace("<|endoftext|>", "").split()
        assert all(len(data.tokenizer.encode(letter)) > 1 for letter in set(letters) if "\ufffd" not in letter)
    assert len(trained) > 20


def test_a_checkpoints_tokenizer_is_used(tmp_path: Path, texts: dict[str, str]) -> None:
    first = ready(tmp_path, tokenizer="bpe", vocabulary=300)
    (tmp_path / "texts" / "000.txt").write_text("now there is another text")
    again = make(tmp_path, tokenizer="bpe", vocabulary=290)
    again.use(Tokenizer.restore(first.tokenizer.describe()))
    assert again.vocabulary == first.vocabulary
    again.prepare_data()
    again.setup()
    assert again.tokenizer.ranks == first.tokenizer.ranks
    assert len(list((tmp_path / "cache" / "tokenizers").iterdir())) == 1, "a tokenizer was trained for nothing"


def test_vocabulary_before_anything_is_read() -> None:
    assert Text(tokenizer="bpe", vocabulary=999).vocabulary == 999
    assert Text(tokenizer="bytes").vocabulary == 257
    with pytest.raises(ZooError, match="have not been prepared"):
        _ = Text().tokenizer


def test_a_single_document_leaves_a_gap(tmp_path: Path, said: list[str]) -> None:
    text = "".join(f"{n:05d}\n" for n in range(3000))
    (tmp_path / "one.txt").write_text(text)
    data = ready(tmp_path, files=str(tmp_path / "one.txt"), valid=0.1, test=0.1, length=100)
    assert len([line for line in said if "cut" in line]) == 1
    places = {}
    for part, blocks in data._blocks.items():
        piece = bytes(number for number in flat(blocks) if number < 256).decode()
        places[part] = (text.index(piece), text.index(piece) + len(piece))
    assert places["train"][0] == 0
    # The last, incomplete blocks are not read: their text widens the gap, and never by a whole block.
    assert 100 <= places["valid"][0] - places["train"][1] < 200
    assert 100 <= places["test"][0] - places["valid"][1] < 200


def test_files_set_apart(tmp_path: Path, texts: dict[str, str]) -> None:
    (tmp_path / "valid.txt").write_text("to validate on " * 30)
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "to test on " * 30}) + "\n")
    data = ready(
        tmp_path, valid_files=str(tmp_path / "valid.txt"), test_files=str(tmp_path / "test.jsonl"), valid=0.3, test=0.3
    )
    expected = [number for text in texts.values() for number in [*text.encode(), 256]]
    assert flat(data._blocks["train"]) == expected[: len(data._blocks["train"]) * 64 + 1]
    assert bytes(flat(data._blocks["valid"])).decode().startswith("to validate on")
    assert bytes(flat(data._blocks["test"])).decode().startswith("to test on")


def test_the_embedded_corpus(tmp_path: Path, said: list[str]) -> None:
    data = ready(tmp_path, files=None, limit=200_000, length=128)
    assert len(data._blocks["train"]) > 1000
    line = next(line for line in said if line.startswith("Corpus"))
    assert "the standard library of Python 3." in line
    assert "limited to 200000 characters" in line
    assert "digest" in line


class Model(L.LightningModule):
    length = 48

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.steps = {"train": 0, "valid": 0, "test": 0}

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        assert batch["tokens"].shape[1] == 49
        self.steps["train"] += 1
        return self.weight.sum()

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        self.steps["valid"] += 1

    def test_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        self.steps["test"] += 1

    def predict_step(self, batch: dict[str, torch.Tensor], index: int) -> int:
        return len(batch["tokens"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(**more: Any) -> L.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", use_distributed_sampler=False, **quiet, **more)


def test_the_length_is_the_models_and_only_what_is_needed_is_made(tmp_path: Path, texts: dict[str, str]) -> None:
    data, model = make(tmp_path, length=None), Model()
    trainer(max_steps=2, num_sanity_val_steps=0, max_epochs=-1, limit_val_batches=3).fit(model, data)
    assert set(data._blocks) == {"train", "valid"}
    data = make(tmp_path, length=None)
    trainer().test(model, data, verbose=False)
    assert set(data._blocks) == {"test"}
    assert model.steps["test"] == -(-len(data._blocks["test"]) // 2)
    counts = trainer().predict(model, make(tmp_path, length=None))
    assert sum(counts) == len(data._blocks["test"])
    with pytest.raises(ZooError, match=r"--data.length"):
        make(tmp_path, length=None).setup()


def test_nothing_to_validate_on_is_no_obstacle_to_training(tmp_path: Path, texts: dict[str, str]) -> None:
    model = Model()
    trainer(max_steps=2).fit(model, make(tmp_path, length=None, valid=0))
    assert model.steps == {"train": 2, "valid": 0, "test": 0}
    with pytest.raises(ZooError, match=r"--data.valid is 0"):
        trainer().validate(model, make(tmp_path, length=None, valid=0), verbose=False)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"valid": 0.6, "test": 0.4}, "leave nothing to train on"),
        ({"batch": 0}, "--data.batch must be at least 1"),
        ({"length": 0}, "--data.length must be at least 1"),
        ({"workers": -1}, "--data.workers"),
        ({"tokenizer": "gpt-2"}, "Did you mean gpt2"),
        ({"tokenizer": "bpe", "vocabulary": 100}, "at least 257"),
        ({"length": 10**6}, "too little text to train on: .* takes 1000001"),
        ({"length": 2500, "valid": 0.01}, "too little text to validate on"),
        ({"limit": 10}, "No whole document fits"),
        ({"files": "no such folder"}, "There is no file, folder or match"),
    ],
)
def test_bad_settings_get_a_sentence(
    tmp_path: Path, texts: dict[str, str], settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ZooError, match=sentence):
        ready(tmp_path, **settings)


def test_an_unwritable_cache_gets_a_sentence(tmp_path: Path, texts: dict[str, str]) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(ZooError, match=r"--data.cache FOLDER"):
        ready(tmp_path)


def test_the_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", "/somewhere")
    assert Text().cache == Path("/somewhere")
    monkeypatch.delenv("ZOO_CACHE")
    assert Text().cache == Path("~/.cache/zoo").expanduser()


@pytest.mark.parametrize("name", ["bytes", "large"])
def test_stored_tokens_are_the_encoders(tmp_path: Path, name: str) -> None:
    """Parallel and large-vocabulary storage against plain encoding."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 70_000}
    made = load("bytes") if name == "bytes" else Tokenizer("large", ranks)
    texts = [f"{n} ab " * 30_000 for n in range(13)]
    tokenise(Dataset.from_dict({"text": texts}), made, tmp_path / "tokens", {"part": "train"}, workers=2)
    stored = Stored(tmp_path / "tokens")
    assert stored.tokens.dtype == (np.uint16 if name == "bytes" else np.uint32)
    for n, text in enumerate(texts):
        start, stop = stored.starts[n : n + 2]
        assert stored.tokens[start:stop].tolist() == [*made.encode(text), made.end]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens"]
    assert sorted(path.name for path in stored.folder.iterdir()) == ["about.json", "starts.npy", "tokens.npy"]


def _race(folder: str, go: Any, results: Any) -> None:
    logging.disable()
    go.wait()
    rows = Dataset.from_dict({"text": [f"document {n} " * 50 for n in range(50)]})
    tokenise(rows, load("bytes"), Path(folder), {"part": "train"}, workers=0)
    results.put(int(Stored(Path(folder)).tokens.astype(np.int64).sum()))


def test_two_processes_at_once_do_no_harm(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    go, results = context.Event(), context.Queue()
    racers = [context.Process(target=_race, args=(str(tmp_path / "tokens"), go, results)) for _ in range(3)]
    for racer in racers:
        racer.start()
    go.set()
    sums = {results.get(timeout=60) for _ in racers}
    for racer in racers:
        racer.join()
    assert len(sums) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_a_killed_run_leaves_nothing_that_looks_finished(
    tmp_path: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        ready(tmp_path)
    monkeypatch.undo()
    assert len(ready(tmp_path)._blocks["train"])


def test_a_damaged_cache_gets_a_sentence(tmp_path: Path, texts: dict[str, str]) -> None:
    folder = ready(tmp_path)._blocks["train"].stored.folder
    (folder / "about.json").write_text("{")
    with pytest.raises(ZooError, match="Remove that folder"):
        ready(tmp_path)


def test_what_is_trained_on_has_an_identity(tmp_path: Path, texts: dict[str, str]) -> None:
    """Equal where the text is equal, whatever its folder; another where the text or what is held out of it is."""
    (tmp_path / "held.txt").write_text("to validate on")
    one = make(tmp_path).identity
    assert json.loads(json.dumps(one)) == one
    assert (one["corpus"], one["compared"], one["revision"], one["files"]) == (
        make(tmp_path).digest,
        "contents",
        None,
        [],
    )
    (tmp_path / "texts").rename(tmp_path / "moved")
    assert make(tmp_path, files=str(tmp_path / "moved"), batch=3, length=7).identity == one
    (tmp_path / "moved").rename(tmp_path / "texts")
    for change in ({"seed": 1}, {"valid": 0.3}, {"limit": 9000}, {"valid_files": str(tmp_path / "held.txt")}):
        other = make(tmp_path, **change).identity
        assert other["split"] != one["split"]
        assert other["corpus"] == one["corpus"]
    before = make(tmp_path, valid_files=str(tmp_path / "held.txt")).identity
    (tmp_path / "held.txt").write_text("to validate on, too")
    assert make(tmp_path, valid_files=str(tmp_path / "held.txt")).identity["split"] != before["split"]
    (tmp_path / "texts" / "000.txt").write_text("another")
    assert make(tmp_path).identity["corpus"] != one["corpus"]


def test_the_identity_of_a_stream(tmp_path: Path, texts: dict[str, str]) -> None:
    found = make(tmp_path, streaming=True).identity
    assert found["files"] == sorted(texts)
    assert found["compared"] == "contents"
    assert "not compared" not in make(tmp_path, streaming=True).summary


def test_a_stream_of_the_hub_says_what_was_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import DatasetInfo, Features, IterableDataset, IterableDatasetDict, Value
    from datasets.iterable_dataset import ArrowExamplesIterable

    def stream(revision: str) -> IterableDatasetDict:
        urls = [f"hf://datasets/some/texts@{revision}/data/{n}.jsonl.gz" for n in range(2)]
        tables = ArrowExamplesIterable(lambda files: iter([]), {"files": urls})
        info = DatasetInfo(features=Features({"text": Value("string")}))
        return IterableDatasetDict(train=IterableDataset(tables, info=info).select_columns(["text"]))

    monkeypatch.setattr("requests.head", lambda *_, **__: None)
    made = {}
    for revision in ("0a1b", "2c3d"):
        monkeypatch.setattr("datasets.load_dataset", lambda *_, revision=revision, **__: stream(revision))
        made[revision] = make(tmp_path, files=None, dataset="some/texts", streaming=True)
        _ = made[revision]._corpus
    one, two = made.values()
    assert one.identity["revision"] == "0a1b"
    assert one.identity["files"] == ["data/0.jsonl.gz", "data/1.jsonl.gz"]
    assert one.identity["compared"] == "names"
    assert one.identity != two.identity
    assert "contents of the stream were not compared: known are revision 0a1b and the names of 2 files" in one.summary


def mark(number: int) -> str:
    """A document that says in every word which one it is."""
    return " ".join(f"<{number}>" for _ in range(30))


def trained_on(data: Text) -> set[int]:
    """The numbers of the documents in the training batches."""
    rows = (row for batch in data.train_dataloader() for row in batch["tokens"].tolist())
    return {int(n) for row in rows for n in re.findall(rb"<(\d+)>", bytes(number % 256 for number in row))}


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("kind", ["folder", "jsonl"])
def test_named_held_out_texts_are_never_trained_on(
    tmp_path: Path, texts: dict[str, str], said: list[str], streaming: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of them in the corpus are dropped as they are read, and counted."""
    monkeypatch.setattr("zoo.data.stream.rank_zero_info", said.append)
    for number, name in enumerate(texts):
        texts[name] = mark(number)
        (tmp_path / "texts" / name).write_text(texts[name])
    held = list(texts.values())[:5]
    if kind == "jsonl":
        (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in [*texts.values(), ""]))
        (tmp_path / "valid.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in held[:3]))
        named = {"files": str(tmp_path / "texts.jsonl"), "valid_files": str(tmp_path / "valid.jsonl")}
    else:
        (tmp_path / "link.txt").symlink_to(tmp_path / "texts" / "000.txt")
        links = [str(tmp_path / "link.txt"), str(tmp_path / "texts" / "001.txt"), str(tmp_path / "texts" / "002.txt")]
        named = {"valid_files": links}
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in held[3:]))
    data = ready(tmp_path, streaming=streaming, test_files=str(tmp_path / "test.jsonl"), length=16, batch=1, **named)
    assert trained_on(data) == set(range(5, 40))
    if streaming:
        empty = 1 if kind == "jsonl" else 0
        assert f"Stream: left out so far: 5 documents equal to held-out ones, {empty} without text" in said
    else:
        assert any("35 documents" in line and "5 equal to held-out ones left out" in line for line in said)


def test_a_vocabulary_is_not_trained_on_held_out_texts(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for n in range(10):
        (tmp_path / "texts" / f"{n}.txt").write_text(f"{chr(0x4E00 + n)} " * 300)
    held = str(tmp_path / "texts" / "3.txt")
    data = ready(tmp_path, tokenizer="bpe", vocabulary=400, valid_files=held, test=0, length=8)
    assert len(data.tokenizer.encode(chr(0x4E00 + 3))) > 1
    assert len(data.tokenizer.encode(chr(0x4E00 + 4))) == 1
    other = ready(tmp_path, tokenizer="bpe", vocabulary=400, valid_files=held.replace("3", "4"), test=0, length=8)
    assert len(other.tokenizer.encode(chr(0x4E00 + 3))) == 1, "what is held out is part of the cache's key"


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
def test_a_published_validation_part_is_never_trained_on(tmp_path: Path, streaming: bool) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    said = [mark(n) for n in range(12)]
    for name, chosen in (("train", said), ("validation", said[2:4])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
    data = ready(tmp_path, files=None, dataset=str(folder), streaming=streaming, length=16, batch=1, test=0)
    assert trained_on(data) == {0, 1, *range(4, 12)}


def test_copies_are_in_one_part_and_counted(tmp_path: Path, texts: dict[str, str], said: list[str]) -> None:
    for number, text in enumerate(list(texts.values())[:20]):
        (tmp_path / "texts" / f"copy{number}.txt").write_text(text)
    data = ready(tmp_path, valid=0.2, test=0.2)
    parts = [set(data.documents(part)[1]["text"]) for part in ("train", "valid", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
    assert any("20 copies of others in the parts of these" in line for line in said)
