"""LogCPB against its formula in plain arithmetic, on the trained grid and on others."""

import math

import pytest
import torch
from torch import nn
from zoo_positions.logcpb import LogCPB

from zoo.errors import ZooError
from zoo.position import Pointwise
from zoo.vit import grid


def whole(bias: Pointwise) -> torch.Tensor:
    tokens = slice(0, bias.prefix + bias.queries)
    return bias.block(tokens, tokens)


def compressed(delta: float, trained: int) -> float:
    size = math.log2(1 + 8 * abs(delta) / max(trained - 1, 1)) / 3
    return math.copysign(size, delta) if delta else 0.0


def by_hand(encoding: LogCPB, offset: tuple[float, float], trained: tuple[int, int]) -> list[float]:
    """The bias of each head for one offset."""
    enter, leave = encoding.network[0], encoding.network[2]
    seen = [compressed(delta, length) for delta, length in zip(offset, trained, strict=True)]
    inner = [
        max(sum(w * x for w, x in zip(row, seen, strict=True)) + b, 0.0)
        for row, b in zip(enter.weight.tolist(), enter.bias.tolist(), strict=True)
    ]
    out = [sum(w * x for w, x in zip(row, inner, strict=True)) for row in leave.weight.tolist()]
    return [16 / (1 + math.exp(-x)) for x in out]


def stirred(geometry, **arguments) -> LogCPB:
    """Weights far from their start, biases from 0."""
    torch.manual_seed(0)
    encoding = LogCPB(geometry, **arguments).double()
    for parameter in encoding.parameters():
        nn.init.normal_(parameter, std=0.7)
    return encoding


@pytest.mark.parametrize(
    ("trained", "new"), [((3, 5), (3, 5)), ((3, 5), (5, 7)), ((4, 4), (2, 6)), ((1, 4), (3, 4)), ((1, 1), (1, 1))]
)
@pytest.mark.parametrize("prefix", [0, 2])
def test_equals_the_formula(shape, trained, new, prefix):
    encoding = stirred(shape(heads=3, length=trained, prefix=prefix, causal=False), hidden=7)
    at = grid(*new)
    bias = encoding(at, at, len(at)).bias
    assert isinstance(bias, Pointwise)
    got = whole(bias)
    assert got.shape == (1, 3, prefix + len(at), prefix + len(at))
    assert got[:, :, :prefix].eq(0).all()
    assert got[:, :, :, :prefix].eq(0).all()
    for i, (y, x) in enumerate(at.tolist()):
        for j, (v, u) in enumerate(at.tolist()):
            expected = torch.tensor(by_hand(encoding, (y - v, x - u), trained), dtype=torch.float64)
            torch.testing.assert_close(got[0, :, prefix + i, prefix + j], expected, rtol=0, atol=1e-12)


def test_the_ends_of_the_trained_grid_are_at_one(shape):
    """sign log2(1 + 8) / log2(8) = 1.0566: what the reference's normalisation gives, which its paper calls -1 .. 1."""
    encoding = stirred(shape(length=(3, 5), causal=False), hidden=4)
    seen = []
    encoding.network[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    at = grid(3, 5)
    encoding(at, at, 15)
    assert seen[0].shape == (45, 2)
    assert seen[0][0].tolist() == pytest.approx([-math.log2(9) / 3] * 2)
    assert seen[0][-1].tolist() == pytest.approx([math.log2(9) / 3] * 2)
    assert seen[0][22].tolist() == [0.0, 0.0]


def test_the_patches_may_come_in_any_order_and_anywhere(shape):
    encoding, at = stirred(shape(length=(3, 5), causal=False), hidden=8), grid(4, 5)
    assert encoding.relative
    assert encoding.per_layer
    full, order = whole(encoding(at, at, 20).bias), torch.randperm(20)
    torch.testing.assert_close(whole(encoding(at[order], at[order], 20).bias), full[..., order, :][..., order])
    torch.testing.assert_close(whole(encoding(at + 90, at + 90, 20).bias), full)
    batch = torch.stack((at, at[order]))
    both = whole(encoding(batch, batch, 20).bias)
    torch.testing.assert_close(both[0], full[0])
    torch.testing.assert_close(both[1], full[0][:, order][..., order])


def test_the_first_weights(shape):
    torch.manual_seed(0)
    encoding = LogCPB(shape(heads=8, length=(3, 5), causal=False))
    shapes = {name: (list(p.shape), p.dtype) for name, p in encoding.named_parameters()}
    kind = torch.float32
    assert shapes == {
        "network.0.weight": ([512, 2], kind),
        "network.0.bias": ([512], kind),
        "network.2.weight": ([8, 512], kind),
    }
    assert encoding.network[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert encoding.network[2].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert encoding.network[0].bias.eq(0).all()
    at = grid(3, 5)
    torch.testing.assert_close(whole(encoding(at, at, 15).bias), torch.full((1, 8, 15, 15), 8.0), rtol=0, atol=0.1)


def test_every_parameter_gets_the_gradient_of_the_formula(shape):
    encoding, at = stirred(shape(length=(2, 3), causal=False), hidden=3), grid(3, 3)
    names = [name for name, _ in encoding.named_parameters()]

    def values(*parameters: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, parameters, strict=True))
        return whole(torch.func.functional_call(encoding, state, (at, at, 9)).bias)

    assert torch.autograd.gradcheck(values, tuple(encoding.parameters()))


def test_half_precision_and_autocast_leave_it_float32(shape):
    encoding, at = stirred(shape(length=(3, 5), causal=False)).float(), grid(3, 5)
    plain = whole(encoding(at, at, 15).bias)
    assert plain.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whole(encoding(at, at, 15).bias), plain)
    assert torch.equal(whole(encoding.bfloat16()(at, at, 15).bias), plain)
    other = LogCPB(shape(length=(3, 5), causal=False))
    other.load_state_dict(encoding.state_dict())
    assert torch.equal(whole(other(at, at, 15).bias), plain)


def test_it_can_be_built_without_memory(shape):
    with torch.device("meta"):
        encoding = LogCPB(shape(length=(3, 5), causal=False))
    at = torch.zeros(2, 2, device="meta")
    assert encoding(at, at, 2).bias.tensors[0].shape == (2, 45)


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({}, {}, r"this model has 1 axis\. For text, .*position DynamicBias"),
        ({"length": (2, 2, 2)}, {}, "this model has 3 axes"),
        ({"length": (2, 2)}, {"hidden": 0}, r"at least 1 wide, and got 0.*hidden 512"),
    ],
)
def test_refusals(shape, changes, arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        LogCPB(shape(**changes), **arguments)
