"""What is analysed: a checkpoint's network, and the text or the images that it reads while it is watched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo import checkpoints
from zoo.arguments import place
from zoo.checkpoints import Checkpoint
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


def windows(texts: Iterable[str], encode: Any, length: int, count: int | None = None) -> Tensor:
    """The first `count` windows of `length` tokens, [windows, length]: of each document its beginning.

    Without a count, 8 windows, or as many as 2^15 tokens allow.

    Where fewer documents are long enough, the long ones give their second windows, and so on; a window never crosses
    from one document into another.

    Raises ZooError, with the length of the longest document, where none is long enough.
    """
    count = max(1, min(EXAMPLES, TOKENS // length)) if count is None else count
    found: list[list[list[int]]] = []
    longest = 0
    for text in texts:
        if len(found) == count:
            break
        ids = encode(text) if len(text.encode()) >= length else []
        longest = max(longest, len(ids))
        if len(ids) >= length:
            found.append([ids[start : start + length] for start in range(0, len(ids) - length + 1, length)])
    if not found:
        least = f"the longest has {longest}" if longest else "none has even as many bytes"
        raise ZooError(f"No document has {length} tokens: {least}. Give longer --files, or a smaller --length.")
    ranked = [windows[turn] for turn in range(max(map(len, found))) for windows in found if turn < len(windows)]
    return torch.tensor(ranked[:count])


def pictures(checkpoint: Checkpoint, model: ViT, files: list[str] | None, side: int | None) -> tuple[str, Tensor]:
    """Test images of the data that the model was trained on, or of a folder; normalised as there."""
    from zoo.data.images import Images

    stored = checkpoint.about.get("asked", {}).get("data", {})
    known = dict(stored.get("init_args", {})) if str(stored.get("class_path", "")).startswith("zoo.data") else {}
    if files is not None:
        if len(files) > 1:
            raise ZooError("Images come from one folder, which holds a folder per class. Give --files one name.")
        known |= {"files": files[0], "dataset": None, "subset": None}
    elif stored and not known:
        raise ZooError(f"{checkpoint.path} was trained on data of another program. Try:  --files FOLDER of images")
    height, width = (length * model.patch for length in model.grid)
    if height != width and side is not None:
        raise ZooError(f"--length is the side of square images, and this model reads {height} x {width} pixels.")
    asked = side or height
    if asked % model.patch:
        raise ZooError(f"Images of {asked} pixels do not divide into patches of {model.patch}: --length is a multiple.")
    known |= {"augment": False, "zoom": 1.0, "workers": 0, "batch": EXAMPLES}
    if side is not None or files is not None:
        known["size"] = asked
    data = Images(**{name: value for name, value in known.items() if name not in ("randaugment", "mixup", "magnitude")})
    data.setup()
    for loader in (data.test_dataloader, data.val_dataloader, data.train_dataloader):
        try:
            images = next(iter(loader()))["images"][:EXAMPLES]
        except ZooError:  # a share of 0
            continue
        break
    else:
        raise ZooError(f"There are no images to look at in {data.summary}")
    channels = model.embedding.in_channels
    if images.shape[1] != channels:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    return data.summary.split(":")[1].strip(), images


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
    found = [checkpoints.read(path) for path in paths]
    models = [checkpoint.network() for checkpoint in found]
    kinds = {"images" if isinstance(model, ViT) else "text" for model in models}
    if len(kinds) > 1:
        raise ZooError("One checkpoint reads text and the other images; side by side stand two of a kind.")
    if length is not None and length < 2:
        raise ZooError(f"--length {length} leaves nothing to attend to; it is 2 or more.")
    names = [path.name if path.is_dir() else path.stem for path in (Path(word).resolve() for word in paths)]
    if len(set(names)) < len(names):
        names = [str(Path(word)) for word in paths] if len(set(paths)) == len(paths) else [*"AB"[: len(paths)]]
    subjects, shared = [], None
    if "images" not in kinds:
        shared = texts.named(files) if files else texts.held_out(found[0].about)
    for name, checkpoint, model in zip(names, found, models, strict=True):
        assert isinstance(model, Decoder | ViT)
        if isinstance(model, ViT):
            origin, inputs = pictures(checkpoint, model, files, length)
        else:
            assert shared is not None
            origin, inputs = shared.origin, text(checkpoint, shared.texts, length or models[0].length)  # type: ignore[arg-type]
        model, inputs = model.to(device), inputs.to(device)
        subjects.append(Subject(name, str(checkpoint.path), model, inputs, origin))
    return subjects


def text(checkpoint: Checkpoint, texts: Iterable[str], length: int) -> Tensor:
    """Windows of text in the tokens of a checkpoint."""
    from zoo.data.tokenizer import Tokenizer

    if "tokenizer" not in checkpoint.about:
        raise ZooError(f"{checkpoint.path} holds no tokenizer, so that it cannot be given text to read.")
    return windows(texts, Tokenizer.restore(checkpoint.about["tokenizer"]).encode, length)
