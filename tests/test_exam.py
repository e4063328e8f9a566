"""Everything installed takes the exam: a new plugin is tested by being installed."""

import importlib.util
import tomllib
from functools import partial
from pathlib import Path

import pytest
import torch

from zoo import plugins
from zoo.testing import checks

ROOT = Path(__file__).parent.parent
POSITIONS, KERNELS = (plugins.classes(f"zoo.{group}") for group in ("positions", "kernels"))
VARIANTS = [
    ("RoPE", {"fraction": 0.5, "pairing": "interleaved"}),
    ("FoPE", {"trainable": True}),
    ("FoPE", {"dialect": "paper", "trainable": True, "init": "xavier_uniform", "padding": "identity"}),
    ("FoPE", {"init": "eye"}),
    ("ALiBi", {"trainable": True}),
]


@checks(*POSITIONS.values(), *KERNELS.values())
def test_exam(check):
    check()


@checks(*(partial(POSITIONS[name], **change) for name, change in VARIANTS if name in POSITIONS))
def test_variants(check):
    check()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@checks(*(kernel for name, kernel in KERNELS.items() if name != "Eager"), device="cuda")
def test_exam_on_cuda(check):
    check()


def test_installed_plugins_are_those_of_pyproject():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    installed = {group: {} for group in declared}
    for row in plugins.table():
        if row.distribution == "positionzoo":
            installed.setdefault(row.group, {})[row.name] = row.target
    assert installed == declared, (
        "Other plugins are installed than pyproject.toml names. Please reinstall: pip install -e ."
    )


def test_every_plugin_can_be_imported():
    assert not list(plugins.broken())


def example():
    """The class of plugins/zoo-example, whether or not that is installed."""
    spec = importlib.util.spec_from_file_location("zoo_example", ROOT / "plugins/zoo-example/zoo_example.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PowerLaw


@checks(example())
def test_example(check):
    check()
