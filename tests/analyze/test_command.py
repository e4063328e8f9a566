"""The command: one JSON document on stdout, pictures with their numbers, and sentences for what cannot be."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from zoo import checkpoints
from zoo.analyze import claim, command, redundancy, write
from zoo.analyze.charts import figures
from zoo.analyze.run import analyze
from zoo.analyze.spectra import wavelengths
from zoo.analyze.subject import read, windows
from zoo.analyze.waves import describe
from zoo.checkpoints import folder
from zoo.checkpoints.names import names
from zoo.data.tokenizer import Tokenizer
from zoo.errors import Unfit, ZooError
from zoo.evaluate import Setting

QUICK = "checkpoints/quickstart"
TINY = {"head_dim": 16, "layers": 1, "heads": 2}


@pytest.fixture
def book(tmp_path):
    """A file of text that is long enough."""
    path = tmp_path / "book.txt"
    path.write_text("\n".join(f"def add_{n}(a, b):\n    return a + b + {n}\n" for n in range(200)))
    return str(path)


@pytest.fixture
def vision(tmp_path, images):
    """A checkpoint of a vision transformer for scikit-learn's digits."""

    def build(position="RoPE", channels=1, patch=2, size=8, **about):
        torch.manual_seed(0)
        node = {
            "class_path": "zoo.vit.ViT",
            "init_args": {
                "classes": 10, "channels": channels, "size": [size, size], "patch": patch,
                "dim": 32, "layers": 2, "heads": 4,
                "position": {"class_path": position, "init_args": {}},
            },
        }  # fmt: skip
        model = checkpoints.build(node)
        path = tmp_path / f"vision{channels}_{patch}"
        about = {"format": 1, "task": "ImageClassifier", "network": node, **about}
        folder.write(path, about, model.state_dict(), "a card")
        return str(path)

    return build


@pytest.fixture
def runs(tmp_path):
    """Two checkpoints, in the places where runs leave them."""
    places = [tmp_path / "runs" / name / "lightning_logs/version_0/checkpoints/last" for name in ("before", "after")]
    for place in places:
        shutil.copytree(QUICK, place)
    return [str(place) for place in places]


def test_json_is_one_document_and_all_else_is_on_stderr(book, capsys):
    command([QUICK, "--files", book, "--length", "64", "--json"])
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["kind"] == "analysis"
    (found,) = document["checkpoints"]
    assert found["name"] == "quickstart"
    assert found["trained"] == [128]
    assert found["grid"] == [64]
    assert [wave["wavelength"] for wave in found["spectrum"]["encodings"][0]["axes"][0]] == pytest.approx(
        [2 * np.pi * 10000 ** (2 * t / 32) for t in range(16)]
    )
    assert sum(wave["undertrained"] for wave in found["spectrum"]["encodings"][0]["axes"][0]) == 10
    assert "NaN" not in out
    assert "Infinity" not in out
    assert "reads 8 examples" in err


def test_two_checkpoints_stand_side_by_side(book, runs, capsys, tmp_path):
    out = tmp_path / "pictures"
    command([*runs, "--files", book, "--length", "64", "--out", str(out)])
    text, err = capsys.readouterr()
    names = {"spectrum", "response", "streams", "heads", "redundancy"}
    assert {path.stem for path in out.glob("*.png")} == names
    assert {path.stem for path in out.glob("*.json")} == names | {"analysis"}
    for name in names:
        assert [each["name"] for each in json.loads((out / f"{name}.json").read_text())] == ["before", "after"]
        assert np.asarray(Image.open(out / f"{name}.png")).std() > 5
        assert f"{name}.png" in err
    assert not list(out.glob(".*"))
    assert "16 waves, 6.28 to 35333 long; 10 without a full turn in training" in text
    row = next(line for line in text.splitlines() if line.lstrip().startswith("1 "))
    assert row.count("->") == 6


def test_names(tmp_path):
    place = "lightning_logs/version_0/checkpoints/last.ckpt"
    assert names([f"runs/one/{place}", f"runs/two/{place}"]) == ["one", "two"]
    assert names([f"one/{place}", f"one/{place}".replace("_0", "_1")]) == ["version_0", "version_1"]
    assert names(["a/v1.5", "a/v1.6"]) == ["v1.5", "v1.6"]
    assert names(["runs/x", "runs/x.ckpt"]) == ["runs/x", "runs/x.ckpt"]
    with pytest.raises(ZooError, match="named twice"):
        names([str(tmp_path), f"{tmp_path}/."])


def test_a_folder_holds_one_analysis(book, text, tmp_path, capsys):
    """Pictures of an earlier one go; that of other checkpoints is left alone, and nothing is read in vain."""
    out = tmp_path / "pictures"
    out.mkdir()
    (out / "bias.json").write_text("mine: there is no analysis here")
    document = {"checkpoints": [analyze(text("NoPE", model=TINY)) | {"path": "here"}]}
    claim(out, ["here"])
    write(document, out)
    assert (out / "bias.json").exists()
    (out / "coefficients.png").write_text("of an encoding that was")
    (out / "notes.txt").write_text("mine")
    claim(out, ["here"])
    write(document, out)
    assert not list(out.glob("coefficients.*"))
    assert (out / "notes.txt").exists()
    with pytest.raises(ZooError, match="pictures holds the analysis of here"):
        command([QUICK, "--files", book, "--length", "16", "--out", str(out)])
    assert capsys.readouterr().err.count("reads") == 0
    for broken in ("[]", "{", '{"checkpoints": [{}]}'):
        (out / "analysis.json").write_text(broken)
        with pytest.raises(ZooError, match="holds the analysis of something else"):
            claim(out, ["here"])
    (out / "heads.png").unlink()
    (out / "heads.png").mkdir()
    with pytest.raises(ZooError, match=r"heads\.png.* cannot be written"):
        write(document, out)


def test_equal_runs_give_equal_bytes(text, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        assert len(write({"checkpoints": [analyze(text("FoPE", model=TINY))]}, tmp_path / name)) == 13
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def words(figure):
    """All that is written in a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def named(subject, name):
    return analyze(subject) | {"name": name}


def test_checkpoints_of_different_shape(text, images):
    """Another depth, another number of heads, another encoding: each with all that it has, on the same scales."""
    one = named(text("RoPE", model={"layers": 3}), "deep")
    two = named(text("FIRE", model={"layers": 1, "heads": 2, "head_dim": 8}), "flat")
    for documents in ([one, two], [two, one]):
        found = {name: figure for name, (figure, _) in figures(documents).items()}
        for name in ("response", "streams", "redundancy"):
            assert words(found[name]).count("layer 3") >= 1, name
        assert "deep" not in words(found["bias"])
        assert "flat: FIRE" in words(found["bias"])
        drawn = [axes for axes in found["redundancy"].axes if axes.images]
        assert len(drawn) == 4
        hidden = [axes for axes in found["redundancy"].axes if not axes.axison]
        assert len(hidden) == 2
    wide = named(images("RoPE"), "wide")
    (figure, _) = figures([wide, {**wide, "name": "again"}])["response"]
    assert words(figure).count("layer 2, head 4\n") == 2


def test_two_spectra_have_one_scale(text):
    one, two = named(text("RoPE"), "near"), named(text("RoPE", base=10.0), "far")
    two["spectrum"]["layers"][0]["energy"][0][0] *= 100
    figure, _ = figures([one, two])["spectrum"]
    above = [axes.get_ylim() for axes in figure.axes if axes.get_yscale() == "log"]
    below = [axes.images[0].get_clim() for axes in figure.axes if axes.images]
    assert above[0] == above[1]
    assert below[0] == below[1]
    assert below[0][1] > 90


def test_pairs_that_do_not_turn_are_shaded_and_no_others():
    wave = describe(0.5, 8)
    follows = [{"axis": axis, "wave": 0} for axis in (0, 1)]
    encoding = {"axes": [[wave], [wave]], "pairs": [follows[0], None, follows[1], None, None], "trained": [8, 8]}
    axes = Figure().subplots()
    wavelengths(axes, encoding, {"name": "", "position": ""}, "patches")
    spans = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
    assert [[round(span.x0, 6), round(span.x1, 6)] for span in spans] == [[0.5, 1.5], [2.5, 4.5]]


def test_pictures_explain_what_they_show_and_nothing_else(text):
    response = {name: words(figures([analyze(text(name, model=TINY))])["response"][0]) for name in ("RoPE", "ALiBi")}
    assert "Rotation's waves" in response["RoPE"]
    assert "Rotation's waves" not in response["ALiBi"]
    assert "Positions alone" not in response["ALiBi"]
    assert "bias is not in it" in response["ALiBi"]
    assert "bias is not in it" not in response["RoPE"]
    assert "are drawn" not in response["RoPE"]
    long = analyze(text("NoPE", length=600, batch=1, model=TINY))
    shown = len(long["response"]["distances"])
    assert f"Of all distances {shown} are drawn" in words(figures([long])["response"][0]).replace("\n", " ")
    said = words(figures([analyze(text("FoPE", model=TINY))])["coefficients"][0])
    assert "const." in said
    assert "rows' waves" not in said


def test_a_long_name_is_cut_and_in_the_numbers_whole(text):
    name = "a_run_with_all_of_its_numbers/in_its_name"
    for figure, numbers in figures([named(text("RoPE", model=TINY), name)]).values():
        assert f"...{name[-21:]}" in words(figure)
        assert name not in words(figure)
        assert numbers[0]["name"] == name


@pytest.mark.parametrize("position", ["FoPE", "FIRE", "PoPE", "CoPE"])
def test_every_kind_of_text_model_is_drawn(text, tmp_path, position):
    subject = text(position, length=40, model=TINY)
    written = write({"checkpoints": [analyze(subject)]}, tmp_path)
    stems = {path.stem for path in written}
    assert ("bias" in stems) == (position in ("FIRE", "CoPE"))
    assert ("coefficients" in stems) == (position == "FoPE")
    assert ("spectrum" in stems) == (position in ("FoPE", "PoPE"))


@pytest.mark.parametrize("position", ["RoPE", "RoPEMixed", "RelativeBias"])
def test_every_kind_of_image_model_is_drawn(images, tmp_path, position):
    written = write({"checkpoints": [analyze(images(position))]}, tmp_path)
    names = {path.name for path in written}
    assert "heads.png" in names
    assert ("bias.png" in names) == (position == "RelativeBias")


def test_images_of_a_checkpoint(vision, capsys):
    command([vision(), "--json"])
    (found,) = json.loads(capsys.readouterr().out)["checkpoints"]
    assert found["task"] == "images"
    assert found["grid"] == [4, 4]
    assert found["prefix"] == 1
    assert "digits" in found["text"]
    command([vision(channels=3), "--length", "12"])
    assert "read 8 x 6 x 6" in capsys.readouterr().out
    with pytest.raises(ZooError, match="9 pixels do not divide into patches of 2"):
        command([vision(), "--length", "9"])
    with pytest.raises(ZooError, match=r"no folder missing\.   --files takes"):
        command([vision(), "--files", "missing"])


def test_two_image_models_see_the_same(vision):
    """The first one's images at the first one's size, whatever the second was trained on."""
    data = [{"class_path": "zoo.data.Images", "init_args": {"seed": seed, "size": 8}} for seed in (0, 1)]
    one = vision(asked={"data": data[0]})
    two = vision(channels=3, patch=4, size=16, asked={"data": data[1]})
    a, b = read([one, two])
    assert (a.grid, b.grid) == ((4, 4), (2, 2))
    torch.testing.assert_close(a.inputs.expand(-1, 3, -1, -1), b.inputs)
    with pytest.raises(ZooError, match="6 pixels do not divide into patches of 4"):
        read([one, two], length=6)


def test_bad_input(book, vision, tmp_path, capsys):
    with pytest.raises(ZooError, match="named twice"):
        command([QUICK, QUICK])
    with pytest.raises(ZooError, match="'many' is no length"):
        command([QUICK, "--length", "many"])
    with pytest.raises(ZooError, match="no checkpoint at nowhere"):
        command(["nowhere"])
    with pytest.raises(ZooError, match="two of a kind"):
        command([QUICK, vision()])
    with pytest.raises(ZooError, match="one checkpoint or two, and got 3"):
        command([QUICK] * 3)
    with pytest.raises(ZooError, match="--length 1 leaves nothing"):
        command([QUICK, "--length", "1"])
    with pytest.raises(ZooError, match="no device"):
        command([QUICK, "--device", "tube"])
    short = tmp_path / "short.txt"
    short.write_text("one two three " * 20)
    with pytest.raises(ZooError, match=r"holds 200 tokens; the longest has \d+\..*--length \d+"):
        command([QUICK, "--files", str(short), "--length", "200"])
    with pytest.raises(ZooError, match=r"--files missing\.txt"):
        command([QUICK, "--files", "missing.txt"])
    with pytest.raises(ZooError, match="required: CKPT"):
        command([])
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(ZooError, match="Name another folder"):
        command([QUICK, "--files", book, "--length", "16", "--out", str(taken)])
    assert "reads" not in capsys.readouterr().err


def test_a_table_that_ends_is_a_sentence(text):
    with pytest.raises(ZooError, match="Learned has a vector for each of 32 positions"):
        analyze(text("Learned", read=33))


def test_a_model_that_diverged_is_a_sentence(text):
    subject = text("RoPE")
    with torch.no_grad():
        subject.trunk.blocks[1].feed_forward.down.weight[0, 0] = torch.nan
    with pytest.raises(ZooError, match="no finite numbers after layer 2"):
        analyze(subject)


def test_windows():
    texts = ["a" * 9, "bcd", "x" * 4]
    assert windows(texts, lambda text: list(text.encode()), 4).tolist() == [[97] * 4, [120] * 4, [97] * 4]
    long = ["x" * 40_000] * 9
    for length, count in ((100, 8), (8192, 4), (20_000, 1), (40_000, 1)):
        assert windows(long, lambda text: [0] * len(text), length).shape == (count, length)


def test_redundancy_as_a_measure(text):
    model = text("RoPE").model
    tokenizer = SimpleNamespace(encode=lambda text: [ord(letter) % 50 for letter in text])
    limit = 100
    reader = SimpleNamespace(
        name="small", model=model, tokenizer=tokenizer, device=torch.device("cpu"),
        refusal=lambda tokens: None if tokens <= limit else "too long for it",
    )  # fmt: skip
    setting = Setting(texts=["another text"], long=["the quick brown fox jumps over the lazy dog " * 3] * 2)
    found = redundancy(reader, 40, setting)
    assert len(found["layers"]) == 2
    assert found["redundancy"] == pytest.approx(sum(found["layers"]) / 2)
    assert 0 < found["redundancy"] < 1
    with pytest.raises(Unfit, match="too long for it"):
        redundancy(reader, 101, setting)
    reader.model = text("RoPE", model={"heads": 1}).model
    with pytest.raises(Unfit, match="one head"):
        redundancy(reader, 40, setting)
    reader.model = text("NoPE", kernel="Sigmoid").model
    with pytest.raises(Unfit, match="no softmax of dot products"):
        redundancy(reader, 40, setting)


def test_a_checkpoint_without_a_tokenizer(text, tmp_path):
    found = checkpoints.read(QUICK)
    about = {key: value for key, value in found.about.items() if key != "tokenizer"}
    folder.write(tmp_path / "mute", about, found.weights, "a card")
    with pytest.raises(ZooError, match="no tokenizer"):
        command([str(tmp_path / "mute")])
    assert Tokenizer.restore(found.about["tokenizer"]).vocabulary == 2048
