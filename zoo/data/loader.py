"""Loaders whose place is part of the checkpoint, so that a continued run sees the batches it has not yet seen.

A plain DataLoader replays its first batches when a run resumes in mid-epoch. Here the order of an epoch is a function
of (seed, epoch), the place in it is one number, and no worker's random state matters: an item's number counts on
through the epochs (`epoch, index = divmod(number, size)`), which is all that an augmentation needs to be drawn anew in
every epoch and yet be repeatable. Nothing is drawn from torch's default generator, which belongs to dropout.

Lightning stores `state_dict()` with its fit loop. What counts there is what the trainer has *finished*, not what
workers or Lightning's fetcher have asked for in advance, nor the batch in whose middle an exception struck: hence
`finished`, the trainer's own counter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from zoo.errors import ZooError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class Order(Sampler[int]):
    """The numbers of one epoch's items, for one process of several.

    Args:
        size: items of the data set.
        seed: with the epoch, the origin of the order.
        shuffle: False keeps the order of the data set, in every epoch the same numbers.
        even: leave out what does not divide among `world` processes of `batch` items each; otherwise keep all, and
            processes that would get one less are given a number below 0 for it. What has one does not count: it is
            there because processes that share weights need as many batches as the others.
        batch: items per process and step.
        rank: which of the processes this is.
        world: how many processes share an epoch.
    """

    def __init__(
        self,
        size: int,
        seed: int = 0,
        shuffle: bool = True,
        even: bool = True,
        batch: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self.rank, self.world = rank, world
        self.total = size // (batch * world) * (batch * world) if even else size
        self.said = 0
        self.shift = 0
        self.skip = 0

    @property
    def epoch(self) -> int:
        """The epoch whose order is given: what the trainer says, corrected by what it counted twice."""
        return self.said + self.shift

    def set_epoch(self, epoch: int) -> None:
        """Lightning says before each epoch which one it is."""
        self.said = epoch

    def __len__(self) -> int:
        return -(-self.total // self.world)

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            yield from range(self.rank + self.skip * self.world, self.total, self.world)
            if self.total and len(range(self.rank, self.total, self.world)) < len(self):
                yield -self.size
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator)[self.rank : self.total : self.world]
        for index in order[self.skip :].tolist():
            yield self.epoch * self.size + index


WORKER = re.compile(r"\nzoo\.errors\.\w+: ")


class SentenceLoader(DataLoader):
    """A DataLoader that passes a ZooError of its worker processes on as it was raised there.

    torch raises it anew with the worker's traceback as its message.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except ZooError as error:
            told = WORKER.split(str(error)) if str(error).startswith("Caught ") else []
            if len(told) < 2:
                raise
            raise ZooError(told[-1].rstrip("\n")) from None


class UnshuffledOrder(Order, SequentialSampler):
    """An order that shuffles nothing, which `--trainer.overfit_batches` recognises as such by its class."""


class Loader(SentenceLoader):
    """A DataLoader over numbered items whose place can be stored and taken up again.

    `len` is that of the whole epoch, resumed or not: Lightning's own counters go on from where they were.

    Args:
        dataset: map-style; asked for *numbers*, see `Order`.
        batch: items per process and step.
        seed: origin of the order.
        shuffle: a new order each epoch, and no last batch that is smaller than the others. False: every item once.
        workers: processes that load; 0 loads in this one.
        rank: which of the processes this is.
        world: how many processes share an epoch.
        collate: from a list of items to a batch.
        finished: the trainer's count of batches finished in this epoch; None counts those handed out.
        even: whether all processes get as many items, see `Order` (default: as `shuffle`).
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch: int,
        seed: int = 0,
        shuffle: bool = True,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        collate: Callable[[list[Any]], Any] | None = None,
        finished: Callable[[], int] | None = None,
        even: bool | None = None,
    ) -> None:
        even = shuffle if even is None else even
        size = len(dataset)  # type: ignore[arg-type]
        self.seed, self.finished = seed, finished
        self.global_batch = batch * world
        self.epoch = 0
        self.handed = 0
        self.restored: tuple[int, int] | None = None
        super().__init__(
            dataset,
            batch_size=batch,
            sampler=(Order if shuffle else UnshuffledOrder)(size, seed, shuffle, even, batch, rank, world),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(seed),
            persistent_workers=workers > 0,
        )

    @property
    def order(self) -> Order:
        """The sampler, by its class."""
        assert isinstance(self.sampler, Order)
        return self.sampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, for Lightning makes the iterator before it loads a place and says which epoch it is.
        if not self._begin():
            return
        assert self.batch_size is not None
        self.order.skip = self.handed * self.batch_size
        for batch in super().__iter__():
            self.handed += 1
            yield batch

    def _begin(self) -> bool:
        """Settle epoch and place; False where the trainer asks for more of an epoch that is over."""
        order = self.order
        if self.restored is None:
            self.epoch, self.handed = order.epoch, 0
            return True
        epoch, batches = self.restored
        if order.epoch == epoch and batches < len(self):
            self.handed = batches
        elif self.finished is not None and self.finished() > 0:
            # Lightning 2.6, continuing by steps from a checkpoint of an epoch's end, would train a batch too many in
            # that epoch, and count the epoch twice.
            return False
        else:
            epoch, self.handed = epoch + 1, 0
            order.shift += epoch - order.epoch
        self.epoch, self.restored = epoch, None
        return True

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the batches of it that are done with, and what both mean something for."""
        epoch, batches = self.epoch, self.handed
        if self.restored is not None:
            epoch, batches = self.restored
        elif self.finished is not None:
            batches = min(batches, self.finished())
        return {
            "epoch": epoch,
            "batches": batches,
            "shift": self.order.shift,
            "seed": self.seed,
            "size": self.order.size,
            "batch": self.global_batch,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a stored place; a place in other data, another order or other batches is refused."""
        here = {"seed": self.seed, "size": self.order.size, "batch": self.global_batch}
        check(state_dict, here, self.order.world)
        self.restored = (state_dict["epoch"], state_dict["batches"])
        self.order.shift = state_dict["shift"]
        self.order.said = state_dict["epoch"] - state_dict["shift"]


def overfits(trainer: Trainer | None) -> bool:
    """Whether the run reads the same few batches in every epoch, for which they must not be shuffled."""
    return trainer is not None and getattr(trainer, "overfit_batches", 0) > 0  # type: ignore[attr-defined]


NAMES = {"seed": "seed", "size": "items to train on", "batch": "batch size over all processes", "streams": "streams"}


FLAGS = {"batch": "--data.batch", "streams": "--data.workers"}
"""What is shared out among the processes, and the setting of each one's share."""


def check(stored: dict[str, Any], here: dict[str, Any], world: int = 1) -> None:
    """Refuse a place that was stored by another kind of loader or under other settings.

    Args:
        stored: The place.
        here: What has to be as it was.
        world: How many processes share an epoch now, for advice.
    """
    if missing := sorted({"epoch", "batches", "shift", *here} - set(stored)):
        raise ZooError(
            f"The checkpoint does not say where in the data it stopped ({', '.join(missing)} missing).\n"
            "  It was written with another kind of data.   Try:  --model.weights CKPT  to start from its weights"
        )
    differing = [key for key, value in here.items() if stored[key] != value]
    if differing:
        told = "; ".join(f"{NAMES.get(key, key)}: {stored[key]} then, {here[key]} now" for key in differing)
        fitting = [key for key in differing if key in FLAGS and stored[key] % world == 0]
        if fitting == differing:
            flags = " ".join(f"{FLAGS[key]} {stored[key] // world}" for key in fitting)
            way = f"With {world} process{'es' * (world > 1)}, this continues it:   Try:  {flags}"
        else:
            way = (
                "Continue with the same data, batch, seed and number of processes, or start from the weights:"
                "   Try:  --model.weights CKPT"
            )
        raise ZooError(
            f"The run cannot continue in mid-epoch: its data are not those of the checkpoint ({told}).\n  {way}"
        )
