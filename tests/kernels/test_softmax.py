"""Eager equals the definition written as loops; SDPA and Tiled equal Eager in values and in every gradient."""

from __future__ import annotations

import math

import pytest
import torch
from zoo_kernels.sdpa import SDPA
from zoo_kernels.tiled import Tiled

from zoo.errors import ZooError
from zoo.kernel import Eager, Kernel, Mask
from zoo.position import Geometry


def sees(mask: Mask, b: int, i: int, j: int) -> bool:
    """The conjunction, in scalars."""
    i, pad = i + mask.offset, int(mask.padding[b]) if mask.padding is not None else 0
    if j < pad or (mask.causal and j > i):
        return False
    if mask.documents is not None and mask.documents[b, i] != mask.documents[b, j]:
        return False
    return mask.window is None or abs(i - j) < mask.window or (mask.sinks > 0 and j < pad + mask.sinks)


def definition(case) -> torch.Tensor:
    """Attention as loops over batch, heads and queries, in Python floats."""
    q, k, v = (x.detach().tolist() for x in (case.q, case.k, case.v))
    out = torch.zeros(*case.q.shape[:3], case.v.shape[-1], dtype=torch.float64)
    each = case.q.shape[1] // case.k.shape[1]
    for b in range(len(q)):
        for h in range(len(q[0])):
            for i, query in enumerate(q[b][h]):
                keys, values = k[b][h // each], v[b][h // each]
                dots = [case.scale * sum(x * y for x, y in zip(query, key, strict=True)) for key in keys]
                seen = [sees(case.mask, b, i, j) for j in range(len(keys))]
                if case.said is not None:
                    logits = [dot + float(case.said(b, h, i, j)) for j, dot in enumerate(dots)]
                else:
                    weight, mix = (t[h].item() for t in case.tensors)
                    gate = [seen[j] / (1 + math.exp(-dot)) for j, dot in enumerate(dots)]
                    mean = sum(query) / len(query)
                    logits = [dot + weight * sum(gate[j:]) + mix * mean for j, dot in enumerate(dots)]
                if not any(seen):
                    continue
                top = max(x for x, s in zip(logits, seen, strict=True) if s)
                raised = [math.exp(x - top) if s else 0.0 for x, s in zip(logits, seen, strict=True)]
                total = sum(raised)
                for d in range(out.shape[-1]):
                    out[b, h, i, d] = sum(r / total * value[d] for r, value in zip(raised, values, strict=True))
    return out


def close(found: list[torch.Tensor], wanted: list[torch.Tensor], tolerance: float = 1e-10) -> None:
    for one, two in zip(found, wanted, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            assert one.dtype == two.dtype
            torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=["SDPA", "Tiled8", "Tiled64"])
def kernel(request, geometry) -> Kernel:
    name = request.param
    return SDPA(geometry) if name == "SDPA" else Tiled(geometry, block=int(name[5:]))


def skip(kernel: Kernel, rung: str) -> None:
    if rung == "logits" and isinstance(kernel, SDPA):
        pytest.skip("SDPA carries no map of the logits")


def test_eager_is_the_definition(case, geometry, rung, conditions):
    one = case(rung, conditions, 12)
    torch.testing.assert_close(one.run(Eager(geometry)).detach(), definition(one), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rung", ["slopes", "toeplitz", "pointwise", "dense"])
@pytest.mark.parametrize(("queries", "keys", "prefix"), [(12, 12, 3), (5, 12, 0), (1, 12, 0)])
def test_eager_is_the_definition_with_prefix_and_cache(case, geometry, rung, queries, keys, prefix):
    one = case(rung, "causal", queries, keys, prefix=prefix)
    torch.testing.assert_close(one.run(Eager(geometry)).detach(), definition(one), rtol=1e-12, atol=1e-12)


def test_every_mask_and_rung(case, geometry, kernel, rung, conditions):
    skip(kernel, rung)
    one = case(rung, conditions, 21)
    close(one.all(kernel), one.all(Eager(geometry)))


@pytest.mark.parametrize("length", [1, 2, 127, 130])
def test_lengths_that_are_no_multiple_of_the_block(case, geometry, kernel, rung, length):
    skip(kernel, rung)
    one = case(rung, "causal", length)
    close(one.all(kernel), one.all(Eager(geometry)))


@pytest.mark.parametrize("length", [127, 130])
def test_the_default_block(case, geometry, rung, length):
    one = case(rung, "causal", length)
    close(one.all(Tiled(geometry)), one.all(Eager(geometry)))


@pytest.mark.parametrize("conditions", ["none", "causal_window", "causal_documents", "causal_window_sinks_padding"])
@pytest.mark.parametrize("length", [127, 130])
def test_masks_at_lengths_that_are_no_multiple_of_the_block(case, geometry, kernel, conditions, length):
    one = case("toeplitz", conditions, length)
    close(one.all(kernel), one.all(Eager(geometry)))


@pytest.mark.parametrize(("queries", "keys"), [(1, 30), (7, 30), (70, 99)])
@pytest.mark.parametrize("conditions", ["causal", "causal_window", "causal_padding", "causal_window_sinks_padding"])
def test_cached_decoding(case, geometry, kernel, rung, conditions, queries, keys):
    skip(kernel, rung)
    one = case(rung, conditions, queries, keys)
    close(one.all(kernel), one.all(Eager(geometry)))


@pytest.mark.parametrize("rung", ["slopes", "toeplitz", "pointwise", "dense"])
@pytest.mark.parametrize("conditions", ["none", "causal", "causal_window"])
def test_prefix(case, geometry, kernel, rung, conditions):
    one = case(rung, conditions, 30, prefix=3)
    close(one.all(kernel), one.all(Eager(geometry)))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_keys(case, geometry, kernel, groups):
    for rung in ("none", "toeplitz", "dense"):
        one = case(rung, "causal", 21, groups=groups)
        close(one.all(kernel), one.all(Eager(geometry)))


def test_some_heads_only(case, geometry, kernel, rung):
    skip(kernel, rung)
    one, cut = case(rung, "causal", 21), slice(2, 4)
    close(one.all(kernel, cut), one.all(Eager(geometry), cut))
    torch.testing.assert_close(one.run(kernel, cut), one.run(Eager(geometry))[:, cut])


def test_distances_beyond_the_table(case, geometry, kernel):
    from zoo.position import Toeplitz

    for first in (-40, -15, 0, 3, 15, 40):
        one = case("toeplitz", "none", 21)
        table, at, _ = one.tensors
        one.tensors = (table, at + first, at)
        one.build = lambda t, q, k: Toeplitz(t, q, k, lowest=-5)
        close(one.all(kernel), one.all(Eager(geometry)))


def test_rows_that_see_nothing_are_zero_with_finite_gradients(case, geometry, kernel, rung):
    skip(kernel, rung)
    one = case(rung, "causal_padding", 21)
    out, *grads = one.all(kernel)
    assert not out[1, :, :9].any()
    assert out[1, :, 9:].all()
    assert all(grad.isfinite().all() for grad in grads if grad is not None)
    assert not grads[0][1, :, :9].any()


def test_float32_and_bfloat16_stay_what_they_are(case, geometry, kernel):
    exact = case("toeplitz", "causal_window", 130).all(Eager(geometry))
    single = case("toeplitz", "causal_window", 130, dtype=torch.float32)
    close(single.all(kernel), [x.float() for x in exact], 1e-4)
    half = single.to(torch.bfloat16)
    half.tensors = single.tensors  # an encoding's tables stay float32
    out, dq, *_ = half.all(kernel)
    assert out.dtype == dq.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact[0], rtol=0.05, atol=0.05)


def test_autocast_leaves_float32_arithmetic_alone(case, geometry):
    one = case("toeplitz", "causal", 70, dtype=torch.float32)
    for kernel in (Eager(geometry), Tiled(geometry, block=32)):
        plain = one.run(kernel)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(one.run(kernel), plain)


def test_layers_share_the_tensors_that_want_no_gradient(case, geometry):
    for grad in (False, True):
        one = case("toeplitz", "causal", 21, grad=grad)
        bias, mask = one.build(*one.tensors), one.mask
        outs = [SDPA(geometry)(one.q, one.k, one.v, bias=bias, mask=mask) for _ in range(2)]
        assert torch.equal(*outs)
        assert ("dense" in mask.memo) is not grad
        mask.memo.clear()


def test_values_may_be_wider_than_keys(case, geometry, kernel):
    one = case("toeplitz", "causal", 30)
    one.v = torch.cat((one.v, one.v), -1).detach().requires_grad_()
    close(one.all(kernel), one.all(Eager(geometry)))


def test_a_rung_above_is_refused(case, geometry):
    with pytest.raises(ZooError, match="SDPA cannot carry a Logits bias; it carries biases up to Dense"):
        case("logits").run(SDPA(geometry))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("past", "tokens"), [(1, 2), (5, 70), (200, 33), (64, 64)])
def test_sdpa_reads_on_without_a_mask(past, tokens, dtype, monkeypatch):
    """Two flash kernels that are weighed against each other, where a mask would be a tensor."""
    monkeypatch.setattr("zoo_kernels.sdpa.sight", None)  # no mask is made
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, count, 16) * 3 for heads, count in ((4, tokens), (2, past + tokens), (2, past + tokens))
    )
    shape = Geometry(dim=64, heads=4, kv_heads=2, head_dim=16, length=(8,))
    mask = Mask(causal=True, offset=past)
    wanted = Eager(shape)(*(x.to(dtype).double() for x in (q, k, v)), mask=mask, scale=0.3)
    found = SDPA(shape)(q.to(dtype), k.to(dtype), v.to(dtype), mask=mask, scale=0.3)
    assert found.dtype == dtype
    close = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), wanted, rtol=close, atol=close)
