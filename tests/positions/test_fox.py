"""FoX: sums of gates by a scalar loop, ALiBi as its constant case, gradients, long texts and cached decoding."""

import copy
import math

import pytest
import torch
from torch.func import functional_call
from zoo_kernels.tiled import Tiled
from zoo_positions.alibi import ALiBi
from zoo_positions.fox import Faded, FoX

from zoo.errors import ZooError
from zoo.kernel import Eager, Mask
from zoo.position import Pointwise, Slopes

ROWS = slice(0, 9)
AT = torch.arange(9.0).view(-1, 1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def oracle(fox: FoX, hidden: torch.Tensor) -> torch.Tensor:
    """The log of the product of the gates after j, up to and with i; 0 for the future."""
    weight, bias = fox.linear.weight.tolist(), fox.linear.bias.tolist()
    batch, tokens, _ = hidden.shape
    found = torch.zeros(batch, len(bias), tokens, tokens, dtype=torch.float64)
    for b, rows in enumerate(hidden.tolist()):
        for h in range(len(bias)):
            gates = [sigmoid(sum(w * x for w, x in zip(weight[h], row, strict=True)) + bias[h]) for row in rows]
            for i in range(tokens):
                for j in range(i + 1):
                    found[b, h, i, j] = math.log(math.prod(gates[j + 1 : i + 1]))
    return found


def drawn(shape, **changes) -> FoX:
    """A float64 encoding with gates between shut and open."""
    torch.manual_seed(0)
    return FoX(shape(**changes), std=0.5, start=1.0).double()


def states(tokens: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, tokens, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_bias_is_the_log_of_the_product_of_the_gates_between(shape):
    fox, hidden = drawn(shape, heads=3), states(9)
    bias = fox(AT, AT, 9, hidden).bias
    assert isinstance(bias, Pointwise)
    got, expected = bias.block(ROWS, ROWS), oracle(fox, hidden)
    torch.testing.assert_close(got.tril(), expected, rtol=0, atol=1e-12)
    assert expected[0].min() < -2
    assert not torch.allclose(expected[0], expected[1])
    alone = bias.value(*(torch.tensor(n) for n in (1, 2, 7, 3)), *bias.tensors)
    torch.testing.assert_close(alone, expected[1, 2, 7, 3], rtol=0, atol=1e-12)
    single = fox.float()(AT, AT, 9, hidden).bias.block(ROWS, ROWS)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.tril().double(), expected, rtol=1e-5, atol=1e-6)


def test_cable_is_the_same_with_the_logits_turned(shape):
    fox, hidden = drawn(shape), states(9)
    logits = fox.linear(hidden).mT
    with torch.no_grad():
        for parameter in fox.parameters():
            parameter.neg_()
    sums = -torch.log1p(logits.exp()).cumsum(-1)  # of -softplus
    got = fox(AT, AT, 9, hidden).bias.block(ROWS, ROWS)
    torch.testing.assert_close(got, sums[..., None] - sums[..., None, :], rtol=0, atol=1e-12)


@pytest.mark.parametrize("gate", ["fixed", "bias"])
def test_constant_gates_of_alibis_range_are_alibi(shape, gate):
    """Eight heads from 2 to 256 tokens: 2^-1 ... 2^-8, on positions of any spacing."""
    at = torch.tensor([[[0.0], [1.0], [7.0], [8.0]], [[0.0], [1.0], [0.0], [1.0]]])
    whole = slice(0, 4)
    fox = FoX(shape(heads=8), gate=gate)
    assert not fox.content
    assert fox.per_layer == (gate == "bias")
    assert len(list(fox.parameters())) == len(fox.state_dict()) == (gate == "bias")
    got = fox(at, at, 9).bias
    assert type(got) is Slopes
    torch.testing.assert_close(
        got.block(whole, whole), ALiBi(shape(heads=8))(at, at, 9).bias.block(whole, whole), rtol=1e-6, atol=0
    )


def test_a_full_gate_that_ignores_the_content_is_alibi(shape):
    fox, alibi = drawn(shape, heads=8), ALiBi(shape(heads=8)).double()
    slopes = [2.0**-n for n in range(1, 9)]
    with torch.no_grad():
        fox.linear.weight.zero_()
        fox.linear.bias.copy_(torch.tensor([-math.log(math.expm1(slope)) for slope in slopes]))
    got = fox(AT, AT, 9, states(9)).bias.block(ROWS, ROWS).tril()
    expected = alibi(AT, AT, 9).bias.block(ROWS, ROWS).tril().double().expand(2, -1, -1, -1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)  # b was rounded to float32


@pytest.mark.parametrize(("heads", "times"), [(1, [4.0]), (3, [4.0, 16.0, 64.0])])
def test_decay_times_are_spaced_by_logarithm(shape, heads, times):
    fox = FoX(shape(heads=heads), gate="fixed", shortest=4.0, longest=64.0)
    torch.testing.assert_close(1 / fox(AT, AT, 9).bias.tensors[0], torch.tensor(times), rtol=1e-6, atol=0)


def test_first_gates(shape):
    torch.manual_seed(0)
    wide = shape(dim=512, heads=8)
    fox = FoX(wide)
    assert fox.linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert fox.linear.bias.tolist() == [0.0] * 8
    slow = FoX(wide, start=5.0, std=0.0)
    bias = slow(AT, AT, 9, torch.randn(1, 9, 512)).bias.block(ROWS, ROWS)
    assert bias[0, :, 8, 7].exp().tolist() == pytest.approx([1 - 0.0067] * 8, abs=1e-4)
    kept = copy.deepcopy(fox.state_dict())
    fox.reset_parameters()
    assert not torch.equal(fox.linear.weight, kept["linear.weight"])


def attention(fox, kernel, q, k, v, hidden, *parameters):
    named = dict(zip(dict(fox.named_parameters()), parameters, strict=True))
    at = AT[: hidden.shape[1]]
    bias = functional_call(fox, named, (at, at, 9, hidden)).bias
    return kernel(q, k, v, bias=bias, mask=Mask(causal=True), scale=0.3)


@pytest.mark.parametrize("kernel", [Eager, lambda g: Tiled(g, block=2)], ids=["Eager", "Tiled"])
def test_gradients_through_attention(shape, kernel):
    fox = drawn(shape, kv_heads=1)
    q, k, v = (torch.randn(2, heads, 5, 8, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1))
    leaves = [q, k, v, states(5).requires_grad_(), *fox.parameters()]
    torch.autograd.gradcheck(lambda *x: attention(fox, kernel(fox.geometry), *x), leaves, fast_mode=True)


@pytest.mark.parametrize(
    "normal", [torch.sigmoid, lambda x: x.exp() / (1 + x.exp().sum(-1, keepdim=True))], ids=["sigmoid", "plus one"]
)
def test_gradients_where_a_row_is_not_normalised(shape, normal):
    """A softmax has no gradient for what a row has in common; a sigmoid, or a softmax plus one, has it."""
    fox, hidden = drawn(shape), states(9)

    def loss(*parameters):
        named = dict(zip(dict(fox.named_parameters()), parameters, strict=True))
        bias = functional_call(fox, named, (AT, AT, 9, hidden)).bias.block(ROWS, ROWS)
        return normal(bias.masked_fill(torch.ones(9, 9).triu(1).bool(), -30.0))

    torch.autograd.gradcheck(loss, list(fox.parameters()))


def test_each_tensor_that_learns_is_looked_up_once(shape):
    bias = drawn(shape)(AT, AT, 9, states(9)).bias
    rows, columns, *rest = bias.tensors
    assert rows is not columns
    assert rows.requires_grad
    assert columns.requires_grad
    assert not any(tensor.requires_grad for tensor in rest)


def test_long_texts_keep_small_differences():
    """Gates that shut now and then, as at the end of a document, and hardly at all between."""
    torch.manual_seed(0)
    steps = torch.where(torch.rand(1, 2, 2**17) < 0.3, -40.0, -1e-3).double()
    sums = steps.cumsum(-1)
    assert sums.min() < -1e6
    last = slice(sums.shape[-1] - 64, sums.shape[-1])
    expected = sums[..., last, None] - sums[..., None, last]
    plain = (sums.float()[..., last, None] - sums.float()[..., None, last]).double()
    assert (plain - expected).abs().max() > 0.01
    bias = Faded(sums, 2**17, torch.float32)
    torch.testing.assert_close(bias.values(last, last).double(), expected, rtol=2e-7, atol=1e-7)
    h, i, j = torch.tensor(1), torch.tensor(last.stop - 1), torch.tensor(last.start)
    alone = bias.value(h * 0, h, i, j, *bias.tensors)
    torch.testing.assert_close(alone.double(), expected[0, 1, -1, 0], rtol=2e-7, atol=1e-7)


def test_a_document_at_the_end_of_a_long_pack_is_what_it_is_alone(shape):
    torch.manual_seed(0)
    fox, tokens, own = FoX(shape(), std=3.0), 2**15, 64
    hidden, at = torch.randn(1, tokens, 16), torch.arange(float(tokens)).view(-1, 1)
    with torch.no_grad():
        packed = fox(at, at, tokens, hidden).bias
        alone = fox(at[:own], at[:own], own, hidden[:, -own:]).bias
    last, first = slice(tokens - own, tokens), slice(0, own)
    assert packed.tensors[0].abs().max() > 2**14
    torch.testing.assert_close(packed.block(last, last).tril(), alone.block(first, first).tril(), rtol=1e-6, atol=1e-5)


def test_positions_change_nothing_and_neither_do_later_tokens(shape):
    fox, hidden = drawn(shape), states(9)
    bias = fox(AT, AT, 9, hidden).bias.block(ROWS, ROWS)
    spaced = fox(3 * AT + 100, 3 * AT + 100, 200, hidden).bias.block(ROWS, ROWS)
    assert torch.equal(spaced, bias)
    changed = torch.cat((hidden[:, :6], states(3) * 5), 1)
    other = fox(AT, AT, 9, changed).bias.block(ROWS, ROWS)
    assert torch.equal(other[..., :6, :6], bias[..., :6, :6])
    assert not torch.isclose(other[..., 6:, :6], bias[..., 6:, :6]).any()


def test_decoding_with_the_sums_of_earlier_tokens(shape):
    fox, hidden = drawn(shape), states(9)
    whole, state, start = fox(AT, AT, 9, hidden).bias.block(ROWS, ROWS), {}, 0
    for count in (4, 1, 1, 3):
        stop = start + count
        with torch.no_grad():
            bias = fox(AT[start:stop], AT[:stop], 9, hidden[:, start:stop], state).bias
        assert (bias.queries, bias.keys) == (count, stop)
        got = bias.block(slice(0, count), slice(0, stop))
        torch.testing.assert_close(got, whole[..., start:stop, :stop], rtol=0, atol=1e-12)
        start = stop
    assert state["sums"].dtype == torch.float64
    with pytest.raises(ZooError, match="has those of 1 tokens for 9 keys"):
        fox(AT[8:], AT, 9, hidden[:, 8:], {})
    with pytest.raises(ZooError, match="has those of 0 tokens for 9 keys"):
        fox(AT, AT, 9)


def test_a_prefix_is_not_forgotten_and_has_no_gates(shape):
    fox, hidden = drawn(shape, prefix=2), states(9)
    bias = fox(AT[:7], AT[:7], 7, hidden).bias.block(ROWS, ROWS)
    assert bias.shape == (2, 2, 9, 9)
    assert bias[..., :2, :].eq(0).all()
    assert bias[..., :2].eq(0).all()
    torch.testing.assert_close(bias[..., 2:, 2:].tril(), oracle(fox, hidden[:, 2:]), rtol=0, atol=1e-12)


def test_some_heads(shape):
    bias = drawn(shape, heads=4)(AT, AT, 9, states(9)).bias
    part, whole = bias.heads(1, 3), bias.block(ROWS, ROWS)
    assert torch.equal(part.block(ROWS, ROWS), whole[:, 1:3])
    assert torch.equal(part.heads(1, 2).block(ROWS, ROWS), whole[:, 2:3])
    assert torch.equal(part.replace(*(t * 2 for t in bias.tensors)).block(ROWS, ROWS), 2 * whole[:, 1:3])


@pytest.mark.parametrize("gate", ["full", "bias", "fixed"])
def test_half_precision_and_meta(shape, gate):
    torch.manual_seed(0)
    fox, hidden = FoX(shape(), gate=gate), states(9).bfloat16()
    expected = fox(AT, AT, 9, hidden).bias.block(ROWS, ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = fox(AT, AT, 9, hidden).bias.block(ROWS, ROWS)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, expected)
    assert all(parameter.dtype == torch.float32 for parameter in fox.to(torch.bfloat16).parameters())
    with torch.device("meta"):
        empty = FoX(shape(), gate=gate)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.to_empty(device="cpu").load_state_dict(fox.state_dict())
    assert torch.equal(empty(AT, AT, 9, hidden).bias.block(ROWS, ROWS), expected)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"causal": False}, "looks both ways"), ({"length": (4, 4), "causal": False}, "has 2 axes")],
)
def test_what_is_not_a_causal_line_is_refused(shape, changes, sentence):
    with pytest.raises(ZooError, match=rf"{sentence}.*position RoPE"):
        FoX(shape(**changes))


@pytest.mark.parametrize(
    "numbers", [{"shortest": 0.0}, {"shortest": 9.0, "longest": 8.0}, {"shortest": 300.0}, {"longest": math.inf}]
)
def test_times_out_of_range_are_refused(shape, numbers):
    with pytest.raises(ZooError, match=r"above 0.*position.shortest 2"):
        FoX(shape(), gate="fixed", **numbers)


@pytest.mark.parametrize(
    ("gate", "number", "other"), [("full", "longest", "fixed"), ("bias", "start", "full"), ("fixed", "std", "full")]
)
def test_numbers_of_another_gate_are_refused(shape, gate, number, other):
    with pytest.raises(ZooError, match=rf"{gate} gate has no {number}.*gate {other}"):
        FoX(shape(), gate=gate, **{number: 3.0})


def test_a_negative_std_is_refused(shape):
    with pytest.raises(ZooError, match="std of 0 or more"):
        FoX(shape(), std=-1.0)
