"""What is analysed: a checkpoint's network, and the text or the images that it reads while it is watched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from zoo import checkpoints
from zoo.arguments import place
from zoo.checkpoints import Checkpoint
from zoo.checkpoints.names import names
from zoo.data import Images
from zoo.data.section import own_module, plain_arguments, refuse_sources, stored_section
from zoo.data.tokenizer import Tokenizer
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.evaluate import texts
from zoo.trunk import Trunk
from zoo.vit import ViT

EXAMPLES = 8
"""Windows of text, or images, that statistics are means over at most; each is read by itself."""
TOKENS = 2**15
"""Tokens in all windows of text together, at most, but for the first window: attention takes quadratic time."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A network with something to read.

    Args:
        name: What it is called in tables and pictures.
        path: Of the checkpoint.
        model: A Decoder or a ViT, in evaluation mode.
        inputs: Token numbers [examples, tokens], or images [examples, channels, height, width].
        origin: What the inputs are.
    """

    name: str
    path: str
    model: Decoder | ViT
    inputs: Tensor
    origin: str

    @property
    def trunk(self) -> Trunk:
        """The blocks."""
        return self.model.trunk

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis of one example."""
        if isinstance(self.model, ViT):
            return tuple(side // self.model.patch for side in self.inputs.shape[-2:])
        return (self.inputs.shape[1],)

    @property
    def images(self) -> bool:
        """Whether it reads images."""
        return isinstance(self.model, ViT)


def windows(texts: Iterable[str], encode: Any, length: int) -> Tensor:
    """Windows of `length` tokens, [windows, length]: of each text its beginning; 8, or as many as 2^15 tokens allow.

    Where texts are fewer, the long ones give their second windows, and so on; a window never crosses from one text into
    another. One text at least must hold so many tokens.
    """
    count = max(1, min(EXAMPLES, TOKENS // length))
    found: list[list[list[int]]] = []
    for text in texts:
        ids = encode(text)
        found.append([ids[start : start + length] for start in range(0, len(ids) - length + 1, length)])
        if len(found) == count:
            break
    ranked = [each[turn] for turn in range(max(map(len, found))) for each in found if turn < len(each)]
    return torch.tensor(ranked[:count])


def text(found: list[Checkpoint], files: list[str] | None, length: int) -> tuple[str, list[Tensor]]:
    """Where documents come from, and the same windows of them in the tokens of each checkpoint."""
    for checkpoint in found:
        if "tokenizer" not in checkpoint.about:
            raise ZooError(f"{checkpoint.path} holds no tokenizer, so that it cannot be given text to read.")
    tokenizers = [Tokenizer.restore(checkpoint.about["tokenizer"]) for checkpoint in found]
    source = texts.chosen(files, found[0].about) if files else texts.held_out(found[0].about)
    try:
        long, _ = source.long(tokenizers, length, EXAMPLES)
    except ZooError as error:
        raise ZooError(str(error).replace("--lengths", "--length")) from None
    return source.origin, [windows(long, tokenizer.encode, length) for tokenizer in tokenizers]


def pictures(
    checkpoint: Checkpoint, models: list[ViT], files: list[str] | None, side: int | None
) -> tuple[str, list[Tensor]]:
    """Where images come from, and the same ones for each model: test images of the checkpoint's data, or of a folder.

    They have the size that the first model was trained at, or are squares of `side` pixels.
    """
    stored = stored_section(checkpoint.about)
    known = plain_arguments(stored, Images, checkpoint.path) if own_module(stored) is Images else {}
    if files is not None:
        if len(files) > 1:
            raise ZooError("Images come from one folder, which holds a folder per class. Give --files one name.")
        known |= {"files": files[0], "dataset": None, "subset": None}
    elif stored and not known:
        raise ZooError(f"{checkpoint.path} was trained on data of another program. Try:  --files FOLDER of images")
    refuse_sources({} if files is not None else known, checkpoint.path)
    height, width = (tokens * models[0].patch for tokens in models[0].grid)
    if height != width and side is not None:
        raise ZooError(f"--length is the side of square images, and this model reads {height} x {width} pixels.")
    asked = side or height
    for patch in (model.patch for model in models):
        if asked % patch or (side or width) % patch:
            raise ZooError(f"Images of {asked} pixels do not divide into patches of {patch}: --length is a multiple.")
    known |= {"augment": False, "zoom": 1.0, "workers": 0, "batch": EXAMPLES}
    if side is not None or files is not None:
        known["size"] = asked
    data = Images(**{name: value for name, value in known.items() if name not in ("randaugment", "mixup", "magnitude")})
    try:
        data.setup()
    except ZooError as error:
        raise ZooError(str(error).replace("--data.files", "--files")) from None
    for loader in (data.test_dataloader, data.val_dataloader, data.train_dataloader):
        try:
            images = next(iter(loader()))["images"][:EXAMPLES]
        except ZooError:  # a share of 0
            continue
        break
    else:
        raise ZooError(f"There are no images to look at in {data.summary}")
    channels = [model.embedding.in_channels for model in models]
    seen = [images if images.shape[1] == n else images.mean(1, keepdim=True).expand(-1, n, -1, -1) for n in channels]
    return data.summary.split(":")[1].strip(), seen


def read(
    paths: list[str], *, files: list[str] | None = None, length: int | None = None, device: str = "cpu"
) -> list[Subject]:
    """The subjects of one or two checkpoints, which all read the same.

    Args:
        paths: Of the checkpoints.
        files: Text, or one folder of images; default: what the first one's data set aside for testing.
        length: Tokens of a window, or pixels of a side; default: those of first training of the first checkpoint.
        device: Where to run.
    """
    device = place(device)
    if length is not None and length < 2:
        raise ZooError(f"--length {length} leaves nothing to attend to; it is 2 or more.")
    called = names(paths)
    found = [checkpoints.read(path) for path in paths]
    models = [cast(Decoder | ViT, checkpoint.network()) for checkpoint in found]
    if len({isinstance(model, ViT) for model in models}) > 1:
        raise ZooError("One checkpoint reads text and the other images; side by side stand two of a kind.")
    if isinstance(models[0], ViT):
        origin, inputs = pictures(found[0], cast(list[ViT], models), files, length)
    else:
        origin, inputs = text(found, files, length or models[0].length)
    return [
        Subject(name, str(checkpoint.path), model.to(device), seen.to(device), origin)
        for name, checkpoint, model, seen in zip(called, found, models, inputs, strict=True)
    ]
