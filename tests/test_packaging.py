"""What is in the wheel, what is pinned, and what a listing may import."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split(";")[0].strip().split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def name(requirement: str) -> str:
    """The normalised name of the distribution that a requirement asks for."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    out = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


def test_the_wheel_carries_the_three_packages_and_nothing_else(wheel):
    files = [file for file in wheel.namelist() if ".dist-info/" not in file]
    assert {file.split("/")[0] for file in files} == {"zoo", "zoo_positions", "zoo_kernels"}
    source = {
        str(path.relative_to(base))
        for base, package in ((ROOT, "zoo"), (ROOT / "plugins", "zoo_positions"), (ROOT / "plugins", "zoo_kernels"))
        for path in (base / package).rglob("*.py")
    }
    assert {file for file in files if file.endswith(".py")} == source
    assert {file for file in files if not file.endswith(".py")} == {
        "zoo/py.typed",
        "zoo_positions/py.typed",
        "zoo_kernels/py.typed",
        "zoo_kernels/fourier/native.cpp",
    }


def test_the_wheel_names_command_plugins_and_licence(wheel):
    (info,) = {file.split("/")[0] for file in wheel.namelist() if ".dist-info/" in file}
    points = wheel.read(f"{info}/entry_points.txt").decode()
    assert "zoo = zoo.cli:main" in points
    for group, plugins in PROJECT["entry-points"].items():
        section = points.partition(f"[{group}]")[2].partition("\n[")[0]
        assert {f"{key} = {target}" for key, target in plugins.items()} == set(section.split("\n")) - {""}
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


def test_every_requirement_is_pinned():
    wanted = [*PROJECT["dependencies"], "hatchling", "mypy", "ruff", "tox"]
    for extra in PROJECT["optional-dependencies"].values():
        wanted += extra
    # timm brings torchvision, and that the CUDA build of torch: its environment installs it by itself.
    assert {name(each) for each in wanted} - {"timm"} <= set(PINS)


def test_torch_is_pinned_without_a_build_and_nothing_of_cuda_is():
    assert PINS["torch"] == "2.13.0"
    unwanted = [pin for pin in PINS if re.match(r"torchvision|torchaudio|nvidia|cuda|triton|timm", pin)]
    assert not unwanted, f"{unwanted} would bring gigabytes of CUDA to a machine without it"
    assert all(pin == name(pin) for pin in PINS), "names are written in their normal form, each once"


@pytest.mark.parametrize("argv", ["--help", "--version", "plugins", "plugins --json", "plugins --help"])
def test_listings_import_no_torch(argv):
    code = (
        "import atexit, sys; from zoo.cli import main;"
        "atexit.register(lambda: print('loaded:', *sorted({name.split('.')[0] for name in sys.modules})));"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv.split()], capture_output=True, text=True, check=True)
    said, _, loaded = done.stdout.rpartition("loaded: ")
    assert "zoo" in said
    assert "zoo" in loaded.split()
    assert not {"torch", "lightning", "numpy", "zoo_positions", "zoo_kernels"} & set(loaded.split())
