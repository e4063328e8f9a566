"""OffByOne and Sink: the definition in loops, the limits, flash, and what layers share."""

import math

import pytest
import torch
from zoo_kernels import sdpa
from zoo_kernels.sink import OffByOne, Sink

from zoo.auto import Auto
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.kernel import Eager, Mask, Request
from zoo.position import Encoding, Logits, PositionEncoding

LOGITS = [-1.5, 0.0, 0.7, 2.5]
RUNGS = ["none", "slopes", "toeplitz", "pointwise_ragged", "dense"]
SHAPES = [(12, 12, 0), (12, 12, 3), (5, 12, 0), (1, 12, 0), (1, 1, 0)]


@pytest.fixture(params=["OffByOne", "Sink"])
def kernel(request, geometry):
    if request.param == "OffByOne":
        return OffByOne(geometry)
    sink = Sink(geometry).double()
    with torch.no_grad():
        sink.logit.copy_(torch.tensor(LOGITS, dtype=torch.float64))
    return sink


def expected(oracle, one, kernel):
    """exp(l) / (exp(s) + sum exp(l)), in loops."""
    sinks = LOGITS if isinstance(kernel, Sink) else [0.0] * 4

    def score(h, query, key):
        return one.scale * sum(x * y for x, y in zip(query, key, strict=True))

    def weigh(h, logits):
        whole = math.exp(sinks[h]) + sum(math.exp(logit) for logit in logits)
        return [math.exp(logit) / whole for logit in logits]

    return oracle(one, score, weigh)


@pytest.mark.parametrize("rung", RUNGS)
def test_the_definition_under_every_mask(case, oracle, kernel, rung, conditions):
    one = case(rung, conditions, 12)
    wanted = expected(oracle, one, kernel)
    torch.testing.assert_close(one.run(kernel).detach(), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.run(kernel.reference).detach(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rung", ["none", "slopes", "toeplitz", "dense"])
@pytest.mark.parametrize("conditions", ["causal", "causal_window", "causal_window_sinks"])
@pytest.mark.parametrize(("queries", "keys", "prefix"), SHAPES)
def test_the_definition_with_prefix_and_cache(case, oracle, kernel, rung, conditions, queries, keys, prefix):
    one = case(rung, conditions, queries, keys, prefix=prefix)
    torch.testing.assert_close(one.run(kernel).detach(), expected(oracle, one, kernel), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 4])
def test_grouped_keys(case, oracle, kernel, groups):
    one = case("toeplitz", "causal", 9, groups=groups)
    torch.testing.assert_close(one.run(kernel).detach(), expected(oracle, one, kernel), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rung", ["none", "toeplitz", "dense"])
def test_gradients(case, kernel, rung):
    one = case(rung, "causal_window", 5, width=3)
    leaves, own = [x for x in one.leaves if x.requires_grad], list(kernel.parameters())

    def call(*_):  # gradcheck moves the leaves in place
        return one.run(kernel)

    assert torch.autograd.gradcheck(call, (*leaves, *own))


def test_a_sink_far_below_is_a_softmax_and_far_above_takes_all(case, geometry):
    one, sink = case("toeplitz", "causal", 12), Sink(geometry, start=-1e4).double()
    torch.testing.assert_close(one.run(sink), one.run(Eager(geometry)))
    torch.testing.assert_close(one.run(Sink(geometry, start=1e4)), torch.zeros(2, 4, 12, 8, dtype=torch.float64))


def test_a_sink_starts_as_off_by_one(case, geometry):
    one, sink = case("dense", "causal", 12), Sink(geometry)
    assert sink.logit.tolist() == [0.0] * 4
    torch.testing.assert_close(one.run(sink), one.run(OffByOne(geometry)))
    assert Sink(geometry, start=0.5).logit.tolist() == [0.5] * 4


def test_one_key_is_weighed_by_a_sigmoid(geometry):
    q, k, v = torch.randn(3, 1, 4, 1, 8, dtype=torch.float64)
    found = OffByOne(geometry)(q, k, v, mask=Mask(causal=True), scale=0.5)
    torch.testing.assert_close(found, ((q * k).sum(-1, keepdim=True) * 0.5).sigmoid() * v)


def test_rows_that_see_nothing_are_zero_with_finite_gradients(case, kernel):
    one = case("toeplitz", "causal_padding", 21)
    out, *grads = one.all(kernel)
    assert not out[1, :, :9].any()
    assert out[1, :, 9:].all()
    assert all(grad.isfinite().all() for grad in grads)


@pytest.fixture
def calls(monkeypatch):
    """What torch's attention was asked for."""
    seen = []

    def watch(q, k, v, **rest):
        seen.append((q, k, v, rest))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **rest)

    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", watch)
    return seen


def test_plain_causality_reaches_flash(case, kernel, calls):
    one = case("none", "causal", 12, dtype=torch.float32)
    assert "Flash" in found_by(one.run(kernel), "ScaledDotProduct")
    ((q, k, v, rest),) = calls
    assert rest["is_causal"]
    assert "attn_mask" not in rest
    assert q.shape[2] == k.shape[2] == 13
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] == (16 if isinstance(kernel, Sink) else 8)


def found_by(out, name):
    """The first node of that name behind a tensor."""
    nodes = [out.grad_fn]
    while nodes:
        node = nodes.pop()
        if name in node.name():
            return node.name()
        nodes += [following for following, _ in node.next_functions if following is not None]
    return "nothing"


def test_one_token_behind_a_cache_needs_no_mask(case, kernel, calls):
    case("none", "causal", 1, 12).run(kernel)
    ((q, k, _, rest),) = calls
    assert (q.shape[2], k.shape[2]) == (1, 13)
    assert "attn_mask" not in rest


def test_layers_share_mask_and_fixed_bias(case, kernel):
    for grad in (False, True):
        one = case("slopes", "causal_window", 12, grad=grad)
        bias, mask = one.build(*one.tensors), one.mask
        for _ in range(2):
            kernel(one.q, one.k, one.v, bias=bias, mask=mask)
            kept = mask.memo["null"]
        assert kept is mask.memo["null"]
        assert kept.null == 1
        assert kept.memo is not mask.memo
        assert ("moved" in mask.memo) is not grad, "nothing that wants a gradient may be kept"
        if not grad:
            moved = mask.memo["moved"][1]
            kernel(one.q, one.k, one.v, bias=bias, mask=mask)
            assert mask.memo["moved"][1] is moved
            assert (bias.prefix, moved.prefix) == (0, 1)
            kernel(one.q, one.k, one.v, bias=one.build(*one.tensors), mask=mask)
            assert mask.memo["moved"][1] is not moved, "another layer's bias"
        mask.memo.clear()


def test_a_half_precision_sink_is_not_rounded(geometry):
    """What enters the queries is s / scale, here 1230, which bfloat16 would round to 1232: 2 per cent of the weight."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 4, 6, 8).bfloat16()
    sink = Sink(geometry, start=12.3)
    found = sink(q, k, v + 3, scale=0.01)
    wanted = sink.reference(q.double(), k.double(), (v + 3).double(), scale=0.01)
    torch.testing.assert_close(found.double(), wanted, rtol=6e-3, atol=0)


def test_a_map_of_the_logits_is_refused(case, kernel):
    with pytest.raises(ZooError, match="cannot carry a Logits bias; it carries biases up to Dense"):
        case("logits").run(kernel)


class Map(PositionEncoding):
    """A map of the logits."""

    def forward(self, queries, keys, extent, hidden=None, state=None):
        return Encoding(bias=Logits(lambda logits, *rest: logits, (), heads=self.geometry.heads))


def test_a_model_with_a_map_of_the_logits_is_refused():
    with pytest.raises(ZooError, match="Map adds a Logits bias; Sink carries a Dense bias"):
        Decoder(vocabulary=8, length=16, dim=32, heads=2, layers=1, position=Map, kernel=Sink)


def test_it_refuses_what_no_kernel_serves(kernel, monkeypatch):
    assert kernel.refuses(Request()) == []
    assert kernel.refuses(Request(device="cpu")) == []
    monkeypatch.setattr(Auto, "order", staticmethod(lambda request: ("Nowhere",)))
    (reason,) = kernel.refuses(Request(device="cpu"))
    assert reason.startswith("No installed kernel serves this model.")


def test_the_learned_logit_stays_float32_in_a_half_precision_model(geometry):
    kernel = Sink(geometry).to(torch.bfloat16)
    assert kernel.logit.dtype == torch.float32
    assert kernel.double().logit.dtype == torch.float64
