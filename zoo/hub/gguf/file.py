"""The container: keys with values, and where each tensor lies.

The head is read here and not by the package `gguf`, whose reader makes arrays of every string of a vocabulary: seconds
before the first weight of a small model. What the numbers of a block mean is the package's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.checkpoints.stored import Run, Stored
from zoo.errors import ZooError
from zoo.hub.made import Made

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of values that have a fixed size, as struct calls them."""
TEXT, ARRAY, FLOAT = 8, 9, 6
PLAIN = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
"""The types of tensors that are no blocks."""


def library() -> ModuleType:
    """The package `gguf`; a sentence where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise ZooError(
            "GGUF files need the package gguf.   Try:  pip install 'positionzoo[gguf]'   (or pip install gguf)"
        ) from None
    return gguf


@dataclass(frozen=True)
class Block(Made):
    """A tensor of a file that is quantised, or whose rows lie in another order.

    Args:
        kind: The number of its type.
        heads: Its rows are channels of so many heads, each pair of a rotation side by side; 0: they lie as they are.
    """

    kind: int
    heads: int = 0

    def rows(self, wanted: range) -> Tensor:
        (run,) = self.runs
        assert isinstance(run, Run)
        lines = np.memmap(run.path, np.uint8, "r", run.start, (self.shape[0], run.size // self.shape[0]))
        found = np.array(lines[self.places[wanted.start : wanted.stop]] if self.heads else lines[wanted])
        shape = (len(wanted), *self.shape[1:])
        if self.kind in PLAIN:
            return torch.from_numpy(found).view(self.dtype).reshape(shape)
        return torch.from_numpy(library().quants.dequantize(found, self.kind)).reshape(shape)

    @property
    def places(self) -> np.ndarray:
        """The row of the file that is each of ours, whose heads have the first of all pairs, then the second."""
        return np.arange(self.shape[0]).reshape(self.heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def halved(self, heads: int) -> Block:
        """With rows of so many heads in the order of Hugging Face."""
        return dataclasses.replace(self, heads=heads)

    @property
    def plain(self) -> Stored:
        """As a stretch of the file, where it is that."""
        return Stored(self.dtype, self.shape, self.runs) if self.kind in PLAIN and not self.heads else self


@dataclass(frozen=True)
class File:
    """What the head of a file says.

    Args:
        path: The file.
        said: Its keys and their values.
        tensors: Where its tensors lie.
    """

    path: Path
    said: dict[str, Any]
    tensors: dict[str, Stored]

    @classmethod
    def read(cls, path: Path) -> File:
        """That of a file; a sentence where it is none, or is damaged."""
        library()
        with path.open("rb") as stream:
            head = Head(path, stream)
            if head.bytes(4) != MAGIC:
                raise ZooError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}.")
            version = head.number("I")
            if version not in VERSIONS:
                raise ZooError(f"{path} is a GGUF file of version {version}, and zoo reads 2 and 3 (little-endian).")
            tensors, keys = head.number("Q"), head.number("Q")
            try:
                pairs = [(head.text(), head.value(head.number("I"))) for _ in range(keys)]
                places = [head.place() for _ in range(tensors)]
            except (UnicodeDecodeError, struct.error) as error:
                raise head.damaged(str(error)) from None
        said = dict(pairs)
        if len(said) < len(pairs) or len({name for name, *_ in places}) < len(places):
            raise head.damaged("two of its keys or tensors have one name")
        align = said.get("general.alignment", ALIGNMENT)
        if not isinstance(align, int) or align < 1:
            raise head.damaged(f"it says general.alignment {align!r}")
        start = -(-head.at // align) * align
        return cls(path, said, {place[0]: head.block(*place, start) for place in places})

    def take(self, name: str) -> list[float]:
        """The numbers of a small tensor."""
        return [float(number) for number in self.tensors[name].tensor().flatten()]


class Head:
    """A file that is read from its beginning.

    Args:
        path: The file.
        stream: It, opened.
    """

    def __init__(self, path: Path, stream: Any) -> None:
        self.path, self.stream, self.at, self.size = path, stream, 0, path.stat().st_size

    def bytes(self, count: int) -> bytes:
        """The next ones."""
        if count > self.size - self.at:
            raise ZooError(f"{self.path} is truncated: it ends within its head, after {self.size} bytes.")
        self.at += count
        found: bytes = self.stream.read(count)
        return found

    def number(self, form: str) -> Any:
        """The next one, as struct calls it."""
        return struct.unpack(f"<{form}", self.bytes(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        """The next string."""
        return self.bytes(self.number("Q")).decode()

    def value(self, kind: int) -> Any:
        """The next value of a type."""
        if kind == TEXT:
            return self.text()
        if kind == FLOAT:  # the decimal number that was meant: 1e-05 and not 9.999999747378752e-06
            return float(str(np.float32(self.number("f"))))
        if kind in FORMS:
            return self.number(FORMS[kind])
        if kind != ARRAY:
            raise self.damaged(f"there is no type {kind} of values")
        inner, count = self.number("I"), self.number("Q")
        if inner in FORMS:
            form = FORMS[inner]
            return list(struct.unpack(f"<{count}{form}", self.bytes(count * struct.calcsize(form))))
        return [self.value(inner) for _ in range(count)]

    def place(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and place of the next tensor."""
        name, axes = self.text(), self.number("I")
        if not 1 <= axes <= 4:
            raise self.damaged(f"the tensor {name} has {axes} axes")
        shape = tuple(self.number("Q") for _ in range(axes))
        return name, shape[::-1], self.number("I"), self.number("Q")

    def block(self, name: str, shape: tuple[int, ...], kind: int, offset: int, start: int) -> Block:
        """A tensor, given where all of them start."""
        elements, size = sizes(kind) or (0, 0)
        if not elements:
            raise ZooError(f"{self.path} has {name} in a quantisation that is not known here ({called(kind)}).")
        whole = math.prod(shape) // elements * size
        if not whole or shape[-1] % elements or (len(shape) == 1 and elements > 1):
            raise self.damaged(f"the tensor {name} is {list(shape)}, and its blocks hold {elements} numbers")
        if start + offset + whole > self.size:
            raise ZooError(
                f"{self.path} is truncated: it has {self.size} bytes, and {name} ends at byte {start + offset + whole}."
            )
        run = Run(self.path, start + offset, whole)
        return Block(PLAIN.get(kind, torch.float32), shape, (run,), kind)

    def damaged(self, reason: str) -> ZooError:
        """What is said of a head that makes no sense."""
        return ZooError(f"{self.path} is damaged: {reason[:160]}.")


@functools.cache
def sizes(kind: int) -> tuple[int, int] | None:
    """Numbers and bytes of a block; None for types that nobody here can read."""
    gguf = library()
    if kind in PLAIN:
        return 1, PLAIN[kind].itemsize
    try:
        numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        gguf.quants.dequantize(np.zeros((1, size), np.uint8), gguf.GGMLQuantizationType(kind))
    except (ValueError, KeyError, NotImplementedError):
        return None
    return numbers, size


def called(kind: int) -> str:
    """A type in words."""
    try:
        return str(library().GGMLQuantizationType(kind).name)
    except ValueError:
        return f"number {kind}"
