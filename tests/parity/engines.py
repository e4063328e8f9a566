"""The rotary classes of vLLM, SGLang and LMDeploy as they are in their releases, without the engines around them.

Each is python that needs nothing but torch to compute its tables on a CPU, within a package that wants a GPU, compiled
parts and a hundred distributions. So the package is put on the path, the modules that hold rotary embeddings are the
real ones, and every other module of the engine is a stand-in whose attributes do nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from torch import nn

REAL = {
    "vllm": ("vllm.model_executor.layers.rotary_embedding",),
    "sglang": ("sglang.srt.layers.rotary_embedding",),
    "lmdeploy": ("lmdeploy.pytorch.nn.rotary_embedding", "lmdeploy.pytorch.backends"),
}
"""What is not replaced."""


ANSWERS = {
    "get_bool_env_var": False,
    "cpu_has_amx_support": False,
    "get_device": "cpu",
    "publish_role": None,
    "get_compiler_backend": "eager",
    "get_current_vllm_config": SimpleNamespace(model_config=SimpleNamespace(max_model_len=1 << 30)),
}
"""What some functions of other modules say here."""


class Operation(nn.Module):
    """In the place of an engine's base class of operations, which picks one for the device: here the plain one."""

    def __init__(self, *args, **kwargs):
        super().__init__()

    @classmethod
    def register(cls, name, **others):
        return lambda owner: owner

    @classmethod
    def enabled(cls):
        return False

    def forward(self, *args, **kwargs):
        return self.forward_native(*args, **kwargs)


class Standin(types.ModuleType):
    """A module of which every attribute exists and does nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("CustomOp", "BaseFusedOp"):
            return Operation
        if name.startswith("is_"):
            return lambda *args: name == "is_cpu"
        if name in ANSWERS:
            return lambda *args: ANSWERS[name]
        return MagicMock(name=f"{self.__name__}.{name}")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the real modules of an engine in its folder, and makes stand-ins of all others."""

    def __init__(self, engine: str, root: Path):
        self.engine, self.root = engine, root

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != self.engine:
            return None
        if name.startswith(REAL[self.engine]):
            place = self.root.joinpath(*name.split("."))
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            inner = [str(place)] if place.is_dir() else None
            return importlib.util.spec_from_file_location(name, file, submodule_search_locations=inner)
        spec = importlib.machinery.ModuleSpec(name, self, is_package=True)
        return spec

    def create_module(self, spec):
        return Standin(spec.name)

    def exec_module(self, module):
        module.__path__ = []


@contextmanager
def installed(engine: str):
    """An engine whose rotary classes can be imported; the test is skipped where it is not installed."""
    try:
        root = Path(distribution(engine).locate_file(""))
    except PackageNotFoundError:
        pytest.skip(f"{engine} is not installed here: tox -e parity")
    finder = Finder(engine, root)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == engine]:
            del sys.modules[name]
