"""Runs `zoo` in several processes as torchrun does; they are forked off one that has imported everything."""

import csv
import multiprocessing
import os
import socket
import sys
import traceback
from pathlib import Path

RECIPE = """
model:
  class_path: LanguageModel
  init_args: {length: 16, dim: 32, layers: 2, heads: 2, position: RoPE, schedule: WarmupCosine}
data:
  class_path: Text
  init_args: {files: texts, tokenizer: bytes, batch: 8, workers: 0, valid: 0.2, test: 0.2, cache: cache}
trainer:
  max_steps: 10
  max_epochs: -1
  accelerator: cpu
  val_check_interval: 5
  check_val_every_n_epoch: null
  limit_val_batches: 2
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: run, name: "", version: ""}}
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: run
"""
OVERLAYS = Path(__file__).parent.parent.parent / "recipes" / "scale"
BATCH = 8
"""Sequences of a step, over all processes."""


def furnish(place, recipe=RECIPE):
    """A folder with texts and a recipe."""
    (place / "texts").mkdir(parents=True)
    for number in range(12):
        words = " ".join(f"word{(number * i * i + number) % 97}" for i in range(500))
        (place / "texts" / f"{number}.txt").write_text(words)
    (place / "recipe.yaml").write_text(recipe)
    return place


def begin(place, processes, *words, overlay=None, before="", verb="fit"):
    """The processes of a run that has begun; `before` is Python that each executes first."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo.train", *(["deepspeed"] if overlay and "zero" in overlay else [])])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = ["zoo", verb, "--config", "recipe.yaml"]
    said += ["--config", str(OVERLAYS / f"{overlay}.yaml")] if overlay else []
    said += ["--trainer.accelerator=cpu", f"--trainer.devices={processes}", f"--data.batch={BATCH // processes}"]
    started = []
    for rank in range(processes):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "none",
        }
        told = environment if processes > 1 else {}
        process = context.Process(target=run, args=(str(place), rank, [*said, *words], told, before))
        process.start()
        started.append(process)
    return started


def run(place, rank, words, environment, before):
    """One process."""
    os.chdir(place)
    os.environ.update(environment)
    with open(f"log-{rank}.txt", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    torch.set_num_threads(1)
    rank_zero_only.rank = rank
    sys.argv = words
    try:
        exec(before, {})
        from zoo.cli import main

        main()
    except SystemExit:
        raise
    except BaseException:  # told here, and the others must not wait at the interpreter's end
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def end(place, processes, timeout=240, status=0):
    """Wait for all; what the first of them printed."""
    try:
        for process in processes:
            process.join(timeout)
        log = (place / "log-0.txt").read_text()
        assert [process.exitcode for process in processes] == [status] * len(processes), log[-4000:]
        return log
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def fit(place, processes, *words, timeout=240, status=0, **more):
    """Run to the end; what the first process printed."""
    return end(place, begin(place, processes, *words, **more), timeout, status)


def curve(place, name="train/loss"):
    """Figures by step."""
    with next(place.rglob("metrics.csv")).open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row[name]}
