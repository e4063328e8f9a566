"""Extensions in recipes and checkpoints: a plugin within a plugin, named on the command line and stored by name."""

import json
import sys
from functools import partial

import pytest
import torch
import yaml

from zoo import checkpoints, cli, plugins, tables
from zoo.checkpoints import lightning
from zoo.checkpoints.description import named
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.extension import Conversion, Extension, WaveExtension
from zoo.matrix import extended, taken

TINY = [
    "--model.length=16", "--model.dim=32", "--model.layers=1", "--model.heads=2", "--data.tokenizer=bytes",
    "--data.batch=4", "--data.workers=0", "--data.valid=0.2", "--data.test=0.2", "--trainer.accelerator=cpu",
    "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false", "--trainer.max_steps=2",
    "--trainer.enable_model_summary=false", "--trainer.val_check_interval=2",
]  # fmt: skip
EXTENSIONS, POSITIONS = plugins.classes("zoo.extensions"), plugins.classes("zoo.positions")
NESTED = ["--model.position.extension=Resonance", "--model.position.extension.extension=YaRN"]
MAPS = {"ReRoPE", "LeakyReRoPE", "SelfExtend", "DualChunk"}
FACTOR = "--model.position.extension.extension.factor=2.5"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("extensions")
    (root / "texts").mkdir()
    for number in range(8):
        (root / "texts" / f"{number}.txt").write_text(" ".join(f"word{number * i % 97}" for i in range(200)))
    return root


def zoo(*words):
    before, sys.argv = sys.argv, ["zoo", *map(str, words)]
    try:
        cli.run(sys.argv[1:])
    finally:
        sys.argv = before


def fit(place, name, *flags):
    out = place / name
    data = [f"--data.files={place / 'texts'}", f"--data.cache={place / 'cache'}"]
    zoo("fit", *TINY, *data, f"--trainer.default_root_dir={out}", *flags)
    return next(out.rglob("last.ckpt"))


@pytest.fixture(scope="module")
def trained(place):
    return fit(place, "first", *NESTED, FACTOR)


def test_a_checkpoint_stores_it_by_name_with_its_arguments(trained):
    for path in (trained, trained.parents[1] / "model"):
        about = checkpoints.read(path).about
        node = about["network"]["init_args"]["position"]["init_args"]["extension"]
        assert node["class_path"] == "Resonance"
        assert node["init_args"]["extension"]["class_path"] == "YaRN"
        assert node["init_args"]["extension"]["init_args"]["factor"] == 2.5
        assert node["init_args"]["extension"]["init_args"]["truncate"] == "auto"
        assert {"RoPE", "Resonance", "YaRN"} <= set(about["plugins"])
        assert list(about["plugins"]["YaRN"]) == ["zoo.extensions", " ".join(plugins.origin(point("YaRN")))]
        network = checkpoints.read(path).network()
        extension = partial(EXTENSIONS["Resonance"], extension=partial(EXTENSIONS["YaRN"], factor=2.5))
        expected = POSITIONS["RoPE"](network.trunk.geometry, extension=extension)
        assert torch.equal(network.trunk.position.frequencies, expected.frequencies)
        assert network.trunk.position.factor == expected.factor != 1


def point(name):
    return plugins.find("zoo.extensions", name)


def test_a_run_with_it_is_continued_and_another_extension_is_refused(trained, place):
    """Import paths of an earlier version within it, too."""
    content = lightning.load(trained)
    node = content["zoo"]["asked"]["model"]["init_args"]["position"]["init_args"]["extension"]
    assert node["class_path"].endswith(".Resonance")
    node["class_path"] = "zoo_positions.older.Resonance"
    node["init_args"]["extension"]["class_path"] = "zoo_positions.older.YaRN"
    older = place / "older.ckpt"
    torch.save(content, older)
    longer = fit(place, "longer", "--trainer.max_steps=3", f"--ckpt_path={older}")
    assert lightning.load(longer)["zoo"]["trained"]["steps"] == 3
    flags = ["--model.position.extension.extension.factor=4", "--trainer.max_steps=3"]
    with pytest.raises(ZooError) as error:
        fit(place, "no", *NESTED, *flags, f"--ckpt_path={older}")
    assert "model.position.extension.extension.factor: 2.5 in the checkpoint, 4.0 asked for" in str(error.value)


def test_an_extension_may_be_put_on_the_weights_of_a_model_without(place):
    parent = fit(place, "parent", "--model.position=RoPE")
    flags = ["--model.position.extension=Linear", "--model.position.extension.factor=4", "--model.optimizer.lr=0"]
    child = fit(place, "child", *flags, f"--model.weights={parent}")
    there, here = checkpoints.read(parent), checkpoints.read(child)
    assert all(torch.equal(there.weights[name], here.weights[name]) for name in here.weights)
    slow, fast = (each.network().trunk.position.frequencies for each in (here, there))
    torch.testing.assert_close(slow * 4, fast)


def test_a_recipe_may_have_it_as_a_node(place, tmp_path):
    node = {"class_path": "LongRoPE", "init_args": {"factor": 4, "long": [1, 2, 3, 4, 5, 6, 7, 8]}}
    position = {"class_path": "RoPE", "init_args": {"extension": node}}
    recipe = {"model": {"class_path": "LanguageModel", "init_args": {"position": position}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    network = checkpoints.read(fit(place, "recipe", "--config", tmp_path / "recipe.yaml")).network()
    (extension,) = network.trunk.position.extensions
    assert extension.long == [1, 2, 3, 4, 5, 6, 7, 8]
    assert extension.series.length == 16, "that of first training is the model's, and is not asked for"


def test_one_that_is_not_installed_is_named_with_its_distribution(trained, tmp_path):
    folder = trained.parents[1] / "model"
    about = yaml.safe_load((folder / "config.yaml").read_text())
    about["plugins"]["Yonder"] = ["zoo.extensions", "zoo-yonder 1.2"]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(about))
    sentence = r"needs the extension Yonder, which is not installed\..*of the distribution zoo-yonder 1\.2"
    with pytest.raises(ZooError, match=sentence):
        checkpoints.read(tmp_path).network()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--model.position.extension Yarn", ["No extension is called Yarn. Did you mean YaRN?", "Resonance"]),
        ("--model.position.extension YaRN", ["YaRN needs a factor.", "--model.position.extension.factor VALUE"]),
        ("--model.position.extension.factor 4", ["is a setting of the extension, and none is named.", "Linear"]),
        ("--model.position.extension Linear --model.position.extension.factor 0.5", ["1 or more; got 0.5"]),
        (
            "--model.position.extension Linear --model.position.extension.factor abc",
            ["model.position.extension.factor takes a number, and got 'abc'."],
        ),
        (
            "--model.position.extension ABF --model.position.extension YaRN --model.position.extension.factor 4 "
            "--model.position.extension.truncate maybe",
            ["model.position.extension.truncate takes true or false or auto, and got 'maybe'."],
        ),
        ("--model.position.extension YaRN --model.position.extension.slo 2", ["Did you mean slow"]),
        (
            "--model.position ALiBi --model.position.extension Linear",
            ["Linear does not extend ALiBi, which takes DistanceScaling", "extension DistanceScaling"],
        ),
        (
            "--model.position T5 --model.position.extension YaRN --model.position.extension.factor 4",
            ["YaRN does not extend T5, which takes BucketScaling, DistanceScaling, DynamicDistanceScaling."],
        ),
        (
            "--model.position FIRE --model.position.extension DistanceScaling",
            ["FIRE takes no extension, because", "any length", "Those that take some: ALiBi"],
        ),
        (
            "--model.position PoPE --model.position.extension SelfExtend --model.position.extension.factor 4",
            ["SelfExtend does not extend PoPE, which takes"],
        ),
        (
            "--model.position.extension ReRoPE --model.kernel SDPA",
            ["SDPA cannot carry the bias of the position encoding RoPE", "adds a Logits bias", "Tiled"],
        ),
        ("--model.position NoPE --model.position.extension YaRN", ["NoPE takes no extension. Those that take some"]),
        ("--model.position.extension Resonance --model.position.extension.extension Lineer", ["Did you mean Linear?"]),
    ],
)
def test_a_mistake_gets_a_sentence(flags, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.raiseExceptions", False)
    monkeypatch.setattr("sys.argv", ["zoo", "fit", *TINY, *flags.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capsys.readouterr().err
    assert stop.value.code == 2
    sentence = told[told.rindex("zoo: ") :]
    for part in says:
        assert part in sentence
    assert "Traceback" not in told
    assert len(sentence) < 600


# Descriptions.


def test_a_description_needs_installed_classes():
    class Mine(EXTENSIONS["Linear"]):
        """Nobody's."""

    slot = partial(POSITIONS["RoPE"], extension=partial(Mine, factor=2.0))
    model = Decoder(vocabulary=9, length=8, dim=16, layers=1, heads=2, position=slot)
    with pytest.raises(ZooError, match=r"Mine is not an installed extension.*entry point in the group zoo\.extensions"):
        checkpoints.describe(model.trunk.position, slot, "zoo.positions")


def test_a_description_survives_json_and_has_no_extension_where_there_is_none():
    for extension in (None, EXTENSIONS["DynamicNTK"], partial(EXTENSIONS["YaRN"], factor=4.0)):
        slot = partial(partial(POSITIONS["RoPE"], extension=extension), base=500.0)
        model = Decoder(vocabulary=9, length=8, dim=16, layers=1, heads=2, position=slot)
        node = json.loads(json.dumps(checkpoints.describe(model.trunk.position, slot, "zoo.positions")))
        told = node["init_args"]["extension"]
        assert (told is None) == (extension is None)
        again = checkpoints.callable_of(node, "zoo.positions")(model.trunk.geometry)
        assert torch.equal(again.frequencies, model.trunk.position.frequencies)
        assert [type(one) for one in again.extensions] == [type(one) for one in model.trunk.position.extensions]


def test_an_encoding_and_an_extension_may_share_a_name(monkeypatch):
    """As FoPE the encoding and FoPE the conversion to it may."""

    class Point:
        dist = None

    monkeypatch.setattr(plugins, "find", lambda group, name: Point)
    position = {"class_path": "Both", "init_args": {"extension": {"class_path": "Both", "init_args": {}}}}
    network = {"init_args": {"position": position, "kernel": {"class_path": "Auto"}}}
    assert list(named(network["init_args"], checkpoints.SLOTS))[:2] == [
        ("Both", "zoo.positions"),
        ("Both", "zoo.extensions"),
    ]
    owners = checkpoints.owners(network)
    assert list(owners) == ["Both", "zoo.extensions:Both", "Auto"]
    about = {"plugins": {"zoo.extensions:Both": ["zoo.extensions", "zoo-both 1"]}}
    with pytest.raises(ZooError, match=r"needs the extension Both, .*of the distribution zoo-both 1"):
        checkpoints.Checkpoint("here", about, {}).network()


# What goes with what.


def test_which_encodings_take_which_extensions():
    takers = {"RoPE", "pRoPE", "PoPE", "FoPE"}
    biases = {"ALiBi", "T5", "KERPLE", "Sandwich", "DynamicBias", "RoPEMixed"}
    assert {name for name, encoding in POSITIONS.items() if taken(encoding)} == takers | biases
    assert {name for name, _ in extended(EXTENSIONS["YaRN"])} == takers
    for name in MAPS:
        assert {owner for owner, _ in extended(EXTENSIONS[name])} == {"RoPE", "pRoPE"}
    assert {name for name, _ in extended(partial(EXTENSIONS["YaRN"], factor=2.0))} == takers

    class Elsewhere(Extension):
        """Of another family."""

    assert not list(extended(Elsewhere))
    assert taken(POSITIONS["PoPE"]) == (WaveExtension,)
    assert len(taken(POSITIONS["RoPE"])) == 2


def test_details_describe_them():
    rows, text = tables.details()
    rows = {row["name"]: row for row in rows if row["group"] == "zoo.extensions"}
    assert set(rows) == set(EXTENSIONS)
    for row in rows.values():
        if issubclass(EXTENSIONS[row["name"]], Conversion):
            assert row["extends"] == []
            assert row["converts"] == [*EXTENSIONS[row["name"]].converts]
            continue
        waves = issubclass(EXTENSIONS[row["name"]], WaveExtension)
        biases = {"ALiBi", "T5", "KERPLE", "Sandwich", "DynamicBias", "RoPEMixed"}
        biases = {"T5"} if row["name"] == "BucketScaling" else biases
        rotary = {"RoPE", "pRoPE", "PoPE", "FoPE"} if waves else {"RoPE", "pRoPE"}
        assert set(row["extends"]) == (rotary if waves or row["name"] in MAPS else biases)
        assert "arXiv:" in row["source"]
        assert row["summary"].endswith(".")
    assert rows["YaRN"]["arguments"]["factor"] == "required"
    assert rows["YaRN"]["arguments"]["slow"] == 1.0
    dynamic = {name for name, row in rows.items() if row["dynamic"]}
    assert dynamic == {"DynamicNTK", "LongRoPE", "DynamicDistanceScaling", "DualChunk"}
    assert "Linear(factor=required)" in text
    assert "    converts RoPE, pRoPE, FoPE\n" in text
    assert "; chooses by the extent of a request" in text.split("DynamicNTK(")[1].splitlines()[2]
    json.dumps(list(rows.values()))


def test_zoo_check_examines_them(capsys):
    zoo("check", "Linear")
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} <= {"pass", "skip"}
    assert any("extending" in line for line in lines)


def test_zoo_check_examines_both_of_a_name(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("zoo.testing.examine", lambda subject: asked.append(subject) or [])
    zoo("check", "FoPE")
    assert asked == [POSITIONS["FoPE"], EXTENSIONS["FoPE"]]
    assert capsys.readouterr().out.splitlines() == ["FoPE, the position encoding:", "FoPE, the extension:"]
