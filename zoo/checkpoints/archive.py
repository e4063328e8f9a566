"""The archives of torch.save: what is in one and where its tensors lie, and writing one without tensors in memory.

Such a file is a zip that compresses nothing: a pickle describes the content, and each storage is a record of its own.
It is opened on the meta device, which reads the pickle only, admits tensors, numbers, strings and containers, and tells
at which byte each storage begins. One is written record by record, each aligned as torch aligns them, so that the
result can be mapped; the checksums are right, which torch does not look at and other programs do.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from zoo.checkpoints.stored import Run, Stored
from zoo.errors import ZooError

ALIGNED = 64
"""Bytes at whose multiples records begin."""
PADDING = b"FB"
"""The extra field of a zip that torch fills up with."""
STORAGES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
}
"""What the pickle calls the types."""


def load(path: Path, allowed: Sequence[tuple[type, str]] = (), **options: Any) -> Any:
    """The content of a file as containers of tensors, without running anything in it; a sentence where that cannot be.

    Args:
        path: The file.
        allowed: Classes beyond torch's own that may stand in it, by the names that they have there.
        options: For torch.load: where the tensors are to be.
    """
    check_archive(path)
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, weights_only=True, **options)
    except pickle.UnpicklingError as error:
        lines = str(error).splitlines()
        culprit = next((line for line in lines if "GLOBAL" in line or "global" in line), lines[0] if lines else "")
        raise ZooError(
            f"{path} was not opened: it is damaged, is no checkpoint, or needs code beyond plain tensors and "
            f"containers ({culprit.strip()[:160]})."
        ) from None
    except (ZooError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged pickle makes torch stumble over
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ZooError(f"{path} is truncated or is not a checkpoint ({reason}).") from None


def check_archive(path: Path) -> None:
    """Raise ZooError where a file is no archive of torch.save as it is written: each record whole, none compressed.

    torch reads the bytes of a compressed record as if they were the numbers, and unpacks a compressed pickle whole.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ZooError(f"{path} is damaged: its record {info.filename[:80]} is compressed.")
                if info.file_size != info.compress_size or info.header_offset + info.file_size > size:
                    raise ZooError(f"{path} is truncated: its record {info.filename[:80]} is longer than the file.")
    except (zipfile.BadZipFile, struct.error, OSError, ValueError, NotImplementedError, OverflowError) as error:
        raise ZooError(f"{path} is truncated or is not a checkpoint ({error}).") from None


class Archive:
    """A file of torch.save that is described and not read.

    Args:
        path: The file.
        allowed: As in `load`.
    """

    def __init__(self, path: Path, allowed: Sequence[tuple[type, str]] = ()) -> None:
        self.path = path
        self.records = records(path)
        self.content = load(path, allowed, map_location="meta")

    def stored(self, tensor: Tensor) -> Stored:
        """Where a tensor of the content lies; one that is not laid out row by row is read."""
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
            raise ZooError(f"{self.path} is damaged: a weight is {kind_of(tensor)}, and weights are dense tensors.")
        storage = tensor.untyped_storage()
        start = getattr(storage, "_checkpoint_offset", None)
        if start is None or self.records.get(start, -1) < storage.nbytes():
            raise ZooError(f"{self.path} is damaged: a weight does not lie where the file says.")
        last = tensor.storage_offset() + sum(
            (n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
        elements = storage.nbytes() // tensor.itemsize
        if tensor.numel() and (tensor.numel() > elements or not 0 <= last < elements):
            raise ZooError(f"{self.path} is damaged: a weight of {tensor.numel()} numbers lies in {elements} of them.")
        if tensor.is_contiguous():
            first, size = start + tensor.storage_offset() * tensor.itemsize, tensor.numel() * tensor.itemsize
            return Stored(tensor.dtype, tuple(tensor.shape), (Run(self.path, first, size),))
        whole = Stored(torch.uint8, (storage.nbytes(),), (Run(self.path, start, storage.nbytes()),)).tensor()
        return Stored.of(whole.view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()))


def kind_of(value: Any) -> str:
    """What stands in the place of a weight, for a message."""
    if not isinstance(value, Tensor):
        return f"a value of the type {type(value).__name__}"
    return "quantised" if value.is_quantized else str(value.layout).removeprefix("torch.")


def records(path: Path) -> dict[int, int]:
    """Size by first byte of the records of an archive, all in bytes."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for info in archive.infolist():
                file.seek(info.header_offset + 26)
                name, extra = struct.unpack("<HH", file.read(4))
                if info.compress_type == zipfile.ZIP_STORED:
                    found[info.header_offset + 30 + name + extra] = info.file_size
    except (zipfile.BadZipFile, struct.error, OSError, ValueError) as error:
        raise ZooError(f"{path} is truncated or is not a checkpoint ({error}).") from None
    return found


class Record:
    """A storage, in the words of the pickle.

    Args:
        name: Its record.
        kind: Its type.
        count: Number of its elements.
    """

    def __init__(self, name: str, kind: torch.dtype, count: int) -> None:
        self.name, self.kind, self.count = name, kind, count


class Describer(pickle.Pickler):
    """Pickles a content, in which `Stored` stands for tensors, as torch.save would with the tensors in it.

    Args:
        file: Where the pickle goes.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)  # torch's, and the last one that weights_only=True reads
        self.names: dict[Stored, str] = {}

    def persistent_id(self, obj: Any) -> Any:
        """A storage is named and not pickled."""
        if not isinstance(obj, Record):
            return None
        return "storage", getattr(torch, STORAGES[obj.kind]), obj.name, "cpu", obj.count

    def reducer_override(self, obj: Any) -> Any:
        """A tensor is rebuilt from its storage."""
        if not isinstance(obj, Stored):
            return NotImplemented
        if obj.dtype not in STORAGES:
            raise ZooError(f"Weights of type {str(obj.dtype).removeprefix('torch.')} cannot be written.")
        name = self.names.setdefault(obj, str(len(self.names)))
        strides = [math.prod(obj.shape[axis + 1 :]) for axis in range(len(obj.shape))]
        record = Record(name, obj.dtype, math.prod(obj.shape))
        return _rebuild_tensor_v2, (record, 0, obj.shape, tuple(strides), False, OrderedDict())


def save(content: Any, path: Path) -> None:
    """Write an archive that torch.load reads, from a content in which `Stored` stands for tensors."""
    pickled = io.BytesIO()
    describer = Describer(pickled)
    describer.dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        add(archive, "data.pkl", [memoryview(pickled.getvalue())])
        add(archive, "byteorder", [memoryview(b"little")])
        for stored, name in describer.names.items():
            add(archive, f"data/{name}", stored.chunks())
        add(archive, "version", [memoryview(b"3\n")])


def add(archive: zipfile.ZipFile, name: str, chunks: Iterable[memoryview]) -> None:
    """Write a record, aligned."""
    info = zipfile.ZipInfo(f"archive/{name}")
    assert archive.fp is not None
    begin = archive.fp.tell() + 30 + len(info.filename) + 20 + 4  # the header, its 64-bit sizes, what fills up
    fill = -begin % ALIGNED
    info.extra = PADDING + struct.pack("<H", fill) + bytes(fill)
    with archive.open(info, "w", force_zip64=True) as record:
        for chunk in chunks:
            record.write(chunk)
