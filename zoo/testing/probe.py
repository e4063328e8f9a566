"""What the exam is taken with: small models whose attention can be looked at, and comparisons that explain themselves.

A check is a function of its subject (a class, or a `functools.partial` of one) that raises AssertionError with a
sentence for the author, or `Skip` with the reason why it does not apply.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo import plugins
from zoo.bias import Bias
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.kernel import Eager, Kernel, Mask
from zoo.position import Encoding, Geometry, PositionEncoding
from zoo.trunk import Trunk
from zoo.vit import grid

Subject = Callable[..., Any]
Check = Callable[..., None]

GEOMETRY = Geometry(dim=64, heads=4, kv_heads=2, head_dim=16, length=(64,))
"""Text: grouped heads, and a length that the far checks leave behind."""
GRID = replace(GEOMETRY, length=(4, 6), prefix=3, causal=False)
"""Patches: a grid that is not square, behind three registers."""
STD = 0.125
"""Standard deviation of weights that makes logits of order 1 at this width, so that attention is far from uniform."""
FIBONACCI = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0, 89.0, 144.0, 233.0)


class Skip(Exception):  # noqa: N818 - it reports no error
    """A check that does not apply to its subject; the message is the reason."""


def check(function: Check) -> Check:
    """Run a check from a fixed seed, without gradients and on one thread; leave the caller's settings as they were."""

    @functools.wraps(function)
    def run(subject: Subject, *args: Any, **kwargs: Any) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the tensors are tiny, and on a busy machine threads wait for each other
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                function(subject, *args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return run


def kind(subject: Subject) -> Any:
    """The class behind a subject."""
    return kind(subject.func) if isinstance(subject, partial) else subject


def title(subject: Subject) -> str:
    """'RoPE', or 'RoPE(base=100)' where the subject is a partial."""
    if not isinstance(subject, partial):
        return str(getattr(subject, "__name__", subject))
    told = {key: title(value) if callable(value) else value for key, value in subject.keywords.items()}
    return f"{title(subject.func)}({', '.join(f'{key}={value}' for key, value in told.items())})"


def close(found: Tensor, expected: Tensor, tolerance: float, sentence: str) -> None:
    """Fail with a sentence about two tensors that should be equal."""
    assert found.shape == expected.shape, f"{sentence} Shapes: {tuple(found.shape)} and {tuple(expected.shape)}."
    gap = float((found.detach().double() - expected.detach().double()).abs().max()) if found.numel() else 0.0
    assert gap <= tolerance, f"{sentence} They differ by {gap:.2g}, more than {tolerance:.0e}."


class Lens(Eager):
    """Eager attention that keeps its weights [batch, heads, queries, keys], for looking at."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        one = torch.eye(k.shape[2], dtype=q.dtype).expand(*k.shape[:2], -1, -1)
        self.weights = super().forward(q, k, one, bias=bias, mask=mask, scale=scale)
        return super().forward(q, k, v, bias=bias, mask=mask, scale=scale)


def build(make: Callable[[Geometry], Any], geometry: Geometry) -> Any:
    """`make(geometry)`, once more without grouped heads if it refuses those; Skip with its sentence if it refuses."""
    try:
        return make(geometry)
    except ZooError as error:
        try:
            return make(replace(geometry, kv_heads=geometry.heads))
        except ZooError:
            raise Skip(str(error)) from None


def trunk(
    subject: Subject,
    geometry: Geometry = GEOMETRY,
    *,
    kernel: Subject = Lens,
    seed: int = 0,
    layers: int = 1,
    checkpointing: bool = False,
) -> Trunk:
    """A float64 trunk whose weights depend on nothing but their shapes; its encoding is float32, parameters stirred."""

    def make(g: Geometry) -> Trunk:
        torch.manual_seed(seed)
        same = {key: getattr(g, key) for key in ("dim", "heads", "kv_heads", "head_dim", "length", "prefix", "causal")}
        return Trunk(**same, position=subject, kernel=kernel, layers=layers, checkpointing=checkpointing, std=STD)

    model: Trunk = build(make, geometry)
    settle(model)
    return model


def models(subject: Subject, *, image: Geometry = GRID, seed: int = 0) -> list[Trunk]:
    """One of text and one of images, where it serves them; Skip where it serves neither."""
    found, reasons = [], []
    for geometry in (GEOMETRY, image):
        try:
            found.append(trunk(subject, geometry, seed=seed))
        except Skip as reason:
            reasons.append(reason)
    if not found:
        raise reasons[0]
    return found


def settle(model: Trunk) -> None:
    """Weights from a seed of their own, in float64; the encoding's parameters stirred."""
    torch.manual_seed(1)
    model.initialize(STD)
    stir(model.positions)
    model.blocks.double()
    model.norm.double()


def decoder(subject: Subject, *, length: int = 64, kernel: Subject = Eager) -> Decoder:
    """A small decoder with that encoding, float64 but for the encoding."""

    def make(g: Geometry) -> Decoder:
        torch.manual_seed(0)
        sizes = {key: getattr(g, key) for key in ("dim", "heads", "kv_heads", "head_dim")}
        return Decoder(
            vocabulary=32, length=length, position=subject, kernel=kernel, layers=2, std=STD, tied=False, **sizes
        )

    model: Decoder = build(make, GEOMETRY)
    settle(model.trunk)
    nn.init.normal_(model.embedding.weight)
    nn.init.normal_(model.head.weight, std=STD)
    model.embedding.double()
    model.head.double()
    return model.eval()


def stir(module: nn.Module) -> None:
    """Move every trainable parameter off its initial value, as training would; signs stay, zeros do not."""
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, module.parameters()):
            noise = 0.1 * torch.randn_like(parameter)
            parameter.copy_(torch.where(parameter == 0, noise, parameter * noise.exp()))


@cache
def content() -> Tensor:
    """What the tokens say, [4, 256, dim]: rows of a shorter sequence are rows of a longer one."""
    return torch.randn(4, 256, GEOMETRY.dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def weights(model: Trunk, positions: Tensor, extent: int, x: Tensor | None = None) -> Tensor:
    """Attention weights [batch, heads, prefix + tokens, prefix + tokens] of the first layer."""
    tokens = model.geometry.prefix + positions.shape[-2]
    if x is None:
        x = content()[: len(positions) if positions.ndim == 3 else 1, :tokens, :]
    model(x, positions, positions, extent, Mask(causal=model.geometry.causal))
    return model.kernel.weights  # type: ignore[return-value]


def line(tokens: int, start: int = 0) -> Tensor:
    """Positions of text, [tokens, 1]."""
    return torch.arange(start, start + tokens).float().unsqueeze(-1)


def some(model: Trunk, start: float = 0) -> Tensor:
    """A dozen positions from `start` on, in a line or on a grid."""
    return start + (line(12) if model.geometry.axes == 1 else grid(3, 4))


def apart(model: Trunk, extent: int) -> Tensor:
    """Positions at many distances from each other, short ones and long; on a grid a dozen patches."""
    return some(model) if model.geometry.axes > 1 else torch.tensor([[p] for p in FIBONACCI if p < extent]).float()


def size(model: Trunk) -> int:
    """The tokens of its first training, which is the extent of the usual request."""
    return torch.Size(model.geometry.length).numel()


def installed(name: str) -> type[Kernel] | None:
    """A kernel by name, if it is installed and can be imported."""
    return plugins.classes("zoo.kernels").get(name)


def encode(position: PositionEncoding, positions: Tensor, extent: int) -> Encoding:
    """What an encoding says, given hidden states if it wants them."""
    g = position.geometry
    x = functional.pad(content()[:1, : g.prefix + positions.shape[-2]].float(), (0, g.dim - GEOMETRY.dim))
    return position(positions, positions, extent, x if position.content else None)


@contextmanager
def deterministic() -> Iterator[None]:
    """torch's deterministic mode, for a while."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def blame(where: str) -> Iterator[None]:
    """Say where it happened that something else than a refusal or a finding was raised."""
    try:
        yield
    except (AssertionError, Skip, ZooError):
        raise
    except Exception as error:
        raise AssertionError(f"{where} it raises {type(error).__name__}: {error}") from error
