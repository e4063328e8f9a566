"""CoPE and FoX against x-transformers' attention layers: outputs, and the gradient of every weight, in float64.

Their CoPE is contextual position encoding as published; their "data dependent alibi" is FoX. Both sides compute a whole
attention layer by their own code, on weights that ours takes from theirs.
"""

import importlib.util
from functools import partial

import pytest
import torch

from zoo import plugins
from zoo.kernel import Mask
from zoo.layers import Attention
from zoo.position import Geometry

pytestmark = pytest.mark.parity
if importlib.util.find_spec("x_transformers") is None:
    pytest.skip("x-transformers is not installed here: pip install x-transformers", allow_module_level=True)

from x_transformers import x_transformers as theirs  # noqa: E402

DIM, HEADS, WIDTH, TOKENS, POSITIONS = 48, 4, 8, 40, 6
GEOMETRY = Geometry(dim=DIM, heads=HEADS, kv_heads=HEADS, head_dim=WIDTH, length=(TOKENS,))
CoPE, FoX = (plugins.load("zoo.positions", name) for name in ("CoPE", "FoX"))


@pytest.fixture(params=["Eager", "Tiled"])
def kernel(request) -> str:
    torch.manual_seed(0)
    return request.param


def layers(kernel: str, **options: object) -> tuple[torch.nn.Module, Attention]:
    """Their causal attention layer, every weight of it random, and ours with the same weights."""
    softmax = partial(torch.softmax, dim=-1)  # theirs rounds to float32
    known = theirs.Attention(
        dim=DIM, heads=HEADS, dim_head=WIDTH, causal=True, custom_attn_fn=softmax, **options
    ).double()
    for weight in known.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    inner = plugins.load("zoo.kernels", kernel)(GEOMETRY)
    plain = {"norm": "RMSNorm", "eps": 1e-6, "qk_norm": "none", "qkv_bias": False, "out_bias": False}
    ours = Attention(GEOMETRY, inner, **plain).double()
    with torch.no_grad():
        ours.qkv.weight.copy_(torch.cat([part.weight for part in (known.to_q, known.to_k, known.to_v)]))
        ours.out.weight.copy_(known.to_out.weight)
    return known, ours


def agree(known: torch.nn.Module, ours: Attention, position: torch.nn.Module, pairs: dict) -> None:
    """Compare outputs and gradients: of the input, of all projections, and of `pairs`, {our parameter: theirs}."""
    x = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    down, at = torch.randn_like(x), torch.arange(float(TOKENS)).view(-1, 1)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    got = ours(mine, position(at, at, TOKENS, mine), Mask(causal=True))
    expected = known(other)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    got.backward(down)
    expected.backward(down)
    torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-10)
    projections = torch.cat([part.weight.grad for part in (known.to_q, known.to_k, known.to_v)])
    torch.testing.assert_close(ours.qkv.weight.grad, projections, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.out.weight.grad, known.to_out.weight.grad, rtol=0, atol=1e-9)
    assert len(pairs) == len(list(position.parameters()))
    for parameter, twin in pairs.items():
        gradient = twin.grad if twin.shape == parameter.shape else twin.grad.mT
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-9)


def test_cope(kernel):
    """Their vectors are [positions, width], ours [width, positions]."""
    known, ours = layers(kernel, use_cope=True, cope_max_pos=POSITIONS)
    position = CoPE(GEOMETRY, positions=POSITIONS).double()
    vectors = known.attend.cope.pos_emb
    with torch.no_grad():
        position.vectors.copy_(vectors.mT)
    agree(known, ours, position, {position.vectors: vectors})


def test_fox(kernel):
    known, ours = layers(kernel, data_dependent_alibi=True)
    position = FoX(GEOMETRY).double()
    linear = known.data_dependent_alibi.to_forget_gates[0]
    position.linear.load_state_dict(linear.state_dict())
    agree(known, ours, position, {position.linear.weight: linear.weight, position.linear.bias: linear.bias})


def test_first_gates_of_fox():
    """Theirs start nearly open, which is an argument of ours."""
    known = theirs.DataDependentAlibi(DIM, HEADS).to_forget_gates[0]
    assert torch.equal(FoX(GEOMETRY, start=5.0).linear.bias, known.bias)
