"""Losses, schedules, optimizer groups and metrics, each against arithmetic written out by hand."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional
from torch.utils.data import DataLoader

from zoo import plugins
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.loss import IGNORED, cross_entropy
from zoo.position import Encoding, PositionEncoding, Toeplitz
from zoo.schedules import WarmupCosine, WarmupStableDecay
from zoo.tasks import ImageClassifier, LanguageModel

SMALL = {"dim": 32, "layers": 2, "heads": 2}


def language_model(**arguments):
    return LanguageModel(vocabulary=50, length=16, **{**SMALL, **arguments})


def batch(size=4, documents=None):
    tokens = torch.randint(0, 50, (size, 17), generator=torch.Generator().manual_seed(1))
    return {"tokens": tokens, "documents": torch.zeros(size, 17, dtype=torch.int32) if documents is None else documents}


@pytest.mark.parametrize("size", [1, 7, 40, 1000])
def test_chunked_loss_is_the_whole_loss(size):
    torch.manual_seed(0)
    hidden = torch.randn(3, 11, 8, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(8, 19, dtype=torch.float64)
    targets = torch.randint(0, 19, (3, 11))
    targets[1, 4:] = IGNORED
    loss = cross_entropy(hidden, targets, head, size)
    logits = (hidden.detach() @ head.weight.T + head.bias).float()
    picked = [-logits[b, t].log_softmax(-1)[targets[b, t]] for b in range(3) for t in range(11) if targets[b, t] >= 0]
    assert torch.allclose(loss, torch.stack(picked).mean(), atol=1e-6)
    grads = torch.autograd.grad(loss, [hidden, head.weight])
    whole = functional.cross_entropy(head(hidden).float().flatten(0, 1), targets.flatten())
    for mine, theirs in zip(grads, torch.autograd.grad(whole, [hidden, head.weight]), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-7)


def test_a_batch_without_targets_has_no_loss():
    head = torch.nn.Linear(8, 5)
    assert cross_entropy(torch.randn(1, 3, 8), torch.full((1, 3), IGNORED), head, 8) == 0


def test_cosine():
    schedule = WarmupCosine(warmup=10, floor=0.1)
    factors = [schedule.factor(step, 110) for step in range(110)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == 1
    assert factors[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert WarmupCosine(warmup=0.1).factor(5, 100) == WarmupCosine(warmup=10).factor(5, 100)
    assert WarmupCosine(warmup=0).factor(0, 1) == 1


def test_warmup_stable_decay():
    schedule = WarmupStableDecay(warmup=10, floor=0, decay=0.5)
    factors = [schedule.factor(step, 111) for step in range(111)]
    assert factors[10:60] == [1] * 50
    assert factors[-1] == 0
    assert factors[85] == pytest.approx(0.5)
    for wrong in ({"decay": 0}, {"decay": 2}, {"floor": 2}, {"warmup": -1}):
        with pytest.raises(ZooError):
            WarmupStableDecay(**wrong)


def test_weight_decay_spares_what_kernels_learn():
    position, kernel = plugins.load("zoo.positions", "ALiBi"), plugins.load("zoo.kernels", "FourierIntegral")
    task = language_model(position=partial(position), kernel=partial(kernel))
    task.configure_model()
    decays, rest = task.groups()
    radius = task.network.trunk.kernel.bandwidth.log_radius
    assert radius.ndim == 2
    assert any(radius is parameter for parameter in rest["params"])
    assert not any(radius is parameter for parameter in decays["params"])


def test_weight_decay_spares_what_it_should():
    position = partial(plugins.load("zoo.positions", "Learned"))
    task = language_model(position=position, qkv_bias=True, norm="LayerNorm")
    task.configure_model()
    decays, rest = task.groups()
    assert rest["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    spared = {names[id(parameter)] for parameter in rest["params"]}
    assert "network.embedding.weight" in spared
    assert "network.trunk.positions.0.table" in spared
    assert all("norm" in name or "bias" in name or "embedding" in name or "positions" in name for name in spared)
    decayed = {names[id(parameter)] for parameter in decays["params"]}
    assert decayed
    assert all(name.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight")) for name in decayed)
    assert len(spared) + len(decayed) == len(list(task.parameters()))


def test_perplexity_is_the_exponential_of_the_mean_loss():
    task = language_model(chunk=13)
    task.configure_model()
    data = [batch(4), batch(3)]
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    shown = trainer.validate(task, DataLoader(data, batch_size=None), verbose=False)[0]["val/perplexity"]
    with torch.no_grad():
        losses = [
            functional.cross_entropy(
                task.network(b["tokens"][:, :-1]).flatten(0, 1), b["tokens"][:, 1:].flatten(), reduction="none"
            )
            for b in data
        ]
    assert shown == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-5)


class Watch(torch.nn.Module):
    """Stands for the network and keeps what it is told."""

    def hidden(self, tokens, **context):
        self.context = context
        return tokens


def test_random_positions_are_sorted_differ_and_are_drawn_anew_in_training_only():
    task, data = language_model(random_positions=100), batch()
    task.network = Watch()
    draws = []
    for _ in range(2):
        task.read(data)
        drawn = task.network.context["positions"]
        assert drawn.shape == (16,)
        assert (drawn.diff() > 0).all()
        assert 0 <= drawn.min() <= drawn.max() < 100
        assert task.network.context["extent"] == 100
        draws.append(drawn)
    assert not torch.equal(*draws)
    task.eval()
    task.read(data)
    assert not task.network.context


def test_random_positions_start_anew_in_each_document():
    documents = torch.zeros(4, 17, dtype=torch.int32)
    documents[:, 6:] = 1
    task = language_model(random_positions=100, within_documents=True)
    task.network = Watch()
    task.read(batch(documents=documents))
    rows = task.network.context["positions"]
    assert rows.shape == (4, 16)
    assert (rows[:, :6].diff() > 0).all()
    assert (rows[:, 6:].diff() > 0).all()
    draws = torch.cat([task.read(batch(documents=documents)) and task.network.context["positions"] for _ in range(50)])
    assert draws[:, 5].max() > 80, "each document draws from the whole range"
    assert draws[:, 6].min() < 20


def test_random_positions_need_room_and_an_encoding_that_reaches_them():
    for wrong in (8, 2**24 + 1):
        with pytest.raises(ZooError, match=rf"below {wrong}.*random_positions 64"):
            language_model(random_positions=wrong)
    with pytest.raises(ZooError, match="sinks of packed documents"):
        language_model(within_documents=True, window=4, sinks=1)
    task = language_model(random_positions=64, position=plugins.load("zoo.positions", "Learned"))
    with pytest.raises(ZooError, match="Learned"):
        task.configure_model()


def test_random_positions_train():
    torch.manual_seed(0)
    task = language_model(random_positions=64)
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", logger=False, max_steps=3, **silent)
    trainer.fit(task, DataLoader([batch()] * 3, batch_size=None))
    assert float(trainer.callback_metrics["train/loss"]) < math.log(50) + 1


def test_within_documents_is_each_document_alone():
    documents = torch.tensor([[0] * 6 + [1] * 11], dtype=torch.int32)
    data = batch(1, documents)
    task = language_model(within_documents=True)
    task.configure_model()
    losses = task.predict_step(data, 0)[0]
    tokens = data["tokens"]
    for part in (slice(0, 6), slice(6, 17)):
        alone = task.network(tokens[:, part][:, :-1])
        expected = functional.cross_entropy(alone[0], tokens[0, part][1:], reduction="none")
        assert torch.allclose(losses[part.start : part.stop - 1], expected, atol=1e-5)
    assert losses[5] == 0, "a document does not predict the next one"
    apart = language_model(within_documents=False)
    apart.network = task.network
    assert not torch.allclose(apart.predict_step(data, 0)[0][6:], losses[6:], atol=1e-3)


@pytest.mark.parametrize("setting", [{"checkpointing": True}, {"chunk": 5}])
def test_saving_memory_changes_no_gradient(setting):
    tasks = []
    for own in ({}, setting):
        torch.manual_seed(0)
        task = language_model(**own)
        task.configure_model()
        task.log = lambda *_, **__: None
        task.training_step(batch(), 0).backward()
        tasks.append(task)
    for (name, one), (_, other) in zip(*(task.named_parameters() for task in tasks), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6), name


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("encoding", ["RoPE", "FoPE", "ALiBi", "Learned"])
def test_half_precision_trains_and_leaves_positions_alone(precision, encoding):
    task = language_model(position=plugins.load("zoo.positions", encoding))
    trainer = Trainer(
        accelerator="cpu", precision=precision, max_steps=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(task, DataLoader([batch(), batch()], batch_size=None))
    assert all(p.dtype == torch.float32 for p in task.trunk.positions.parameters())
    assert all(p.isfinite().all() for p in task.parameters())
    assert task.network.head.weight.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)


def test_an_encoding_is_exact_where_half_precision_is_the_default():
    class Mine(PositionEncoding):  # made as a plugin's author would: without a word about dtypes
        def __init__(self, geometry):
            super().__init__(geometry)
            self.power = torch.nn.Parameter(torch.full((geometry.heads,), 1.0))

        def forward(self, queries, keys, extent, hidden=None, state=None):
            table = -self.power[:, None] * torch.arange(extent).log1p()
            seen.append(table)
            return Encoding(bias=Toeplitz(table, queries[..., 0], keys[..., 0]))

    seen = []
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Decoder(vocabulary=9, length=16, dim=32, layers=1, heads=2, position=Mine)
        model(torch.zeros(1, 8, dtype=torch.long))
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.head.weight.dtype == torch.bfloat16
    assert model.trunk.position.power.dtype == torch.float32
    assert seen[-1].dtype == torch.float32


def test_compile_compiles_what_a_step_runs():
    graphs = []

    def backend(module, _):
        graphs.append(module)
        return module.forward

    task = language_model(compile=True, kernel=plugins.load("zoo.kernels", "SDPA"))
    plain = language_model(kernel=plugins.load("zoo.kernels", "SDPA"))
    for one in (task, plain):
        torch.manual_seed(0)
        one.configure_model()
        one.log = lambda *_, **__: None
    task.trunk.compile(backend=backend)
    loss, expected = task.training_step(batch(), 0), plain.training_step(batch(), 0)
    assert graphs
    assert torch.allclose(loss, expected, atol=1e-6)
    loss.backward()
    expected.backward()
    for (name, mine), (_, theirs) in zip(task.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6), name


def test_class_and_register_tokens_do_not_decay():
    task = ImageClassifier(classes=3, channels=1, size=(8, 8), patch=4, registers=2, **SMALL)
    task.configure_model()
    assert any(parameter is task.network.prefix for parameter in task.groups()[1]["params"])


def test_flops_count_the_matrices():
    task = language_model(kv_heads=1, hidden=64)
    task.configure_model()
    task.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    matrices = 2 * (32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 64) + 50 * 32
    assert task.flops() == 6 * matrices + 12 * 2 * 32 * 16


def test_images_are_classified():
    task = ImageClassifier(classes=3, channels=1, size=(8, 8), patch=4, **SMALL)
    data = [{"images": torch.randn(5, 1, 8, 8), "labels": torch.tensor([0, 1, 2, 0, 1])}]
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    shown = trainer.validate(task, DataLoader(data, batch_size=None), verbose=False)[0]
    logits = task.network(data[0]["images"])
    assert shown["val/accuracy"] == pytest.approx((logits.argmax(-1) == data[0]["labels"]).float().mean().item())
    assert shown["val/loss"] == pytest.approx(math.log(3), rel=1e-5), "the head starts at zero"


def test_what_no_plugin_registers_is_refused_before_training():
    class Mine(plugins.load("zoo.positions", "RoPE")):
        pass

    task = language_model(position=Mine)
    with pytest.raises(ZooError, match="Mine is not an installed position encoding"):
        task.configure_model()
