"""Relocation: a dense float64 oracle over all pairs, the distances by loops, what stays plain RoPE, reach, refusals."""

import logging
import math
from functools import partial

import pytest
import torch
from zoo_kernels import scores, tiles
from zoo_kernels.rows import rowwise
from zoo_kernels.tiled import Tiled
from zoo_positions.rope import PoPE, RoPE, pRoPE
from zoo_positions.rope.extensions import DualChunk, LeakyReRoPE, ReRoPE, SelfExtend
from zoo_positions.rope.extensions.selfextend import longest

from zoo import plugins, tables
from zoo.auto import say
from zoo.cache import Cache
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.extension import Series
from zoo.kernel import Eager, Mask
from zoo.matrix import mapped, taken
from zoo.position import Logits, Rotation

LENGTH, FACTOR, TOKENS, SCALE = 16, 4, 60, 0.4
METHODS = {
    "ReRoPE": ReRoPE,
    "LeakyReRoPE": partial(LeakyReRoPE, factor=FACTOR),
    "SelfExtend": partial(SelfExtend, factor=FACTOR),
    "DualChunk": DualChunk,
}
OTHERS = METHODS | {
    "ReRoPE, plain": partial(ReRoPE, window=7, log_n=False),
    "LeakyReRoPE, plain": partial(LeakyReRoPE, factor=2.5, window=3, leak=6.5, log_n=False),
    "SelfExtend, log-n": partial(SelfExtend, factor=FACTOR, window=5, group=7, log_n=True),
    "DualChunk, plain": partial(DualChunk, chunk=14, local=9, attention=1.0),
}
KERNELS = {"Eager": Eager, "Tiled": lambda geometry: Tiled(geometry, block=7)}
each = pytest.mark.parametrize("name", OTHERS)


def series(length=LENGTH, width=8, axes=1):
    return Series(base=100.0, width=width, length=length, axes=axes)


def apart(extension, i, j):
    """The distance at which a method's paper rotates a query at i and a key at j: whole numbers, one pair at a time."""
    if isinstance(extension, LeakyReRoPE):
        w, k = extension.window, extension.leak
        return i - j if i - j <= w else w + (i - j - w) / k
    if isinstance(extension, ReRoPE):
        return min(i - j, extension.window)
    if isinstance(extension, SelfExtend):
        w, g = extension.window, extension.group
        return i - j if i - j < w else i // g + w - w // g - j // g
    s, c = extension.chunk, extension.chunk - extension.local
    if i // c == j // c:
        p = i % c
    elif i // c == j // c + 1:
        p = min(i % c + c, s)
    else:
        p = min(2 * c - 1, s)
    return p - j % c


def oracle(rope, extension, q, k, v, positions, hidden, log_n, gain):
    """Attention by a rotation of its own for every pair, as complex numbers; positions [batch, tokens]."""
    base, half = rope.base, rope.width // 2
    waves = torch.tensor([base ** (-t / half) for t in range(half)], dtype=torch.float64)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))

    def numbers(x):
        turned = x[..., : 2 * half]
        if rope.pairing == "interleaved":
            return torch.complex(turned[..., 0::2], turned[..., 1::2])
        return torch.complex(turned[..., :half], turned[..., half:])

    out = []
    for b, row in enumerate(positions.long().tolist()):
        away = torch.tensor([[apart(extension, i, j) for j in row] for i in row], dtype=torch.float64)
        spin = torch.polar(torch.ones_like(away)[..., None].expand(-1, -1, half), away[..., None] * waves)
        product = torch.einsum("hip,hjp,ijp->hij", numbers(q[b]), numbers(k[b]).conj(), spin).real * gain**2
        logits = (product + q[b, ..., 2 * half :] @ k[b, ..., 2 * half :].mT) * SCALE
        if log_n:
            grown = [max(1.0, math.log(p + 1) / math.log(LENGTH)) for p in row]
            logits = logits * torch.tensor(grown, dtype=torch.float64)[:, None]
        seen = torch.ones(len(row), len(row), dtype=torch.bool).tril()
        seen[:, : hidden[b]] = False
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
        out.append(weights @ v[b])
    return torch.stack(out)


def drawn(tokens=TOKENS, grad=False):
    torch.manual_seed(0)
    return [torch.randn(2, n, tokens, 8, dtype=torch.float64, requires_grad=grad) for n in (4, 2, 2)]


def attended(rope, kernel, q, k, v, positions, mask, extent):
    """As in a model: the factor of each query goes onto the queries."""
    positions = positions.to(q.dtype)
    told = rope(positions[..., None], positions[..., None], extent)
    assert told.rotation is None
    assert isinstance(told.bias, Logits)
    if isinstance(told.scale, torch.Tensor):
        q = q * told.scale.to(q.dtype).view(-1, 1, told.scale.shape[-1], 1)
    return kernel(rope.geometry)(q, k, v, bias=told.bias, mask=mask, scale=SCALE)


kinds = pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (RoPE, {}),
        (RoPE, {"fraction": 0.5, "pairing": "interleaved"}),
        (pRoPE, {"fraction": 1.0, "pairing": "interleaved"}),
    ],
)


def proven(rope, name, kernel, positions, mask):
    """Values and gradients, given where the tokens of all examples stand, or of each."""
    extension = rope.relocation
    gain = extension.gain(TOKENS)
    if name == "DualChunk":
        assert gain == pytest.approx(0.05 * math.log(TOKENS / LENGTH) + 1)
    leaves = drawn(grad=True)
    found = attended(rope, kernel, *leaves, positions, mask, TOKENS)
    hidden = [0, 0] if mask.padding is None else mask.padding.tolist()
    expected = oracle(rope, extension, *leaves, positions.expand(2, -1), hidden, extension.log_n, gain)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    push = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slopes, right = (torch.autograd.grad(out, leaves, push) for out in (found, expected))
    torch.testing.assert_close(slopes, right, atol=1e-8, rtol=0)


@each
@pytest.mark.parametrize("kernel", KERNELS)
@kinds
def test_values_and_gradients_are_those_of_the_oracle(shape, name, kernel, kind, changes):
    """Grouped heads, left padding, and positions that differ between rows."""
    rope = kind(shape(heads=4, kv_heads=2, length=(LENGTH,)), base=100.0, extension=OTHERS[name], **changes).double()
    hidden = torch.tensor([11, 0])
    positions = (torch.arange(float(TOKENS)) - hidden[:, None]).clamp(min=0)
    proven(rope, name, KERNELS[kernel], positions, Mask(causal=True, padding=hidden))


@each
@kinds
@pytest.mark.parametrize("width", [5, 16, 512])
def test_tiles_are_those_of_the_oracle(shape, monkeypatch, name, kind, changes, width):
    """Positions that all rows have in common: tiles in one band, in two and in three."""
    met = []

    class Watched(scores.Band):
        def __init__(self, of, width):
            super().__init__(of, width)
            met.append(len(self.parts))

    monkeypatch.setattr(scores, "Band", Watched)
    monkeypatch.setattr(tiles, "room", lambda device: (width, 2**8))
    rope = kind(shape(heads=4, kv_heads=2, length=(LENGTH,)), base=100.0, extension=OTHERS[name], **changes).double()
    proven(rope, name, KERNELS["Tiled"], torch.arange(float(TOKENS)), Mask(causal=True))
    assert max(met) > 1
    assert 1 in met or width == 512


@each
@pytest.mark.parametrize(
    "mask",
    [
        Mask(),
        Mask(causal=True, offset=23),
        Mask(causal=True, window=9),
        Mask(causal=True, window=9, sinks=2),
        Mask(causal=True, documents=(torch.arange(TOKENS)[None] // 25).expand(2, -1)),
        Mask(causal=True, padding=torch.tensor([5, 0])),
    ],
    ids=["none", "offset", "window", "sinks", "documents", "padding"],
)
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_tiles_are_eager_s(shape, monkeypatch, name, mask, kind):
    """Under every mask; of some new tokens more than a block; of the heads that a process has; in half precision."""
    monkeypatch.setattr(tiles, "room", lambda device: (16, 2**8))
    rope = RoPE(shape(heads=4, kv_heads=2, length=(LENGTH,)), base=100.0, extension=OTHERS[name]).to(
        torch.promote_types(kind, torch.float32)
    )
    at = torch.arange(float(TOKENS), dtype=torch.promote_types(kind, torch.float32))[:, None]
    bias = rope(at[mask.offset :], at, TOKENS).bias.heads(2, 4)
    q, k, v = (x.to(kind) for x in drawn())
    leaves = [x.detach().requires_grad_() for x in (q[:, 2:, mask.offset :], k[:, 1:], v[:, 1:])]
    found, expected = (
        made(rope.geometry)(*leaves, bias=bias, mask=mask, scale=SCALE) for made in (KERNELS["Tiled"], Eager)
    )
    room = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}[kind]
    assert found.dtype == kind
    torch.testing.assert_close(found, expected, atol=room, rtol=0)
    push = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(kind)
    slopes, right = (torch.autograd.grad(out, leaves, push) for out in (found, expected))
    torch.testing.assert_close(slopes, right, atol=4 * room, rtol=2e-2 if kind == torch.bfloat16 else 0)
    only = [x.detach().requires_grad_(number == 1) for number, x in enumerate(leaves)]
    again = KERNELS["Tiled"](rope.geometry)(*only, bias=bias, mask=mask, scale=SCALE)
    torch.testing.assert_close(torch.autograd.grad(again, only[1], push)[0], slopes[1], atol=0, rtol=0)


def test_the_oracle_notices_a_distance(shape):
    rope = RoPE(shape(heads=4, kv_heads=2, length=(LENGTH,)), base=100.0, extension=ReRoPE).double()
    positions, other = torch.arange(float(TOKENS)).expand(2, -1), ReRoPE(series(), window=5)
    found = attended(rope, Eager, *drawn(), positions, Mask(causal=True), TOKENS)
    assert (found - oracle(rope, other, *drawn(), positions, [0, 0], True, 1.0)).abs().max() > 1e-3


@each
def test_distances_by_loops(name):
    extension = OTHERS[name](series())
    at = torch.arange(100, dtype=torch.float64)
    found = extension.distances(at[20:], at, 100)
    expected = [[apart(extension, i, j) for j in range(100)] for i in range(20, 100)]
    past = torch.ones(80, 100, dtype=torch.bool).tril(20)
    torch.testing.assert_close(found[past], torch.tensor(expected, dtype=torch.float64)[past])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("length", [4, 7, 16, 33, 128])
@pytest.mark.parametrize("factor", [1, 1.5, 4, 7.3])
def test_no_distance_exceeds_those_of_training(name, length, factor):
    kind = getattr(METHODS[name], "func", METHODS[name])
    extension = (
        partial(kind, factor=factor)(series(length)) if kind in (LeakyReRoPE, SelfExtend) else kind(series(length))
    )
    reach = math.floor(factor * length)
    at = torch.arange(reach, dtype=torch.float64)
    found = extension.distances(at, at, reach)[torch.ones(reach, reach, dtype=torch.bool).tril()]
    assert found.max() <= length - 1 + 1e-9
    assert found.min() >= 0
    if getattr(extension, "window", 2) > 1:
        near = extension.distances(at[1:], at, reach).diagonal()
        assert ((near - 1).abs() < 1e-9).all(), "neighbours are neighbours"


# Defaults.


def test_windows_are_a_quarter_and_chunks_follow_the_fractions():
    llama = series(4096)
    assert ReRoPE(llama).window == LeakyReRoPE(llama, factor=8).window == SelfExtend(llama, factor=8).window == 1024
    chunk = DualChunk(llama)
    assert (chunk.chunk, chunk.local) == (3072, 512)
    assert ReRoPE(series(2)).window == 1
    small = DualChunk(series(2))
    assert (small.chunk, small.local) == (1, 0)
    assert DualChunk(llama, chunk=100).local == 99, "what a short chunk has room for"


@pytest.mark.parametrize(
    ("length", "factor", "window", "group"),
    [
        (4096, 8, 1024, 11),  # (4096 - 1024) 11 + 1024 = 34816
        (4096, 15800 / 4096, 1024, 5),  # the authors' example
        (4096, 1, 1024, 1),
        (128, 4, 32, 6),  # (128 - 32) 5 + 32 = 512 by the paper, and a pair at distance 128
        (128, 3.75, 40, 5),  # 5 divides 40: (128 - 40) 5 + 40 = 480
    ],
)
def test_the_least_group_that_reaches(length, factor, window, group):
    found = SelfExtend(series(length), factor=factor, window=window)
    assert found.group == group
    reach = torch.tensor([factor * length - 1], dtype=torch.float64)
    if group > 1:
        with pytest.raises(ZooError, match=f"Give {group}, or leave it out"):
            SelfExtend(series(length), factor=factor, window=window, group=group - 1)
        one = SelfExtend(series(length), factor=1, window=window, group=group - 1)
        assert one.distances(reach, torch.zeros(1, dtype=torch.float64), 10**6) > length - 1


def test_a_group_that_just_reaches_does_so_after_a_division():
    """The factor comes from two lengths, and its product with one of them may be a hair above the other."""
    for length in range(8, 400):
        for group in range(1, 12):
            reach = longest(length, length // 4, group)
            assert SelfExtend(series(length), factor=reach / length).group <= group


@pytest.mark.parametrize(
    ("extension", "relative"),
    [
        (ReRoPE(series()), False),
        (ReRoPE(series(), log_n=False), True),
        (LeakyReRoPE(series(), factor=2), False),
        (LeakyReRoPE(series(), factor=2, log_n=False), True),
        (SelfExtend(series(), factor=2), False),
        (SelfExtend(series(), factor=1), True),
        (SelfExtend(series(), factor=1, log_n=True), False),
        (DualChunk(series()), False),
    ],
)
def test_which_are_relative(shape, extension, relative):
    """Far from the origin, where the logarithm grows, and across groups and chunks."""
    rope = RoPE(shape(heads=4, kv_heads=2, length=(LENGTH,)), extension=lambda _: extension).double()
    assert rope.relative == relative
    at = torch.arange(float(TOKENS))
    still, moved = (attended(rope, Eager, *drawn(), at + by, Mask(causal=True), 4 * TOKENS) for by in (0, 101))
    assert bool((still - moved).abs().max() < 1e-9) == relative


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_the_least_leak(factor):
    extension = LeakyReRoPE(series(4096), factor=factor)
    last, zero = torch.tensor([4096.0 * factor - 1], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert extension.distances(last, zero, 10**6).item() == pytest.approx(4095, abs=1e-6)
    assert extension.leak == pytest.approx((4096 * factor - 1025) / 3071)
    assert factor == 1 or 1024 + (4096 * factor - 1024) / extension.leak < 4096, "the repository's condition"
    assert LeakyReRoPE(series(4096), factor=factor, leak=16).leak == 16


# What stays as it is.


@pytest.mark.parametrize(
    ("name", "tokens"), [("ReRoPE", 5), ("LeakyReRoPE", 5), ("SelfExtend", 4), ("DualChunk", LENGTH), ("inner", 10)]
)
def test_near_tokens_are_those_of_plain_rope(shape, name, tokens):
    """`inner`: a chunk of a longer request, wherever it begins."""
    extension = METHODS.get(name) or partial(DualChunk, attention=1.0)
    geometry = shape(heads=4, kv_heads=2, length=(LENGTH,))
    plain, longer = (RoPE(geometry, extension=each).double() for each in (None, extension))
    extent, start = (TOKENS, 20) if name == "inner" else (LENGTH, 0)
    q, k, v = (x[:, :, :tokens] for x in drawn())
    at = torch.arange(float(start), float(start + tokens))
    found = attended(longer, Eager, q, k, v, at, Mask(causal=True), extent)
    a, b = plain(at[:, None], at[:, None], extent).rotation(q, k)
    torch.testing.assert_close(found, Eager(geometry)(a, b, v, mask=Mask(causal=True), scale=SCALE), atol=1e-12, rtol=0)
    if name == "inner":
        assert DualChunk(series()).chunk - DualChunk(series()).local == tokens
        other = attended(longer, Eager, q, k, v, at + 6, Mask(causal=True), extent)
        assert (found - other).abs().max() > 1e-3, "a cut between them"


def test_a_chunked_request_of_the_trained_length_is_not_cut():
    extension, at = DualChunk(series()), torch.arange(32.0)
    assert torch.equal(extension.distances(at[:16], at[:16], 16), at[:16, None] - at[:16])
    assert not torch.equal(extension.distances(at[:16], at[:16], 17), at[:16, None] - at[:16])
    assert extension.gain(16) == 1
    assert extension.gain(17) > 1
    assert DualChunk(series(), attention=1.5).gain(16) == 1
    assert DualChunk(series(), attention=1.5).gain(17) == 1.5


@pytest.mark.parametrize("name", METHODS)
def test_a_cache_holds_plain_keys_and_continues_any_cut(name):
    torch.manual_seed(3)
    size = {"vocabulary": 32, "length": LENGTH, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "std": 0.3}
    model = Decoder(position=partial(RoPE, extension=METHODS[name]), kernel=Tiled, **size).double().eval()
    tokens, padding = torch.arange(2 * 60).view(2, 60) * 7 % 32, torch.tensor([9, 0])
    with torch.no_grad():
        full = model(tokens, extent=64, padding=padding)
        cache = Cache(64)
        steps = [model(part, cache=cache, padding=padding) for part in tokens.split([21, 1, 1, 30, 1, 6], 1)]
        together = torch.cat(steps, 1)
        # That row alone, all at once, and read layer by layer.
        alone = model(tokens[:1, 9:], extent=64)
        read = model.head(model.read(tokens[:1, 9:], extent=64, rows=13))
        first = model.trunk.blocks[0]
        keys = first.attention.qkv(first.norm1(model.embedding(tokens)))[..., 32:48].unflatten(-1, (2, 8))
    torch.testing.assert_close(together[0, 9:], full[0, 9:], atol=1e-10, rtol=0)
    torch.testing.assert_close(together[1], full[1], atol=1e-10, rtol=0)
    torch.testing.assert_close(alone[0], full[0, 9:], atol=1e-10, rtol=0)
    torch.testing.assert_close(read, alone, atol=1e-10, rtol=0)
    torch.testing.assert_close(cache.buffers[0][0][:, :, :60], keys.transpose(1, 2), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("far", "length", "room"), [(1_000_000, 250_000, 1e-6), (70_000, LENGTH, 5e-3)])
def test_far_positions_are_exact(shape, name, far, length, room):
    """Float32 angles up to 131 072 positions; float64 beyond, and in the maps that divide positions."""
    kind = getattr(METHODS[name], "func", METHODS[name])
    stretched = kind in (LeakyReRoPE, SelfExtend)
    rope = RoPE(shape(length=(length,)), extension=partial(kind, factor=far / length) if stretched else kind)
    at = torch.arange(far - 60, far).float()[:, None]
    found = rope(at, at, far).bias.tensors[2:]
    gain = rope.relocation.gain(far)
    waves = rope.frequencies.double()
    for number, band in enumerate(rope.relocation.bands(far)):
        for side, where in enumerate((band.queries, band.keys)):
            angle = where(at.double()) * waves
            for table, right in zip(found[4 * number + 2 * side :], (angle.cos(), angle.sin()), strict=False):
                assert table.dtype == torch.float32
                torch.testing.assert_close(table[0, 0].double(), gain * right, atol=room, rtol=0)


# What it costs.


def test_most_logits_are_made_once(shape, monkeypatch):
    """Of whole rows a band is made for the columns that it holds; keys are rotated as often as columns are made."""
    made, apply = [], Rotation.apply

    def counted(self, x):
        made.append(x.shape)
        return apply(self, x)

    def by_rows(geometry):
        return lambda q, k, v, **job: rowwise(q, k, v, block=block, **job)

    monkeypatch.setattr(Rotation, "apply", counted)
    tokens, block, window = 256, 16, 16
    rope = RoPE(shape(heads=2, length=(64,)), extension=partial(ReRoPE, window=window))
    q, k, v = torch.randn(3, 1, 2, tokens, 8).unbind(0)
    at = torch.arange(float(tokens))
    whole = attended(rope, by_rows, q, k, v, at, Mask(causal=True), tokens)
    pairs = sum(rows[2] * columns[2] for rows, columns in zip(made[::2], made[1::2], strict=True))
    once = sum(block * stop for stop in range(block, tokens + 1, block))
    assert once <= pairs <= once + tokens * (window + 2 * block)
    assert pairs < 1.5 * once
    made.clear()
    attended(rope, by_rows, *(x[:, :, :16] for x in (q, k, v)), at[:16], Mask(causal=True), 256)
    assert len(made) == 2, "no pair is far, so nothing is made for far ones"
    made.clear()
    attended(rope, by_rows, q, k, v, at, Mask(causal=True, window=window), tokens)
    assert len(made) == 2 * tokens // block, "what the mask hides is not made"
    made.clear()
    cut = attended(rope, lambda g: Tiled(g, block=block), q, k, v, at, Mask(causal=True), tokens)
    assert len(made) == 4, "by tiles, queries and keys are rotated once for each band"
    torch.testing.assert_close(cut, whole)


# Where it goes.


def test_who_takes_them():
    for kind in (ReRoPE, LeakyReRoPE, SelfExtend, DualChunk):
        assert issubclass(kind, taken(RoPE))
        assert issubclass(kind, taken(pRoPE))
        assert not issubclass(kind, taken(PoPE))


def test_auto_takes_tiled_and_others_are_refused_with_a_reason(caplog):
    size = {"vocabulary": 9, "length": 8, "dim": 16, "layers": 1, "heads": 2}
    position = partial(RoPE, extension=METHODS["SelfExtend"])
    for name in ("SDPA", "Flex", "Cosine"):
        with pytest.raises(ZooError, match=f"{name} cannot carry the bias of the position encoding RoPE") as error:
            Decoder(position=position, kernel=plugins.load("zoo.kernels", name), **size)
        assert "Logits bias" in str(error.value)
        assert "Tiled" in str(error.value)
    say.cache_clear()
    with caplog.at_level(logging.INFO, logger="zoo"):
        Decoder(position=position, **size)(torch.zeros(1, 20, dtype=torch.long))
    assert "Auto chose Tiled" in caplog.text


def test_the_matrix_shows_them():
    cells = {(cell.position, cell.kernel): cell for cell in mapped()}
    for method in METHODS:
        for owner in ("RoPE", "pRoPE"):
            assert not cells[f"{owner} + {method}", "Tiled"].reasons
            assert cells[f"{owner} + {method}", "SDPA"].reasons == (
                f"{method} adds a Logits bias; SDPA carries a Dense bias.",
            )
    assert not [name for name, _ in cells if name.endswith("+ YaRN")]
    document, text = tables.matrix()
    assert any(row["position"] == "RoPE + SelfExtend" and row["works"] for row in document)
    assert "RoPE + DualChunk" in text.partition("extended by a map of the logits")[2]


def test_a_model_learns_through_them():
    """Fine-tuning: the gradient of every weight is there, and a step lowers the loss."""
    for extension in METHODS.values():
        torch.manual_seed(0)
        model = Decoder(vocabulary=16, length=8, dim=16, layers=2, heads=2, position=partial(RoPE, extension=extension))
        optimizer, tokens, losses = (
            torch.optim.AdamW(model.parameters(), lr=1e-2),
            torch.arange(64).view(2, 32) % 16,
            [],
        )
        for _ in range(4):
            logits = model(tokens[:, :-1], extent=32)
            losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
            optimizer.zero_grad()
            losses[-1].backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
            optimizer.step()
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ReRoPE(series(), window=16), "window is 1 to 15 positions.*got 16.*extension.window 4"),
        (lambda: ReRoPE(series(), window=0), "got 0"),
        (lambda: ReRoPE(series(1)), "a trained length of 1"),
        (lambda: LeakyReRoPE(series(), factor=0.5), "1 or more; got 0.5"),
        (lambda: LeakyReRoPE(series(), factor=4, window=15), "1 to 14"),
        (lambda: LeakyReRoPE(series(), factor=4, leak=2.0), "beyond the 15 of training.*Give 5.364 or more"),
        (lambda: LeakyReRoPE(series(), factor=1, leak=math.nan), "leak of nan"),
        (lambda: LeakyReRoPE(series(2), factor=2), "a trained length of 3"),
        (lambda: SelfExtend(series(), factor=math.inf), "1 or more; got inf"),
        (lambda: SelfExtend(series(), factor=4, window=16), "1 to 15"),
        (lambda: SelfExtend(series(), factor=4, group=0), "groups of 0"),
        (lambda: SelfExtend(series(), factor=4, group=2), "does not reach 64 tokens within the 16.*extension.group"),
        (lambda: DualChunk(series(), chunk=16), "chunk is 1 to 15"),
        (lambda: DualChunk(series(), local=12), "local is 0 to 11"),
        (lambda: DualChunk(series(), attention=0.0), "above 0; got 0"),
        (lambda: SelfExtend(series(axes=2), factor=2), "2 axes.*extension Linear"),
    ],
)
def test_bad_numbers(make, says):
    with pytest.raises(ZooError, match=says):
        make()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"causal": False}, "looks both ways.*extension Linear"),
        ({"prefix": 2}, "2 prefix tokens"),
        ({"length": (4, 4), "causal": False}, "2 axes"),
    ],
)
def test_models_that_it_does_not_serve(shape, changes, says):
    with pytest.raises(ZooError, match=says):
        RoPE(shape(**changes), extension=ReRoPE)
