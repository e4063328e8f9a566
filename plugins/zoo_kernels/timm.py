"""The kernels in timm: a class that its vision transformers take as `attn_layer`.

    model = timm.create_model("deit_tiny_patch16_224", attn_layer=attention("RBF"))

It is timm's own attention, of which only the middle is another: what computes an output from queries, keys and values.
Names and shapes of its parameters are timm's, so pretrained weights load; the kernel's own are new beside them.
"""

from __future__ import annotations

import copyreg
import inspect
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo import plugins
from zoo.errors import ZooError, listing
from zoo.kernel import Kernel, Mask, Request
from zoo.position import Dense, Geometry

try:
    from timm.layers import Attention
except ImportError:
    raise ZooError("zoo_kernels.timm needs timm 1.0.31 or later.   Try:  pip install 'positionzoo[timm]'") from None


class KernelAttention(Attention):
    """timm's attention around a kernel; `attention` says which.

    Arguments are those of timm's `Attention`; `depth`, which some of timm's layers are told, is taken and not used.
    Weights of timm's load strictly, and then the kernel's own parameters stay as they are.

    Raises ZooError for dropout on the attention weights, which no kernel makes, and where the kernel refuses.
    """

    kind: type[Kernel]
    settings: dict[str, Any]
    grid: tuple[int, int]
    prefix: int

    def __init__(self, dim: int, num_heads: int = 8, *args: Any, depth: int = 0, **others: Any) -> None:
        super().__init__(dim, num_heads, *args, **others)
        name = self.kind.__name__
        if self.attn_drop.p > 0:
            raise ZooError(
                f"The kernel {name} drops no attention weights, and timm asks for attn_drop {self.attn_drop.p:g}.   "
                "Try:  attn_drop_rate=0, with proj_drop_rate or drop_path_rate instead"
            )
        self.kernel = self.kind(
            Geometry(
                dim=dim,
                heads=num_heads,
                kv_heads=num_heads,
                head_dim=self.head_dim,
                length=self.grid,
                prefix=self.prefix,
                causal=False,
            ),
            **self.settings,
        ).to(self.qkv.weight.device, self.qkv.weight.dtype)
        request = Request(mask=frozenset(), head_dim=self.head_dim, value_dim=self.head_dim)
        if reasons := self.kernel.refuses(request):
            raise ZooError(f"The kernel {name} cannot serve this model of timm's. {' '.join(reasons)}")
        self.register_load_state_dict_pre_hook(keep)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """As timm's: x [batch, tokens, dim]; a row that a mask hides everything from gives 0 before the projection.

        Args:
            x: The stream.
            attn_mask: Broadcasts to [batch, heads, tokens, tokens]: bool, True where a key is seen, or added to logits.
            is_causal: A token sees only itself and what came before.
        """
        if is_causal and attn_mask is not None:
            raise ZooError("timm's attention takes attn_mask or is_causal, and got both.")
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        bias, blind = None, None
        if attn_mask is not None:
            bias, blind = added(attn_mask, self.num_heads, x.shape[1])
        y = self.kernel(q, k, v, bias=bias, mask=Mask(causal=is_causal), scale=self.scale)
        if blind is not None:
            y = y.masked_fill(blind, 0.0)
        y = self.norm(y.transpose(1, 2).flatten(-2))
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(y))


class Made(type):
    """The kind of classes that `attention` makes, which have no name by which another process could find them."""


def recipe(kind: Any) -> tuple[Any, ...]:
    """How pickle makes such a class again; timm's models keep it beside its instances."""
    return partial(attention, kind.kind.__name__, grid=kind.grid, prefix=kind.prefix, **kind.settings), ()


copyreg.pickle(Made, recipe)  # type: ignore[arg-type]


def attention(kernel: str, *, grid: tuple[int, int] = (14, 14), prefix: int = 1, **arguments: Any) -> type[Any]:
    """The class to give to timm as `attn_layer`.

    Args:
        kernel: Name of an installed kernel.
        grid: Rows and columns of patches; some kernels start from the number of tokens (Sigmoid).
        prefix: Class and register tokens before them.
        **arguments: The kernel's own.
    """
    kind = plugins.load("zoo.kernels", kernel)
    known = [*inspect.signature(kind).parameters][1:]
    if wrong := [name for name in arguments if name not in known]:
        raise ZooError(f"The kernel {kernel} has no argument {listing(wrong)}; it has: {listing(known)}.")
    own = {"kind": kind, "settings": arguments, "grid": grid, "prefix": prefix, "__doc__": KernelAttention.__doc__}
    return Made(f"{kernel}Attention", (KernelAttention,), own)


def undecayed(model: nn.Module) -> set[str]:
    """Names of the kernels' parameters in a model, which weight decay would pull to where they mean something else.

    Give them to timm as `no_weight_decay_list`, beside its model's own.
    """
    found = [(name, part) for name, part in model.named_modules() if isinstance(part, KernelAttention)]
    return {f"{name}.kernel.{own}" for name, part in found for own, _ in part.kernel.named_parameters()}


def added(mask: Tensor, heads: int, tokens: int) -> tuple[Dense, Tensor]:
    """What a mask adds to the logits, and the rows from which it hides everything, [..., tokens, 1].

    Those are let see everything, since no kernel has a softmax of nothing; their output is then set to 0.
    """
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -math.inf)
    mask = mask.view(*(1,) * (4 - mask.ndim), *mask.shape)
    mask = mask.expand(-1, heads, tokens, tokens)
    blind = mask.isneginf().all(-1, keepdim=True)
    return Dense(mask.masked_fill(blind, 0.0)), blind


def keep(module: KernelAttention, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Where weights know nothing of the kernel, as timm's do, have it keep its own."""
    start = f"{prefix}kernel."
    if not any(name.startswith(start) for name in state):
        state.update(module.kernel.state_dict(prefix=start))
