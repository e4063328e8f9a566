"""A checkpoint does not choose what runs: hostile names in every place of a description, on every command."""

import copy
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule

from zoo import cli, recipe, stored_sections, values
from zoo.checkpoints import folder, lightning
from zoo.data import section
from zoo.data.text import Text
from zoo.errors import ZooError

RECIPE = {
    "model": {
        "class_path": "LanguageModel",
        "init_args": {
            **{"length": 16, "dim": 16, "layers": 1, "heads": 2, "schedule": "WarmupCosine"},
            "position": "RoPE",
        },
    },
    "data": {
        "class_path": "Text",
        "init_args": {
            "files": ["texts"],
            "tokenizer": "bytes",
            "batch": 8,
            "workers": 0,
            "valid": 0.2,
            "test": 0.2,
            "cache": "cache",
        },
    },
    "trainer": {
        **{
            "max_steps": 2,
            "accelerator": "cpu",
            "limit_val_batches": 1,
            "limit_test_batches": 1,
            "limit_predict_batches": 1,
        },
        **{
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": "run",
        },
    },
}
MEASURE = ["--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false"]
SLOTS = {
    "position": ("asked.model", "network"),
    "kernel": ("asked.model", "network"),
    "position.init_args.extension": ("asked.model", "network"),
    "optimizer": ("asked.model",),
    "schedule": ("asked.model",),
    "adapter": ("asked.model",),
}
"""Settings that name a class, and the sections of a description that have them."""
HOSTILE = {
    "a function": {"class_path": "hostile_module.run", "init_args": {"command": "touch ran"}},
    "a class that takes a callable": {
        "class_path": "hostile_module.Calls",
        "init_args": {"function": "hostile_module.run"},
    },
}
COMMANDS = {
    "validate": ["validate", "--ckpt_path", "CKPT", *MEASURE],
    "test": ["test", "--ckpt_path", "CKPT", *MEASURE],
    "predict": ["predict", "--ckpt_path", "CKPT", *MEASURE],
    "fit": ["fit", "--ckpt_path", "CKPT", "--trainer.max_steps", "3", *MEASURE, "--trainer.default_root_dir", "again"],
    "weights": ["fit", "--model.weights", "CKPT", "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu",
                "--data.files", "texts", "--data.tokenizer", "bytes", "--data.workers", "0"],
    "generate": ["generate", "CKPT", "--prompt", "a", "--tokens", "1"],
    "evaluate": ["evaluate", "CKPT", "--lengths", "16", "--files", "texts"],
    "extend": ["extend", "CKPT", "--to", "64", "--method", "YaRN", "--out", "long"],
    "export": ["export", "CKPT", "--to", "hf", "--out", "exported"],
    "analyze": ["analyze", "CKPT", "--files", "texts"],
}  # fmt: skip


def zoo(*words):
    before, sys.argv = sys.argv, ["zoo", *map(str, words)]
    try:
        cli.run(sys.argv[1:])
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with texts, a run of two steps and its checkpoint `last.ckpt`."""
    place = tmp_path_factory.mktemp("trained")
    (place / "texts").mkdir()
    for number in range(12):
        (place / "texts" / f"{number}.txt").write_text(f"{number} and the words of this text " * 40)
    (place / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        zoo("fit", "--config", "recipe.yaml")
    return place


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A folder of a test's own, with the texts and with a module that leaves `ran` where it is imported or called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").symlink_to(trained / "texts")
    (tmp_path / "hostile_module.py").write_text(
        "from pathlib import Path\n"
        "from torch.optim import AdamW\n"
        "from lightning.pytorch import LightningDataModule\n"
        "Path('ran').touch()\n"
        "def run(*_, **__): Path('ran').touch()\n"
        "class Calls:\n    def __init__(self, function=None, **_): function()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("hostile_module", None)


def checkpoint(trained, change, path="bad.ckpt"):
    """The trained checkpoint with another description."""
    content = lightning.load(next((trained / "run").rglob("last.ckpt")))
    content["zoo"] = copy.deepcopy(content["zoo"])
    change(content["zoo"])
    torch.save(content, path)
    return Path(path)


def put(about, where, node):
    """Set one entry of a description by its path."""
    *way, last = where.split(".")
    for word in way:
        about = about.setdefault(word, {})
    about[last] = node


def run(command, path):
    """Run a command on a checkpoint; what it said where it was refused."""
    try:
        zoo(*(word.replace("CKPT", str(path)) for word in COMMANDS[command]))
    except ZooError as error:
        return str(error)
    except SystemExit as end:
        return f"status {end.code}" if end.code else None
    return None


@pytest.mark.parametrize("command", COMMANDS)
def test_the_checkpoint_itself_is_read_by_every_command(command, trained, place):
    path = checkpoint(trained, lambda about: None)
    assert run(command, path) is None


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("slot", SLOTS)
def test_no_setting_of_the_model_is_imported_or_called(slot, kind, trained, place):
    def change(about):
        for root in SLOTS[slot]:
            put(about, f"{root}.init_args.{slot}", HOSTILE[kind])

    path = checkpoint(trained, change)
    for command in ("validate", "fit", "weights", "generate"):
        said = run(command, path)
        assert not Path("ran").exists(), f"{command} ran it: {said}"
        assert "hostile_module" not in sys.modules, f"{command} imported it: {said}"
        if slot in ("position", "kernel", "position.init_args.extension"):
            assert said, f"{command} read a description that names no plugin"
        elif command == "fit":
            assert f"--model.{slot} CLASS" in said


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("where", ["asked.data", "asked.model", "network"])
def test_no_section_is_imported_or_called(where, kind, trained, place):
    def change(about):
        node = HOSTILE[kind]
        put(about, *((where, node) if where == "asked.data" else (f"{where}.class_path", node["class_path"])))

    path = checkpoint(trained, change)
    for command in ("validate", "fit", "weights", "evaluate"):
        said = run(command, path)
        assert not Path("ran").exists(), f"{command} ran it: {said}"
        assert "hostile_module" not in sys.modules, f"{command} imported it: {said}"
        if where == "asked.data" and command in ("validate", "fit"):
            assert "--data CLASS" in said
        if where == "asked.model" and command == "fit":
            assert "--model CLASS" in said


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_no_command_reads_stays_data(command, kind, trained, place):
    def change(about):
        about["task"] = HOSTILE[kind]["class_path"]
        for where in ("callbacks", "strategy", "logger", "trainer"):
            about[where] = about["asked"][where] = HOSTILE[kind]
        for name in ("logger", "strategy", "callbacks", "plugins", "profiler"):
            put(about, f"asked.fit.trainer.{name}", HOSTILE[kind])

    assert run(command, checkpoint(trained, change)) is None
    assert not Path("ran").exists()
    assert "hostile_module" not in sys.modules


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("command", ["test", "predict", "extend", "export", "analyze"])
def test_the_other_commands_import_nothing_either(command, kind, trained, place):
    for roots in (("asked.model",), ("network",)):

        def change(about, roots=roots):
            for slot, both in SLOTS.items():
                for root in set(roots) & set(both):
                    put(about, f"{root}.init_args.{slot}", HOSTILE[kind])
            put(about, "asked.data", HOSTILE[kind])

        said = run(command, checkpoint(trained, change))
        assert not Path("ran").exists(), said
        assert "hostile_module" not in sys.modules, said


def read(about, verb="fit"):
    """The sections of a description, as a verb of the Trainer takes them."""
    argv = [verb, "--ckpt_path", "bad.ckpt"]
    stored_sections.read_model_section(about, argv, "bad.ckpt")
    stored_sections.read_data_section(about, argv, "bad.ckpt")


@pytest.fixture
def about(trained):
    """The description of the trained checkpoint."""
    return copy.deepcopy(lightning.load(next((trained / "run").rglob("last.ckpt")))["zoo"])


def test_the_description_itself_is_read(about, place):
    read(about)


@pytest.mark.parametrize("value", ["hostile_module.run", {"class_path": "hostile_module.Calls"}, ["hostile_module.run"],
                                   "!!python/object/apply:os.system ['touch ran']"])  # fmt: skip
@pytest.mark.parametrize("name", ["dim", "std", "norm", "window_layers", "compile", "position.init_args.base",
                                  "schedule.init_args.warmup", "optimizer.init_args.betas",
                                  "optimizer.init_args.fused"])  # fmt: skip
def test_arguments_are_plain_values_of_their_types(name, value, about, place):
    put(about, f"asked.model.init_args.{name}", value)
    with pytest.raises(ZooError, match="no plain value"):
        read(about)
    assert not Path("ran").exists()
    assert "hostile_module" not in sys.modules


def test_the_command_refuses_them_so_too(trained, place):
    path = checkpoint(trained, lambda about: put(about, "asked.model.init_args.dim", "hostile_module.run"))
    assert "no plain value" in run("fit", path)
    assert not Path("ran").exists()


def test_weights_of_a_file_name_no_other_file(trained, place):
    path = checkpoint(trained, lambda about: put(about, "asked.model.init_args.weights", "elsewhere.ckpt"))
    assert run("validate", path) is None


def test_neither_cache_nor_workers_come_from_a_file(trained, place, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(place / "mine"))

    def change(about):
        about["asked"]["data"]["init_args"] |= {"cache": str(place / "theirs"), "workers": 10**6}

    assert run("validate", checkpoint(trained, change)) is None
    assert not (place / "theirs").exists()
    assert (place / "mine").exists()


@pytest.mark.parametrize(
    "word",
    [
        "https://example.com/a.txt",
        "hf://datasets/x",
        "zip://a::b",
        "/dev/zero",
        "/proc/self/environ",
        "/tmp/../proc/self/environ",
        "/proc",
        "/",
        "/sys/kernel",
        "/pro[c]/self/environ",
        "~nobody-at-all/x",
    ],
)
def test_stored_data_are_local_regular_files(word, about, place):
    put(about, "asked.data.init_args.files", [word])
    for verb in ("validate", "fit"):
        with pytest.raises(ZooError, match="does not choose what is opened"):
            read(about, verb)


def test_the_commands_open_no_others(trained, place):
    path = checkpoint(trained, lambda about: put(about, "asked.data.init_args.files", ["/proc/self/environ"]))
    for command in ("validate", "fit"):
        assert "does not choose what is opened" in run(command, path)


@pytest.mark.parametrize("name", ["/etc", "..", "texts", "https://example.com/x", "json:x", "text", "imagefolder"])
def test_a_stored_data_set_is_the_name_of_one_on_the_hub(name, about, place):
    about["asked"]["data"]["init_args"].update(files=None, dataset=name)
    with pytest.raises(ZooError, match="not the name of one on the hub"):
        read(about, "validate")


def test_stored_files_are_printed_before_they_are_opened(trained, place, capsys):
    path = checkpoint(trained, lambda about: put(about, "asked.data.init_args.files", ["nowhere"]))
    assert "nowhere" in run("validate", path)
    assert f"zoo: {path} names the data that are read: nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "analyze", "extend"])
def test_other_commands_open_no_stored_files(command, trained, place):
    path = checkpoint(trained, lambda about: None)
    words = {"evaluate": ["--lengths", "16"], "analyze": [], "extend": ["--to", "64", "--out", "long"]}[command]
    with pytest.raises(ZooError, match=r"texts.*--files"):
        zoo(command, path, *words)


def test_files_of_training_are_recognised_and_only_what_was_held_out_is_read(trained, place, capsys):
    path = checkpoint(trained, lambda about: None)
    zoo("evaluate", path, "--lengths", "16", "--files", "texts", "--json")
    assert '"held-out documents of texts"' in capsys.readouterr().out
    (place / "other.txt").write_text("another text " * 40)
    zoo("evaluate", path, "--lengths", "16", "--files", "other.txt", "--json")
    assert '"origin": "other.txt"' in capsys.readouterr().out


class FilesOfMine(Text):
    """A third party's data module."""


class Foreign(torch.optim.SGD):
    """A third party's optimizer."""


def test_another_programs_classes_are_asked_for_and_their_stored_arguments_apply(trained, place, capsys):
    me = __name__
    sys.modules.setdefault(me, sys.modules.get(me, types.ModuleType(me)))
    for each in (FilesOfMine, Foreign):
        setattr(sys.modules[me], each.__name__, each)

    def change(about):
        about["asked"]["data"]["class_path"] = f"{me}.FilesOfMine"
        about["asked"]["model"]["init_args"]["optimizer"] = {
            "class_path": f"{me}.Foreign",
            "init_args": {"lr": 0.125, "momentum": 0.5},
        }

    path = checkpoint(trained, change)
    data, optimizer = f"{me}.FilesOfMine", f"{me}.Foreign"
    assert "--data CLASS" in run("validate", path)
    zoo("validate", "--ckpt_path", path, *MEASURE, "--data", data)  # which needs no optimizer
    argv = ["fit", "--ckpt_path", str(path), "--data", data]
    about = lightning.load(path)["zoo"]
    with pytest.raises(ZooError, match=r"--model\.optimizer CLASS"):
        stored_sections.read_model_section(about, argv, path)
    model = stored_sections.read_model_section(about, [*argv, "--model.optimizer", optimizer], path)
    assert model["init_args"]["optimizer"] == {"class_path": optimizer, "init_args": {"lr": 0.125, "momentum": 0.5}}
    found = stored_sections.read_data_section(about, argv, path)
    assert found["init_args"]["files"] == ["texts"]
    assert found["init_args"]["valid"] == 0.2
    assert "cache" not in found["init_args"]
    assert "workers" not in found["init_args"]
    assert "FilesOfMine: files ['texts']" in capsys.readouterr().err


def test_a_class_that_the_user_names_in_a_recipe_counts(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {class_path: a.B}\nmodel: {optimizer: c.D}\n")
    (tmp_path / "b.yaml").write_text("data: e.F\nmodel: {init_args: {optimizer: {class_path: g.H}}}\n")
    argv = ["fit", "--config", str(tmp_path / "a.yaml")]
    assert stored_sections.typed_class(argv, "data") == "a.B"
    assert stored_sections.typed_class(argv, "model.optimizer") == "c.D"
    argv += ["--config", str(tmp_path / "b.yaml")]
    assert stored_sections.typed_class(argv, "data") == "e.F"
    assert stored_sections.typed_class(argv, "model.optimizer") == "g.H"
    assert stored_sections.typed_class([*argv, "--data", "i.J"], "data") == "i.J"
    assert stored_sections.typed_class([*argv, "--data.class_path=i.J"], "data") == "i.J"
    assert stored_sections.typed_class(["fit"], "data") is None


def test_a_plugin_stands_in_at_most_four_others():
    node = {"class_path": "Linear", "init_args": {"factor": 2.0}}
    for _ in range(6):
        node = {"class_path": "Resonance", "init_args": {"extension": node}}
    with pytest.raises(ZooError, match="damaged"):
        stored_sections.read_plugin({"class_path": "RoPE", "init_args": {"extension": node}}, "zoo.positions", "It")


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [3], [3.0, "3", True, None, [3]]),
        (float, [3, 3.5], ["3", False, None]),
        (bool, [True], [1, "true"]),
        (str, ["os.system"], [1, None, ["a"]]),
        (str | None, ["a", None], [1]),
        (type | str, [], ["os.system"]),
        (str | list[str] | None, ["a", ["a"]], ["['/dev/zero']", "[a]"]),
        (list[int] | None, [[1], (1,), None], [["1"], "1"]),
        (tuple[float, float], [[0.9, 0.95]], [[0.9], ["a", 1]]),
        (dict[str, int], [{"a": 1}], [{"a": "b"}, {"class_path": 1}]),
        (object, [1, "word", [1, "b"], None], ["{class_path: os.system}", "[1]", {"class_path": "os.system"}]),
        (LightningDataModule, [], ["os.system", {"class_path": "os.system"}]),
        (LightningDataModule | None, [None], ["os.system"]),
    ],
)
def test_plain_values(hint, good, bad):
    assert all(values.is_plain(value, hint) for value in good)
    assert not any(values.is_plain(value, hint) for value in bad)


def test_a_class_that_passes_keywords_on_has_the_arguments_of_its_bases():
    class Base:
        def __init__(self, a: int, b: str = ""):
            pass

    class Passes(Base):
        def __init__(self, c: float, **rest):
            pass

    class Stops(Base):
        def __init__(self, c: float):
            pass

    assert values.annotations_of(Passes) == {"c": float, "a": int, "b": str}
    assert values.annotations_of(Stops) == {"c": float}


def test_a_callback_deletes_no_file_outside_its_folder():
    from zoo import train

    state = {
        **{"dirpath": "local:///home/x", "best_model_path": "local:///home/x/d"},
        **{"last_model_path": "/run/checkpoints/last.ckpt", "kth_best_model_path": "/home/x"},
        "best_k_models": {"/run/checkpoints/a.ckpt": 1.0, "/run/checkpoints/x/../b.ckpt": 1.0},
    }
    derived = {"best_model_path": "/x", "dirpath": "/"}
    content = {"callbacks": {"ModelCheckpoint{'monitor': None}": state, "Derived": derived, "Odd": [1]}}
    train.forget_paths(content, Path("/run/checkpoints/last.ckpt"))
    assert derived["best_model_path"] == ""
    assert state["best_model_path"] == ""
    assert state["kth_best_model_path"] == ""
    assert state["last_model_path"] == "/run/checkpoints/last.ckpt"
    assert state["best_k_models"] == {"/run/checkpoints/a.ckpt": 1.0}


def test_a_folder_names_no_class_either(trained, place):
    source = next((trained / "run").rglob("model"))
    about = folder.said(source)
    for node in (HOSTILE["a function"], {"class_path": "this"}):
        about["network"]["init_args"]["position"] = node
        about["asked"]["model"]["init_args"]["position"] = node
        (place / "bad").mkdir(exist_ok=True)
        for name in ("model.safetensors", "tokenizer.json"):
            (place / "bad" / name).write_bytes((source / name).read_bytes())
        (place / "bad" / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in about.items() if k != "tokenizer"}))
        for command in ("weights", "generate", "evaluate"):
            assert run(command, "bad")
            assert not Path("ran").exists()
            assert not {"hostile_module", "this"} & set(sys.modules)


def test_own_modules_are_told_by_their_place():
    assert section.own_module({"class_path": "zoo.data.Text"}) is Text
    assert section.own_module({"class_path": "Text"}) is Text
    assert section.own_module({"class_path": "zoo_text.Text"}) is None
    assert section.own_module({"class_path": "evil.zoo.Text"}) is None
    assert section.own_module({}) is None
    assert recipe.FREE


@pytest.fixture(scope="module")
def third_party(tmp_path_factory):
    """A module of another program's, with a data module and an optimizer, on the path."""
    place = tmp_path_factory.mktemp("third_party")
    (place / "their_module.py").write_text(
        "import torch\nfrom zoo.data import Text\n"
        "class TheirText(Text):\n"
        "    def __init__(self, files: list[str], batch: int = 4, **rest) -> None:\n"
        "        super().__init__(files=files, batch=batch, **rest)\n"
        "class TheirSGD(torch.optim.SGD):\n    pass\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        yield "their_module"
    sys.modules.pop("their_module", None)


THEIRS = ["--data", "their_module.TheirText", "--model.optimizer", "their_module.TheirSGD"]


def test_a_run_with_another_programs_classes_goes_on_is_measured_and_extended(trained, place, third_party, capsys):
    own = {**RECIPE, "trainer": {**RECIPE["trainer"], "default_root_dir": "theirs"}}
    own["data"] = {**RECIPE["data"], "class_path": "their_module.TheirText"}
    own["model"] = copy.deepcopy(RECIPE["model"])
    own["model"]["init_args"]["optimizer"] = {"class_path": "their_module.TheirSGD", "init_args": {"lr": 0.25}}
    Path("theirs.yaml").write_text(yaml.safe_dump(own))
    zoo("fit", "--config", "theirs.yaml")
    path = next(Path("theirs").rglob("last.ckpt"))
    more = ["--trainer.max_steps", "4", *MEASURE, "--trainer.default_root_dir", "more"]
    for command in ("validate", "test", "predict"):
        with pytest.raises(ZooError, match=r"their_module\.TheirText.*--data CLASS"):
            zoo(command, "--ckpt_path", path, *MEASURE)
        zoo(command, "--ckpt_path", path, *MEASURE, *THEIRS[:2])
    with pytest.raises(ZooError, match=r"their_module\.TheirSGD.*--model\.optimizer CLASS"):
        zoo("fit", "--ckpt_path", path, *more, *THEIRS[:2])
    zoo("fit", "--ckpt_path", path, *more, *THEIRS)
    after = lightning.load(next(Path("more").rglob("last.ckpt")))
    assert after["global_step"] == 4
    assert after["zoo"]["asked"]["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.25
    assert after["zoo"]["asked"]["data"]["init_args"]["batch"] == 8
    zoo("fit", "--config", "theirs.yaml", "--ckpt_path", path, *more)  # the recipe names them too
    zoo("extend", path, "--to", "64", "--method", "YaRN", "--out", "long", "--evaluate", "quick", "--files", "texts")
    zoo("fit", "--model.weights", "long", "--config", "theirs.yaml", "--trainer.default_root_dir", "tuned")


def test_stages_of_a_recipe_keep_the_classes_that_it_names(trained, place, third_party, capsys):
    own = {**copy.deepcopy(RECIPE), "extend": [{"to": 64, "method": "YaRN", "finetune": {"max_steps": 2}}]}
    own["data"]["class_path"] = "their_module.TheirText"
    own["model"]["init_args"]["optimizer"] = {"class_path": "their_module.TheirSGD", "init_args": {"lr": 0.25}}
    Path("stages.yaml").write_text(yaml.safe_dump(own))
    zoo("fit", "--config", "stages.yaml", "--stages", "pretrain")
    for _ in range(2):  # the second time all is done
        zoo("fit", "--config", "stages.yaml")
    last = lightning.load(next(Path("run").glob("1-64-YaRN/checkpoints/last.ckpt")))
    assert last["zoo"]["asked"]["model"]["init_args"]["optimizer"]["class_path"] == "their_module.TheirSGD"
    assert last["zoo"]["asked"]["data"]["class_path"] == "their_module.TheirText"
