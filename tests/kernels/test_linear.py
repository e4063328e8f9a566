"""LinearAttention: the definition in loops, chunks, documents, decoding, tiny features, refusals."""

import math
from dataclasses import replace

import pytest
import torch
from zoo_kernels import linear
from zoo_kernels.linear import LinearAttention

from zoo import plugins
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.kernel import Mask, Request

SERVED = ["none", "padding", "causal", "causal_documents", "causal_padding", "causal_documents_padding"]


def feature(x):
    return x + 1 if x > 0 else math.exp(x)


def expected(oracle, one):
    """phi(q) phi(k)' over its sum, in loops."""
    factor = one.scale * math.sqrt(8)

    def score(h, query, key):
        return sum(feature(factor * x) * feature(y) for x, y in zip(query, key, strict=True))

    def weigh(h, weights):
        return [weight / sum(weights) for weight in weights]

    return oracle(one, score, weigh)


@pytest.mark.parametrize("conditions", SERVED)
@pytest.mark.parametrize("chunk", [1, 3, 4, 12, 64])
def test_the_definition_in_chunks_of_any_size(case, oracle, geometry, conditions, chunk):
    one, kernel = case("none", conditions, 12), LinearAttention(geometry, chunk=chunk)
    wanted = expected(oracle, one)
    torch.testing.assert_close(one.run(kernel).detach(), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.run(kernel.reference).detach(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("conditions", SERVED)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 12), (5, 30), (21, 30)])
@pytest.mark.parametrize("groups", [1, 4])
def test_behind_a_cache(case, oracle, geometry, conditions, queries, keys, groups):
    one = case("none", conditions, queries, keys, groups=groups)
    found = one.run(LinearAttention(geometry, chunk=4)).detach()
    torch.testing.assert_close(found, expected(oracle, one), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("conditions", ["none", "causal", "causal_documents_padding"])
def test_gradients(case, geometry, conditions):
    one, kernel = case("none", conditions, 12, width=2), LinearAttention(geometry, chunk=3)
    assert torch.autograd.gradcheck(lambda *_: one.run(kernel), (one.q, one.k, one.v))


@pytest.mark.parametrize("conditions", ["causal", "causal_documents"])
def test_chunks_agree_in_every_gradient(case, geometry, conditions):
    one = case("none", conditions, 130)
    wanted = one.all(LinearAttention(geometry).reference)
    for chunk in (1, 5, 7, 64, 200):
        for found, right in zip(one.all(LinearAttention(geometry, chunk=chunk)), wanted, strict=True):
            torch.testing.assert_close(found, right)


def test_packed_documents_are_those_documents_alone(case, geometry):
    one, kernel = case("none", "causal", 30, grad=False), LinearAttention(geometry, chunk=4)
    lengths = (1, 7, 4, 2, 16)  # inside a chunk, across edges, over several chunks
    documents = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths)).expand(2, -1)
    packed = kernel(one.q, one.k, one.v, mask=Mask(causal=True, documents=documents), scale=one.scale)
    parts = zip(*(x.split(lengths, 2) for x in (one.q, one.k, one.v)), strict=True)
    alone = [kernel(q, k, v, mask=Mask(causal=True), scale=one.scale) for q, k, v in parts]
    torch.testing.assert_close(packed, torch.cat(alone, 2))


def test_documents_out_of_order_are_refused(case, geometry):
    one = case("none", "causal", 12)
    documents = torch.tensor([[0] * 6 + [1] * 6, [0] * 4 + [1] * 4 + [0] * 4])
    with pytest.raises(ZooError, match="numbered in rising order, and some numbers fall"):
        LinearAttention(geometry)(one.q, one.k, one.v, mask=Mask(causal=True, documents=documents))


def test_layers_ask_about_documents_once(case, geometry):
    one = case("none", "causal_documents", 12)
    LinearAttention(geometry)(one.q, one.k, one.v, mask=one.mask)
    assert one.mask.memo == {"rising": True}


def test_tiny_features_keep_their_precision(geometry):
    """In float32 expm1(-20) + 1 is 0, which would leave no weights; exp(-20) is not."""
    q, k, v = (torch.randn(1, 4, 9, 8) for _ in range(3))
    kernel = LinearAttention(geometry, chunk=4)
    found = kernel(q - 20, k - 20, v, mask=Mask(causal=True), scale=8**-0.5)
    wanted = kernel.reference((q - 20).double(), (k - 20).double(), v.double(), mask=Mask(causal=True), scale=8**-0.5)
    torch.testing.assert_close(found, wanted.float())
    assert linear.phi(torch.tensor([-20.0, 0.0, 3.0])).tolist() == pytest.approx([math.exp(-20), 1.0, 4.0])


def test_the_gradient_of_the_feature_is_that_of_elu():
    x = torch.tensor([-2.0, -1e-9, 0.0, 1e-9, 2.0], dtype=torch.float64, requires_grad=True)
    slopes = [torch.autograd.grad(f(x).sum(), x)[0] for f in (linear.phi, torch.nn.functional.elu)]
    torch.testing.assert_close(*slopes)


def test_without_an_encoding_the_scale_is_1(geometry):
    """The paper's form has none, and a model calls with 1 / sqrt(head_dim)."""
    q, k, v = torch.randn(3, 1, 4, 5, 8, dtype=torch.float64)
    a, b = (torch.nn.functional.elu(x) + 1 for x in (q, k))
    weights = a @ b.mT
    kernel = LinearAttention(geometry)
    torch.testing.assert_close(kernel(q, k, v, scale=8**-0.5), weights / weights.sum(-1, keepdim=True) @ v)
    torch.testing.assert_close(kernel(q, k, v, scale=2 * 8**-0.5), kernel(2 * q, k, v, scale=8**-0.5))


def test_rows_that_see_nothing_are_zero_with_finite_gradients(case, geometry):
    out, *grads = case("none", "causal_padding", 21).all(LinearAttention(geometry, chunk=4))
    assert not out[1, :, :9].any()
    assert out[1, :, 9:].all()
    assert all(grad.isfinite().all() for grad in grads)


def test_sums_in_a_fixed_order_are_the_same_sums(case, geometry, monkeypatch):
    one = case("none", "causal", 30)
    wanted = one.all(LinearAttention(geometry, chunk=4))

    def forbidden(*_, **__):
        raise AssertionError("cumsum has no fixed order on CUDA")

    torch.use_deterministic_algorithms(True)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "cumsum", forbidden)
            found = one.all(LinearAttention(geometry, chunk=4))
    finally:
        torch.use_deterministic_algorithms(False)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_kept_grows_with_the_length(geometry, packed):
    kept = {}
    for n in (256, 512):
        kept[n] = 0

        def count(x, n=n):
            kept[n] += x.numel()
            return x

        q, k, v = (torch.randn(1, 4, n, 8, requires_grad=True) for _ in range(3))
        documents = (torch.arange(n) // 100).view(1, -1) if packed else None
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            LinearAttention(geometry, chunk=16)(q, k, v, mask=Mask(causal=True, documents=documents))
    assert kept[512] < 2.1 * kept[256]


def test_a_sum_over_a_long_text_stays_exact(geometry):
    q, k, v = (torch.randn(1, 4, 20_000, 8) for _ in range(3))
    kernel, mask = LinearAttention(geometry), Mask(causal=True)
    found = kernel(q, k, v, mask=mask, scale=8**-0.5)[:, :, -1:]
    wanted = kernel.reference(q[:, :, -1:].double(), k.double(), v.double(), scale=8**-0.5)
    torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("conditions", ["causal_window", "window", "causal_window_sinks"])
def test_a_window_is_refused(case, geometry, conditions):
    kernel = LinearAttention(geometry)
    with pytest.raises(ZooError, match="from which a window cannot be cut"):
        case("none", conditions, 12).run(kernel)
    (reason,) = kernel.refuses(Request(mask=frozenset(conditions.replace("_sinks", "").split("_"))))
    assert "window" in reason


def test_documents_of_a_model_that_is_not_causal_are_refused(case, geometry):
    one = case("none", "causal_documents", 12)
    with pytest.raises(ZooError, match="packed documents apart in causal models only"):
        LinearAttention(geometry)(one.q, one.k, one.v, mask=replace(one.mask, causal=False, memo={}))


def test_a_bias_and_a_rotation_are_refused(case, geometry):
    with pytest.raises(ZooError, match="LinearAttention cannot carry a Slopes bias; it carries no bias"):
        case("slopes").run(LinearAttention(geometry))
    with pytest.raises(ZooError, match="the kernel LinearAttention cannot serve the position encoding RoPE") as error:
        Decoder(
            vocabulary=8,
            length=16,
            dim=32,
            heads=2,
            layers=1,
            position=plugins.load("zoo.positions", "RoPE"),
            kernel=LinearAttention,
        )
    assert "depends on where the tokens stand" in str(error.value)


def test_a_chunk_holds_something(geometry):
    with pytest.raises(ZooError, match="at least 1 token, and got 0"):
        LinearAttention(geometry, chunk=0)
