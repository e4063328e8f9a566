"""The score in C++ (native.cpp), for float32 on a CPU: built once for the machine at hand, when first asked for.

The source has a C interface and knows nothing of torch, whose extension mechanism says which compiler there is and
where extensions are kept. It is compiled in a folder of its own, from which the finished library is moved to the cache
under a name that tells source, compiler, flags and processor: processes may build at the same time, and one that is
killed leaves no lock behind.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from zoo_kernels.fourier.sinc import Sinc

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-ffp-contract=fast"]
PATIENCE = 120
"""Seconds that a compiler may take."""
GET = "C++ is several times as fast; what it needs is a compiler (apt install g++) and a folder to keep the result in."
lock = threading.Lock()


class Native(Sinc):
    """`Sinc`, vectorised and on all of torch's threads; tensors are float32 on a CPU."""

    def onto(self, logits: Tensor, q: Tensor, k: Tensor) -> None:
        strides = *logits.stride()[:2], *q.stride()[:2], k.stride(0), k.stride(2)
        shape = *logits.shape, k.shape[2]
        compiled().zoo_fourier_score(*addresses(logits, q, k), sizes(*shape), sizes(*strides), *self.how)

    def logarithm(self, q: Tensor, k: Tensor) -> Tensor:
        rows = q.clone()
        rows[..., -1] = 1
        out = q.new_zeros(*q.shape[:2], k.shape[1])
        self.onto(out, rows, k)
        return out

    def pull_tokens(self, tilt: Tensor, q: Tensor, k: Tensor, dq: Tensor | None, dk: Tensor | None) -> None:
        dq = torch.empty_like(q) if dq is None else dq
        dk = torch.empty_like(k.mT) if dk is None else dk
        strides = *tilt.stride()[:2], *q.stride()[:2], k.stride(0), k.stride(2), *dq.stride()[:2], *dk.stride()[:2]
        shape = *tilt.shape, k.shape[2]
        compiled().zoo_fourier_slope(*addresses(tilt, q, k, dq, dk), sizes(*shape), sizes(*strides), *self.how)

    @property
    def how(self) -> tuple[int, int]:
        """Whether components are pairs, and threads."""
        return int(self.width == 2), torch.get_num_threads()


def compiled() -> ctypes.CDLL:
    """The library, where there is one."""
    found, reason = library()
    assert found is not None, reason
    return found


def addresses(*tensors: Tensor) -> list[ctypes.c_void_p]:
    """Where the numbers of some tensors are."""
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def sizes(*numbers: int) -> ctypes.Array[ctypes.c_long]:
    """Numbers as C++ reads them."""
    return (ctypes.c_long * len(numbers))(*numbers)


@cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """The compiled source, or why there is none; built where the cache of this machine does not have it whole."""
    with lock:
        return found()


def found() -> tuple[ctypes.CDLL | None, str]:
    """`library`, for one thread at a time."""
    from torch.utils import cpp_extension

    place = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    try:
        compiler = shlex.split(cpp_extension.get_cxx_compiler())
    except ValueError as error:
        return None, f"the variable CXX is no command: {error}"
    if not compiler or shutil.which(compiler[0]) is None:
        return None, f"there is no compiler {' '.join(compiler)}".rstrip()
    told = " ".join([*FLAGS, *compiler, processor()])
    name = f"zoo_fourier_{hashlib.sha256(SOURCE.read_bytes() + told.encode()).hexdigest()[:16]}"
    path = place / f"{name}.so"
    try:
        if not whole(path):
            build(compiler, path)
        return ctypes.CDLL(str(path)), ""
    except subprocess.TimeoutExpired:
        return None, f"{compiler[0]} did not come to an end within {PATIENCE} seconds"
    except subprocess.CalledProcessError as error:
        lines = [line.strip() for line in error.stderr.splitlines() if line.strip()] or [f"{compiler[0]} failed"]
        return None, next((line for line in lines if "error" in line), lines[-1]).rstrip(".")
    except OSError as error:
        return None, f"{error.filename or path}: {error.strerror or error}. TORCH_EXTENSIONS_DIR names another folder"


def whole(path: Path) -> bool:
    """Whether a library is there with all its bytes: to load one that was cut off would end the process."""
    said = path.with_suffix(".sha256")
    return path.is_file() and said.is_file() and said.read_text() == hashlib.sha256(path.read_bytes()).hexdigest()


def build(compiler: list[str], path: Path) -> None:
    """Compile the source, and move what comes out to its place, whole; what it should be goes there first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{path.stem}.", dir=path.parent) as folder:
        made = Path(folder, path.name)
        command = [*compiler, *FLAGS, "-std=c++17", "-shared", "-fPIC", str(SOURCE), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
        said = Path(folder, "digest")
        said.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
        os.replace(said, path.with_suffix(".sha256"))
        os.replace(made, path)


def processor() -> str:
    """What the instructions that may be used depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
