"""Which folders are classes, which are parts, and what is refused since it could be either."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from zoo.data import Images, image_folder
from zoo.data.image_folder import read_image_folder
from zoo.errors import ZooError


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return root


def read(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Of each part the class and the path of every picture."""
    found = read_image_folder(root, str(root))
    return {
        part: [
            (rows.features["label"].int2str(row["label"]), str(Path(row["image"]["path"]).relative_to(root)))
            for row in rows
        ]
        for part, rows in found.items()
    }


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(image_folder, "rank_zero_info", lines.append)
    return lines


@pytest.mark.parametrize(
    "classes",
    [
        ("bus", "car", "freight train", "passenger train"),
        ("dev board", "motherboard"),
        ("train", "car"),
        ("test", "train", "bus"),
        ("test-tube", "validation rig"),
        ("Train", "Val"),
        ("crash_test_dummy", "doll"),
        ("testing", "training"),
        ("dev", "test"),
    ],
)
def test_folders_that_are_not_all_parts_are_classes(tmp_path: Path, classes: tuple[str, ...]) -> None:
    names = [f"{label}/{picture}.png" for label in classes for picture in ("1", "ski-train-7", "test", "val_3")]
    write(tmp_path, *names)
    assert read(tmp_path) == {"train": [(name.split("/")[0], name) for name in sorted(names)]}


@pytest.mark.parametrize("valid", ["val", "valid", "validation"])
def test_folders_that_are_all_parts(tmp_path: Path, valid: str) -> None:
    for part in ("train", valid, "test"):
        write(tmp_path, f"{part}/bus/1.png", f"{part}/freight train/ski-test-1.png")
    found = read(tmp_path)
    assert list(found) == ["train", "valid", "test"]
    for part, name in (("train", "train"), ("valid", valid), ("test", "test")):
        assert found[part] == [
            ("bus", f"{name}/bus/1.png"),
            ("freight train", f"{name}/freight train/ski-test-1.png"),
        ]


def test_classes_are_those_of_all_parts(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.png", "train/c/1.png", "test/b/1.png")
    found = read_image_folder(tmp_path, "x")
    assert all(rows.features["label"].names == ["a", "b", "c"] for rows in found.values())


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["1.png"], "has no labels for 1.png"),
        (["a/1.png", "b/1.png", "loose.png"], "has no labels for loose.png"),
        (["train/1.png", "val/a/1.png", "val/b/1.png"], "has no labels for train/1.png"),
        (["a/1.png"], "all its pictures are in one class, a"),
        (
            ["data/train/a/1.png", "data/train/b/1.png"],
            r"holds data/train/a/1.png deeper than in the folder of a class",
        ),
        (["a/1.png", "b/x/y/1.png"], "holds b/x/y/1.png deeper"),
        (["train/a/1.png", "cat/1.png"], "holds train/a/1.png deeper"),
        (["train/a/1.png", "val/a/1.png", "valid/b/1.png"], "holds the part 'valid' twice: val, valid"),
        ([], "holds no images"),
    ],
)
def test_what_could_be_either_is_refused(tmp_path: Path, names: list[str], sentence: str) -> None:
    with pytest.raises(ZooError, match=sentence):
        read(write(tmp_path, *names))


def test_what_is_no_picture_is_said(tmp_path: Path, said: list[str]) -> None:
    write(tmp_path, "a/1.png", "b/1.PNG", ".hidden/1.png", "__MACOSX/1.png", "a/.thumb.png")
    (tmp_path / "a" / "notes.txt").write_text("")
    (tmp_path / "c").mkdir()
    (tmp_path / "README.md").write_text("")
    assert read(tmp_path) == {"train": [("a", "a/1.png"), ("b", "b/1.PNG")]}
    assert [line.partition(str(tmp_path))[2] for line in said] == [
        "/a holds files that are no pictures by their names: notes.txt",
        "/c holds no pictures, and is no class",
    ]


def test_a_link_to_a_held_out_picture_is_not_trained_on(tmp_path: Path, said: list[str]) -> None:
    write(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png")
    (tmp_path / "train" / "a" / "2.png").symlink_to(tmp_path / "test" / "a" / "2.png")
    (tmp_path / "train" / "a" / "3.png").symlink_to(tmp_path / "train" / "a" / "1.png")
    assert read(tmp_path)["train"] == [("a", "train/a/1.png"), ("b", "train/b/1.png")]
    assert said[-1] == "Images: 2 links to pictures that are there already are left out"


def test_a_folder_without_training_pictures_trains_nothing(tmp_path: Path) -> None:
    """The pictures of another part did once."""
    write(tmp_path, *(f"val/{label}/{n}.png" for label in "ab" for n in range(4)))
    data = Images(files=str(tmp_path), workers=0, batch=2)
    data.setup()
    assert len(list(data.val_dataloader())) == 4
    with pytest.raises(ZooError, match="holds no images to train on: its parts are valid"):
        data.train_dataloader()


def test_what_is_trained_on_has_an_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "set", "a/1.png", "b/1.png", "b/2.png")
    one = Images(files=str(root), cache=str(tmp_path / "cache")).identity
    assert one["compared"] == "contents"
    assert Images(files=str(root)).identity == one
    assert Images(files=str(root), seed=1).identity["split"] != one["split"]
    Image.new("RGB", (4, 4), 9).save(root / "b" / "2.png")
    two = Images(files=str(root)).identity
    assert two["corpus"] != one["corpus"]
    (root / "b" / "2.png").rename(root / "a" / "2.png")
    assert Images(files=str(root)).identity["corpus"] != two["corpus"]
    monkeypatch.setattr("zoo.data.images.COMPARED", 10)
    assert Images(files=str(root)).identity["compared"] == "names"
    assert Images().identity == Images().identity != Images(valid=0.2).identity
