"""The tables: a row says what a plugin is, whichever kind of model it serves."""

import pytest

from zoo import plugins, tables
from zoo.errors import ZooError
from zoo.matrix import GEOMETRY, GRID, Cell, places
from zoo.position import NoPE


class Flatland(NoPE):
    """Lives on a grid.

    Source: Abbott 1884 (a romance; after A Square et al. 1884, arXiv:1884.00001) and more.
    """

    def __init__(self, geometry, *, sides: int = 4):
        if geometry.axes == 1:
            raise ZooError("Flatland has two axes. Try a model of images.")
        super().__init__(geometry)


class Nowhere(NoPE):
    """Serves no model."""

    def __init__(self, geometry):
        raise ZooError(f"Nowhere does not serve {geometry.axes} axes.")


@pytest.fixture
def beside(monkeypatch):
    """Put classes beside the installed encodings."""
    table, names, load = plugins.table, plugins.names, plugins.load

    def put(*found):
        extra = {plugin.__name__: plugin for plugin in found}
        rows = [plugins.Row("zoo.positions", name, "zoo-other", "1.0", f"other:{name}") for name in extra]
        monkeypatch.setattr(plugins, "table", lambda: [*table(), *rows])
        monkeypatch.setattr(
            plugins, "names", lambda group: [*names(group), *(extra if group == "zoo.positions" else [])]
        )
        monkeypatch.setattr(plugins, "load", lambda group, name: extra[name] if name in extra else load(group, name))

    return put


def rows() -> dict[str, dict]:
    return {row["name"]: row for row in tables.details()[0] if row["group"] == "zoo.positions"}


@pytest.fixture(scope="module")
def installed():
    return rows()


@pytest.mark.parametrize("name", plugins.names("zoo.positions"))
def test_every_encoding_is_described(installed, name):
    row = installed[name]
    assert "error" not in row
    assert row["serves"] in (["text"], ["images"], ["text", "images"])
    assert set(row["places"]) <= {"embedding", "rotation", "bias"}
    assert (row["rung"] is not None) == ("bias" in row["places"])
    assert row["parameters"] >= 0
    assert row["summary"].endswith(".")
    assert isinstance(row["arguments"], dict)
    if row["distribution"] == "positionzoo":
        assert "arXiv:" in row["source"]
        assert row["source"].count("(") == row["source"].count(")")


@pytest.mark.parametrize(
    ("name", "serves"),
    [("RoPE", ["text", "images"]), ("CoPE", ["text"]), ("RelativeBias", ["images"]), ("RoPEMixed", ["images"])],
)
def test_which_models_it_serves(installed, name, serves):
    assert installed[name]["serves"] == serves


def test_kernels_say_so_too():
    kernels = [row for row in tables.details()[0] if row["group"] == "zoo.kernels"]
    assert next(row for row in kernels if row["name"] == "Eager")["serves"] == ["text", "images"]


def test_one_that_serves_images_only_is_asked_there(beside):
    beside(Flatland)
    row = rows()["Flatland"]
    assert row["serves"] == ["images"]
    assert row["places"] == []
    assert row["arguments"] == {"sides": 4}
    assert row["source"] == "Abbott 1884 (a romance; after A Square et al. 1884, arXiv:1884.00001)"
    text = tables.details()[1]
    assert (
        "Flatland(sides=4)  zoo-other 1.0\n    Lives on a grid.\n    places none; rung none; shared; 0 parameters"
        in text
    )
    assert text.split("Flatland(")[1].splitlines()[2].endswith("; serves images")
    (line,) = (line for line in tables.markdown().splitlines() if line.startswith("| **Flatland** |"))
    marks = {mark.strip() for mark in line.split("|")[3:-1]}
    assert line.startswith("| **Flatland** | nothing | ")
    assert marks <= {"I", "-"}
    assert "I" in marks


def test_one_that_serves_nothing_costs_a_line(beside):
    beside(Nowhere)
    assert rows()["Nowhere"]["error"] == "Nowhere does not serve 1 axes."
    assert "Nowhere: Nowhere does not serve 1 axes." in tables.details()[1].splitlines()
    (line,) = (line for line in tables.markdown().splitlines() if line.startswith("| **Nowhere** |"))
    assert {mark.strip() for mark in line.split("|")[3:-1]} == {"-"}


def test_a_long_name_gets_a_wide_column():
    cells = [Cell("NoPE", "Auto", 1, ()), Cell("NoPE", "LinearAttention", 1, ("no",)), Cell("NoPE", "RBF", 1, ())]
    header, row = tables.grid(cells).splitlines()
    assert header.split() == ["Auto", "LinearAttention", "RBF"]
    assert row.split() == ["NoPE", "yes", "-", "yes"]
    assert row.index("-") == header.index("LinearAttention")
    assert row.rindex("yes") == header.index("RBF")


def test_what_is_told_is_said_in_words():
    for name, geometry, words in (
        ("NoPE", GEOMETRY, "nothing"),
        ("Learned", GEOMETRY, "embedding"),
        ("RoPE", GRID, "rotation"),
        ("ALiBi", GEOMETRY, "Slopes bias"),
        ("ALiBi", GRID, "Pointwise bias"),
    ):
        assert tables.told(places(plugins.load("zoo.positions", name)(geometry))) == words
