"""`zoo evaluate` as a person types it: what it prints, keeps, continues and refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from zoo import checkpoints
from zoo.checkpoints import folder
from zoo.checkpoints.names import names
from zoo.cli import run
from zoo.data.tokenizer import Tokenizer, train
from zoo.errors import ZooError
from zoo.evaluate import MEASURES, Evaluation, Setting, perplexity, texts


def saved(path, position="RoPE", task="LanguageModel", seed=0, tokenizer=None, base=None, **arguments):
    """A small random model of bytes, as a folder."""
    tokenizer = tokenizer or Tokenizer("bytes")
    torch.manual_seed(seed)
    node = {
        "class_path": "zoo.decoder.Decoder",
        "init_args": {
            **{"vocabulary": tokenizer.vocabulary, "length": 32, "dim": 16, "layers": 1, "heads": 2, "std": 0.3},
            **arguments,
            "position": {"class_path": position, "init_args": {} if base is None else {"base": base}},
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
    shutil.rmtree(one)
    saved(tmp_path / "one", base=100.0)  # the same name and weights, another network
    with pytest.raises(ZooError, match="another run: its checkpoints differ"):
        ask(one, "--lengths", "32", *words)
    assert (out / "results.json").read_bytes() == before
    for damaged in (b"{", b"[]", before.replace(b'"measure"', b'"m"'), before.replace(b'"results"', b'"r"')):
        (out / "results.json").write_bytes(damaged)
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
        (["--lengths", ","], "no length in ','"),
        (["--lengths", "32", "--measures", "offset", "--offsets", "0,x"], "'x' is no length"),
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
    for again in (text, tmp_path / "two" / ".." / "one"):
        with pytest.raises(ZooError, match="named twice"):
            ask(text, again, "--files", files)


def test_numbers_that_are_none_are_refused(tmp_path, files, capsys):
    broken = saved(tmp_path / "broken", std=float("inf"), length=64)
    words = (broken, "--lengths", "128,400", "--files", files, "--depths", "0")
    with pytest.raises(ZooError, match="Nothing could be measured"):
        ask(*words, "--measures", "perplexity,position,gain,offset,passkey", "--out", tmp_path / "report")
    refused = [each["refused"] for each in json.loads((tmp_path / "report" / "results.json").read_text())["results"]]
    assert sum("no numbers" in reason for reason in refused) == 7
    assert "no numbers after 390 tokens" in refused[-1]


def test_what_cannot_be_read_is_said_before_anything_is_measured(tmp_path, files, capsys):
    """A task's name, and the file of another, hours before their turn comes."""
    words = (saved(tmp_path / "one"), "--lengths", "32", "--files", files, "--measures", "perplexity,ruler")
    for wrong, sentence in ((["--tasks", "cwe,niah"], "no task niah"), (["--squad", files], "cannot be read as SQuAD")):
        with pytest.raises(ZooError, match=sentence):
            ask(*words, *wrong)
    assert not capsys.readouterr().out


def test_rows_without_text(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"body": "one"}\n')
    with pytest.raises(ZooError, match="no column 'text'; its columns are: body") as refused:
        ask(saved(tmp_path / "one"), "--lengths", "32", "--files", tmp_path / "rows.jsonl")
    assert "--data" not in str(refused.value)  # an option of training


def test_passkeys_need_no_text(tmp_path, capsys, monkeypatch):
    def none(*arguments):
        raise ZooError("What it held out is not at hand.")

    monkeypatch.setattr(texts, "held_out", none)
    one = saved(tmp_path / "one")
    ask(one, "--lengths", "300", "--measures", "passkey", "--samples", "1", "--json")
    assert json.loads(capsys.readouterr().out)["text"] == {}
    with pytest.raises(ZooError, match="not at hand"):
        ask(one, "--lengths", "300", "--measures", "passkey,needle")


def test_models_of_different_tokenizers_are_not_compared_by_tokens(tmp_path, files, capsys):
    words = "".join(Path(files, f"{number}.txt").read_text() for number in range(3))
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two", tokenizer=train([words], 300))
    named = saved(tmp_path / "named", tokenizer=train([words], 300, "another name of the same"))
    ask(two, named, "--lengths", "32,64", "--files", files, "--measures", "perplexity")
    assert "bits per byte" not in capsys.readouterr().out
    ask(one, two, "--lengths", "32,64", "--files", files, "--measures", "perplexity", "--out", tmp_path / "report")
    document = json.loads((tmp_path / "report" / "results.json").read_text())
    bits = [f"{each['value']['bits_per_byte']:.3f}" for each in document["results"]]
    said, page = capsys.readouterr().out, (tmp_path / "report" / "report.html").read_text()
    for shown in (said, page):
        assert "compare bits per byte" in shown
        assert all(each in shown for each in bits)
    assert len({each["tokenizer"] for each in document["checkpoints"]}) == 2
    assert all(each["tokenizer"] in page for each in document["checkpoints"])


def test_places_that_are_named_twice_are_asked_once(tmp_path, files, capsys):
    one = saved(tmp_path / "one")
    ask(one, "--lengths", "300", "--measures", "passkey", "--depths", "1,0,1.0", "--samples", "1", "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["settings"]["depths"] == [0, 1]
    ask(one, "--lengths", "64", "--measures", "offset", "--offsets", "8,,0, 8,", "--files", files, "--json")
    assert json.loads(capsys.readouterr().out)["settings"]["offsets"] == [0, 8]


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
    assert names(["a-1.5", "a-1.6"]) == ["a-1.5", "a-1.6"]
    assert names(["/one/c", "/two/c"]) == ["one/c", "two/c"]
    assert names(["/c", "/two/c"]) == ["c", "two/c"]
    assert names(["runs/a/last.ckpt", "runs/a/model"]) == ["runs/a/last.ckpt", "runs/a/model"]
    assert names(["/last.ckpt"]) == ["/last.ckpt"]


def test_help_names_every_measure(capsys):
    with pytest.raises(SystemExit) as ended:
        ask("--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in MEASURES)


def test_an_extension_is_named_with_its_encoding(tmp_path, files):
    extension = {"class_path": "YaRN", "init_args": {"factor": 4.0}}
    plain = saved(tmp_path / "plain")
    about = checkpoints.read(plain).about
    about["network"]["init_args"]["position"]["init_args"] = {"extension": extension}
    folder.write(tmp_path / "longer", about, checkpoints.read(plain).weights, "A card.")
    found = Evaluation([str(tmp_path / "longer"), plain], lengths=(32,), measures="perplexity", files=[files])
    assert [each["position"] for each in found.document["checkpoints"]] == ["RoPE + YaRN x 4", "RoPE"]
    first, second = (result["value"]["nats"] for result in found.run())
    assert first != second


def test_text_that_is_not_what_was_trained_on_is_named(files):
    data = {"class_path": "zoo.data.Text", "init_args": {"files": files, "test": 0.3}}
    about = {"asked": {"data": data}, "corpus": texts.Text(files=files).digest}
    same = texts.held_out(about, opens=True)
    assert same.origin.startswith("held-out documents of")
    assert texts.held_out({"asked": {"data": data}}, opens=True).origin == same.origin  # from before digests were kept
    with pytest.raises(ZooError, match="Only fit, validate, test and predict open"):
        texts.held_out(about)
    assert texts.chosen([files] if isinstance(files, str) else files, about).texts == same.texts
    other = texts.held_out({"asked": {"data": data}, "corpus": "another"}, opens=True)
    assert "not the text that it was trained on" in other.origin
    assert other.texts == same.texts


def test_a_run_that_held_nothing_out_says_so(files):
    data = {"class_path": "zoo.data.Text", "init_args": {"files": files, "test": 0}}
    about = {"asked": {"data": data}, "corpus": texts.Text(files=files, test=0).digest}
    with pytest.raises(ZooError, match=r"held out no document.*Try:  --files with texts that it was not trained on"):
        texts.chosen([files], about)
