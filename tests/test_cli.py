"""The command line as a person uses it: verbs, checkpoints, and what wrong input gets."""

import json
import pickle
import re
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from zoo import checkpoints, cli
from zoo.checkpoints import lightning
from zoo.errors import ZooError

TINY = [
    "--model.length=16", "--model.dim=32", "--model.layers=2", "--model.heads=2", "--data.tokenizer=bytes",
    "--data.batch=4", "--data.workers=0", "--data.valid=0.2", "--data.test=0.2", "--trainer.accelerator=cpu",
    "--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--trainer.val_check_interval=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    (root / "texts").mkdir()
    for number in range(8):
        (root / "texts" / f"{number}.txt").write_text(" ".join(f"word{number * i % 97}" for i in range(300)))
    return root


def zoo(*words, capsys=None):
    """Run a verb in this process; stdout and stderr if `capsys` is given."""
    before, sys.argv = sys.argv, ["zoo", *map(str, words)]
    try:
        cli.run(sys.argv[1:])
    finally:
        sys.argv = before
    return capsys.readouterr() if capsys else None


def fit(place, name, *flags):
    out = place / name
    flags = [
        f"--data.files={place / 'texts'}",
        f"--data.cache={place / 'cache'}",
        f"--trainer.default_root_dir={out}",
        *flags,
    ]
    zoo("fit", *TINY, *flags)
    return next(out.rglob("last.ckpt"))


@pytest.fixture(scope="module")
def trained(place):
    return fit(place, "first", "--trainer.max_steps=4", "--model.position=FoPE")


@pytest.fixture
def folder(trained):
    return trained.parents[1] / "model"


def refused(*words):
    with pytest.raises(ZooError) as error:
        zoo(*words)
    return str(error.value)


def test_help_and_plugins_import_no_torch():
    probe = (
        "import sys; from zoo import cli\n"
        "for words in (['--help'], ['plugins'], ['plugins', '--json']): cli.run(words)\n"
        "print('torch' in sys.modules, 'lightning' in sys.modules, file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert told.stderr.strip() == "False False"
    for verb in (*cli.TRAINER, *cli.OWN):
        assert f"  {verb} " in told.stdout


def test_plugins_lists_what_is_installed(capsys):
    rows = json.loads(zoo("plugins", "--json", capsys=capsys).out)
    assert {"name": "FoPE", "distribution": "positionzoo"}.items() <= {
        k: r[k] for r in rows if r["name"] == "FoPE" for k in r
    }.items()
    details = json.loads(zoo("plugins", "--details", "--json", capsys=capsys).out)
    alibi = next(row for row in details if row["name"] == "ALiBi")
    assert alibi["rung"] == "Slopes"
    assert alibi["places"] == ["bias"]
    assert "2108.12409" in alibi["source"]
    matrix = json.loads(zoo("plugins", "--matrix", "--json", capsys=capsys).out)
    assert all(cell["works"] or cell["reasons"] for cell in matrix)


def test_the_matrix_says_each_reason_once(capsys):
    text = zoo("plugins", "--matrix", capsys=capsys).out
    notes = text.partition("why not:")[2].strip().splitlines()
    assert len([note for note in notes if note.strip().startswith("T5:")]) == 1


def test_a_reader_that_leaves_is_no_error():
    line = f"{sys.executable} -c 'from zoo.cli import main; main()' plugins --matrix | head -n 1"
    told = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in told.stderr


def test_a_rehearsal_leaves_nothing(place, tmp_path):
    flags = [f"--data.files={place / 'texts'}", f"--data.cache={place / 'cache'}", "--trainer.fast_dev_run=1"]
    zoo("fit", *TINY, *flags, f"--trainer.default_root_dir={tmp_path}")
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_checkpoint_says_what_it_is(trained, folder):
    content = lightning.load(trained)["zoo"]
    network = content["network"]
    assert network["class_path"] == "zoo.decoder.Decoder"
    assert network["init_args"]["vocabulary"] == 257
    position = network["init_args"]["position"]
    assert position["class_path"] == "FoPE"
    assert position["init_args"]["floor"] == 16, "what was derived is written down"
    assert isinstance(position["init_args"]["num_inv_freq"], int)
    assert content["plugins"]["FoPE"][0] == "zoo.positions"
    assert content["trained"]["steps"] == 4
    both = [checkpoints.read(path).network().state_dict() for path in (trained, folder)]
    assert both[0].keys() == both[1].keys()
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
    assert "FoPE" in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_generate(kind, trained, folder, capsys):
    source = trained if kind == "file" else folder
    once = zoo("generate", source, "--prompt", "word1", "--tokens", 8, "--seed", 1, capsys=capsys).out
    again = zoo("generate", source, "--prompt", "word1", "--tokens", 8, "--seed", 1, capsys=capsys).out
    assert once == again
    assert once.startswith("word1")
    assert len(once.encode()) > len("word1\n")


def test_generating_beyond_the_trained_length_is_said(folder, capsys):
    assert (
        "exceed the trained length 16"
        in zoo("generate", folder, "--prompt", "word1", "--tokens", 20, "--temperature", 0, capsys=capsys).err
    )


def test_validate_and_test_need_no_recipe(trained, place, capsys):
    flags = ["--trainer.default_root_dir", place / "later", "--trainer.limit_val_batches=2"]
    assert "val/perplexity" in zoo("validate", "--ckpt_path", trained, *flags, capsys=capsys).out
    assert "test/perplexity" in zoo("test", "--ckpt_path", trained, *flags, capsys=capsys).out
    assert "val/perplexity" in zoo("validate", "--ckpt_path", trained, "--data.length=32", *flags, capsys=capsys).out


def test_predictions_are_written(trained, place, capsys):
    told = zoo("predict", "--ckpt_path", trained, "--trainer.default_root_dir", place / "predicted", capsys=capsys).out
    path = told.partition("Predictions: ")[2].split()[0]
    losses = load_file(path)["predictions"]
    assert losses.shape[1] == 16
    assert (losses > 0).all()


def test_nothing_to_measure_is_said(place):
    assert "a fresh model has random weights" in refused("validate", *TINY, f"--data.files={place / 'texts'}")


def test_a_checkpoint_named_in_a_recipe_is_compared_too(trained, tmp_path):
    recipe = f"ckpt_path: {trained}\nmodel:\n  class_path: LanguageModel\n  init_args: {{position: ALiBi, dim: 32}}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert "FoPE in the checkpoint" in refused("fit", "--config", tmp_path / "recipe.yaml", *TINY)


def test_another_kernel_of_the_same_form_continues(trained, place, capsys):
    flags = ["--trainer.default_root_dir", place / "kernel", "--trainer.limit_val_batches=2"]
    figures = []
    for kernel in ("Eager", "Tiled"):
        shown = zoo("validate", "--ckpt_path", trained, "--model.kernel", kernel, *flags, capsys=capsys).out
        figures.append(re.search(r"val/perplexity\W+([\d.]+)", shown)[1][:6])
    assert figures[0] == figures[1]


def test_a_checkpoint_of_an_earlier_version_is_read_and_continued(trained, place):
    """Its plugins had other import paths, and its model fewer arguments."""
    content = lightning.load(trained)
    arguments = content["zoo"]["asked"]["model"]["init_args"]
    arguments["kernel"]["class_path"] = "zoo.kernel.Auto"
    arguments["position"]["class_path"] = "zoo_positions.fope.FoPE"
    for new in ("nope_every", "sinks", "random_positions"):
        del arguments[new]
    older = place / "older.ckpt"
    torch.save(content, older)
    root = ["--trainer.default_root_dir", place / "older"]
    zoo("validate", "--ckpt_path", older, *root, "--trainer.limit_val_batches=1")
    flags = ["--trainer.max_steps=5", f"--data.files={place / 'texts'}", f"--data.cache={place / 'cache'}"]
    zoo("fit", "--ckpt_path", older, *root, *flags)


def test_a_child_outlives_its_parent(place, trained):
    parent = place / "parent.ckpt"
    parent.write_bytes(trained.read_bytes())
    child = fit(place, "child", "--trainer.max_steps=2", "--model.position=FoPE", f"--model.weights={parent}")
    parent.unlink()
    flags = ["--trainer.default_root_dir", place / "orphan", "--trainer.limit_val_batches=1"]
    zoo("validate", "--ckpt_path", child, *flags)
    assert [path.name for path in child.parent.glob("last*")] == ["last.ckpt"]


def test_task_and_data_that_do_not_fit(place):
    assert "ImageClassifier does not learn from Text" in refused("fit", "--model=ImageClassifier", "--model.patch=2")
    assert "LanguageModel does not learn from Images" in refused("fit", "--data=Images", "--model.length=8")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model.optimizer.lr=1e30", "--trainer.max_steps=20"], "loss or gradient is no number: 3 in a row"),
        (
            ["--model.optimizer.lr=1e30", "--trainer.callbacks+=NonFinite", "--trainer.callbacks.consecutive=1"],
            "no number: 1 in a row",
        ),
        (["--model.optimizer.lr=-1", "--trainer.max_steps=1"], "optimizer does not take its settings"),
        (["--model.vocabulary=100", "--trainer.max_steps=1"], "vocabulary of 100 is too small: the tokenizer has 257"),
        (["--data.length=8", "--trainer.max_steps=1"], "Blocks of 8 tokens do not fit a model of length 16"),
        (["--model.window=0"], "A window holds at least the token itself"),
        (["--model.dropout=1.5"], "dropout is at least 0 and below 1"),
        (["--data.streaming=true", "--model.schedule=WarmupCosine", "--trainer.max_epochs=1"], "--trainer.max_steps N"),
    ],
)
def test_numbers_that_cannot_train(flags, says, place):
    out = [f"--data.files={place / 'texts'}", f"--data.cache={place / 'cache'}"]
    assert says in refused("fit", *TINY, *out, f"--trainer.default_root_dir={place / 'no'}", *flags)


@pytest.mark.parametrize("flag", ["--device=cuda:7", "--device=foo", "--temperature=nan", "--seed=-1", "--tokens=0"])
def test_generation_that_cannot_be(flag, folder, capsys):
    with pytest.raises(ZooError):
        zoo("generate", folder, "--prompt", "word", flag)
    assert capsys.readouterr().out == "", "nothing is printed before it is sure"


def test_a_run_is_continued(trained, place):
    longer = fit(place, "second", "--trainer.max_steps=6", "--model.position=FoPE", f"--ckpt_path={trained}")
    assert lightning.load(longer)["zoo"]["trained"]["steps"] == 6


def test_another_model_than_the_checkpoints_is_refused(trained):
    told = refused("validate", "--ckpt_path", trained, "--model.dim=64", "--model.position=RoPE")
    assert "model.dim: 32 in the checkpoint, 64 asked for" in told
    assert "FoPE in the checkpoint" in told
    assert "RoPE asked for" in told


def test_a_run_starts_from_weights(trained, folder, place):
    flags = ["--trainer.max_steps=2", "--model.position=FoPE"]
    for number, source in enumerate((trained, folder)):
        new = fit(place, f"weights{number}", f"--model.weights={source}", "--model.optimizer.lr=0", *flags)
        there, here = checkpoints.read(source).weights, checkpoints.read(new).weights
        assert all(torch.equal(there[name], here[name]) for name in here)
        assert lightning.load(new)["zoo"]["trained"]["steps"] == 2
    told = refused(
        "fit", *TINY, *flags, f"--model.weights={folder}", "--model.hidden=96", f"--data.files={place / 'texts'}",
        f"--data.cache={place / 'cache'}", f"--trainer.default_root_dir={place / 'no'}",
    )  # fmt: skip
    assert "belongs to another model" in told
    assert "feed_forward" in told


def test_weights_alone_cannot_be_continued(folder, trained, tmp_path):
    content = torch.load(trained, weights_only=True)
    bare = tmp_path / "bare.ckpt"
    torch.save({key: value for key, value in content.items() if key != "optimizer_states"}, bare)
    assert "--model.weights" in refused("fit", "--ckpt_path", bare)


def test_damaged_checkpoints(trained, folder, tmp_path):
    whole = trained.read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: len(whole) // 2])
    text = tmp_path / "text.ckpt"
    text.write_text("not a checkpoint")
    empty = tmp_path / "empty.ckpt"
    empty.write_bytes(b"")
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, other)
    halved = tmp_path / "halved"
    halved.mkdir()
    for file in folder.iterdir():
        data = file.read_bytes()
        (halved / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    (tmp_path / "nothing").mkdir()
    says = {cut: "truncated", text: "", empty: "", other: "another program", halved: "damaged"}
    says[tmp_path / "nothing"], says[tmp_path / "absent"] = "not a zoo checkpoint folder", "no checkpoint at"
    for path, part in says.items():
        told = refused("generate", path, "--prompt", "a")
        assert str(path) in told
        assert part in told


def test_pickled_code_is_never_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    for path, writer in (
        (tmp_path / "a.ckpt", torch.save),
        (tmp_path / "b.ckpt", lambda o, p: p.write_bytes(pickle.dumps(o))),
    ):
        writer({"state_dict": {}, "zoo": Harm()}, path)
        told = refused("generate", path, "--prompt", "a")
        assert "was not opened" in told or "not a checkpoint" in told
    assert not (tmp_path / "harm").exists()


def test_prompts(folder):
    assert "The prompt has 40 tokens, and the model was trained on 16" in refused(
        "generate", folder, "--prompt", "a" * 40
    )
    assert "prompt is empty" in refused("generate", folder, "--prompt", "")
    assert "--prompt" in refused("generate", folder)
    assert "temperature" in refused("generate", folder, "--prompt", "a", "--temperature", -1)


def test_a_missing_plugin_is_named_with_its_distribution(folder, tmp_path):
    about = yaml.safe_load((folder / "config.yaml").read_text())
    about["plugins"]["Marvel"] = ["zoo.positions", "zoo-marvel 1.2"]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(about))
    told = refused("generate", tmp_path, "--prompt", "a")
    assert "Marvel" in told
    assert "of the distribution zoo-marvel 1.2" in told
    assert "pip install" not in told


def test_a_kernel_that_cannot_carry_the_bias(place):
    told = refused("fit", *TINY, "--model.position=ALiBi", "--model.kernel=Flex", f"--data.files={place / 'texts'}",
                   f"--data.cache={place / 'cache'}", f"--trainer.default_root_dir={place / 'no'}")  # fmt: skip
    assert "Flex cannot serve the position encoding ALiBi" in told
    assert "Tiled" in told


def test_data_that_is_not_there(tmp_path):
    assert "nowhere" in refused("fit", *TINY, f"--data.files={tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused("fit", *TINY, f"--data.files={tmp_path / 'empty'}")


def test_a_mistake_is_a_sentence_and_status_2(tmp_path):
    words = ["generate", str(tmp_path / "absent.ckpt"), "--prompt", "a"]
    told = subprocess.run(
        [sys.executable, "-c", "from zoo.cli import main; main()", *words], capture_output=True, text=True, check=False
    )
    assert told.returncode == 2
    assert told.stderr.startswith("zoo: There is no checkpoint at")
    assert "Traceback" not in told.stderr
