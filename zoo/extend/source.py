"""A checkpoint that is to be extended, read without its weights where its format allows that.

The weights of a folder stay on the disk: the header of the file says what they are. The fingerprint, by which a child
names its parent, therefore hashes three pages of each tensor and not all of it; it tells checkpoints of different steps
apart, and is the same for the same weights in any format. It is no protection against forgery.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from zoo import checkpoints
from zoo.checkpoints import folder
from zoo.errors import ZooError

PAGE = 4096
"""Bytes at the beginning, in the middle and at the end of a tensor that the fingerprint hashes."""
KINDS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What safetensors calls the types."""
LONGEST = 100_000_000
"""Bytes of a header at most, as safetensors has it."""


@dataclass
class Source:
    """What is known of a checkpoint before anything is written.

    Args:
        path: Where it is.
        about: Its description.
        shapes: Its weights on the meta device.
        fingerprint: Of its weights.
        tied: Names of weights that a folder's file holds under another name.
    """

    path: Path
    about: dict[str, Any]
    shapes: Mapping[str, Tensor] = field(repr=False)
    fingerprint: str
    tied: dict[str, str]


def read(path: Path) -> Source:
    """The checkpoint at a path; a sentence where there is none, or one that is damaged."""
    if path.is_dir():
        about = folder.said(path)
        if about.get("format", 0) > checkpoints.FORMAT:
            checkpoints.read(path)  # which says so
        shapes, pages = header(path / folder.WEIGHTS)
        tied = about.pop("tied", {})
        try:
            for same, name in tied.items():
                shapes[same], pages[same] = shapes[name], pages[name]
        except (AttributeError, KeyError) as error:
            raise folder.damaged(path, error) from None
        return Source(path, about, shapes, fingerprint(shapes, pages), tied)
    found = checkpoints.read(path)
    shapes = {name: weight.to("meta") for name, weight in found.weights.items()}
    pages = {name: held(weight) for name, weight in found.weights.items()}
    return Source(path, found.about, shapes, fingerprint(shapes, pages), {})


def tensors(source: Source, names: Iterable[str]) -> dict[str, Tensor]:
    """Some of the weights themselves; of a folder no others are read."""
    if not source.path.is_dir():
        weights = checkpoints.read(source.path).weights
        return {name: weights[name] for name in names}
    with safe_open(source.path / folder.WEIGHTS, framework="pt") as file:
        return {name: file.get_tensor(source.tied.get(name, name)) for name in names}


def held(weight: Tensor) -> Callable[[int], bytes]:
    """Reads a page of a tensor in memory, or mapped into it."""

    def page(start: int) -> bytes:
        whole = weight.detach().contiguous().flatten().view(torch.uint8)
        return whole[start : start + PAGE].numpy().tobytes()

    return page


def header(path: Path) -> tuple[dict[str, Tensor], dict[str, Callable[[int], bytes]]]:
    """Shapes of the tensors in a .safetensors file, and what reads a page of each."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= min(LONGEST, path.stat().st_size - 8):
                raise ValueError("its header is longer than the file")
            nodes = {name: node for name, node in json.loads(file.read(size)).items() if name != "__metadata__"}
        shapes, pages, ends = {}, {}, [0]
        for name, node in nodes.items():
            kind, (start, stop) = KINDS[node["dtype"]], node["data_offsets"]
            if stop - start != math.prod(node["shape"]) * kind.itemsize or start < 0:
                raise ValueError(f"{name} is not as long as its shape says")
            shapes[name] = torch.empty(node["shape"], dtype=kind, device="meta")
            pages[name] = stored(path, 8 + size + start, 8 + size + stop)
            ends.append(stop)
        if 8 + size + max(ends) != path.stat().st_size:
            raise ValueError(f"the file has {path.stat().st_size} bytes and should have {8 + size + max(ends)}")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ZooError(f"{path} is damaged: {str(error)[:160]}.") from None
    return shapes, pages


def stored(path: Path, first: int, last: int) -> Callable[[int], bytes]:
    """Reads a page of a tensor on the disk, which lies from byte `first` to byte `last`."""

    def page(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(first + start)
            return file.read(min(PAGE, last - first - start))

    return page


def fingerprint(shapes: Mapping[str, Tensor], pages: Mapping[str, Callable[[int], bytes]]) -> str:
    """The same for the same weights under the same names."""
    found = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(shapes.items()):
        size = weight.numel() * weight.itemsize
        found.update(f"{name} {weight.dtype} {list(weight.shape)}\n".encode())
        for start in sorted({0, max(0, size // 2 - PAGE // 2), max(0, size - PAGE)}):
            found.update(pages[name](start))
    return found.hexdigest()
