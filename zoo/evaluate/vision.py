"""Classification over resolutions: the test pictures at other sizes than the model was trained at.

A picture is made anew for each size from what its file holds, never from the pixels of the trained size, so that a
larger size may show more. This is what `zoo test --data.size` reads: pictures of files are cut to the central square
and scaled by Pillow's bicubic filter, whose support grows with the scale (which is antialiasing); scikit-learn's digits
are scaled bilinearly with antialiasing. At the size of the files nothing is scaled. Which pictures are measured depends
on the seed of the split alone, so every size sees the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.checkpoints import Checkpoint
from zoo.data import Images
from zoo.data.augment import Collate
from zoo.data.section import own_module, plain_arguments, refuse_sources, stored_section
from zoo.errors import Unfit, ZooError
from zoo.evaluate.intervals import wilson
from zoo.vit import ViT

OWN = ("files", "dataset", "subset", "valid", "test", "seed")
"""What of a checkpoint's data decides which pictures are test pictures."""


class Viewer:
    """One vision transformer under measurement, and the pictures that it is measured on.

    Args:
        checkpoint: Of an image classifier.
        name: What the results call it.
        device: Where it runs.
        files: A folder of labelled pictures to measure on: its test part, or all of it where it has no parts; of the
            folder that the checkpoint was trained on what its run held out (default: the test part of the data that
            it was trained on, where they are no files).
        batch: Pictures read at once.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        name: str,
        device: torch.device | str = "cpu",
        files: str | None = None,
        batch: int = 64,
    ) -> None:
        network = checkpoint.network()
        if not isinstance(network, ViT):
            raise ZooError(f"{checkpoint.path} classifies no images: it holds a {type(network).__name__}.")
        self.name, self.device, self.batch = name, torch.device(device), batch
        self.model = network.to(self.device)
        self.data: dict[str, Any] = {"files": files, "valid": 0.0, "test": 0.0}
        self.whole = files is not None
        section, own = stored_section(checkpoint.about), None
        if own_module(section) is Images:
            stored = plain_arguments(section, Images, checkpoint.path)
            own = {key: value for key, value in stored.items() if key in OWN and value is not None}
        if files is None:
            if own is None:
                raise ZooError(f"{checkpoint.path} was not trained on zoo's Images.   Try:  --files FOLDER")
            refuse_sources(own, checkpoint.path)
            self.data = own
        elif own and own.get("files") and Path(own["files"]).resolve() == Path(files).resolve():
            self.data, self.whole = own | {"files": files}, False

    @property
    def length(self) -> int:
        """Height of a picture at first training, in pixels."""
        return self.model.grid[0] * self.model.patch

    def refusal(self, side: int) -> str | None:
        """Why the model cannot read pictures of `side` x `side` pixels; None where it can."""
        try:
            if side < 1:
                raise ZooError(f"A picture has a side of 1 pixel or more, not {side}.")
            channels = self.model.embedding.in_channels
            with torch.inference_mode():
                self.model(torch.zeros(1, channels, side, side, device=self.device))
        except ZooError as error:
            return str(error)
        return None

    def resolution(self, side: int) -> dict[str, Any]:
        """What `resolution` gives on the test pictures at `side` x `side` pixels.

        Raises Unfit where the model cannot read that grid of patches, ZooError where the pictures are not its own.
        """
        if reason := self.refusal(side):
            raise Unfit(reason)
        return resolution(self.model, self.pictures(side), self.device)

    def pictures(self, side: int) -> DataLoader:
        """Batches of the test pictures at `side` x `side` pixels, normalised, in a fixed order."""
        data = Images(**self.data, size=side, augment=False, workers=0)
        data.prepare_data()
        data.setup()
        part = "test" if "test" in data._parts or not self.whole else "train"
        wanted = self.model.head.out_features, self.model.embedding.in_channels
        if (data.classes, data.channels) != wanted:
            raise ZooError(
                f"{self.name} tells {wanted[0]} classes of pictures with {wanted[1]} channels apart, and these have "
                f"{data.classes} classes and {data.channels} channels."
            )
        return DataLoader(data._part(part), batch_size=self.batch, collate_fn=Collate(data.classes))


@torch.inference_mode()
def resolution(
    network: ViT, batches: Iterable[dict[str, Tensor]], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Share of pictures whose class the network puts first, and among its first five.

    Args:
        network: In evaluation mode, on `device`.
        batches: Each of `images` [batch, channels, height, width], normalised, and `labels` [batch].
        device: Where the network is.

    Returns:
        `top1` and `top5` from 0 to 1 (with five classes or fewer `top5` is 1), `images` how many there were, and the
        95 % interval of `top1` from `low` to `high`.
    """
    first = among = images = 0
    for batch in batches:
        labels = batch["labels"].to(device)
        logits = network(batch["images"].to(device)).float()
        first += int((logits.argmax(-1) == labels).sum())
        best = logits.topk(min(5, logits.shape[-1])).indices
        among += int((best == labels[:, None]).any(-1).sum())
        images += len(labels)
    if not images:
        raise Unfit("There are no pictures to measure on.")
    low, high = wilson(first, images)
    return {"top1": first / images, "top5": among / images, "images": images, "low": low, "high": high}
