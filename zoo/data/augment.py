"""From pictures to a batch: what a training image is put through, and the randomness that it is put through with.

All draws are made under a seed that is a function of (seed, number), the number being that of the batch's first item,
which counts on through the epochs (see `loader`). So it does not matter which process makes a batch, nor whether the
run was interrupted; and the default generator is given back as it was found, for dropout draws from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from zoo.loss import IGNORED

RGB = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # ImageNet's, whatever the data: a checkpoint must not depend on it
GREY = ((0.5,), (0.5,))


@contextmanager
def seeded(seed: int, number: int) -> Iterator[None]:
    """Torch's default generator, for a while at a place that (seed, number) decides."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed((seed * 1_000_003 + number) % 2**63)
        yield


class Collate:
    """Items (image [C, H, W] in 0..1, label, number) to a batch: augmented where asked for, then normalised.

    Args:
        classes: how many labels there are.
        seed: origin of all draws.
        shift: share of a side by which an image is moved at most, black moving in.
        flip: mirror every second image.
        operations: RandAugment's operations per image; each image has its own.
        magnitude: their strength, 1 to 29.
        mixup: alpha of mixup's Beta distribution; 0 leaves images and labels apart.
    """

    def __init__(
        self,
        classes: int,
        seed: int = 0,
        shift: float = 0.0,
        flip: bool = False,
        operations: int = 0,
        magnitude: int = 9,
        mixup: float = 0.0,
    ) -> None:
        self.classes, self.seed, self.shift, self.flip = classes, seed, shift, flip
        self.operations, self.magnitude, self.mixup = operations, magnitude, mixup

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = torch.stack([item["image"] for item in items])
        counted = [item["label"] if item["number"] >= 0 else IGNORED for item in items]
        labels = torch.tensor(counted, dtype=torch.int64)
        if self.shift or self.flip or self.operations or self.mixup:
            with seeded(self.seed, items[0]["number"]), torch.no_grad():
                images = self._augment(images)
                if self.mixup:
                    images, labels = self._mix(images, labels)
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (RGB if images.shape[1] == 3 else GREY))
        return {"images": (images - mean) / std, "labels": labels}

    def _augment(self, images: Tensor) -> Tensor:
        import kornia.augmentation as kornia

        height, width = images.shape[-2:]
        if self.flip:
            images = kornia.RandomHorizontalFlip()(images)
        if self.operations:
            policy = kornia.auto.RandAugment(n=self.operations, m=self.magnitude)
            # The operations know three channels; a grey image is one colour of many.
            colour = images.expand(-1, 3, -1, -1)
            colour = torch.cat([policy(image[None]) for image in colour])
            images = (colour if images.shape[1] == 3 else colour.mean(1, keepdim=True)).clamp(0, 1)
        if self.shift:
            vertical, horizontal = (max(1, round(self.shift * side)) for side in (height, width))
            edges = (horizontal, vertical, horizontal, vertical)
            images = kornia.RandomCrop((height, width), padding=edges)(images)
        return images

    def _mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Zhang et al. 2018, arXiv:1710.09412: one weight a batch; the labels become [batch, classes]."""
        weight = torch.distributions.Beta(self.mixup, self.mixup).sample()
        other = torch.randperm(len(images))
        soft = torch.nn.functional.one_hot(labels, self.classes).float()
        return weight * images + (1 - weight) * images[other], weight * soft + (1 - weight) * soft[other]
