"""A disk that takes no more ends a run with a sentence, and what was saved before is whole."""

import errno
import os
import resource
import subprocess
import sys

import pytest

from zoo import cli, lock
from zoo.checkpoints import folder, lightning
from zoo.errors import ZooError
from zoo.loggers import Appending

RECIPE = """
model:
  class_path: LanguageModel
  init_args: {length: 16, dim: 32, layers: 2, heads: 2, position: RoPE}
data:
  class_path: Text
  init_args: {files: texts, tokenizer: bytes, batch: 4, workers: 0, valid: 0.2, test: 0, cache: cache}
trainer:
  accelerator: cpu
  max_steps: 6
  max_epochs: -1
  val_check_interval: 2
  check_val_every_n_epoch: null
  limit_val_batches: 1
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
"""


def fit(*words):
    before, sys.argv = sys.argv, ["zoo", "fit", "--config", "recipe.yaml", *map(str, words)]
    try:
        cli.run(sys.argv[1:])
    finally:
        sys.argv = before


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    for number in range(8):
        (tmp_path / "texts" / f"{number}.txt").write_text(" ".join(str(number * 7919 + i * i) for i in range(80)))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def whole(root):
    """The steps of the checkpoints under a folder, all of which can be read."""
    assert not list(root.rglob(".*")), "neither a lock nor a part is left"
    return sorted(lightning.load(path)["global_step"] for path in root.rglob("*.ckpt"))


def test_a_file_that_may_grow_no_longer(place):
    """torch.save's own writer, whose error hides what the system said."""
    fit("--trainer.default_root_dir=run", "--trainer.max_steps=2")
    assert whole(place / "run") == [2, 2]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ZooError) as error:
            fit("--trainer.default_root_dir=run", "--ckpt_path=last")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told = str(error.value)
    assert "step=4.ckpt was not written: File too large. What was saved before is as it was." in told
    assert "zoo fit --config recipe.yaml --trainer.default_root_dir=run --ckpt_path auto" in told
    assert whole(place / "run") == [2, 2]


@pytest.fixture
def disk(tmp_path):
    """Makes small file systems, where the tests may."""
    made = []

    def mount(size):
        path = tmp_path / "disk"
        path.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
        if done.returncode:
            pytest.skip("no file system can be mounted here")
        made.append(path)
        return path

    yield mount
    for path in made:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root mounts a small file system")
@pytest.mark.parametrize(("checkpoints", "kept"), [(0.02, []), (1.3, [2]), (2.5, [2, 2])])
def test_a_disk_that_fills(place, disk, checkpoints, kept):
    fit("--trainer.default_root_dir=run", "--trainer.max_steps=2")
    size = next((place / "run").rglob("last.ckpt")).stat().st_size
    root = disk(int(size * checkpoints)) / "run"
    with pytest.raises(ZooError, match=r"No space left on device\. What was saved before is as it was"):
        fit(f"--trainer.default_root_dir={root}")
    assert whole(root) == kept


@pytest.mark.parametrize("where", ["table", "events", "release"])
def test_logs_and_the_release(place, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "table":
        monkeypatch.setattr(Appending, "save", full)
    elif where == "events":
        from tensorboard.summary.writer import record_writer

        monkeypatch.setattr(record_writer.RecordWriter, "write", full)
    else:
        monkeypatch.setattr(folder, "pack", full)
    with pytest.raises(ZooError, match="No space left on device"):
        fit("--trainer.default_root_dir=run")
    assert set(whole(place / "run")) <= {6}, "that of the last step, or none where logging failed before"
    if where == "release":
        assert whole(place / "run") == [6, 6]


def test_what_torch_says_of_a_disk_where_it_writes_by_itself(place):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(RuntimeError) as error:
            lightning.torch.save(lightning.torch.zeros(100_000), place / "x.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lock.is_disk_full(error.value)
    assert not lock.is_disk_full(RuntimeError("PytorchStreamReader failed reading file data/0: file read failed"))
