"""`zoo evaluate` as a person types it: what it prints, keeps, continues and refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from zoo import checkpoints
from zoo.checkpoints import folder
from zoo.cli import run
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ZooError
from zoo.evaluate import MEASURES, Evaluation, Setting, names, perplexity


def saved(path, position="RoPE", task="LanguageModel", seed=0, **arguments):
    """A small random model of bytes, as a folder."""
    tokenizer = Tokenizer("bytes")
    torch.manual_seed(seed)
    node = {
        "class_path": "zoo.decoder.Decoder",
        "init_args": {
            **{"vocabulary": tokenizer.vocabulary, "length": 32, "dim": 16, "layers": 1, "heads": 2, "std": 0.3},
            **arguments,
            "position": {"class_path": position, "init_args": {}},
            "kernel": {"class_path": "Auto", "init_args": {}},
        },
    }
    about = {"format": 1, "zoo": "0", "task": task, "network": node, "plugins": checkpoints.owners(node)}
    about |= {"tokenizer": tokenizer.describe(), "trained": {"steps": 7, "epochs": 1}}
    folder.write(path, about, checkpoints.build(node).state_dict(), "A card.")
    return str(path)


def vit(path):
    node = {
        "class_path": "zoo.vit.ViT",
        "init_args": {
            **{"classes": 10, "channels": 1, "size": [8, 8], "patch": 2, "dim": 16, "layers": 1, "heads": 2},
            "position": {"class_path": "RoPE", "init_args": {}},
            "kernel": {"class_path": "Auto", "init_args": {}},
        },
    }
    about = {"format": 1, "task": "ImageClassifier", "network": node, "plugins": checkpoints.owners(node)}
    folder.write(path, about, checkpoints.build(node).state_dict(), "A card.")
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Three documents of 600, 400 and 90 bytes."""
    random = torch.Generator().manual_seed(2)
    place = tmp_path / "texts"
    place.mkdir()
    for number, size in enumerate((600, 400, 90)):
        words = torch.randint(97, 123, (size,), generator=random).tolist()
        (place / f"{number}.txt").write_text("".join(map(chr, words)))
    return str(place)


def ask(*words):
    run(["evaluate", *map(str, words)])


def test_two_checkpoints_side_by_side(tmp_path, files, capsys):
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two", "ALiBi", seed=1)
    out = tmp_path / "report"
    ask(
        one,
        two,
        "--lengths",
        "32,128",
        "--files",
        files,
        "--measures",
        "perplexity,position,gain",
        "--out",
        out,
        "--json",
    )
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document == json.loads((out / "results.json").read_text())
    assert [each["name"] for each in document["checkpoints"]] == ["one", "two"]
    assert [each["position"] for each in document["checkpoints"]] == ["RoPE", "ALiBi"]
    assert document["text"]["documents"] == 2
    assert document["text"]["excluded"] == 1
    cells = {(each["checkpoint"], each["measure"], each["length"]) for each in document["results"]}
    assert cells == {
        *((name, measure, n) for name in ("one", "two") for measure in ("perplexity", "gain") for n in (32, 128)),
        *((name, "position", 128) for name in ("one", "two")),
    }
    refused = [each for each in document["results"] if "refused" in each]
    assert {(each["measure"], each["length"]) for each in refused} == {("gain", 32)}
    assert "one" in said.err
    assert (out / "report.html").is_file()
    assert (out / "perplexity.png").is_file()
    # By other hands: the documents that are long enough, in order, their first 128 bytes.
    model = checkpoints.read(one).network()
    texts = [Path(files, f"{n}.txt").read_bytes()[:128] for n in range(2)]
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(model(ids[None, :-1])[0].double(), ids[1:], reduction="sum")
            for ids in (torch.tensor(list(text)) for text in texts)
        ]
    value = next(e["value"] for e in document["results"] if (e["checkpoint"], e["length"]) == ("one", 128))
    assert value["nats"] == pytest.approx(float(sum(losses)) / (2 * 127), rel=1e-6)


def test_an_interrupted_run_goes_on(tmp_path, files, capsys, monkeypatch):
    model, out = saved(tmp_path / "one"), tmp_path / "report"
    words = (model, "--lengths", "32,64,128", "--files", files, "--measures", "perplexity", "--out", out)
    ask(*words)
    whole = json.loads((out / "results.json").read_text())
    kept = {**whole, "results": [{**whole["results"][0], "value": {**whole["results"][0]["value"], "nats": 1.25}}]}
    (out / "results.json").write_text(json.dumps(kept))
    measured = []
    real = perplexity.perplexity
    monkeypatch.setattr(
        "zoo.evaluate.MEASURES",
        {"perplexity": type("M", (), {"once": False, "run": lambda r, n, s: measured.append(n) or real(r, n, s)})},
    )
    capsys.readouterr()
    ask(*words)
    assert measured == [64, 128]
    assert "1 results of an earlier run are kept" in capsys.readouterr().err
    again = json.loads((out / "results.json").read_text())
    assert again["results"][0]["value"]["nats"] == 1.25
    for new, old in zip(again["results"][1:], whole["results"][1:], strict=True):
        assert new["value"] == old["value"]


def test_another_runs_folder_is_left_alone(tmp_path, files):
    out = tmp_path / "report"
    words = ("--files", files, "--measures", "perplexity", "--out", out)
    one = saved(tmp_path / "one")
    ask(one, "--lengths", "32", *words)
    before = (out / "results.json").read_bytes()
    with pytest.raises(ZooError, match="another run: its settings differ"):
        ask(one, "--lengths", "64", *words)
    shutil.rmtree(one)
    saved(tmp_path / "one", seed=5)  # the same name, other weights
    with pytest.raises(ZooError, match="another run: its checkpoints differ"):
        ask(one, "--lengths", "32", *words)
    assert (out / "results.json").read_bytes() == before
    (out / "results.json").write_text("{")
    with pytest.raises(ZooError, match="damaged"):
        ask(one, "--lengths", "32", *words)


def test_a_length_beyond_a_table_is_refused_and_the_others_run(tmp_path, files, capsys):
    ask(saved(tmp_path / "one", "Learned"), "--lengths", "16,32,64", "--files", files, "--json", "--measures",
        "perplexity,position,passkey")  # fmt: skip
    document = json.loads(capsys.readouterr().out)
    told = {(each["measure"], each["length"]): each.get("refused") for each in document["results"]}
    assert told["perplexity", 16] is None
    assert told["perplexity", 32] is None
    assert "zoo extend" in told["perplexity", 64]
    assert told["position", 32] is None  # the longest that it can read
    assert "tokens" in told["passkey", 32]  # the bare prompt is longer


def test_nothing_that_could_be_measured_is_an_error(tmp_path, files, capsys):
    with pytest.raises(ZooError, match="Nothing could be measured"):
        ask(saved(tmp_path / "one"), "--lengths", "16,32", "--files", files, "--measures", "gain")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--lengths", "8k"], r"None of the 3 documents .* holds 8k tokens; the longest has 600"),
        (["--lengths", "1"], "2 or more"),
        (["--lengths", "many"], "no length"),
        (["--measures", "perplexiti"], "Did you mean perplexity"),
        (["--measures", "resolution"], "vision transformers"),
        (["--measures", ","], "No measure"),
        (["--measures", "longppl"], "--evaluator"),
        (["--measures", "longppl", "--evaluator", "nowhere"], "no checkpoint at nowhere"),
        (["--samples", "0"], "1 or more"),
        (["--windowing", "best"], "fixed, sliding"),
        (["--stride", "4"], "--windowing sliding"),
        (["--depths", "0,2"], "from 0 .first. to 1"),
        (["--depths", "a"], "numbers from 0 to 1"),
        (["--device", "tpu9"], "no device"),
        (["--lengths", "32", "--measures", "ruler", "--tasks", "niah"], "niah"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(tmp_path, files, words, sentence):
    with pytest.raises(ZooError, match=sentence):
        ask(saved(tmp_path / "one"), "--files", files, *words)


def test_checkpoints_of_the_wrong_kind(tmp_path, files):
    text, images = saved(tmp_path / "one"), vit(tmp_path / "two")
    with pytest.raises(ZooError, match="not measured side by side"):
        ask(text, images, "--files", files)
    with pytest.raises(ZooError, match="language models"):
        ask(images, "--measures", "perplexity")
    with pytest.raises(ZooError, match="no checkpoint"):
        ask(tmp_path / "three")
    with pytest.raises(ZooError, match="named twice"):
        ask(text, text, "--files", files)


def test_longppl_through_the_command(tmp_path, files, capsys):
    one = saved(tmp_path / "one")
    with pytest.raises(ZooError, match="finds no token"):  # random models need no context
        ask(one, "--files", files, "--lengths", "64", "--measures", "longppl", "--evaluator", one)


def test_settings_are_part_of_the_document(tmp_path, files):
    found = Evaluation([saved(tmp_path / "one")], lengths=(32,), measures="perplexity", files=[files],
                       setting=Setting(windowing="sliding", stride=8))  # fmt: skip
    settings = found.document["settings"]
    assert (settings["windowing"], settings["stride"], settings["lengths"]) == ("sliding", 8, (32,))
    assert "long" not in settings
    assert list(found.run())
    json.dumps(found.document, allow_nan=False)


def test_names_tell_checkpoints_apart():
    paths = [f"runs/compare_{name}/lightning_logs/version_0/checkpoints/last.ckpt" for name in ("rope", "fope")]
    assert names(paths) == ["compare_rope", "compare_fope"]
    assert names([f"runs/a/version_{n}/checkpoints/last.ckpt" for n in (0, 1)]) == ["version_0", "version_1"]
    assert names(["a/model"]) == ["a"]
    assert names(["x.ckpt", "y.ckpt"]) == ["x", "y"]


def test_help_names_every_measure(capsys):
    with pytest.raises(SystemExit) as ended:
        ask("--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in MEASURES)
