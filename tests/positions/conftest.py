"""Geometries for the encodings under test."""

from collections.abc import Callable

import pytest

from zoo.position import Geometry


@pytest.fixture
def shape() -> Callable[..., Geometry]:
    """A small geometry; what a test cares about it names."""

    def build(**changes: object) -> Geometry:
        heads = changes.get("heads", 2)
        asked = {"dim": 16, "heads": heads, "kv_heads": heads, "head_dim": 8, "length": (64,)} | changes
        return Geometry(**asked)

    return build
