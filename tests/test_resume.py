"""A run that is stopped in mid-epoch and continued gives, step for step, the losses of one that was left alone."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """
model:
  class_path: LanguageModel
  init_args: {{length: 64, dim: 128, layers: 3, heads: 4, dropout: 0.2, schedule: WarmupCosine}}
data:
  class_path: Text
  init_args: {{files: {files}, tokenizer: bytes, batch: 8, workers: 2, valid: 0.2, test: 0, cache: {cache}}}
trainer:
  accelerator: cpu
  default_root_dir: {out}
  max_steps: 75
  max_epochs: -1
  val_check_interval: 10
  limit_val_batches: 1
  num_sanity_val_steps: 1
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    class_path: CSVLogger
    init_args: {{save_dir: {out}, name: null, version: '', flush_logs_every_n_steps: 1}}
  callbacks:
    - {{class_path: ModelCheckpoint, init_args: {{dirpath: {out}/kept, every_n_train_steps: 7, save_top_k: -1}}}}
"""


def command(out: Path, *flags: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        "from zoo.cli import main; main()",
        "fit",
        "--config",
        str(out / "recipe.yaml"),
        *flags,
    ]


def losses(out: Path) -> dict[int, str]:
    if not (out / "metrics.csv").is_file():
        return {}
    with (out / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss") and (row.get("step") or "").isdigit()]
        return {int(row["step"]): row["train/loss"] for row in rows}  # the last may be half written: the run goes on


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    place = tmp_path_factory.mktemp("resume")
    texts = place / "texts"
    texts.mkdir()
    for number in range(12):
        words = " ".join(str(number * 7919 + i * i) for i in range(320))
        (texts / f"{number}.txt").write_text(words)

    def prepare(name: str) -> Path:
        out = place / name
        out.mkdir()
        recipe = RECIPE.format(files=texts, cache=place / "cache", out=out)
        (out / "recipe.yaml").write_text(recipe)
        return out

    return prepare


@pytest.fixture(scope="module")
def whole(start):
    alone = start("alone")
    subprocess.run(command(alone), check=True, capture_output=True)
    found = losses(alone)
    assert sorted(found) == list(range(75))
    assert len(set(found.values())) > 70, "the losses tell the steps apart"
    return found


def reach(run: subprocess.Popen, out: Path, step: int) -> None:
    limit = time.monotonic() + 240
    while max(losses(out), default=0) < step and run.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    assert run.poll() is None, "the run ended before it could be stopped"


def test_a_killed_run_continues_exactly(start, whole):
    cut = start("cut")
    run = subprocess.Popen(command(cut), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    reach(run, cut, 37)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    reached = max(losses(cut))
    assert 37 <= reached < 74
    kept = sorted((cut / "kept").glob("*.ckpt"), key=lambda path: int(path.stem.split("step=")[1]))
    steps = int(kept[-1].stem.split("step=")[1])
    assert 0 < steps <= reached + 1

    rest = start("rest")
    subprocess.run(command(rest, "--ckpt_path", str(kept[-1])), check=True, capture_output=True)
    after = losses(rest)
    assert sorted(after) == list(range(steps, 75))
    assert after == {step: whole[step] for step in range(steps, 75)}


@pytest.mark.slow
def test_a_terminated_run_is_started_again_by_the_same_words(start, whole):
    out = start("terminated")
    words = command(out, "--ckpt_path", "auto")
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    reach(run, out, 23)
    run.send_signal(signal.SIGTERM)
    told = run.communicate(timeout=60)[1]
    assert run.returncode == 143, told
    before = losses(out)
    reached = max(before)
    assert 23 <= reached < 74
    assert f"there is no checkpoint under {out}: the run starts from the beginning" in told
    place = out / "kept" / "last.ckpt"
    recipe = out / "recipe.yaml"
    assert f"stopped after {reached + 1} steps. Saved: {place}   Go on:  zoo fit --config {recipe}" in told
    assert "Traceback" not in told

    again = subprocess.run(words, check=True, capture_output=True, text=True)
    assert f"the run goes on from {place}, after {reached + 1} steps" in again.stderr
    assert {step: loss for step, loss in losses(out).items() if step > reached} == {
        step: loss for step, loss in whole.items() if step > reached
    }
    assert before == {step: loss for step, loss in whole.items() if step <= reached}
