"""Tiled's own promises: right gradients, equal bits twice, no graph without gradients, torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from zoo_kernels import tiles
from zoo_kernels.profile import diagonals, skewed
from zoo_kernels.tiled import Tiled

from zoo.kernel import Eager, Mask
from zoo.position import Dense, Slopes, Toeplitz


def test_gradcheck(case, geometry, rung):
    one, tiled = case(rung, "causal_window", 7, width=3), Tiled(geometry, block=3)
    floats = [x for x in one.tensors if x.is_floating_point() and x.requires_grad]

    def call(q, k, v, *learned):
        fresh = iter(learned)
        tensors = [next(fresh) if x.is_floating_point() and x.requires_grad else x for x in one.tensors]
        mask = Mask(causal=True, window=5)
        return tiled(q, k, v, bias=one.build(*tensors) if one.build else None, mask=mask, scale=0.4)

    assert torch.autograd.gradcheck(call, (one.q, one.k, one.v, *floats))


@pytest.mark.parametrize("rung", ["toeplitz", "toeplitz_ragged", "pointwise", "pointwise_ragged", "dense", "logits"])
def test_the_same_bits_twice(case, geometry, rung):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one = case(rung, "causal", 260, dtype=torch.float32)
        first, second = one.all(Tiled(geometry)), one.all(Tiled(geometry))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_no_graph_without_gradients(case, geometry, rung):
    one = case(rung, "causal", 30)
    with torch.no_grad():
        out = one.run(Tiled(geometry))
    assert out.grad_fn is None
    assert case(rung, "causal", 30, grad=False).run(Tiled(geometry)).grad_fn is None
    torch.testing.assert_close(out, one.run(Eager(geometry)).detach())


@pytest.mark.parametrize("frozen", ["q", "k", "v", "qkv", "tensors"])
@pytest.mark.parametrize("rung", ["toeplitz", "pointwise", "logits"])
def test_only_some_gradients_are_wanted(case, geometry, rung, frozen):
    one = case(rung, "causal_documents", 30)
    for x in one.tensors if frozen == "tensors" else [getattr(one, name) for name in frozen]:
        x.requires_grad_(False)
    for found, wanted in zip(one.all(Tiled(geometry, block=8)), one.all(Eager(geometry)), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 9), (9, 1), (3, 4), (3, 6), (3, 7), (4, 50)])
def test_sums_along_diagonals(rows, columns):
    x = torch.randn(2, 3, rows, columns, dtype=torch.float64)
    wanted = torch.zeros(6, rows + columns - 1, dtype=torch.float64)
    for r in range(rows):
        wanted[:, r : r + columns] += x[:, :, r].flatten(0, 1)
    padded = torch.nn.functional.pad(x, (0, rows))
    torch.testing.assert_close(diagonals(skewed(padded)), wanted)


@pytest.mark.parametrize(("groups", "most"), [(2, 45), (1, 200)])
def test_many_tiles_and_parts(case, geometry, rung, conditions, groups, most, monkeypatch):
    """Tiles of 5 keys, in parts of one head and of several."""
    monkeypatch.setattr(tiles, "room", lambda device: (5, most))
    one = case(rung, conditions, 23, groups=groups, width=3)
    for found, wanted in zip(one.all(Tiled(geometry, block=8)), one.all(Eager(geometry)), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("most", [1, 90, 300, 1000])
def test_parts(case, geometry, groups, most, monkeypatch):
    """Of one head of a group, of a group, of all heads, and of both examples."""
    monkeypatch.setattr(tiles, "room", lambda device: (5, most))
    for rung in ("none", "toeplitz", "pointwise", "pointwise_ragged", "dense_ragged"):
        one = case(rung, "causal", 23, groups=groups, width=3)
        for found, wanted in zip(one.all(Tiled(geometry, block=8)), one.all(Eager(geometry)), strict=True):
            torch.testing.assert_close(found, wanted)


def test_a_prefix_in_many_tiles(case, geometry, monkeypatch):
    monkeypatch.setattr(tiles, "room", lambda device: (5, 45))
    for rung in ("slopes", "toeplitz", "pointwise", "dense", "dense_ragged"):
        one = case(rung, "none", 23, prefix=7, width=3)
        for found, wanted in zip(one.all(Tiled(geometry, block=4)), one.all(Eager(geometry)), strict=True):
            torch.testing.assert_close(found, wanted)


def packed(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of documents of these lengths, and positions that start anew in each."""
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return numbers, torch.cat([torch.arange(length) for length in lengths])


def plain(geometry, bias, mask, scale=0.4):
    """Output and gradients of Tiled and of Eager."""
    for kernel in (Tiled(geometry, block=4), Eager(geometry)):
        torch.manual_seed(0)
        leaves = [torch.randn(2, heads, 20, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
        learned = bias.tensors[0].detach().requires_grad_()
        out = kernel(*leaves, bias=bias.replace(learned * 1, *bias.tensors[1:]), mask=mask, scale=scale)
        yield [out, *torch.autograd.grad(out.square().sum(), (*leaves, learned))]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [False, True])
def test_positions_that_start_anew_in_each_document_need_no_index(geometry, monkeypatch, causal, padded):
    monkeypatch.setattr(tiles, "room", lambda device: (5, 45))
    rows = [packed(7, 1, 12), packed(20) if padded else packed(3, 9, 8)]
    numbers, at = (torch.stack(x) for x in zip(*rows, strict=True))
    padding = torch.tensor([0, 4]) if padded else None
    if padded:
        at[1] = (at[1] - 4).clamp(min=0)
    mask = Mask(causal=causal, documents=numbers, padding=padding)
    table = torch.randn(4, 39, dtype=torch.float64)
    for bias in (Toeplitz(table, at, at, lowest=-19), Slopes(table[:, 0], at.double(), at.double())):
        found, wanted = plain(geometry, bias, mask)
        with monkeypatch.context() as patch:
            if causal or not padded:  # a query of the padding looks ahead from where it stands
                patch.setattr(type(bias), "values", None)
            Tiled(geometry)(*(torch.randn(2, 4, 20, 8) for _ in range(3)), bias=bias, mask=mask)
        for x, y in zip(found, wanted, strict=True):
            torch.testing.assert_close(x, y)


def test_documents_that_have_no_profile_are_told_apart(geometry):
    """Numbers that come back, positions with a gap, or queries that are told other positions than keys."""
    numbers, at = packed(7, 13)
    table = torch.randn(4, 80, dtype=torch.float64)
    back, gap = torch.where(torch.arange(20) > 15, 0, numbers), torch.where(at > 5, at + 3, at)
    for documents, queries, keys in ((back, at, at), (numbers, gap, gap), (numbers, at + 1, at)):
        mask = Mask(causal=True, documents=documents.expand(2, -1))
        found, wanted = plain(geometry, Toeplitz(table, queries, keys, lowest=-20), mask)
        for x, y in zip(found, wanted, strict=True):
            torch.testing.assert_close(x, y)


def test_tiles_of_which_nothing_is_seen_are_left_out(geometry, monkeypatch):
    seen, logits = [], tiles.Job.logits
    monkeypatch.setattr(tiles, "room", lambda device: (5, 1000))
    monkeypatch.setattr(tiles.Job, "logits", lambda job, *args: seen.append(args) or logits(job, *args))
    numbers, q = torch.stack([packed(10, 10)[0], packed(20)[0]]), torch.randn(2, 4, 20, 8)
    Tiled(geometry, block=5)(q, q[:, :2], q[:, :2], mask=Mask(causal=True, documents=numbers))
    # Of four blocks, the first example sees 1, 2, 1, 2 tiles and the second 1, 2, 3, 4.
    assert len(seen) == 6 + 10


def test_the_gradient_of_a_dense_bias_is_added_up_in_place(geometry, monkeypatch):
    """By autograd each tile would make a gradient of the whole bias."""
    monkeypatch.setattr(tiles, "room", lambda device: (5, 45))
    monkeypatch.setattr(torch.autograd, "grad", None)
    q, whole = torch.randn(1, 4, 20, 8, requires_grad=True), torch.randn(1, 4, 20, 20, requires_grad=True)
    Tiled(geometry, block=4)(q, q, q, bias=Dense(whole * 1), mask=Mask(causal=True)).sum().backward()
    found, whole.grad = whole.grad, None
    Eager(geometry)(q, q, q, bias=Dense(whole * 1), mask=Mask(causal=True)).sum().backward()
    torch.testing.assert_close(found, whole.grad)


def test_regular_positions_need_no_index_and_others_are_told_apart(geometry, monkeypatch):
    q = torch.randn(1, 4, 9, 8)

    def refuse(*args: object) -> None:
        raise AssertionError("a block was looked up")

    at = torch.arange(9)
    for bias in (Toeplitz(torch.randn(4, 9), at, at), Slopes(torch.randn(4), at.float() + 5, at.float() + 5)):
        with monkeypatch.context() as patch:
            patch.setattr(type(bias), "block", refuse)
            Tiled(geometry)(q, q, q, bias=bias, mask=Mask(causal=True, window=4))
    for positions in (at // 2, at.flip(0), torch.where(at > 4, at - 4, at)):
        bias = Toeplitz(torch.randn(4, 9), positions, positions)
        found, wanted = (kernel(q, q, q, bias=bias) for kernel in (Tiled(geometry), Eager(geometry)))
        torch.testing.assert_close(found, wanted)


def test_replaced_positions_are_looked_at_again(geometry):
    q, at = torch.randn(1, 4, 9, 8), torch.arange(9)
    bias = Toeplitz(torch.randn(4, 9), at, at)
    Tiled(geometry)(q, q, q, bias=bias)
    other = bias.replace(bias.tensors[0], at // 2, at // 2)
    torch.testing.assert_close(Tiled(geometry)(q, q, q, bias=other), Eager(geometry)(q, q, q, bias=other))


@pytest.mark.parametrize("rung", ["toeplitz", "pointwise", "logits"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_under_activation_checkpointing(case, geometry, rung, reentrant):
    one = case(rung, "causal_padding", 21)
    bias, tiled = one.build(*one.tensors), Tiled(geometry, block=8)

    def call(q, *tensors):
        return tiled(q, one.k, one.v, bias=bias.replace(*tensors), mask=one.mask, scale=one.scale)

    out = checkpoint(call, one.q, *bias.tensors, use_reentrant=reentrant)
    wanted = [x for x in (one.q, *one.tensors) if x.requires_grad]
    found = torch.autograd.grad(out.square().sum(), wanted) if not reentrant else backward(out, wanted)
    plain = torch.autograd.grad(one.run(Eager(geometry)).square().sum(), wanted)
    for x, y in zip(found, plain, strict=True):
        torch.testing.assert_close(x, y)


def backward(out: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    out.square().sum().backward()  # a reentrant checkpoint knows no torch.autograd.grad
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("rung", ["slopes", "toeplitz", "dense"])
def test_torch_compile_may_break_the_graph_never_the_numbers(case, geometry, rung):
    one, tiled = case(rung, "causal", 21), Tiled(geometry, block=8)

    def model(q, k, v, *tensors):  # makes the bias inside, as a decoder does
        bias = one.build(*(x * 1 for x in tensors))
        return tiled(q * 2, k, v, bias=bias, mask=Mask(causal=True), scale=one.scale).tanh()

    outs = []
    for call in (model, torch.compile(model, backend="aot_eager")):
        out = call(one.q, one.k, one.v, *one.tensors)
        leaves = [x for x in one.leaves if x.requires_grad]
        outs.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for x, y in zip(*outs, strict=True):
        torch.testing.assert_close(x, y)


def test_nothing_of_length_squared_is_kept(geometry):
    """What autograd keeps for backward is the inputs."""
    n, kept = 512, []
    q, k, v = (torch.randn(1, 4, n, 8, requires_grad=True) for _ in range(3))
    table = torch.randn(4, n, requires_grad=True)
    bias = Toeplitz(table, torch.arange(n), torch.arange(n))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        Tiled(geometry, block=64)(q, k, v, bias=bias, mask=Mask(causal=True))
    assert max(kept) <= n * 4 * 8
