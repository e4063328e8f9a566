"""Weights of another program as a checkpoint: a table says which tensors of theirs each of ours is.

For what no reader here knows: somebody's state dict, and a network of ours that computes the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.checkpoints import fill, folder
from zoo.data.augment import GREY, RGB
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ZooError, listing, near
from zoo.task import Task
from zoo.vit import ViT

Names = Mapping[str, str | Sequence[str]]
Normal = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel, of pictures from 0 to 1."""


def adopt(
    out: str | Path,
    task: Task,
    weights: Mapping[str, Any],
    names: Names,
    *,
    normalized: Normal | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a folder that every command takes, of a network of ours with the weights of another program.

    Every tensor of theirs has to be used, and every one of ours to be made. What fits in shape may still be in the
    wrong place: compare the logits of some examples.

    Args:
        out: The folder; it must not exist.
        task: What the network is: `LanguageModel(...)` or `ImageClassifier(...)`, with all sizes.
        weights: Theirs by name, tensors or arrays. What is not ours as it is, such as a transposed matrix, is to be
            changed here; what holds nothing, such as a buffer, to be left out.
        names: Ours to theirs; a list of theirs is stacked, row on row. `{layer}`, or any other word in braces, stands
            for a part of a name between dots and is the same on both sides.
        normalized: Mean and standard deviation of each channel of the pictures that they were trained on (default: of
            zoo's own). The embedding of patches is changed to take zoo's.
        tokenizer: Of a language model.

    Raises ZooError for names that are on one side only, that are said twice, and for shapes that differ.
    """
    out = Path(out)
    if out.exists():
        raise ZooError(f"{out} exists. Move it, or write elsewhere.")
    task.configure_model()
    network = cast(nn.Module, task.network)
    found = dict(matched(network.state_dict(), {name: torch.as_tensor(each) for name, each in weights.items()}, names))
    fill(network, found, "What is adopted")
    for name, tensor in network.state_dict().items():  # of two that are tied only one has been filled
        if not torch.allclose(tensor, found[name].to(tensor.dtype), rtol=0, atol=0, equal_nan=True):
            raise ZooError(f"{name} is tied to another tensor here, and has other numbers there.   Try:  tied=False")
    if normalized is not None:
        renormalize(network, normalized)
    about = {**task.about, "adopted": {ours: listed(each) for ours, each in names.items()}}
    if tokenizer is not None:
        about["tokenizer"] = tokenizer.describe()
    folder.write(out, about, network.state_dict(), card(about, network))


def matched(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], names: Names) -> Iterator[tuple[str, Tensor]]:
    """Each of our tensors, made of theirs."""
    patterns = {ours: pattern(ours) for ours in names}
    for ours, each in patterns.items():
        if not any(map(each.fullmatch, own)):
            close = near(ours, own)
            raise ZooError(f"There is no {ours} in this network.{f' Did you mean {listing(close)}?' if close else ''}")
    left, unsaid = dict(theirs), list[str]()
    for name, mine in own.items():
        hits = {ours: hit for ours, each in patterns.items() if (hit := each.fullmatch(name))}
        if len(hits) > 1:
            raise ZooError(f"What {name} is made of is said twice: under {listing(hits)}.")
        for ours, hit in hits.items():
            sources = [filled(each, hit, ours) for each in listed(names[ours])]
            if missing := [source for source in sources if source not in theirs]:
                raise ZooError(f"{name} is to be made of {listing(missing)}, which is not there.")
            yield name, stacked(name, mine, [(source, theirs[source]) for source in sources])
            for source in sources:
                left.pop(source, None)
        unsaid += [] if hits else [name]
    for told, which in (
        ("Nothing says what to make of theirs:", [*left]),
        ("Nothing says what to make ours of:", unsaid),
    ):
        if which:
            more = f", and {len(which) - 3} more" if len(which) > 3 else ""
            raise ZooError(f"{told} {listing(which[:3])}{more}.")


def listed(value: str | Sequence[str]) -> list[str]:
    """One name or several."""
    return [value] if isinstance(value, str) else [*value]


def pattern(name: str) -> re.Pattern[str]:
    """What a name with braces stands for."""
    told = list[str]()

    def group(hit: re.Match[str]) -> str:
        told.append(hit[1])
        return f"(?P={hit[1]})" if told.count(hit[1]) > 1 else f"(?P<{hit[1]}>[^.]+)"

    return re.compile(re.sub(r"\\\{([a-zA-Z]\w*)\\\}", group, re.escape(name)))


def filled(name: str, hit: re.Match[str], ours: str) -> str:
    """A name of theirs, with what the braces of ours stood for."""
    try:
        return name.format_map(hit.groupdict())
    except (KeyError, ValueError, IndexError, AttributeError):
        raise ZooError(f"{name} has braces that {ours}, of which it is to be a part, has not.") from None


def stacked(name: str, mine: Tensor, parts: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Theirs, row on row, of the shape of ours."""
    try:
        whole = torch.cat([part for _, part in parts]) if len(parts) != 1 else parts[0][1]
    except (RuntimeError, ValueError):  # of several widths, or none at all
        whole = None
    if whole is None or whole.shape != mine.shape:
        told = listing(f"{each}, {list(part.shape)}" for each, part in parts)
        raise ZooError(f"{name} is {list(mine.shape)} here and cannot be made of {told}.")
    return whole


def renormalize(network: nn.Module, normalized: Normal) -> None:
    """Have the embedding of patches take zoo's pictures; it has no padding, so this is exact."""
    if not isinstance(network, ViT):
        raise ZooError("normalized speaks of pictures, and this network reads none.")
    weight, bias = network.embedding.weight, cast(Tensor, network.embedding.bias)
    if any(len(side) != weight.shape[1] for side in normalized) or min(normalized[1]) <= 0:
        raise ZooError(f"normalized takes a mean and a positive deviation for each of {weight.shape[1]} channels.")
    mean, std = torch.tensor(normalized, dtype=torch.float64)
    own, wide = torch.tensor(RGB if weight.shape[1] == 3 else GREY, dtype=torch.float64)
    with torch.no_grad():
        exact = weight.double()
        bias += (exact.sum((2, 3)) @ ((own - mean) / std)).to(bias.dtype)
        weight.copy_(exact * (wide / std)[:, None, None])


def card(about: Mapping[str, Any], network: nn.Module) -> str:
    """The README of the folder."""
    kind, arguments = about["network"]["class_path"].rpartition(".")[2], about["network"]["init_args"]
    size = sum(parameter.numel() for parameter in network.parameters())
    rows = "\n".join(
        f"| `{ours}` | {listing(f'`{each}`' for each in theirs)} |" for ours, theirs in about["adopted"].items()
    )
    return f"""# A zoo checkpoint: {kind} with {arguments["position"]["class_path"]}, adopted

{size / 1e6:.2f} M parameters, trained by another program; zoo {about["zoo"]} has put them where they belong:

| ours | theirs |
|---|---|
{rows}

`config.yaml` says what the model is, `model.safetensors` holds its weights. To measure it: `zoo evaluate PATH --files
FILES`; to train it further: `zoo fit --model.weights PATH`
"""
