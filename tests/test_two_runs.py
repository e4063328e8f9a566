"""Two runs in one folder: one goes on, the other is told which; whatever is killed, the result is the same."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from zoo import lock
from zoo.checkpoints import lightning

RECIPE = """
model:
  class_path: LanguageModel
  init_args: {length: 16, dim: 32, layers: 1, heads: 2, dropout: 0.1, position: RoPE}
data:
  class_path: Text
  init_args: {files: texts, tokenizer: bytes, batch: 4, workers: 0, valid: 0.2, test: 0, cache: cache}
trainer:
  accelerator: cpu
  max_steps: 300
  max_epochs: -1
  val_check_interval: 10
  check_val_every_n_epoch: null
  limit_val_batches: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
"""
STAGES = "extend: [{to: 32, method: Linear, finetune: {max_steps: 100}}]\n"
LAST = {"plain": "lightning_logs/*/checkpoints/last.ckpt", "staged": "1-32-Linear/checkpoints/last.ckpt"}


class Place:
    """A folder with a recipe, in which commands are started."""

    def __init__(self, path, stages=""):
        (path / "texts").mkdir(parents=True)
        for number in range(8):
            (path / "texts" / f"{number}.txt").write_text(" ".join(str(number * 7919 + i * i) for i in range(200)))
        (path / "recipe.yaml").write_text(RECIPE + stages)
        (path / "main.py").write_text("from zoo.cli import main\n\nmain()\n")
        self.path, self.count = path, 0

    def start(self, *words):
        self.count += 1
        log = (self.path / f"log{self.count}").open("w")
        command = [sys.executable, "main.py", *words]
        process = subprocess.Popen(command, cwd=self.path, stdout=log, stderr=log, start_new_session=True)
        process.log = self.path / f"log{self.count}"
        return process

    def fit(self, root="run", *words):
        return self.start(
            "fit", "--config", "recipe.yaml", f"--trainer.default_root_dir={root}", "--ckpt_path=auto", *words
        )


def finish(process):
    status = process.wait(200)
    told = process.log.read_text()
    assert "Traceback" not in told, told
    return status, told


def last(place, root, kind):
    paths = sorted((place.path / root).glob(LAST[kind]), key=lambda path: path.stat().st_mtime)
    return lightning.load(paths[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "staged"])
def test_two_runs_of_one_folder_of_which_the_living_one_is_killed_ten_times(kind, tmp_path):
    place, draw = Place(tmp_path, STAGES if kind == "staged" else ""), random.Random(10)
    assert finish(place.fit("alone"))[0] == 0
    for number in range(10):
        pair = [place.fit(), place.fit()]
        while all(process.poll() is None for process in pair):
            time.sleep(0.02)
        second, first = sorted(pair, key=lambda process: process.poll() is None)
        status, told = finish(second)
        assert status == 2 or (status == 0 and number), told
        if status == 0:
            continue  # the run had come to its end
        assert f"run is the folder of another run: the run of process {first.pid} on {lock.host_name()}" in told
        time.sleep(draw.random() * 3)
        first.send_signal(signal.SIGKILL)
        first.wait()
    status, told = finish(place.fit())
    assert status == 0, told
    one, other = (last(place, root, kind) for root in ("alone", "run"))
    assert one["global_step"] == other["global_step"]
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])
    assert not list((tmp_path / "run").rglob(".*")), "neither a lock nor a part is left"


def test_runs_in_one_folder_one_after_the_other_and_another_recipe_meanwhile(tmp_path):
    place = Place(tmp_path)
    first = place.start("fit", "--config=recipe.yaml", "--trainer.default_root_dir=run", "--trainer.max_steps=99999")
    while not list((tmp_path / "run").rglob("last.ckpt")):
        assert first.poll() is None, finish(first)
        time.sleep(0.05)
    words = ("--model.position=ALiBi", "--trainer.max_steps=2")
    second = place.start("fit", "--config=recipe.yaml", "--trainer.default_root_dir=run", *words)
    status, told = finish(second)
    assert status == 2
    assert f"process {first.pid}" in told
    first.terminate()
    assert finish(first)[0] == 143
    assert finish(place.start("fit", "--config=recipe.yaml", "--trainer.default_root_dir=run", *words))[0] == 0
    before, after = (lightning.load(path)["global_step"] for path in sorted((tmp_path / "run").rglob("last.ckpt")))
    assert before > after == 2, "version_0 and version_1"


@pytest.mark.parametrize(
    "command", ["extend", pytest.param("hf", marks=pytest.mark.slow), pytest.param("gguf", marks=pytest.mark.slow)]
)
def test_what_a_killed_command_left_goes_with_the_next(command, tmp_path):
    pytest.importorskip("transformers" if command == "hf" else "gguf" if command == "gguf" else "torch")
    place = Place(tmp_path)
    assert finish(place.fit("run", "--trainer.max_steps=1", "--data.tokenizer=bpe", "--data.vocabulary=300"))[0] == 0
    checkpoint = str(next((tmp_path / "run").rglob("model")))
    out = tmp_path / "out" / ("x.gguf" if command == "gguf" else "x")
    words = {
        "extend": ["extend", checkpoint, "--to", "32", "--method", "Linear", "--evaluate", "none", "--out", str(out)],
        "hf": ["export", checkpoint, "--to", "hf", "--out", str(out)],
        "gguf": ["export", checkpoint, "--to", "gguf", "--out", str(out)],
    }[command]
    code = "import os, signal, zoo.extend.write as w\nfrom zoo.cli import main\n"
    code += "w.flush = lambda path: os.kill(os.getpid(), signal.SIGKILL)\nmain()\n"
    (tmp_path / "main.py").write_text(code)
    assert place.start(*words).wait(100) == -signal.SIGKILL
    (left,) = (tmp_path / "out").iterdir()
    assert lock.OWNED.fullmatch(left.name)
    held = lock.part_path(tmp_path / "out" / "other")
    held.write_text("of a living process")
    (tmp_path / "main.py").write_text("from zoo.cli import main\n\nmain()\n")
    assert finish(place.start(*words))[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {out.name, held.name}
    os.remove(held)
