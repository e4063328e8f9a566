"""Flex: the same values as Eager where it runs, a sentence where it does not, gradients on CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from zoo_kernels import flex
from zoo_kernels.flex import Flex

from zoo import plugins
from zoo.errors import ZooError
from zoo.kernel import Eager, Mask, Request
from zoo.matrix import places
from zoo.position import Geometry, Pointwise
from zoo.vit import grid

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
quiet = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture
def plain(monkeypatch):
    """FlexAttention uncompiled: slow, the same numbers."""
    monkeypatch.setattr(flex, "attention", lambda device: flex.flex_attention)


def same(one, geometry, tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        found, wanted = one.run(Flex(geometry)), one.to(torch.float64).run(Eager(geometry))
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


@quiet
@pytest.mark.parametrize("rung", ["none", "slopes_ragged", "toeplitz", "pointwise"])
@pytest.mark.parametrize("conditions", ["none", "causal", "causal_window_sinks_documents_padding"])
def test_values(case, geometry, plain, rung, conditions):
    same(case(rung, conditions, 133, dtype=torch.float32, grad=False), geometry)


@quiet
@pytest.mark.parametrize("rung", ["slopes", "toeplitz", "pointwise"])
def test_prefix(case, geometry, plain, rung):
    same(case(rung, "none", 21, prefix=3, dtype=torch.float32, grad=False), geometry)


@quiet
def test_heads_of_their_own(case, geometry, plain):
    one, cut = case("toeplitz", "causal", 21, dtype=torch.float32, grad=False), slice(2, 4)
    torch.testing.assert_close(one.run(Flex(geometry), cut), one.run(Eager(geometry))[:, cut], rtol=1e-5, atol=1e-5)


@quiet
def test_a_scalar_among_the_tensors(case, geometry, plain):
    one = case("none", "causal", 21, dtype=torch.float32, grad=False)
    one.tensors = (torch.tensor(0.3),)
    one.build = lambda c: Pointwise(lambda b, h, i, j, c: c * (i - j), (c,), heads=4, queries=21, keys=21)
    same(one, geometry)


def test_layers_share_the_mask(case):
    mask = case("none", "causal_window", 21).mask
    first = flex.blocks(mask, 21, 21, torch.device("cpu"))
    assert first is flex.blocks(mask, 21, 21, torch.device("cpu"))
    assert flex.blocks(case("none", "none", 21).mask, 21, 21, torch.device("cpu")) is None


def test_refusals(geometry):
    kernel = Flex(geometry)
    assert "no backward pass on the CPU" in kernel.refuses(Request(device="cpu", training=True))[0]
    assert "float64" in kernel.refuses(Request(device="cuda", dtype=torch.float64))[0]
    assert "16 wide" in kernel.refuses(Request(device="cuda", head_dim=8))[0]
    assert not kernel.refuses(Request(device="cuda", dtype=torch.bfloat16, training=True, learned=True))
    assert not kernel.refuses(Request())
    torch.use_deterministic_algorithms(True)
    try:
        assert "no fixed order" in kernel.refuses(Request(device="cuda", learned=True))[0]
    finally:
        torch.use_deterministic_algorithms(False)


def test_refusals_at_the_last_moment(case, geometry):
    with pytest.raises(ZooError, match="cannot train on the CPU"):
        case("toeplitz", "causal", 21, dtype=torch.float32).run(Flex(geometry))
    with pytest.raises(ZooError, match="cannot decode with a cache on the CPU"):
        case("toeplitz", "causal", 3, 21, grad=False, dtype=torch.float32).run(Flex(geometry))
    with pytest.raises(ZooError, match="Flex cannot carry a Dense bias; it carries biases up to Pointwise"):
        case("dense", "causal", 21, grad=False).run(Flex(geometry))


@pytest.mark.slow
def test_compiled_on_the_cpu(case, geometry):
    for length in (133, 150):
        one = case("toeplitz", "causal_padding", length, width=16, dtype=torch.float32, grad=False)
        same(one, geometry, 1e-4)


TEXT = Geometry(dim=64, heads=4, kv_heads=2, head_dim=16, length=(100,))
GRID = replace(TEXT, length=(6, 9), prefix=2, causal=False)


def fused() -> Iterator[pytest.param]:
    """Every installed encoding whose bias Flex carries, for text and for images."""
    for name, kind in {**plugins.classes("zoo.positions"), "FIRE of depth 2": deep}.items():
        for geometry in (TEXT, GRID):
            try:
                found = places(kind(geometry)).bias
            except ZooError:
                continue
            if isinstance(found, Pointwise):
                yield pytest.param(kind, geometry, id=f"{name} {'text' if geometry is TEXT else 'image'}")


def deep(geometry: Geometry):
    return plugins.load("zoo.positions", "FIRE")(geometry, depth=2, threshold=20.5)


def attended(kernel, kind, geometry, tokens: int, dtype, device: str, grad: bool = True) -> list[torch.Tensor]:
    """Output of a kernel with an encoding, and gradients of queries, keys, values and what the encoding learns."""
    torch.manual_seed(0)
    position, count = kind(geometry).to(device, dtype), tokens + geometry.prefix
    random = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(device, dtype)

    heads = (geometry.heads, geometry.kv_heads, geometry.kv_heads)
    leaves = [draw(2, some, count, geometry.head_dim).requires_grad_(grad) for some in heads]
    at = torch.arange(tokens).view(-1, 1) if geometry.axes == 1 else grid(*geometry.length)
    at = at.to(device, dtype)
    with torch.set_grad_enabled(grad):
        bias = position(at, at, tokens, draw(2, count, geometry.dim) if position.content else None).bias
        out = kernel(geometry)(*leaves, bias=bias, mask=Mask(causal=geometry.causal), scale=0.3)
    learned = [p for p in position.parameters() if p.requires_grad]
    push = draw(*out.shape)
    return [out, *torch.autograd.grad(out, (*leaves, *learned), push, allow_unused=True)] if grad else [out]


def tokens_of(geometry: Geometry) -> int:
    return 100 if geometry is TEXT else 54


@quiet
@pytest.mark.parametrize(("kind", "where"), fused())
def test_values_with_every_encoding(plain, kind, where):
    found, wanted = (
        attended(kernel, kind, where, tokens_of(where), dtype, "cpu", grad=False)[0]
        for kernel, dtype in ((Flex, torch.float32), (Eager, torch.float64))
    )
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


class TestCUDA:
    """Values and gradients on a GPU; learned biases are summed atomically, hence the tolerance."""

    pytestmark = gpu

    def both(self, one, geometry, tolerance: float = 2e-3) -> None:
        one = one.to(torch.float32).to("cuda")
        found = one.all(Flex(geometry))
        wanted = one.to(torch.float64).all(Eager(geometry))
        for x, y in zip(found, wanted, strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                assert x.isfinite().all()
                torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance)

    @pytest.fixture(autouse=True)
    def exactly(self):
        torch._dynamo.reset()
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        yield
        torch.set_float32_matmul_precision(before)

    def test_rungs(self, case, geometry, fused_rung):
        self.both(case(fused_rung, "causal", 256, width=16), geometry)

    def test_masks(self, case, geometry, conditions):
        self.both(case("toeplitz", conditions, 200, width=16), geometry)

    @pytest.mark.parametrize("length", [1, 2, 127, 130, 300])
    def test_ragged_lengths(self, case, geometry, length):
        self.both(case("pointwise", "causal", length, width=16), geometry)

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_grouped_keys(self, case, geometry, groups):
        self.both(case("slopes", "causal", 130, groups=groups, width=16), geometry)

    @pytest.mark.parametrize(("queries", "keys"), [(1, 130), (1, 131), (7, 130)])
    def test_cached_decoding(self, case, geometry, queries, keys):
        self.both(case("toeplitz", "causal_padding", queries, keys, width=16), geometry)

    def test_prefix(self, case, geometry):
        self.both(case("toeplitz", "none", 133, prefix=3, width=16), geometry)

    def test_inside_a_compiled_model(self, case, geometry):
        one, kernel = case("toeplitz", "causal", 256, width=16).to(torch.float32).to("cuda"), Flex(geometry)

        class Compiled:
            def __call__(self, q, k, v, *, bias, mask, scale):
                return torch.compile(kernel)(q * 1, k, v, bias=bias, mask=mask, scale=scale)

        for x, y in zip(one.all(Compiled()), one.to(torch.float64).all(Eager(geometry)), strict=True):
            torch.testing.assert_close(x.double(), y, rtol=2e-3, atol=2e-3)

    @pytest.mark.parametrize(("kind", "where"), fused())
    def test_every_encoding_trains(self, kind, where):
        found = attended(Flex, kind, where, tokens_of(where), torch.float32, "cuda")
        wanted = attended(Eager, kind, where, tokens_of(where), torch.float64, "cuda")
        for x, y in zip(found, wanted, strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                room = 2e-3 * (1 + float(y.abs().max()))
                torch.testing.assert_close(x.double(), y, rtol=2e-3, atol=room)
