"""The ladder: each rung read as the next gives equal values; heads, prefix and replace keep their meaning."""

from __future__ import annotations

import pytest
import torch

from zoo.bias import LADDER, Bias, Dense, Logits, Pointwise, Slopes, Toeplitz, carries, rung

HEADS, N = 4, 9
AT = torch.arange(N)
RAGGED = torch.stack((AT % 4, (AT + 2) % 5))


def make(kind: type, positions: torch.Tensor = AT, prefix: int = 0) -> Bias:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    if kind is Slopes:
        return Slopes(draw(HEADS), positions.double(), positions.double(), prefix=prefix)
    if kind is Toeplitz:
        return Toeplitz(draw(HEADS, 2 * N - 1), positions, positions, lowest=1 - N, prefix=prefix)
    if kind is Pointwise:
        batch = 1 if positions.ndim == 1 else len(positions)
        return Pointwise(
            lambda b, h, i, j, a, c: a[h, i] * c[j] + b,
            (draw(HEADS, N), draw(N)),
            heads=HEADS,
            queries=N,
            keys=N,
            batch=batch,
            prefix=prefix,
        )
    return Dense(draw(2 if positions.ndim == 2 else 1, HEADS, N, N), prefix=prefix)


def whole(bias: Bias, prefix: int = 0) -> torch.Tensor:
    """Every value, through the interface that the rung has."""
    rows = slice(0, N + prefix)
    if isinstance(bias, Logits):
        q = torch.zeros(2, bias.count, N + prefix, 3, dtype=torch.float64)
        logits = q.new_zeros(2, bias.count, N + prefix, N + prefix)
        return bias.onto(logits, q, q, None, 1.0, rows)
    return bias.block(rows, rows).expand(2, -1, -1, -1)


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("positions", [AT, AT + 100, RAGGED], ids=["counting", "shifted", "ragged"])
@pytest.mark.parametrize(("low", "high"), [(low, high) for n, low in enumerate(LADDER[:4]) for high in LADDER[n + 1 :]])
def test_each_rung_read_as_any_higher_one(low, high, positions, prefix):
    bias = make(low, positions, prefix)
    up = bias.climb(high)
    assert isinstance(up, high)
    torch.testing.assert_close(whole(up, prefix), whole(bias, prefix))


@pytest.mark.parametrize("kind", LADDER[:4])
def test_heads_are_a_slice_of_the_whole(kind):
    bias = make(kind)
    for part in (bias.heads(1, 3), bias.heads(0, 3).heads(1, 3)):
        assert part.count == 2
        torch.testing.assert_close(whole(part), whole(bias)[:, 1:3])
        torch.testing.assert_close(whole(part.climb(Logits)), whole(bias)[:, 1:3])


@pytest.mark.parametrize("kind", LADDER[:4])
def test_blocks_are_parts_of_the_whole(kind):
    for prefix in (0, 2):
        bias = make(kind, prefix=prefix)
        everything = bias.block(slice(0, N + prefix), slice(0, N + prefix))
        for rows, columns in ((slice(0, 1), slice(0, 5)), (slice(1, 7), slice(1, 4)), (slice(6, 9), slice(3, 9))):
            torch.testing.assert_close(bias.block(rows, columns), everything[..., rows, columns])
        assert not everything[..., :prefix, :].any()
        assert not everything[..., :prefix].any()


@pytest.mark.parametrize("kind", LADDER[:4])
def test_replace_keeps_all_but_the_tensors(kind):
    bias = make(kind, prefix=2).heads(1, 3)
    torch.testing.assert_close(whole(bias.replace(*bias.tensors), 2), whole(bias, 2))
    doubled = bias.replace(bias.tensors[0] * 2, *bias.tensors[1:])
    factor = 2 if kind is not Pointwise else None
    if factor:
        torch.testing.assert_close(whole(doubled, 2), whole(bias, 2) * factor)
    assert bias.replace().tensors == ()
    assert len(bias.tensors) > 0


@pytest.mark.parametrize("kind", LADDER[:4])
@pytest.mark.parametrize("high", [Dense, Logits])
def test_gradients_climb_too(kind, high):
    bias = make(kind, RAGGED)
    leaf = bias.tensors[0].clone().requires_grad_()
    learned = bias.replace(leaf, *bias.tensors[1:])
    weight = torch.randn(2, HEADS, N, N, dtype=torch.float64)
    plain, climbed = (torch.autograd.grad((whole(b) * weight).sum(), leaf)[0] for b in (learned, learned.climb(high)))
    torch.testing.assert_close(climbed, plain)


def test_a_table_goes_on_with_its_ends():
    bias = Toeplitz(torch.tensor([[5.0, 6.0, 7.0]]), AT, AT)
    row = bias.block(slice(4, 5), slice(0, N)).flatten().tolist()
    assert row == [7, 7, 7, 6, 5, 5, 5, 5, 5]


def test_where_each_rung_stands():
    assert [rung(make(kind)) for kind in LADDER[:4]] == list(LADDER[:4])
    assert rung(None) is None
    assert carries(None, None)
    assert not carries(None, Slopes)
    assert carries(Dense, Slopes)
    assert not carries(Slopes, Dense)
    with pytest.raises(TypeError, match="most general rung"):
        make(Dense).climb(Logits).wider()
