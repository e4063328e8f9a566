"""CoPE: counts and interpolation by a scalar loop, zero vectors as NoPE, saturated gates as plain distance."""

import math

import pytest
import torch
from zoo_kernels.tiled import Tiled
from zoo_positions.cope import CoPE, counted

from zoo.errors import ZooError
from zoo.kernel import Eager, Mask
from zoo.position import Logits

TOKENS, SCALE = 9, 0.3
AT = torch.arange(float(TOKENS)).view(-1, 1)
KERNELS = {"Eager": Eager, "Tiled": lambda geometry: Tiled(geometry, block=4)}
MASKS = {
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=4),
    "documents": Mask(causal=True, documents=torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 2, 2]])),
    "padding": Mask(causal=True, padding=torch.tensor([3, 0])),
}


def drawn(shape, **changes) -> CoPE:
    """A float64 encoding of few positions, so that some keys stand beyond the last."""
    cope = CoPE(shape(heads=4, kv_heads=2, **changes), positions=4).double()
    torch.nn.init.normal_(cope.vectors)
    return cope


@pytest.fixture
def inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(2, heads, TOKENS, 8, dtype=torch.float64) for heads in (4, 2, 2))


def bias(cope: CoPE) -> Logits:
    found = cope(AT, AT, TOKENS).bias
    assert type(found) is Logits
    return found


def oracle(cope: CoPE, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Attention, one number at a time."""
    vectors = cope.vectors.tolist()
    last, width = len(vectors[0]) - 1, len(vectors)
    out = torch.zeros_like(q)

    def dot(x, y):
        return sum(a * b for a, b in zip(x, y, strict=True))

    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            queries = q[b, h].tolist()
            keys, values = (x[b, h // (q.shape[1] // k.shape[1])].tolist() for x in (k, v))
            for i, query in enumerate(queries):
                seen = [j for j in range(len(keys)) if mask.value(*(torch.tensor(n) for n in (b, i, j)))]
                logits = {j: SCALE * dot(query, keys[j]) for j in seen}
                told = {}
                for j in seen:
                    place = min(last, sum(1 / (1 + math.exp(-logits[t])) for t in seen if j <= t))
                    low, high = math.floor(place), math.ceil(place)
                    ends = [dot(query, [vectors[c][end] for c in range(width)]) for end in (low, high)]
                    told[j] = logits[j] + (1 - (place - low)) * ends[0] + (place - low) * ends[1]
                total = sum(math.exp(x) for x in told.values())
                for j in seen:
                    out[b, h, i] += math.exp(told[j]) / total * torch.tensor(values[j], dtype=torch.float64)
    return out


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mask", MASKS)
def test_attention_by_its_definition(shape, inputs, kernel, mask):
    cope = drawn(shape)
    got = KERNELS[kernel](cope.geometry)(*inputs, bias=bias(cope), mask=MASKS[mask], scale=SCALE)
    torch.testing.assert_close(got, oracle(cope, *inputs, MASKS[mask]), rtol=0, atol=1e-12)


def test_first_vectors_are_zero_and_that_is_no_encoding(shape, inputs):
    cope = CoPE(shape(heads=4, kv_heads=2))
    assert cope.vectors.shape == (8, 64)
    assert cope.per_layer
    assert not cope.content
    kernel, mask = Eager(cope.geometry), MASKS["causal"]
    got = kernel(*inputs, bias=bias(cope), mask=mask, scale=SCALE)
    assert torch.equal(got, kernel(*inputs, mask=mask, scale=SCALE))
    torch.nn.init.normal_(cope.vectors)
    assert not torch.allclose(kernel(*inputs, bias=bias(cope), mask=mask, scale=SCALE), got, atol=0.01)
    cope.reset_parameters()
    assert cope.vectors.eq(0).all()


def test_open_gates_count_tokens_and_the_key_itself(shape):
    """Logits so large that every gate is 1: a key d tokens back stands at d + 1, or at the last position."""
    cope = drawn(shape)
    q = torch.randn(1, 4, TOKENS, 8, dtype=torch.float64)
    logits = torch.full((1, 4, TOKENS, TOKENS), 50.0, dtype=torch.float64)
    visible = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()[None, None]
    rows = slice(0, TOKENS)
    got = bias(cope).onto(logits, q, q[:, :2], visible, SCALE, rows) - logits
    distance = (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS) + 1).clamp(0, 3)
    expected = (q @ cope.vectors).gather(-1, distance.expand(1, 4, -1, -1))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


def test_no_mask_counts_every_key(shape, inputs):
    cope, (q, k, _) = drawn(shape), inputs
    everything = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool)
    logits, rest = torch.randn(2, 4, TOKENS, TOKENS, dtype=torch.float64), (SCALE, slice(0, TOKENS))
    free = bias(cope).onto(logits, q, k, None, *rest)
    assert torch.equal(free, bias(cope).onto(logits, q, k, everything, *rest))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mask", ["causal", "padding"])
def test_gradients_through_attention(shape, inputs, kernel, mask):
    cope = drawn(shape)
    q, k, v = (x[:, :, :6].clone().requires_grad_() for x in inputs)

    def run(q, k, v, vectors):
        learned = Logits(counted, (vectors * 1,), heads=4)
        return KERNELS[kernel](cope.geometry)(q, k, v, bias=learned, mask=MASKS[mask], scale=SCALE)

    leaves = q, k, v, cope.vectors.detach().clone().requires_grad_()
    torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert bias(cope).tensors[0].grad_fn is not None


@pytest.mark.parametrize("kernel", KERNELS)
def test_decoding_gives_the_last_rows(shape, inputs, kernel):
    cope, (q, k, v) = drawn(shape), inputs
    attend = KERNELS[kernel](cope.geometry)
    whole = attend(q, k, v, bias=bias(cope), mask=Mask(causal=True), scale=SCALE)
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        found = cope(AT[start:stop], AT[:stop], TOKENS).bias
        mask = Mask(causal=True, offset=start)
        got = attend(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], bias=found, mask=mask, scale=SCALE)
        torch.testing.assert_close(got, whole[:, :, start:stop], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_future_is_not_counted(shape, inputs, kernel):
    cope, (q, k, v) = drawn(shape), inputs
    attend = KERNELS[kernel](cope.geometry)
    before = attend(q, k, v, bias=bias(cope), mask=Mask(causal=True), scale=SCALE)
    changed = torch.cat((k[:, :, :6], 5 * k[:, :, 6:] + 1), 2)
    after = attend(q, changed, v, bias=bias(cope), mask=Mask(causal=True), scale=SCALE)
    assert torch.equal(after[:, :, :6], before[:, :, :6])
    assert not torch.isclose(after[:, :, 6:], before[:, :, 6:]).all(-1).any()


def test_some_heads_share_the_vectors(shape, inputs):
    cope, (q, k, v) = drawn(shape), inputs
    kernel, mask = Eager(cope.geometry), MASKS["causal"]
    whole = kernel(q, k, v, bias=bias(cope), mask=mask, scale=SCALE)
    part = kernel(q[:, 2:], k[:, 1:], v[:, 1:], bias=bias(cope).heads(2, 4), mask=mask, scale=SCALE)
    torch.testing.assert_close(part, whole[:, 2:], rtol=0, atol=1e-12)


def test_half_precision_and_meta(shape, inputs):
    cope = CoPE(shape(heads=4, kv_heads=2))
    torch.nn.init.normal_(cope.vectors)
    assert cope.to(torch.bfloat16).vectors.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert bias(cope).tensors[0].dtype == torch.float32
    with torch.device("meta"):
        empty = CoPE(shape(heads=4, kv_heads=2))
    assert empty.vectors.is_meta
    empty.to_empty(device="cpu").load_state_dict(cope.state_dict())
    assert torch.equal(empty.vectors, cope.vectors)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"causal": False}, "looks both ways"), ({"length": (4, 4), "causal": False}, "has 2 axes")],
)
def test_what_is_not_a_causal_line_is_refused(shape, changes, sentence):
    with pytest.raises(ZooError, match=rf"{sentence}.*position RoPE"):
        CoPE(shape(**changes))


@pytest.mark.parametrize("positions", [1, 0, -3])
def test_too_few_positions_are_refused(shape, positions):
    with pytest.raises(ZooError, match=rf"{positions} positions.*positions 64"):
        CoPE(shape(), positions=positions)
