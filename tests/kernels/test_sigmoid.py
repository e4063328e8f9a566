"""Sigmoid: numbers by hand, the definition in loops, blocks, and nothing of length squared."""

import math
from dataclasses import replace

import pytest
import torch
from zoo_kernels.sigmoid import Sigmoid

from zoo.errors import ZooError
from zoo.kernel import Mask
from zoo.position import Toeplitz

SHIFT = -math.log(64)
"""The fixture's model was trained at 64 tokens."""


def expected(oracle, one, shift=SHIFT):
    """sigmoid(scale q k' + bias + shift), in loops."""

    def score(h, query, key):
        return one.scale * sum(x * y for x, y in zip(query, key, strict=True))

    return oracle(one, score, lambda h, logits: [1 / (1 + math.exp(-logit - shift)) for logit in logits])


@pytest.mark.parametrize("rung", ["none", "slopes", "toeplitz", "pointwise_ragged", "dense"])
def test_the_definition_under_every_mask(case, oracle, geometry, rung, conditions):
    one, kernel = case(rung, conditions, 12), Sigmoid(geometry, block=5)
    wanted = expected(oracle, one)
    torch.testing.assert_close(one.run(kernel).detach(), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.run(kernel.reference).detach(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("queries", "keys", "prefix"), [(1, 12, 0), (5, 12, 0), (12, 12, 3)])
def test_grouped_keys_behind_a_cache_or_a_prefix(case, oracle, geometry, groups, queries, keys, prefix):
    one = case("toeplitz", "causal", queries, keys, groups=groups, prefix=prefix)
    torch.testing.assert_close(one.run(Sigmoid(geometry)).detach(), expected(oracle, one), rtol=1e-10, atol=1e-12)


def test_numbers_by_hand(geometry):
    """Two keys of logits 0 and log 3, shifted by -log 2: weights 1/3 and 3/5."""
    q, k = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 5.0], [math.log(3), 0.0]])
    v = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    kernel = Sigmoid(replace(geometry, length=(2,)))
    found = kernel(q.view(1, 1, 1, 2), k.view(1, 1, 2, 2), v.view(1, 1, 2, 2))
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 3.0]))


def test_the_shift_counts_the_tokens_of_first_training(geometry):
    assert Sigmoid(geometry).shift == pytest.approx(-math.log(64))
    grid = replace(geometry, length=(4, 6), prefix=3, causal=False)
    assert Sigmoid(grid).shift == pytest.approx(-math.log(27))
    assert Sigmoid(geometry, shift=0.0).shift == 0.0


def test_another_shift(case, oracle, geometry):
    one = case("toeplitz", "causal", 12)
    wanted = expected(oracle, one, shift=0.7)
    torch.testing.assert_close(one.run(Sigmoid(geometry, shift=0.7)).detach(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rung", ["none", "toeplitz", "dense", "logits"])
def test_gradients(case, geometry, rung):
    one, kernel = case(rung, "causal_window", 5, width=3), Sigmoid(geometry, block=2)
    leaves = [x for x in one.leaves if x.requires_grad]
    assert torch.autograd.gradcheck(lambda *_: one.run(kernel), leaves)


@pytest.mark.parametrize("block", [1, 3, 8, 128])
def test_blocks_agree(case, geometry, rung, block):
    one = case(rung, "causal_padding", 21)
    for found, wanted in zip(
        one.all(Sigmoid(geometry, block=block)), one.all(Sigmoid(geometry).reference), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    with pytest.raises(ZooError, match="at least 1 query, and got 0"):
        Sigmoid(geometry, block=0)


def test_nothing_of_length_squared_is_kept(geometry):
    n, kept = 512, []
    q, k, v = (torch.randn(1, 4, n, 8, requires_grad=True) for _ in range(3))
    bias = Toeplitz(torch.randn(4, n, requires_grad=True), torch.arange(n), torch.arange(n))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        Sigmoid(geometry, block=64)(q, k, v, bias=bias, mask=Mask(causal=True))
    assert max(kept) <= n * 4 * 8
