"""FoPE: the acceptance list of its specification, in both dialects."""

import io
import logging
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from zoo_positions.rope import FoPE, RoPE
from zoo_positions.rope.fope import warn

from zoo.errors import ZooError


def column(*positions: float) -> torch.Tensor:
    return torch.tensor(positions, dtype=torch.float32).unsqueeze(-1)


def draw(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_production_dialect_draws_nothing_in_vain(shape):
    torch.manual_seed(7)
    fope = FoPE(shape(heads=4, kv_heads=2), gain=0.5)
    torch.manual_seed(7)
    for coef in (fope.sin_coef, fope.cos_coef):
        assert torch.equal(coef, torch.eye(2) + nn.init.xavier_normal_(torch.empty(2, 2, 2), 0.5))


@pytest.mark.parametrize(
    ("heads", "width", "floor", "kept", "series", "anchored"),
    [
        (8, 64, 512, 16, 16, 16),
        (8, 64, 1024, 18, 16, 9),
        (8, 128, 512, 31, 31, 31),
        (8, 128, 1024, 36, 32, 18),
        (16, 128, 512, 31, 31, 31),
        (16, 128, 1024, 36, 32, 18),
        (2, 64, 2048, 21, 16, 11),
        (2, 64, 4096, 23, 16, 12),
        (2, 128, 4096, 46, 32, 23),
    ],
)
def test_sizes_of_the_paper_dialect(shape, caplog, heads, width, floor, kept, series, anchored):
    warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        fope = FoPE(shape(heads=heads, head_dim=width, length=(floor,)), dialect="paper", init="eye")
        FoPE(shape(heads=heads, head_dim=width, length=(floor,), layer=1), dialect="paper", init="eye")
    assert fope.sin_coef.shape == fope.cos_coef.shape == (heads, kept, series)
    assert fope.frequencies.shape == (1, kept)
    ones = fope.sin_coef[0].nonzero().tolist()
    step = 1 if kept == series else 2
    assert ones == [[step * column, column] for column in range(anchored)]
    dead = series - anchored
    said = [record.message for record in caplog.records]
    assert len(said) == (dead > 0)  # once, however many layers
    assert not dead or f"{dead} of {series} columns are dead" in said[0]
    rotation = fope(column(3.0), column(3.0), 4).rotation
    assert rotation.cos.shape == (1, heads, 1, width // 2)
    assert rotation.cos[..., series:].eq(1).all()
    assert rotation.sin[..., series:].eq(1).all()


@pytest.mark.parametrize(("base", "floor", "kept"), [(5e6, 262144, 45), (1e6, 32768, 40)])
def test_sizes_of_the_production_dialect(shape, base, floor, kept):
    fope = FoPE(shape(heads=8, kv_heads=4, head_dim=128, length=(floor,)), base=base)
    assert fope.sin_coef.shape == (4, kept, kept)
    at = column(3.0)
    assert fope(at, at, 4).rotation.cos[..., kept:].shape[-1] == 64 - kept


def test_a_wave_of_exactly_one_turn_is_kept_by_the_paper_only(shape):
    for floor in range(20, 2000):
        base = (floor / (2 * math.pi)) ** 2
        wave = 1.0 / base ** (torch.arange(0, 4, 2, dtype=torch.float32) / 4)
        if wave[1] == torch.tensor(2 * math.pi / floor, dtype=torch.float32):
            break
    else:
        pytest.fail("no base makes a wave of exactly one turn")
    exact = shape(head_dim=4, length=(floor,))
    assert FoPE(exact, base=base).pinned()["num_inv_freq"] == 1
    assert FoPE(exact, base=base, dialect="paper").pinned()["num_inv_freq"] == 2


@pytest.mark.parametrize(
    ("heads", "width", "floor", "gain", "base", "dialect"),
    [
        (8, 64, 512, 0.3, 1e4, "paper"),
        (8, 64, 1024, 0.3, 1e4, "paper"),
        (8, 128, 512, 0.4, 1e4, "paper"),
        (16, 128, 1024, 0.6, 1e4, "paper"),
        (4, 128, 262144, 0.5, 5e6, "production"),
    ],
)
def test_deviation_of_the_noise(shape, heads, width, floor, gain, base, dialect):
    torch.manual_seed(0)
    built = shape(heads=heads, head_dim=width, length=(floor,))
    fope = FoPE(built, dialect=dialect, gain=gain, base=base)
    quiet = FoPE(built, dialect=dialect, gain=0.0, base=base)
    _, kept, series = fope.sin_coef.shape
    expected = gain * math.sqrt(2 / (series * (kept + heads)))
    for coef, eye in ((fope.sin_coef, quiet.sin_coef), (fope.cos_coef, quiet.cos_coef)):
        assert (coef - eye).std().item() == pytest.approx(expected, rel=0.05)
    assert not torch.equal(fope.sin_coef, fope.cos_coef)
    assert not torch.equal(fope.sin_coef[0], fope.sin_coef[1])


@pytest.mark.parametrize(
    ("init", "gain", "identity", "deviation"),
    [
        ("eye", None, True, 0.0),
        ("eye_norm", 0.1, True, 0.1),
        ("eye_xavier_uniform", None, True, 0.3 * math.sqrt(2 / (31 * 39))),
        ("eye_xavier_norm", None, True, 0.3 * math.sqrt(2 / (31 * 39))),
        ("xavier_norm", None, False, math.sqrt(2 / (31 * 39))),
        ("xavier_uniform", 0.5, False, 0.5 * math.sqrt(2 / (31 * 39))),
    ],
)
@pytest.mark.parametrize("dialect", ["paper", "production"])
def test_inits(shape, init, gain, identity, deviation, dialect):
    torch.manual_seed(0)
    fope = FoPE(shape(heads=8, head_dim=128, length=(512,)), init=init, gain=gain, dialect=dialect)
    noise = fope.cos_coef - identity * torch.eye(31)
    assert noise.std().item() == pytest.approx(deviation, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=deviation / 10)
    if init.endswith("uniform"):
        assert noise.abs().max().item() == pytest.approx(deviation * math.sqrt(3), rel=0.01)


@pytest.mark.parametrize("dialect", ["paper", "production"])
def test_equals_sums_of_plain_arithmetic(shape, dialect):
    torch.manual_seed(0)
    fope = FoPE(shape(length=(1024,)), dialect=dialect, gain=2.0, base=500.0).double()
    heads, kept, series = fope.cos_coef.shape
    assert (kept, series) == ((4, 2) if dialect == "paper" else (4, 4))
    where = [0.0, 1.0, 77.0, 1500.0]
    got = fope(column(*where), column(*where), 2000).rotation
    for n in range(heads):
        for row, p in enumerate(where):
            for j in range(series):
                waves = [math.pow(500.0, -2 * i / 8) * p for i in range(kept)]
                cos = sum(math.cos(w) * fope.cos_coef[n, i, j].item() for i, w in enumerate(waves))
                sin = sum(math.sin(w) * fope.sin_coef[n, i, j].item() for i, w in enumerate(waves))
                assert got.cos[0, n, row, j].item() == pytest.approx(cos, abs=1e-10)
                assert got.sin[0, n, row, j].item() == pytest.approx(sin, abs=1e-10)


@pytest.mark.parametrize("padding", ["diagonal", "identity"])
def test_without_noise_series_are_rope_and_the_other_pairs_are_constant(shape, padding):
    long = shape(head_dim=64, length=(512,))
    fope, rope, at = FoPE(long, gain=0.0, padding=padding), RoPE(long), column(*range(0, 900, 7))
    kept = fope.pinned()["num_inv_freq"]
    assert kept == 16
    x = draw(1, 2, len(at), 64).float()
    mixed, plain = fope(at, at, 900).rotation.apply(x), rope(at, at, 900).rotation.apply(x)
    for first in (0, 32):
        pairs = slice(first, first + kept)
        torch.testing.assert_close(mixed[..., pairs], plain[..., pairs], rtol=0, atol=1e-6)
    one, other = x[..., kept:32], x[..., 32 + kept :]
    expected = (one - other, other + one) if padding == "diagonal" else (one, other)
    torch.testing.assert_close(mixed[..., kept:32], expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed[..., 32 + kept :], expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("padding", "weight"), [("diagonal", 2.0), ("identity", 1.0)])
def test_constant_pairs_count_twice_in_the_logit_with_diagonal_padding(shape, padding, weight):
    fope = FoPE(shape(), padding=padding).double()
    q, k = draw(1, 2, 3, 8), draw(1, 2, 3, 8).roll(1, 2)
    q[..., [0, 1, 4, 5]] = 0  # D = d = 2: only the pairs 2 and 3 remain
    at = column(0, 9, 500)
    turned_q, turned_k = fope(at, at, 512).rotation(q, k)
    torch.testing.assert_close(turned_q @ turned_k.mT, weight * (q @ k.mT), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dialect", ["paper", "production"])
@pytest.mark.parametrize(
    ("arguments", "relative"),
    [
        ({"gain": 0.3}, False),
        ({"gain": 0.0}, True),
        ({"init": "eye"}, True),
        ({"init": "xavier_norm"}, False),
        ({"init": "eye_norm", "gain": 0.01}, False),
    ],
)
def test_shifting_all_positions_changes_attention_exactly_when_there_is_noise(shape, dialect, arguments, relative):
    torch.manual_seed(0)
    fope = FoPE(shape(head_dim=16, length=(1024,)), dialect=dialect, **arguments).double()
    assert fope.relative is relative
    at, q, k = column(*range(8)), draw(1, 2, 8, 16), draw(1, 2, 8, 16).flip(2)
    logits = []
    for shift in (0, 50):
        turned_q, turned_k = fope(at + shift, at + shift, 64).rotation(q, k)
        logits.append(turned_q @ turned_k.mT)
    moved = (logits[1] - logits[0]).abs().max().item()
    assert moved < 1e-10 if relative else moved > 1e-2


def test_relative_tells_the_truth_about_loaded_matrices(shape):
    noisy, clean = FoPE(shape()), FoPE(shape(), init="eye")
    clean.load_state_dict(noisy.state_dict())
    assert not clean.relative


@pytest.mark.parametrize("dialect", ["paper", "production"])
def test_one_token_at_a_time_equals_all_at_once(shape, dialect):
    fope, at, q = FoPE(shape(), dialect=dialect), column(*range(20)), draw(1, 2, 20, 8).float()
    whole = fope(at, at, 20).rotation.apply(q)
    steps = [fope(at[t : t + 1], at[: t + 1], 20).rotation.apply(q[:, :, t : t + 1]) for t in range(20)]
    torch.testing.assert_close(torch.cat(steps, 2), whole, rtol=0, atol=1e-6)


def test_positions_of_their_own_per_example(shape):
    fope, q = FoPE(shape(heads=4, kv_heads=2)), draw(2, 4, 3, 8).float()
    at = torch.stack((column(0, 1, 2), column(0, 0, 1)))
    both = fope(at, at, 3).rotation
    assert both.cos.shape == (2, 2, 3, 4)
    for row in range(2):
        alone = fope(at[row], at[row], 3).rotation.apply(q[row : row + 1])
        torch.testing.assert_close(both.apply(q)[row : row + 1], alone, rtol=0, atol=1e-6)


def test_a_prefix_is_left_as_it_is(shape):
    fope, at, x = FoPE(shape(prefix=2)), column(0, 1, 2), draw(1, 2, 5, 8).float()
    got = fope(at, at, 3).rotation.apply(x)
    assert torch.equal(got[:, :, :2], x[:, :, :2])
    assert not torch.allclose(got[:, :, 2:], x[:, :, 2:], atol=1e-2)


@pytest.mark.parametrize("dialect", ["paper", "production"])
def test_frozen_matrices_get_no_gradient_and_no_decay(shape, dialect):
    fope, at, linear = FoPE(shape(), dialect=dialect), column(*range(6)), nn.Linear(8, 8)
    before = {name: tensor.clone() for name, tensor in fope.state_dict().items()}
    assert sorted(before) == ["cos_coef", "sin_coef"]
    optimizer = torch.optim.AdamW([*fope.parameters(), *linear.parameters()], lr=0.1, weight_decay=0.5)
    fope(at, at, 6).rotation.apply(linear(draw(1, 2, 6, 8).float())).square().sum().backward()
    optimizer.step()
    assert linear.weight.grad.abs().sum() > 0
    for name, tensor in fope.named_parameters():
        assert not tensor.requires_grad
        assert tensor.grad is None
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("normalize", [False, True])
def test_trainable_matrices_get_the_gradients_of_the_sum(shape, normalize):
    fope = FoPE(shape(), trainable=True, normalize=normalize).double()
    at = column(0, 1, 5)

    def tables(sin_coef: torch.Tensor, cos_coef: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rotation = torch.func.functional_call(fope, {"sin_coef": sin_coef, "cos_coef": cos_coef}, (at, at, 6)).rotation
        return rotation.cos, rotation.sin

    assert torch.autograd.gradcheck(tables, (fope.sin_coef, fope.cos_coef))
    cos, sin = tables(fope.sin_coef, fope.cos_coef)
    (cos.sum() + 2 * sin.sum()).backward()
    if not normalize:  # by hand: every series sums the same waves
        waves = torch.tensor([[p * w for w in (1.0, 0.1)] for p in (0.0, 1.0, 5.0)], dtype=torch.float64)
        expected = waves.cos().sum(0)[None, :, None].expand(2, 2, 2)
        torch.testing.assert_close(fope.cos_coef.grad, expected)
        torch.testing.assert_close(fope.sin_coef.grad, 2 * waves.sin().sum(0)[None, :, None].expand(2, 2, 2))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_saving_and_loading_keep_every_bit(shape, kind):
    fope, other = FoPE(shape()).to(kind), FoPE(shape()).to(kind)
    before = [fope.sin_coef.clone(), fope.cos_coef.clone()]
    assert all(tensor.dtype == torch.float32 for tensor in before)
    file = io.BytesIO()
    torch.save(fope.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.sin_coef, before[0])
    assert torch.equal(other.cos_coef, before[1])


@pytest.mark.parametrize("dialect", ["paper", "production"])
def test_a_longer_model_keeps_floor_and_matrices_by_the_pinned_arguments(shape, dialect):
    first = FoPE(shape(length=(128,)), dialect=dialect)
    assert first.pinned() == {"floor": 128, "num_inv_freq": 2}
    longer = FoPE(shape(length=(8192,)), dialect=dialect, **first.pinned())
    assert torch.equal(longer.frequencies, first.frequencies)
    longer.load_state_dict(first.state_dict())
    moved = FoPE(shape(length=(8192,)), dialect=dialect)  # without them it would not fit
    assert moved.frequencies.shape != first.frequencies.shape


def test_an_explicit_number_of_waves_wins_over_the_floor(shape):
    fope = FoPE(shape(), num_inv_freq=3, floor=64)
    assert fope.sin_coef.shape == (2, 3, 3)
    assert torch.equal(fope.frequencies, RoPE(shape()).frequencies[:, :3])
    assert FoPE(shape(), floor=1024).sin_coef.shape == (2, 3, 3)
    zeros = FoPE(shape(), dialect="paper", num_inv_freq=3, ignore_zero=False)
    assert zeros.frequencies[0].tolist() == [*fope.frequencies[0].tolist(), 0.0]
    assert zeros.pinned()["num_inv_freq"] == 3


def test_one_module_for_all_layers_or_one_each(shape):
    assert not FoPE(shape()).per_layer
    assert FoPE(shape(), dialect="paper").per_layer


def test_the_product_is_float64_whatever_precision_matrix_products_are_allowed(shape):
    """A departure from the references, which multiply in float32, that is, on many machines, in TF32 or bfloat16."""
    torch.manual_seed(0)
    fope, at = FoPE(shape(head_dim=64, length=(1024,))), column(*range(500))
    cos = (at * fope.frequencies).cos()
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        got = fope(at, at, 500).rotation.cos[0, :, :, :18]
    finally:
        torch.set_float32_matmul_precision(allowed)
    exact = torch.einsum("td,hdj->htj", cos.double(), fope.cos_coef.double()).float()
    single = torch.einsum("td,hdj->htj", cos, fope.cos_coef)
    assert (got != exact).float().mean() < 0.01
    assert (single != exact).float().mean() > 0.05
    torch.testing.assert_close(got, single, rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpus_tables_are_the_cpus_in_tf32_too(shape):
    torch.manual_seed(0)
    fope, at = FoPE(shape(head_dim=64, length=(1024,))), column(*range(500))
    here = fope(at, at, 500).rotation
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        there = fope.cuda()(at.cuda(), at.cuda(), 500).rotation
    finally:
        torch.set_float32_matmul_precision(allowed)
    torch.testing.assert_close(there.cos.cpu(), here.cos, rtol=0, atol=2e-6)
    torch.testing.assert_close(there.sin.cpu(), here.sin, rtol=0, atol=2e-6)


RANK = """
import sys, torch, torch.distributed as dist
from zoo.position import Geometry
from zoo_positions.rope import FoPE
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
torch.manual_seed(dist.get_rank())
fope = FoPE(Geometry(dim=16, heads=2, kv_heads=2, head_dim=8, length=(64,)))
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(fope, torch.nn.Linear(2, 2)))
drawn = [torch.empty_like(fope.sin_coef) for _ in range(2)]
dist.all_gather(drawn, fope.sin_coef.data)
print("alike" if torch.equal(*drawn) else drawn, flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_share_one_draw(tmp_path):
    meet = str(tmp_path / "meet")
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, meet, rank], stdout=subprocess.PIPE, text=True) for rank in "01"
    ]
    # Not the exit status: DDP keeps its process group beyond the interpreter's end, where gloo's threads may abort.
    assert [rank.communicate(timeout=120)[0] for rank in ranks] == ["alike\n"] * 2


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({"length": (4, 4, 4)}, {}, r"FoPE tells one axis or two, and this model has 3.*position RoPE"),
        ({"head_dim": 7}, {}, r"needs an even head_dim; here it is 7"),
        ({"head_dim": 2}, {"dialect": "paper"}, "needs a head_dim of 4 or more"),
        (
            {"heads": 8, "kv_heads": 2},
            {"dialect": "paper"},
            r"grouped heads rule out \(heads 8, kv_heads 2\). Set kv_heads to 8.*dialect production",
        ),
        ({}, {"ignore_zero": False}, r"no waves of frequency 0.*dialect paper"),
        ({}, {"init": "eye", "gain": 0.3}, r"gain 0\.3 with the init eye.*init eye_xavier_norm"),
        ({}, {"gain": -0.1}, r"gain -0\.1"),
        ({"length": (6,)}, {}, r"cannot keep 0 of the 4 waves .* floor 6\)\. Raise"),
        ({}, {"floor": 0}, "cannot keep 0 of the 4 waves"),
        ({}, {"num_inv_freq": 5}, r"cannot keep 5 of the 4 waves.*num_inv_freq between 1 and 4"),
        ({}, {"num_inv_freq": 0}, "cannot keep 0 of the 4 waves"),
        ({}, {"base": 1.0}, r"cannot have the base 1\.0"),
        (
            {"head_dim": 64, "length": (1024,)},
            {"dialect": "paper", "init": "eye", "normalize": True},
            r"cannot normalize 7 series that are zero \(18 waves, 16 series, no noise\).*dialect production",
        ),
    ],
)
def test_refusals(shape, changes, arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        FoPE(shape(**changes), **arguments)


def test_seven_positions_keep_the_first_wave(shape):
    assert FoPE(shape(), floor=7).pinned() == {"floor": 7, "num_inv_freq": 1}
