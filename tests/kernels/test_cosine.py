"""Cosine: the definition in loops, temperatures and their limit, what norms do not change, refusals."""

import math

import pytest
import torch
from zoo_kernels.cosine import Cosine

from zoo.errors import ZooError
from zoo.kernel import Request

TEMPERATURES = [0.5, 1.0, 10.0, 99.0]
BASE = 8**-0.5
"""The scale that a model of this head width calls with."""


@pytest.fixture
def kernel(geometry):
    cosine = Cosine(geometry).double()
    with torch.no_grad():
        cosine.log_temperature.copy_(torch.tensor(TEMPERATURES, dtype=torch.float64).log())
    return cosine


def expected(oracle, one):
    """softmax(temperature cos(q, k) scale / base + bias), in loops."""

    def score(h, query, key):
        dot = sum(x * y for x, y in zip(query, key, strict=True))
        return TEMPERATURES[h] * dot / math.hypot(*query) / math.hypot(*key) * one.scale / BASE

    def weigh(h, logits):
        top = max(logits)
        whole = sum(math.exp(logit - top) for logit in logits)
        return [math.exp(logit - top) / whole for logit in logits]

    return oracle(one, score, weigh)


@pytest.mark.parametrize("rung", ["none", "slopes", "toeplitz", "pointwise_ragged", "dense"])
def test_the_definition_under_every_mask(case, oracle, kernel, rung, conditions):
    one = case(rung, conditions, 12)
    wanted = expected(oracle, one)
    torch.testing.assert_close(one.run(kernel).detach(), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.run(kernel.reference).detach(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("queries", "keys"), [(1, 12), (5, 12)])
def test_grouped_keys_behind_a_cache(case, oracle, kernel, groups, queries, keys):
    one = case("toeplitz", "causal", queries, keys, groups=groups)
    torch.testing.assert_close(one.run(kernel).detach(), expected(oracle, one), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rung", ["none", "toeplitz"])
def test_gradients(case, kernel, rung):
    one = case(rung, "causal_window", 5, width=3)
    leaves = [x for x in one.leaves if x.requires_grad]
    assert torch.autograd.gradcheck(lambda *_: one.run(kernel), (*leaves, kernel.log_temperature))


def test_norms_do_not_count(case, kernel):
    one = case("toeplitz", "causal", 12)
    before = one.run(kernel)
    with torch.no_grad():
        one.q *= torch.rand(2, 4, 12, 1) + 0.5
        one.k *= torch.rand(2, 2, 12, 1) * 100 + 0.5
    torch.testing.assert_close(one.run(kernel), before)


def test_it_starts_at_a_temperature_of_10_for_every_head(geometry):
    torch.testing.assert_close(Cosine(geometry).log_temperature.detach(), torch.full((4,), math.log(10)))
    torch.testing.assert_close(
        Cosine(geometry, temperature=2.0).log_temperature.detach(), torch.full((4,), math.log(2))
    )


def test_the_limit_holds_and_stops_the_gradient(case, geometry):
    one = case("none", "causal", 12)
    found = []
    for logarithm in (math.log(100), 7.0):
        kernel = Cosine(geometry).double()
        torch.nn.init.constant_(kernel.log_temperature, logarithm)
        found.append(one.run(kernel))
    torch.testing.assert_close(*found)
    (slope,) = torch.autograd.grad(found[1].square().sum(), kernel.log_temperature)
    assert not slope.any()
    low = Cosine(geometry, temperature=2.0, limit=3.0).double()
    torch.nn.init.constant_(low.log_temperature, 9.0)
    assert low.factors(BASE).flatten().tolist() == pytest.approx([3.0] * 4)


@pytest.mark.parametrize("temperature", [0.0, -1.0, 101.0])
def test_a_temperature_that_cannot_be(geometry, temperature):
    with pytest.raises(ZooError, match="Cosine starts from a temperature above 0 and up to its limit, 100"):
        Cosine(geometry, temperature=temperature)


def test_a_query_without_direction_averages(geometry):
    v = torch.randn(1, 2, 3, 8)
    found = Cosine(geometry)(torch.zeros(1, 4, 1, 8), torch.randn(1, 2, 3, 8), v)
    torch.testing.assert_close(found, v.mean(2, keepdim=True).repeat_interleave(2, 1))


def test_rotations_that_keep_norms_serve_and_others_do_not(geometry):
    kernel = Cosine(geometry)
    assert kernel.refuses(Request(rotation=True)) == []
    (reason,) = kernel.refuses(Request(rotation=True, isometric=False))
    assert "takes the norms of queries and keys away" in reason
    (reason,) = kernel.refuses(Request(scaled=True))
    assert "the factor of each query" in reason


def test_a_map_of_the_logits_is_refused(case, kernel):
    with pytest.raises(ZooError, match="Cosine cannot carry a Logits bias; it carries biases up to Dense"):
        case("logits").run(kernel)
