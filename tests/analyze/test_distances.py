"""Distances of heads against loops in numpy and cases known by hand; maps of any kernel against its definition."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from zoo import plugins
from zoo.analyze.distances import HeadDistances, choices, maps
from zoo.errors import ZooError
from zoo.kernel import Kernel, Mask
from zoo.position import Geometry, Slopes

GEOMETRY = Geometry(dim=24, heads=4, kv_heads=4, head_dim=6, length=(13,))
KERNELS = (
    "Eager",
    "Auto",
    "SDPA",
    "Tiled",
    "OffByOne",
    "Sink",
    "RBF",
    "Cosine",
    "Sigmoid",
    "LinearAttention",
    "FourierIntegral",
    "FourierQuartic",
)


def build(name: str, **changes) -> Kernel:
    return plugins.load("zoo.kernels", name)(replace(GEOMETRY, **changes))


def tensors(batch=2, groups=4, tokens=13, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(batch, heads, tokens, 6, dtype=dtype) for heads in (4, groups, groups)]


def whole(kernel, q, k, columns=5, **call):
    return torch.cat(
        list(maps(kernel, q, k, **{"bias": None, "mask": Mask(), "scale": 0.4, **call}, columns=columns)), -1
    )


def plainly(output, weights, choice):
    """Distance, relative distance and variation, a number at a time."""
    batch, heads, tokens, _ = output.shape
    apart, norms, varied = [], [], []
    for b in range(batch):
        for i in range(tokens):
            norms += [np.sqrt((output[b, h, i] ** 2).sum()) for h in range(heads)]
            for g, h in combinations(range(heads), 2):
                apart.append(np.sqrt(((output[b, g, i] - output[b, h, i]) ** 2).sum()))
                if choice[b, i]:
                    varied.append(np.abs(weights[b, g, i] - weights[b, h, i]).sum() / 2)
    return [np.mean(apart), np.mean(apart) / np.mean(norms), np.mean(varied)]


def test_the_numbers_are_those_of_a_loop():
    metric, expected = HeadDistances(layers=3), []
    for layer in range(3):
        parts = []
        for batch in range(2):
            draw = np.random.default_rng(10 * layer + batch)
            output, weights = draw.normal(size=(2, 4, 7, 5)), draw.dirichlet(np.ones(9), size=(2, 4, 7))
            choice = draw.random((2, 7)) < 0.7
            parts.append((output, weights, choice))
            blocks = torch.tensor(weights).split(4, -1)
            metric.update(torch.tensor(output), blocks, torch.tensor(choice), layer)
        expected.append(plainly(*(np.concatenate(part) for part in zip(*parts, strict=True))))
    found = metric.compute()
    np.testing.assert_allclose(found["layers"].numpy(), expected, rtol=1e-12)
    for column, name in enumerate(("distance", "relative", "variation")):
        numbers = [row[column] for row in expected]
        assert float(found[name]) == pytest.approx(np.mean(numbers), rel=1e-12)
        assert float(found[f"{name}_std"]) == pytest.approx(np.std(numbers), rel=1e-12)


def test_heads_that_are_the_same_are_not_apart():
    metric = HeadDistances()
    metric.update(100 + torch.randn(2, 1, 30, 16).expand(-1, 4, -1, -1), torch.rand(2, 1, 30, 9).expand(-1, 4, -1, -1))
    found = metric.compute()
    assert [float(found[name]) for name in ("distance", "relative", "variation")] == [0.0, 0.0, 0.0]
    metric.reset()
    near = torch.randn(1, 1, 8, 64).repeat(1, 2, 1, 1) * 100
    near[:, 1, :, 0] += 0.01
    metric.update(near)
    assert float(metric.compute()["distance"]) == pytest.approx(0.01, rel=1e-2), "not lost to rounding"


def test_heads_that_share_no_key_vary_by_one():
    metric = HeadDistances()
    weights = torch.zeros(1, 2, 5, 6)
    weights[:, 0, :, :3], weights[:, 1, :, 3:] = 1 / 3, 1 / 3
    metric.update(torch.eye(2).view(1, 2, 1, 2).expand(1, 2, 5, 2), weights)
    found = metric.compute()
    assert float(found["variation"]) == pytest.approx(1.0)
    assert float(found["distance"]) == pytest.approx(math.sqrt(2))
    assert float(found["relative"]) == pytest.approx(math.sqrt(2))
    metric.update(torch.zeros(1, 2, 5, 2), weights.flip(1).roll(1, -1), torch.tensor([[False] * 4 + [True]]))
    assert float(metric.compute()["variation"]) == pytest.approx(1.0)
    assert float(metric.compute()["distance"]) == pytest.approx(math.sqrt(2) / 2), "all tokens count there"


def test_scale_moves_the_distance_and_not_the_relative_one():
    output, found = torch.randn(2, 3, 8, 4), []
    for factor in (1, 10):
        metric = HeadDistances()
        metric.update(output * factor)
        found.append(metric.compute())
    assert float(found[1]["distance"]) == pytest.approx(10 * float(found[0]["distance"]))
    assert float(found[1]["relative"]) == pytest.approx(float(found[0]["relative"]))
    assert found[0]["variation"].isnan(), "no map was given"


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("name", KERNELS)
def test_the_map_of_any_kernel_is_that_of_its_definition(name, groups, causal):
    kernel, mask = build(name, kv_heads=groups, causal=causal), Mask(causal=causal)
    q, k, v = tensors(groups=groups)
    found = whole(kernel, q, k, mask=mask)
    exact = [x.double() for x in (q, k)]
    eye = torch.eye(13, dtype=torch.float64).expand(2, groups, -1, -1)
    expected = kernel.double().reference(*exact, eye, mask=mask, scale=0.4)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)
    spread = v.repeat_interleave(4 // groups, 1)
    torch.testing.assert_close(found @ spread, kernel.float()(q, k, v, mask=mask, scale=0.4), rtol=1e-4, atol=1e-5)
    for columns in (1, 13, 64):
        torch.testing.assert_close(whole(kernel, q, k, columns, mask=mask), found, rtol=1e-4, atol=1e-6)


def test_biases_and_documents_are_in_the_map():
    q, k, _ = tensors(tokens=6)
    at = torch.arange(6.0)
    bias = Slopes(torch.tensor([1.0, 0.5, 0.2, 0.1]), at, at)
    mask = Mask(causal=True, documents=torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]]))
    found = whole(build("Eager"), q, k, bias=bias, mask=mask)
    logits = q @ k.mT * 0.4 - torch.tensor([1.0, 0.5, 0.2, 0.1]).view(-1, 1, 1) * (at[:, None] - at).abs()
    seen = (mask.documents[:, :, None] == mask.documents[:, None]).tril()[:, None]
    torch.testing.assert_close(found, logits.masked_fill(~seen, -torch.inf).softmax(-1))
    expected = [[False, True, True, False, True, False], [False, False, True, True, True, True]]
    assert choices(mask, 6, 6, q.device).tolist() == expected


def test_rows_without_a_choice(monkeypatch):
    device = torch.device("cpu")
    assert choices(Mask(), 4, 4, device).tolist() == [[True] * 4]
    assert choices(Mask(), 1, 1, device).tolist() == [[False]]
    assert choices(Mask(causal=True), 4, 4, device).tolist() == [[False, True, True, True]]
    assert choices(Mask(causal=True, window=1), 3, 3, device).tolist() == [[False] * 3]
    padded = Mask(causal=True, padding=torch.tensor([0, 2]))
    monkeypatch.setattr("zoo.analyze.distances.ROWS", 3)
    assert choices(padded, 4, 4, device).tolist() == [[False, True, True, True], [False, False, False, True]]


class Halves(plugins.load("zoo.kernels", "Eager")):
    """A kernel that takes nothing but bfloat16, as flash kernels do."""

    def forward(self, q, k, v, **call):
        if q.dtype != torch.bfloat16:
            raise ZooError("Halves takes bfloat16.")
        return super().forward(q, k, v, **call)


def test_a_kernel_that_refuses_is_read_by_its_definition():
    q, k, _ = tensors(dtype=torch.bfloat16)
    found = whole(Halves(GEOMETRY), q, k)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (q.float() @ k.float().mT * 0.4).softmax(-1))


class Broken(Halves):
    """And has no definition that works."""

    def reference(self, q, k, v, **call):
        raise ZooError("There is none.")


def test_what_cannot_be_measured_is_said():
    with pytest.raises(ZooError, match="two or more"):
        HeadDistances().update(torch.randn(2, 1, 3, 4))
    with pytest.raises(ZooError, match="1 layer or more"):
        HeadDistances(layers=0)
    with pytest.raises(ZooError, match="There is none"):
        whole(Broken(GEOMETRY), *tensors()[:2])


def test_half_precision_is_summed_in_more():
    """What the heads gave is rounded; the sums are not."""
    output = torch.randn(4, 4, 500, 8).to(torch.bfloat16)
    metric, exact = HeadDistances(), HeadDistances()
    metric.update(output)
    exact.update(output.double())
    assert float(metric.compute()["distance"]) == pytest.approx(float(exact.compute()["distance"]), rel=1e-6)
