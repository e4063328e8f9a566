"""Which checkpoint a run is continued from: the newest that is whole, wherever a logger put it."""

import os
import time
from pathlib import Path

import pytest
import torch

from zoo import resume
from zoo.checkpoints import lightning
from zoo.errors import ZooError

ABOUT = {"trained": {"steps": 7}}


def saved(path: Path, age: int, **content) -> Path:
    """A checkpoint that was saved so many seconds ago."""
    lightning.save({"state_dict": {}, "optimizer_states": [], "zoo": ABOUT} | content, path)
    os.utime(path, (time.time() - age,) * 2)
    return path


def words(root: Path, *more: str) -> list[str]:
    return ["fit", f"--trainer.default_root_dir={root}", *more]


def test_the_last_is_the_newest_in_any_folder(tmp_path, capsys):
    saved(tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt", 30)
    newest = saved(tmp_path / "project" / "ab12" / "checkpoints" / "epoch=0-step=5.ckpt", 20)
    saved(tmp_path / "lightning_logs" / "version_1" / "checkpoints" / "last.ckpt", 25)
    saved(tmp_path.parent / f"{tmp_path.name}-other" / "last.ckpt", 1)
    for word in ("last", "auto"):
        assert resume.chosen(words(tmp_path, "--ckpt_path", word)) == (str(newest), ABOUT)
        assert f"the run goes on from {newest}, after 7 steps" in capsys.readouterr().err
    last = saved(newest.with_name("last.ckpt"), 20)
    os.utime(newest, (last.stat().st_mtime,) * 2)
    assert resume.chosen(words(tmp_path, "--ckpt_path=last"))[0] == str(last)


def test_runs_in_folders_below_are_others(tmp_path, capsys):
    kept = saved(tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt", 60)
    saved(tmp_path / "one" / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt", 10)
    saved(tmp_path / "two" / "pretrain" / "checkpoints" / "last.ckpt", 5)
    (tmp_path / "two" / "pipeline.json").write_text("{}")
    assert resume.chosen(words(tmp_path, "--ckpt_path=auto"))[0] == str(kept)
    with pytest.raises(ZooError, match="path of a checkpoint, last or auto"):
        resume.chosen(words(tmp_path, "--ckpt_path=best"))


def test_what_is_not_whole_is_passed_over_and_said(tmp_path, capsys, zero_directory):
    kept = saved(tmp_path / "a" / "checkpoints" / "step=1.ckpt", 60)
    torn = saved(tmp_path / "a" / "checkpoints" / "last.ckpt", 50)
    torn.write_bytes(kept.read_bytes()[:-200])
    bare = saved(tmp_path / "a" / "checkpoints" / "weights.ckpt", 40)
    content = lightning.load(bare)
    del content["optimizer_states"]
    lightning.save(content, bare)
    (tmp_path / "a" / "checkpoints" / ".last.ckpt.77.part").write_bytes(b"half")
    unfinished = zero_directory(tmp_path / "a" / "step=9.ckpt", {"network.a": torch.ones(5)}, stage=2, client={})
    (unfinished / "latest").unlink()
    old = saved(tmp_path / "old.ckpt", 999)
    old.write_bytes(b"")
    os.utime(old, (1, 1))
    assert resume.chosen(words(tmp_path, "--ckpt_path=last")) == (str(kept), ABOUT)
    told = capsys.readouterr().err.splitlines()
    assert [name in line for name in ("last.ckpt", "weights.ckpt", ".part", "step=9.ckpt") for line in told].count(
        True
    ) >= 4
    assert len(told) == 5
    assert sum("is passed over" in line for line in told) == 4
    assert sum("stopped while it was being written" in line for line in told) == 2
    assert not any("old.ckpt" in line for line in told), "what is older is not looked at"
    assert resume.chosen(["test", *words(tmp_path, "--ckpt_path=last")[1:]])[0] == str(bare), "weights are all it needs"


def test_a_zero_directory_is_a_checkpoint(tmp_path, zero_directory):
    saved(tmp_path / "last.ckpt", 60)
    path = zero_directory(tmp_path / "kept" / "last.ckpt", {"network.a": torch.ones(5)}, stage=3, client={"zoo": ABOUT})
    assert resume.chosen(words(tmp_path, "--ckpt_path=auto")) == (str(path), ABOUT)
    os.utime(path, (1, 1))
    assert resume.chosen(words(tmp_path, "--ckpt_path=auto"))[0] == str(path), "its age is that of its file `latest`"
    next(path.glob("*/*rank_1*optim_states.pt")).unlink()
    assert resume.chosen(words(tmp_path, "--ckpt_path=auto"))[0] == str(tmp_path / "last.ckpt")


def test_where_there_is_none(tmp_path, capsys):
    with pytest.raises(ZooError, match=f"no whole checkpoint under {tmp_path}.*--ckpt_path auto"):
        resume.chosen(words(tmp_path, "--ckpt_path=last"))
    assert resume.chosen(words(tmp_path / "absent", "--ckpt_path=auto")) == (None, None)
    assert "starts from the beginning" in capsys.readouterr().err


def test_recipes_say_it_too_and_what_comes_later_counts(tmp_path):
    mine, other = saved(tmp_path / "mine" / "x.ckpt", 5), saved(tmp_path / "other" / "x.ckpt", 1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"ckpt_path: last\ntrainer:\n  default_root_dir: {tmp_path / 'mine'}\n")
    assert resume.chosen(["fit", "--config", str(recipe)])[0] == str(mine)
    flag = f"--trainer.default_root_dir={tmp_path / 'other'}"
    assert resume.chosen(["fit", f"--config={recipe}", flag])[0] == str(other)
    assert resume.chosen(["fit", flag, f"--config={recipe}"])[0] == str(mine)
    assert resume.chosen(["fit", f"--config={recipe}", "--ckpt_path", "null"]) == (None, None)
    assert resume.chosen(["fit", f"--config={recipe}", f"--ckpt_path={other}"]) == (str(other), ABOUT)


def test_a_recipe_in_stages_finds_its_place_by_itself(tmp_path):
    saved(tmp_path / "pretrain" / "checkpoints" / "last.ckpt", 5)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("extend: [{to: 64}]\n")
    for more in (["--config", str(recipe)], ["--stages=pretrain"]):
        assert resume.chosen(words(tmp_path, "--ckpt_path=auto", *more)) == (None, None)
        assert resume.chosen(words(tmp_path, "--ckpt_path=last", *more)) == ("last", None), "which it refuses"
    assert resume.chosen(words(tmp_path, "--ckpt_path=auto", "--config", str(recipe), "--extend", "null"))[0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["fit", "-c", "my recipe.yaml"], "zoo fit -c 'my recipe.yaml' --ckpt_path a/last.ckpt"),
        (["fit", "--ckpt_path", "old", "--seed_everything=1"], "zoo fit --seed_everything=1 --ckpt_path a/last.ckpt"),
        (["fit", "--ckpt_path=last", "-c", "x"], "zoo fit -c x --ckpt_path a/last.ckpt"),
        (["fit", "--ckpt_path=auto", "-c", "x"], "zoo fit --ckpt_path=auto -c x"),
        (["fit", "--stages", "pretrain"], "zoo fit --stages pretrain"),
    ],
)
def test_the_command_that_goes_on(given, told):
    assert resume.again(given, Path("a/last.ckpt")) == told
