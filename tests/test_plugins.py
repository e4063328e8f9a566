"""Discovery: near names, two plugins of one name, broken ones, and none of it imports torch."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import plugins
from zoo.errors import ZooError
from zoo.position import NoPE


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution that consists of entry points and one module, for the length of a test."""
    caches = plugins.points, plugins.load

    def fresh():
        importlib.invalidate_caches()
        for cached in caches:
            cached.cache_clear()

    def add(name: str, points: str, source: str = "", version: str = "1.0") -> Path:
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(points)
        (tmp_path / f"{name.replace('-', '_')}.py").write_text(source)
        fresh()
        return tmp_path

    monkeypatch.syspath_prepend(tmp_path)
    yield add
    monkeypatch.undo()
    fresh()


TWICE = "[zoo.positions]\nNoPE = zoo.position:NoPE\n"
BROKEN = "[zoo.kernels]\nShard = shards:Shard\n"


@pytest.mark.parametrize(
    ("group", "word", "guess"),
    [
        ("zoo.positions", "RoPe", "RoPE"),
        ("zoo.positions", "nope", "NoPE"),
        ("zoo.positions", "Alibi", "ALiBi"),
        ("zoo.kernels", "Eagr", "Eager"),
        ("zoo.kernels", "tile", "Tiled"),
    ],
)
def test_an_unknown_name_gets_the_near_ones_and_the_installed(group, word, guess):
    with pytest.raises(ZooError) as error:
        plugins.find(group, word)
    sentence = str(error.value)
    assert sentence.startswith(f"No {plugins.GROUPS[group]} is called {word}. Did you mean {guess}")
    assert sentence.endswith(f"Installed: {', '.join(plugins.names(group))}.")


def test_a_name_like_no_other_gets_no_guess():
    with pytest.raises(ZooError, match=r"No kernel is called Zzyzx\. Installed: "):
        plugins.find("zoo.kernels", "Zzyzx")


def test_a_plugin_of_another_distribution_comes_through_the_same_door(install):
    source = "from zoo.position import NoPE\n\n\nclass Mine(NoPE):\n    '''Mine.'''\n"
    install("zoo-mine", "[zoo.positions]\nMine = zoo_mine:Mine\n", source, version="2.3")
    row = next(row for row in plugins.table() if row.name == "Mine")
    assert row.asdict() == {
        "group": "zoo.positions",
        "name": "Mine",
        "distribution": "zoo-mine",
        "version": "2.3",
        "target": "zoo_mine:Mine",
    }
    assert issubclass(plugins.load("zoo.positions", "Mine"), NoPE)
    assert plugins.names("zoo.positions")[-1] == "Mine", "first-party plugins come first"


def test_two_plugins_of_one_name_are_an_error_that_names_both(install):
    install("zoo-twice", TWICE)
    with pytest.raises(ZooError) as error:
        plugins.find("zoo.positions", "NoPE")
    sentence = str(error.value)
    assert sentence.startswith("Two position encodings are called NoPE: one comes with positionzoo ")
    assert " and one with zoo-twice 1.0." in sentence
    assert sentence.endswith("pip uninstall zoo-twice")
    with pytest.raises(ZooError, match="Two position encodings are called NoPE"):
        plugins.load_all()
    assert plugins.names("zoo.positions").count("NoPE") == 1


def test_two_strangers_may_clash_too(install):
    install("zoo-one", "[zoo.kernels]\nSame = zoo_one:Same\n")
    install("zoo-two", "[zoo.kernels]\nSame = zoo_two:Same\n")
    assert plugins.clashes() == [
        "Two kernels are called Same: one comes with zoo-one 1.0 and one with zoo-two 1.0. "
        "Uninstall one of them: pip uninstall zoo-two"
    ]


def test_one_name_in_two_groups_is_no_clash(install):
    install("zoo-alibi", "[zoo.extensions]\nALiBi = zoo_alibi:ALiBi\n", "class ALiBi:\n    pass\n")
    assert plugins.clashes() == []
    assert plugins.load("zoo.extensions", "ALiBi").__name__ == "ALiBi"
    assert plugins.load("zoo.extensions", "FoPE") is not plugins.load("zoo.positions", "FoPE")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no such instruction')", "RuntimeError: no such instruction"),
        ("import does_not_exist", "ModuleNotFoundError: No module named 'does_not_exist'"),
        ("class Other:\n    pass\n", "AttributeError"),
        ("def broken(:\n", "SyntaxError"),
    ],
)
def test_a_broken_plugin_costs_one_line_and_fails_only_if_asked_for(install, capsys, source, reason):
    sys.modules.pop("shards", None)
    install("shards", BROKEN, source)
    plugins.load_all()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("zoo: The kernel Shard of shards 1.0 cannot be imported")
    assert reason in lines[0]
    assert "Shard" not in plugins.classes("zoo.kernels")
    assert "Eager" in plugins.classes("zoo.kernels")
    assert "Shard" in plugins.names("zoo.kernels"), "it is listed, since it is installed"
    with pytest.raises(ZooError, match=r"cannot be imported .*pip install --force-reinstall shards"):
        plugins.load("zoo.kernels", "Shard")


def test_listing_imports_no_torch_and_no_plugin(install, tmp_path):
    install("shards", BROKEN, "raise SystemExit('imported')")
    code = (
        "import sys; from zoo import plugins; rows = plugins.table(); plugins.clashes();"
        "assert any(row.name == 'Shard' for row in rows), rows;"
        "loaded = {'torch', 'lightning', 'zoo_positions', 'shards', 'numpy'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_plugins_can_be_imported_where_tensors_have_no_numbers():
    """A checkpoint's network is first built without memory, which may be the first time that a plugin is asked for."""
    code = """
import torch
from zoo import plugins
with torch.device("meta"):
    found = [plugins.load(group, name) for group in plugins.GROUPS for name in plugins.names(group)]
assert len(found) > 40
"""
    subprocess.run([sys.executable, "-c", code], check=True)
