"""DDP and FSDP on two CPU processes are one process, and what they leave behind is what one process leaves."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from zoo import checkpoints
from zoo.errors import ZooError
from zoo.scale import FSDP

HERE = Path(__file__).parent
OVERLAYS = HERE.parent.parent / "recipes" / "scale"
RECIPE = """
model:
  class_path: LanguageModel
  init_args:
    {length: 32, dim: 32, layers: 2, heads: 2, position: T5, schedule: WarmupCosine, chunk: 100, checkpointing: true}
data:
  class_path: Text
  init_args: {files: TEXTS, tokenizer: bytes, batch: 4, workers: 0, valid: 0.2, test: 0, cache: CACHE}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 12
  max_epochs: -1
  val_check_interval: 8
  check_val_every_n_epoch: null
  accumulate_grad_batches: 2
  gradient_clip_val: 0.5
  limit_val_batches: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  logger: [{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: OUT, name: null, version: ''}}]
  callbacks:
    - {class_path: ModelCheckpoint, init_args: {dirpath: OUT/kept, every_n_train_steps: 4, save_top_k: -1}}
"""
QUICK = ("RoPE", "FIRE", "ViT")
TWO = ("--trainer.accelerator", "cpu", "--trainer.devices", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What two processes find, for these cases or for all: for each process {case: {quantity: distance}}."""

    def run(*names):
        folder = tmp_path_factory.mktemp("fsdp")
        done = subprocess.run(
            [sys.executable, str(HERE / "fsdp_run.py"), str(folder), *names],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((folder / "found.json").read_text())

    return run


def equal(everyone):
    for found in everyone:
        for name, case in found.items():
            assert "error" not in case, f"{name}: {case['error']}"
            assert case["cut"] >= 9, "every matrix of two blocks, and the embedding"
            for what, most in (
                ("gradient", 1e-4),
                ("norm", 1e-5),
                ("weights", 1e-5),
                ("moments", 1e-6),
                ("loss", 1e-5),
            ):
                assert case[what] < most, f"{name}: {what}"
            assert case["loaded"] < 1e-6, name


def test_divided_models_train_as_whole_ones(trained):
    equal(trained(*QUICK))


@pytest.mark.slow
def test_so_do_those_of_every_kind(trained):
    everyone = trained()
    assert len(everyone[0]) >= 9
    equal(everyone)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_an_overlay_is_short_and_says_why_it_exists(name):
    lines = (OVERLAYS / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith(f"# {name.upper()}")
    assert len(lines) < 10
    trainer = yaml.safe_load("\n".join(lines))["trainer"]
    assert (trainer["accelerator"], trainer["devices"]) == ("auto", "auto")
    assert "precision" not in trainer, "which is the recipe's"


def test_importing_strategies_does_not_import_deepspeed():
    script = "import sys, zoo.scale; assert 'deepspeed' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_stay_float32(precision):
    strategy = FSDP()
    Trainer(strategy=strategy, accelerator="cpu", devices=2, precision=precision, logger=False)
    with pytest.raises(ZooError, match=f"precision is {precision}.*bf16-mixed"):
        strategy.setup(None)


class Runs:
    """Runs of one small recipe, by name."""

    def __init__(self, folder):
        self.folder, self.done = folder, {}
        for number in range(12):
            self.write(folder / "texts" / f"{number}.txt", number)
        self.script = folder / "zoo_main.py"  # which Lightning starts again for the second process
        self.script.write_text("from zoo.cli import main\n\nif __name__ == '__main__':\n    main()\n")

    def write(self, path, number):
        path.parent.mkdir(exist_ok=True)
        path.write_text(" ".join(str(number * 7919 + i * i) for i in range(320)))
        return path

    def unseen(self):
        return self.write(self.folder / "unseen.txt", 12)

    def command(self, *words):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(self.script), *words],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    def fit(self, name, *flags):
        if name in self.done:
            return self.done[name]
        out = self.folder / name
        out.mkdir(exist_ok=True)
        recipe = RECIPE
        for word, path in {"TEXTS": self.folder / "texts", "CACHE": self.folder / "cache", "OUT": out}.items():
            recipe = recipe.replace(word, str(path))
        (out / "recipe.yaml").write_text(recipe)
        self.command("fit", "--config", str(out / "recipe.yaml"), *flags)
        self.done[name] = out
        return out

    def one(self):
        return self.fit("one", "--data.batch", "8")

    def two(self, overlay):
        return self.fit(overlay, "--config", str(OVERLAYS / f"{overlay}.yaml"), *TWO)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


def curve(out, column):
    with (out / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row.get(column)}


def saved(out, step):
    (path,) = (out / "kept").glob(f"*step={step}.ckpt")
    return path


def alike(one, other, step=12, most=1e-4):
    """Two saves, weights and moments and all that counts."""
    there, here = (torch.load(saved(out, step), weights_only=True) for out in (one, other))
    assert list(there["state_dict"]) == list(here["state_dict"])
    for name, value in there["state_dict"].items():
        assert type(here["state_dict"][name]) is torch.Tensor
        assert torch.allclose(value, here["state_dict"][name], atol=most), name
    (before,), (after,) = there["optimizer_states"], here["optimizer_states"]
    assert before["param_groups"] == after["param_groups"]
    assert before["state"].keys() == after["state"].keys()
    for number, moments in before["state"].items():
        for name, value in moments.items():
            assert torch.allclose(value, after["state"][number][name], atol=most), (number, name)


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["ddp", "fsdp"])
def test_two_processes_train_as_one(runs, overlay):
    one, two = runs.one(), runs.two(overlay)
    for column, count in (("val/perplexity", 3), ("train/loss", 12)):
        there, here = curve(one, column), curve(two, column)
        assert len(there) == len(here) == count
        assert here == pytest.approx(there, rel=1e-4), column
    for step in (4, 8, 12):
        alike(one, two, step)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(runs):
    one, two = runs.one(), runs.two("fsdp")
    fsdp = ("--config", str(OVERLAYS / "fsdp.yaml"), *TWO)
    again = runs.fit("again", *fsdp, "--ckpt_path", str(saved(two, 8)))
    alike(two, again, most=1e-6)
    assert min(curve(again, "train/loss")) == 8, "it went on"
    alike(one, runs.fit("divided", *fsdp, "--ckpt_path", str(saved(one, 8))))
    alike(one, runs.fit("joined", "--data.batch", "8", "--ckpt_path", str(saved(two, 8))))


@pytest.mark.slow
def test_every_command_reads_what_fsdp_leaves(runs):
    two = runs.two("fsdp")
    last = str(saved(two, 12))
    whole = checkpoints.read(last)
    folder = checkpoints.read(two / "model")
    for name, value in whole.weights.items():
        assert torch.equal(value, folder.weights[name]), name
    runs.command("extend", last, "--to", "64", "--method", "BucketScaling", "--out", str(two / "far.ckpt"))
    runs.command(
        "evaluate",
        last,
        "--lengths",
        "32",
        "--measures",
        "perplexity",
        "--files",
        str(runs.unseen()),
        "--out",
        str(two / "report"),
    )
    runs.command("validate", "--ckpt_path", last, "--config", str(OVERLAYS / "fsdp.yaml"), *TWO)
    runs.command("generate", last, "--prompt", "12", "--tokens", "4")


@pytest.mark.slow
def test_a_compiled_model_trains_as_one_that_is_not(runs):
    two, overlay = runs.two("fsdp"), str(OVERLAYS / "fsdp.yaml")
    flags = ["--model.compile", "true", "--model.checkpointing", "false"]
    alike(two, runs.fit("compiled", "--config", overlay, *TWO, *flags))
    with pytest.raises(AssertionError, match=r"zoo: FSDP compiles block by block[^|]*exclude each other"):
        runs.fit("refused", "--config", overlay, *TWO, "--model.compile", "true", "--model.checkpointing", "true")
