"""SDPA: torch's fused attention, which takes no bias (flash), or a bias and a mask as one tensor.

The tensor is N x N, built once per forward pass and shared by layers where it wants no gradient (it lives in the mask's
memo). Where nothing but plain causality is asked for, or nothing at all, as in decoding one token, there is no tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

from zoo.kernel import Kernel, Mask
from zoo.position import Bias, Dense


class SDPA(Kernel):
    """torch.nn.functional.scaled_dot_product_attention: flash without a bias, a dense N x N bias otherwise.

    Softmax and sums are float32 inside torch's kernels. The dense bias is handed over in float32, except on CUDA, whose
    kernels want it in the type of the queries: there a float16 or bfloat16 model rounds its bias to that type.
    """

    fuses = Dense

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        self.check(bias)
        mask = mask or Mask()
        if (width := v.shape[-1]) != q.shape[-1]:  # torch's flash kernels want one width, and zeros change nothing
            wide = max(width, q.shape[-1])
            q, k, v = (functional.pad(x, (0, wide - x.shape[-1])) for x in (q, k, v))
            return self(q, k, v, bias=bias, mask=mask, scale=scale)[..., :width]
        queries, keys, grouped = q.shape[2], k.shape[2], q.shape[1] != k.shape[1]
        kinds = needed(mask, queries, keys)
        if bias is None and (not kinds or (kinds == {"causal"} and not mask.offset and queries == keys)):
            return scaled_dot_product_attention(q, k, v, is_causal=bool(kinds), scale=scale, enable_gqa=grouped)
        if bias is None and kinds == {"causal"} and later(q, k, mask):
            return after(q, k, v, mask.offset, scale)
        if grouped and q.device.type != "cpu":  # on CUDA a mask and grouped keys together leave only the unfused path
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
            grouped = False
        seen, blind = sight(mask, queries, keys, q.device) if kinds else (None, None)
        if bias is not None:
            seen = dense(bias, mask, seen, q)
        assert seen is not None
        out = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=grouped)
        return out if blind is None else out.masked_fill(blind, 0.0)


def later(q: Tensor, k: Tensor, mask: Mask) -> bool:
    """Whether the queries are a CPU's last tokens, more than one, of a text that is only read."""
    plain = q.device.type == "cpu" and not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad))
    return plain and 0 < mask.offset == k.shape[2] - q.shape[2] and q.shape[2] > 1


def after(q: Tensor, k: Tensor, v: Tensor, offset: int, scale: float) -> Tensor:
    """Causal attention of the tokens from `offset` on, without a mask as a tensor.

    All of them see all that came before, and among themselves they are causal: two flash kernels, whose sums of
    exponentials weigh their results. torch hides causality that starts late behind a mask, and computes what it hides.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    own, mine = flash(q, k[:, :, offset:], v[:, :, offset:], 0.0, True, scale=scale)
    past, theirs = flash(q, k[:, :, :offset], v[:, :, :offset], 0.0, False, scale=scale)
    both = torch.logaddexp(mine, theirs)
    share, rest = ((each - both).exp().unsqueeze(-1) for each in (mine, theirs))
    return (own * share + past * rest).to(q.dtype)


def needed(mask: Mask, queries: int, keys: int) -> frozenset[str]:
    """The conditions that hide anything from so many queries."""
    kinds = mask.kinds
    if "causal" in kinds and queries == 1 and mask.offset >= keys - 1:
        kinds -= {"causal"}  # one token looks back on all that is cached
    back, ahead = queries - 1 + mask.offset, 0 if mask.causal else keys - 1 - mask.offset
    if mask.window is not None and mask.window > max(back, ahead):
        kinds -= {"window"}
    return kinds


def sight(mask: Mask, queries: int, keys: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """What is seen [batch or 1, 1, queries, keys], and the rows that see nothing, [..., 1], if any can.

    Rows that see nothing are let see everything, and their output is set to 0: torch's kernels do not agree on them.
    """
    name = ("sight", queries, keys, device)
    if name not in mask.memo:
        seen, blind = mask.block(slice(0, queries), slice(0, keys), device), None
        hollow = mask.kinds - {"causal"}  # a query of a causal model sees at least itself
        if seen is not None and hollow:
            blind = ~seen.any(-1, keepdim=True)
            seen = seen | blind
        mask.memo[name] = seen, blind
    return mask.memo[name]


def dense(bias: Bias, mask: Mask, seen: Tensor | None, q: Tensor) -> Tensor:
    """Bias and mask as one float tensor [batch or 1, heads, queries, keys]."""
    kept = mask.memo.get("dense")  # only the last one: layers share a bias, or each has its own
    if kept is not None and kept[0] is bias and kept[1].device == q.device and kept[2] == q.dtype:
        return kept[1]
    queries = seen.shape[2] if seen is not None else q.shape[2]
    keys = seen.shape[3] if seen is not None else bias.prefix + bias.keys
    whole = bias.block(slice(0, queries), slice(0, keys))
    whole = whole.to(q.dtype if q.device.type != "cpu" or q.dtype == torch.float64 else torch.float32)
    if seen is not None:
        whole = whole.masked_fill(~seen, -torch.inf)
    if not whole.requires_grad:
        mask.memo["dense"] = bias, whole, q.dtype
    return whole
