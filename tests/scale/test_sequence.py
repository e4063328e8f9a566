"""Processes that share each sequence train as one process does, whatever the encoding, the kernel and the mask."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from zoo import plugins
from zoo.callbacks import throughput
from zoo.data.stream import Stream
from zoo.data.text import placed
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.kernel import Eager
from zoo.position import Encoding, Geometry, NoPE, PositionEncoding
from zoo.scale.sequence import Slice, enough, fit, join, uneven
from zoo.tasks import LanguageModel

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("cases", HERE / "cases.py")
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

GEOMETRY = Geometry(dim=32, heads=4, kv_heads=2, head_dim=8, length=(24,))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What differs in a case, from a run of all quick ones, or of all."""

    @cache
    def found(quick):
        folder = tmp_path_factory.mktemp("found")
        names = cases.QUICK if quick else []
        script = [sys.executable, str(HERE / "sequence_run.py"), str(folder), *names]
        done = subprocess.run(
            script, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((folder / "found.json").read_text())

    return found


def equal(found):
    assert "error" not in found, found.get("error")
    for one in found["all"]:
        assert one["touched"] >= 3, "hardly anything got a gradient"
        assert one["loss"] < 2e-6
        assert one["gradients"] < 1e-4, one["which"]
        assert one["weights"] < 5e-5
        assert one["perplexity"] < 1e-5
        assert one["predicted"] < 1e-4


@pytest.mark.parametrize("name", cases.QUICK)
def test_they_train_as_one_process(measured, name):
    equal(measured(True)[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.CASES)
def test_they_train_as_one_process_in_every_case(measured, name):
    equal(measured(False)[name])


def ours(group):
    return {name for name in plugins.names(group) if plugins.origin(plugins.find(group, name))[0] == "positionzoo"}


def test_every_encoding_and_kernel_that_can_is_among_the_cases():
    tried = {case[slot] for case in cases.CASES.values() for slot in ("position", "kernel")}
    for name in ours("zoo.positions") - tried:
        with pytest.raises(ZooError, match=r"axis|text"):
            plugins.load("zoo.positions", name)(GEOMETRY)
    assert ours("zoo.kernels") - tried == {"Flex"}  # which has no gradients on a CPU


class Learning(Eager):
    """Numbers of its own, and not a word about whose they are."""

    def __init__(self, geometry):
        super().__init__(geometry)
        self.gain = nn.Parameter(torch.ones(geometry.heads))


class Constant(Eager):
    """The same, which it does not learn."""

    def __init__(self, geometry):
        super().__init__(geometry)
        self.register_buffer("gain", torch.ones(geometry.heads))


class Divisible(Learning):
    """It reads them through `share`."""

    divisible = True


class Reading(PositionEncoding):
    """Scales logits by what it reads of the tokens so far."""

    content = True

    def forward(self, queries, keys, extent, hidden=None, state=None):
        return Encoding(scale=hidden.sum(-1).cumsum(-1).sigmoid())


def test_what_cannot_be_shared_out_is_refused():
    position, kernel = NoPE(GEOMETRY), Eager(GEOMETRY)
    for size in (1, 2, 4):
        fit(size, position, kernel)
    with pytest.raises(ZooError, match=r"4 heads, which 3 does not.*1, 2, 4.*--model.sequence_parallel 4"):
        fit(3, position, kernel)
    with pytest.raises(ZooError, match="does not divide"):
        fit(8, position, kernel)
    for kind in (Learning, Constant):
        with pytest.raises(ZooError, match=f"kernel {kind.__name__}, .*Try:  --model.kernel Auto"):
            fit(2, position, kind(GEOMETRY))
    fit(2, position, Divisible(GEOMETRY))
    with pytest.raises(ZooError, match="does not go with Reading, which reads hidden states"):
        fit(2, Reading(GEOMETRY), kernel)
    fit(2, plugins.load("zoo.positions", "FoX")(GEOMETRY), kernel)


def test_processes_make_up_whole_groups():
    for size, world in ((1, 1), (1, 3), (2, 4), (4, 4)):
        enough(size, world)
    with pytest.raises(ZooError, match=r"this run is of one process.*--trainer.devices 2"):
        enough(2, 1)
    with pytest.raises(ZooError, match=r"this run is of 6 processes.*no multiple"):
        enough(4, 6)
    with pytest.raises(ZooError, match="of one process"):
        join(2)


def test_tokens_are_shared_out_evenly_or_not_at_all():
    x = torch.arange(24).view(2, 12)
    parts = [Slice(rank, 3, None).tokens(x) for rank in range(3)]
    assert torch.equal(torch.cat(parts, 1), x)
    with pytest.raises(ZooError, match=r"5 does not divide 12.*blocks of 10"):
        Slice(0, 5, None).tokens(x)
    assert "blocks of 4" in uneven(3, 4)
    task = LanguageModel(vocabulary=8, length=21, dim=32, layers=1, heads=4, sequence_parallel=2)
    task.trainer = SimpleNamespace(datamodule=None)
    with pytest.raises(ZooError, match=r"2 does not divide 21.*blocks of 20"):
        task.verify()


def test_a_task_says_what_does_not_go_before_anything_is_made():
    with pytest.raises(ZooError, match="at least 1, and got 0"):
        LanguageModel(sequence_parallel=0)
    task = LanguageModel(length=24, dim=96, layers=1, heads=3, sequence_parallel=2)
    with pytest.raises(ZooError, match="of one process"):
        task.rehearse()
    with pytest.raises(ZooError, match="3 heads"):
        task.rehearse(2)


def test_there_is_no_cache_of_a_shared_sequence():
    network = Decoder(vocabulary=8, length=24, dim=32, layers=1, heads=4)
    with pytest.raises(ZooError, match="generation runs on one process"):
        network.hidden(torch.zeros(1, 4, dtype=torch.long), cache=SimpleNamespace(), parallel=Slice(0, 2, None))


def test_processes_that_share_sequences_read_the_same():
    def reader(rank, world, **task):
        trainer = SimpleNamespace(global_rank=rank, world_size=world, lightning_module=SimpleNamespace(**task))
        trainer.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=None))
        return placed(trainer)[:2]

    assert [reader(rank, 4, sequence_parallel=2) for rank in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert [reader(rank, 4, sequence_parallel=4) for rank in range(4)] == [(0, 1)] * 4
    assert [reader(rank, 2) for rank in range(2)] == [(0, 2), (1, 2)]


def test_a_stream_keeps_one_place_for_those_who_share(monkeypatch):
    def told(ranks, own):
        ranks[:] = [{"batches": 0, "place": number // 2} for number in range(len(ranks))]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_gather_object", told)
    stream = Stream.__new__(Stream)
    stream.packer, stream.world, stream.workers = SimpleNamespace(seed=0, batch=1, length=8), 2, 0
    stream.past, stream.finished, stream.restored = [{"batches": 0}], None, False
    assert [place["place"] for place in stream.state_dict()["ranks"]] == [0, 1]


@pytest.mark.parametrize(("share", "readers"), [(1, 4), (2, 2), (4, 1)])
def test_a_token_that_is_shared_is_counted_once(monkeypatch, share, readers):
    monkeypatch.setattr(throughput, "peak", lambda device, dtype: 0.0)  # of a clock that stands still there is none
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: 2.0)
    told, task = {}, LanguageModel(vocabulary=8, length=24, dim=32, layers=1, heads=4, sequence_parallel=share)
    task.log, task.flops = (lambda name, value, **rest: told.update({name: value})), (lambda: 1)
    trainer, meter = SimpleNamespace(world_size=4, precision="32-true"), throughput.Throughput(every=1)
    meter.on_train_batch_end(trainer, task, None, {"tokens": torch.zeros(3, 25)}, 0)
    assert told["tokens/s"] == 3 * 24 * readers / 2


RECIPE = """
model:
  class_path: LanguageModel
  init_args: {length: 48, dim: 32, layers: 2, heads: 4, kv_heads: 1, position: FIRE, within_documents: true}
data:
  class_path: Text
  init_args: {files: TEXTS, tokenizer: bytes, batch: 2, workers: 0, valid: 0.2, test: 0, cache: CACHE}
trainer:
  accelerator: cpu
  max_steps: 8
  val_check_interval: 4
  limit_val_batches: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: OUT, name: null, version: ''}}
  callbacks:
  - {class_path: ModelCheckpoint, init_args: {dirpath: OUT/kept, every_n_train_steps: 4, save_top_k: -1}}
"""


def curve(out, column):
    with (out / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row[column]}


@pytest.fixture
def fit_recipe(tmp_path):
    """Runs `zoo fit` in a folder of its own, from a file, which Lightning starts again for the second process."""
    (tmp_path / "texts").mkdir()
    for number in range(12):
        words = " ".join(str(number * 7919 + i * i) for i in range(60 + 9 * number))
        (tmp_path / "texts" / f"{number}.txt").write_text(words)
    script = tmp_path / "start.py"
    script.write_text("from zoo.cli import main\n\nif __name__ == '__main__':\n    main()\n")

    def run(name, *flags):
        out = tmp_path / name
        out.mkdir()
        recipe = RECIPE
        for word, path in {"TEXTS": tmp_path / "texts", "CACHE": tmp_path / "cache", "OUT": out}.items():
            recipe = recipe.replace(word, str(path))
        (out / "recipe.yaml").write_text(recipe)
        words = [sys.executable, str(script), "fit", "--config", str(out / "recipe.yaml"), *flags]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=out, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        return out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_they_do_with_weights_divided_by_zero(fit_recipe, stage):
    pytest.importorskip("deepspeed")
    overlays = [
        HERE.parent.parent / "recipes" / "scale" / f"{name}.yaml" for name in (f"zero{stage}", "sequence_parallel")
    ]
    flags = [word for overlay in overlays for word in ("--config", str(overlay))]
    shared = fit_recipe("shared", *flags, "--trainer.accelerator", "cpu", "--trainer.devices", "2")
    assert curve(shared, "train/loss") == pytest.approx(curve(fit_recipe("alone"), "train/loss"), rel=1e-5)


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(fit_recipe):
    overlay = HERE.parent.parent / "recipes" / "scale" / "sequence_parallel.yaml"
    two = ("--config", str(overlay), "--trainer.devices", "2", "--trainer.strategy", "ddp")
    alone, shared = fit_recipe("alone"), fit_recipe("shared", *two)
    for column, count in (("train/loss", 8), ("val/perplexity", 2)):
        expected = curve(alone, column)
        assert len(expected) == count
        assert curve(shared, column) == pytest.approx(expected, rel=1e-5), column
    there, here = (torch.load(out / "kept" / "epoch=0-step=8.ckpt") for out in (alone, shared))
    assert "sequence_parallel" not in json.dumps(here["zoo"])
    assert here["zoo"]["network"] == there["zoo"]["network"]

    # One process continues what two began, and the other way round, without a word about it.
    middle = "kept/epoch=0-step=4.ckpt"
    expected = {step: loss for step, loss in curve(alone, "train/loss").items() if step >= 4}
    for name, source, flags in (("one", shared, ()), ("both", alone, two)):
        continued = curve(fit_recipe(name, "--ckpt_path", str(source / middle), *flags), "train/loss")
        assert continued == pytest.approx(expected, rel=1e-5)
