"""Small networks whose attention is known, and what they read."""

from functools import partial

import pytest
import torch

from zoo import plugins
from zoo.analyze.subject import Subject
from zoo.decoder import Decoder
from zoo.vit import ViT

SIZE = {"dim": 32, "layers": 2, "heads": 4, "std": 0.2}


@pytest.fixture
def text():
    """A decoder with something to read: `text("RoPE", length=32, base=100.0)`."""

    def build(position="RoPE", *, length=32, read=None, batch=2, model=None, kernel="Eager", **numbers):
        torch.manual_seed(0)
        options = {**SIZE, **(model or {})}
        position = partial(plugins.load("zoo.positions", position), **numbers)
        kernel = plugins.load("zoo.kernels", kernel)
        network = Decoder(vocabulary=50, length=length, position=position, kernel=kernel, **options).eval()
        ids = torch.randint(0, 50, (batch, read or length))
        return Subject("small", "nowhere", network, ids, "random numbers")

    return build


@pytest.fixture
def images():
    """A vision transformer with something to read, on a grid of 3 x 5."""

    def build(position="RoPE", *, batch=2, registers=1, **numbers):
        torch.manual_seed(0)
        position = partial(plugins.load("zoo.positions", position), **numbers)
        options = {**SIZE, "registers": registers, "position": position, "kernel": plugins.load("zoo.kernels", "Eager")}
        network = ViT(classes=3, channels=1, size=(6, 10), patch=2, **options).eval()
        return Subject("picture", "nowhere", network, torch.randn(batch, 1, 6, 10), "noise")

    return build


@pytest.fixture
def mute():
    """Make all queries and keys of a subject zero, so that content says nothing."""

    def silence(subject):
        shape = subject.trunk.geometry
        for block in subject.trunk.blocks:
            with torch.no_grad():
                block.attention.qkv.weight[: (shape.heads + shape.kv_heads) * shape.head_dim] = 0.0
        return subject

    return silence
