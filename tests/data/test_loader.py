"""A continued run sees exactly the batches it has not seen: shown with a real Trainer, from every place it can stop."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import Dataset

from zoo.data.loader import Loader, Order
from zoo.data.text import placed
from zoo.errors import ZooError


class Numbers(Dataset):
    """Items that are their own numbers."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.tensor(number)


class Data(L.LightningDataModule):
    def __init__(self, workers: int) -> None:
        super().__init__()
        self.workers = workers

    def train_dataloader(self) -> Loader:
        rank, world, finished = placed(self.trainer)
        return Loader(Numbers(23), 2, 3, True, self.workers, rank, world, finished=finished)

    def val_dataloader(self) -> Loader:
        return Loader(Numbers(6), 2, 3, False, self.workers)


class Recorder(L.LightningModule):
    """Writes down which items it was trained on; fails in the middle of a batch where asked to."""

    def __init__(self, fail: int = -1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, ...]] = []
        self.fail = fail

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        if len(self.seen) == self.fail:
            raise KeyboardInterrupt
        self.seen.append(tuple(batch.tolist()))
        return self.weight.sum()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Everywhere(L.Callback):
    """Saves a checkpoint at every place where Lightning's own callback may."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def save(self, trainer: L.Trainer, place: str) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"{self.count:03d}-{place}.ckpt")
            self.count += 1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0:
            self.save(trainer, "batch")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.save(trainer, "epoch")


def fit(
    workers: int, model: Recorder | None = None, save: Path | None = None, resume: Path | None = None, **trainer: Any
) -> list[tuple[int, ...]]:
    model = model or Recorder()
    callbacks = [Everywhere(save)] if save else []
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    run = L.Trainer(accelerator="cpu", callbacks=callbacks, use_distributed_sampler=False, **quiet, **trainer)
    run.fit(model, Data(workers), ckpt_path=resume, weights_only=True)
    return model.seen


def finished_batches(path: Path) -> int:
    return torch.load(path, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]


@pytest.mark.parametrize(
    "trainer",
    [
        {"max_epochs": 3},
        {"max_steps": 28, "max_epochs": -1},
        {"max_epochs": 3, "accumulate_grad_batches": 2},
        {"max_epochs": 3, "val_check_interval": 4},
        {"max_steps": 28, "max_epochs": -1, "val_check_interval": 4},
        {"max_steps": 16, "max_epochs": -1, "limit_train_batches": 6, "val_check_interval": 4},
        {"max_steps": 14, "max_epochs": -1, "accumulate_grad_batches": 2, "val_check_interval": 4},
        {"max_steps": 28, "max_epochs": -1, "val_check_interval": 5, "check_val_every_n_epoch": None},
    ],
    ids=lambda trainer: " ".join(f"{key}={value}" for key, value in trainer.items()),
)
def test_continues_exactly_from_every_checkpoint(tmp_path: Path, trainer: dict[str, Any]) -> None:
    whole = fit(0, save=tmp_path, **trainer)
    assert len({item for batch in whole[:6] for item in batch}) == 12, "an epoch repeats an item"
    paths = sorted(tmp_path.iterdir())
    assert {path.stem.split("-")[1] for path in paths} == {"batch", "validation", "epoch"}
    for path in paths:
        rest = fit(0, resume=path, **trainer)
        assert rest == whole[finished_batches(path) :], path.name


def test_continues_exactly_with_worker_processes(tmp_path: Path) -> None:
    trainer = {"max_epochs": 3, "val_check_interval": 4}
    whole = fit(2, save=tmp_path, **trainer)
    assert whole == fit(0, **trainer), "workers change what is seen"
    paths = sorted(tmp_path.iterdir())
    for path in (paths[2], paths[5], paths[-4]):
        assert fit(2, resume=path, **trainer) == whole[finished_batches(path) :], path.name


def test_a_continued_run_can_be_continued(tmp_path: Path) -> None:
    trainer = {"max_steps": 28, "max_epochs": -1, "val_check_interval": 5, "check_val_every_n_epoch": None}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    whole = fit(0, save=tmp_path / "one", **trainer)
    # The end of an epoch is where Lightning counts twice: what comes after must know.
    end = next(path for path in sorted((tmp_path / "one").iterdir()) if "epoch" in path.name)
    assert fit(0, save=tmp_path / "two", resume=end, **trainer) == whole[11:]
    for path in sorted((tmp_path / "two").iterdir()):
        assert fit(0, resume=path, **trainer) == whole[finished_batches(path) :], path.name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_was_interrupted_is_seen_again(tmp_path: Path, workers: int) -> None:
    whole = fit(0, max_epochs=2)
    path = tmp_path / "last.ckpt"

    class OnException(L.Callback):
        def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(path)

    model = Recorder(fail=14)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        L.Trainer(accelerator="cpu", callbacks=[OnException()], max_epochs=2, **quiet).fit(model, Data(workers))
    assert model.seen + fit(workers, resume=path, max_epochs=2) == whole


def test_orders_differ_by_epoch_and_seed_and_cover_everything() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        numbers = Order(10, seed)
        numbers.set_epoch(epoch)
        return list(numbers)

    assert order(1, 0) == order(1, 0)
    assert len({tuple(n % 10 for n in order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) == 6
    assert sorted(order(1, 2)) == list(range(20, 30)), "numbers count on through the epochs"


def test_ranks_share_an_epoch() -> None:
    ranks = [list(Order(23, 5, batch=2, rank=rank, world=3)) for rank in range(3)]
    assert [len(numbers) for numbers in ranks] == [6, 6, 6]
    assert len({number for numbers in ranks for number in numbers}) == 18
    ordered = [list(Order(7, shuffle=False, even=False, rank=rank, world=2)) for rank in range(2)]
    assert ordered == [[0, 2, 4, 6], [1, 3, 5, -7]], "as many for all; what is below 0 does not count"
    assert {len(Order(7, shuffle=False, even=False, rank=rank, world=2)) for rank in range(2)} == {4}


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_drawn_from_the_default_generator(workers: int) -> None:
    before = torch.get_rng_state()
    for shuffle in (True, False):
        list(Loader(Numbers(9), 2, shuffle=shuffle, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_length_is_that_of_the_epoch_also_after_resuming() -> None:
    loader = Loader(Numbers(23), 2, 3)
    batches = iter(loader)
    first = [next(batches) for _ in range(4)]
    again = Loader(Numbers(23), 2, 3)
    again.load_state_dict(loader.state_dict())
    assert again.state_dict() == loader.state_dict()
    assert len(again) == 11
    rest = list(again)
    assert len(first) + len(rest) == 11
    assert torch.cat([*first, *rest]).tolist() == torch.cat(list(Loader(Numbers(23), 2, 3))).tolist()


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (Loader(Numbers(23), 3, 3), "batch size over all processes: 2 then, 3 now"),
        (Loader(Numbers(25), 2, 3), "items to train on: 23 then, 25 now"),
        (Loader(Numbers(23), 2, 4), "seed: 3 then, 4 now"),
        (
            Loader(Numbers(23), 2, 3, world=2),
            "all processes: 2 then, 4 now.*\n  With 2 processes.*Try:  --data.batch 1$",
        ),
        (Loader(Numbers(23), 2, 3, world=3), "all processes: 2 then, 6 now.*\n  Continue with.*--model.weights CKPT"),
        (Loader(Numbers(23), 2, 4, world=2), "seed: 3 then, 4 now.*\n  Continue with.*--model.weights CKPT"),
    ],
)
def test_other_data_are_refused(other: Loader, sentence: str) -> None:
    with pytest.raises(ZooError, match=sentence):
        other.load_state_dict(Loader(Numbers(23), 2, 3).state_dict())


def test_a_place_without_its_meaning_is_refused() -> None:
    with pytest.raises(ZooError, match="does not say where in the data it stopped"):
        Loader(Numbers(23), 2, 3).load_state_dict({"batches": 3})


@pytest.mark.parametrize(("then", "now"), [(1, 2), (2, 1), (2, 4), (4, 1)])
@pytest.mark.parametrize("stop", [0, 3, 5])
def test_another_number_of_processes_sees_the_same_batches(then: int, now: int, stop: int) -> None:
    def loaders(world: int) -> list[Loader]:
        return [Loader(Numbers(50), 8 // world, 3, rank=rank, world=world) for rank in range(world)]

    def batches(ranks: list[Loader], count: int | None = None) -> list[list[int]]:
        """What all processes together see at each step."""
        steps = zip(*ranks, strict=True)
        return [sorted(torch.cat(step).tolist()) for step in itertools.islice(steps, count)]

    whole = batches(loaders(then))
    assert len(whole) == 6
    first = loaders(then)
    begun = batches(first, stop)
    state = first[0].state_dict()
    rest = loaders(now)
    for one in rest:
        one.load_state_dict(state)
    assert begun + batches(rest) == whole
