"""The files of safetensors: where the tensors of one lie, and writing one without tensors in memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from zoo.checkpoints.stored import Run, Stored
from zoo.errors import ZooError, listing

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
NAMES = {kind: name for name, kind in KINDS.items()}
LONGEST = 100_000_000
"""Bytes of a header at most, as safetensors has it."""


def header(path: Path) -> dict[str, Stored]:
    """Where the tensors of a .safetensors file lie."""
    try:
        size, whole = 0, path.stat().st_size
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= min(LONGEST, whole - 8):
                raise ValueError("its header is longer than the file")
            nodes = {name: node for name, node in json.loads(file.read(size)).items() if name != "__metadata__"}
        found, ends = {}, [0]
        for name, node in nodes.items():
            if node["dtype"] not in KINDS:
                raise ZooError(f"{path} has {name} of the type {node['dtype']}, and zoo reads {listing(KINDS)}.")
            kind, (start, stop) = KINDS[node["dtype"]], node["data_offsets"]
            if any(type(number) is not int or number < 0 for number in (start, stop, *node["shape"])):
                raise ValueError(f"{name[:80]} has a shape or a place that is no number of elements")
            if stop - start != math.prod(node["shape"]) * kind.itemsize or start < 0:
                raise ValueError(f"{name} is not as long as its shape says")
            found[name] = Stored(kind, tuple(node["shape"]), (Run(path, 8 + size + start, stop - start),))
            ends.append(stop)
        if 8 + size + max(ends) != whole:
            raise ValueError(f"the file has {whole} bytes and should have {8 + size + max(ends)}")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, RecursionError) as error:
        raise ZooError(f"{path} is damaged: {str(error)[:160]}.") from None
    return found


def pack(path: Path, weights: Mapping[str, Stored]) -> str:
    """Write a .safetensors file, one buffer of bytes after the other; the SHA-256 of its bytes."""
    order = sorted(weights.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))  # so that each is aligned
    nodes: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, stored in order:
        if stored.dtype not in NAMES:
            raise ZooError(f"Weights of type {str(stored.dtype).removeprefix('torch.')} cannot be written: {name}.")
        nodes[name] = {
            "dtype": NAMES[stored.dtype],
            "shape": list(stored.shape),
            "data_offsets": [end, end + stored.size],
        }
        end += stored.size
    head = json.dumps(nodes, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    total = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for chunk in (len(head).to_bytes(8, "little"), head):
            write_whole(file, chunk)
            total.update(chunk)
        for _, stored in order:
            for part in stored.chunks():
                write_whole(file, part)
                total.update(part)
    return total.hexdigest()


def write_whole(file: FileIO, chunk: bytes | memoryview) -> None:
    """Write all of a chunk; an unbuffered file may take less at once, as where the disk is nearly full."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]
