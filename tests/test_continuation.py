"""A run goes on with the data, the tokenizer and the versions that it began with, or says what differs."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from zoo import cli, continuation, plugins
from zoo.checkpoints import lightning
from zoo.data import tokenizer
from zoo.errors import ZooError

RECIPE = """
model:
  class_path: LanguageModel
  init_args: {length: 16, dim: 16, layers: 1, heads: 2, position: RoPE}
data:
  class_path: Text
  init_args: {files: texts, tokenizer: own.tiktoken, batch: 4, workers: 0, valid: 0.2, test: 0, cache: cache}
trainer:
  accelerator: cpu
  max_steps: 2
  max_epochs: -1
  limit_val_batches: 0
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: run
"""
LAST = "run/lightning_logs/version_0/checkpoints/last.ckpt"


def zoo(*words):
    before, sys.argv = sys.argv, ["zoo", *map(str, words)]
    try:
        cli.run(sys.argv[1:])
    finally:
        sys.argv = before


def go_on(*words):
    zoo("fit", "--config", "recipe.yaml", "--ckpt_path", LAST, "--trainer.max_steps=3", *words)


def refused(*words):
    with pytest.raises(ZooError) as error:
        go_on(*words)
    told = str(error.value)
    assert "--accept_changes true" in told
    return told


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run of two steps."""
    place, before = tmp_path_factory.mktemp("begun"), Path.cwd()
    (place / "texts").mkdir()
    for number in range(8):
        text = " ".join(f"word{(number * i * i + number) % 97:02}" for i in range(200))
        (place / "texts" / f"{number}.txt").write_text(text)
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"wo": 256, b"rd": 257}
    tokenizer.Tokenizer("own", ranks).save(place / "own.tiktoken")
    (place / "recipe.yaml").write_text(RECIPE)
    os.chdir(place)
    try:
        zoo("fit", "--config", "recipe.yaml")
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def place(begun, tmp_path, monkeypatch):
    shutil.copytree(begun, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def change(**about):
    content = lightning.load(LAST)
    content = {**content, "zoo": {**content["zoo"], **about}}
    lightning.save({key: value for key, value in content.items()}, LAST)


def test_an_unchanged_run_goes_on_without_a_word(place, capsys):
    go_on()
    told = capsys.readouterr().err
    assert "not compared" not in told
    assert "accepted" not in told
    assert not list((place / "run").rglob(".*")), "neither a lock nor a part is left"


def test_another_corpus_is_refused_and_can_be_accepted(place, capsys):
    path = place / "texts" / "3.txt"
    path.write_text(path.read_text().replace("word1", "word2"))
    then = lightning.load(LAST)["zoo"]["data_identity"]["corpus"]
    told = refused()
    assert f"the corpus: {then} when it began, " in told
    assert LAST in told
    go_on("--accept_changes", "true")
    assert f"a change is accepted: the corpus: {then} when it began" in capsys.readouterr().err
    saved = sorted((place / "run").rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)[-1]
    assert lightning.load(saved)["zoo"]["data_identity"]["corpus"] != then
    assert "accept_changes: false" in (saved.parent.parent / "config.yaml").read_text(), "of the command only"


def test_another_tokenizer_of_as_many_items_is_refused(place):
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"or": 256, b"d1": 257}
    tokenizer.Tokenizer("own", ranks).save(place / "own.tiktoken")
    assert "the tokenizer own.tiktoken: " in refused()
    assert "data.tokenizer: own.tiktoken when it began, bytes now" in refused("--data.tokenizer=bytes")


def test_a_tokenizer_that_is_gone_is_said_and_the_stored_one_goes_on(place, capsys):
    (place / "own.tiktoken").unlink()
    go_on()
    assert "not compared with what" in (told := capsys.readouterr().err)
    assert "the tokenizer own.tiktoken, which cannot be read" in told


def test_other_versions_are_refused(place, monkeypatch):
    owners = lightning.load(LAST)["zoo"]["plugins"]
    group, owner = owners["RoPE"]
    change(zoo="0.0.9")
    assert "zoo: 0.0.9 when it began, " in refused()
    change(zoo=continuation.zoo.__version__, plugins={**owners, "RoPE": (group, "positionzoo-more 0.0.9")})
    assert f"the distribution of RoPE: positionzoo-more 0.0.9 when it began, {owner} now" in refused()
    change(plugins=owners)
    real = plugins.origin
    monkeypatch.setattr(plugins, "origin", lambda point: (real(point)[0], "9.9"))
    assert f"the distribution of RoPE: {owner} when it began, {owner.split()[0]} 9.9 now" in refused()


def test_an_older_checkpoint_goes_on_and_one_line_says_what_was_not_compared(place, capsys):
    content = lightning.load(LAST)
    about = {key: value for key, value in content["zoo"].items() if key not in ("data_identity", "asked")}
    lightning.save({**content, "zoo": about}, LAST)
    go_on()
    lines = [line for line in capsys.readouterr().err.splitlines() if "not compared" in line]
    assert len(lines) == 1
    assert "the data, which the checkpoint does not record" in lines[0]


class Stream:
    """A data module of which only names are known."""

    def __init__(self, **changes):
        files = [f"part{number}" for number in range(5)]
        self.identity = {"corpus": "a", "files": files, "revision": "r1", "compared": "names"} | changes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"revision": "r2"}, "the revision of the data set: r1 when it began, r2 now"),
        ({"files": ["part0", "part9"]}, "gone: part1, part2, part3, ...; new: part9"),
        ({"files": [f"part{number}" for number in (1, 0, 2, 3, 4)]}, "the same 5 in another order now"),
    ],
)
def test_of_a_stream_revision_and_files_are_compared(changes, told):
    found = list(continuation.compare_data({"data_identity": Stream().identity}, Stream(**changes)))
    assert ("unknown", "the contents of the stream, of which only names are known") in found
    differing = [line for kind, line in found if kind == "differs"]
    assert len(differing) == (told is not None)
    assert told is None or told in differing[0]


def test_a_data_module_without_identity_is_named():
    found = list(continuation.compare_data({"data_identity": Stream().identity}, object()))
    assert found == [("unknown", "the data, since object has no identity")]


def test_a_pipeline_compares_with_its_stages_before(place, capsys):
    stages = "extend: [{to: 32, method: Linear, finetune: {max_steps: 1}}]\n"
    (place / "recipe.yaml").write_text(RECIPE.replace("default_root_dir: run", "default_root_dir: staged") + stages)
    zoo("fit", "--config", "recipe.yaml", "--stages=pretrain")
    path = place / "texts" / "3.txt"
    path.write_text(path.read_text().replace("word1", "word2"))
    with pytest.raises(ZooError, match=r"the corpus: \w+ when it began"):
        zoo("fit", "--config", "recipe.yaml")
    zoo("fit", "--config", "recipe.yaml", "--accept_changes")
    assert "a change is accepted: the corpus" in capsys.readouterr().err
    assert lightning.load("staged/1-32-Linear/checkpoints/last.ckpt")["global_step"] == 1
