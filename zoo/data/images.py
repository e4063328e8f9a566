"""Labelled images: scikit-learn's digits, which every installation has, a folder per class, or a hub data set.

Pictures are decoded when they are asked for, as a person sees them (`image_decoding`), and cut to one size there; what
else happens to them is `augment`'s. Which folders are classes and which are parts is `image_folder`'s business. Where
a data set's makers set parts aside for validation or test, those are taken; what is missing comes out of the training
images, the same share of every class.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import datasets
import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Items

from zoo.data.augment import Collate, seeded
from zoo.data.corpus import find_source_files, reach
from zoo.data.digests import default_cache, digest_file, file_stamp
from zoo.data.image_decoding import GREY, decode_image, open_image, upright_size
from zoo.data.image_folder import read_image_folder
from zoo.data.loader import Loader, SentenceLoader, overfits
from zoo.data.text import PROCESSES, placed
from zoo.errors import ZooError, listing

COMPARED = 2 << 30
"""Bytes of pictures up to which their contents are compared when a run continues; of more, names and sizes are."""
SPLITS = {"train": ("train",), "valid": ("validation", "valid", "val", "dev"), "test": ("test",)}


class Images(L.LightningDataModule):
    """Labelled images of one size: scikit-learn's digits, an image folder, or a Hugging Face data set.

    A batch is a dict of `images`, float32 [batch, channels, height, width], normalised, and `labels`, int64 [batch];
    with mixup, float32 [batch, classes] while training.

    Args:
        files: a folder that holds a folder per class; or of folders called train, val (valid, validation) and test, and
            nothing else, that hold such. Transparent pictures are read on white.
            Without files and dataset: scikit-learn's digits, 8 x 8 and grey.
        dataset: the name of a data set on the Hugging Face hub, such as uoft-cs/cifar10.
        subset: its configuration.
        size: side of the images in pixels, scaled and cut at the centre; without it, the images' own.
        batch: images per process and step.
        augment: put training images through shift, flip, zoom, randaugment and mixup.
        shift: share of a side by which an image is moved at most.
        flip: mirror every second image; without it, yes, except for digits, which have a right way round.
        zoom: smallest share of a picture's area that is cut out and scaled up; 1 takes the whole. Needs size.
        randaugment: operations of RandAugment per image.
        magnitude: their strength, 1 to 29.
        mixup: alpha of mixup; 0 is off, 0.2 is usual.
        valid: share of the training images to validate on, where no such part is given.
        test: share of the training images to test on, where no such part is given.
        workers: processes that load batches; 0 loads in the training process.
        seed: origin of the split, of the order and of the augmentation.
        cache: folder for digests of pictures; without it, $ZOO_CACHE or ~/.cache/zoo.
    """

    def __init__(
        self,
        files: str | None = None,
        dataset: str | None = None,
        subset: str | None = None,
        size: int | None = None,
        batch: int = 128,
        augment: bool = True,
        shift: float = 0.125,
        flip: bool | None = None,
        zoom: float = 1.0,
        randaugment: int = 0,
        magnitude: int = 9,
        mixup: float = 0.0,
        valid: float = 0.1,
        test: float = 0.1,
        workers: int = 2,
        seed: int = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        if files and dataset:
            # A recipe names its data set; files on the command line take its place.
            rank_zero_info(f"Data: the files given, instead of the data set {dataset}")
            dataset, subset = None, None
        if min(valid, test) < 0 or valid + test >= 1:
            raise ZooError(f"Shares of {valid} to validate on and {test} to test on leave nothing to train on.")
        for name, number, least in (("batch", batch, 1), ("size", size, 1), ("workers", workers, 0), ("seed", seed, 0)):
            if number is not None and number < least:
                raise ZooError(f"--data.{name} must be at least {least}, not {number}.")
        if workers > PROCESSES:
            raise ZooError(f"--data.workers must be from 0 to {PROCESSES}, not {workers}.")
        if not 0 <= randaugment <= 10 or not 1 <= magnitude <= 29 or mixup < 0 or not 0 <= shift < 1:
            raise ZooError(
                "Augmentation takes 0 to 10 operations of RandAugment with a magnitude of 1 to 29, a mixup of at least "
                f"0 and a shift from 0 to below 1; not {randaugment}, {magnitude}, {mixup} and {shift}."
            )
        if not 0 < zoom <= 1 or (zoom < 1 and size is None):
            raise ZooError(f"--data.zoom {zoom} must be above 0 and at most 1; below 1 it needs --data.size PIXELS.")
        self.files, self.dataset, self.subset, self.size, self.batch = files, dataset, subset, size, batch
        self.augment, self.zoom = augment, zoom
        own = files or dataset
        self.recipe: dict[str, Any] = {
            "shift": shift,
            "flip": bool(own) if flip is None else flip,
            "operations": randaugment,
            "magnitude": magnitude,
            "mixup": mixup,
        }
        self.shares = {"valid": valid, "test": test}
        self.workers, self.seed = workers, seed
        self.cache = Path(cache).expanduser() if cache else default_cache()
        self._known: tuple[int, int, tuple[int, int]] | None = None if own else (10, 1, (size or 8, size or 8))
        self._parts: dict[str, Items[Any]] = {}

    def prepare_data(self) -> None:
        """Download or index the images, in one process for all."""
        if self.files or self.dataset:
            self._load()

    def setup(self, stage: str | None = None) -> None:
        """Open the images and part them."""
        if self._parts:
            return
        if not (self.files or self.dataset):
            self._digits()
            return
        found, image, label = self._load()
        first = next(iter(found.values()))
        missing = {part: share for part, share in self.shares.items() if part not in found}
        self._known = (first.features[label].num_classes, *self._measure(found, image))
        parts = dict(found)
        if "train" in found:
            chosen = stratified(torch.tensor(found["train"][label]), missing, self.seed)
            for part, members in chosen.items():
                if part not in found or part == "train":
                    parts[part] = found["train"].select(members.tolist())
        _, channels, shape = self._known
        for part in ("train", *self.shares):
            if part in parts and len(parts[part]):
                pictures = partial(Pictures, parts[part], image, label, channels, shape, self.size is not None)
                zoom = self.zoom if part == "train" and self.augment else 1.0
                self._parts[part] = pictures(zoom, self.seed)
        counts = listing(f"{len(cast(Any, items))} {part}" for part, items in self._parts.items())
        rank_zero_info(f"Images: {self.files or self.dataset}: {counts}; {self.classes} classes, {channels} x {shape}")

    @property
    def summary(self) -> str:
        """One line about the data, for a card."""
        counts = listing(f"{len(cast(Any, items))} {part}" for part, items in self._parts.items())
        return f"Images: {self.files or self.dataset or 'the digits of scikit-learn'}: {counts}."

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which pictures are trained on, as plain values: two runs with equal ones see the same pictures.

        `corpus` is their digest, `split` that of what is held out of them, `revision` that of a hub's data set, and
        `compared` tells whether `corpus` is of 'contents' or, where there are more than 2 GiB, of 'names' and sizes.
        """
        revision, contents = None, True
        total = hashlib.sha256()
        if not (self.files or self.dataset):
            from sklearn.datasets import load_digits

            total.update(load_digits().images.tobytes())
        elif self.dataset:
            found = self._load()[0]
            revision = next((find_source_files(rows)[0] for rows in found.values()), None)
            total.update("".join(f"{part} {rows._fingerprint}\n" for part, rows in found.items()).encode())
        else:
            found, image, label = self._load()
            listed = [(part, row[image]["path"], row[label]) for part, rows in found.items() for row in rows]
            contents = sum(file_stamp(Path(path))[0] for _, path, _ in listed) <= COMPARED
            for part, path, number in listed:
                name = f"{part} {number} {Path(path).name}\n"
                total.update(name.encode(errors="surrogateescape"))
                if contents:
                    total.update(digest_file(Path(path), self.cache / "digests"))
                else:
                    total.update(f"{file_stamp(Path(path))[0]}\n".encode())
        return {
            "corpus": total.hexdigest()[:16],
            "split": hashlib.sha256(json.dumps([self.shares, self.seed]).encode()).hexdigest()[:16],
            "files": [],
            "revision": revision,
            "compared": "contents" if contents else "names",
        }

    def _load(self) -> tuple[dict[str, datasets.Dataset], str, str]:
        """The data set's parts under our names, and its columns of images and labels, known by their types."""
        if self.files:
            folder = Path(self.files).expanduser()
            if not folder.is_dir():
                raise ZooError(
                    f"There is no folder {self.files}.   --data.files takes a folder that holds one per class."
                )
            try:
                return read_image_folder(folder, self.files), "image", "label"
            except OSError as error:
                raise ZooError(f"The folder {self.files} cannot be read: {error}.") from error
        assert self.dataset is not None
        with reach(self.dataset):
            given = datasets.load_dataset(self.dataset, self.subset)
        rows = next(iter(given.values()))
        image = next((name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)), None)
        label = next((name for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)), None)
        if image is None or label is None:
            lacking = "images" if image is None else "labels"
            raise ZooError(f"{self.dataset} has no {lacking}; its columns are: {listing(rows.column_names)}.")
        found = {part: next((given[n] for n in names if n in given), None) for part, names in SPLITS.items()}
        parts = {part: rows for part, rows in found.items() if rows is not None}
        return parts or {"train": rows}, image, label

    def _measure(self, found: dict[str, datasets.Dataset], image: str) -> tuple[int, tuple[int, int]]:
        """Channels, height and width; where no size was asked for, all pictures must have the first one's."""
        sizes: dict[tuple[int, int], int] = {}
        grey = True
        for part, rows in found.items():
            bare = rows.cast_column(image, datasets.Image(decode=False))
            # A sample from all over the rows, which come class by class.
            step = -(-len(bare) // 1000) if self.size and len(bare) else 1
            for number in range(0, len(bare), step):
                with open_image(bare[number][image], f"{number} of the part {part!r}") as picture:
                    grey &= picture.mode in GREY
                    size = upright_size(picture)
                    sizes[size] = sizes.get(size, 0) + 1
        if self.size is None and len(sizes) > 1:
            told = listing(f"{w} x {h}" for w, h in list(sizes)[:3])
            raise ZooError(f"The images have {len(sizes)} sizes, among them {told}.   Try:  --data.size 224")
        width, height = next(iter(sizes))
        return 1 if grey else 3, (self.size, self.size) if self.size else (height, width)

    def _digits(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] / 16
        if self.size:
            shape = (self.size, self.size)
            images = torch.nn.functional.interpolate(images, shape, mode="bilinear", antialias=True)
        labels = torch.from_numpy(digits.target)
        for part, chosen in stratified(labels, self.shares, self.seed).items():
            if len(chosen):
                self._parts[part] = Digits(images[chosen], labels[chosen])

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return self._facts()[0]

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for coloured ones."""
        return self._facts()[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._facts()[2]

    def _facts(self) -> tuple[int, int, tuple[int, int]]:
        if self._known is None:
            self.setup()
        assert self._known is not None
        return self._known

    def train_dataloader(self) -> DataLoader:
        """Augmented images in a new order each epoch; can be stored and taken up in the middle."""
        rank, world, finished = placed(self.trainer)
        collate = Collate(self.classes, self.seed, **self.recipe) if self.augment else Collate(self.classes)
        items = self._part("train")
        if len(cast(Any, items)) < self.batch * world:
            raise ZooError(
                f"There are {len(cast(Any, items))} images to train on, fewer than one batch of {self.batch} for each "
                f"of {world} process(es).   Try a smaller --data.batch."
            )
        shuffle = not overfits(self.trainer)
        return Loader(items, self.batch, self.seed, shuffle, self.workers, rank, world, collate, finished, even=True)

    def val_dataloader(self) -> DataLoader | list[Any]:
        """The images to validate on, each once and in order; none where their share is 0."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        return [] if fitting and "valid" not in self._parts else self._ordered("valid")

    def test_dataloader(self) -> DataLoader:
        """The images to test on, each once and in order."""
        return self._ordered("test")

    def predict_dataloader(self) -> DataLoader:
        """The images to test on."""
        collate = Collate(self.classes)
        return SentenceLoader(self._part("test"), batch_size=self.batch, num_workers=self.workers, collate_fn=collate)

    def _ordered(self, part: str) -> DataLoader:
        rank, world, _ = placed(self.trainer)
        collate = Collate(self.classes)
        return Loader(self._part(part), self.batch, self.seed, False, self.workers, rank, world, collate)

    def _part(self, part: str) -> Items[Any]:
        if part in self._parts:
            return self._parts[part]
        if part != "train" and not self.shares[part]:
            raise ZooError(f"No images were set aside: --data.{part} is 0.   Try:  --data.{part} 0.1")
        if "train" not in self._parts:
            raise ZooError(
                f"{self.files or self.dataset} holds no images to train on: its parts are {listing(self._parts)}."
            )
        raise ZooError(f"There are too few images of each class to set some aside; none are left for {part!r}.")


class Digits(Items[dict[str, Any]]):
    """Images that are in memory already."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> dict[str, Any]:
        index = number % len(self)
        return {"image": self.images[index], "label": int(self.labels[index]), "number": number}


class Pictures(Items[dict[str, Any]]):
    """Pictures that are decoded when asked for, and cut to one size.

    Args:
        rows: the data set.
        image: its column of pictures.
        label: its column of labels.
        channels: 1 for grey, 3 for colour.
        shape: height and width.
        scale: bring a picture to that shape; otherwise it has it.
        zoom: smallest share of the area to cut out at random; 1 cuts at the centre.
        seed: origin of that choice.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        image: str,
        label: str,
        channels: int,
        shape: tuple[int, int],
        scale: bool,
        zoom: float,
        seed: int,
    ) -> None:
        self.rows = rows.cast_column(image, datasets.Image(decode=False))
        self.image, self.label, self.mode, self.shape = image, label, "L" if channels == 1 else "RGB", shape
        self.scale, self.zoom, self.seed = scale, zoom, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = self.rows[number % len(self)]
        name = row[self.image].get("path") or f"{number % len(self)} of its part"
        with open_image(row[self.image], name) as picture:
            cut = decode_image(picture, self.mode, name)
            if self.scale:
                height, width = self.shape
                cut = cut.resize((width, height), Image.Resampling.BICUBIC, box=self._box(*cut.size, number))
        pixels = torch.frombuffer(bytearray(cut.tobytes()), dtype=torch.uint8)
        image = pixels.view(*self.shape, -1).permute(2, 0, 1).float() / 255
        return {"image": image, "label": row[self.label], "number": number}

    def _box(self, width: int, height: int, number: int) -> tuple[float, float, float, float]:
        """Left, upper, right, lower: the largest central rectangle of the shape's proportions, or a random part."""
        aspect = self.shape[1] / self.shape[0]
        wide, high = (width, width / aspect) if width < height * aspect else (height * aspect, float(height))
        if self.zoom == 1.0:
            left, upper = (width - wide) / 2, (height - high) / 2
            return left, upper, left + wide, upper + high
        with seeded(self.seed, number):
            area, ratio, x, y = torch.rand(4).tolist()
        area = (self.zoom + (1 - self.zoom) * area) * width * height
        skew = aspect * (3 / 4) ** (1 - 2 * ratio)  # proportions from 3:4 to 4:3 of the shape's, as Inception's crops
        wide, high = min(width, (area * skew) ** 0.5), min(height, (area / skew) ** 0.5)
        left, upper = x * (width - wide), y * (height - high)
        return left, upper, left + wide, upper + high


def stratified(labels: Tensor, shares: dict[str, float], seed: int) -> dict[str, Tensor]:
    """Indices of every part, with the same share of each class: 'train' is what the shares leave."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {part: [] for part in ("train", "valid", "test")}
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        start = 0
        for part, share in shares.items():
            stop = start + round(share * len(members))
            parts[part].append(members[start:stop])
            start = stop
        parts["train"].append(members[start:])
    return {
        part: torch.cat(found).sort().values if found else torch.tensor([], dtype=torch.int64)
        for part, found in parts.items()
    }
