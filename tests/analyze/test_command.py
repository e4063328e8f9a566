"""The command: one JSON document on stdout, pictures with their numbers, and sentences for what cannot be."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from zoo import checkpoints
from zoo.analyze import analyze, command, redundancy, write
from zoo.analyze.subject import windows
from zoo.checkpoints import folder
from zoo.data.tokenizer import Tokenizer
from zoo.errors import Unfit, ZooError

QUICK = "checkpoints/quickstart"


@pytest.fixture
def book(tmp_path):
    """A file of text that is long enough."""
    path = tmp_path / "book.txt"
    path.write_text("\n".join(f"def add_{n}(a, b):\n    return a + b + {n}\n" for n in range(200)))
    return str(path)


@pytest.fixture
def vision(tmp_path, images):
    """A checkpoint of a vision transformer for scikit-learn's digits."""

    def build(position="RoPE", channels=1):
        torch.manual_seed(0)
        node = {
            "class_path": "zoo.vit.ViT",
            "init_args": {
                "classes": 10, "channels": channels, "size": [8, 8], "patch": 2, "dim": 32, "layers": 2, "heads": 4,
                "position": {"class_path": position, "init_args": {}},
            },
        }  # fmt: skip
        model = checkpoints.build(node)
        path = tmp_path / f"vision{channels}"
        folder.write(path, {"format": 1, "task": "ImageClassifier", "network": node}, model.state_dict(), "a card")
        return str(path)

    return build


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


def test_two_checkpoints_stand_side_by_side(book, capsys, tmp_path):
    out = tmp_path / "pictures"
    command([QUICK, QUICK, "--files", book, "--length", "64", "--out", str(out)])
    text, err = capsys.readouterr()
    names = {"spectrum", "response", "streams", "heads", "redundancy"}
    assert {path.stem for path in out.glob("*.png")} == names
    assert {path.stem for path in out.glob("*.json")} == names | {"analysis"}
    for name in names:
        assert [each["name"] for each in json.loads((out / f"{name}.json").read_text())] == ["A", "B"]
        assert np.asarray(Image.open(out / f"{name}.png")).std() > 5
        assert f"{name}.png" in err
    assert not list(out.glob(".*"))
    assert "16 waves, 6.28 to 3.53e+04 long; 10 without a full turn in training" in text
    row = next(line for line in text.splitlines() if line.lstrip().startswith("1 "))
    assert row.count("->") == 6


@pytest.mark.parametrize("position", ["FoPE", "FIRE", "PoPE", "CoPE"])
def test_every_kind_of_text_model_is_drawn(text, tmp_path, position):
    subject = text(position, length=40, model={"head_dim": 16, "layers": 1, "heads": 2})
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


def test_bad_input(book, vision, tmp_path, capsys):
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
    with pytest.raises(ZooError, match=r"No document has 200 tokens: the longest has \d+\."):
        command([QUICK, "--files", str(short), "--length", "200"])
    with pytest.raises(ZooError, match=r"--files missing\.txt"):
        command([QUICK, "--files", "missing.txt"])
    with pytest.raises(ZooError, match="required: CKPT"):
        command([])
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(ZooError, match="Name another folder"):
        command([QUICK, "--files", book, "--length", "16", "--out", str(taken)])


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
    assert windows(texts, lambda text: list(text.encode()), 4, 3).tolist() == [[97] * 4, [120] * 4, [97] * 4]
    long = ["x" * 40_000] * 9
    for length, count in ((100, 8), (8192, 4), (20_000, 1), (40_000, 1)):
        assert windows(long, lambda text: [0] * len(text), length).shape == (count, length)
    with pytest.raises(ZooError, match="the longest has 9"):
        windows(["a" * 9, "b" * 30], lambda text: list(text.encode())[:9], 10)
    with pytest.raises(ZooError, match="none has even as many bytes"):
        windows(["abc"], lambda text: [], 10)


def test_redundancy_as_a_measure(text):
    model = text("RoPE").model
    tokenizer = SimpleNamespace(encode=lambda text: [ord(letter) % 50 for letter in text])
    limit = 100
    reader = SimpleNamespace(
        name="small", model=model, tokenizer=tokenizer, device=torch.device("cpu"),
        refusal=lambda tokens: None if tokens <= limit else "too long for it",
    )  # fmt: skip
    setting = SimpleNamespace(texts=["the quick brown fox jumps over the lazy dog " * 3] * 2)
    found = redundancy(reader, 40, setting)
    assert len(found["layers"]) == 2
    assert found["redundancy"] == pytest.approx(sum(found["layers"]) / 2)
    assert 0 < found["redundancy"] < 1
    with pytest.raises(Unfit, match="too long for it"):
        redundancy(reader, 101, setting)
    limit = 10**9
    with pytest.raises(Unfit, match="No document has 1000 tokens"):
        redundancy(reader, 1000, setting)
    reader.model = text("RoPE", model={"heads": 1}).model
    with pytest.raises(Unfit, match="one head"):
        redundancy(reader, 40, setting)
    reader.model = text("NoPE", kernel="Sigmoid").model
    with pytest.raises(Unfit, match="no distribution"):
        redundancy(reader, 40, setting)


def test_a_checkpoint_without_a_tokenizer(text, tmp_path):
    found = checkpoints.read(QUICK)
    about = {key: value for key, value in found.about.items() if key != "tokenizer"}
    folder.write(tmp_path / "mute", about, found.weights, "a card")
    with pytest.raises(ZooError, match="no tokenizer"):
        command([str(tmp_path / "mute")])
    assert Tokenizer.restore(found.about["tokenizer"]).vocabulary == 2048
