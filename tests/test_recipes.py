"""Every recipe is read by the command line, builds its model, and says what it is for; the small ones train."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from zoo import checkpoints, cli
from zoo.errors import ZooError

sys.path.insert(0, str(Path(__file__).parent / "hub"))
import folders

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
NAMES = {path.stem: path for path in RECIPES}


def fit(path: Path, out: Path, monkeypatch, *flags: str) -> None:
    words = ["fit", "--config", str(path), "--trainer.default_root_dir", str(out), "--trainer.accelerator=cpu"]
    words += ["--trainer.enable_progress_bar=false", "--trainer.precision=32-true", *flags]
    monkeypatch.setattr("sys.argv", ["zoo", *words])
    cli.run(words)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_says_why(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 30
    assert lines[0].startswith("# ")


@pytest.mark.parametrize(
    ("pattern", "encodings"),
    [
        ("{}_125m", ["RoPE", "ALiBi", "FoPE"]),
        ("compare_{}", ["NoPE", "RoPE", "ALiBi", "KERPLE", "T5", "FIRE", "FoPE"]),
    ],
)
def test_a_comparison_differs_in_the_line_that_names_the_encoding(pattern, encodings):
    names = [pattern.format(name.lower()) for name in encodings]
    assert {name for name in NAMES if name.startswith("compare_")} <= {*names} or "125m" in pattern
    trained = [NAMES[name].read_text().partition("\nextend:")[0] for name in names]  # before what each does by itself
    texts = [text.replace(f"/{name}", "/NAME").splitlines()[1:] for text, name in zip(trained, names, strict=True)]
    assert len({len(text) for text in texts}) == 1
    different = [lines for lines in zip(*texts, strict=True) if len(set(lines)) > 1]
    assert [[line.strip() for line in lines] for lines in different] == [[f"position: {name}" for name in encodings]]


@pytest.mark.parametrize(
    ("name", "twins"),
    [
        ("fourier_quickstart", ["softmax", "rbf", "quartic"]),
        ("fourier_digits", ["softmax", "rbf", "quartic"]),
        ("fourierformer_wt103", ["softmax", "rbf"]),
        ("fourierformer_deit_ti", ["softmax"]),
    ],
)
def test_twins_differ_in_the_line_that_names_the_kernel(name, twins):
    assert {twin for twin in NAMES if twin.startswith(f"{name}_")} == {f"{name}_{end}" for end in twins}
    own = NAMES[name].read_text().splitlines()[1:]
    assert "  callbacks: [HeadRedundancy]" in own
    for end, kernel in zip(twins, ("Auto", "RBF", "FourierQuartic"), strict=False):
        other = NAMES[f"{name}_{end}"].read_text().replace(f"{name}_{end}", name).splitlines()[1:]
        different = [(mine.strip(), line.strip()) for mine, line in zip(own, other, strict=True) if mine != line]
        assert len(different) == 1
        assert different[0][0].startswith("kernel: ")
        assert "FourierIntegral" in different[0][0]
        assert different[0][1] == f"kernel: {kernel}"


@pytest.mark.parametrize(
    ("name", "other"), [("fourier_quickstart", "quickstart"), ("fourier_digits", "vit_quickstart")]
)
def test_small_fourier_models_are_those_of_the_quickstarts(name, other):
    """Same size, optimizer, data and steps; other positions, since rotations do not go with these kernels."""
    mine, theirs = (yaml.safe_load(NAMES[each].read_text()) for each in (name, other))
    assert mine["model"]["init_args"].pop("kernel") == "FourierIntegral"
    for recipe in (mine, theirs):
        del recipe["model"]["init_args"]["position"], recipe["trainer"]["default_root_dir"]
        recipe.pop("extend", None)
    del mine["trainer"]["callbacks"]
    assert mine == theirs


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_data_out_of_reach_names_the_way_out(path, tmp_path, monkeypatch):
    recipe = yaml.safe_load(path.read_text())
    if "dataset" not in recipe["data"]["init_args"]:
        pytest.skip("its data come with Python and scikit-learn")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    with pytest.raises(ZooError, match=r"--data\.(files|tokenizer)"):
        fit(path, tmp_path, monkeypatch)


WT103 = [name for name in NAMES if name.startswith("fourierformer_wt103")]
DEIT = [name for name in NAMES if name.startswith("fourierformer_deit_ti")]


@pytest.mark.parametrize("name", ["rope_125m", "alibi_125m", "fope_125m", *WT103])
def test_the_comparison_trains_on_local_files(name, tmp_path, monkeypatch):
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(" ".join(f"word{number * i % 89}" for i in range(400)))
    small = ["--model.dim=32", "--model.layers=1", "--model.heads=2", "--model.length=32", "--data.batch=2"]
    flags = [
        f"--data.files={tmp_path}",
        "--data.tokenizer=bytes",
        f"--data.cache={tmp_path / 'cache'}",
        "--data.workers=0",
    ]
    flags += [
        "--trainer.max_steps=2",
        "--data.valid=0.2",
        *(["--stages=pretrain"] if name in ("rope_125m", "fope_125m") else []),
    ]
    fit(NAMES[name], tmp_path / "run", monkeypatch, *small, *flags)


@pytest.mark.parametrize("name", ["vit_s16", *DEIT])
def test_the_vision_transformer_trains_on_a_folder(name, tmp_path, monkeypatch):
    from PIL import Image

    for part in ("train", "test"):
        for label in ("ant", "bee"):
            (tmp_path / "pictures" / part / label).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (40, 36), (number * 40, 100, 200)).save(
                    tmp_path / "pictures" / part / label / f"{number}.png"
                )
    small = ["--model.dim=32", "--model.layers=1", "--model.heads=2", "--data.size=32", "--data.batch=4"]
    flags = [f"--data.files={tmp_path / 'pictures'}", f"--data.cache={tmp_path / 'cache'}", "--data.workers=0"]
    fit(
        NAMES[name],
        tmp_path / "run",
        monkeypatch,
        *small,
        *flags,
        "--trainer.max_steps=2",
        "--trainer.max_epochs=1",
    )


@pytest.mark.parametrize("adapter", [None, "LoRA"])
def test_a_folder_of_others_is_trained_at_twice_its_length(adapter, tmp_path, monkeypatch, capsys):
    if adapter:
        pytest.importorskip("peft", reason="peft is not installed")
    folder = folders.write(tmp_path / "llama", folders.LLAMA)
    (tmp_path / "texts").mkdir()
    for number in range(12):
        words = " ".join(f"word{number * i * i % 97}" for i in range(100))
        (tmp_path / "texts" / f"{number}.txt").write_text(words)
    recipe = NAMES["extend_hf"].read_text()
    assert "{to: 2x, method: YaRN, finetune: {max_steps: 400, warmup: 20, positions: pose}}" in recipe
    (tmp_path / "recipe.yaml").write_text(recipe.replace("max_steps: 400", "max_steps: 2"))
    flags = [f"--model.weights={folder}", f"--data.files={tmp_path / 'texts'}", f"--data.cache={tmp_path / 'cache'}"]
    flags += ["--data.workers=0", "--data.valid=0.2", "--data.test=0.2", "--trainer.limit_val_batches=1"]
    flags += [f"--model.adapter={adapter}"] if adapter else []
    fit(tmp_path / "recipe.yaml", tmp_path / "run", monkeypatch, *flags)
    fit(tmp_path / "recipe.yaml", tmp_path / "run", monkeypatch, *flags)  # which finds all of it done
    (told,) = tmp_path.rglob("stage.json")
    assert told.parent.name == "1-128-YaRN", "twice 64"
    assert "held-out documents of" in json.loads(told.read_text())["measured"]
    found, parent = checkpoints.read(told.parent / "model"), checkpoints.read(folder)
    assert found.weights.keys() == parent.weights.keys()
    moved = {name for name, each in found.weights.items() if not each.equal(parent.weights[name])}
    assert all("attention" in name or "feed_forward" in name for name in moved) == bool(adapter)
    (link,) = found.about["extended"]["chain"]
    (tuned,) = link["tuned"]
    assert (link["to"], tuned["steps"], tuned["positions"]) == (128, 2, "pose")
    assert tuned.get("adapter", {}).get("method") == adapter
    words = ("--to", "hf", "--check", "waves", "--out", tmp_path / "out")
    assert folders.zoo(capsys, "export", told.parent / "model", *words)[0] == 0
    with torch.no_grad():
        one, other = (checkpoints.read(path).network()(torch.arange(100)[None]) for path in (found.path, words[-1]))
    torch.testing.assert_close(other, one)


SMALL = [name for name in NAMES if name.startswith(("fourier_quickstart", "fourier_digits"))]


@pytest.mark.parametrize("name", SMALL)
def test_the_small_twins_train_and_show_their_heads(name, tmp_path, monkeypatch):
    flags = ["--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0", "--data.workers=0"]
    if "digits" in name:
        flags += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.check_val_every_n_epoch=1"]
    else:
        flags += ["--data.limit=400000", "--data.tokenizer=bytes", f"--data.cache={tmp_path}"]
        flags += ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.batch=4"]
    fit(NAMES[name], tmp_path / "run", monkeypatch, *flags)
    (table,) = tmp_path.rglob("metrics.csv")
    assert "val/head_distance,val/head_distance_relative" in table.read_text().partition("\n")[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "vit_quickstart"])
def test_a_quickstart_reaches_its_figure(name, tmp_path, monkeypatch, capsys):
    fit(NAMES[name], tmp_path, monkeypatch)
    checkpoint = next(path for path in tmp_path.rglob("last.ckpt") if "512" not in str(path))
    monkeypatch.setattr("sys.argv", ["zoo", "test", "--ckpt_path", str(checkpoint)])
    capsys.readouterr()
    cli.run(["test", "--ckpt_path", str(checkpoint)])
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "test/perplexity" in line or "test/accuracy" in line)
    figure = float(row.replace("│", " ").split()[-1])
    if name == "vit_quickstart":
        assert figure >= 0.97
    else:
        assert figure < 60, "a model that has learned nothing has the vocabulary's size, 2048"
        results = json.loads((tmp_path / "1-512" / "stage.json").read_text())["results"]
        before, _, after = (
            {result["length"]: result["value"] for result in results if result["checkpoint"] == name}
            for name in dict.fromkeys(result["checkpoint"] for result in results)
        )
        assert after[512]["perplexity"] < after[128]["perplexity"], "longer context helps"
        assert after[128]["nats"] <= 1.02 * before[128]["nats"], "short texts lose little"
