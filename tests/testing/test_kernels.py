"""The exam for kernels, examined: what is broken on purpose must be caught, by name; what is sound must pass."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.bias import Dense, Logits
from zoo.kernel import Eager, Kernel, Mask, attend
from zoo.testing import examine


def failures(subject) -> set[str]:
    return {result.name for result in examine(subject) if not result.passed}


class Logistic(Kernel):
    """Another form: no normaliser (Ramapuram et al. 2024, arXiv:2409.04431), and a scale of its own that it learns."""

    form, fuses = "sigmoid", Dense

    def __init__(self, geometry):
        super().__init__(geometry)
        self.shift = nn.Parameter(torch.zeros(geometry.heads))

    def forward(self, q, k, v, *, bias=None, mask=None, scale=1.0):
        self.check(bias)
        return self.reference(q, k, v, bias=bias, mask=mask, scale=scale)

    def reference(self, q, k, v, *, bias=None, mask=None, scale=1.0):
        kind, exact = q.dtype, torch.promote_types(q.dtype, torch.float32)
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1).to(exact) for x in (k, v))
        logits = q.to(exact) @ k.mT * scale + self.own(q.shape[1]).view(-1, 1, 1)
        rows, columns = slice(0, q.shape[2]), slice(0, k.shape[2])
        if bias is not None:
            logits = logits + bias.block(rows, columns)
        seen = (mask or Mask()).block(rows, columns, q.device)
        weights = logits.sigmoid() if seen is None else logits.sigmoid() * seen
        return (weights @ v).to(kind)

    def own(self, heads):
        return self.shift


class Divisible(Logistic):
    """It can tell whose its parameters are."""

    divisible = True

    def own(self, heads):
        return self.shift[self.share]


@pytest.mark.parametrize("sound", [Eager, Logistic, Divisible])
def test_sound_kernels_pass(sound):
    assert not failures(sound)


class Cast(Logistic):
    """Its parameter follows the model's precision."""

    _apply = nn.Module._apply


class Broken(Eager):
    """Eager but for one thing."""

    def __init_subclass__(cls):
        cls.__doc__ = "Broken."

    def forward(self, q, k, v, *, bias=None, mask=None, scale=1.0):
        return self.reference(*self.spoil(q, k, v), bias=self.bent(bias), mask=self.torn(mask or Mask()), scale=scale)

    def spoil(self, q, k, v):
        return q, k, v

    def bent(self, bias):
        return bias

    def torn(self, mask):
        return mask


def without(mask: Mask, **change) -> Mask:
    kept = {name: getattr(mask, name) for name in ("causal", "offset", "window", "documents", "padding", "sinks")}
    return Mask(**kept | change)


def mutant(name: str, **methods) -> type[Kernel]:
    return type(name, (Broken,), methods)


def plain(self, q, k, v, *, bias=None, mask=None, scale=1.0):
    seen = (mask or Mask()).block(slice(0, q.shape[2]), slice(0, k.shape[2]), q.device)
    logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * scale
    if bias is not None:
        logits = bias.onto(logits, q, k, seen, scale, slice(0, q.shape[2]))
    logits = logits if seen is None else logits.masked_fill(~seen, self.far)
    return logits.softmax(-1) @ v.repeat_interleave(q.shape[1] // k.shape[1], 1)


def kernel_forward(change):
    def forward(self, q, k, v, *, bias=None, mask=None, scale=1.0):
        return change(self, self.reference(q, k, v, bias=bias, mask=mask, scale=scale), q)

    return forward


def mixed_heads(self, q, k, v):
    return q, *(x.repeat(1, q.shape[1] // k.shape[1], 1, 1) for x in (k, v))


def ignored(self, q, k, v, *, bias=None, mask=None, scale=1.0):
    return self.reference(q, k, v, bias=None if isinstance(bias, Logits) else bias, mask=mask, scale=scale)


def stale(self, q, k, v, *, bias=None, mask=None, scale=1.0):
    if mask is not None and bias is not None:
        bias = mask.memo.setdefault("bias", bias)
    return self.reference(q, k, v, bias=bias, mask=mask, scale=scale)


def one_scale(self, q, k, v, *, bias=None, mask=None, scale=1.0):
    return self.reference(q, k, v, bias=bias, mask=mask, scale=q.shape[-1] ** -0.5)


def scaled_bias(self, q, k, v, *, bias=None, mask=None, scale=1.0):
    """The scale multiplies the bias too."""
    rows = slice(0, q.shape[2])
    seen = (mask or Mask()).block(rows, slice(0, k.shape[2]), q.device)
    return attend(q * scale, k, v, None if bias is None else Scaled(bias, scale), seen, 1.0, rows)


class Scaled:
    def __init__(self, bias, scale):
        self.bias, self.scale = bias, scale

    def onto(self, logits, *rest):
        return logits + (self.bias.onto(logits, *rest) - logits) * self.scale


def ragged(self, out: Tensor, q: Tensor) -> Tensor:
    whole = max(out.shape[2] // 64, 1) * 64
    return functional.pad(out[:, :, :whole], (0, 0, 0, max(out.shape[2] - whole, 0)))


def overwriting(self, out: Tensor, q: Tensor) -> Tensor:
    q.data.mul_(1.001)
    return out


def first(bias):
    """The bias of the first heads, whichever are asked for."""
    other = copy.copy(bias)
    other.first = 0
    return other


def half_bias(self, bias):
    return bias and bias.replace(*(t.bfloat16().to(t) if t.is_floating_point() else t for t in bias.tensors))


def rough(self, q, k, v):
    return q.bfloat16().to(q), k.bfloat16().to(k), v.bfloat16().to(v)


MUTANTS = {
    mutant("NoBias", bent=lambda self, bias: None): "biases",
    mutant("NoGradient", bent=lambda self, bias: bias and bias.replace(*(t.detach() for t in bias.tensors))): "biases",
    mutant("HalfBias", bent=half_bias): "biases",
    mutant("NoMask", torn=lambda self, mask: Mask()): "biases",
    mutant("NoWindow", torn=lambda self, mask: without(mask, window=None)): "biases",
    mutant("NoSinks", torn=lambda self, mask: without(mask, sinks=0)): "biases",
    mutant("NoDocuments", torn=lambda self, mask: without(mask, documents=None)): "biases",
    mutant("NoPadding", torn=lambda self, mask: without(mask, padding=None)): "biases",
    mutant("NoOffset", torn=lambda self, mask: without(mask, offset=0)): "lengths",
    mutant("MixedHeads", spoil=mixed_heads): "groups",
    mutant("DetachedKeys", spoil=lambda self, q, k, v: (q, k.detach(), v)): "biases",
    mutant("RoughInputs", spoil=rough): "double",
    mutant("SinglePrecision", spoil=lambda self, q, k, v: (q.float().to(q), k, v)): "double",
    mutant("OneScale", forward=one_scale): "widths",
    mutant("ScaledBias", forward=scaled_bias): "widths",
    mutant("NaNRows", forward=plain, far=-torch.inf): "blind",
    mutant("AveragedRows", forward=plain, far=torch.finfo(torch.float32).min): "blind",
    mutant("Ragged", forward=kernel_forward(ragged)): "lengths",
    mutant("Noisy", forward=kernel_forward(lambda self, out, q: out + 1e-6 * torch.randn_like(out))): "repeats",
    mutant("Overwriting", forward=kernel_forward(overwriting)): "repeats",
    mutant("Widened", forward=kernel_forward(lambda self, out, q: out.float())): "half",
    mutant("AboveItsRung", forward=ignored, fuses=Dense): "refusal",
    mutant("NoRung", fuses=None, bent=lambda self, bias: None): "refusal",
    mutant("Stale", forward=stale): "layers",
    mutant("FirstHeads", bent=lambda self, bias: bias and first(bias)): "shares",
}


@pytest.mark.parametrize(("broken", "name"), MUTANTS.items(), ids=lambda x: getattr(x, "__name__", x))
def test_broken_kernels_are_caught(broken, name):
    assert name in failures(broken)


def test_parameters_in_half_precision_are_caught():
    assert failures(Cast) == {"half"}


@pytest.mark.parametrize(
    "own",
    [lambda self, heads: self.shift, lambda self, heads: self.shift[:heads]],
    ids=["all", "first"],
)
def test_a_kernel_that_mistakes_its_heads_is_caught(own):
    mistaken = type("Mistaken", (Divisible,), {"own": own})
    assert "shares" in failures(mistaken)
    mistaken.divisible = False
    assert "shares" not in failures(mistaken)


def test_a_kernel_that_gives_whole_heads_no_gradient_is_caught():
    def own(self, heads):
        return self.shift[self.share] if self.share == slice(None) else self.shift[self.share].detach()

    assert "shares" in failures(type("Mistaken", (Divisible,), {"own": own}))


def test_prefix_rows_are_looked_at():
    def bent(self, bias):
        if bias is None or not bias.prefix:
            return bias
        size = bias.queries + bias.prefix
        return Dense(functional.pad(bias.climb(Dense).tensors[0], (3, 0, 3, 0), value=0.5)[:, :, :size])

    assert "prefixes" in failures(mutant("Prefixed", bent=bent))
