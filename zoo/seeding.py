"""Each plugin draws its initial weights from random generators of its own.

If all parts of a model drew from one generator, an encoding that draws numbers would change the initial weights of
everything that is built after it, and a comparison of two encodings would compare two initializations as well. Here the
generators are seeded with the run's seed, the plugin's name and the layer while the plugin is built, and restored
afterwards. So the rest of the model starts alike under every plugin, a third party's included.
"""

from __future__ import annotations

import functools
import hashlib
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def name_plugin(build: Callable[..., Any]) -> str:
    """The name of the class that a callable builds, through partials of any depth, as jsonargparse makes them."""
    while isinstance(build, functools.partial):
        build = next((part for part in build.args if isinstance(part, type)), build.func)
    return getattr(build, "__name__", type(build).__name__)


def derive_seed(seed: int, *parts: object) -> int:
    """A seed below 2^63 that depends on the run's seed and on all parts."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def use_own_generators(build: Callable[..., Any], group: str, layer: int | None) -> Iterator[None]:
    """Seed all generators for one plugin of one layer, and restore them afterwards.

    These are torch's on the CPU and on the accelerator that tensors are made on, Python's, and NumPy's where it has
    been imported. The seed of the run is `torch.initial_seed()`, which `seed_everything` has set: nothing is drawn for
    it, so plugins that draw nothing change nothing.

    Args:
        build: What builds the plugin: its class, or a partial of it.
        group: Entry-point group of the plugin.
        layer: The layer that it is built for.
    """
    seed = derive_seed(torch.initial_seed(), group, name_plugin(build), layer)
    generators = list_generators(torch.get_default_device())
    numpy: Any = sys.modules.get("numpy")
    states = [generator.get_state() for generator in generators]
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy is not None else None
    try:
        for generator in generators:
            generator.manual_seed(seed)  # torch.manual_seed would reseed every accelerator too
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed % 2**32)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


def list_generators(device: torch.device) -> list[torch.Generator]:
    """torch's generator on the CPU, and that of a device where tensors are made on another one."""
    if device.type in ("cpu", "meta"):
        return [torch.default_generator]
    if device.type == "mps":
        return [torch.default_generator, torch.mps._get_default_mps_generator()]
    module = torch.get_device_module(device)
    module.init()  # before that there are no generators
    return [torch.default_generator, module.default_generators[device.index or 0]]
