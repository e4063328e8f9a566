"""The README of an extended checkpoint: every sentence is true of the checkpoint that it stands in."""

import pytest
import torch
import yaml

from zoo import checkpoints, cli
from zoo.checkpoints import folder
from zoo.extend import past
from zoo.extend.card import card, expected
from zoo.extend.compared import Comparison, by_length
from zoo.extend.figures import figures, summary, table
from zoo.extend.rewrite import plan
from zoo.extend.source import read
from zoo.extend.write import write

SIZE = {"vocabulary": 257, "length": 64, "dim": 64, "layers": 1, "heads": 2}


def store(path, position="RoPE", **about):
    torch.manual_seed(5)
    place = {"class_path": position, "init_args": {}}
    kernel = {"class_path": "Auto", "init_args": {}}
    network = {"class_path": "zoo.decoder.Decoder", "init_args": {**SIZE, "position": place, "kernel": kernel}}
    weights = checkpoints.build(network).state_dict()
    folder.write(path, {"format": 1, "zoo": "0", "network": network, "trained": {"steps": 7}, **about}, weights, "")
    return path


def extend(path, to, method, out):
    cli.run(["extend", str(path), "--to", str(to), "--method", method, "--out", str(out)])
    return (out / "README.md").read_text()


def tune(path, **run):
    """The checkpoint as if it had been trained on: what the last run leaves in a description."""
    about = yaml.safe_load((path / "config.yaml").read_text())
    about["trained"] = {"steps": run["steps"]}
    about["extended"]["chain"][-1]["tuned"] = [run]
    (path / "config.yaml").write_text(yaml.safe_dump(about, sort_keys=False))


@pytest.fixture
def parent(tmp_path):
    return store(tmp_path / "tiny")


def compared(*rows):
    """A comparison; rows of length, before, after."""
    results = [
        {"checkpoint": name, "length": length, "measure": "perplexity", "value": {"perplexity": value}}
        for length, *values in rows
        for name, value in zip(("old", "new"), values, strict=True)
    ]
    text = {"documents": 1, "origin": "a text", "digest": "0"}
    return Comparison({"checkpoints": [{"name": "old"}, {"name": "new"}], "results": results, "text": text}, "", "",
                      {}, 128)  # fmt: skip


@pytest.mark.parametrize(
    ("near", "far", "says", "never"),
    [
        ((10, 10), (47.06, 62.5), "At 512 tokens the parent has 47.06 and this 62.50: without fine-tuning, use the "
         "parent.", "better"),
        ((10, 10), (47.06, 20), "At 512 tokens this has 20.00, better than the parent's 47.06.", "use the parent"),
        ((10, 10), (20.0, 20.05), "the parent reads them as well, with 20.00", "better than"),
        ((10, 10), (None, 20), "does not help yet", "the parent has"),
        ((10, 10.04), (40, 9), "Texts of 128 tokens are read as well as before", "worse"),
        ((10, 10.06), (40, 9), "For those the parent is the better choice", "as well"),
        ((10, 10), (40, 10.04), "level with the parent's 10.00 at 128", "does not help yet"),
        ((10, 10), (40, 9.97), "level with the parent's 10.00 at 128", "helps"),
        ((10, 10), (40, 9.9), "below the parent's 10.00 at 128: the longer context helps", "level"),
    ],
)  # fmt: skip
def test_child_and_parent_at_the_target(near, far, says, never):
    told = {"length": 128, "to": 512, "advice": "", "unchanged": True}
    said = expected(told, {}, None, compared((128, *near), (512, *far)))
    assert says in said
    assert never not in said


def test_the_advice_of_a_method_takes_the_place_of_the_general_one():
    told = {"length": 128, "to": 512, "advice": "recalibrate", "unchanged": False}
    said = expected(told, {}, None, compared((128, 10, 50), (512, 40, 60)))
    assert "What mends that: recalibrate." in said
    assert "fine-tuning on such" not in said


def test_one_document_is_one():
    assert "tokens of 1 document (a text" in by_length(compared((128, 10, 10)).document)


def test_training_of_a_checkpoint_that_was_fine_tuned(parent, tmp_path):
    assert "trained on 64 tokens for 7 steps, made" in extend(parent, 128, "YaRN", tmp_path / "a")
    tune(tmp_path / "a", steps=2, length=128, positions="full")
    text = extend(tmp_path / "a", 256, "DynamicNTK", tmp_path / "b")
    assert "trained on 64 tokens for 7 steps, then for 2 steps on 128 tokens, made" in text
    assert "no texts of 256 tokens, though later training had some of 128" in text
    assert "are read just as in first training" in text
    assert "It had been extended before (to 128 by YaRN); this replaces that, and starts from 64." in text
    tune(tmp_path / "b", steps=1, length=64, positions="pose")
    text = extend(tmp_path / "b", 512, "NTK", tmp_path / "c")
    assert "then for 2 steps on 128 tokens, then for 1 step on 64 tokens placed by pose, made" in text


def test_images_tell_no_length_of_further_training():
    chain = [{"steps": 9, "tuned": [{"steps": 4}]}, {"steps": 4}]
    about = {"trained": {"steps": 4}, "extended": {"chain": chain}}
    assert past.training(about, "images of 8px") == "trained on images of 8px for 9 steps, then for 4 steps"


def test_a_conversion_stays(parent, tmp_path):
    first = extend(parent, 128, "FoPE", tmp_path / "a")
    assert "Decoder with FoPE in the place of RoPE, 128 tokens" in first
    assert "- FoPE in the place of RoPE reads 128 tokens" in first
    assert "the encoding adds 2 weights (`position.safetensors`)" in first
    text = extend(tmp_path / "a", 256, "YaRN", tmp_path / "b")
    assert "had been converted before (to 128 by FoPE); this starts from the result." in text
    assert "replaces that" not in text
    assert "Decoder with FoPE + YaRN" in text
    text = extend(tmp_path / "b", 512, "NTK", tmp_path / "c")
    assert "extended before (to 256 by YaRN); this replaces that, and starts from 64." in text
    gone = extend(tmp_path / "a", 256, "DroPE", tmp_path / "d")
    assert "2 weights of the encoding fell away" in gone


def test_lines_of_waves_where_none_is_left(parent, tmp_path):
    text = extend(parent, 256, "DroPE", tmp_path / "a")
    assert "Decoder with NoPE in the place of RoPE (DroPE), 256 tokens" in text
    assert "attention factor" not in text
    assert "did not turn once" not in text
    text = extend(parent, 256, "YaRN", tmp_path / "b")
    assert "attention factor" in text
    assert "did not turn once" in text


def test_the_table_is_told_of_below_the_table_alone(parent, tmp_path):
    told = figures(plan(read(parent), 256, "DynamicNTK"))
    assert "table" not in "\n".join(summary(told))
    assert "the table is of a request of 256 tokens" in table(told)
    assert "the table" not in extend(parent, 256, "DynamicNTK", tmp_path / "a")


def test_what_a_method_works_upon_is_spelt_out(parent, tmp_path):
    for number, name in enumerate(("Resonance", "Resonance+YaRN")):
        text = extend(parent, 256, name, tmp_path / str(number))
        assert "Decoder with RoPE + Resonance+YaRN, 256 tokens" in text
        assert "- Resonance+YaRN: RoPE reads 256 tokens" in text


def test_nothing_is_advised_where_nothing_changed(parent, tmp_path):
    same = plan(read(parent), 256, "FoPE", {"clip": "false"})
    told = figures(same)
    assert (told["unchanged"], told["advice"]) == (True, "")
    write(same, tmp_path / "a", lambda how: card(same, told, "zoo extend", how))
    text = (tmp_path / "a" / "README.md").read_text()
    assert "are read just as before" in text
    assert "fine-tune" not in text
    assert "fine-tune" in figures(plan(read(parent), 256, "FoPE"))["advice"]
