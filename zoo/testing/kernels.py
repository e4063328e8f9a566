"""The exam for kernels: whatever a kernel does not refuse must be what its form's `reference` says in float64.

Values and gradients are compared, the bias's and the kernel's own included. A kernel that does not train on a device is
examined there without gradients. torch.compile is switched off but in `compiled`, so that all cases can be tried.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import cycle, product

import torch
from torch import Tensor

from zoo.bias import LADDER, Bias, Dense, Slopes, carries
from zoo.errors import ZooError
from zoo.kernel import Kernel, Mask
from zoo.testing.cases import MASKS, RUNGS, Case
from zoo.testing.probe import Check, Skip, Subject, build, check, close, deterministic, title
from zoo.testing.settings import keywords

Leaves = dict[str, Tensor]
Gradients = dict[str, Tensor | None]


def admit(subject: Subject, case: Case, device: str, dtype: torch.dtype = torch.float32) -> tuple[Kernel, Leaves]:
    """The kernel and the tensors of a case, with gradients where it trains; Skip or ZooError where it refuses."""
    kernel: Kernel = subject(case.geometry()).to(device, torch.promote_types(dtype, torch.float32))
    if case.rung is not None and not carries(kernel.fuses, case.rung):
        raise Skip(f"{title(subject)} does not carry a {case.rung.__name__} bias.")
    training = not kernel.refuses(case.request(device, dtype, True))
    if not training and (reasons := kernel.refuses(case.request(device, dtype, False))):
        raise Skip(reasons[0])
    return kernel, place(case, device, dtype, training)


def place(case: Case, device: str, dtype: torch.dtype, training: bool) -> Leaves:
    """The tensors of a case where the kernel is; a bias is float32 at least."""
    found = {}
    for name, tensor in case.leaves().items():
        kind = dtype if name in "qkv" else torch.promote_types(dtype, torch.float32)
        found[name] = tensor.to(device, kind).requires_grad_(training)
    return found


def run(
    kernel: Kernel, case: Case, leaves: Leaves, *, reference: bool = False, call: Callable[..., Tensor] | None = None
) -> tuple[Tensor, Gradients]:
    """Output and gradients of one call; a kernel may refuse as late as here."""
    q, k, v = (leaves[name] for name in "qkv")
    call = call or (kernel.reference if reference else kernel)
    with torch.set_grad_enabled(q.requires_grad):
        out = call(q, k, v, bias=case.make_bias(leaves), mask=case.make_mask(q.device.type), scale=case.scale)
    if not q.requires_grad:
        return out, {}
    assert out.requires_grad, f"With {case}: the result has no gradient."
    named = leaves | {name: parameter for name, parameter in kernel.named_parameters() if parameter.requires_grad}
    push = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad(out, list(named.values()), push.to(out), allow_unused=True)
    return out, dict(zip(named, found, strict=True))


def each(cases: Iterable[Case], examine: Callable[[Case], None]) -> None:
    """Examine every case that is not refused, ungrouped if grouped heads are; Skip with a reason where all are."""
    reasons, served = [], 0
    for case in cases:
        for form in dict.fromkeys((case, replace(case, kv_heads=case.heads))):
            try:
                examine(form)
                served += 1
                break
            except (Skip, ZooError) as reason:
                reasons.append(str(reason))
    if not served:
        raise Skip(reasons[0])


def survey(
    subject: Subject, cases: Iterable[Case], device: str, dtype: torch.dtype = torch.float32, tolerance: float = 2e-5
) -> None:
    """Compare values and gradients of all cases with the reference in float64."""
    if device != "cpu" and dtype == torch.float32:
        tolerance = 5e-3  # matrix products may be TF32 there

    def compare(case: Case) -> None:
        kernel, leaves = admit(subject, case, device, dtype)
        out, slopes = run(kernel, case, leaves)
        exact = {name: leaf.detach().double().requires_grad_(leaf.requires_grad) for name, leaf in leaves.items()}
        expected, right = run(copy.deepcopy(kernel).double(), case, exact, reference=True)
        assert out.dtype == dtype, f"With {case}: {dtype} goes in, {out.dtype} comes out."
        close(out, expected, tolerance, f"With {case}: values are not those of the reference.")
        for name, slope in right.items():
            if slope is not None:
                found, room = slopes[name], tolerance * (1 + float(slope.abs().max()))
                assert found is not None, f"With {case}: {name} gets no gradient."
                close(found, slope, room, f"With {case}: the gradient of {name} is not that of the reference.")

    each(cases, compare)


def plain(function: Check) -> Check:
    """A check that runs what is written, without torch.compile, with gradients."""

    @functools.wraps(function)
    def wrapped(subject: Subject, device: str = "cpu") -> None:
        with torch.compiler.set_stance("force_eager"), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(subject, device)

    return check(wrapped)


@plain
def biases(subject: Subject, device: str) -> None:
    """Every rung that it claims, under every mask, gives the values and gradients of the reference."""
    survey(subject, (Case(rung=rung, mask=mask) for rung, mask in product(RUNGS, MASKS)), device)


@plain
def lengths(subject: Subject, device: str) -> None:
    """Any length serves, whether or not it is a multiple of a block, and so do queries behind a cache."""
    shapes = (1, 1), (7, 7), (65, 65), (130, 130), (1, 40), (5, 33), (70, 140)
    rungs = cycle(rung for rung in RUNGS if carries(build(subject, Case().geometry()).fuses, rung))
    cases = [
        Case(rung=next(rungs), mask=mask, queries=q, keys=k, hidden=min(k - 1, 7))
        for mask, (q, k) in product(("causal", "padding", "sinks", "window", "document"), shapes)
    ]
    survey(subject, cases, device)


@plain
def groups(subject: Subject, device: str) -> None:
    """Query head h reads key head h * kv_heads / heads, and its own row of the bias."""
    heads = (1, 1), (4, 4), (4, 1), (6, 3)
    survey(subject, (Case(rung=r, heads=h, kv_heads=k) for r, (h, k) in product(RUNGS, heads)), device)


@plain
def widths(subject: Subject, device: str) -> None:
    """The scale multiplies the logits before the bias, and values may be wider or narrower than queries and keys."""
    changes = {"scale": 1.0}, {"scale": 0.05}, {"value_dim": 32}, {"width": 32}, {"width": 64, "value_dim": 64}
    survey(subject, (Case(rung=rung, **change) for rung, change in product((None, Slopes, Dense), changes)), device)  # type: ignore[arg-type]


@plain
def prefixes(subject: Subject, device: str) -> None:
    """Class and register tokens, before the others, get no bias."""
    survey(subject, (Case(rung=r, mask=m, prefix=3) for r, m in product(RUNGS[:-1], ("none", "causal"))), device)


@plain
def blind(subject: Subject, device: str) -> None:
    """A query that sees no key gives exactly 0, and gradients that are finite."""

    def zero(case: Case) -> None:
        kernel, leaves = admit(subject, case, device)
        out, slopes = run(kernel, case, leaves)
        rows = out[0, :, : case.hidden]
        assert not rows.isnan().any(), f"With {case}: rows that see nothing give NaN."
        assert (rows == 0).all(), f"With {case}: rows that see nothing give {rows.abs().max():.2g}, not 0."
        for name, slope in slopes.items():
            assert slope is None or slope.isfinite().all(), f"With {case}: the gradient of {name} is not finite."

    each((Case(rung=rung, mask="padding", hidden=hidden) for rung, hidden in product(RUNGS, (7, 20))), zero)


@plain
def double(subject: Subject, device: str) -> None:
    """In float64, where it does not refuse it, it is exact to float64."""
    cases = [Case(rung=rung, mask=mask) for rung, mask in product(RUNGS, ("all", "document"))]
    survey(subject, cases, device, torch.float64, 1e-9)


@plain
def half(subject: Subject, device: str) -> None:
    """In bfloat16 it is as good as its inputs: sums, softmax and what it learns are float32, the bias not rounded."""
    for name, parameter in build(subject, Case().geometry()).to(torch.bfloat16).named_parameters():
        assert parameter.dtype == torch.float32, (
            f"Cast to bfloat16 the parameter {name} became {parameter.dtype}: leave `_apply` of Kernel in place."
        )
    survey(subject, (Case(rung=rung) for rung in RUNGS), device, torch.bfloat16, 5e-2)


@plain
def layers(subject: Subject, device: str) -> None:
    """Layers share a mask but not a bias: what a kernel remembers of one call must not answer for another."""

    def again(case: Case) -> None:
        kernel, leaves = admit(subject, case, device)
        q, k, v, learned = (leaves[name].detach() for name in ("q", "k", "v", "bias"))
        shared, tolerance = case.make_mask(device), 2e-5 if device == "cpu" else 5e-3
        for factor in (1.0, 2.0, 0.5):
            bias = case.make_bias(leaves | {"bias": learned * factor})
            with torch.no_grad():
                out = kernel(q, k, v, bias=bias, mask=shared, scale=case.scale)
                expected = kernel.reference(q, k, v, bias=bias, mask=case.make_mask(device), scale=case.scale)
            close(out, expected, tolerance, f"With {case}: another layer's bias was used.")

    each((Case(rung=rung, mask="window") for rung in LADDER), again)


@plain
def shares(subject: Subject, device: str) -> None:
    """Asked for some of the heads, it gives what these are of the whole, values and gradients."""

    def compare(case: Case) -> None:
        kernel, leaves = admit(subject, case, device)
        if not kernel.divisible and any(True for _ in (*kernel.parameters(), *kernel.buffers())):
            raise Skip(f"{title(subject)} does not say that it can be asked for some of its heads, and never is.")

        def apart(q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None, mask: Mask, scale: float) -> Tensor:
            found, half, groups = [], case.heads // 2, case.kv_heads // 2
            for n in (0, 1):
                own, keys = slice(n * half, (n + 1) * half), slice(n * groups, (n + 1) * groups)
                kernel.share = own
                some = bias.heads(own.start, own.stop) if bias is not None else None
                found.append(kernel(q[:, own], k[:, keys], v[:, keys], bias=some, mask=mask, scale=scale))
            kernel.share = slice(None)
            return torch.cat(found, 1)

        with torch.no_grad():
            for parameter in kernel.parameters():  # what starts alike in all heads would tell nothing
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter).to(parameter))
        out, slopes = run(kernel, case, leaves)
        parts, others = run(kernel, case, leaves, call=apart)
        tolerance = 2e-5 if device == "cpu" else 5e-3
        close(parts, out, tolerance, f"With {case}: half of the heads are not what they are of the whole.")
        for name, slope in slopes.items():
            if slope is not None:
                found, room = others[name], tolerance * (1 + float(slope.abs().max()))
                assert found is not None, f"With {case}: {name} gets no gradient from half of the heads."
                close(found, slope, room, f"With {case}: the gradient of {name} is not that of the whole.")

    each((Case(rung=rung, mask=mask) for rung, mask in product(RUNGS, ("causal", "sinks", "document"))), compare)


@plain
def refusal(subject: Subject, device: str) -> None:
    """A bias above its rung is refused with a ZooError, never left out."""
    above = [rung for rung in LADDER if not carries(build(subject, Case().geometry()).fuses, rung)]
    if not above:
        raise Skip(f"{title(subject)} carries every rung.")
    for case in (Case(rung=rung) for rung in above):
        kernel, leaves = build(subject, case.geometry()).to(device), place(case, device, torch.float32, False)
        try:
            out, _ = run(kernel, case, leaves)
        except ZooError:
            continue
        except Exception as error:
            raise AssertionError(
                f"With {case} it raises {type(error).__name__}: {error}. Begin forward with self.check(bias), which "
                "refuses it with a sentence."
            ) from error
        expected, _ = run(kernel, case, leaves, reference=True)
        close(out, expected, 1e-4, f"With {case}, which is above what it fuses, it gives wrong values in silence.")


@plain
def repeats(subject: Subject, device: str) -> None:
    """Where deterministic algorithms are asked for, two calls give the same bits; inputs are left as they were."""

    def twice(case: Case) -> None:
        with deterministic():
            kernel, leaves = admit(subject, case, device)
            before = {name: tensor.detach().clone() for name, tensor in leaves.items()}
            try:
                (one, slopes), (two, again) = (run(kernel, case, leaves) for _ in range(2))
            except RuntimeError as error:
                if "deterministic" not in str(error):
                    raise
                raise Skip(str(error).splitlines()[0]) from None
        assert torch.equal(one, two), f"With {case}: two calls give different values."
        for name, slope in slopes.items():
            other = again[name]
            same = slope is None or other is None or torch.equal(slope, other)
            assert same, f"With {case}: two calls give different gradients of {name}."
        for name, tensor in leaves.items():
            assert torch.equal(tensor, before[name]), f"With {case}: it overwrites {name}."

    each((Case(rung=rung, queries=70, keys=70) for rung in RUNGS), twice)


@check
def compiled(subject: Subject, device: str = "cpu") -> None:
    """With whatever it compiles compiled, it gives the values and gradients of the reference."""
    rung = Slopes if carries(build(subject, Case().geometry()).fuses, Slopes) else None
    few = [Case(rung=rung, mask="document", queries=130, keys=130)]
    many = [Case(rung=rung, mask=mask) for rung, mask in zip(cycle(RUNGS), MASKS)]
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survey(subject, few if device == "cpu" else [*few, *many], device)


CHECKS: tuple[Check, ...] = (
    keywords,
    biases,
    lengths,
    groups,
    widths,
    prefixes,
    blind,
    double,
    half,
    layers,
    shares,
    refusal,
    repeats,
    compiled,
)
