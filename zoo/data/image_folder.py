"""A folder of labelled pictures: a folder per class; or folders called train, val and test that hold such folders.

Parts are known by the whole names of the folders at the top, and only where all of them are names of parts: a class
may be called 'freight train', and a picture 'ski-train-7.png'. Nothing is kept of a folder: it is listed by each run.
"""

from __future__ import annotations

import os
from pathlib import Path

import datasets
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from zoo.errors import ZooError, listing

PARTS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
"""Names of folders that hold a part, and which."""
FOREIGN = ("__MACOSX", "__pycache__")


def read_image_folder(folder: Path, said: str) -> dict[str, datasets.Dataset]:
    """The pictures of each part, in the columns `image` and `label`, in the order of their paths.

    Args:
        folder: The folder.
        said: What messages call it.

    Raises ZooError where its pictures have no labels, or other ones than the folders suggest.
    """
    top = _folders(folder)
    parted = bool(top) and all(path.name in PARTS for path in top)
    if loose := _pictures(folder):
        raise ZooError(
            f"{said} has no labels for {loose[0].name}: an image folder holds one folder per class, and no picture "
            "beside them."
        )
    pictures: dict[str, list[tuple[Path, str]]] = {}
    for part in top if parted else [folder]:
        name = PARTS[part.name] if parted else "train"
        if name in pictures:
            double = [path.name for path in top if PARTS[path.name] == name]
            raise ZooError(f"{said} holds the part {name!r} twice: {listing(double)}.   Leave one of them")
        if parted and (loose := _pictures(part)):
            raise ZooError(
                f"{said} has no labels for {part.name}/{loose[0].name}: {part.name} holds one folder per class, and no "
                "picture beside them."
            )
        pictures[name] = [(path, label.name) for label in _folders(part) for path in _class_pictures(label, said)]
    pictures = {part: found for part, found in _distinct(pictures).items() if found}
    classes = sorted({label for found in pictures.values() for _, label in found})
    if not classes:
        raise ZooError(f"The folder {said} holds no images that can be read: it takes a folder per class.")
    if len(classes) == 1:
        raise ZooError(f"{said} has no labels to tell apart: all its pictures are in one class, {classes[0]}.")
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=classes)})
    numbers = {name: number for number, name in enumerate(classes)}
    return {
        part: datasets.Dataset.from_dict(
            {"image": [str(path) for path, _ in found], "label": [numbers[label] for _, label in found]}, features
        )
        for part, found in pictures.items()
    }


def _folders(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in FOREIGN
    )


def _pictures(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if _is_picture(path.name) and path.is_file()]


def _is_picture(name: str) -> bool:
    """Whether a file's name ends as those of a kind that Pillow reads."""
    kind = Image.registered_extensions().get(os.path.splitext(name)[1].lower())
    return kind in Image.OPEN and not name.startswith(".")


def _class_pictures(folder: Path, said: str) -> list[Path]:
    """The pictures right in the folder of a class; ZooError where some lie deeper."""
    found: list[Path] = []
    others: list[str] = []
    for top, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in FOREIGN)
        seen = [name for name in names if _is_picture(name)]
        if Path(top) != folder:
            if seen:
                deep = Path(folder.name, Path(top).relative_to(folder), min(seen))
                raise ZooError(
                    f"{said} holds {deep} deeper than in the folder of a class, and which of its folders is the class "
                    f"is not known.   Try:  --data.files {folder}  or a folder with one folder per class; folders at "
                    f"the top that are all called {listing(PARTS)} are parts"
                )
            continue
        found = [folder / name for name in seen]
        others = sorted(name for name in names if name not in seen and not name.startswith("."))
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        rank_zero_info(f"Images: {folder} holds files that are no pictures by their names: {listing(others[:3])}{more}")
    if not found:
        rank_zero_info(f"Images: {folder} holds no pictures, and is no class")
    return found


def _distinct(pictures: dict[str, list[tuple[Path, str]]]) -> dict[str, list[tuple[Path, str]]]:
    """Each real file once: of a held-out picture no link is trained on."""
    seen: set[str] = set()
    chosen: dict[str, list[tuple[Path, str]]] = {}
    repeated = 0
    for part in sorted(pictures, key=("test", "valid", "train").index):
        chosen[part] = []
        for path, label in sorted(pictures[part], key=lambda pair: str(pair[0])):
            real = os.path.realpath(path)
            if real in seen:
                repeated += 1
                continue
            seen.add(real)
            chosen[part].append((path, label))
    if repeated:
        rank_zero_info(f"Images: {repeated} links to pictures that are there already are left out")
    return {part: chosen[part] for part in ("train", "valid", "test") if part in chosen}
