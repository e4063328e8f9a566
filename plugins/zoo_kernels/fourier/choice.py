"""Who computes: Triton on a GPU, C++ on a CPU, plain torch anywhere; each says why it cannot."""

from __future__ import annotations

from typing import Literal

import torch

from zoo.auto import say
from zoo.errors import ZooError
from zoo_kernels.fourier import native
from zoo_kernels.fourier.sinc import Sinc

Implementation = Literal["auto", "native", "torch"]


def score(device: torch.device, dtype: torch.dtype, asked: Implementation, *, pairs: bool, learned: bool) -> Sinc:
    """The score on tiles, as fast as device and precision allow; said once.

    Raises ZooError where `asked` cannot be had.
    """
    if asked == "torch":
        return Sinc(pairs=pairs, learned=learned)
    reason = f"it computes float32 on a CPU, and this is {dtype} on {device.type}"
    if device.type == "cpu" and dtype == torch.float32:
        found, reason = native.library()
        if found is not None:
            say("kernel: Fourier attention runs in C++")
            return native.Native(pairs=pairs, learned=learned)
        if asked == "auto":
            say(f"kernel: Fourier attention runs in plain torch; not in C++ ({reason}). {native.GET}")
    if asked == "native":
        raise ZooError(f"Fourier attention cannot run in C++: {reason}.   Try:  --model.kernel.implementation auto")
    return Sinc(pairs=pairs, learned=learned)
