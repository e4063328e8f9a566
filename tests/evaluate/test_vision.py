"""Resolutions: counts beside a plain loop and beside `zoo test`, refusals, and folders of pictures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional

from zoo import checkpoints, cli
from zoo.data import Images
from zoo.errors import Unfit, ZooError
from zoo.evaluate.intervals import wilson
from zoo.evaluate.vision import Viewer, resolution
from zoo.vit import ViT

SMALL = {"dim": 32, "layers": 1, "heads": 2}


def zoo(*words: object) -> None:
    before, sys.argv = sys.argv, ["zoo", *map(str, words)]
    try:
        cli.run(sys.argv[1:])
    finally:
        sys.argv = before


def fit(out: Path, *flags: object) -> Path:
    """A checkpoint of a vision transformer on digits that has learned something."""
    words = ["--model=ImageClassifier", *(f"--model.{name}={value}" for name, value in SMALL.items())]
    words += [
        "--model.patch=2",
        "--model.optimizer.lr=0.01",
        "--data=Images",
        "--data.augment=false",
        "--data.valid=0.1",
        "--data.test=0.1",
        "--data.workers=0",
    ]
    words += ["--data.batch=64", "--trainer.accelerator=cpu", "--trainer.max_steps=120", "--trainer.max_epochs=9"]
    words += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    zoo("fit", *words, f"--trainer.default_root_dir={out}", "--trainer.limit_val_batches=0", *flags)
    return next(out.rglob("last.ckpt"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("digits"))


def view(path: Path, **more: object) -> Viewer:
    return Viewer(checkpoints.read(path), "digits", **more)  # type: ignore[arg-type]


def accuracy(path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> float:
    capsys.readouterr()
    root = f"--trainer.default_root_dir={path.parent / 'examined'}"
    zoo("test", "--ckpt_path", path, root, "--trainer.enable_progress_bar=false", *flags)
    found = re.search(r"test/accuracy\W+([\d.]+)", capsys.readouterr().out)
    assert found
    return float(found[1])


def test_the_trained_size_is_what_zoo_test_says(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    viewer = view(trained)
    assert viewer.length == 8
    value = viewer.resolution(8)
    assert value["top1"] == pytest.approx(accuracy(trained, capsys), abs=1e-6)
    assert value["images"] == 179
    assert 0.2 < value["top1"] < value["top5"] < 1
    right = round(value["top1"] * 179)
    assert (value["low"], value["high"]) == wilson(right, 179)
    assert set(value) == {"top1", "top5", "images", "low", "high"}


@pytest.mark.parametrize("side", [6, 8, 12])
def test_any_size_is_a_plain_loop_over_resized_digits(side: int, trained: Path) -> None:
    data = Images(workers=0)
    data.setup()
    network = checkpoints.read(trained).network()
    first = among = 0
    for item in data._part("test"):
        image = item["image"][None]
        if side != 8:
            image = functional.interpolate(image, (side, side), mode="bilinear", antialias=True)
        with torch.no_grad():
            order = network((image - 0.5) / 0.5)[0].argsort(descending=True).tolist()
        first += order[0] == item["label"]
        among += item["label"] in order[:5]
        if item["number"] == 178:
            break
    value = view(trained, batch=50).resolution(side)
    assert (value["top1"], value["top5"]) == (first / 179, among / 179)


def test_sizes_that_the_patch_does_not_divide(trained: Path) -> None:
    with pytest.raises(Unfit, match="9 x 9 does not divide into patches of 2"):
        view(trained).resolution(9)
    with pytest.raises(Unfit, match="1 pixel or more"):
        view(trained).resolution(0)


def test_a_table_is_refused_beyond_its_grid_unless_it_is_resampled(tmp_path: Path) -> None:
    few = ["--trainer.max_steps=1", "--model.position=Learned"]
    table = view(fit(tmp_path / "table", *few))
    assert table.resolution(8)["images"] == 179
    with pytest.raises(Unfit, match="Learned has a vector for each of 4 x 4"):
        table.resolution(12)
    resampled = view(fit(tmp_path / "resampled", *few, "--model.position.resample=bicubic"))
    assert [resampled.resolution(side)["images"] for side in (6, 8, 12)] == [179] * 3


def pictures(root: Path, classes: int, count: int, mode: str = "L", parts: tuple[str, ...] = ("",)) -> Path:
    for part in parts:
        for label in range(classes):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new(mode, (16, 16), (25 * label,) * len(mode)).save(folder / f"{number}.png")
    return root


def test_a_folder_takes_the_place_of_the_data(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    flat = view(trained, files=str(pictures(tmp_path / "flat", 10, 3)))
    assert flat.resolution(8)["images"] == 30, "without parts, all of it"
    parted = view(trained, files=str(pictures(tmp_path / "parted", 10, 2, parts=("train", "test"))))
    assert parted.resolution(8)["images"] == 20, "with parts, the test part"
    with pytest.raises(ZooError, match=r"10 classes.*these have 3"):
        view(trained, files=str(pictures(tmp_path / "three", 3, 2))).resolution(8)
    with pytest.raises(ZooError, match=r"1 channels.*3 channels"):
        view(trained, files=str(pictures(tmp_path / "colour", 10, 2, "RGB"))).resolution(8)


def test_pictures_of_files_are_those_of_zoo_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "noise"
    torch.manual_seed(0)
    for label in range(3):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(20):
            noise = (torch.rand(20, 24) * 60 + 60 * label + 20).byte().numpy()
            Image.fromarray(noise).save(folder / f"class{label}" / f"{number}.png")
    flags = [f"--data.files={folder}", "--data.batch=16", "--data.size=8", "--data.test=0.3", "--trainer.max_steps=9"]
    path = fit(tmp_path / "run", *flags)
    with pytest.raises(ZooError, match="Only fit, validate, test and predict open"):
        view(path)
    viewer = view(path, files=str(folder))
    value = viewer.resolution(8)
    assert value["images"] == 18
    assert value["top5"] == 1.0, "three classes are all among five"
    assert value["top1"] == pytest.approx(accuracy(path, capsys), abs=1e-6)
    assert viewer.resolution(12)["images"] == 18


def test_first_and_first_five_are_counted() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    images = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6, 7]])[:, None, None]
    batches = [{"images": images, "labels": torch.tensor([0, 2])}, {"images": images, "labels": torch.tensor([5, 1])}]
    value = resolution(Fixed(), batches)  # type: ignore[arg-type]
    assert (value["top1"], value["top5"], value["images"]) == (0.25, 0.5, 4)
    with pytest.raises(Unfit, match="no pictures"):
        resolution(Fixed(), [])  # type: ignore[arg-type]


def test_what_is_no_image_classifier(trained: Path) -> None:
    found = checkpoints.read(trained)
    assert isinstance(found.network(), ViT)
    found.about["asked"]["data"]["class_path"] = "elsewhere.Pictures"
    with pytest.raises(ZooError, match="--files FOLDER"):
        Viewer(found, "digits")
    text = Path(__file__).parents[2] / "checkpoints" / "quickstart"
    with pytest.raises(ZooError, match="holds a Decoder"):
        view(text)


def test_data_without_a_test_part_are_refused(tmp_path: Path) -> None:
    path = fit(tmp_path, "--data.test=0", "--trainer.max_steps=1")
    with pytest.raises(ZooError, match="No images were set aside"):
        view(path).resolution(8)
