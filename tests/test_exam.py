"""Everything installed takes the exam: a new plugin is tested by being installed."""

import importlib.util
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
import torch

from zoo import plugins
from zoo.testing import Skip, checks
from zoo.testing.gradients import compiled
from zoo.testing.probe import title

ROOT = Path(__file__).parent.parent
POSITIONS, KERNELS, EXTENSIONS = (plugins.classes(group) for group in plugins.GROUPS)
VARIANTS = [
    ("RoPE", {"fraction": 0.5, "pairing": "interleaved"}),
    ("FoPE", {"trainable": True}),
    ("FoPE", {"dialect": "paper", "trainable": True, "init": "xavier_uniform", "padding": "identity"}),
    ("FoPE", {"init": "eye"}),
    ("FoPE", {"floor": 8, "trainable": True}),
    ("FoPE", {"floor": 8, "trainable": True, "dialect": "paper", "padding": "identity"}),
    ("FoPE", {"fraction": 0.5, "pairing": "interleaved"}),
    ("pRoPE", {"fraction": 0.25, "pairing": "interleaved"}),
    ("xPos", {"span": 32.0, "pairing": "half"}),
    ("PoPE", {"fraction": 0.5, "phases": "uniform"}),
    ("PoPE", {"per_layer": False}),
    ("ALiBi", {"trainable": True}),
    ("Sinusoidal", {"layout": "axiswise"}),
    ("Learned", {"resample": "bicubic"}),
    ("Learned", {"resample": "linear"}),
    ("RelativeBias", {"resample": "bicubic"}),
    ("RoPEMixed", {"pairing": "half"}),
    ("T5", {"logits": "unscaled", "std": "dim"}),
    ("T5", {"buckets": 16, "distance": 64, "multiplier": "root", "std": "xavier"}),
    ("KERPLE", {"kind": "power"}),
    ("KERPLE", {"kind": "power", "parametrization": "softplus"}),
    ("KERPLE", {"per_layer": True, "parametrization": "softplus"}),
    ("FIRE", {"depth": 2, "threshold": 8.0}),
    ("FIRE", {"shared": True}),
    ("DynamicBias", {"distance": "linear"}),
    ("FoX", {"gate": "bias"}),
    ("FoX", {"gate": "fixed"}),
    ("CoPE", {"positions": 8}),
]


PARTIALS = [partial(POSITIONS[name], **change) for name, change in VARIANTS if name in POSITIONS]
EXTENDED = [  # what the exam of an extension does not ask: every check of an encoding, and of one within another
    partial(POSITIONS["RoPE"], extension=partial(EXTENSIONS["YaRN"], factor=2.5), pairing="interleaved"),
    partial(POSITIONS["PoPE"], extension=EXTENSIONS["DynamicNTK"]),
    partial(POSITIONS["RoPE"], extension=partial(EXTENSIONS["SelfExtend"], factor=4.0), fraction=0.5),
    partial(POSITIONS["pRoPE"], extension=EXTENSIONS["DualChunk"], pairing="interleaved"),
    partial(EXTENSIONS["ReRoPE"], log_n=False),
    partial(POSITIONS["FoPE"], extension=partial(EXTENSIONS["YaRN"], factor=2.5), floor=8),
    partial(POSITIONS["ALiBi"], extension=EXTENSIONS["DynamicDistanceScaling"], trainable=True),
    partial(POSITIONS["RoPEMixed"], extension=partial(EXTENSIONS["DistanceScaling"], factor=2.0)),
    partial(POSITIONS["T5"], extension=partial(EXTENSIONS["DistanceScaling"], factor=2.5)),
    partial(EXTENSIONS["Resonance"], extension=partial(EXTENSIONS["DynamicNTK"], factor=2.0)),
    partial(EXTENSIONS["Resonance"], extension=partial(EXTENSIONS["YaRN"], factor=8.0)),
    partial(EXTENSIONS["YaRN"], truncate=True, factor=16.0),
    partial(EXTENSIONS["FoPE"], dialect="paper", start="official"),
    partial(EXTENSIONS["FoPE"], clip=False, trainable=True),
    partial(EXTENSIONS["DroPE"], temperature=0.1),
]


@checks(*POSITIONS.values(), *KERNELS.values(), *EXTENSIONS.values())
def test_exam(check):
    check()


@checks(*PARTIALS, *EXTENDED)
def test_variants(check):
    check()


@pytest.mark.slow
@pytest.mark.parametrize("subject", [*POSITIONS.values(), *PARTIALS], ids=title)
def test_gradients_in_a_model_that_inductor_compiled(subject):
    try:
        compiled(subject, backend="inductor", kernels=("Eager", "Tiled"))
    except Skip as reason:
        pytest.skip(str(reason))


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
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # torch.compile imports it by name
    spec.loader.exec_module(module)
    return module.PowerLaw


@checks(example())
def test_example(check):
    check()
