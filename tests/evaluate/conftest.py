"""Small language models under measurement, made by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from zoo import plugins
from zoo.data.tokenizer import Tokenizer
from zoo.decoder import Decoder
from zoo.evaluate.reader import Reader
from zoo.position import Encoding, PositionEncoding, Toeplitz


@pytest.fixture
def reading():
    """Make a Reader of a decoder, random unless one is given."""

    def make(model: Decoder | None = None, *, position: str = "RoPE", tokenizer: str = "bytes", **arguments) -> Reader:
        made = Tokenizer(tokenizer)
        if model is None:
            torch.manual_seed(0)
            shape = {"vocabulary": made.vocabulary, "length": 32, "dim": 32, "layers": 2, "heads": 4, "std": 0.5}
            model = Decoder(position=plugins.load("zoo.positions", position), **{**shape, **arguments})
        about = {"tokenizer": made.describe()}
        return Reader(SimpleNamespace(network=model.eval, about=about, path=Path("made")), "made")

    return make


@pytest.fixture
def text():
    """Some documents of bytes, rather random."""

    def make(count: int, size: int) -> list[str]:
        random = torch.Generator().manual_seed(1)
        return ["".join(map(chr, torch.randint(97, 123, (size,), generator=random).tolist())) for _ in range(count)]

    return make


class Back(PositionEncoding):
    """Looks at one distance, where there is such a key."""

    def __init__(self, geometry, *, distance):
        super().__init__(geometry)
        self.distance = distance

    def forward(self, queries, keys, extent, hidden=None, state=None):
        table = torch.zeros(1, extent)
        if self.distance < extent:
            table[:, self.distance] = 60.0
        return Encoding(bias=Toeplitz(table, queries.squeeze(-1), keys.squeeze(-1)))


def copying(distance):
    """A decoder that says again what stood `distance` tokens before the one to be said."""
    size = 257
    model = Decoder(
        vocabulary=size, length=48, dim=2 * size, layers=1, heads=1, tied=False,
        position=lambda geometry: Back(geometry, distance=distance - 1),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for module in model.modules():
            if isinstance(module, nn.RMSNorm):
                module.weight.fill_(1.0)
        model.embedding.weight[:, :size] = torch.eye(size)
        attention, width = model.trunk.blocks[0].attention, 2 * size
        attention.qkv.weight[2 * width : 2 * width + size, :size] = torch.eye(size)  # the value is the token
        attention.out.weight[size:, :size] = torch.eye(size)  # and goes where tokens are read out
        model.head.weight[:, size:] = 8 * torch.eye(size)
    return model


@pytest.fixture
def copier():
    """Make a decoder whose reach is known."""
    return copying
