"""The Triton kernels: values and gradients by a dense definition in float64, and what their machine code takes.

The interpreter runs NumPy for each instruction of each tile, so tiles and tensors are small here.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zoo.kernel import Mask
from zoo.position import Geometry, Pointwise, Slopes

CUDA = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
if find_spec("triton") is None:
    pytest.skip("triton is not installed here: tox -e triton", allow_module_level=True)
if not CUDA:
    if "triton" in sys.modules and not sys.modules["triton"].knobs.runtime.interpret:
        pytest.skip("triton was imported before it was told to interpret: tox -e triton", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"

import triton.language as tl  # noqa: E402
from zoo_kernels import fourier  # noqa: E402
from zoo_kernels.fourier import choice, device, gpu  # noqa: E402

DEVICE = "cuda" if CUDA else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities that are meant
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs CUDA")]
QUERIES, KEYS = 37, 50
PADDING = torch.tensor([0, 20])
DOCUMENTS = torch.stack((torch.arange(KEYS) // 17, (torch.arange(KEYS) + 3) // 11))
MASKS = {
    "none": Mask(),
    "causal": Mask(causal=True, offset=13),
    "window": Mask(offset=13, window=6),
    "causal window": Mask(causal=True, offset=13, window=6),
    "window sinks padding": Mask(offset=13, window=6, sinks=2, padding=PADDING),
    "causal documents": Mask(causal=True, offset=13, documents=DOCUMENTS),
    "all": Mask(causal=True, offset=13, window=9, sinks=2, documents=DOCUMENTS, padding=PADDING),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    if not CUDA:
        monkeypatch.setattr(gpu, "TILE", 32)


def dense(
    a: Tensor, b: Tensor, v: Tensor, rate: Tensor, line: Tensor | None, mask: Mask, null: float | None, radial: bool
) -> Tensor:
    """The definition, with torch.sinc and autograd."""
    b, v = (x.repeat_interleave(a.shape[1] // x.shape[1], 1) for x in (b, v))
    (queries, keys), apart = (a.shape[2], b.shape[2]), a.unsqueeze(3) - b.unsqueeze(2)
    if radial:
        apart = torch.linalg.vector_norm(apart.unflatten(-1, (-1, 2)), dim=-1)
    logits = torch.sinc(apart / math.pi).abs().log().sum(-1) * rate[:, None, None]
    if line is not None:
        logits = logits + torch.stack([line[:, queries - 1 - i :][:, :keys] for i in range(queries)], 1)
    visible = mask.block(slice(0, queries), slice(0, keys), a.device)
    if visible is not None:
        logits = logits.masked_fill(~visible, -math.inf)
    weights = logits.exp()
    total = weights.sum(-1, keepdim=True) + (0 if null is None else math.exp(null))
    return weights / torch.where(total == 0, 1, total) @ v


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def leaves(
    batch: int = 1, heads: int = 2, groups: int = 1, queries: int = QUERIES, keys: int = KEYS, width: int = 3,
    wide: int = 5, spread: float = 0.9, line: bool = True,
) -> list[Tensor | None]:  # fmt: skip
    """a, b, v, rate, line."""
    a, b, v = draw(batch, heads, queries, width), draw(batch, groups, keys, width, seed=1), (batch, groups, keys, wide)
    rate = torch.linspace(2, 4, heads)
    return [a * spread, b * spread, draw(*v, seed=2), rate, draw(heads, queries + keys - 1, seed=3) if line else None]


def moved(mask: Mask) -> Mask:
    documents, padding = (x if x is None else x.to(DEVICE) for x in (mask.documents, mask.padding))
    return replace(mask, documents=documents, padding=padding, memo={})


def compare(
    given: list[Tensor | None], mask: Mask, null: float | None = None, radial: bool = False, fast: bool = False,
    most: float = 1e-5, orders: tuple[bool, ...] = (False, True), kind: torch.dtype = torch.float32,
) -> list[Tensor]:  # fmt: skip
    """Values and gradients of both backwards against the definition, relative to the greatest of each tensor."""
    mask = moved(mask)
    ours = [x if x is None else x.to(DEVICE, kind if n == 2 else None).requires_grad_() for n, x in enumerate(given)]
    exact = [x if x is None else x.detach().double().requires_grad_() for x in ours]
    wanted = dense(*exact, mask, null, radial)
    down = draw(*wanted.shape, seed=4).to(DEVICE, kind)
    live = [n for n, x in enumerate(given) if x is not None]
    wanted_grads = torch.autograd.grad(wanted, [exact[n] for n in live], down.double())
    a, b, v, rate, line = ours
    found = []
    for order in orders:
        out = gpu.attend(a, b, v, rate, mask=mask, line=line, null=null, radial=radial, deterministic=order, fast=fast)
        assert out.dtype == kind
        assert out.is_contiguous()
        found = [out, *torch.autograd.grad(out, [ours[n] for n in live], down)]
        for name, x, y in zip(["out", *("abvrl"[n] for n in live)], found, [wanted, *wanted_grads], strict=True):
            assert y.isfinite().all(), name  # or the case says nothing
            error = (x.double() - y).abs().max() / y.abs().max()
            assert error < most, (name, order, error)
    return found


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask(mask):
    batch = 1 if MASKS[mask].documents is None and MASKS[mask].padding is None else 2
    compare(leaves(batch, 2 if mask == "all" else 2 // batch), MASKS[mask], null=-3.0 if "window" in mask else None)


@pytest.mark.skipif(CUDA, reason="needs the interpreter")
@pytest.mark.parametrize("radial", [False, True])
def test_the_series_beside_the_sine_of_the_hardware(monkeypatch, radial):
    """What `fast` does but for assembly, which the interpreter has not."""
    monkeypatch.setattr(device, "sine", lambda x: tl.sin(x))
    monkeypatch.setattr(device, "log2", lambda x, _: tl.log2(x))
    monkeypatch.setattr(device, "inverse", lambda x, _: 1.0 / x)
    monkeypatch.setattr(device, "root", lambda x, _: tl.sqrt(x))
    monkeypatch.setattr(device, "INTERPRETED", False)
    compare(leaves(width=4, queries=16, line=False), Mask(), radial=radial, fast=True, orders=(False,))


def test_rows_that_see_nothing_give_nothing():
    mask = Mask(causal=True, padding=torch.tensor([0, 40]))
    out, *grads = compare(leaves(2, 1), mask)
    assert (out[1] == 0).all()  # there are 37 queries
    assert (grads[0][1] == 0).all()
    assert all(x.isfinite().all() for x in grads)


@pytest.mark.parametrize("radial", [False, True])
def test_ties_and_zeros_of_the_sinc(radial):
    """Queries that are keys, and differences 1e-3 beside multiples of pi, or beside the bounds of the series."""
    given = leaves(width=4, queries=16, keys=40, heads=3)
    steps = torch.tensor([0.0, 1e-6, 1e-3, 0.4999, 0.5001, 1.5707, 1.5709, 3.1406, 3.1426, 6.2822, 9.4258])
    given[0] = given[1][:, :, :16].expand(1, 3, 16, 4).clone()
    given[0][..., 0] += steps[torch.arange(16) % len(steps)]
    given[3] = torch.tensor([2.0, 4.0, 3.3])
    compare(given, Mask(), radial=radial, most=5e-5)


def test_pairs_of_channels():
    compare(leaves(width=6), MASKS["causal window"], null=-2.0, radial=True)


def test_groups_of_heads_and_ragged_widths():
    compare(leaves(heads=4, groups=2, width=11, wide=17, queries=5, spread=0.5), Mask(causal=True, offset=45))


def test_more_than_1024_keys():
    """Where the authors' own kernel left all gradients at 0."""
    given = leaves(heads=1, queries=3, keys=1050, width=1, wide=1)
    _, *grads = compare(given, Mask(causal=True, offset=1047), orders=(False,))
    assert all((x != 0).any() for x in grads)


def test_a_line_that_hides():
    given = leaves(queries=20, keys=33)
    given[4][:, 25:] = -math.inf
    compare(given, Mask())


# The interpreter multiplies the bits of bfloat16 as if they were whole numbers.
@pytest.mark.parametrize(("kind", "most"), [(torch.float16, 2e-3), (torch.float64, 1e-5)])
def test_types_of_values(kind, most):
    compare(leaves(queries=9, keys=20, line=False), Mask(), kind=kind, most=most, orders=(False,))


def test_what_is_not_finite_stays_so():
    a, b, v, rate, _ = leaves(queries=9, keys=20)
    a[0, 0, 3, 1], a[0, 1, 4, 0] = math.nan, math.inf
    run = {"mask": Mask(causal=True), "fast": False}
    out = gpu.attend(*(x.to(DEVICE) for x in (a, b, v, rate)), **run)
    bad = out.isnan().all(-1)
    assert bad.nonzero().tolist() == [[0, 0, 3], [0, 1, 4]]
    assert (bad == ~out.isfinite().all(-1)).all()
    a, b, v, rate, _ = leaves(queries=9, keys=20)
    b[0, 0, 5, 2] = math.inf
    out = gpu.attend(*(x.to(DEVICE) for x in (a, b, v, rate)), **run)
    assert out[:, :, :5].isfinite().all()
    assert out[:, :, 5:].isnan().all()


def test_keys_beyond_all_reason_are_weighed_all_the_same():
    a, b, v, rate, _ = (x if x is None else x.to(DEVICE).requires_grad_() for x in leaves(width=8, spread=1e6))
    out = gpu.attend(a, b, v, rate, mask=Mask(), fast=False)
    grads = torch.autograd.grad(out.sum(), [a, b, v, rate])
    assert all(x.isfinite().all() for x in (out, *grads))


@pytest.mark.parametrize("fast", [False, pytest.param(True, marks=needs_gpu)])
def test_a_fixed_order_gives_the_same_bits(fast):
    runs = []
    for _ in range(2):
        given = [x.to(DEVICE).requires_grad_() for x in leaves(queries=40 * (1 + 20 * CUDA), keys=40 * (1 + 20 * CUDA))]
        *four, line = given
        out = gpu.attend(*four, mask=Mask(causal=True), line=line, deterministic=True, fast=fast)
        runs.append([out, *torch.autograd.grad(out.square().sum(), given)])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


def test_torch_can_ask_for_the_fixed_order(monkeypatch):
    asked = []
    monkeypatch.setattr(gpu.Fourier, "apply", lambda *args: asked.append(args[-1].deterministic) or args[2])
    try:
        for wanted in (False, True):
            torch.use_deterministic_algorithms(wanted)
            gpu.attend(*leaves()[:4], mask=Mask())
    finally:
        torch.use_deterministic_algorithms(False)
    assert asked == [False, True]


@pytest.mark.parametrize(("fast", "most"), [(False, 1e-5), (True, 2e-4)])
@pytest.mark.parametrize("radial", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", MASKS)
class TestOnGPU:
    """The same in tiles of 64 and the widths that models have, with the hardware's sine and without."""

    pytestmark = needs_gpu

    def test_values_and_gradients(self, mask, kind, radial, fast, most):
        given = leaves(2, 4, 2, width=64, wide=64, spread=0.3)
        most = most if kind == torch.float32 else 3e-2
        compare(given, MASKS[mask], null=-3.0, radial=radial, fast=fast, most=most, kind=kind)


def ahead(tmp_path: Path, *flags: str) -> dict[str, dict[str, float]]:
    """What ahead.py prints; it runs apart, as Triton must not interpret there."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, str(Path(__file__).with_name("ahead.py")), *flags]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("flags", [("--line", "--width=128"), ("--type=float32",)])
def test_machine_code_keeps_to_registers(tmp_path, flags):
    found = ahead(tmp_path, *flags)
    assert len(found) == 4
    for name, kernel in found.items():
        assert kernel["stack"] == kernel["spills"] == 0, (name, kernel)
        assert kernel["score"] < 15, (name, kernel)
        assert kernel.get("gradient", 0) < 34, (name, kernel)


@pytest.mark.parametrize("name", ["FourierIntegral", "FourierRadial"])
@pytest.mark.parametrize("bias", ["none", "slopes", "pointwise"])
def test_the_kernel_of_a_model_runs_on_them(name, bias, monkeypatch):
    """Where a bias depends on distance alone, or there is none; elsewhere on tiles."""
    kernel = getattr(fourier, name)(Geometry(dim=24, heads=2, kv_heads=2, head_dim=12, length=(40,)), null=-5.0)
    if not CUDA:
        lacks = choice.lacks
        monkeypatch.setattr(choice, "lacks", lambda which, *rest: None if which == "triton" else lacks(which, *rest))
    calls, attend = [], gpu.attend
    monkeypatch.setattr(gpu, "attend", lambda *args, **named: calls.append(1) or attend(*args, **named))
    kernel.to(DEVICE)
    leaves = [torch.randn(2, 2, 40, 12, device=DEVICE) for _ in range(3)]
    drawn, at = torch.rand(2, device=DEVICE), torch.arange(40.0, device=DEVICE)

    def run(call, kind=torch.float32):
        *qkv, slopes = (x.detach().to(kind).requires_grad_() for x in (*leaves, drawn))
        made = {
            "none": lambda: None,
            "slopes": lambda: Slopes(slopes * 1, at, at),
            "pointwise": lambda: Pointwise(look_up, (slopes * 1,), heads=2, queries=40, keys=40),
        }[bias]()
        out = call(*qkv, bias=made, mask=Mask(causal=True), scale=12**-0.5)
        wanted = [*qkv, *kernel.parameters(), *([slopes] if bias != "none" else [])]
        return [out, *torch.autograd.grad(out.square().sum(), wanted)]

    found = run(kernel)
    expected = run(kernel.double().reference, torch.float64)
    assert len(calls) == (bias != "pointwise")
    for x, y in zip(found, expected, strict=True):
        assert (x - y).abs().max() < (5e-3 if CUDA else 2e-5) * (1 + y.abs().max())


def look_up(b: Tensor, h: Tensor, i: Tensor, j: Tensor, slopes: Tensor) -> Tensor:
    return -slopes[h] * (i - j).abs().float().sqrt()
