"""KERPLE: golden values, a scalar oracle, ALiBi as a special case, bounds, gradients, refusals."""

import math

import pytest
import torch
from torch import nn
from zoo_positions.alibi import ALiBi, slopes
from zoo_positions.kerple import KERPLE

from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.position import Toeplitz

GOLDEN = {
    "log": {0: 0.0, 1: -0.393546, 2: -0.705005, 10: -2.079442, 100: -5.150981},
    "power": {0: 0.0, 1: -0.3, 2: -0.848528, 10: -9.486833, 100: -300.0},
}
KINDS = pytest.mark.parametrize("kind", ["log", "power"])
BOTH = pytest.mark.parametrize("parametrization", ["clamp", "softplus"])


def line(tokens: int) -> torch.Tensor:
    return torch.arange(float(tokens)).unsqueeze(-1)


def table(kerple: KERPLE, extent: int) -> torch.Tensor:
    """The biases by distance, [heads, distances]."""
    at = line(extent)
    return kerple(at, at, extent).bias.tensors[0]


def put(kerple: KERPLE, p: float | list[float], a: float | list[float]) -> KERPLE:
    """The parameters by hand."""
    with torch.no_grad():
        kerple.p.copy_(torch.tensor(p))
        kerple.a.copy_(torch.tensor(a))
    return kerple


@KINDS
def test_golden_values(shape, kind):
    found = table(put(KERPLE(shape(), kind=kind), 1.5, 0.3), 101)
    for distance, value in GOLDEN[kind].items():
        assert found[:, distance].tolist() == pytest.approx([value] * 2, rel=1e-6, abs=5e-7)


@KINDS
@pytest.mark.parametrize("causal", [True, False])
def test_the_bias_is_a_kernel_of_the_distance(shape, kind, causal):
    p, a = [0.2, 1.0, 1.9], [0.9, 0.05, 0.4]
    kerple = put(KERPLE(shape(heads=3, causal=causal), kind=kind), p, a)
    rows, columns = [3, 30, 9], [0, 3, 4, 9, 30]
    queries, keys = (torch.tensor(at).float().unsqueeze(-1) for at in (rows, columns))
    bias = kerple(queries, keys, 31).bias
    assert type(bias) is Toeplitz
    assert bias.tensors[0].shape == (3, 31 if causal else 61)
    got = bias.block(slice(0, 3), slice(0, 5))
    for head in range(3):
        for row, i in enumerate(rows):
            for column, j in enumerate(columns):
                away = max(i - j, 0) if causal else abs(i - j)
                log, power = -p[head] * math.log(1 + a[head] * away), -a[head] * away ** p[head]
                assert got[0, head, row, column].item() == pytest.approx(log if kind == "log" else power, rel=1e-5)


def test_positions_of_their_own_per_example_and_a_prefix(shape):
    kerple = put(KERPLE(shape(prefix=1, causal=False), kind="power"), 1.0, 0.5)
    at = torch.tensor([[[0.0], [1.0], [2.0]], [[0.0], [0.0], [1.0]]])
    got = kerple(at, at, 3).bias.block(slice(0, 4), slice(0, 4))
    assert got.shape == (2, 2, 4, 4)
    assert got[:, :, 0].eq(0).all()
    assert got[:, :, :, 0].eq(0).all()
    assert got[0, 0, 3, 1:].tolist() == pytest.approx([-1.0, -0.5, 0.0])
    assert got[1, 0, 3, 1:].tolist() == pytest.approx([-0.5, -0.5, 0.0])


@BOTH
@pytest.mark.parametrize("heads", [4, 6])
def test_a_power_of_one_is_alibi(shape, heads, parametrization):
    geometry, at, whole = shape(heads=heads, causal=False), line(50), slice(0, 50)
    kerple, steep = KERPLE(geometry, kind="power", parametrization=parametrization), slopes(heads)
    if parametrization == "clamp":
        put(kerple, 1.0, steep)
    else:
        put(kerple, 0.0, [math.log(math.expm1(slope)) for slope in steep])
    mine, theirs = (part(at, at, 50).bias.block(whole, whole) for part in (kerple, ALiBi(geometry)))
    # The flattest slopes, down to 2^-8, are below the bound of the clamp.
    same = [head for head, slope in enumerate(steep) if slope >= 0.01 or parametrization == "softplus"]
    assert len(same) == (heads if parametrization == "softplus" else heads - 1)
    torch.testing.assert_close(mine[:, same], theirs[:, same], rtol=1e-5, atol=0)


@KINDS
@BOTH
def test_numbers_start_as_the_references_draw_them(shape, kind, parametrization):
    torch.manual_seed(0)
    kerple = KERPLE(shape(heads=4000), kind=kind, parametrization=parametrization)
    p, a = (number.squeeze(-1) for number in kerple.numbers())
    for number, high in ((p, 2.0), (a, 1.0)):
        assert number.min() >= 0.0099
        assert number.max() <= high * 1.0001
        assert number.mean().item() == pytest.approx(high / 2, rel=0.03)
        assert number.std().item() == pytest.approx(high / math.sqrt(12), rel=0.03)
    torch.manual_seed(0)
    drawn = torch.rand(4000) * 2, torch.rand(4000)
    for number, expected in zip((p, a), drawn, strict=True):
        torch.testing.assert_close(number, expected.clamp(min=0.01), rtol=1e-4, atol=1e-5)


@KINDS
def test_numbers_are_clamped_where_they_are_used(shape, kind):
    kerple = put(KERPLE(shape(heads=3), kind=kind), [-1.0, 0.5, 3.0], [-0.2, 0.0, 5.0])
    p, a = kerple.numbers()
    assert p.flatten().tolist() == pytest.approx([0.01, 0.5, 2.0 if kind == "power" else 3.0])
    assert a.flatten().tolist() == pytest.approx([0.01, 0.01, 5.0])
    assert kerple.p.tolist() == [-1.0, 0.5, 3.0]  # a forward writes nothing


def test_outside_of_a_bound_only_gradients_that_lead_back_pass(shape):
    def gradient(sign: int) -> tuple[list[float], list[float]]:
        kerple = put(KERPLE(shape(heads=3), kind="power"), [-1.0, 0.5, 3.0], [-0.2, 0.005, 5.0])
        (sign * table(kerple, 9)).sum().backward()
        return kerple.p.grad.tolist(), kerple.a.grad.tolist()

    less, more = gradient(1), gradient(-1)  # descent makes the penalties larger, then smaller
    assert [value < 0 for value in less[0]] == [True, True, False]
    assert [value < 0 for value in less[1]] == [True, True, True]
    assert [value > 0 for value in more[0]] == [False, True, True]
    assert [value > 0 for value in more[1]] == [False, False, True]
    assert less[0][2] == more[0][0] == more[1][0] == more[1][1] == 0.0


def test_descent_is_that_of_parameters_clamped_in_place(shape):
    """The references' loop beside ours, from numbers that cross the bound and come back."""
    own = put(KERPLE(shape(), kind="log"), [0.02, 1.0], [0.03, 0.5]).double()
    p, a = (parameter.detach().clone().requires_grad_() for parameter in (own.p, own.a))
    away = torch.arange(12, dtype=torch.float64)
    outside = 0
    for step in range(60):
        sign = 1.0 if step < 20 else -1.0
        theirs = torch.optim.SGD((p, a), lr=2e-3)
        with torch.no_grad():
            p.clamp_(min=0.01)
            a.clamp_(min=0.01)
        for optimizer, found in (
            (theirs, -p[:, None] * torch.log(1 + a[:, None] * away)),
            (torch.optim.SGD(own.parameters(), lr=2e-3), table(own, 12)),
        ):
            optimizer.zero_grad()
            (-sign * found).sum().backward()
            optimizer.step()
        outside += int((own.p < 0.01).any())
    assert outside > 5
    assert all(number.min() > 0.01 for number in own.numbers())  # it came back
    for mine, other in zip(own.numbers(), (p, a), strict=True):
        torch.testing.assert_close(mine.squeeze(-1), other, rtol=0, atol=5e-2)  # the way back from an overshoot


@KINDS
@BOTH
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_of_the_table(shape, kind, parametrization, causal):
    torch.manual_seed(0)
    kerple = KERPLE(shape(heads=3, causal=causal), kind=kind, parametrization=parametrization).double()
    at = line(20).double()

    def of(p: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(kerple, {"p": p, "a": a}, (at, at, 20)).bias.tensors[0]

    assert torch.autograd.gradcheck(of, (kerple.p, kerple.a))


@BOTH
def test_distance_0_has_no_gradient_and_is_a_number(shape, parametrization):
    kerple = KERPLE(shape(), kind="power", parametrization=parametrization)
    found = table(kerple, 1)
    assert found.eq(0).all()
    found.sum().backward()
    assert kerple.p.grad.eq(0).all()
    assert kerple.a.grad.eq(0).all()


def test_far_distances_stay_finite(shape):
    kerple = put(KERPLE(shape(), kind="power"), 2.0, 1.0)
    far = torch.tensor([[131_071.0]])
    assert kerple(far, torch.zeros(1, 1), 131_072).bias.block(slice(0, 1), slice(0, 1))[0, 0, 0, 0] == -(131_071.0**2)


@BOTH
def test_a_power_stays_within_its_bounds_whatever_the_parameters(shape, parametrization):
    kerple = put(KERPLE(shape(), kind="power", parametrization=parametrization), [-30.0, 30.0], 0.0)
    p, a = kerple.numbers()
    assert p.min() >= 0
    assert p.max() <= 2
    assert a.min() > 0


@pytest.mark.parametrize(("per_layer", "modules"), [(False, 1), (True, 3)])
def test_layers_share_their_numbers_or_have_their_own(per_layer, modules):
    def make(geometry):
        return KERPLE(geometry, per_layer=per_layer)

    model = Decoder(vocabulary=7, length=8, dim=16, layers=3, heads=2, position=make)
    names = [name for name, _ in model.named_parameters() if name.startswith("trunk.positions")]
    assert len(names) == 2 * modules
    model(torch.arange(6)[None]).square().sum().backward()
    found = [parameter.grad for parameter in model.trunk.positions.parameters()]
    assert all(gradient.abs().max() > 0 for gradient in found)


def test_no_rung_holds_a_parameter(shape):
    at = line(3)
    assert not any(isinstance(tensor, nn.Parameter) for tensor in KERPLE(shape())(at, at, 3).bias.tensors)


def test_a_grid_is_refused(shape):
    with pytest.raises(ZooError, match=r"KERPLE measures distance along one axis, and this model has 2.*position RoPE"):
        KERPLE(shape(length=(4, 4)))
