"""A step that is no number changes nothing, on no process, is kept and counted, and too many of them end the run."""

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from zoo.callbacks import NonFinite
from zoo.errors import ZooError
from zoo.tasks import LanguageModel


class Poisoned(LanguageModel):
    """Loses its number at some batches: in the loss and so in the gradient, or in one of them alone."""

    def __init__(self, spoilt, where="loss"):
        # Momentum and decay, so that a step on a gradient of zero would show.
        def optimizer(parameters):
            return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.5)

        super().__init__(vocabulary=50, length=16, dim=32, layers=2, heads=2, optimizer=optimizer)
        self.spoilt, self.where = spoilt, where

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch_idx in self.spoilt:
            weight = self.network.head.weight
            # The square root has no finite slope at 0, and is 0 there; a number that is added has none at all.
            own = {"loss": loss * float("nan"), "value": torch.tensor(float("nan"))}
            loss = loss + own.get(self.where, (weight - weight.detach()).abs().sum().sqrt())
        return loss


class States(Callback):
    """Weights and optimizer before each batch, and after the last."""

    def __init__(self):
        self.kept = []

    def keep(self, trainer, module):
        self.kept.append(copy.deepcopy((module.state_dict(), trainer.optimizers[0].state_dict())))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.keep(trainer, module)

    def on_train_end(self, trainer, module):
        self.keep(trainer, module)


def data(count=8):
    tokens = torch.randint(0, 50, (count, 4, 17), generator=torch.Generator().manual_seed(1))
    return DataLoader([{"tokens": t, "documents": torch.zeros_like(t)} for t in tokens], batch_size=None)


def run(place, task, *callbacks, **settings):
    torch.manual_seed(0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "max_epochs": 1}
    quiet |= {"enable_checkpointing": False, "default_root_dir": place}
    trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet | settings)
    trainer.fit(task, data())
    return trainer


def same(one, other):
    """Whether two trees of tensors are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("where", ["loss", "value", "gradient"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_skipped_step_changes_nothing(where, clip, tmp_path, capsys):
    states = States()
    trainer = run(tmp_path, Poisoned({0, 3}, where), NonFinite(), states, gradient_clip_val=clip)
    unchanged = [n for n in range(8) if same(states.kept[n][0], states.kept[n + 1][0])]
    assert unchanged == [0, 3]
    assert same(states.kept[3], states.kept[4]), "no momentum, no count of steps"
    assert not states.kept[1][1]["state"]
    assert trainer.callback_metrics["train/skipped"] == 2
    assert trainer.global_step == 8, "a skipped step counts, so that schedule and data stay in step"
    told = capsys.readouterr().err
    assert "step 0 is skipped" in told
    assert f"{tmp_path / 'skipped' / 'step-3-rank-0.safetensors'}" in told
    assert ("the loss is nan in process 0" in told) == (where != "gradient")
    kept = tmp_path / "skipped" / "step-3-rank-0.safetensors"
    assert same(load_file(kept), list(data())[3])
    with safe_open(kept, "pt") as file:
        assert file.metadata()["step"] == "3"
        assert (file.metadata()["loss"] == "nan") == (where != "gradient")
    assert len(list((tmp_path / "skipped").iterdir())) == 2


def test_nothing_is_logged_where_nothing_is_skipped(tmp_path):
    trainer = run(tmp_path, Poisoned(set()), NonFinite())
    assert "train/skipped" not in trainer.callback_metrics
    assert not (tmp_path / "skipped").exists()


@pytest.mark.parametrize("bad", [4, 5])
def test_one_bad_pass_spoils_an_accumulated_step(bad, tmp_path, capsys):
    states = States()
    run(tmp_path, Poisoned({bad}), NonFinite(), states, accumulate_grad_batches=2)
    changed = [n for n in range(8) if not same(states.kept[n][0], states.kept[n + 1][0])]
    assert changed == [1, 3, 7]
    assert same(states.kept[4][1], states.kept[6][1])
    assert same(load_file(tmp_path / "skipped" / "step-2-rank-0.safetensors"), list(data())[bad]), (
        "the one that was bad"
    )
    assert "nan in process 0" in capsys.readouterr().err


def test_a_strategy_that_accumulates_by_itself_is_told_at_the_step(tmp_path):
    class Own(SingleDeviceStrategy):
        handles_gradient_accumulation = drops = True

        def optimizer_step(self, optimizer, closure, model=None, **_):  # moves nothing
            closure()
            self.precision_plugin._after_closure(self.lightning_module, optimizer)

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            told.append((module.skipping, all(p.grad is not None for p in module.parameters())))

    told = []
    run(tmp_path, Poisoned({4}), NonFinite(), Watch(), strategy=Own("cpu"), accumulate_grad_batches=2)
    assert [skipped for skipped, _ in told] == [False] * 5 + [True, False, False]
    assert all(there for _, there in told), "its gradients are its own business"


def test_losses_are_told_as_they_were_under_accumulation(tmp_path):
    run(tmp_path, Poisoned({4}, "gradient"), NonFinite(), accumulate_grad_batches=2)
    with safe_open(tmp_path / "skipped" / "step-2-rank-0.safetensors", "pt") as file:
        losses = [float(word) for word in file.metadata()["loss"].split(", ")]
        assert file.get_slice("tokens").get_shape() == [8, 17], "either pass may have spoilt the gradient"
    assert losses == pytest.approx([3.9, 3.9], abs=0.6), "log 50, and not half of it"


@pytest.mark.parametrize(
    ("bad", "limits", "at", "count"),
    [
        ({2, 3, 4}, {}, 4, "3 in a row"),
        ({2, 3, 5, 6}, {}, None, ""),
        ({2, 4, 6}, {"total": 3}, 6, "3 in all"),
        ({5}, {"consecutive": 1}, 5, "1 in a row"),
    ],
)
def test_too_many_end_the_run(bad, limits, at, count, tmp_path):
    if at is None:
        assert run(tmp_path, Poisoned(bad), NonFinite(**limits)).global_step == 8
        return
    with pytest.raises(ZooError, match=rf"stops at step {at}.*{count}.*gradient_clip_val"):
        run(tmp_path, Poisoned(bad), NonFinite(**limits))


def test_the_count_goes_on_with_the_run():
    one, other = NonFinite(), NonFinite()
    one.row, one.skipped = 2, 7
    other.load_state_dict(one.state_dict())
    assert (other.row, other.skipped) == (2, 7)


@pytest.mark.parametrize("limits", [{"consecutive": 0}, {"total": 0}])
def test_a_run_stops_after_one_or_more(limits):
    with pytest.raises(ZooError, match="1 skipped step or more"):
        NonFinite(**limits)


def test_a_loss_that_was_skipped_at_the_end_of_a_run_is_no_reason_to_end_it_badly(tmp_path):
    task = Poisoned({7})
    trainer = run(tmp_path, task, NonFinite())
    loss = trainer.callback_metrics["train/loss"]
    task.finite(torch.tensor(float("nan")))
    assert loss.isfinite(), "what is logged is the loss of the task"
    task.skipping = False
    with pytest.raises(ZooError, match="The loss is nan"):
        task.finite(torch.tensor(float("nan")))


TWO = """
import os, sys, torch
from lightning.pytorch import Trainer
sys.path.insert(0, sys.argv[1])
from test_nonfinite import NonFinite, Poisoned, States, data, same

class Second(Poisoned):
    def training_step(self, batch, batch_idx):
        self.spoilt = {3} if self.trainer.global_rank == 1 else set()
        return super().training_step(batch, batch_idx)

torch.manual_seed(0)
states = States()
quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False)
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, callbacks=[NonFinite(), states],
    default_root_dir=sys.argv[2], use_distributed_sampler=False, **quiet)
trainer.fit(Second(set()), data())
unchanged = [n for n in range(8) if same(states.kept[n], states.kept[n + 1])]
told = f"RESULT {trainer.global_rank} {unchanged} {int(trainer.callback_metrics['train/skipped'])}\\n"
os.write(1, told.encode())  # at once: the other process writes to the same pipe
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_all_processes_skip_what_is_no_number_in_one(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "MASTER_PORT": port}
    run = subprocess.run(
        [sys.executable, tmp_path / "two.py", Path(__file__).parent, tmp_path],
        capture_output=True, text=True, timeout=120, env=env,
    )  # fmt: skip
    results = sorted(line for line in run.stdout.splitlines() if line.startswith("RESULT"))
    assert results == ["RESULT 0 [3] 1", "RESULT 1 [3] 1"], run.stderr[-2000:]
    assert "the loss is nan in process 1. Its batch: " in run.stderr
    assert [path.name for path in (tmp_path / "skipped").iterdir()] == ["step-3-rank-1.safetensors"]
