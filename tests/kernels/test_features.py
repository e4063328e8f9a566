"""Features: pieces add up to what they are cut from, in any type, and widths are what fused kernels want."""

import pytest
import torch
from zoo_kernels import sdpa
from zoo_kernels.features import pieces, spare, widen
from zoo_kernels.sdpa import SDPA

from zoo.kernel import Eager

NUMBERS = [0.0, 1.0, -1.0, 0.1, -3.14159274, 400.123, -12345.678, 1e-3, 2.0**-20, 65504.0]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("compiled", [False, True])
def test_pieces_add_up(kind, compiled):
    x = torch.tensor(NUMBERS)
    cut = torch.compile(lambda x: pieces(x, kind)) if compiled else lambda x: pieces(x, kind)
    found = cut(x)
    assert [piece.dtype for piece in found] == [kind] * 3
    assert all(torch.equal(piece.bfloat16().to(kind), piece) for piece in found), "8 bits each"
    # float16 ends at 2^-24: what lies below is lost there, and nothing else anywhere.
    torch.testing.assert_close(sum(piece.double() for piece in found), x.double(), rtol=0, atol=2.0**-24)
    if kind != torch.float16:
        assert torch.equal(sum(piece.double() for piece in found), x.double())


def test_float64_is_not_cut():
    x = torch.tensor([0.1], dtype=torch.float64)
    (found,) = pieces(x, torch.float64)
    assert torch.equal(found, x)


def test_the_first_piece_carries_the_gradient():
    x = torch.tensor([0.1, 400.123], requires_grad=True)
    first, *rest = pieces(x, torch.float32)
    (slope,) = torch.autograd.grad(first, x, torch.tensor([0.3, 0.7]))
    assert slope.tolist() == pytest.approx([0.3, 0.7])
    assert not any(piece.requires_grad for piece in rest)


@pytest.mark.parametrize(("width", "wide"), [(8, 16), (13, 16), (14, 24), (64, 72), (128, 136)])
def test_widths_are_multiples_of_8(width, wide):
    x = torch.ones(1, 2, 3, width)
    found = widen(x, [torch.full((1, 1, 1), 2.0), torch.full((1, 1, 3, 1), 3.0)], spare(width))
    assert found.shape[-1] == wide == width + spare(width)
    assert found[0, 1, 2].tolist() == [1.0] * width + [2.0, 3.0] + [0.0] * (wide - width - 2)


@pytest.mark.parametrize("conditions", ["causal", "causal_window"])
@pytest.mark.parametrize("more", [-4, 4])
def test_sdpa_hands_one_width_to_torch(case, geometry, monkeypatch, conditions, more):
    one, seen = case("none", conditions, 12, width=8), []
    one.v = torch.nn.functional.pad(one.v.detach(), (0, more), value=0.3).requires_grad_()

    def watch(q, k, v, **rest):
        seen.append({x.shape[-1] for x in (q, k, v)})
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **rest)

    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", watch)
    for found, wanted in zip(one.all(SDPA(geometry)), one.all(Eager(geometry)), strict=True):
        torch.testing.assert_close(found, wanted)
    assert seen == [{max(8, 8 + more)}]
