"""FoX: a forget gate per head and token, whose product between two tokens fades the earlier one.

The logarithms of the gates are summed from the first token on, so the bias of a pair is a difference of two sums and no
N x N tensor exists. The sums grow with the length and their differences matter: a float32 sum near 10^6 moves in steps
of 0.06. So they are summed in float64 and handed over as two float32 numbers each, the sum and what rounding cut off;
then the error of a bias is relative to the bias, however long the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import ZooError
from zoo.position import Encoding, Geometry, Pointwise, PositionEncoding, Slopes, unrounded


class FoX(PositionEncoding):
    """Each token closes a gate, a little or altogether, on all that came before it: it is forgotten by that much.

    Source: Lin et al. 2025, arXiv:2503.02130; CABLE (arXiv:2503.08067) is the same with the sign of the gate's logit
    turned. With the input x of the attention layer and f_t = sigmoid(w_h . x_t + b_h),

        bias[h, i, j] = F_i - F_j = sum over j < t <= i of log f_t,        F_t = log f_1 + ... + log f_t

    a Pointwise bias on the scaled logits, float32, from sums [batch, heads, tokens] and one Linear(dim, heads) in each
    layer. Causal models only. Prefix tokens have no gate and are not forgotten.

    A gate that reads the content ("full") acts once per token and reads no positions: shifted or spaced out, they
    change nothing, and documents packed together or padding on the left cancel in the difference, so that the mask
    tells them apart by itself. A constant gate forgets at a constant rate per position: a Slopes bias, ALiBi with other
    slopes -log f, which counts positions as they are given and needs no hidden states.

    Raises ZooError for a model that is not causal or has two axes, for numbers out of range, and for numbers that the
    chosen gate does not use.

    Args:
        gate: Full: read from the content; bias: a constant per head and layer, trained; fixed: a constant per head.
        start: First b of the full gate; default: 0, which forgets half with each token. x-transformers: 5, which
            forgets 0.7 percent.
        std: Standard deviation of the first w of the full gate; default: 0.02, as in the authors' models.
        shortest: Positions in which the first head's constant gate forgets all but 1/e; trained ones start there.
            Default: 2.
        longest: The same of the last head, default: 256; heads between are spaced evenly by logarithm. With 2 and 256
            eight heads start as ALiBi's.
    """

    rates: Tensor

    def __init__(
        self,
        geometry: Geometry,
        *,
        gate: Literal["full", "bias", "fixed"] = "full",
        start: float | None = None,
        std: float | None = None,
        shortest: float | None = None,
        longest: float | None = None,
    ) -> None:
        super().__init__(geometry)
        if geometry.axes != 1 or not geometry.causal:
            what = f"has {geometry.axes} axes" if geometry.axes != 1 else "looks both ways"
            raise ZooError(
                f"FoX forgets what came before, in a causal model of one axis, and this model {what}: between a token "
                "and a later one no gate is defined. Try:  --model.position RoPE"
            )
        idle = {"shortest": shortest, "longest": longest} if gate == "full" else {"start": start, "std": std}
        for name, value in idle.items():
            if value is not None:
                other = "fixed" if gate == "full" else "full"
                raise ZooError(
                    f"FoX's {gate} gate has no {name}, and {value} would reach nothing. Leave it out, or take another "
                    f"gate:  --model.position.gate {other}"
                )
        self.gate = gate
        self.start, self.std = (value if value is not None else rest for value, rest in ((start, 0.0), (std, 0.02)))
        self.shortest, self.longest = 2.0 if shortest is None else shortest, 256.0 if longest is None else longest
        if not 0 < self.shortest <= self.longest < math.inf or self.std < 0:
            raise ZooError(
                "FoX forgets within a time above 0, the shortest not above the longest, and draws with a std of 0 or "
                f"more; got {self.shortest}, {self.longest} and {self.std}. Leave them out, or try:  "
                "--model.position.shortest 2 --model.position.longest 256"
            )
        self.content, self.per_layer = gate == "full", gate != "fixed"
        if gate == "full":
            self.linear = nn.Linear(geometry.dim, geometry.heads, dtype=torch.float32)
        elif gate == "bias":
            self.bias = nn.Parameter(torch.empty(geometry.heads, dtype=torch.float32))
        else:
            home = torch.get_default_device()
            home = torch.device("cpu") if home.type == "meta" else home
            self.register_buffer("rates", self.fixed(torch.float32).to(home), persistent=False)
        self.reset_parameters()

    def fixed(self, kind: torch.dtype) -> Tensor:
        """-log f of the constant gates, computed anew on the CPU in float64."""
        ends = -math.log(self.shortest), -math.log(self.longest)
        return torch.linspace(*ends, self.geometry.heads, dtype=torch.float64, device="cpu").exp().to(kind)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the gates anew, or put constants that are trained back to where they start."""
        if self.gate == "full":
            nn.init.normal_(self.linear.weight, std=self.std)
            nn.init.constant_(self.linear.bias, self.start)
        elif self.gate == "bias":
            rates = self.fixed(torch.float64)
            self.bias.copy_(-rates - rates.neg().expm1().neg().log())  # so that its logsigmoid is -rates

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        extent: int,
        hidden: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Encoding:
        if self.gate != "full":
            rates = functional.softplus(-self.bias) if self.gate == "bias" else self.rates
            return Encoding(bias=Slopes(rates, queries[..., 0], keys[..., 0], prefix=self.geometry.prefix))
        count, total = queries.shape[-2], keys.shape[-2]
        sums = self.sums(hidden[:, -count:], state) if hidden is not None else None
        if sums is None or sums.shape[-1] != total:
            known = 0 if sums is None else sums.shape[-1]
            raise ZooError(
                f"FoX gates each token by its hidden state, and has those of {known} tokens for {total} keys. Give it "
                "the hidden states of all of them, or the state in which the same request left the earlier ones."
            )
        kind = self.linear.weight.dtype
        return Encoding(bias=Faded(sums, count, kind, prefix=self.geometry.prefix))

    def sums(self, hidden: Tensor, state: dict[str, Tensor] | None) -> Tensor:
        """F of all tokens so far, [batch, heads, tokens], in float64 where the device has it."""
        wide = torch.float32 if hidden.device.type == "mps" else torch.float64
        with unrounded(hidden):
            gates = functional.logsigmoid(self.linear(hidden.to(self.linear.weight.dtype)))
        sums = gates.mT.to(wide).cumsum(-1)
        if state is not None:
            if "sums" in state:
                sums = torch.cat((state["sums"], state["sums"][..., -1:] + sums), -1)
            state["sums"] = sums
        return sums

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.gate == "fixed":  # a constant of no state dict: whole again after meta construction
            self.rates = self.fixed(self.rates.dtype).to(self.rates.device)
        return self


class Faded(Pointwise):
    """F_i - F_j: the difference of the float32 numbers, and then of what they lack.

    Rows carry a gradient like columns: a softmax has none for what a row has in common, but a sigmoid has, and so has
    a softmax with a sink in its denominator.

    Args:
        sums: F of the keys, [batch, heads, keys], float32 or better.
        queries: Query tokens, the last of the keys.
        kind: Of the bias.
        prefix: Prefix tokens.
    """

    def __init__(self, sums: Tensor, queries: int, kind: torch.dtype, *, prefix: int = 0) -> None:
        high = sums.to(kind)
        low = (sums - high).detach().to(kind)  # `high` carries the whole gradient: for FlexAttention, in one look-up
        super().__init__(
            faded,
            (high[..., -queries:], high, low[..., -queries:], low),
            heads=sums.shape[1],
            queries=queries,
            keys=sums.shape[2],
            batch=len(sums),
            prefix=prefix,
        )

    def values(self, rows: slice, columns: slice) -> Tensor:
        above, below = (
            (high[:, self.first : self.first + self.count], low[:, self.first : self.first + self.count])
            for high, low in (self.tensors[::2], self.tensors[1::2])
        )
        bias = above[0][..., rows, None] - below[0][..., None, columns]
        return bias.add_(above[1][..., rows, None]).sub_(below[1][..., None, columns])  # one block of memory, not three


def faded(
    b: Tensor, h: Tensor, i: Tensor, j: Tensor, rows: Tensor, columns: Tensor, low_rows: Tensor, low_columns: Tensor
) -> Tensor:
    """The same for single indices, and for broadcasting ones."""
    return (rows[b, h, i] - columns[b, h, j]) + low_rows[b, h, i] - low_columns[b, h, j]
