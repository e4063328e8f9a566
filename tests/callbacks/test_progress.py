"""What a person sees of a run: on a terminal, elsewhere, and in the files beside it."""

import csv
import io
import logging
import re
import sys
from datetime import datetime

import pytest
import torch
from lightning.pytorch import Trainer
from rich.console import Console
from torch.utils.data import DataLoader

from zoo import loggers
from zoo.callbacks import Throughput, progress
from zoo.callbacks.throughput import memory
from zoo.tasks import LanguageModel


def task():
    return LanguageModel(vocabulary=50, length=16, dim=32, layers=1, heads=2)


def data(count=8):
    tokens = torch.randint(0, 50, (count, 4, 17), generator=torch.Generator().manual_seed(1))
    return DataLoader([{"tokens": t, "documents": torch.zeros_like(t)} for t in tokens], batch_size=None)


class Clock:
    """Stands for the module `time`."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


def run(place, *callbacks, **settings):
    settings = {"max_epochs": 2, "logger": False, "num_sanity_val_steps": 1} | settings
    trainer = Trainer(
        accelerator="cpu", callbacks=list(callbacks), default_root_dir=place, enable_model_summary=False,
        enable_checkpointing=False, **settings,
    )  # fmt: skip
    trainer.fit(task(), data(), data(2))
    return trainer


@pytest.fixture
def terminal(monkeypatch):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "Console", lambda: console)
    monkeypatch.setattr(progress, "REFRESH", 0.0)
    return lambda: re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())


def test_a_terminal_gets_one_bar_for_all_epochs(terminal, tmp_path):
    run(tmp_path, progress.Progress(), Throughput(every=4))
    *_, bar, facts = terminal().strip().splitlines()
    assert re.match(r"training   ━+ 16/16 took 0:00:0\d", bar)
    assert re.match(r" {11}loss [\d.]+ · [\d.]+k? tokens/s · \d+ % MFU · [\d.]+ GiB · val/perplexity \d+", facts)
    assert re.search(r"validation ━+ +\d/2", terminal())
    assert "/1 " not in terminal(), "a rehearsal of the validation is none of a person's business"
    assert all(len(line) <= 100 for line in terminal().splitlines())


def test_log_lines_stand_above_the_bars_and_then_go_straight(terminal, tmp_path, monkeypatch):
    class Speaks(progress.Progress):
        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            seen.append(handler.stream)

    seen, real = [], io.StringIO()
    monkeypatch.setattr("sys.stderr", real)
    handler = logging.StreamHandler()
    logging.getLogger("zoo").addHandler(handler)
    try:
        run(tmp_path, Speaks())
    finally:
        logging.getLogger("zoo").removeHandler(handler)
    assert len(seen) == 16
    assert real not in seen
    assert handler.stream is real


@pytest.mark.parametrize(("verb", "word"), [("validate", "validation"), ("test", "test"), ("predict", "prediction")])
def test_measuring_has_a_bar(verb, word, terminal, tmp_path):
    trainer = Trainer(
        accelerator="cpu", callbacks=[progress.Progress()], logger=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    getattr(trainer, verb)(task(), data(3))
    assert re.search(rf"{word} +━+ 3/3", terminal())


@pytest.mark.parametrize(
    ("pace", "steps", "lines"),
    [(1.0, 400, 6), (61.0, 400, 100), (0.01, 400, 0), (61.0, 3, 3)],
)
def test_a_file_gets_few_lines(pace, steps, lines, capsys, monkeypatch):
    class Run:
        max_steps, max_epochs, global_step = steps, -1, 0
        progress_bar_metrics = {"train/loss": torch.tensor(2.5), "tokens/s": 7189.0, "v_num": 3}  # noqa: RUF012

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    bar = progress.Progress()
    bar.on_train_start(Run, None)
    for _ in range(steps):
        clock.now += pace
        Run.global_step += 1
        bar.on_train_batch_end(Run, None, None, None, 0)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == lines
    assert all(re.match(r"step \d+/\d+  loss 2.5 · 7.19k tokens/s  (\d|took)", line) for line in told)


def test_who_does_not_lead_says_nothing(capsys, monkeypatch):
    class Run:
        max_steps, max_epochs, global_step, progress_bar_metrics = 9, -1, 9, {}

    bar = progress.Progress(every=0)
    bar.disable()
    bar.on_train_start(Run, None)
    bar.on_train_batch_end(Run, None, None, None, 0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "done", "rest", "says"),
    [
        (60, 10, 20, r"0:02:00 left, until \d\d:\d\d"),
        (60, 10, 1e6, r"69 days, 10:40:00 left, until \w{3} \d\d \w{3} \d\d:\d\d"),
        (75, 10, 0, "took 0:01:15"),
        (60, 0, 20, ""),
        (60, 5, float("inf"), ""),
    ],
)
def test_the_end_is_estimated(seconds, done, rest, says):
    if datetime.now().hour == 23:
        says = says.replace(r"until \d\d", r"until (\w{3} \d\d \w{3} )?\d\d")
    assert re.fullmatch(says, progress.left(seconds, done, rest))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("train/loss", 2.11449, "loss 2.114"),
        ("tokens/s", 512.0, "512 tokens/s"),
        ("tokens/s", 1234567.0, "1.23M tokens/s"),
        ("images/s", 71890.0, "71.9k images/s"),
        ("mfu", 0.287, "29 % MFU"),
        ("memory", 71.26, "71.3 GiB"),
        ("val/perplexity", 11.3291, "val/perplexity 11.33"),
    ],
)
def test_facts(name, value, says):
    assert progress.fact(name, value) == says


def test_memory_is_at_least_that_of_what_is_held():
    held = torch.ones(2**26)
    assert 0.25 < memory(torch.device("cpu")) < 1000
    assert held[0] == 1


# The files.


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_both_logs_are_in_one_folder(tmp_path):
    for number in range(2):
        both = loggers.both(tmp_path)
        trainer = run(tmp_path, logger=both, log_every_n_steps=1, max_epochs=1)
        folder = tmp_path / "lightning_logs" / f"version_{number}"
        assert trainer.log_dir == str(folder)
        assert any(path.name.startswith("events.") for path in folder.iterdir())
        assert [row["step"] for row in rows(folder / "metrics.csv") if row["train/loss"]] == list(map(str, range(8)))


def test_a_table_is_continued_where_it_was_torn(tmp_path):
    def write(first, name):
        logger = loggers.AppendingCSVLogger(str(tmp_path), name="", version="")
        for step in range(first, first + 3):
            logger.log_metrics({name: float(step)}, step)
        logger.save()

    write(0, "a")
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("3,7.")
    write(3, "b")
    write(6, "a")
    found = [(row["step"], row["a"], row["b"]) for row in rows(tmp_path / "metrics.csv")]
    assert found == [(str(n), "" if 3 <= n < 6 else f"{n}.0", f"{n}.0" if 3 <= n < 6 else "") for n in range(9)]
    (tmp_path / "metrics.csv").write_text("st")
    write(0, "a")
    assert len(rows(tmp_path / "metrics.csv")) == 3


def test_a_log_whose_stream_is_closed_is_taken_over(monkeypatch):
    closed = io.StringIO()
    handler = logging.StreamHandler(closed)
    closed.close()
    logger = logging.getLogger("zoo")
    logger.addHandler(handler)
    try:
        progress.follow()
        assert handler.stream is sys.stderr
    finally:
        logger.removeHandler(handler)
