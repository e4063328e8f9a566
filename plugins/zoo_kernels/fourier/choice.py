"""Who computes: Triton on a GPU, C++ on a CPU, plain torch anywhere; each says why it cannot."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoo.auto import say
from zoo.bias import Bias
from zoo.errors import ZooError
from zoo.kernel import Mask
from zoo_kernels.fourier import gpu, native
from zoo_kernels.fourier.sinc import Sinc
from zoo_kernels.profile import profile
from zoo_kernels.tiles import tiled

Implementation = Literal["auto", "triton", "native", "torch"]
WORDS = {"triton": "in Triton", "native": "in C++", "torch": "in plain torch"}


def lacks(name: Implementation, device: str, dtype: torch.dtype) -> str | None:
    """Why an implementation does not compute on a device, as a clause; None where it does."""
    if name == "triton":
        if device != "cuda" or dtype == torch.float64:
            return f"it computes up to float32 on a GPU, and this is {dtype} on {device}"
        return gpu.available()
    if name == "native":
        if device != "cpu" or dtype == torch.float64:
            return f"it computes up to float32 on a CPU, and this is {dtype} on {device}"
        found, reason = native.library()
        return None if found is not None else reason
    return None


def unfit(asked: Implementation, device: str, dtype: torch.dtype) -> str | None:
    """Why the implementation that was asked for does not serve, as a sentence with a way out."""
    if asked == "auto" or (reason := lacks(asked, device, dtype)) is None:
        return None
    reason = reason.rstrip(".")
    return f"Fourier attention cannot run {WORDS[asked]}: {reason}.   Try:  --model.kernel.implementation auto"


@torch.compiler.disable
def attend(
    a: Tensor,
    b: Tensor,
    v: Tensor,
    rate: Tensor,
    bias: Bias | None,
    mask: Mask,
    asked: Implementation,
    *,
    null: float | None,
    pairs: bool,
    block: int,
) -> Tensor:
    """Attention by the fastest that serves, or by what was asked for.

    Raises ZooError where that cannot be had.

    Args:
        a: [batch, heads, queries, width], queries times R, float32 or float64.
        b: [batch, kv_heads, keys, width], keys times R.
        v: [batch, kv_heads, keys, value width].
        rate: [heads], the power p.
        bias: Up to Dense.
        mask: The mask.
        asked: Who is to compute.
        null: One more logit of every row.
        pairs: Components are pairs of neighbouring channels.
        block: Queries in a block, where tiles are used.
    """
    device, dtype = a.device.type, a.dtype
    if (reason := unfit(asked, device, dtype)) is not None:
        raise ZooError(reason)
    if asked == "triton" or (asked == "auto" and lacks("triton", device, dtype) is None):
        line = profile(bias, mask, a.shape[2], b.shape[2], a.device)
        if not mask.null and (bias is None or line is not None):
            say("kernel: Fourier attention runs in Triton")
            return gpu.attend(a, b, v, rate, mask=mask, line=line, null=null, radial=pairs)
        say("kernel: Fourier attention runs in plain torch; Triton carries biases that depend on distance alone")
    score = Sinc
    if asked == "native" or (asked == "auto" and device == "cpu" and dtype == torch.float32):
        if (reason := lacks("native", device, dtype)) is None:
            score = native.Native
            say("kernel: Fourier attention runs in C++")
        else:
            say(f"kernel: Fourier attention runs in plain torch; not in C++ ({reason}). {native.GET}")
    rows = torch.cat((a, rate.view(-1, 1, 1).expand(*a.shape[:3], 1)), -1)
    own = score(pairs=pairs, learned=rate.requires_grad)
    return tiled(rows, b, v.to(a.dtype), bias, mask, own, block, null)
