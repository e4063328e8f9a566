"""RBF: the definition in loops, what distances do not change with, norms far from 1, refusals."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from zoo_kernels.cosine import Cosine
from zoo_kernels.rbf import RBF

from zoo import plugins
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.kernel import Eager, Mask, Request


def expected(oracle, one):
    """softmax(-scale/2 |q - k|^2 + bias), in loops."""

    def score(h, query, key):
        return -one.scale / 2 * sum((x - y) ** 2 for x, y in zip(query, key, strict=True))

    def weigh(h, logits):
        whole = sum(math.exp(logit) for logit in logits)
        return [math.exp(logit) / whole for logit in logits]

    return oracle(one, score, weigh)


@pytest.mark.parametrize("rung", ["none", "slopes", "toeplitz", "pointwise_ragged", "dense"])
def test_the_definition_under_every_mask(case, oracle, geometry, rung, conditions):
    one, kernel = case(rung, conditions, 12), RBF(geometry)
    wanted = expected(oracle, one)
    torch.testing.assert_close(one.run(kernel).detach(), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.run(kernel.reference).detach(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("queries", "keys"), [(1, 12), (5, 12)])
def test_grouped_keys_behind_a_cache(case, oracle, geometry, groups, queries, keys):
    one = case("toeplitz", "causal", queries, keys, groups=groups)
    torch.testing.assert_close(one.run(RBF(geometry)).detach(), expected(oracle, one), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rung", ["none", "toeplitz"])
def test_gradients(case, geometry, rung):
    one, kernel = case(rung, "causal_window", 5, width=3), RBF(geometry)
    leaves = [x for x in one.leaves if x.requires_grad]
    assert torch.autograd.gradcheck(lambda *_: one.run(kernel), leaves)


def test_moving_queries_and_keys_together_changes_nothing(case, geometry):
    one, kernel = case("none", "causal", 12), RBF(geometry)
    before = one.run(kernel)
    with torch.no_grad():
        one.q += 3.0
        one.k += 3.0
    torch.testing.assert_close(one.run(kernel), before)
    assert (one.run(Eager(geometry)) - before).abs().max() > 0.1


def test_at_norm_1_it_is_the_softmax_of_dot_products_and_so_cosine(case, geometry):
    one = case("toeplitz", "causal", 12)
    one.q, one.k = (normalize(x.detach(), dim=-1) for x in (one.q, one.k))
    found = one.run(RBF(geometry))
    torch.testing.assert_close(found, one.run(Eager(geometry)))
    cosine = Cosine(geometry, temperature=8**-0.5).double()  # it multiplies scale / 8^-1/2
    torch.testing.assert_close(found, one.run(cosine), rtol=1e-6, atol=1e-6)  # its parameter was float32


def test_keys_far_away_do_not_cost_precision_in_bfloat16(geometry):
    """|k|^2 / 2 is about 1600 here and a rounding of bfloat16 4: weights would be noise."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 16, 8) for _ in range(3))
    q, k, v = (x.bfloat16() for x in (q + 20, k + 20, v))
    found = RBF(geometry)(q, k, v, mask=Mask(causal=True), scale=0.5)
    wanted = RBF(geometry).reference(q.double(), k.double(), v.double(), mask=Mask(causal=True), scale=0.5)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=0.02)


def test_rotations_that_keep_norms_serve_and_others_do_not(geometry):
    kernel = RBF(geometry)
    assert kernel.refuses(Request(rotation=True)) == []
    (reason,) = kernel.refuses(Request(rotation=True, isometric=False))
    assert "changes norms" in reason
    (reason,) = kernel.refuses(Request(scaled=True))
    assert "factor per query" in reason


def model(name):
    position = plugins.load("zoo.positions", name)
    return Decoder(vocabulary=8, length=16, dim=32, heads=2, layers=1, position=position, kernel=RBF)


def test_rope_is_served_and_fope_refused_when_the_model_is_built():
    model("RoPE")
    with pytest.raises(ZooError, match="the kernel RBF cannot serve the position encoding FoPE") as error:
        model("FoPE")
    assert "changes norms" in str(error.value)
    assert "Eager" in str(error.value)


def test_a_map_of_the_logits_is_refused(case, geometry):
    with pytest.raises(ZooError, match="RBF cannot carry a Logits bias; it carries biases up to Dense"):
        case("logits").run(RBF(geometry))
