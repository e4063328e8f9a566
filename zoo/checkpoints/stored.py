"""Weights where they lie: a tensor as runs of bytes in files, read when they are needed and never all at once.

Every format can say of its weights where their bytes are. So whatever is made of a checkpoint is a copy from file to
file through one small buffer, whether a tensor is one run (safetensors, torch's archives) or many (a tensor of which
each process of a ZeRO run holds a part). Mapped memory would count as ours for as long as it is touched, so only what
is to be in memory as it is, the weights of a network that runs, may be mapped.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError

BUFFER = 1 << 20
"""Bytes that are in memory at once while a weight is copied."""


@dataclass(frozen=True)
class Run:
    """Bytes that lie together in a file.

    Args:
        path: The file.
        start: First byte.
        size: Number of bytes.
    """

    path: Path
    start: int
    size: int

    def cut(self, start: int, size: int) -> Run:
        """A part of it, in bytes from its beginning."""
        return Run(self.path, self.start + start, size)

    def chunks(self) -> Iterator[memoryview]:
        """Its bytes, in a buffer that the next chunk overwrites."""
        buffer = memoryview(bytearray(min(BUFFER, self.size)))
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            for start in range(0, self.size, BUFFER):
                part = buffer[: self.size - start]
                self.fill(part, file)
                yield part

    def into(self, view: memoryview) -> None:
        """Read its bytes to where they are wanted."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            self.fill(view, file)

    def fill(self, view: memoryview, file: FileIO) -> None:
        """Read the next bytes of the opened file."""
        while view:
            count = file.readinto(view)
            if not count:
                raise ZooError(f"{self.path} is truncated: it ends {len(view)} bytes before one of its weights does.")
            view = view[count:]

    def mapped(self) -> Tensor:
        """Its bytes without reading them, uint8 [size]."""
        before = self.start % mmap.ALLOCATIONGRANULARITY
        try:
            with self.path.open("rb") as file:
                pages = mmap.mmap(
                    file.fileno(), before + self.size, access=mmap.ACCESS_COPY, offset=self.start - before
                )
        except ValueError:
            raise ZooError(f"{self.path} is truncated: it ends before one of its weights does.") from None
        return torch.frombuffer(pages, dtype=torch.uint8, offset=before)


@dataclass(frozen=True, eq=False)
class Held:
    """Bytes of a tensor in memory, with the interface of a run.

    Args:
        flat: The bytes, uint8 [size].
    """

    flat: Tensor

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.flat.numel()

    def cut(self, start: int, size: int) -> Held:
        """A part of it."""
        return Held(self.flat[start : start + size])

    def chunks(self) -> Iterator[memoryview]:
        """All of it."""
        yield self.flat.numpy().data

    def into(self, view: memoryview) -> None:
        """Copy them to where they are wanted."""
        view[:] = self.flat.numpy().data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self.place == other.place

    def __hash__(self) -> int:
        return hash(self.place)

    @property
    def place(self) -> tuple[int, int]:
        """Where in memory."""
        return self.flat.data_ptr(), self.size


@dataclass(frozen=True)
class Stored:
    """A tensor that is not in memory; two are equal where they are the same bytes, as tied weights are.

    Args:
        dtype: Its type.
        shape: Its shape.
        runs: Its elements in order, row by row.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    runs: tuple[Run | Held, ...]

    @staticmethod
    def of(tensor: Tensor) -> Stored:
        """One that is in memory after all."""
        whole = tensor.detach().cpu().contiguous()
        return Stored(whole.dtype, tuple(whole.shape), (Held(whole.flatten().view(torch.uint8)),))

    @property
    def size(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def meta(self) -> Tensor:
        """A tensor of its type and shape, without memory."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def chunks(self) -> Iterator[memoryview]:
        """All of its bytes, in a buffer that the next chunk overwrites."""
        for run in self.runs:
            yield from run.chunks()

    def page(self, start: int, size: int) -> bytes:
        """Some of its bytes."""
        return b"".join(
            bytes(chunk) for run in cut(self.runs, start, min(size, self.size - start)) for chunk in run.chunks()
        )

    def tensor(self) -> Tensor:
        """It, in memory."""
        found = torch.empty(self.shape, dtype=self.dtype)
        self.into(found)
        return found

    def into(self, target: Tensor) -> None:
        """Read it into a tensor of its shape, of any type."""
        if target.device.type != "cpu" or not target.is_contiguous():
            target.copy_(self.tensor())
            return
        flat, at = target.view(-1), 0
        if target.dtype == self.dtype:
            view = flat.view(torch.uint8).numpy().data
            for run in self.runs:
                run.into(view[at : at + run.size])
                at += run.size
            return
        wide = self.dtype.itemsize
        for part in flat.split(BUFFER // wide):
            part.copy_(Stored(self.dtype, part.shape, cut(self.runs, at * wide, part.numel() * wide)).tensor())
            at += part.numel()

    def mapped(self) -> Tensor | None:
        """It as it lies in its file, whose pages are copied where somebody writes; None where it does not lie so."""
        if not self.size or len(self.runs) != 1 or not isinstance(run := self.runs[0], Run):
            return None
        if run.start % self.dtype.itemsize:
            return None
        return run.mapped().view(self.dtype).view(self.shape)


def cut(runs: Iterable[Run | Held], start: int, size: int) -> tuple[Run | Held, ...]:
    """The part of some bytes that begins at byte `start`; ValueError where they end before it does."""
    found: list[Run | Held] = []
    for run in runs:
        if size > 0 and start < run.size:
            found.append(run.cut(start, min(size, run.size - start)))
            size -= found[-1].size
        start = max(0, start - run.size)
    if size > 0:
        raise ValueError(f"{size} bytes of a weight are missing")
    return tuple(found)


class Weights(Mapping[str, Tensor]):
    """Weights by name, each read when it is asked for.

    Args:
        stored: Where they are.
    """

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[name].tensor()

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


@dataclass
class Listing:
    """What a checkpoint holds, without its weights in memory.

    Args:
        path: Where it is.
        about: Its description.
        weights: Where each of the network's weights lies.
        kept: What a Lightning checkpoint says beside both of the run that it is of.
        tied: Names of weights that the file of a folder holds under another name.
    """

    path: Path
    about: dict[str, Any]
    weights: dict[str, Stored] = field(repr=False)
    kept: dict[str, Any] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
