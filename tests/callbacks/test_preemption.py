"""SIGTERM and Ctrl-C end a run after a step, in a checkpoint from which it goes on to the bit."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from zoo import cli
from zoo.callbacks import Averaging, Preemption, Release
from zoo.data import Text
from zoo.tasks import LanguageModel
from zoo.train import WholeCheckpoints


class Terminated(Callback):
    """The scheduler: it sends the signal in the midst of a step, or of a validation."""

    def __init__(self, step, moment, signal=signal.SIGTERM):
        self.step, self.moment, self.signal, self.sent = step, moment, signal, False

    def send(self, trainer, moment):
        if (trainer.global_step, self.moment) == (self.step, moment) and not trainer.sanity_checking:
            again, self.sent = self.sent, True
            if not (again and self.signal == signal.SIGINT):  # a second one stops at once
                os.kill(os.getpid(), self.signal)

    def on_before_backward(self, trainer, module, loss):
        self.send(trainer, "training")

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.send(trainer, "validation")


class Record(Callback):
    """Loss of each step, and how many validations there were."""

    def __init__(self):
        self.losses, self.validations, self.states = {}, [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses[trainer.fit_loop.total_batch_idx] = float(outputs["loss"])

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.validations.append(trainer.global_step)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for number in range(6):
        (folder / f"{number}.txt").write_text(" ".join(str(number * 7919 + i * i) for i in range(110)))
    return folder


def run(texts, place, record, *callbacks, resume=None, **settings):
    seed_everything(0, verbose=False)
    task = LanguageModel(length=16, dim=32, layers=1, heads=2, dropout=0.2)
    data = Text(files=str(texts), tokenizer="bytes", batch=24, valid=0.2, test=0, cache=str(texts.parent / "cache"))
    settings = {"max_steps": 18, "max_epochs": -1, "val_check_interval": 4, "num_sanity_val_steps": 1} | settings
    trainer = Trainer(
        accelerator="cpu", default_root_dir=place, logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=2, use_distributed_sampler=False, plugins=[WholeCheckpoints()],
        callbacks=[ModelCheckpoint(place / "kept", save_last=True), record, *callbacks], **settings,
    )  # fmt: skip
    trainer.fit(task, data, ckpt_path=resume, weights_only=True)
    return trainer, {name: tensor.clone() for name, tensor in task.state_dict().items()}


@pytest.fixture(scope="module")
def whole(texts, tmp_path_factory):
    kept = {}

    def get(accumulate):
        if accumulate not in kept:
            record = Record()
            trainer, weights = run(
                texts, tmp_path_factory.mktemp("whole"), record, max_steps=18 // accumulate,
                accumulate_grad_batches=accumulate,
            )  # fmt: skip
            assert trainer.num_training_batches == 8, "the steps named below are those before an epoch's end"
            kept[accumulate] = record, weights
        return kept[accumulate]

    return get


@pytest.mark.parametrize(
    ("step", "moment", "accumulate"),
    [
        (0, "training", 1),
        (5, "training", 1),
        (3, "training", 1),  # a validation follows
        (4, "validation", 1),
        (7, "training", 1),  # the last of an epoch
        (8, "training", 1),
        (17, "training", 1),  # the last of all
        (2, "training", 2),
        (3, "training", 2),
    ],
)
def test_a_terminated_run_goes_on_to_the_bit(step, moment, accumulate, texts, whole, tmp_path, capsys):
    record, weights = whole(accumulate)
    settings = {"max_steps": 18 // accumulate, "accumulate_grad_batches": accumulate}
    first, second = Record(), Record()
    stop = Preemption(lambda path: f"zoo fit --ckpt_path {path}")
    with pytest.raises(SystemExit) as end:
        run(texts, tmp_path, first, stop, Terminated(step, moment), **settings)
    assert end.value.code == 143
    path = tmp_path / "kept" / "last.ckpt"
    told = capsys.readouterr().err
    assert f"stopped after {step + 1} steps. Saved: {path}   Go on:  zoo fit --ckpt_path {path}" in told
    assert torch.load(path, weights_only=True)["global_step"] == step + 1
    _, rest = run(texts, tmp_path, second, resume=path, **settings)
    assert not first.losses.keys() & second.losses.keys()
    assert first.losses | second.losses == record.losses
    assert first.validations + second.validations == record.validations, "none is lost, none is run twice"
    assert all(torch.equal(rest[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("step", "moment"), [(5, "training"), (4, "validation")])
def test_ctrl_c_does_the_same(step, moment, texts, whole, tmp_path, capsys):
    record, weights = whole(1)
    first, second = Record(), Record()
    stop = Preemption(lambda path: f"zoo fit --ckpt_path {path}")
    with pytest.raises(SystemExit) as end:
        run(texts, tmp_path, first, stop, Terminated(step, moment, signal.SIGINT))
    assert end.value.code == 130
    path = tmp_path / "kept" / "last.ckpt"
    told = capsys.readouterr().err
    assert f"interrupted, and stopped after {step + 1} steps. Saved: {path}   Go on:  zoo fit --ckpt_path" in told
    assert torch.load(path, weights_only=True)["global_step"] == step + 1
    _, rest = run(texts, tmp_path, second, resume=path)
    assert first.losses | second.losses == record.losses
    assert all(torch.equal(rest[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("step", "moment"), [(5, "training"), (3, "training"), (17, "training")])
def test_a_terminated_average_goes_on_to_the_bit(step, moment, texts, tmp_path):
    def average():
        return Averaging(), EMAWeightAveraging(decay=0.5)

    whole = tmp_path / "whole" / "kept"
    run(texts, whole.parent, Record(), *average(), Release(tokens=0))
    with pytest.raises(SystemExit):
        run(texts, tmp_path, Record(), *average(), Preemption(), Release(tokens=0), Terminated(step, moment))
    path = tmp_path / "kept" / "last.ckpt"
    run(texts, tmp_path, Record(), *average(), Release(tokens=0), resume=path)
    one, other = (torch.load(place, weights_only=True) for place in (whole / "last.ckpt", path))
    assert one["zoo"]["trained"]["averaged"] == {"by": "EMAWeightAveraging", "updates": 18}
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(weight, other[key][name]) for name, weight in one[key].items())
    assert any(not torch.equal(one["state_dict"][name], one["current_model_state"][name]) for name in one["state_dict"])
    assert (tmp_path / "model" / "model.safetensors").is_file(), "also where it was stopped after its last step"


def test_what_is_due_is_saved_before_it_is_validated(texts, tmp_path):
    class Impatient(Callback):
        def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
            if trainer.global_step == 4:
                kept.append(torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["global_step"])

    kept = []
    with pytest.raises(SystemExit):
        run(texts, tmp_path, Record(), Preemption(), Terminated(3, "training"), Impatient())
    assert kept == [4, 4]


def test_a_run_without_checkpoints_says_so(texts, tmp_path, capsys):
    class Terminates(Terminated):
        def on_train_batch_end(self, trainer, module, *_):
            trainer.checkpoint_callback.dirpath = None

    with pytest.raises(SystemExit):
        run(texts, tmp_path, Record(), Terminates(2, "training"), Preemption())
    assert "after 3 steps. Nothing was saved, for this run keeps no checkpoints" in capsys.readouterr().err


def test_the_signals_are_given_back(texts, tmp_path):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    run(texts, tmp_path, Record(), Preemption(), max_steps=2)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("states", ["one", "older", "two"])
def test_generators_of_other_checkpoints(states, texts, whole, tmp_path, capsys):
    """Earlier ones had one state for all, and of several processes each had its own."""
    with pytest.raises(SystemExit):
        run(texts, tmp_path, Record(), Preemption(), Terminated(5, "training"))
    path, record = tmp_path / "kept" / "last.ckpt", Record()
    content = torch.load(path, weights_only=True)
    (state,) = content["generators"]
    content["generators"] = {"one": [state], "older": state, "two": [state, state]}[states]
    torch.save(content, path)
    capsys.readouterr()
    run(texts, tmp_path, record, resume=path)
    assert record.losses == {step: loss for step, loss in whole(1)[0].losses.items() if step > 5}
    assert ("2 random generators go on in 1 process:" in capsys.readouterr().err) == (states == "two")


RECIPE = """
model:
  class_path: LanguageModel
  init_args: {{length: 16, dim: 32, layers: 1, heads: 2, dropout: 0.2, position: RoPE}}
data:
  class_path: Text
  init_args: {{files: {texts}, tokenizer: bytes, batch: 4, workers: {workers}, valid: 0.2, test: 0, cache: {cache}}}
trainer:
  accelerator: cpu
  strategy: {strategy}
  devices: {devices}
  max_steps: {steps}
  max_epochs: -1
  val_check_interval: 20
  limit_val_batches: 1
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {out}
"""


class Job:
    """`zoo fit` as a process of its own, which may start another."""

    def __init__(self, out, texts, more="", **recipe):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        out.mkdir()
        self.out, self.recipe = out, out / "recipe.yaml"
        given = {"texts": texts, "cache": texts.parent / "cache", "out": out, "steps": 400, "workers": 0} | recipe
        self.recipe.write_text(RECIPE.format(**given) + more)
        (out / "main.py").write_text("from zoo.cli import main\n\nmain()\n")

    def start(self, *flags):
        words = [sys.executable, str(self.out / "main.py"), "fit", "--config", str(self.recipe), *flags]
        self.log = (self.out / "log").open("w+")
        env = os.environ | {"MASTER_PORT": self.port}
        return subprocess.Popen(words, stdout=self.log, stderr=self.log, start_new_session=True, env=env)

    def ended(self, process):
        try:
            status = process.wait(200)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        self.log.seek(0)
        return status, self.log.read()

    def reached(self, process, step, folder):
        """Wait until the metrics of a step are on the disk."""
        limit = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < limit:
            rows = [path.read_text().splitlines() for path in folder.rglob("metrics.csv")]
            if sum(map(len, rows)) >= step:
                return
            time.sleep(0.05)
        raise AssertionError(self.ended(process)[1])


def test_ctrl_c_at_a_terminal_and_a_second_one(texts, tmp_path):
    """It reaches all processes of the group, those that load batches too."""
    job = Job(tmp_path / "job", texts, strategy="auto", devices=1, workers=1)
    process = job.start("--trainer.num_sanity_val_steps=0")
    job.reached(process, 20, job.out)
    os.killpg(process.pid, signal.SIGINT)
    status, told = job.ended(process)
    assert status == 130, told
    assert "interrupted: the step is finished and saved" in told
    assert f"Go on:  zoo fit --config {job.recipe}" in told
    assert "Traceback" not in told
    assert not list(job.out.rglob(".*"))
    process = job.start("--ckpt_path=last")
    while process.poll() is None and "the run goes on" not in (job.out / "log").read_text():
        time.sleep(0.05)
    job.reached(process, 100, job.out)
    os.kill(process.pid, signal.SIGSTOP)  # so that it cannot finish a step in between
    os.killpg(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    status, told = job.ended(process)
    assert status == 130, told
    assert "Traceback" not in told
    assert not list(job.out.rglob(".*")), "neither a lock nor a part is left"


def test_ctrl_c_before_training(texts, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Text, "prepare_data", stop)
    recipe = tmp_path / "recipe.yaml"
    given = {"texts": texts, "cache": tmp_path / "cache", "out": tmp_path / "out", "steps": 4, "workers": 0}
    recipe.write_text(RECIPE.format(strategy="auto", devices=1, **given))
    monkeypatch.setattr(sys, "argv", ["zoo", "fit", "--config", str(recipe)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130


def children(process):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["first", "second"])
def test_two_processes_end_after_the_same_step(who, texts, tmp_path):
    alone = Job(tmp_path / "alone", texts, strategy="ddp", devices=2, steps=250)
    assert alone.ended(alone.start())[0] == 0
    job = Job(tmp_path / "job", texts, strategy="ddp", devices=2, steps=250)
    process = job.start("--ckpt_path=auto")
    job.reached(process, 100, job.out)
    os.kill(process.pid if who == "first" else children(process)[0], signal.SIGTERM)
    status, told = job.ended(process)
    assert status == 143, told
    assert told.count("told to terminate") == 1
    assert "Traceback" not in told
    status, told = job.ended(job.start("--ckpt_path=auto"))
    assert status == 0, told
    assert told.count("the run goes on from") == 1

    def weights(folder):
        path = max(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
        return torch.load(path, weights_only=True)

    one, other = weights(alone.out), weights(job.out)
    assert one["global_step"] == other["global_step"] == 250
    assert len(other["generators"]) == 2
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])


@pytest.mark.slow
def test_a_whole_pipeline_ends(texts, tmp_path):
    more = "extend: [{to: 32, method: Linear, finetune: {max_steps: 2}}]\n"
    job = Job(tmp_path / "job", texts, more, strategy="auto", devices=1)
    process = job.start("--ckpt_path=auto")
    job.reached(process, 100, job.out)
    os.kill(process.pid, signal.SIGTERM)
    status, told = job.ended(process)
    assert status == 143, told
    assert f"Go on:  zoo fit --config {job.recipe} --ckpt_path=auto" in told
    assert not (job.out / "1-32-Linear").exists(), "the stage that follows has not begun"
    assert (job.out / "pretrain" / "checkpoints" / "last.ckpt").is_file()
    status, told = job.ended(job.start("--ckpt_path=auto"))
    assert status == 0, told
    assert (job.out / "1-32-Linear" / "checkpoints" / "last.ckpt").is_file()
