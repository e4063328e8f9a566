"""A stream packs the same blocks as a store would, shares its shards, and goes on where it stopped."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing as multiprocessing

from zoo.data import Text
from zoo.data.positions import Placement
from zoo.data.split import part_of
from zoo.data.stream import Packer, Stream, read_texts
from zoo.errors import ZooError

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Documents in five shards of unequal length, no block of them like another."""
    root = tmp_path / "texts"
    root.mkdir()
    for shard in range(5):
        rows = ({"text": " ".join(f"{shard}.{n}.{k}" for k in range(8 + n % 7))} for n in range(12 + 3 * shard))
        (root / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def make(folder: Path, **more: Any) -> Text:
    settings = {"files": str(folder), "streaming": True, "tokenizer": "bytes", "length": 32, "batch": 2, "workers": 0}
    data = Text(**{**settings, "cache": str(folder.parent / "cache"), **more})
    data.prepare_data()
    data.setup("fit")
    return data


def loader(data: Text) -> Stream:
    made = data.train_dataloader()
    assert isinstance(made, Stream)
    return made


def rows(batches: list[dict[str, torch.Tensor]]) -> list[list[int]]:
    return [row for batch in batches for row in batch["tokens"].tolist()]


def test_one_process_reads_the_corpus_in_order(folder: Path) -> None:
    batches = list(loader(make(folder, valid=0, test=0)))
    stored = Text(str(folder), tokenizer="bytes", length=32, valid=0, test=0, cache=str(folder.parent / "cache"))
    stored.setup("fit")
    blocks = stored._blocks["train"]
    assert len(blocks) - 1 <= 2 * len(batches) <= len(blocks)
    for n, batch in enumerate(batches):
        for key in ("tokens", "documents"):
            assert torch.equal(batch[key], torch.stack([blocks[2 * n][key], blocks[2 * n + 1][key]])), key


def test_workers_read_everything_once(folder: Path) -> None:
    found = [bytes(t for t in row if t < 256).decode() for row in rows(list(loader(make(folder, workers=3))))]
    assert len(set(found)) == len(found)
    shards = {shard for text in found for shard in range(5) if f" {shard}." in text}
    assert shards == {0, 1, 2, 3, 4}


def test_no_more_workers_than_shards(folder: Path) -> None:
    assert loader(make(folder, workers=50)).num_workers == 5
    (folder.parent / "one.txt").write_text("one " * 500)
    one = make(folder.parent / "one.txt", workers=4, valid=0, test=0)
    assert loader(one).num_workers == 1
    assert len(list(loader(one))) > 20


def test_held_out_documents_are_never_trained_on(folder: Path) -> None:
    data = make(folder, valid=0.3, test=0.2, length=8)
    held = data._blocks["valid"].stored.tokens.tolist()
    trained = {tuple(row) for row in rows(list(loader(data)))}
    texts = bytes(t if t < 256 else 0 for t in held).decode().split("\0")[:-1]
    assert texts
    assert all(part_of(text, 0.3, 0.2, 0) == "valid" for text in texts)
    for text in texts:
        start = tuple(text.encode()[:9])
        assert start not in trained


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("stop", [1, 7, 60])
def test_goes_on_where_it_stopped(folder: Path, workers: int, stop: int) -> None:
    """Also late, when some of the loading processes have come to the end of their shards."""
    data = make(folder, workers=workers)
    whole = rows(list(loader(data)))
    stop = min(stop, len(whole) // 2 - 2)
    first = loader(data)
    batches = iter(first)
    begun = [next(batches) for _ in range(stop)]
    state = json.loads(json.dumps(first.state_dict()), object_hook=_numbered)
    again = loader(data)
    again.load_state_dict(state)
    assert again.state_dict()["batches"] == stop
    rest = list(again)
    assert rows(begun) + rows(rest) == whole
    assert rows(list(again)) == whole, "the next epoch begins at the beginning"


def test_files_of_text_go_on_too(tmp_path: Path) -> None:
    root = tmp_path / "texts"
    root.mkdir()
    for n in range(7):
        (root / f"{n}.txt").write_text(" ".join(f"{n}.{k}" for k in range(100 + 10 * n)))
    data = make(root, workers=2, valid=0, test=0)
    first = loader(data)
    batches = iter(first)
    begun = [next(batches) for _ in range(21)]
    again = loader(data)
    again.load_state_dict(first.state_dict())
    assert rows(begun) + rows(list(again)) == rows(list(loader(data)))


def _numbered(found: dict[str, Any]) -> dict[Any, Any]:
    """JSON has no numbers for keys; the places are kept by the number of their process."""
    return {int(key) if key.isdigit() else key: value for key, value in found.items()}


class Recorder(L.LightningModule):
    length = 32

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        self.seen += batch["tokens"].tolist()
        return self.weight.sum()

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Save(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step:02d}.ckpt")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("limit", [1.0, 9])
def test_a_trainer_continues_a_stream(folder: Path, workers: int, limit: float) -> None:
    """Lightning fetches a batch ahead of the one in training, unless it is told how many there are."""
    saved = folder.parent / "saved"
    data = make(folder, workers=workers)

    def fit(resume: Path | None = None, **more: Any) -> list[list[int]]:
        model = Recorder()
        settings = {"accelerator": "cpu", "max_steps": 14, "max_epochs": -1, "limit_train_batches": limit, **QUIET}
        L.Trainer(**{**settings, **more}).fit(model, data, ckpt_path=resume, weights_only=True)
        return model.seen

    whole = fit(callbacks=[Save(saved)])
    assert len(whole) == 28
    for step in (1, 5, 8):
        assert fit(resume=saved / f"{step:02d}.ckpt") == whole[2 * step :], step


def test_another_share_is_refused(folder: Path) -> None:
    state = loader(make(folder, workers=2)).state_dict()
    for change in ({"workers": 3}, {"batch": 4}, {"length": 16}):
        with pytest.raises(ZooError, match="cannot continue in mid-epoch"):
            loader(make(folder, **{"workers": 2, **change})).load_state_dict(state)


def test_a_limit_ends_the_stream(folder: Path) -> None:
    short, long = (len(list(loader(make(folder, limit=limit)))) for limit in (1000, None))
    assert 0 < short < long / 2


def test_a_vocabulary_is_trained_on_the_head(folder: Path) -> None:
    data = make(folder, tokenizer="bpe", vocabulary=280)
    assert 257 < data.vocabulary <= 280
    assert max(map(max, rows(list(loader(data))))) < data.vocabulary


def _rank(rank: int, folder: str, port: str, results: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=port, rank=rank, world_size=2)
    data = make(Path(folder))
    pack = loader(data).packer

    def stream() -> Stream:
        from zoo.data.stream import Packer

        return Stream(data._split.rows, lambda r: Packer(r, pack.tokenizer, 32, 2), 0, rank, 2)

    first = stream()
    batches = iter(first)
    begun = [next(batches) for _ in range(3)]
    state = first.state_dict()
    rest = rows(list(batches))
    again = stream()
    again.load_state_dict(state)
    results.put((rank, len(state["ranks"]), rest == rows(list(again)), rows(begun)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_ranks_read_apart_and_are_stored_together(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    port = f"file://{folder.parent / 'meeting'}"
    processes = [context.Process(target=_rank, args=(rank, str(folder), port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    told = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert [(rank, count, same) for rank, count, same, _ in told] == [(0, 2, True), (1, 2, True)]
    assert told[0][3] != told[1][3]


def shared(folder: Path, world: int, workers: int, **more: Any) -> list[Stream]:
    """The streams of all processes, 4 blocks of 32 tokens a step in all."""
    data = make(folder, valid=0, test=0)
    tokenizer = loader(data).packer.tokenizer

    def pack(rows: Any) -> Packer:
        return Packer(rows, tokenizer, 32, 4 // world, **more)

    return [Stream(data._split.rows, pack, workers, rank, world) for rank in range(world)]


def state(streams: list[Stream]) -> dict[str, Any]:
    """What a checkpoint keeps of all of them."""
    return {**streams[0].state_dict(), "ranks": [one.state_dict()["ranks"][0] for one in streams]}


@pytest.mark.parametrize(("then", "now"), [((2, 1), (1, 2)), ((1, 2), (2, 0)), ((2, 2), (4, 1)), ((4, 0), (2, 2))])
@pytest.mark.parametrize("stop", [0, 5])
def test_a_stream_changes_hands(folder: Path, then: Any, now: Any, stop: int, capsys: Any) -> None:
    for shard in range(5, 8):  # 8 divide among 2 and 4
        text = "".join(json.dumps({"text": f"{shard}.{n} " * 9}) + "\n" for n in range(20))
        (folder / f"{shard}.jsonl").write_text(text)
    whole = sorted(row for one in shared(folder, *then, **{}) for row in rows(list(one)))
    first = shared(folder, *then)
    begun = [row for one in first for row in rows(list(itertools.islice(one, stop)))]
    second = shared(folder, *now)
    for one in second:
        one.load_state_dict(state(first))
    after = [row for one in second for row in rows(list(one))]
    assert sorted(begun + after)[0] in whole
    found = {tuple(row) for row in begun + after}
    assert len(found) == len(begun + after), "nothing is read twice"
    missed = {tuple(row) for row in whole} - found
    assert len(missed) <= 3 * 4, "only what fills no batch at the end of each of the four streams"
    assert len(after) > 50
    assert capsys.readouterr().err.count("No document is lost or read twice") == 1


def test_a_stream_that_cannot_change_hands_says_why(folder: Path) -> None:
    two = state(shared(folder, 2, 1))
    with pytest.raises(ZooError, match=r"of 5 shards is not divided.*--trainer.devices 2"):
        shared(folder, 1, 2)[0].load_state_dict(two)
    with pytest.raises(ZooError, match=r"streams: 2 then, 1 now.*\n  With 1 process, .*--data.workers 2$"):
        shared(folder, 1, 1)[0].load_state_dict(two)
    other = shared(folder, 2, 2)[0]
    other.packer.batch = 4
    with pytest.raises(ZooError, match=r"4 then, 8 now; streams: 2 then, 4 now.*\n.*--data.batch 2 --data.workers 1"):
        other.load_state_dict(two)
    placed = shared(folder, 1, 2, placement=Placement("pose", 32, 128, 0))[0]
    with pytest.raises(ZooError, match="skips by the number of its process"):
        placed.load_state_dict(two)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (17, "holds int, not text, in the row 3"),
        (["a"], "holds list"),
        (OSError("no network"), "broke off: no network"),
    ],
)
def test_a_stream_that_is_no_text_or_breaks_off(bad: Any, sentence: str) -> None:
    def rows() -> Any:
        yield from ({"text": "a"}, {"text": None})
        if isinstance(bad, Exception):
            raise bad
        yield {"text": bad}

    with pytest.raises(ZooError, match=sentence):
        list(read_texts(rows()))
