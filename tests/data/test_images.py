"""Images: the digits, folders, parts, and augmentation that depends on the seed and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from zoo.data import Images, images
from zoo.data.augment import Collate
from zoo.errors import ZooError


def pictures(root: Path, count: int = 10, mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> Path:
    """A folder of three classes whose pictures have one colour each, by class and number."""
    for label, name in enumerate(("ant", "bee", "cat")):
        (root / name).mkdir(parents=True)
        for n in range(count):
            colour = (80 * label, 20 * n, 255) if mode == "RGB" else 80 * label + 5 * n
            Image.new(mode, size, colour).save(root / name / f"{n}.png")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures(tmp_path / "pictures")


def make(tmp_path: Path, **more: Any) -> Images:
    data = Images(**{"workers": 0, "cache": str(tmp_path / "cache"), "batch": 4, **more})
    data.prepare_data()
    data.setup()
    return data


def batches(data: Images, part: str = "train", epoch: int = 0) -> list[dict[str, torch.Tensor]]:
    loader = {"train": data.train_dataloader, "valid": data.val_dataloader, "test": data.test_dataloader}[part]()
    if part == "train":
        loader.sampler.set_epoch(epoch)
    return list(loader)


def equal(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a
    )


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    data = Images()
    assert (data.classes, data.channels, data.shape) == (10, 1, (8, 8))
    data = make(tmp_path, augment=False, batch=1)
    found = [batch for part in ("train", "valid", "test") for batch in batches(data, part)]
    assert {(tuple(b["images"].shape), b["images"].dtype, b["labels"].dtype) for b in found} == {
        ((1, 1, 8, 8), torch.float32, torch.int64)
    }
    told = sorted((b["images"].flatten().mul(8).add(8).round().int().tolist(), int(b["labels"])) for b in found)
    digits = load_digits()
    assert told == sorted((x.astype(int).tolist(), int(y)) for x, y in zip(digits.data, digits.target, strict=True))


def test_digits_are_split_by_class(tmp_path: Path) -> None:
    data = make(tmp_path, batch=64)
    counts = {part: torch.cat([b["labels"] for b in batches(data, part)]).bincount() for part in ("valid", "test")}
    for count in counts.values():
        assert count.sum() == 179
        assert count.min() >= 17
    assert len(data._parts["train"]) == 1797 - 2 * 179
    assert equal(batches(make(tmp_path, batch=64), "test"), batches(data, "test"))
    assert not equal(batches(make(tmp_path, batch=64, seed=1), "test"), batches(data, "test"))


def test_digits_can_be_scaled(tmp_path: Path) -> None:
    data = make(tmp_path, size=16)
    assert data.shape == (16, 16)
    assert batches(data)[0]["images"].shape == (4, 1, 16, 16)


def test_a_folder_of_classes(tmp_path: Path, folder: Path) -> None:
    data = make(tmp_path, files=str(folder), augment=False, valid=0.2, test=0.2)
    assert (data.classes, data.channels, data.shape) == (3, 3, (10, 12))
    assert [len(data._parts[part]) for part in ("train", "valid", "test")] == [18, 6, 6]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    seen = set()
    for part in ("train", "valid", "test"):
        for batch in batches(data, part):
            pixels = batch["images"].permute(0, 2, 3, 1) * std + mean
            assert (pixels - pixels[:, :1, :1]).abs().max() < 1e-5, "the picture has one colour"
            for label, pixel in zip(batch["labels"], (pixels[:, 0, 0] * 255).round().int(), strict=True):
                assert pixel[0] == 80 * label
                assert pixel[2] == 255
                seen.add((int(label), int(pixel[1]) // 20))
    assert len(seen) >= 28, "every picture is in one part (the last, smaller training batch is dropped)"


def test_parts_that_are_given(tmp_path: Path) -> None:
    pictures(tmp_path / "all" / "train")
    pictures(tmp_path / "all" / "val", 4)
    data = make(tmp_path, files=str(tmp_path / "all"), valid=0, test=0.1)
    assert [len(data._parts[part]) for part in ("train", "valid", "test")] == [27, 12, 3]


def test_grey_and_unequal_pictures(tmp_path: Path) -> None:
    grey = make(tmp_path, files=str(pictures(tmp_path / "grey", mode="L")))
    assert (grey.channels, batches(grey)[0]["images"].shape) == (1, (4, 1, 10, 12))
    mixed = pictures(tmp_path / "mixed")
    Image.new("L", (40, 20), 7).save(mixed / "ant" / "other.png")
    with pytest.raises(ZooError, match=r"2 sizes, among them 12 x 10, 40 x 20.*--data.size"):
        make(tmp_path, files=str(mixed))
    for settings in ({}, {"zoom": 0.3}):
        data = make(tmp_path, files=str(mixed), size=8, **settings)
        assert data.shape == (8, 8)
        assert all(batch["images"].shape[1:] == (3, 8, 8) for batch in batches(data))


def test_scaling_keeps_the_centre(tmp_path: Path) -> None:
    root = pictures(tmp_path / "wide", 2)
    stripes = np.zeros((20, 60, 3), np.uint8)
    stripes[:, 20:40] = 255
    for path in root.rglob("*.png"):
        Image.fromarray(stripes).save(path)
    data = make(tmp_path, files=str(root), size=10, augment=False, valid=0.5, test=0, batch=1)
    assert all((batch["images"][..., 2:-2] > 2).all() for batch in batches(data, "valid"))


@pytest.mark.parametrize("more", [{}, {"mixup": 0.4}, {"randaugment": 2}, {"flip": True}], ids=str)
def test_augmentation_is_a_function_of_seed_epoch_and_place(tmp_path: Path, more: dict[str, Any]) -> None:
    # Two batches an epoch: RandAugment takes its time.
    settings = {"batch": 30, "shift": 0.25, "valid": 0.4, "test": 0.55, **more}
    before = torch.get_rng_state()
    data = make(tmp_path, **settings)
    first = batches(data)
    assert torch.equal(torch.get_rng_state(), before), "the default generator is dropout's"
    torch.manual_seed(77)
    assert equal(batches(make(tmp_path, **settings)), first)
    assert equal(batches(make(tmp_path, **{**settings, "workers": 2})), first)
    assert not equal(batches(data, epoch=1), first)
    assert not equal(batches(make(tmp_path, **{**settings, "seed": 1})), first)
    loader = data.train_dataloader()
    loader.load_state_dict({**loader.state_dict(), "batches": 1})
    assert equal(list(loader), first[1:])


def test_validation_is_not_augmented(tmp_path: Path) -> None:
    plain = make(tmp_path, augment=False)
    assert equal(batches(make(tmp_path, mixup=1.0, randaugment=3, shift=0.5), "valid"), batches(plain, "valid"))


def items(count: int, channels: int = 1) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"image": torch.rand(channels, 8, 8, generator=generator), "label": n % 5, "number": n} for n in range(count)
    ]


def test_mixup_mixes_images_and_labels_alike() -> None:
    found, plain = Collate(5, mixup=0.5)(items(64)), Collate(5)(items(64))
    assert found["labels"].shape == (64, 5)
    torch.testing.assert_close(found["labels"].sum(1), torch.ones(64))
    weights = found["labels"].gather(1, plain["labels"][:, None]).flatten()
    weight = weights.min()
    assert 0 < weight < 1
    for n in range(64):
        rest = (found["images"][n] - weight * plain["images"][n]) / (1 - weight)
        partner = (plain["images"] - rest).abs().flatten(1).amax(1).argmin()
        torch.testing.assert_close(plain["images"][partner], rest, atol=1e-4, rtol=0)
        expected = weight * torch.eye(5)[n % 5] + (1 - weight) * torch.eye(5)[partner % 5]
        torch.testing.assert_close(found["labels"][n], expected)


def test_shifts_move_and_flips_mirror() -> None:
    plain = Collate(5)(items(64))["images"]
    shifted = Collate(5, shift=0.125)(items(64))["images"]
    black = torch.nn.functional.pad(plain, (1, 1, 1, 1), value=-1.0)
    for n in range(64):
        places = [black[n, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
        assert any(torch.allclose(shifted[n], place, atol=1e-5) for place in places)
    flipped = Collate(5, flip=True)(items(64))["images"]
    same = [torch.allclose(flipped[n], plain[n]) for n in range(64)]
    mirrored = [torch.allclose(flipped[n], plain[n].flip(-1)) for n in range(64)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 16 < sum(same) < 48


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_keeps_the_range(channels: int) -> None:
    mean, std = images.Collate(5)(items(1, channels)), 1
    assert mean["images"].shape == (1, channels, 8, 8)
    found = Collate(5, operations=2, magnitude=12)(items(32, channels))["images"]
    assert found.shape == (32, channels, 8, 8)
    assert found.isfinite().all()
    assert found.abs().max() < 3 * std


def test_digits_are_not_mirrored_and_pictures_are() -> None:
    assert not Images().recipe["flip"]
    assert Images(files="somewhere").recipe["flip"]
    assert not Images(files="somewhere", flip=False).recipe["flip"]


def test_a_hub_data_set_goes_the_same_way(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_dataset` with a data set whose columns have other names, as CIFAR's have."""
    rows = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
    renamed = rows.rename_columns({"image": "img", "label": "fine_label"})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: renamed)
    monkeypatch.setattr("requests.head", lambda *_, **__: None)
    data = make(tmp_path, dataset="some/pictures")
    assert (data.classes, data.shape) == (3, (10, 12))


class Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Linear(64, 10)

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.weight(batch["images"].flatten(1)), batch["labels"])

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        hits = (self.weight(batch["images"].flatten(1)).argmax(1) == batch["labels"]).float().mean()
        self.log("accuracy", hits, batch_size=len(batch["labels"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.05)


def test_a_linear_model_learns_the_digits() -> None:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(accelerator="cpu", max_epochs=6, **quiet)
    trainer.fit(Model(), Images(shift=0, workers=0))
    assert trainer.callback_metrics["accuracy"] > 0.85


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"valid": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"batch": 0}, "--data.batch must be at least 1"),
        ({"magnitude": 30}, "a magnitude of 1 to 29"),
        ({"mixup": -1.0}, "mixup of at least 0"),
        ({"zoom": 0.5}, "needs --data.size"),
        ({"files": "no such folder"}, "There is no folder no such folder"),
    ],
)
def test_bad_settings_get_a_sentence(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ZooError, match=sentence):
        make(tmp_path, **settings)


def test_bad_folders_get_a_sentence(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZooError, match="holds no images"):
        make(tmp_path, files=str(tmp_path / "empty"))
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (4, 4)).save(flat / "one.png")
    with pytest.raises(ZooError, match="has no labels"):
        make(tmp_path, files=str(flat))
    (folder / "ant" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ZooError, match=r"0\.png cannot be read"):
        make(tmp_path, files=str(folder))


def test_too_few_images_get_a_sentence(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ZooError, match="fewer than one batch of 100"):
        make(tmp_path, files=str(folder), batch=100).train_dataloader()
    with pytest.raises(ZooError, match=r"--data.test is 0"):
        make(tmp_path, files=str(folder), test=0).test_dataloader()
    with pytest.raises(ZooError, match="too few images of each class"):
        make(tmp_path, files=str(folder), test=0.01).test_dataloader()


def test_an_unreachable_hub_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ZooError, match="uoft-cs/cifar10 cannot be loaded from the Hugging Face hub"):
        Images(dataset="uoft-cs/cifar10").prepare_data()
