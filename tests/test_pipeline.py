"""Recipes in stages: what they leave, what they say of it, and that no interruption changes the result."""

import json
import multiprocessing
import os
import random
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from zoo import checkpoints, cli, pipeline
from zoo.checkpoints import lightning
from zoo.errors import ZooError
from zoo.tasks import LanguageModel

RECIPE = """
model:
  class_path: LanguageModel
  init_args: {length: 16, dim: 32, layers: 2, heads: 2, dropout: 0.1, position: RoPE, schedule: WarmupCosine}
data:
  class_path: Text
  init_args: {files: texts, tokenizer: bytes, batch: 8, workers: 0, valid: 0.2, test: 0.2, cache: cache}
trainer:
  max_steps: 12
  max_epochs: -1
  accelerator: cpu
  val_check_interval: 5
  check_val_every_n_epoch: null
  limit_val_batches: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: run
extend:
- {to: 64, method: YaRN, arguments: {fast: 16}, finetune: {max_steps: 10, lr: 1.0e-3}}
- {to: 128, method: Resonance+NTK, finetune: {max_steps: 10, positions: pose, length: 24, warmup: 2}}
"""
LINEAR = "--model.position.extension.factor=4"
NAMES = ["pretrain", "1-64-YaRN", "2-128-Resonance+NTK"]


def zoo(*words):
    before, sys.argv = sys.argv, ["zoo", *map(str, words)]
    try:
        cli.run(sys.argv[1:])
    finally:
        sys.argv = before


def refused(*words):
    with pytest.raises(ZooError) as error:
        zoo("fit", *words)
    return str(error.value)


def furnish(place, recipe=RECIPE):
    (place / "texts").mkdir(parents=True)
    for number in range(12):
        words = " ".join(f"word{(number * i * i + number) % 97}" for i in range(500))
        (place / "texts" / f"{number}.txt").write_text(words)
    (place / "recipe.yaml").write_text(recipe)
    return place


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder like that of the whole run, where names mean the same."""
    monkeypatch.chdir(furnish(tmp_path / "here"))
    return tmp_path / "here"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    place = furnish(tmp_path_factory.mktemp("whole"))
    before = Path.cwd()
    os.chdir(place)
    try:
        zoo("fit", "--config", "recipe.yaml")
    finally:
        os.chdir(before)
    return place / "run"


def last(run, name=NAMES[-1]):
    return lightning.load(run / name / "checkpoints" / "last.ckpt")


def same(run, other, name=NAMES[-1]):
    one, two = last(run, name), last(other, name)
    assert one["zoo"] == two["zoo"]
    assert one["global_step"] == two["global_step"]
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert all(torch.equal(one["state_dict"][key], two["state_dict"][key]) for key in one["state_dict"])
    for mine, theirs in zip(one["optimizer_states"], two["optimizer_states"], strict=True):
        for key, state in mine["state"].items():
            assert all(torch.equal(state[each], theirs["state"][key][each]) for each in state)


def test_each_stage_says_where_it_comes_from(whole):
    first, second, third = (last(whole, name)["zoo"] for name in NAMES)
    assert "extended" not in first
    assert first["trained"]["steps"] == 12
    assert (second["network"]["init_args"]["length"], second["network"]["init_args"]["reach"]) == (16, 64)
    assert second["parent"] == "run/1-64-YaRN/extended.ckpt"
    assert second["trained"]["steps"] == 10
    (link,) = second["extended"]["chain"]
    assert (link["from"], link["to"], link["factor"], link["steps"]) == (16, 64, 4.0, 12)
    assert link["tuned"] == [{"steps": 10, "length": 64, "positions": "full"}]
    assert third["extended"]["chain"][0] == link
    final = third["extended"]["chain"][1]
    assert (final["from"], final["to"], final["factor"], final["steps"]) == (64, 128, 8.0, 10)
    assert final["tuned"] == [{"steps": 10, "length": 24, "positions": "pose"}]
    inner = third["network"]["init_args"]["position"]["init_args"]["extension"]
    assert inner["class_path"] == "Resonance"
    assert inner["init_args"]["extension"] == {"class_path": "NTK", "init_args": {"factor": 8.0}}
    yarn = second["network"]["init_args"]["position"]["init_args"]["extension"]["init_args"]
    assert (yarn["factor"], yarn["fast"]) == (4.0, 16.0)


def test_each_stage_keeps_its_settings_and_starts_where_the_one_before_ended(whole):
    asked = [last(whole, name)["zoo"]["asked"] for name in NAMES]
    told = [[each["data"]["init_args"][key] for key in ("length", "batch", "positions")] for each in asked]
    assert [tuple(each) for each in told] == [(None, 8, "full"), (64, 2, "full"), (24, 5, "pose")]
    models = [each["model"]["init_args"] for each in asked]
    assert [each["optimizer"]["init_args"]["lr"] for each in models] == [1e-3, 1e-3, 1e-3]
    assert [each["schedule"]["init_args"]["warmup"] for each in models] == [0.01, 20, 2]
    for name, before in zip(NAMES[1:], NAMES, strict=False):
        start, end = lightning.load(whole / name / "extended.ckpt"), last(whole, before)
        assert all(torch.equal(start["state_dict"][key], end["state_dict"][key]) for key in end["state_dict"])
        assert not torch.equal(
            start["state_dict"]["network.embedding.weight"], last(whole, name)["state_dict"]["network.embedding.weight"]
        )
        assert (whole / name / "model" / "config.yaml").is_file()
        assert checkpoints.read(whole / name / "model").about["extended"]["chain"][-1]["tuned"]


def test_each_stage_is_measured(whole):
    for name, sizes in zip(NAMES[1:], ({16, 32, 64}, {16, 32, 64, 128}), strict=True):
        told = json.loads((whole / name / "stage.json").read_text())
        assert {result["length"] for result in told["results"]} == sizes
        assert len(told["results"]) == 3 * len(sizes)
        rows = told["measured"].splitlines()
        assert rows[1].split() == [name, *map(str, sorted(sizes))]
        for word, row in zip(("as trained", "extended", "fine-tuned"), rows[2:], strict=False):
            assert row.strip().startswith(word)
        assert f"{told['results'][0]['value']['perplexity']:.2f}" in rows[2]


def test_typed_again_it_does_nothing_again(whole, monkeypatch, capsys):
    monkeypatch.chdir(whole.parent)
    files = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != "pipeline.json"}
    zoo("fit", "--config", "recipe.yaml", "--trainer.enable_progress_bar=true")
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != "pipeline.json"} == files
    shown = capsys.readouterr()
    assert "fine-tuned" in shown.out
    assert "Trainer" not in shown.out + shown.err


class KilledError(BaseException):
    """Stands for a kill."""


def stop(monkeypatch, owner, name, which, after=False):
    """Have a function raise where `which` says so of its count and arguments."""
    real, count = getattr(owner, name), [0]

    def wrapped(*words, **more):
        count[0] += 1
        now = which(count[0], *words)
        if now and not after:
            raise KilledError
        found = real(*words, **more)
        if now:
            raise KilledError
        return found

    monkeypatch.setattr(owner, name, wrapped)


def step(number):
    return LanguageModel, "training_step", lambda count, *_: count == number


def book(name, key):
    return pipeline, "keep", lambda _, path, told: path.parent.name == name and key in told


STOPS = {
    "before the recipe is kept": [*book("run", "trainer")],
    "before the first checkpoint": [*step(3)],
    "in training": [*step(8)],
    "while a checkpoint is written": [lightning, "save", lambda count, *_: count == 2],
    "after training": [*book("pretrain", "trained")],
    "before a conversion": [pipeline, "put", lambda *_: True],
    "after a conversion": [pipeline, "put", lambda *_: True, True],
    "in fine-tuning": [*step(7)],
    "after the last step": [LanguageModel, "on_train_epoch_end", lambda *_: True],
    "after fine-tuning": [*book(NAMES[1], "trained")],
    "before what is measured is kept": [*book(NAMES[1], "measured")],
    "after what is measured is kept": [*book(NAMES[1], "measured"), True],
    "in fine-tuning by positions": [*step(8)],
    "at the end": [*book(NAMES[2], "trained"), True],
}


def test_interrupted_at_every_boundary_it_ends_as_if_it_were_not(whole, place, monkeypatch):
    for owner, function, which, *after in STOPS.values():
        with monkeypatch.context() as patch:
            stop(patch, owner, function, which, *after)
            with pytest.raises(KilledError):
                zoo("fit", "--config", "recipe.yaml")
    zoo("fit", "--config", "recipe.yaml")
    for name in NAMES:
        same(whole, place / "run", name)
    assert not [path for path in (place / "run").rglob(".*.part")]


def test_parts_run_by_themselves(whole, place, capsys):
    assert "no finished training in run" in refused("--config", "recipe.yaml", "--stages=extend")
    zoo("fit", "--config", "recipe.yaml", "--stages=pretrain")
    assert sorted(path.name for path in (place / "run").iterdir()) == ["pipeline.json", "pretrain"]
    zoo("fit", "--config", "recipe.yaml", "--stages=extend")
    same(whole, place / "run")


def test_an_extension_starts_from_weights_and_needs_no_training(whole, place, capsys):
    parent = whole / "pretrain" / "model"
    stages = "[{to: 32}, {to: 64, method: Linear}]"
    flags = ["--config", "recipe.yaml", "--stages=extend", f"--model.weights={parent}", f"--extend={stages}"]
    zoo("fit", *flags)
    assert sorted(path.name for path in (place / "run").iterdir()) == ["1-32", "2-64-Linear", "pipeline.json"]
    found = checkpoints.read(place / "run" / "2-64-Linear" / "extended.ckpt")
    assert [link["to"] for link in found.about["extended"]["chain"]] == [32, 64]
    assert found.network().reach == 64
    assert "fine-tuned" not in capsys.readouterr().out


def test_a_folder_of_another_recipe_is_refused(whole, monkeypatch):
    monkeypatch.chdir(whole.parent)
    for flag, says in (
        ("--model.dim=64", "model.dim: 32 there, 64 asked for"),
        ("--trainer.max_steps=13", "trainer.max_steps: 12 there, 13 asked for"),
        ("--data.batch=4", "data.batch: 8 there, 4 asked for"),
        ("--extend=[{to: 64, method: YaRN}]", "extend: "),
        ("--seed_everything=1", "seed_everything: 0 there, 1 asked for"),
    ):
        told = refused("--config", "recipe.yaml", flag)
        assert says in told
        assert "--trainer.default_root_dir" in told
    same(whole, whole)


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"model": 1, "trainer": [], "data": 3}', "[" * 9000])
def test_damaged_records_are_sentences(content, whole, place):
    shutil.copytree(whole, "run")
    for name in ("1-64-YaRN/stage.json", "pipeline.json"):
        kept = Path("run", name).read_text()
        if content.startswith("{") and name != "pipeline.json":
            continue  # a stage of which nothing is known yet
        Path("run", name).write_text(content)
        assert f"{name} is damaged" in refused("--config", "recipe.yaml")
        Path("run", name).write_text(kept)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--extend=[{to: 8}]"], "was trained on 16 tokens already"),
        (["--extend=[{to: 64}, {to: 32}]"], "has been extended to 64 tokens already"),
        (["--extend=[{to: 64, method: YaRNN}]"], "Did you mean YaRN?"),
        (["--extend=[{to: 64, arguments: {fst: 2}}]"], "Did you mean fast?"),
        (["--extend=[{to: 64y}]"], "'64y' is no length"),
        (["--extend=[{to: 64, finetune: {max_steps: 0}}]"], "at least 1 step"),
        (["--extend=[{to: 64, finetune: {max_steps: 1, length: 65}}]"], "not trained on blocks of 65"),
        (["--extend=[{to: 64, finetune: {max_steps: 1, length: 64, positions: pose}}]"], "positions full"),
        (["--extend=[{to: 64, finetune: {max_steps: 1, positions: cream}}]"], "longer --data.length"),
        (["--model.within_documents=true"], "neither random_positions nor within_documents"),
        (["--model.position=FIRE"], "takes no extension"),
        (["--ckpt_path=null", "--extend=null", "--stages=extend"], "has none"),
        (["--ckpt_path=x.ckpt"], "There is no checkpoint"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(flags, says, place):
    assert says in refused("--config", "recipe.yaml", *flags)
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ("[{to: 64, mehtod: YaRN}]", "No setting is called mehtod in extend. Did you mean method"),
        ("[{to: 64, finetune: {steps: 3}}]", "No setting is called steps in extend.finetune."),
        ("[{to: 64, finetune: {max_steps: abc}}]", "extend.finetune.max_steps takes a whole number, and got 'abc'."),
        ("[{to: 64, finetune: {max_steps: 3, positions: pos}}]", "one of full, pose, cream, and got 'pos'."),
        ("[{method: YaRN}]", "Extend needs a to."),
        ("{to: 64}", "extend takes a list"),
    ],
)
def test_a_misspelt_stage_gets_a_sentence(stages, says, place, capsys):
    with pytest.raises(SystemExit) as stop:
        zoo("fit", "--config", "recipe.yaml", f"--extend={stages}")
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


def test_stages_can_be_added_by_flags_and_other_verbs_pass_over_them(place, capsys):
    plain = yaml.safe_load(RECIPE)
    del plain["extend"]
    (place / "recipe.yaml").write_text(yaml.safe_dump(plain))
    zoo("fit", "--config", "recipe.yaml", "--trainer.max_steps=2", "--extend+={to: 32}", "--extend+={to: 64}")
    assert (place / "run" / "2-64" / "extended.ckpt").is_file()
    (place / "recipe.yaml").write_text(RECIPE)
    zoo("validate", "--config", "recipe.yaml", "--ckpt_path", place / "run" / "pretrain" / "checkpoints" / "last.ckpt")
    assert "val/perplexity" in capsys.readouterr().out


def test_a_rehearsal_runs_the_training_only(place, capsys):
    zoo("fit", "--config", "recipe.yaml", "--trainer.fast_dev_run=1")
    assert "ends before the extensions" in capsys.readouterr().err
    assert not list(place.rglob("*.ckpt"))


# A run from weights.


def again(place, weights, *flags):
    plain = yaml.safe_load(RECIPE)
    del plain["extend"]
    (place / "plain.yaml").write_text(yaml.safe_dump(plain))
    return ["--config", "plain.yaml", f"--model.weights={weights}", "--trainer.max_steps=2", *flags]


@pytest.mark.parametrize("kind", ["flag", "recipe"])
def test_a_run_from_weights_takes_their_model(whole, place, kind, capsys):
    child = whole / NAMES[1] / "checkpoints" / "last.ckpt"
    words = again(place, child, "--data.length=64")
    if kind == "recipe":
        plain = yaml.safe_load((place / "plain.yaml").read_text())
        plain["model"]["init_args"]["weights"] = str(child)
        (place / "plain.yaml").write_text(yaml.safe_dump(plain))
        words = [word for word in words if "weights" not in word]
    zoo("fit", *words)
    path = next((place / "run").rglob("last.ckpt"))
    about = lightning.load(path)["zoo"]
    assert about["network"]["init_args"]["reach"] == 64
    assert about["extended"]["chain"][-1]["tuned"] == [
        {"steps": 10, "length": 64, "positions": "full"},
        {"steps": 2, "length": 64, "positions": "full"},
    ]
    assert about["parent"] == str(child)
    assert "departs" not in capsys.readouterr().err
    zoo("fit", "--ckpt_path", path, *words[:2], "--trainer.max_steps=3", "--trainer.default_root_dir=later")
    resumed = lightning.load(next((place / "later").rglob("last.ckpt")))["zoo"]
    assert resumed["extended"]["chain"][-1]["tuned"][1:] == [{"steps": 3, "length": 64, "positions": "full"}]
    assert resumed["parent"] == str(child)


def test_a_run_from_weights_says_where_it_departs(whole, place, capsys):
    base, child = whole / NAMES[0] / "model", whole / NAMES[1] / "model"
    zoo("fit", *again(place, base, "--model.dropout=0.3", "--model.position.extension=Linear", LINEAR))
    told = capsys.readouterr().err
    assert f"departs from {base}: model.dropout: 0.1 in the checkpoint, 0.3 asked for" in told
    assert "model.position.extension: None in the checkpoint" in told
    about = lightning.load(next((place / "run").rglob("last.ckpt")))["zoo"]
    assert "extended" not in about
    told = refused(*again(place, child, "--model.position.extension=Linear", LINEAR))
    assert "has been extended, and the recipe asks for another model" in told
    assert "YaRN in the checkpoint, Linear asked for" in told.replace("zoo_positions.rope.extensions.", "")


def test_blocks_are_as_long_as_the_reach_at_most(whole, place):
    child = whole / NAMES[1] / "model"
    assert "extended to 64" in refused(*again(place, child, "--data.length=65"))
    assert "length 16, which is its length at first training" in refused(
        *again(place, whole / NAMES[0] / "model", "--data.length=64")
    )
    told = refused(*again(place, child, "--data.length=24", "--data.positions=pose", "--model.within_documents=true"))
    assert "within_documents" in told
    zoo("fit", *again(place, child, "--data.length=8"))


def test_given_positions_reach_the_network_with_the_extent_of_use():
    task = LanguageModel(vocabulary=9, length=4, reach=32)
    seen = {}

    class Watch(torch.nn.Module):
        def hidden(self, tokens, **context):
            seen.update(context)
            return tokens

    task.network = Watch()
    batch = {"tokens": torch.zeros(2, 5, dtype=torch.long), "documents": torch.zeros(2, 5, dtype=torch.int32)}
    task.read({**batch, "positions": torch.arange(8).view(2, 4)})
    assert seen["extent"] == 32
    assert torch.equal(seen["positions"], torch.arange(8).view(2, 4))
    seen.clear()
    task.read(batch)
    assert not seen, "full windows count by themselves, and their extent is their length"


# Real processes.


RUN = """
import os, sys
import torch
from zoo import cli

os.chdir(os.path.dirname(__file__))
torch.set_num_threads(1)
with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), 1)
    os.dup2(nowhere.fileno(), 2)
    sys.argv = ["zoo", "fit", "--config", "recipe.yaml"]
    cli.run(sys.argv[1:])
"""


def started(context, place):
    """A process that trains. It runs a file, since a fresh interpreter need not find this module by its name."""
    (place / "run.py").write_text(RUN)
    process = context.Process(target=runpy.run_path, args=(str(place / "run.py"),))
    process.start()
    return process


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path):
    """The processes are forked off one that has imported everything, and killed for good."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo.train"])
    alone = furnish(tmp_path / "alone")
    for _ in range(2):  # the first makes the cache, and the server
        shutil.rmtree(alone / "run", ignore_errors=True)
        start = time.monotonic()
        process = started(context, alone)
        process.join()
        assert process.exitcode == 0
        took = time.monotonic() - start
    draw, killed, runs = random.Random(0), 0, 0
    while killed < 10:
        place = furnish(tmp_path / str(runs))
        runs += 1
        ended = False
        while not ended:
            process = started(context, place)
            process.join(draw.uniform(0.1, 0.7) * took if killed < 10 else None)
            ended = process.exitcode is not None
            if not ended:
                process.kill()
                process.join()
                killed += 1
        assert process.exitcode == 0
        for name in NAMES:
            same(alone / "run", place / "run", name)


@pytest.mark.slow
def test_two_processes_do_it_together(tmp_path):
    place = furnish(
        tmp_path / "two", RECIPE.replace("accelerator: cpu", "accelerator: cpu\n  strategy: ddp\n  devices: 2")
    )
    (place / "run.py").write_text("from zoo.cli import main\n\nmain()\n")  # Lightning runs the same file again
    command = [sys.executable, "run.py", "fit", "--config", "recipe.yaml"]

    def run():
        told = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=400)
        assert told.returncode == 0, told.stderr[-4000:]
        return told.stdout

    assert run().count("fine-tuned") == 2, "the first process alone measures and tells"
    reference = last(place / "run")
    shutil.rmtree(place / "run" / NAMES[-1])
    run()
    again = last(place / "run")
    assert all(torch.equal(again["state_dict"][key], reference["state_dict"][key]) for key in again["state_dict"])
