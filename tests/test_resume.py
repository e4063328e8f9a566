"""A run that is killed in mid-epoch and continued gives, step for step, the losses of one that was left alone."""

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


@pytest.fixture
def start(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(12):
        words = " ".join(str(number * 7919 + i * i) for i in range(320))
        (texts / f"{number}.txt").write_text(words)

    def prepare(name: str) -> Path:
        out = tmp_path / name
        out.mkdir()
        recipe = RECIPE.format(files=texts, cache=tmp_path / "cache", out=out)
        (out / "recipe.yaml").write_text(recipe)
        return out

    return prepare


def test_a_killed_run_continues_exactly(start):
    alone = start("alone")
    subprocess.run(command(alone), check=True, capture_output=True)
    whole = losses(alone)
    assert sorted(whole) == list(range(75))
    assert len(set(whole.values())) > 70, "the losses tell the steps apart"

    cut = start("cut")
    run = subprocess.Popen(command(cut), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    limit = time.monotonic() + 240
    while max(losses(cut), default=0) < 37 and run.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    assert run.poll() is None, "the run ended before it could be killed"
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
