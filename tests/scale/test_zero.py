"""ZeRO on CPU processes by DeepSpeed itself: the numbers of one process, whole checkpoints, runs that go on."""

import json
import pickle
import random
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from together import RECIPE, begin, curve, end, fit, furnish

from zoo import checkpoints, cli
from zoo.checkpoints import zero
from zoo.errors import ZooError
from zoo.scale import ZeRO

deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
STAGES = pytest.mark.parametrize("stage", [1, 2, 3])
FIRE = "--model.position=FIRE"  # its parameters are numbers, vectors and matrices, read outside of their layers
EXTEND = """
extend:
- {to: 64, method: YaRN, arguments: {fast: 16}, finetune: {max_steps: 10, lr: 1.0e-3, batch: 1}}
- {to: 128, method: FoPE, finetune: {max_steps: 10, positions: pose, length: 32, warmup: 2, batch: 2}}
"""
NAMES = ["pretrain", "1-64-YaRN", "2-128-FoPE"]


def saved(place, name="last.ckpt"):
    return next(path for path in place.rglob(name) if path.is_dir() or path.suffix == ".ckpt")


def apart(one, two):
    """The largest difference between the weights of two checkpoints."""
    one, two = (checkpoints.read(path).weights for path in (one, two))
    assert one.keys() == two.keys()
    assert all(one[name].shape == two[name].shape for name in one)
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, without a strategy."""
    place = furnish(tmp_path_factory.mktemp("alone") / "x")
    fit(place, 1, FIRE)
    return place


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A run on two processes for each stage, made when first asked for."""
    made = {}

    def pair(stage):
        if stage not in made:
            made[stage] = furnish(tmp_path_factory.mktemp(f"zero{stage}") / "x")
            fit(made[stage], 2, FIRE, "--model.schedule.warmup=2", overlay=f"zero{stage}")
        return made[stage]

    return pair


@pytest.mark.slow
@deepspeed
@STAGES
def test_it_has_the_curve_of_one_process(alone, pairs, tmp_path, stage):
    place = furnish(tmp_path / "x")
    told = fit(place, 2, FIRE, overlay=f"zero{stage}")
    for name in ("train/loss", "val/perplexity"):
        one, two = curve(alone, name), curve(place, name)
        assert one.keys() == two.keys()
        assert max(abs(one[step] - two[step]) / one[step] for step in one) < 1e-5
    assert len(curve(place)) == 10
    assert apart(saved(alone), saved(place)) < 2e-4  # a gradient that is 0 but for rounding moves as far as others
    assert "To publish" in told
    assert apart(saved(place), place / "run" / "model") == 0, "what is published is what was trained"


@pytest.mark.slow
@deepspeed
@STAGES
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_run_goes_on_with_any_number_of_processes(pairs, tmp_path, stage, processes):
    whole, place = pairs(stage), tmp_path / "x"
    shutil.copytree(whole, place)
    (kept,) = place.rglob("epoch*step=10*.ckpt")
    shutil.rmtree(place / "run")
    fit(place, 2, FIRE, "--model.schedule.warmup=2", overlay=f"zero{stage}", before=stop_after(6))
    (kept,) = place.rglob("epoch*step=5*.ckpt")
    words = [FIRE, "--model.schedule.warmup=2", "--ckpt_path", str(kept)]
    told = fit(place, processes, *words, overlay=f"zero{stage}")
    assert ("cut anew" in told) == (processes != 2)
    assert apart(saved(whole), saved(place)) <= (0 if processes == 2 else 5e-5)
    assert not list(place.rglob("*.part"))


def stop_after(step):
    """Python that ends a run with status 0 before a step, saving nothing more."""
    return f"""
import os
from zoo.tasks import LanguageModel
step = LanguageModel.training_step
def training_step(task, batch, index):
    if task.global_step == {step}:
        os._exit(0)
    return step(task, batch, index)
LanguageModel.training_step = training_step
"""


@pytest.mark.slow
@deepspeed
@STAGES
def test_its_directory_serves_as_a_file_does(pairs, tmp_path, monkeypatch, capsys, stage):
    place = pairs(stage)
    monkeypatch.chdir(place)
    path = saved(place)
    monkeypatch.setattr("sys.argv", ["zoo", "validate", "--ckpt_path", str(path), "--trainer.accelerator=cpu"])
    cli.run(sys.argv[1:])
    assert "perplexity" in capsys.readouterr().out
    cli.run(["evaluate", str(path), "--lengths", "16", "--files", "texts", "--measures", "perplexity"])
    assert "perplexity" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["zoo", "fit", "--config", "recipe.yaml", FIRE, "--ckpt_path", str(path)])
    with pytest.raises(ZooError, match=rf"left by ZeRO.*zero{stage}\.yaml"):
        cli.run(sys.argv[1:])


@pytest.mark.slow
@deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_ten_kills_of_one_process_change_nothing(tmp_path, stage):
    """All stages of a pipeline; what is killed is one process, the other ends by itself or is ended."""
    recipe = RECIPE.replace("position: RoPE", "position: RoPE, dropout: 0.1") + EXTEND
    alone = furnish(tmp_path / "alone", recipe)
    for _ in range(2):  # the first makes the cache
        shutil.rmtree(alone / "run", ignore_errors=True)
        start = time.monotonic()
        fit(alone, 2, overlay=f"zero{stage}")
        took = time.monotonic() - start
    draw, place, killed = random.Random(stage), furnish(tmp_path / "killed", recipe), 0
    while killed < 10:
        processes = begin(place, 2, overlay=f"zero{stage}")
        processes[0].join(draw.uniform(0.1, 0.9) * took)
        if any(process.exitcode is None for process in processes):
            draw.choice(processes).kill()
            killed += 1
            for process in processes:
                process.join(4)
                process.kill()
                process.join()
        else:
            end(place, processes)
            compare(alone, place)
            shutil.rmtree(place / "run")
    fit(place, 2, overlay=f"zero{stage}")
    compare(alone, place)


def compare(one, two):
    for name in NAMES:
        first, second = (zero.described(each / "run" / name / "checkpoints" / "last.ckpt") for each in (one, two))
        assert first == second
        assert apart(*(each / "run" / name / "checkpoints" / "last.ckpt" for each in (one, two))) == 0


@pytest.mark.slow
@deepspeed
@pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.parametrize(("overlay", "processes"), [("zero2", 4), ("zero3", 1), ("fsdp", 1)])
def test_an_adapter_is_trained_as_by_one_process(alone, tmp_path, overlay, processes):
    """The curve, the sums that others read, what has an optimizer, and how a run goes on with other processes."""
    words = [FIRE, f"--model.weights={alone / 'run' / 'model'}", "--model.schedule=null", "--model.optimizer.lr=0.01"]
    words += ["--model.adapter=LoRA", '--model.adapter.whole=["positions","norms"]']
    one, two = furnish(tmp_path / "one"), furnish(tmp_path / "two")
    fit(one, 1, *words)
    fit(two, 2, *words, overlay=overlay)
    there, here = curve(one), curve(two)
    assert there.keys() == here.keys()
    assert max(abs(there[step] - here[step]) / there[step] for step in there) < 1e-5
    assert apart(saved(one), saved(two)) < 2e-3 < 1e-2 < apart(saved(alone), saved(two))
    assert apart(saved(two), two / "run" / "model") == 0, "what is published is what was trained"
    if overlay != "fsdp":
        told = torch.load(next(saved(two).rglob("*model_states.pt")), weights_only=False)
        held = {name for group in told["param_shapes"] for name in group}
        assert all("lora_" in name or "positions" in name or "norm" in name for name in held)
        assert len(held) == 16 + sum(name.startswith("network.trunk.positions") for name in told["module"]) + 5
    shutil.rmtree(saved(one, "last.ckpt").parent, ignore_errors=True)
    fit(one, 2, *words, overlay=overlay, before=stop_after(6))
    (kept,) = one.rglob("epoch*step=5*.ckpt")
    fit(one, processes, f"--ckpt_path={kept}", FIRE, *words[2:4], overlay=overlay)
    assert apart(saved(one), saved(two)) < 2e-3
    before, after = (checkpoints.read(saved(place)).weights["embedding.weight"] for place in (alone, one))
    assert torch.equal(before, after), "what is frozen"


KILLED = """
import os
from zoo.scale import zero
def commit(place, tag):
    if tag.startswith("step10"):
        os._exit(7)
    whole(place, tag)
whole, zero.commit = zero.commit, commit
"""


@pytest.mark.slow
@deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_a_save_that_does_not_come_to_its_end_leaves_the_one_before(pairs, tmp_path, stage):
    whole, place = pairs(stage), furnish(tmp_path / "x")
    words = [FIRE, "--model.schedule.warmup=2", "--ckpt_path=auto"]
    processes = begin(place, 2, *words, overlay=f"zero{stage}", before=KILLED)
    for process in processes:
        process.join(60)
        process.kill()
        process.join()
    unfinished = next(place.rglob("epoch*step=10.ckpt"))
    assert [path.name for path in unfinished.iterdir() if path.is_dir()] == ["step10"]
    with pytest.raises(ZooError, match="did not come to its end"):
        zero.described(unfinished)
    shutil.copytree(unfinished / "step10", saved(place) / "step10")  # as if it had been this one's turn
    assert zero.described(saved(place))["trained"]["steps"] == 5
    told = fit(place, 2, *words, overlay=f"zero{stage}")
    assert "passed over: a run was stopped while it was being written" in told
    assert "the save step10 did not come to its end; step5 is read" in told
    assert "goes on from" in told
    assert apart(saved(whole), saved(place)) == 0
    assert [path.name for path in saved(place).iterdir() if path.is_dir()] == [zero.step(saved(place)).name]


@pytest.mark.slow
@deepspeed
@pytest.mark.parametrize("overlay", ["zero3", "fsdp"])
def test_processes_validate_as_often_as_each_other(tmp_path, overlay):
    """377 blocks are 48 batches for one process and 47 for the other, and weights are there for both or none."""
    words = ["--trainer.limit_val_batches=1.0", "--model.length=17", "--trainer.max_steps=5"]
    alone, place = furnish(tmp_path / "alone"), furnish(tmp_path / "two")
    fit(alone, 1, *words)
    fit(place, 2, *words, overlay=overlay, timeout=120)
    one, two = curve(alone, "val/perplexity"), curve(place, "val/perplexity")
    assert one.keys() == two.keys()
    assert max(abs(one[step] - two[step]) / one[step] for step in one) < 1e-5


NONE = """
import os, torch
from zoo.tasks import LanguageModel
step = LanguageModel.training_step
def training_step(task, batch, index):
    loss = step(task, batch, index)
    return loss * float("nan") if task.global_step == 4 and task.trainer.is_last else loss
LanguageModel.training_step = training_step
"""


@pytest.mark.slow
@deepspeed
@STAGES
def test_a_step_that_is_no_number_changes_nothing(tmp_path, stage):
    places = [furnish(tmp_path / name) for name in ("ddp", "zero")]
    words = [FIRE, "--model.schedule=null"]
    before = NONE.replace("task.trainer.is_last", "task.global_rank == 1")
    fit(places[0], 2, *words, "--trainer.strategy=ddp", before=before)
    told = fit(places[1], 2, *words, overlay=f"zero{stage}", before=before)
    assert "step 4 is skipped: the loss is nan in process 1" in told
    assert apart(saved(places[0]), saved(places[1])) < 2e-4
    state = zero.groups(saved(places[1]))
    assert [group["weight_decay"] for group in state] == [0.01, 0.0]


@pytest.mark.slow
@deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_gradients_are_added_up_as_elsewhere(tmp_path, stage):
    """42 blocks are 5 batches of 8 an epoch, so every third step has one batch; DeepSpeed counts on by itself."""
    words = ["--model.length=650", "--model.schedule=null", "--trainer.accumulate_grad_batches=2"]
    words += ["--trainer.val_check_interval=2"]
    places = [furnish(tmp_path / name) for name in ("ddp", "zero")]
    fit(places[0], 2, *words, overlay="ddp")
    fit(places[1], 2, *words, overlay=f"zero{stage}")
    one, two, told = *(curve(place) for place in places), curve(places[1], "val/perplexity")
    assert one.keys() == two.keys()
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4
    assert max(abs(curve(places[0], "val/perplexity")[step] / each - 1) for step, each in told.items()) < 1e-4
    assert checkpoints.read(saved(places[1])).about["trained"] == {"steps": 10, "epochs": 3}


@pytest.mark.slow
@deepspeed
def test_a_file_is_not_continued_under_zero_and_stays_until_a_run_has_saved(tmp_path):
    place = furnish(tmp_path / "x")
    fit(place, 1, "--trainer.max_steps=5")
    told = fit(place, 1, "--ckpt_path=run/checkpoints/last.ckpt", overlay="zero2", status=2)
    assert "is not what a ZeRO run left" in told
    fit(place, 2, overlay="zero2")
    assert zero.holds(place / "run" / "checkpoints" / "last.ckpt")
    fit(place, 1)
    assert (place / "run" / "checkpoints" / "last.ckpt").is_file()
    assert not list(place.rglob("*.part"))


@pytest.mark.slow
@deepspeed
@STAGES
def test_processes_measure_what_they_have_trained(pairs, tmp_path, stage):
    place = tmp_path / "x"
    shutil.copytree(pairs(stage), place)
    trained = curve(place, "val/perplexity")[9]
    words = [FIRE, "--model.schedule.warmup=2", f"--ckpt_path={saved(place)}"]
    told = fit(place, 2, *words, overlay=f"zero{stage}", verb="validate")
    assert f"{trained:.3f}"[:6] in told


@pytest.mark.slow
@deepspeed
def test_half_precision_is_autocast(alone, tmp_path):
    """What is saved is float32, and a step differs from float32's as bfloat16 does."""
    place = furnish(tmp_path / "x")
    fit(place, 2, FIRE, "--trainer.precision=bf16-mixed", overlay="zero3")
    away = max(abs(curve(alone)[step] - each) for step, each in curve(place).items())
    assert 1e-6 < away < 0.05
    weights = checkpoints.read(saved(place)).weights
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@pytest.mark.slow
@deepspeed
def test_what_excludes_each_other_is_said(tmp_path):
    place = furnish(tmp_path / "x")
    told = fit(place, 1, "--model.compile=true", overlay="zero3", status=2)
    assert "exclude each other" in told
    assert "Traceback" not in told
    told = fit(place, 1, "--trainer.precision=16-mixed", overlay="zero2", status=2)
    assert "32-true or bf16-mixed" in told


LATE = """
import time
from zoo import pipeline
extend = pipeline.Pipeline.extend
def late(self, *words):
    time.sleep(1.5 * pipeline.torch.distributed.get_rank())
    return extend(self, *words)
pipeline.Pipeline.extend = late
"""


@pytest.mark.slow
def test_a_late_process_of_a_pipeline_is_waited_for_and_what_was_not_measured_is(tmp_path):
    place = furnish(tmp_path / "x", RECIPE + EXTEND.replace("FoPE", "Linear"))
    fit(place, 2, overlay="ddp", before=LATE, timeout=120)
    path = place / "run" / "2-128-Linear" / "stage.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({"trained": told["trained"]}))
    fit(place, 2, overlay="ddp", timeout=120)
    assert json.loads(path.read_text())["measured"] == told["measured"]


# Without processes.


def test_the_command_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.scale.zero.find_spec", lambda name: None)
    overlay = Path(__file__).parent.parent.parent / "recipes" / "scale" / "zero2.yaml"
    monkeypatch.chdir(furnish(tmp_path / "x"))
    monkeypatch.setattr("sys.argv", ["zoo", "fit", "--config", "recipe.yaml", "--config", str(overlay)])
    with pytest.raises(ZooError) as error:
        cli.run(sys.argv[1:])
    assert str(error.value).startswith("ZeRO is DeepSpeed's, which is not installed.")


def test_without_deepspeed_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("zoo.scale.zero.find_spec", lambda name: None)
    with pytest.raises(ZooError, match=r"pip install 'positionzoo\[deepspeed\]'"):
        ZeRO()


@deepspeed
def test_weights_are_offloaded_at_stage_3_only():
    with pytest.raises(ZooError, match="stage 3 only"):
        ZeRO(stage=2, offload="weights")


def test_settings_of_deepspeed_are_merged_key_by_key():
    from zoo.scale.zero import merged

    ours = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merged(ours, {"a": {"b": 4}, "e": 5}) == {"a": {"b": 4, "c": 2}, "d": 3, "e": 5}
    assert ours == {"a": {"b": 1, "c": 2}, "d": 3}


class Runs:
    """What a pickle can do to whoever opens it."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@deepspeed
def test_deepspeed_itself_runs_nothing_that_is_in_a_file(tmp_path, monkeypatch):
    from deepspeed.runtime.zero.config import ZeroStageEnum

    from zoo.scale.quirks import weights_only_loads

    monkeypatch.chdir(tmp_path)
    torch.save({"code": Runs()}, "bad.pt")
    torch.save({"stage": ZeroStageEnum(2), "rows": [torch.ones(2)]}, "good.pt")
    with weights_only_loads():
        with pytest.raises(pickle.UnpicklingError):
            torch.load("bad.pt", weights_only=False)
        assert torch.load("good.pt", weights_only=False)["stage"] == ZeroStageEnum(2)
    assert not Path("ran").exists()
    torch.load("bad.pt", weights_only=False)
    assert Path("ran").exists()
