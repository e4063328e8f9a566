"""Fourier integral attention in Triton: one kernel forward, and two backward, of which one can do both halves.

The logit p sum_c ln|sinc(a_c - b_c)| is no matrix product, so arithmetic bounds these kernels, and what counts is
instructions for each pair and channel. A product of eight factors takes one logarithm. Forward, a factor is a series
near 0, where sin u / u cancels, and the hardware's sine elsewhere; without FAST it is the sine of u less its nearest
multiple of pi, as a polynomial. Backward, cot u - 1/u has a polynomial of the same remainder, with one reciprocal.

Queries and keys lie transposed, [batch x heads, channels, tokens], with zeros behind the last channel and token. Logits
are to the base of two; forward keeps the logarithm of each row's sum (`LEVEL`) and backward makes the weights anew.
Gradients of queries and keys are added to memory tile by tile. Where one program owns the tokens, the same thread adds
to the same place in the order of its loop, so the sum has an order; `columns` gives that up where it does ROWS as well.

LIVE of TERMS are no padding. LOW and HIGH are the least and the greatest j - i that are seen; the first SINKS keys are
seen up to CAP.
"""

# Triton's own types cannot be told to mypy, and kernels name in capitals what does not change during a launch.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import math

import triton
import triton.language as tl

GROUP = tl.constexpr(8)
"""Factors to a logarithm: their denominators are above 0.5^8, and a product of sines is rarely below `TINY`."""
TINY = tl.constexpr(1e-36)
HUGE = tl.constexpr(1e36)
LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))
PI = tl.constexpr(3.1415927410125732)
"""The float32 nearest to pi; `REST` is what it lacks."""
REST = tl.constexpr(-8.742278012618954e-08)
HALF = tl.constexpr(1.5707963705062866)
TURN = tl.constexpr(1 / math.pi)
ROUND = tl.constexpr(1.5 * 2**23)
"""Added and subtracted, it rounds a float32 to a whole number."""
INTERPRETED = triton.knobs.runtime.interpret
"""Kernels run on the CPU, by NumPy: for tests, and without assembly. So TRITON_INTERPRET says at import."""


@triton.jit
def sine(x):
    """The hardware's sine."""
    return tl.inline_asm_elementwise("sin.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def log2(x, FAST: tl.constexpr):
    """log2, the hardware's or a library's."""
    if FAST:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.log2(x)


@triton.jit
def inverse(x, FAST: tl.constexpr):
    """1 / x, the hardware's or divided."""
    if FAST:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return 1.0 / x


@triton.jit
def root(x, FAST: tl.constexpr):
    """The square root, the hardware's or a library's."""
    if FAST:
        return tl.inline_asm_elementwise("sqrt.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.sqrt(x)


@triton.jit
def turns(u):
    """k and u - k pi, for the whole number k that brings it nearest to 0; some r beyond 1e7, where there is none."""
    k = (u * TURN + ROUND) - ROUND
    r = (u - k * PI) - k * REST
    r = tl.minimum(r, HALF, propagate_nan=tl.PropagateNan.ALL)
    return k, tl.maximum(r, -HALF, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def factor(u, square, FAST: tl.constexpr):
    """Numerator and denominator of +-sinc u; the denominator is 1 near 0."""
    if FAST:
        # The hardware's sine of a large u is off by about a rounding of u, as the difference of float32 a and b is
        # anyway: to take multiples of pi away first would cost a quarter more and help logits that weigh nothing.
        near = square < 0.25
        top = 1.0 + square * (-1 / 6 + square * (1 / 120 - square * (1 / 5040)))
        return tl.where(near, top, sine(u)), tl.where(near, 1.0, u)
    else:
        k, r = turns(u)
        s = r * r
        # sin r / r up to pi / 2, with a relative error of 6e-9 at most.
        top = 8.333065431637355e-3 + s * (-1.980953907228087e-4 + s * 2.6056313236192623e-6)
        top = 1.0 + s * (-0.16666659521255697 + s * top)
        return tl.where(k == 0.0, top, top * r), tl.where(k == 0.0, 1.0, u)


@triton.jit
def slope(u, RADIAL: tl.constexpr, FAST: tl.constexpr):
    """cot u - 1/u, or that over u if RADIAL; neither cancels near 0."""
    k, r = turns(u)
    s = r * r
    # (cot r - 1/r) / r up to pi / 2, with a relative error of 1.3e-8 at most.
    q = -2.4075535796178013e-5 + s * (-6.961105097927875e-7 + s * -5.813422673240756e-7)
    q = -0.022222057251940597 + s * (-2.1174472930794302e-3 + s * (-2.0918452880027476e-4 + s * q))
    q = -0.33333333755225636 + s * q
    # cot u - 1/u is r q + 1/r - 1/u, and the difference of the last two k pi / (r u); r is never 0 unless u is.
    far = k * PI + s * (q * u)
    if RADIAL:
        return tl.where(k == 0.0, q, far * inverse(r * u * u, FAST))
    else:
        return far * inverse(r * u + 1e-20, FAST)


@triton.jit
def apart(A, B, i, j, term, MP, NP, RADIAL: tl.constexpr, FAST: tl.constexpr):
    """u of one term, its square, and how far the channels (one, or two if RADIAL) are apart; A and B point to heads."""
    if RADIAL:
        x = tl.load(A + 2 * term * MP + i)[:, None] - tl.load(B + 2 * term * NP + j)[None, :]
        y = tl.load(A + (2 * term + 1) * MP + i)[:, None] - tl.load(B + (2 * term + 1) * NP + j)[None, :]
        square = x * x + y * y
        return root(square, FAST), square, x, y
    else:
        u = tl.load(A + term * MP + i)[:, None] - tl.load(B + term * NP + j)[None, :]
        return u, u * u, u, u


@triton.jit
def logs(A, B, i, j, MP, NP, TERMS: tl.constexpr, RADIAL: tl.constexpr, FAST: tl.constexpr):
    """Sum over the terms of log2 |sinc u|."""
    total = tl.zeros([i.shape[0], j.shape[0]], tl.float32)
    for first in range(0, TERMS, GROUP):
        num = tl.full(total.shape, 1.0, tl.float32)
        den = tl.full(total.shape, 1.0, tl.float32)
        for k in tl.static_range(GROUP):
            u, square, _, _ = apart(A, B, i, j, first + k, MP, NP, RADIAL, FAST)
            top, bottom = factor(u, square, FAST)
            num *= top
            den *= bottom
        num = tl.maximum(tl.abs(num), TINY, propagate_nan=tl.PropagateNan.ALL)
        den = tl.minimum(tl.abs(den), HUGE)
        total += log2(num, FAST) - log2(den, FAST)
    return total


@triton.jit
def added(total, rate, LINE, i, j, M, N):
    """Logits to the base of two; LINE points to a head, or is None."""
    logits = total * rate
    if LINE is not None:
        inside = (i < M)[:, None] & (j < N)[None, :]
        logits += tl.load(LINE + (j[None, :] - i[:, None] + M - 1), mask=inside, other=0.0) * LOG2E
    return logits


@triton.jit
def seen(i, j, example, M, N, OFFSET, LOW, HIGH, SINKS, CAP, DOCUMENTS, PADDING):
    """Which pairs the mask leaves."""
    ahead = j[None, :] - i[:, None]
    first = 0
    if PADDING is not None:
        first = tl.load(PADDING + example).to(tl.int32)
    found = ((ahead >= LOW) & (ahead <= HIGH)) | ((j < first + SINKS)[None, :] & (ahead <= CAP))
    found = found & (i < M)[:, None] & ((j >= first) & (j < N))[None, :]
    if DOCUMENTS is not None:
        here = DOCUMENTS + example.to(tl.int64) * N
        mine = tl.load(here + i + OFFSET, mask=(i < M) & (i + OFFSET < N), other=0)
        found = found & (mine[:, None] == tl.load(here + j, mask=j < N, other=0)[None, :])
    return found


@triton.jit
def share(X, owner, token, T, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """[tokens, WIDE] of a contiguous [owners, T, WIDTH], with zeros behind both; and where that is."""
    channel = tl.arange(0, WIDE)
    at = X + owner.to(tl.int64) * T * WIDTH + token[:, None] * WIDTH + channel[None, :]
    inside = (token < T)[:, None] & (channel < WIDTH)[None, :]
    return at, inside


@triton.jit
def diagonals(x, SIZE: tl.constexpr):
    """Sums of a square x where j - i is c, and where it is c - SIZE, for c = 0 ... SIZE - 1."""
    along = tl.arange(0, SIZE)[:, None] + tl.arange(0, SIZE)[None, :]
    skew = tl.gather(x, along & (SIZE - 1), 1)
    return tl.sum(tl.where(along < SIZE, skew, 0.0), 0), tl.sum(tl.where(along < SIZE, 0.0, skew), 0)


@triton.jit
def spread(
    A, B, DA, DB, i, j, ds, MP, NP, LIVE: tl.constexpr, RADIAL: tl.constexpr, FAST: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add to DA and DB what the gradient of a tile's logits gives."""
    for term in range(LIVE):
        u, _, x, y = apart(A, B, i, j, term, MP, NP, RADIAL, FAST)
        pull = ds * slope(u, RADIAL, FAST)
        if RADIAL:
            if ROWS:
                tl.atomic_add(DA + 2 * term * MP + i, tl.sum(pull * x, 1), sem="relaxed")
                tl.atomic_add(DA + (2 * term + 1) * MP + i, tl.sum(pull * y, 1), sem="relaxed")
            if COLUMNS:
                tl.atomic_add(DB + 2 * term * NP + j, -tl.sum(pull * x, 0), sem="relaxed")
                tl.atomic_add(DB + (2 * term + 1) * NP + j, -tl.sum(pull * y, 0), sem="relaxed")
        else:
            if ROWS:
                tl.atomic_add(DA + term * MP + i, tl.sum(pull, 1), sem="relaxed")
            if COLUMNS:
                tl.atomic_add(DB + term * NP + j, -tl.sum(pull, 0), sem="relaxed")


@triton.jit(do_not_specialize=["OFFSET", "LOW", "HIGH", "SINKS", "CAP", "NULL"])
def forward(
    A, B, V, RATE, LINE, OUT, LEVEL, DOCUMENTS, PADDING, M, N, MP, NP, HEADS, GROUPS,
    OFFSET, LOW, HIGH, SINKS, CAP, NULL,
    LIVE: tl.constexpr, TERMS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
    RADIAL: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A program owns SIZE queries of a head and goes over the keys."""
    tiles = MP // SIZE
    owner = tl.program_id(0) // tiles
    head, example = owner % HEADS, owner // HEADS
    group = example * GROUPS + head * GROUPS // HEADS
    i0 = (tiles - 1 - tl.program_id(0) % tiles) * SIZE  # under causality the last have most to do, and go first
    i = i0 + tl.arange(0, SIZE)
    A += owner.to(tl.int64) * CHANNELS * MP
    B += group.to(tl.int64) * CHANNELS * NP
    rate = tl.load(RATE + head)
    if LINE is not None:
        LINE += head * (M + N - 1)
    start, stop = tl.maximum(i0 + LOW, 0), tl.minimum(i0 + SIZE + HIGH, N)
    if SINKS > 0:
        start, stop = start * 0, tl.minimum(i0 + SIZE + tl.maximum(HIGH, CAP), N)

    high = tl.zeros([SIZE], tl.float32) + NULL  # minus infinity without a null logit
    total = tl.where(high > float("-inf"), 1.0, 0.0)
    mean = tl.zeros([SIZE, WIDE], tl.float32)
    for j0 in range(start // SIZE * SIZE, stop, SIZE):
        j = j0 + tl.arange(0, SIZE)
        logits = added(logs(A, B, i, j, MP, NP, TERMS, RADIAL, FAST), rate, LINE, i, j, M, N)
        visible = seen(i, j, example, M, N, OFFSET, LOW, HIGH, SINKS, CAP, DOCUMENTS, PADDING)
        logits = tl.where(visible, logits, float("-inf"))
        now = tl.maximum(high, tl.max(logits, 1))
        ground = tl.where(now == float("-inf"), 0.0, now)
        weights = tl.exp2(logits - ground[:, None])
        fade = tl.exp2(high - ground)
        total = total * fade + tl.sum(weights, 1)
        at, inside = share(V, group, j, N, WIDTH, WIDE)
        v = tl.load(at, mask=inside, other=0.0)
        mean = tl.dot(weights.to(v.dtype), v, mean * fade[:, None], input_precision=PRECISION)
        high = now
    # A row that sees nothing gives 0, and weights of 0 backward; a NaN stays one.
    mean = mean / tl.where(total == 0.0, 1.0, total)[:, None]
    at, inside = share(OUT, owner, i, M, WIDTH, WIDE)
    tl.store(at, mean.to(OUT.dtype.element_ty), mask=inside)
    level = tl.where(total == 0.0, float("inf"), high + tl.log2(total))
    tl.store(LEVEL + owner.to(tl.int64) * MP + i, level)


@triton.jit(do_not_specialize=["OFFSET", "LOW", "HIGH", "SINKS", "CAP"])
def columns(
    A, B, V, RATE, LINE, DOWN, LEVEL, MEAN, DA, DB, DV, DRATE, DLINE, DOCUMENTS, PADDING, M, N, MP, NP, HEADS, GROUPS,
    OFFSET, LOW, HIGH, SINKS, CAP,
    LIVE: tl.constexpr, TERMS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
    RADIAL: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, for each query head; with ROWS of all else, the queries' and the line's unordered.

    A program owns SIZE keys and goes over the queries.
    """
    tiles = NP // SIZE
    owner = tl.program_id(0) // tiles
    head, example = owner % HEADS, owner // HEADS
    group = example * GROUPS + head * GROUPS // HEADS
    j0 = tl.program_id(0) % tiles * SIZE
    j = j0 + tl.arange(0, SIZE)
    A += owner.to(tl.int64) * CHANNELS * MP
    B += group.to(tl.int64) * CHANNELS * NP
    DA += owner.to(tl.int64) * CHANNELS * MP
    DB += owner.to(tl.int64) * CHANNELS * NP
    LEVEL += owner.to(tl.int64) * MP
    MEAN += owner.to(tl.int64) * MP
    rate = tl.load(RATE + head)
    if LINE is not None:
        LINE += head * (M + N - 1)
    first = 0
    if PADDING is not None:
        first = tl.load(PADDING + example).to(tl.int32)
    start, stop = tl.maximum(j0 - HIGH, 0), tl.minimum(j0 + SIZE - LOW, M)
    if j0 < first + SINKS:
        start, stop = tl.maximum(j0 - tl.maximum(HIGH, CAP), 0), M

    at, inside = share(V, group, j, N, WIDTH, WIDE)
    v = tl.load(at, mask=inside, other=0.0)
    dv = tl.zeros([SIZE, WIDE], tl.float32)
    drate = tl.zeros([SIZE], tl.float32)
    for i0 in range(start // SIZE * SIZE, stop, SIZE):
        i = i0 + tl.arange(0, SIZE)
        total = logs(A, B, i, j, MP, NP, TERMS, RADIAL, FAST)
        visible = seen(i, j, example, M, N, OFFSET, LOW, HIGH, SINKS, CAP, DOCUMENTS, PADDING)
        logits = tl.where(visible, added(total, rate, LINE, i, j, M, N), float("-inf"))
        weights = tl.exp2(logits - tl.load(LEVEL + i)[:, None])
        at, inside = share(DOWN, owner, i, M, WIDTH, WIDE)
        down = tl.load(at, mask=inside, other=0.0)
        dv = tl.dot(tl.trans(weights.to(down.dtype)), down, dv, input_precision=PRECISION)
        ds = tl.dot(down, tl.trans(v), input_precision=PRECISION) - tl.load(MEAN + i)[:, None]
        ds = ds * weights
        if ROWS:
            drate += tl.sum(ds * total, 0)
            if DLINE is not None:
                here, before = diagonals(ds, SIZE)
                place = j0 - i0 + tl.arange(0, SIZE) + M - 1
                into = DLINE + head * (M + N - 1) + place
                tl.atomic_add(into, here, mask=(place >= 0) & (place < M + N - 1), sem="relaxed")
                tl.atomic_add(into - SIZE, before, mask=(place >= SIZE) & (place < M + N - 1 + SIZE), sem="relaxed")
        spread(A, B, DA, DB, i, j, ds * rate, MP, NP, LIVE, RADIAL, FAST, ROWS, True)
    at, inside = share(DV, owner, j, N, WIDTH, WIDE)
    tl.store(at, dv, mask=inside)
    if ROWS:
        tl.store(DRATE + tl.program_id(0), tl.sum(drate, 0) * LN2)


@triton.jit(do_not_specialize=["OFFSET", "LOW", "HIGH", "SINKS", "CAP"])
def rows(
    A, B, V, RATE, LINE, DOWN, LEVEL, MEAN, DA, DRATE, DLINE, DOCUMENTS, PADDING, M, N, MP, NP, HEADS, GROUPS,
    OFFSET, LOW, HIGH, SINKS, CAP,
    LIVE: tl.constexpr, TERMS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
    RADIAL: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Gradients of queries, rate and line in a fixed order; DLINE is [batch x heads, tiles, M + N - 1] here.

    A program owns SIZE queries and goes over the keys, as in `forward`.
    """
    tiles = MP // SIZE
    owner = tl.program_id(0) // tiles
    head, example = owner % HEADS, owner // HEADS
    group = example * GROUPS + head * GROUPS // HEADS
    i0 = tl.program_id(0) % tiles * SIZE
    i = i0 + tl.arange(0, SIZE)
    A += owner.to(tl.int64) * CHANNELS * MP
    B += group.to(tl.int64) * CHANNELS * NP
    DA += owner.to(tl.int64) * CHANNELS * MP
    rate = tl.load(RATE + head)
    if LINE is not None:
        LINE += head * (M + N - 1)
    start, stop = tl.maximum(i0 + LOW, 0), tl.minimum(i0 + SIZE + HIGH, N)
    if SINKS > 0:
        start, stop = start * 0, tl.minimum(i0 + SIZE + tl.maximum(HIGH, CAP), N)
    start = start // SIZE * SIZE

    level, mean = tl.load(LEVEL + owner.to(tl.int64) * MP + i), tl.load(MEAN + owner.to(tl.int64) * MP + i)
    at, inside = share(DOWN, owner, i, M, WIDTH, WIDE)
    down = tl.load(at, mask=inside, other=0.0)
    drate = tl.zeros([SIZE], tl.float32)
    left = tl.zeros([SIZE], tl.float32)
    place = start - i0 + tl.arange(0, SIZE) + M - 1 - SIZE
    for j0 in range(start, stop, SIZE):
        j = j0 + tl.arange(0, SIZE)
        total = logs(A, B, i, j, MP, NP, TERMS, RADIAL, FAST)
        visible = seen(i, j, example, M, N, OFFSET, LOW, HIGH, SINKS, CAP, DOCUMENTS, PADDING)
        logits = tl.where(visible, added(total, rate, LINE, i, j, M, N), float("-inf"))
        weights = tl.exp2(logits - level[:, None])
        at, inside = share(V, group, j, N, WIDTH, WIDE)
        v = tl.load(at, mask=inside, other=0.0)
        ds = (tl.dot(down, tl.trans(v), input_precision=PRECISION) - mean[:, None]) * weights
        drate += tl.sum(ds * total, 1)
        if DLINE is not None:
            # A diagonal has a part in two neighbouring tiles; the first waits for the second.
            here, before = diagonals(ds, SIZE)
            into = DLINE + tl.program_id(0).to(tl.int64) * (M + N - 1) + place
            tl.store(into, left + before, mask=(place >= 0) & (place < M + N - 1))
            left = here
            place += SIZE
        spread(A, B, DA, DA, i, j, ds * rate, MP, NP, LIVE, RADIAL, FAST, True, False)
    if DLINE is not None:
        into = DLINE + tl.program_id(0).to(tl.int64) * (M + N - 1) + place
        tl.store(into, left, mask=(place >= 0) & (place < M + N - 1))
    tl.store(DRATE + tl.program_id(0), tl.sum(drate, 0) * LN2)
