"""FIRE: the network itself on an N x N matrix as the oracle, golden inputs, knots, identities, refusals."""

import math

import pytest
import torch
from torch import nn
from zoo_positions.fire import FIRE, Piecewise

from zoo.bias import Dense
from zoo.errors import ZooError
from zoo.kernel import Eager, Mask
from zoo.plugins import load
from zoo.position import Geometry, Pointwise, Toeplitz
from zoo.vit import grid

Tiled = load("zoo.kernels", "Tiled")


def make(shape, *, heads=3, **arguments):
    """FIRE in float64, its knots spread over where inputs fall; no threshold that a position hits."""
    torch.manual_seed(0)
    fire = FIRE(shape(heads=heads), **{"threshold": 11.5, **arguments}).double()
    with torch.no_grad():
        fire.multiplier.fill_(1.1)
        for layer in fire.layers[:-1]:
            layer.bias.copy_(-layer.weight.sum(1) * torch.rand(len(layer.bias), dtype=torch.float64))
    return fire


def network(fire, x):
    """f by torch's own modules, [..., heads]."""
    parts = [part for layer in fire.layers for part in (nn.ReLU(), layer)]
    return nn.Sequential(*parts[1:])(x.unsqueeze(-1))


def dense(fire, rows, columns):
    """The bias [heads, queries, keys] as the references compute it."""
    away = (rows[:, None] - columns).abs()
    reach = torch.maximum(rows, (fire.multiplier * fire.threshold).abs())
    x = ((fire.c * away).abs() + 1).log() / (((fire.c * reach).abs() + 1).log() + 1e-6)[:, None]
    return network(fire, x).permute(2, 0, 1)


def line(tokens, start=0):
    return torch.arange(start, start + tokens, dtype=torch.float64).unsqueeze(-1)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("start", [0, 40])
def test_the_bias_is_the_networks(shape, depth, start):
    fire, at = make(shape, depth=depth), line(30, start)
    bias = fire(at, at, 80).bias
    assert type(bias) is Piecewise
    whole = slice(0, 30)
    past = torch.ones(30, 30).tril().bool()
    expected = dense(fire, at[:, 0], at[:, 0])
    for found in (bias.block(whole, whole)[0], Pointwise.values(bias, whole, whole)[0]):
        torch.testing.assert_close(found[:, past], expected[:, past], rtol=0, atol=1e-12)
    assert ((fire.pieces()[0] > 0) & (fire.pieces()[0] < 1)).sum() > 5, "the inputs cross knots"


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kernel", [Eager, Tiled])
def test_every_parameter_gets_the_gradient_of_the_network(shape, depth, kernel):
    fire, at = make(shape, depth=depth), line(30)
    geometry = shape(heads=3)
    q, k, v, push = (torch.randn(2, 3, 30, 8, dtype=torch.float64) for _ in range(4))

    def slopes(bias):
        out = kernel(geometry)(q, k, v, bias=bias, mask=Mask(causal=True), scale=0.3)
        return torch.autograd.grad(out, list(fire.parameters()), push)

    ours, theirs = slopes(fire(at, at, 30).bias), slopes(Dense(dense(fire, at[:, 0], at[:, 0])[None]))
    for (name, parameter), one, other in zip(fire.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=f"{name} {tuple(parameter.shape)}")
        if name != f"layers.{depth}.bias":  # a constant of a row, which no softmax sees
            assert other.abs().max() > 1e-6, name


def test_the_tables_have_the_gradients_of_finite_differences(shape):
    """Of look-ups, by torch; and products of matrices, which take the pieces for continuous, have the same."""
    fire, at = make(shape), line(7, 9)
    bias = fire(at, at, 20).bias
    learned, fixed = [t.detach().requires_grad_() for t in bias.tensors[:4]], bias.tensors[4:]
    rows, columns = slice(2, 6), slice(0, 3)

    def block(*changed):
        return Pointwise.values(bias.replace(*changed, *fixed), rows, columns)

    assert torch.autograd.gradcheck(block, learned)
    push = torch.randn(1, 3, 4, 3, dtype=torch.float64)
    right = torch.autograd.grad(block(*learned), learned, push)
    found = torch.autograd.grad(bias.replace(*learned, *fixed).values(rows, columns), learned, push)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_golden_inputs_and_a_golden_function(shape):
    """Three units with knots 0, 1/2 and 1/2: linear on [0, 1/2] and on (1/2, 1]."""
    fire = FIRE(shape(heads=1), width=3, threshold=20.0).double()
    with torch.no_grad():
        fire.layers[0].weight.copy_(torch.tensor([[1.0], [-1.0], [2.0]]))
        fire.layers[0].bias.copy_(torch.tensor([0.0, 0.5, -1.0]))
        fire.layers[1].weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
        fire.layers[1].bias.fill_(0.25)
        fire.c.fill_(0.1)
    knots, slope, intercept = fire.pieces()
    assert knots.tolist() == [0.5, 0.5, 1.0]
    torch.testing.assert_close(slope[0, [0, -1]], torch.tensor([-9.0, 201.0], dtype=torch.float64))
    torch.testing.assert_close(intercept[0, [0, -1]], torch.tensor([5.25, -99.75], dtype=torch.float64))
    at = line(30)
    bias = fire(at, at, 30).bias.block(slice(0, 30), slice(0, 30))[0, 0].detach()
    for i, j in ((5, 5), (5, 2), (19, 0), (29, 3), (29, 28)):
        x = math.log(0.1 * (i - j) + 1) / (math.log(0.1 * max(i, 20) + 1) + 1e-6)
        expected = x + 10 * max(0.5 - x, 0) + 100 * max(2 * x - 1, 0) + 0.25
        assert float(bias[i, j]) == pytest.approx(expected, abs=1e-12)


def test_parameters_are_counted_as_published(shape):
    assert sum(p.numel() for p in FIRE(shape(heads=12)).parameters()) == 462
    assert sum(p.numel() for p in FIRE(shape(heads=16)).parameters()) == 594


def test_the_first_input_is_zero_and_none_exceeds_one(shape):
    fire, at = make(shape), line(200)
    line_, inverse = fire(at, at, 200).bias.tensors[:2]
    assert float(line_[0]) == 0
    assert float((line_[None] * inverse[:, None]).tril().max()) <= 1


def test_positions_of_their_own_per_example(shape):
    fire = make(shape)
    at = torch.stack((line(12), torch.cat((line(7), line(5))), line(12) * 3))
    found = fire(at, at, 40).bias.block(slice(0, 12), slice(0, 12))
    for row in range(3):
        alone = fire(at[row], at[row], 40).bias.block(slice(0, 12), slice(0, 12))[0]
        torch.testing.assert_close(found[row], alone, rtol=0, atol=1e-14)


def test_sharing_is_an_argument(shape):
    assert FIRE(shape()).per_layer
    assert not FIRE(shape(), shared=True).per_layer


def test_a_logarithmic_kernel_is_one_straight_piece(shape):
    """With every position below L, f(x) = -r psi(L) x is KERPLE's -r log(1 + c d)."""
    fire = FIRE(shape(heads=1), width=1, threshold=1000.0).double()
    with torch.no_grad():
        fire.c.fill_(0.3)
        fire.layers[0].weight.fill_(1.0)
        fire.layers[0].bias.zero_()
        fire.layers[1].weight.fill_(-1.5 * (math.log1p(0.3 * 1000) + 1e-6))
        fire.layers[1].bias.zero_()
    at = line(101)
    bias = fire(at, at, 101).bias.block(slice(100, 101), slice(0, 101))[0, 0, 0]
    golden = {1: -0.393546, 2: -0.705005, 10: -2.079442, 100: -5.150981}
    for away, expected in golden.items():
        assert float(bias[100 - away]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("size", [(3, 5), (6, 9)])
def test_on_a_grid_the_diagonal_takes_the_place_of_the_position(shape, depth, size):
    torch.manual_seed(0)
    fire = FIRE(shape(heads=3, length=(3, 5), prefix=2, causal=False), depth=depth).double()
    assert fire.threshold == math.hypot(2, 4)
    assert not fire.multiplier.requires_grad
    assert fire.relative
    at = grid(*size).double()
    bias = fire(at, at, len(at)).bias
    assert type(bias) is Toeplitz
    away = (at[:, None] - at).square().sum(-1).sqrt()
    reach = max(math.hypot(size[0] - 1, size[1] - 1), math.hypot(2, 4))
    x = (fire.c * away + 1).log() / ((fire.c * reach + 1).log() + 1e-6)
    found = bias.block(slice(0, 2 + len(at)), slice(0, 2 + len(at)))[0]
    torch.testing.assert_close(found[:, 2:, 2:], network(fire, x).permute(2, 0, 1), rtol=0, atol=1e-12)
    assert not found[:, :2].any()
    assert not found[:, :, :2].any()


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({"causal": False}, {}, "looks both ways.*position T5"),
        ({"length": (2, 3, 4), "causal": False}, {}, "has 3 axes"),
        ({}, {"depth": 3}, "depth 3"),
        ({}, {"width": 0}, "width 0"),
        ({}, {"threshold": 0.0}, "threshold 0"),
    ],
)
def test_what_cannot_be_is_refused(shape, changes, arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        FIRE(shape(**changes), **arguments)


def test_a_backward_pass_inside_autocast_is_no_coarser():
    """Lightning's ends before backward; a loop of one's own may not."""
    fire = FIRE(Geometry(dim=32, heads=4, kv_heads=4, head_dim=8, length=(64,)))
    at = torch.arange(96.0).view(-1, 1)
    gradients = []
    for inside in (False, True):
        values = fire(at, at, 96).bias.block(slice(0, 96), slice(0, 96))
        loss = (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            gradients.append(torch.autograd.grad(loss, list(fire.parameters())))
    for plain, mixed in zip(*gradients, strict=True):
        torch.testing.assert_close(mixed, plain, rtol=1e-6, atol=0)


def test_a_kernel_inside_autocast_is_given_the_same_values():
    """Training in bf16-mixed: kernels ask for the values inside of it, and gradients come back as they went out."""
    fire = FIRE(Geometry(dim=32, heads=4, kv_heads=4, head_dim=8, length=(64,)))
    at, found = torch.arange(96.0).view(-1, 1), []
    for inside in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            values = fire(at, at, 96).bias.block(slice(0, 96), slice(0, 96))
        loss = (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum()
        found.append((values, *torch.autograd.grad(loss, list(fire.parameters()))))
    for plain, mixed in zip(*found, strict=True):
        assert mixed.dtype == torch.float32
        torch.testing.assert_close(mixed, plain, rtol=0, atol=0)
