"""--method auto: what it measures, held to checkpoints that were written; what it decides; what it reads."""

import json
import math

import pytest
import torch
import yaml

from zoo import checkpoints, cli, plugins
from zoo.checkpoints import folder
from zoo.data import Text
from zoo.errors import ZooError
from zoo.evaluate import Evaluation
from zoo.extend import choice, family, methods, source, trial
from zoo.extend.choice import Row, choose
from zoo.extension import WaveExtension


def extend(*words, capsys=None):
    cli.run(["extend", *map(str, words)])
    return capsys.readouterr() if capsys else None


def auto(*words, capsys):
    """What --json says; where nothing is written, the refusal beside it."""
    refused = ""
    try:
        extend(*words, "--json")
    except ZooError as error:
        refused = str(error)
    return json.loads(capsys.readouterr().out), refused


def perplexities(paths, files, lengths):
    found = Evaluation([str(path) for path in paths], lengths=lengths, measures="perplexity", files=[str(files)])
    return {(one["checkpoint"], one["length"]): one["value"]["perplexity"] for one in found.run()}


def test_the_table_is_what_written_checkpoints_measure(knowing, tmp_path, texts, capsys):
    told, _ = auto(knowing, "--to=48", "--files", texts, "--tolerance=1000%", "--out", tmp_path / "long", capsys=capsys)
    rows = {row["method"]: (row["short"], row["long"]) for row in told["auto"]["models"]}
    names = [name for name in methods.owned("RoPE") if name not in ("Resonance", "FoPE", "DroPE")]
    assert list(rows) == ["as it is", *names]
    assert told["auto"]["text"]["documents"] == 12
    for name in names:
        extend(knowing, "--to", "48", "--method", name, "--out", tmp_path / name)
    there = perplexities([knowing, *(tmp_path / name for name in names)], texts, (16, 48))
    for name, row in rows.items():
        mine = "tiny" if name == "as it is" else name
        assert row == (there[mine, 16], there[mine, 48]), name
    best = min(names, key=lambda name: rows[name][::-1])
    assert told["auto"]["best"] == best
    waves = [name for name in names if issubclass(plugins.load("zoo.extensions", name), WaveExtension)]
    assert min(waves, key=lambda name: rows[name][::-1]) in ("DynamicNTK", "NTK"), "by its training"
    assert rows["DynamicNTK"][1] == rows["NTK"][1] < rows["as it is"][1]
    assert told["auto"]["method"] == told["method"] == best
    assert folder.said(tmp_path / "long")["extended"]["chain"][0]["auto"]["method"] == best


def test_models_share_the_weights(knowing):
    found = family.Family(knowing)
    plans, _ = trial.candidates(source.read(knowing), 64)
    child = found.child(plans["NTK"], "NTK").model
    assert child.head.weight.data_ptr() == child.embedding.weight.data_ptr() == found.weights["head.weight"].data_ptr()
    mine = dict(child.named_parameters())
    assert all(mine[name].data_ptr() == weight.data_ptr() for name, weight in found.weights.items() if name in mine)


def rows(*found):
    return [Row("as it is" if name == "-" else name, near, far) for name, near, far in found]


NAN_LEFT = [Row("A", None, None, "no numbers"), Row("B", 10.0, None, "no numbers")]


@pytest.mark.parametrize(
    ("measured", "method", "helps", "best", "says"),
    [
        (rows(("-", 10, 40), ("A", 10, 9), ("B", 10, 8)), "B", True, "B", "read better"),
        (rows(("-", 10, 40), ("A", 10, 9), ("B", 10.2, 8)), "A", True, "B", "A it is"),
        (rows(("-", 10, 40), ("A", 10.1, 9), ("B", 9, 9.5)), "A", True, "A", "read better"),
        (rows(("-", 10, 40), ("A", 10.05, 9), ("B", 10, 9), ("C", 10, 9)), "B", True, "B", "B it is"),
        (rows(("-", 10, 40), ("A", 10, 20), ("B", 12, 15)), "A", False, "B", "had better start from B"),
        (rows(("-", 10, 40), ("A", 10, 20)), "A", False, "A", "fine-tuning is needed"),
        (rows(("-", 10, 40), ("A", 10, 10)), "A", True, "A", "read as well as short"),
        (rows(("-", 10, 40), ("A", 10, 10.04)), "A", True, "A", "read as well as short"),
        (rows(("-", 10, 40), ("A", 10, 9.96)), "A", True, "A", "read as well as short"),
        (rows(("-", 10, 40), ("A", 10, 9.94)), "A", True, "A", "read better"),
        (rows(("-", 10, 40), ("A", 10, 10.06)), "A", False, "A", "fine-tuning is needed"),
        (rows(("-", 10, 40), ("A", 11, 8), ("B", 10.5, 12)), None, False, "A", "B loses least, 5 %"),
        (rows(("-", 10, 9), ("A", 10, 9.5), ("B", 10, 9.1)), None, False, "B", "use it as it is"),
        (rows(("-", 10, 9), ("A", 10, 9)), None, False, "A", "--method A"),
        (rows(("-", 10, None), ("A", 10, 30)), "A", False, "A", "does not help yet"),
        ([*rows(("-", 10, 40)), *NAN_LEFT], None, False, None, "No method could be measured: no numbers"),
        ([*rows(("-", 10, 40), ("C", 10, 50), ("D", 10, 30)), *NAN_LEFT], "D", False, "D", "D it is"),
    ],
)  # fmt: skip
def test_the_decision(measured, method, helps, best, says):
    found = choose(measured, 0.01, 128, 512)
    assert (found.method, found.helps, found.best) == (method, helps, best)
    assert says in found.said


def test_the_tolerance_that_is_proposed_suffices():
    found = rows(("-", 10, 40), ("A", 11, 8), ("B", 10.51234, 12))
    proposed = float(choose(found, 0.01, 128, 512).said.rpartition("--tolerance ")[2])
    assert choose(found, proposed, 128, 512).method == "B"
    assert choose(found, proposed - 2e-4, 128, 512).method is None


def test_an_untouched_model_without_numbers_is_refused():
    with pytest.raises(ZooError, match=r"untouched model could not be measured: why"):
        choose([Row("as it is", None, None, "why"), Row("A", 1.0, 1.0)], 0.01, 128, 512)


def parts(knowing):
    data = Text(**checkpoints.read(knowing).about["asked"]["data"]["init_args"])
    return {part: list(data.documents(part)[1]["text"]) for part in ("train", "valid", "test")}


def owners(read, texts):
    return {number for number, text in enumerate(texts) if read in text.encode()}


def test_what_was_set_aside_for_testing_is_not_read(recognising, texts, reads, capsys):
    told, _ = auto(recognising, "--to=64", "--dry-run", "--files", texts, capsys=capsys)
    there = parts(recognising)
    assert min(map(len, there.values())) >= 1
    assert reads
    for read in reads:
        assert owners(read, there["valid"])
        assert not owners(read, there["test"] + there["train"])
    assert told["auto"]["text"]["origin"].endswith("that it validated on")


def test_too_few_to_validate_on_and_documents_that_are_tested_on_too(make, tmp_path, texts, reads, capsys):
    """One validation document: those of training are read; and of files named for both, none."""
    data = {"files": str(texts), "cache": str(tmp_path / "cache"), "valid": 0.05, "test": 0.2, "tokenizer": "bytes"}
    few = make.store(tmp_path / "few", data=data, corpus=True)
    told, _ = auto(few, "--to=64", "--dry-run", "--files", texts, capsys=capsys)
    there = parts(few)
    assert len(there["valid"]) < 4 < len(there["train"])
    assert told["auto"]["text"]["origin"].endswith("that it trained on")
    assert all(owners(read, there["train"]) and not owners(read, there["test"]) for read in reads)

    reads.clear()
    other = make.write_texts(tmp_path / "other", 6)
    data |= {"valid_files": str(other), "test_files": str(other)}
    both = make.store(tmp_path / "both", data=data, corpus=True)
    with pytest.raises(ZooError, match=rf"trained on all of .*{other}.*--files"):
        extend(both, "--to=64", "--dry-run", "--files", texts)
    assert not reads
    auto(both, "--to=64", "--dry-run", "--files", other, capsys=capsys)
    assert all(owners(read, parts(both)["test"]) for read in reads)


@pytest.mark.parametrize(("budget", "documents"), [("1m", 4), ("5000", 3), ("1700", 1)])
def test_the_budget_is_kept_and_said(recognising, texts, reads, capsys, budget, documents):
    told, _ = auto(recognising, "--to=64", "--dry-run", "--files", texts, "--budget", budget, capsys=capsys)
    found = told["auto"]
    assert found["text"]["documents"] == documents
    assert sum(map(len, reads)) == found["tokens"] == 13 * 2 * 64 * documents
    assert found["passes"] == 26


def test_a_budget_below_one_document_is_refused_before_anything_is_read(knowing, reads):
    with pytest.raises(ZooError, match=r"takes 1664 tokens for a single document, and the budget is 1000") as error:
        extend(knowing, "--to=64", "--budget", "1000")
    assert "--budget 1664" in str(error.value)
    assert not reads


def test_documents_take_turns_where_files_are_for_both(knowing, texts, reads, tmp_path, capsys):
    told, _ = auto(
        knowing, "--to=48", "--files", texts, "--evaluate=quick", "--tolerance=1000%", "--out", tmp_path / "b",
        capsys=capsys,
    )  # fmt: skip
    whole = [path.read_text() for path in sorted(texts.iterdir())]
    chosen, measured = told["auto"]["text"]["documents"], told["evaluation"]["text"]["documents"]
    assert (chosen, measured) == (6, 6)
    border = next(number for number, read in enumerate(reads) if owners(read, whole[1::2]))
    assert all(owners(read, whole[0::2]) for read in reads[:border])
    assert all(owners(read, whole[1::2]) for read in reads[border:])
    assert "every other document" in told["auto"]["text"]["origin"]
    assert "every other document" in (tmp_path / "b" / "README.md").read_text()


def test_a_single_document_is_for_both_and_says_so(knowing, texts, tmp_path):
    found = family.text(family.Family(knowing), [str(texts / "texts-00.txt")], 48, 8, measured=True)
    assert found.left is found.used
    assert "to choose and to measure" in found.used.origin


def test_nothing_is_written_by_a_dry_run(knowing, texts, tmp_path, capsys):
    before = sorted(path.name for path in tmp_path.iterdir())
    shown = extend(knowing, "--to=64", "--dry-run", "--files", texts, "--tolerance=1000%", capsys=capsys).out
    assert "perplexity at" in shown
    assert "as it is" in shown
    assert shown.index("auto: 13 models read") < shown.index("as it is")
    assert set(path.name for path in tmp_path.iterdir()) - {"cache"} == set(before) - {"cache"}


def test_a_method_that_stands_alone_is_taken_unmeasured(knowing, tmp_path, monkeypatch, reads):
    monkeypatch.setattr(methods, "owned", lambda encoding: ["NTK"])
    extend(knowing, "--to", "64")
    assert folder.said(tmp_path / "tiny-64")["extended"]["chain"][0]["method"] == "NTK"
    assert not reads


def test_methods_that_need_training_are_left_out(monkeypatch):
    from zoo import plugins

    assert {"YaRN", "DynamicNTK", "LongRoPE"} <= set(trial.tried("RoPE"))
    assert "Resonance" not in trial.tried("RoPE")
    monkeypatch.setattr(plugins.load("zoo.extensions", "YaRN"), "advice", "fine-tune")
    assert "YaRN" not in trial.tried("RoPE")


def test_one_that_does_not_fit_is_named_with_its_reason(make, tmp_path, texts, capsys):
    """ABF derives its base from waves that turned in training, and over two tokens none did."""
    knowing = make.store(tmp_path / "a", length=2)
    told, _ = auto(knowing, "--to=48", "--dry-run", "--files", texts, capsys=capsys)
    row = next(row for row in told["auto"]["models"] if row["method"] == "ABF")
    assert "none did" in row["reason"]
    assert row["short"] is row["long"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to=64", "--fast=3"], "--fast is an argument of a method, and none is named"),
        (["--to=64", "--method=NTK", "--tolerance=2%"], "--tolerance is for choosing"),
        (["--to=64", "--method=NTK", "--budget=2k"], "--budget limits"),
        (["--to=64", "--method=NTK", "--seed=2"], "--seed is of a search"),
        (["--to=64", "--tolerance=-1%"], "is a share of perplexity"),
        (["--to=64", "--tolerance=nan"], "is a share of perplexity"),
        (["--to=64", "--tolerance=much"], "got 'much'"),
        (["--to=64", "--search=needle"], "--method LongRoPE"),
        (["--to=64", "--budget=-2"], "is no length"),
        (["--to=16"], "was trained on 16 tokens already"),
        (["--to=16k"], "There is no text to choose by"),
    ],
)
def test_bad_input(knowing, tmp_path, words, says):
    with pytest.raises(ZooError, match=says.replace("(", r"\(")):
        extend(knowing, *words)
    assert {path.name for path in tmp_path.iterdir()} <= {"tiny", "texts", "cache"}


def test_no_text_at_all(make, tmp_path):
    with pytest.raises(ZooError, match="does not say which text") as error:
        extend(make.store(tmp_path / "a"), "--to", "64")
    assert "--files" in str(error.value)
    assert "--method NAME" in str(error.value)
    assert "--lengths" not in str(error.value)


def test_where_it_goes_is_asked_before_anything_is_read(knowing, tmp_path, reads):
    (tmp_path / "tiny-64").mkdir()
    with pytest.raises(ZooError, match="exists"):
        extend(knowing, "--to", "64")
    assert not reads


def test_nothing_is_written_where_nothing_is_better(knowing, texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trial, "measure", lambda name, reader, setting: Row(name, 10.0, 9.0 + (name != "as it is")))
    told, refused = auto(knowing, "--to=64", "--files", texts, capsys=capsys)
    assert "Nothing is written. No method reads 64 tokens better than the untouched model" in refused
    assert told["written"] is None
    assert told["auto"]["method"] is None
    assert yaml.safe_load(told["auto"]["recipe"].partition("\n\n")[2])["extend"][0]["to"] == 64
    assert not (tmp_path / "tiny-64").exists()


def test_the_recipe_and_the_card_of_one_that_does_not_help(knowing, texts, tmp_path, monkeypatch, capsys):
    far = {"as it is": 40.0, "NTK": 20.0}
    monkeypatch.setattr(trial, "measure", lambda name, reader, setting: Row(name, 10.0, far.get(name, 30.0)))
    shown = extend(knowing, "--to=64", "--files", texts, capsys=capsys).out
    assert "NTK it is" in shown
    lines = shown[shown.index("extend:\n") :].partition("\n\n")[0]
    stage = {"to": 64, "method": "NTK", "finetune": {"max_steps": 140, "lr": 0.0003, "positions": "full"}}
    assert yaml.safe_load(lines) == {"extend": [stage]}
    card = (tmp_path / "tiny-64" / "README.md").read_text()
    assert "NTK it is" in card
    assert "above the parent's 10.00 at 16" in card
    assert "At 64 tokens this has 20.00, better than the parent's 40.00." in card
    assert yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0]) == {"extend": [stage]}
    assert "zoo fit --config RECIPE --stages extend --model.weights PARENT" in card
    assert "Why this method" in card


def test_recipes_of_checkpoints_that_know_little():
    stage = yaml.safe_load(choice.recipe({}, 4096, 128, "YaRN").partition("\n\n")[2])["extend"][0]
    assert stage["finetune"] == {"max_steps": 100, "lr": 1e-5, "positions": "pose"}


def test_the_recipe_after_fine_tuning_counts_from_first_training():
    asked = {"model": {"init_args": {"optimizer": {"init_args": {"lr": 2e-4}}}}}
    link = {"method": "YaRN", "to": 256, "steps": 3000, "tuned": [{"steps": 50, "length": 256}]}
    about = {"trained": {"steps": 50}, "asked": asked, "extended": {"length": 128, "chain": [link]}}
    tuned = yaml.safe_load(choice.stage(about, 512, 128, "YaRN"))["extend"][0]["finetune"]
    assert (tuned["max_steps"], tuned["lr"]) == (600, 2e-4)
    del link["tuned"]
    tuned = yaml.safe_load(choice.stage(about, 512, 128, "YaRN"))["extend"][0]["finetune"]
    assert (tuned["max_steps"], tuned["lr"]) == (600, 2e-5)


def test_a_full_evaluation_and_its_picture(knowing, texts, tmp_path, capsys):
    out = tmp_path / "long"
    told = json.loads(
        extend(
            knowing, "--to=400", "--method=NTK", "--evaluate=full", "--files", texts, "--out", out, "--json",
            capsys=capsys,
        ).out
    )  # fmt: skip
    found = {(one["measure"], one["length"]) for one in told["evaluation"]["results"]}
    assert {measure for measure, _ in found} == {"perplexity", "position", "gain", "passkey"}
    assert {length for measure, length in found if measure == "perplexity"} == {8, 16, 32, 64, 128, 256, 400}
    card = (out / "README.md").read_text()
    assert "before and after](position.png)" in card
    assert (out / "position.png").read_bytes().startswith(b"\x89PNG")
    for title in ("Loss over position", "Gain from context", "Passkey", "| 400 |"):
        assert title in card
    assert math.isfinite(float(checkpoints.read(out).network()(torch.arange(9)[None]).detach().sum()))
    extend(out, "--to", "800", "--method", "NTK")
    assert not (tmp_path / "long-800" / "position.png").exists()
