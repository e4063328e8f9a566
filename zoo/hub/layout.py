"""Which rows of which of their tensors are which rows of ours.

Our queries, keys and values are one matrix, gate and value of a feed-forward layer another, and theirs mostly are not.
Rows lie one after the other in a file, so a matrix of ours is a list of stretches of theirs, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zoo.checkpoints.stored import Held, Run, Stored
from zoo.errors import ZooError, listing
from zoo.hub.made import Made, Piled, Turned, rows

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Rows of a tensor of ours that are rows of one of theirs.

    Args:
        name: Of theirs.
        shape: Of all of theirs.
        rows: Its rows that are meant (default: all).
        transposed: Theirs has inputs for rows: the whole of it is meant, turned (GPT-2).
    """

    name: str
    shape: Shape
    rows: range | None = None
    transposed: bool = False


class Layout:
    """The tensors of a network of ours, as parts of theirs; `ignored` are theirs that hold nothing.

    Args:
        prefix: What all of their names may begin with, or not.
        ignored: Ends of names whose tensors are made anew from the config, such as masks and frequencies.
        renamed: Other names that some versions of theirs write, and the names that stand for them here.
    """

    def __init__(self, prefix: str, ignored: tuple[str, ...] = (), renamed: Mapping[str, str] | None = None) -> None:
        self.prefix, self.ignored, self.renamed = prefix, ignored, dict(renamed or {})
        self.parts: dict[str, list[Part]] = {}
        self.tied: dict[str, str] = {}
        self.outside: set[str] = set()  # names that have no prefix

    def whole(self, ours: str, theirs: str, *shape: int, transposed: bool = False) -> None:
        """A tensor that is one of theirs; `shape` is theirs."""
        self.parts[ours] = [Part(theirs, shape, transposed=transposed)]

    def stacked(self, ours: str, theirs: Iterable[tuple[str, int]], *width: int) -> None:
        """A tensor of some of theirs, one on the other; each comes with its number of rows."""
        self.parts[ours] = [Part(name, (rows, *width)) for name, rows in theirs]

    def linear(self, ours: str, theirs: str, out: int, into: int, bias: bool, *, transposed: bool = False) -> None:
        """A matrix, and its bias where it has one."""
        self.whole(f"{ours}.weight", f"{theirs}.weight", *((into, out) if transposed else (out, into)),
                   transposed=transposed)  # fmt: skip
        if bias:
            self.whole(f"{ours}.bias", f"{theirs}.bias", out)

    def norm(self, ours: str, theirs: str, width: int, bias: bool = False) -> None:
        """A norm's scale, and its shift where it has one."""
        for kind in ("weight", "bias")[: 1 + bias]:
            self.whole(f"{ours}.{kind}", f"{theirs}.{kind}", width)

    def ours(self, held: Mapping[str, Stored], path: Path) -> dict[str, Stored]:
        """Where our tensors lie, given where theirs do.

        Raises ZooError where tensors are missing, have another shape than the config says, or have no place here.
        """
        twice = [name for name in held if self.plain(name) != name and self.plain(name) in held]
        if both := [name for name in twice if name in self.renamed]:
            other = self.plain(both[0])
            raise ZooError(f"{path} has both {both[0]} and {other}, two names of one tensor: which counts?")
        if twice:
            raise ZooError(f"{path} has {listing(twice[:3])} with and without {self.prefix} before it: which counts?")
        held = {self.plain(name): stored for name, stored in held.items()}
        wanted = {part.name: part.shape for parts in self.parts.values() for part in parts}
        missing = [name for name in wanted if name not in held]
        wrong = [
            f"{name} is {list(held[name].shape)} and should be {list(shape)}"
            for name, shape in wanted.items()
            if name in held and held[name].shape != shape
        ]
        left = [name for name in held if name not in wanted and not f".{name}".endswith(self.ignored)]
        for name, same in self.tied.items():
            if name in left and equal(held[name], held[same]):
                left.remove(name)
        for told, names in (("there is no", missing), ("", wrong), ("there is no place for", left)):
            if names:
                more = f", and {len(names) - 3} more" if len(names) > 3 else ""
                raise ZooError(f"{path}: its weights are not what its config says: {told} {listing(names[:3])}{more}.")
        return {name: merged([taken(part, held[part.name]) for part in parts]) for name, parts in self.parts.items()}

    def theirs(self, held: Mapping[str, Stored]) -> dict[str, Stored]:
        """Where their tensors lie, given where ours do: the way back."""
        pieces: dict[str, dict[int, tuple[Part, Stored]]] = {}  # by the first row in theirs: what is tied comes twice
        for name, parts in self.parts.items():
            start = 0
            for part in parts:
                count = part.shape[-1] if part.transposed else len(part.rows or range(part.shape[0]))
                first = part.rows.start if part.rows else 0
                pieces.setdefault(part.name, {})[first] = part, rows(held[name], range(start, start + count))
                start += count
        found = {}
        for name, own in pieces.items():
            (part, piece), *_ = ordered = [own[first] for first in sorted(own)]
            if part.transposed:
                found[self.full(name)] = turned(piece)
            else:
                found[self.full(name)] = merged([piece for _, piece in ordered])
        return found

    def full(self, name: str) -> str:
        """With the prefix, where it has one."""
        return name if name in self.outside else self.prefix + name

    def plain(self, name: str) -> str:
        """Without the prefix, and as the newer or the older version of theirs that is known here calls it."""
        return self.renamed.get(name, name.removeprefix(self.prefix))


def taken(part: Part, stored: Stored) -> Stored:
    """The rows of a part."""
    if part.transposed:
        return turned(stored)
    return stored if part.rows is None else rows(stored, part.rows)


def turned(stored: Stored) -> Stored:
    """A matrix with rows for columns; of one that lies in a file nothing is copied before it is read."""
    if isinstance(stored, Made) and not isinstance(stored, Turned):  # there are no bytes to be turned
        return Stored.of(stored.tensor().mT)
    kind = Stored if isinstance(stored, Turned) else Turned
    return kind(stored.dtype, stored.shape[::-1], stored.runs)


def merged(parts: list[Stored]) -> Stored:
    """Tensors of one width, one on the other; float32 where they are of several types."""
    if len(parts) == 1:
        return parts[0]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    types = {part.dtype for part in parts}
    if len(types) > 1 or any(isinstance(part, Made) for part in parts):  # no stretch of bytes
        dtype = types.pop() if len(types) == 1 else torch.float32
        return Piled(dtype, shape, (), tuple((part, range(part.shape[0])) for part in parts))
    return Stored(parts[0].dtype, shape, tuple(compact(run for part in parts for run in part.runs)))


def compact(runs: Iterable[Run | Held]) -> list[Run | Held]:
    """Runs of which neighbours in a file are one."""
    found: list[Run | Held] = []
    for run in runs:
        last = found[-1] if found else None
        if (
            isinstance(last, Run)
            and isinstance(run, Run)
            and (last.path, last.start + last.size) == (run.path, run.start)
        ):
            found[-1] = Run(last.path, last.start, last.size + run.size)
        else:
            found.append(run)
    return found


def equal(one: Stored, other: Stored) -> bool:
    """Whether two tensors hold the same numbers; reads both where they are not the same bytes of a file."""
    return one == other or (one.shape == other.shape and bool(same(one.tensor(), other.tensor())))


def same(one: Tensor, other: Tensor) -> bool:
    """Whether all elements are equal."""
    return one.dtype == other.dtype and torch.equal(one, other)
