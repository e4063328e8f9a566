"""The loss equals torch's cross-entropy, whole or in chunks, and its gradients do."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from zoo.loss import IGNORED, cross_entropy

TOKENS, DIM, VOCABULARY = 14, 8, 11


def draw(dtype: torch.dtype = torch.float32, sharp: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    torch.manual_seed(0)
    hidden = (torch.randn(2, TOKENS // 2, DIM) * sharp).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (2, TOKENS // 2))
    targets[0, 2] = targets[1, 0] = IGNORED
    return hidden, targets, nn.Linear(DIM, VOCABULARY, dtype=dtype)


@pytest.mark.parametrize("size", [TOKENS, 5, 1])
@pytest.mark.parametrize("sharp", [1.0, 1000.0])
def test_equals_torch(size, sharp):
    hidden, targets, head = draw(sharp=sharp)
    leaves = (hidden, head.weight, head.bias)
    expected = functional.cross_entropy(head(hidden).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    found = cross_entropy(hidden, targets, head, size)
    assert expected.isfinite()
    torch.testing.assert_close(found, expected)
    for got, known in zip(
        torch.autograd.grad(3 * found, leaves), torch.autograd.grad(3 * expected, leaves), strict=True
    ):
        torch.testing.assert_close(got, known)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(hidden, targets, head, size), expected)


def test_equals_torch_in_half_precision():
    hidden, targets, head = draw()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = functional.cross_entropy(head(hidden).float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        found = cross_entropy(hidden, targets, head, 5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    for got, known in zip(*(torch.autograd.grad(loss, head.weight) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(got, known, rtol=0.02, atol=0.002)


def test_nothing_counts():
    hidden, targets, head = draw()
    loss = cross_entropy(hidden, torch.full_like(targets, IGNORED), head, 5)
    assert loss == 0
    assert torch.autograd.grad(loss, hidden)[0].abs().max() == 0


def test_a_second_backward_is_refused():
    hidden, targets, head = draw()
    loss = cross_entropy(hidden, targets, head, TOKENS)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()
