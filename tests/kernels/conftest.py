"""Cases for all kernel tests: every rung, every mask and their conjunctions, each with a scalar definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from torch import Tensor

from zoo.kernel import Kernel, Mask
from zoo.position import Bias, Dense, Geometry, Logits, Pointwise, Slopes, Toeplitz


@dataclass
class Case:
    """Inputs of one call; `said` is the bias of one logit, written in scalars (None for a map of the logits)."""

    q: Tensor
    k: Tensor
    v: Tensor
    tensors: tuple[Tensor, ...]
    build: Callable[..., Bias] | None
    mask: Mask
    said: Callable[[int, int, int, int], float] | None = None
    scale: float = 0.37

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in (self.q, self.k, self.v, *self.tensors) if x.is_floating_point()]

    def to(self, *args: object) -> Case:
        """The same case in another type or on another device, with leaves of its own."""

        device = next((a for a in args if isinstance(a, str)), self.q.device)

        def move(x: Tensor) -> Tensor:
            grad = x.requires_grad
            x = x.detach().to(*args) if x.is_floating_point() else x.to(device)
            return x.requires_grad_(grad)

        mask = Mask(**{n: getattr(self.mask, n) for n in ("causal", "offset", "window", "sinks")})
        for n in ("documents", "padding"):
            value = getattr(self.mask, n)
            object.__setattr__(mask, n, value.to(device) if value is not None else None)
        q, k, v, *tensors = (move(x) for x in (self.q, self.k, self.v, *self.tensors))
        return Case(q, k, v, tuple(tensors), self.build, mask, self.said, self.scale)

    def run(self, kernel: Kernel, cut: slice | None = None) -> Tensor:
        bias = self.build(*self.tensors) if self.build else None
        if bias is not None and cut is not None:
            bias = bias.heads(cut.start, cut.stop)
        mask = replace(self.mask, memo={})
        q, k, v = self.q, self.k, self.v
        if cut is not None:
            each = q.shape[1] // k.shape[1]
            part = slice(cut.start // each, cut.stop // each)
            q, k, v = q[:, cut], k[:, part], v[:, part]
        return kernel(q, k, v, bias=bias, mask=mask, scale=self.scale)

    def all(self, kernel: Kernel, cut: slice | None = None) -> list[Tensor]:
        """Output and gradients of every leaf that wants one."""
        out = self.run(kernel, cut)
        down = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape).cos()
        wanted = [x for x in self.leaves if x.requires_grad]
        return [out, *torch.autograd.grad(out, wanted, down, allow_unused=True)]


def fire(b, h, i, j, slope, near, inverse, knots, queries, keys):
    """Elementwise arithmetic over three gradient-carrying look-ups, as FIRE's exact form has it."""
    i0 = queries[i] if queries.ndim == 1 else queries[b, i]
    j0 = keys[j] if keys.ndim == 1 else keys[b, j]
    x = near[(i0 - j0).abs().clamp(max=near.shape[0] - 1)] * inverse[i0]
    segment = (x > knots[h * 0]).long() + (x > knots[h * 0 + 1]).long()
    return slope[h, segment] * x


def gates(logits, q, k, h, i, visible, scale, weight, mix):
    """A row-wise map: a reversed running sum of gates (CoPE) and a term of the un-rotated queries."""
    gate = logits.sigmoid() if visible is None else logits.sigmoid() * visible
    along = gate.flip(-1).cumsum(-1).flip(-1)
    return (
        logits + weight[h[:, 0, 0]][:, None, None] * along + mix[h[:, 0, 0]][:, None, None] * q.mean(-1, keepdim=True)
    )


def biases(name: str, heads: int, queries: int, keys: int, prefix: int, batch: int, draw: Callable[..., Tensor]):
    """(tensors, build, said) of a bias by name."""
    offset, p = keys - queries, prefix
    kp = torch.arange(keys - p)
    if name.endswith("ragged"):  # restarts within the row, at another place in each row of the batch
        kp = torch.stack([(kp - 2 * b - 1).clamp(0) % 19 for b in range(batch)])
    qp = kp[..., offset:]

    def at(x: Tensor, b: int, i: int) -> float:
        return (x if x.ndim == 1 else x[b])[i].item()

    def padded(value: Callable[[int, int, int, int], float]) -> Callable[[int, int, int, int], float]:
        def number(b: int, h: int, i: int, j: int) -> float:
            with torch.no_grad():
                return 0.0 if i < p or j < p else float(value(b, h, i - p, j - p))

        return number

    kind = name.split("_")[0]
    if kind == "none":
        return (), None, lambda b, h, i, j: 0.0
    if kind == "slopes":
        slopes = draw(heads)
        q, k = qp.to(slopes.dtype), kp.to(slopes.dtype)
        return (
            (slopes, q, k),
            lambda s, q, k: Slopes(s, q, k, prefix=p),
            padded(lambda b, h, i, j: -slopes[h] * abs(at(q, b, i) - at(k, b, j))),
        )
    if kind == "toeplitz":
        lowest, length = -3, 23  # shorter than the rows: the ends of the table go on
        table = draw(heads, length)
        return (
            (table, qp, kp),
            lambda t, q, k: Toeplitz(t, q, k, lowest=lowest, prefix=p),
            padded(lambda b, h, i, j: table[h, min(max(at(qp, b, i) - at(kp, b, j) - lowest, 0), length - 1)]),
        )
    if kind == "pointwise":
        slope, near, inverse = draw(heads, 3), draw(keys), draw(keys)
        knots = torch.tensor([-0.3, 0.4], dtype=slope.dtype)
        rows = 1 if qp.ndim == 1 else batch
        sizes = {"heads": heads, "queries": queries - p, "keys": keys - p, "batch": rows, "prefix": p}

        def said(b: int, h: int, i: int, j: int) -> float:
            x = near[abs(at(qp, b, i) - at(kp, b, j))] * inverse[at(qp, b, i)]
            return slope[h, int(x > -0.3) + int(x > 0.4)] * x

        return (slope, near, inverse, knots, qp, kp), lambda *t: Pointwise(fire, t, **sizes), padded(said)
    if kind == "dense":
        whole = draw(batch if name.endswith("ragged") else 1, heads, queries - p, keys - p)
        return (
            (whole,),
            lambda t: Dense(t, prefix=p),
            padded(lambda b, h, i, j: whole[b if len(whole) > 1 else 0, h, i, j]),
        )
    assert kind == "logits"
    return (draw(heads), draw(heads)), lambda *t: Logits(gates, t, heads=heads), None


def masks(name: str, queries: int, keys: int) -> Mask:
    """A mask by the names of its conditions; two rows in the batch."""
    words = name.split("_")
    at = torch.arange(keys)
    return Mask(
        causal="causal" in words,
        offset=keys - queries,
        window=5 if "window" in words else None,
        documents=torch.stack((at // 7, (at + 3) // 11)) if "documents" in words else None,
        padding=torch.tensor([0, min(9, keys)]) if "padding" in words else None,
        sinks=2 if "sinks" in words else 0,
    )


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: handing them to a second thread costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def case() -> Callable[..., Case]:
    """Make a case from names: case("toeplitz", "causal_window", 130)."""

    def make(
        bias: str = "none",
        mask: str = "causal",
        queries: int = 12,
        keys: int | None = None,
        *,
        heads: int = 4,
        groups: int = 2,
        width: int = 8,
        prefix: int = 0,
        grad: bool = True,
        dtype: torch.dtype = torch.float64,
    ) -> Case:
        keys = queries if keys is None else keys
        random = torch.Generator().manual_seed(1)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_(grad)

        q, k, v = draw(2, heads, queries, width), draw(2, groups, keys, width), draw(2, groups, keys, width)
        tensors, build, said = biases(bias, heads, queries, keys, prefix, 2, draw)
        return Case(q, k, v, tensors, build, masks(mask, queries, keys), said)

    return make


@pytest.fixture(scope="session")
def geometry() -> Geometry:
    return Geometry(dim=32, heads=4, kv_heads=2, head_dim=8, length=(64,))


RUNGS = ("slopes", "toeplitz", "pointwise", "dense", "logits")
RAGGED = ("slopes_ragged", "toeplitz_ragged", "pointwise_ragged", "dense_ragged")
MASKS = (
    "none",
    "causal",
    "window",
    "causal_window",
    "causal_window_sinks",
    "causal_documents",
    "causal_padding",
    "window_padding",
    "documents_padding",
    "causal_window_documents",
    "causal_window_sinks_documents_padding",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`rung` and `conditions` run over everything; `pointwise_rung` over what FlexAttention carries."""
    values = {"rung": ("none", *RUNGS, *RAGGED), "conditions": MASKS, "fused_rung": ("none", *RUNGS[:3], *RAGGED[:3])}
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    for name, each in values.items():
        if name in metafunc.fixturenames and not any(name in names for names in own):
            metafunc.parametrize(name, each)


@pytest.fixture(scope="session")
def oracle() -> Callable[..., Tensor]:
    """Any form as loops over batch, heads, queries and keys, in Python floats.

    score(h, query, key) is a logit without bias; weigh(h, logits) turns those of the keys that are seen into weights.
    """

    def sees(mask: Mask, b: int, i: int, j: int) -> bool:
        i, pad = i + mask.offset, int(mask.padding[b]) if mask.padding is not None else 0
        if j < pad or (mask.causal and j > i):
            return False
        if mask.documents is not None and mask.documents[b, i] != mask.documents[b, j]:
            return False
        return mask.window is None or abs(i - j) < mask.window or (mask.sinks > 0 and j < pad + mask.sinks)

    def run(case: Case, score: Callable[..., float], weigh: Callable[[int, list[float]], list[float]]) -> Tensor:
        q, k, v = (x.detach().tolist() for x in (case.q, case.k, case.v))
        out, each = torch.zeros(*case.q.shape[:3], case.v.shape[-1], dtype=torch.float64), len(q[0]) // len(k[0])
        for b, h, i in product(range(len(q)), range(len(q[0])), range(len(q[0][0]))):
            keys, values = k[b][h // each], v[b][h // each]
            seen = [j for j in range(len(keys)) if sees(case.mask, b, i, j)]
            if seen:
                logits = [score(h, q[b][h][i], keys[j]) + float(case.said(b, h, i, j)) for j in seen]
                for weight, j in zip(weigh(h, logits), seen, strict=True):
                    out[b, h, i] += weight * torch.tensor(values[j], dtype=torch.float64)
        return out

    return run
