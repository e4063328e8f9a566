"""zoo extend on vision transformers: sizes in pixels, every method of a grid beside a model built by hand, refusals."""

import json
import sys
from functools import partial

import pytest
import torch
import yaml
from torch.nn import functional

from zoo import checkpoints, cli, plugins
from zoo.checkpoints import folder
from zoo.errors import ZooError
from zoo.evaluate import Evaluation
from zoo.extend import plan
from zoo.extend.images import compared
from zoo.extend.source import read
from zoo.lengths import short, size
from zoo.vit import ViT

POSITIONS, EXTENSIONS = plugins.classes("zoo.positions"), plugins.classes("zoo.extensions")
SIZE = {"classes": 10, "channels": 1, "size": [8, 8], "patch": 2, "dim": 32, "layers": 2, "heads": 2, "std": 0.3}
DATA = {"class_path": "zoo.data.Images", "init_args": {"valid": 0.1, "test": 0.1, "seed": 0}}


def network(position="RoPE", **more):
    place = {"class_path": position, "init_args": more.pop("own", {})}
    kernel = {"class_path": "Auto", "init_args": {}}
    return {"class_path": "zoo.vit.ViT", "init_args": {**SIZE, "position": place, "kernel": kernel, **more}}


def store(path, position="RoPE", **more):
    """A checkpoint with random weights, as of a run on scikit-learn's digits."""
    torch.manual_seed(5)
    node = network(position, **more)
    model = checkpoints.build(node)
    torch.nn.init.normal_(model.head.weight)
    about = {"format": 1, "zoo": "0", "task": "ImageClassifier", "network": node, "trained": {"steps": 7}}
    about |= {"plugins": checkpoints.owners(node), "asked": {"data": DATA}}
    folder.write(path, about, model.state_dict(), "the old card")
    return path


@pytest.fixture
def parent(tmp_path):
    return store(tmp_path / "vit")


def extend(*words, capsys=None):
    cli.run(["extend", *map(str, words)])
    return capsys.readouterr() if capsys else None


def refused(*words):
    with pytest.raises(ZooError) as error:
        extend(*words)
    return str(error.value)


def images(height, width=None):
    return torch.randn(2, 1, height, width or height, generator=torch.Generator().manual_seed(1))


def made(planned):
    """The network that a plan describes, with the weights that it says."""
    model = checkpoints.build(yaml.safe_load(yaml.safe_dump(planned.about["network"])))
    weights = {k: v for k, v in checkpoints.read(planned.source.path).weights.items() if k not in planned.dropped}
    model.load_state_dict({**weights, **planned.added})
    return model.eval()


def logits(model, pictures):
    model = model if isinstance(model, ViT) else checkpoints.read(model).network()
    with torch.no_grad():
        return model(pictures)


def byhand(path, position, **extension):
    """A vision transformer that was given its extension in Python."""
    kind = EXTENSIONS[extension.pop("method")]
    place = partial(POSITIONS[position], extension=partial(kind, **extension))
    model = ViT(position=place, **{**SIZE, "size": (8, 8)})
    model.load_state_dict(checkpoints.read(path).weights)
    return model.eval()


def test_sizes_as_people_write_them():
    assert size("384px") == [384, 384]
    assert size(" 8x12px ") == [8, 12]
    assert size("32k") == 32768
    assert (short([384, 384]), short([8, 12]), short(1024)) == ("384px", "8x12px", "1k")
    for word in ("px", "0px", "-8px", "8.5px", "8xpx", "x8px", "8x8x8px", "1kpx", "100000px"):
        with pytest.raises(ZooError, match="is no size of images"):
            size(word)


def test_one_node_is_rewritten_and_nothing_else(parent, tmp_path):
    extend(parent, "--to", "12px", "--method", "Linear")
    child = tmp_path / "vit-12px"
    old, new = (yaml.safe_load((path / "config.yaml").read_text()) for path in (parent, child))
    arguments = new["network"]["init_args"]
    assert arguments.pop("reach") == [12, 12]
    assert arguments["position"]["init_args"].pop("extension") == {"class_path": "Linear", "init_args": {"factor": 1.5}}
    assert new["network"] == old["network"]
    assert new["extended"]["length"] == [8, 8]
    step = new["extended"]["chain"][0]
    assert (step["from"], step["to"], step["factor"]) == ([8, 8], [12, 12], 1.5)
    assert (child / "model.safetensors").samefile(parent / "model.safetensors")
    card = (child / "README.md").read_text()
    assert "images of 12px" in card
    assert "token" not in card
    assert checkpoints.read(child).network().reach == (12, 12)


@pytest.mark.parametrize(
    ("position", "extension"),
    [
        ("RoPE", {"method": "Linear", "factor": 2.0}),
        ("RoPE", {"method": "NTK", "factor": 2.0}),
        ("RoPE", {"method": "ABF", "factor": 2.0, "base": 1e6}),
        ("RoPE", {"method": "ByParts", "factor": 2.0}),
        ("RoPE", {"method": "YaRN", "factor": 2.0}),
        ("ALiBi", {"method": "DistanceScaling", "factor": 2.0}),
        ("RoPEMixed", {"method": "DistanceScaling", "factor": 2.0}),
    ],
)
def test_logits_are_those_of_a_model_made_by_hand(tmp_path, position, extension):
    parent = store(tmp_path / "a", position)
    own = [f"--{name}={value}" for name, value in extension.items() if name not in ("method", "factor")]
    extend(parent, "--to", "16px", "--method", extension["method"], *own, "--out", tmp_path / "b")
    for side in (8, 12, 16):
        got = logits(tmp_path / "b", images(side))
        assert torch.equal(got, logits(byhand(parent, position, **extension), images(side)))
        assert not torch.allclose(got, logits(parent, images(side)), atol=1e-3)


def test_interpolated_rows_and_columns_by_hand(parent):
    """Each axis of its own: patch (y, x) turns as patch (y / 2, x / 2) did."""
    model, plain = made(plan(read(parent), [16, 16], "Linear")).double(), checkpoints.read(parent).network().double()
    at = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)).double()
    got = model.trunk.position(at, at, 64).rotation
    expected = plain.trunk.position(at / 2, at / 2, 64).rotation
    torch.testing.assert_close(got.cos, expected.cos, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.sin, expected.sin, rtol=0, atol=1e-12)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bicubic", "linear"])
def test_a_table_becomes_one_of_the_larger_grid(tmp_path, mode, antialias):
    parent = store(tmp_path / "a", "Learned", registers=1)
    own = {"mode": mode, "antialias": str(antialias).lower()}
    planned = plan(read(parent), [12, 12], None, own)
    assert planned.step["method"] == "Resampling"
    table = checkpoints.read(parent).weights["trunk.positions.0.table"]
    word = "bicubic" if mode == "bicubic" else "bilinear"
    picture = functional.interpolate(
        table.T.view(1, 32, 4, 4), (6, 6), mode=word, align_corners=False, antialias=antialias
    )
    added = planned.added["trunk.positions.0.table"]
    assert list(planned.added) == ["trunk.positions.0.table"]
    assert torch.equal(added, picture.view(32, 36).T)
    flying = store(
        tmp_path / "b", "Learned", registers=1, own={"resample": mode, "antialias": antialias, "grid": [4, 4]}
    )
    pictures = images(12)
    assert torch.equal(logits(made(planned), pictures), logits(flying, pictures))
    for out in (tmp_path / "c", tmp_path / "c.ckpt"):
        extend(parent, "--to", "12px", "--mode", mode, "--antialias", antialias, "--out", out)
        assert torch.equal(logits(out, pictures), logits(flying, pictures))
    assert "New are trunk.positions.0.table; no other weight was changed" in (tmp_path / "c" / "README.md").read_text()
    with pytest.raises(ZooError, match="each of 4 x 4 positions"):
        logits(parent, pictures)


def test_a_table_of_offsets_becomes_one_of_the_larger_grid(tmp_path):
    parent = store(tmp_path / "a", "RelativeBias")
    planned = plan(read(parent), [12, 12])
    assert sorted(planned.added) == [f"trunk.positions.{layer}.table" for layer in range(2)]
    assert planned.added["trunk.positions.1.table"].shape == (2, 11, 11)
    flying = store(tmp_path / "b", "RelativeBias", own={"resample": "bicubic"})
    assert torch.equal(logits(made(planned), images(12)), logits(flying, images(12)))


def test_sides_of_other_proportions(tmp_path):
    """One factor for both: 8 x 12 becomes 16 x 24, and nothing else."""
    parent = store(tmp_path / "a", size=[8, 12])
    extend(parent, "--to", "16x24px", "--method", "Linear")
    model = checkpoints.read(tmp_path / "a-16x24px").network()
    assert model.reach == (16, 24)
    assert model.trunk.position.extensions[1].factor == 2
    for word in ("16px", "16x16px", "24x16px"):
        told = refused(parent, "--to", word)
        assert "by one factor on both sides" in told
        assert "Try:  --to 12x18px" in told


@pytest.mark.parametrize(
    ("position", "method"),
    [("RoPE", "Linear"), ("RoPEMixed", "DistanceScaling"), ("ALiBi", "DistanceScaling"), ("Learned", "Resampling")],
)
def test_the_usual_method(tmp_path, position, method):
    """For text it is YaRN where waves turn; a larger picture puts neighbours farther apart too."""
    assert plan(read(store(tmp_path / "a", position)), [12, 12]).step["method"] == method


def test_a_second_extension_starts_from_the_first_size(parent, tmp_path):
    extend(parent, "--to", "12px")
    extend(tmp_path / "vit-12px", "--to", "16px", "--method", "NTK")
    extend(parent, "--to", "16px", "--method", "NTK", "--out", tmp_path / "once")
    there = [yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("vit-16px", "once")]
    assert there[0]["network"] == there[1]["network"]
    assert [step["factor"] for step in there[0]["extended"]["chain"]] == [1.5, 2.0]
    card = (tmp_path / "vit-16px" / "README.md").read_text()
    assert "before (to 12px by Linear); this replaces that, and starts from 8px." in card
    assert "trained on images of 8px for 7 steps, made" in card
    assert "ViT with RoPE + NTK, images of 16px" in card
    assert "extended to images of 12px already" in refused(tmp_path / "vit-12px", "--to", "12px")
    assert "--from says 6px" in refused(tmp_path / "vit-12px", "--to", "16px", "--from", "6px")


def test_an_extension_of_unknown_origin_is_refused_unless_told(tmp_path):
    linear = {"extension": {"class_path": "Linear", "init_args": {"factor": 2.0}}}
    path = store(tmp_path / "a", own=linear, size=[16, 16])
    assert "--from 16px" in refused(path, "--to", "32px")
    planned = plan(read(path), [32, 32], "Linear", trained=[8, 8])
    assert planned.step["factor"] == 4


def test_the_figures_by_hand(parent, capsys):
    shown = extend(parent, "--to", "12px", "--method", "Linear", "--dry-run", "--json", capsys=capsys)
    told = json.loads(shown.out)
    assert (told["length"], told["to"], told["grid"]) == ([8, 8], [12, 12], [[4, 4], [6, 6]])
    assert "cache" not in told
    for number, row in enumerate(told["waves"]):
        frequency = 10000 ** (-number / 4)
        assert row["frequency"]["before"] == pytest.approx(frequency, rel=1e-6)
        assert row["ratio"] == pytest.approx(2 / 3, rel=1e-6)
        assert row["rotations"] == pytest.approx(4 * frequency / 2 / torch.pi, rel=1e-6)
    assert len(told["waves"]) == 4
    assert "6 x 6 patches for 4 x 4: 2.25 times as many, with 5.06 times" in shown.err
    assert "Linear: RoPE reads images of 12px, 1.5 times the 8px of training" in shown.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "8px"], "was trained on images of 8px already, and --to 8px is not more.   Try:  --to 12px"),
        (["--to", "4px"], "is not more"),
        (["--to", "32k"], "is a vision transformer, which reads images of so many pixels.   Try:  --to 12px"),
        (["--to", "12"], "is a vision transformer"),
        (["--to", "13px"], "do not divide into patches of 2 pixels"),
        (["--to", "8192px"], "more than 1048576 patches"),
        (["--to", "16x24px"], "other proportions"),
        (["--to", "12px", "--from", "12"], "--from"),
        (["--to", "12px", "--method", "DynamicNTK"], "DynamicNTK chooses by the extent"),
        (["--to", "12px", "--method", "LongRoPE"], "LongRoPE chooses by the extent"),
        (["--to", "12px", "--method", "Resampling"], "Resampling does not extend RoPE"),
    ],
)
def test_bad_input(parent, tmp_path, words, says):
    assert says in refused(parent, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


def test_one_that_needs_none_says_so(tmp_path):
    told = refused(store(tmp_path / "a", "FIRE"), "--to", "12px")
    assert "FIRE takes no extension, because" in told


@pytest.mark.parametrize("reach", [(4, 4), (12, 6), (13, 13)])
def test_a_reach_that_is_none(reach):
    with pytest.raises(ZooError, match="a reach of"):
        ViT(**{**SIZE, "size": (8, 8)}, reach=reach)
    assert ViT(**{**SIZE, "size": (8, 8)}).reach == (8, 8)


def test_quick_evaluation_beside_a_smaller_picture(parent, tmp_path, capsys):
    out = tmp_path / "far"
    shown = extend(parent, "--to=16px", "--evaluate=quick", "--json", "--out", out, capsys=capsys)
    told = json.loads(shown.out)
    results = told["evaluation"]["results"]
    assert {result["length"] for result in results} == {8, 12, 16}
    assert [each.get("reach") for each in told["evaluation"]["checkpoints"]] == [None, 16]
    page = (out / "README.md").read_text()
    for result in results:
        assert f"{result['value']['top1']:.1%}" in page
    plain = next(r["value"] for r in results if r["length"] == 8 and r["checkpoint"] == "vit")
    assert f"Scaled down to 8 pixels instead, the parent gets {plain['top1']:.1%}" in page
    assert Evaluation([str(out)]).setting.lengths == (4, 8, 12, 16)
    extend(parent, "--to=40px", "--out", tmp_path / "farther")
    assert Evaluation([str(tmp_path / "farther")]).setting.lengths == (4, 8, 12, 16, 32, 40)


def test_the_table_has_the_parent_first_and_at_the_smaller_size():
    def result(name, side, top1):
        value = {"top1": top1, "top5": 1.0, "images": 20, "low": top1 - 0.1, "high": top1 + 0.1}
        return {"checkpoint": name, "length": side, "measure": "resolution", "value": value}

    far = {"checkpoint": "old", "length": 12, "measure": "resolution", "refused": "no row for it"}
    results = [result("old", 8, 0.7), far, result("new", 8, 0.6), result("new", 12, 0.5)]
    text = compared({"results": results, "checkpoints": [{"name": "old"}, {"name": "new"}]}, 8)
    assert "| 8 x 8 | 70.0% (60.0% to 80.0%) | 60.0% (50.0% to 70.0%) |\n" in text
    assert "| 12 x 12 | - | 50.0% (40.0% to 60.0%) |\n" in text
    assert "the same 20 pictures" in text
    assert "Scaled down to 8 pixels instead, the parent gets 70.0%." in text


def test_accuracy_is_measured_on_square_pictures(tmp_path):
    parent = store(tmp_path / "a", size=[8, 12])
    told = refused(parent, "--to=16x24px", "--evaluate=quick")
    assert "is written, and was not measured. Accuracy is measured on square pictures" in told


def test_the_trainers_verbs_take_the_result(tmp_path, monkeypatch):
    def zoo(*words):
        monkeypatch.setattr(sys, "argv", ["zoo", *map(str, words)])
        cli.run(sys.argv[1:])

    flags = [
        f"--trainer.default_root_dir={tmp_path / 'runs'}", "--trainer.accelerator=cpu", "--data.workers=0",
        "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    tiny = ["--model=ImageClassifier", "--data=Images", "--model.dim=32", "--model.layers=1", "--model.heads=2",
            "--model.patch=2", "--data.batch=8", "--trainer.max_steps=1"]  # fmt: skip
    zoo("fit", *tiny, *flags)
    last = next((tmp_path / "runs").rglob("last.ckpt"))
    extend(last, "--to", "12px", "--method", "Linear")
    child = last.with_name("last-12px.ckpt")
    zoo("test", "--ckpt_path", child, "--data.size=12", *flags)
    zoo("test", "--ckpt_path", child, *flags)
    told = checkpoints.read(child).about["asked"]["model"]["init_args"]
    assert (told["size"], told["reach"]) == ([8, 8], [12, 12])
    far = ["--model.position=RoPE", "--model.position.extension=Linear", "--model.position.extension.factor=1.5"]
    zoo("fit", *tiny, *flags, *far, "--data.size=12", "--model.reach=[12,12]", f"--model.weights={child}")
    model = checkpoints.read(max((tmp_path / "runs").rglob("last.ckpt"), key=lambda path: path.stat().st_mtime))
    assert model.about["network"]["init_args"]["size"] == [8, 8]
