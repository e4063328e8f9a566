"""The vision transformer: patches in, classes out, with the same trunk as the decoder.

Patches are numbered by row, then column, from 0; class and register tokens stand before them and have no position.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.kernel import Mask
from zoo.trunk import Trunk


class ViT(nn.Module):
    """A Transformer over the patches of an image (Dosovitskiy et al. 2021, arXiv:2010.11929).

    Args:
        classes: Number of classes.
        channels: Channels of an image.
        size: Height and width of an image at first training, in pixels.
        patch: Height and width of a patch, in pixels; divides the size.
        pool: What the classes are read from: the class token, or the mean of the patches.
        registers: Extra tokens that carry no patch (Darcet et al. 2024, arXiv:2309.16588).
        reach: Height and width that it has been made to read since, as by an extension (default: its size).
        **trunk: The blocks, the position encoding and the kernel.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 3,
        size: tuple[int, int] = (224, 224),
        patch: int = 16,
        pool: Literal["class", "mean"] = "class",
        registers: int = 0,
        reach: tuple[int, int] | None = None,
        **trunk: Any,
    ) -> None:
        super().__init__()
        if patch < 1 or size[0] % patch or size[1] % patch:
            fits = [n for n in range(1, min(size) + 1) if size[0] % n == 0 and size[1] % n == 0]
            raise ZooError(f"An image of {size[0]} x {size[1]} does not divide into patches of {patch}; {fits} do.")
        if reach is not None and any(far < near or far % patch for far, near in zip(reach, size, strict=True)):
            trained, asked = (" x ".join(map(str, each)) for each in (size, reach))
            raise ZooError(
                f"A model reads what it was trained on, {trained} pixels, in patches of {patch}; a reach of {asked} is "
                "less, or does not divide into such."
            )
        self.patch, self.pool = patch, pool
        self.grid = size[0] // patch, size[1] // patch
        self.reach: tuple[int, int] = (reach[0], reach[1]) if reach is not None else (size[0], size[1])
        prefix = registers + (pool == "class")
        self.trunk = Trunk(length=self.grid, prefix=prefix, causal=False, **trunk)
        dim, std = self.trunk.geometry.dim, trunk.get("std", 0.02)
        self.embedding = nn.Conv2d(channels, dim, patch, stride=patch)
        self.prefix = nn.Parameter(torch.randn(prefix, dim) * std)
        self.head = nn.Linear(dim, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width] of any size that the patch divides."""
        if images.shape[-2] % self.patch or images.shape[-1] % self.patch:
            shape = " x ".join(map(str, images.shape[-2:]))
            raise ZooError(f"An image of {shape} does not divide into patches of {self.patch}.")
        patches = self.embedding(images)
        positions = grid(patches.shape[-2], patches.shape[-1], images.device)
        x = torch.cat((self.prefix.to(patches.dtype).expand(len(images), -1, -1), patches.flatten(2).mT), 1)
        x = self.trunk(x, positions, positions, len(positions), Mask())
        return self.head(x[:, 0] if self.pool == "class" else x[:, len(self.prefix) :].mean(1))


def grid(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Row and column of each patch, float32 [height * width, 2]."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return torch.cartesian_prod(rows, columns).float().view(-1, 2)
