"""What the house promises about itself: who imports whom, how long files are, that everything public is described."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from zoo.errors import ZooError
from zoo.position import Geometry

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "zoo").rglob("*.py"))
PLUGINS = sorted(path for path in (ROOT / "plugins").rglob("*.py") if "build" not in path.parts)
short = {"ids": lambda path: str(path.relative_to(ROOT))}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def module(path: Path) -> str:
    """zoo/data/text.py -> zoo.data.text"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, inside functions too."""
    names = {module(other) for other in CORE}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the module's whole name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in names else str(node.module)


@pytest.mark.parametrize("path", CORE, **short)
def test_the_core_imports_no_plugin(path):
    found = {name.split(".")[0] for name in imports(path)} & {"zoo_positions", "zoo_kernels"}
    assert not found, f"{path} imports {found}; plugins arrive by entry point, like anybody else's"


def test_no_circle_among_imports():
    names = {module(path) for path in CORE}
    edges = {module(path): sorted({name for name in imports(path) if name in names}) for path in CORE}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, "circle: " + " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in edges[name]:
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())


def test_a_plugin_can_be_written_by_reading_two_short_files():
    assert lines(ROOT / "zoo/position.py") + lines(ROOT / "zoo/kernel.py") < 500


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], **short)
def test_files_are_short(path):
    assert lines(path) <= 600


def code(path):
    """Lines that hold code: neither blank, nor comment, nor docstring."""
    described = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            described |= set(range(node.lineno, node.end_lineno + 1))
    text = path.read_text().splitlines()
    return sum(bool(t.strip()) and not t.strip().startswith("#") and n not in described for n, t in enumerate(text, 1))


def test_the_core_is_small():
    def within(*names):
        return sum(
            code(path) for path in CORE if path.parent.relative_to(ROOT).parts[1:2] in [(name,) for name in names]
        )

    apart = (
        within("evaluate", "analyze"),
        within("extend"),
        within("testing"),
        within("scale", "callbacks"),
        within("checkpoints", "hub"),
        within("export"),
    )
    assert sum(map(code, CORE)) - sum(apart) < 8000
    assert apart[0] < 4300
    assert apart[1] < 2200
    assert apart[2] < 2600
    assert apart[3] < 1900
    assert apart[4] < 3900
    assert apart[5] < 1400


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], **short)
def test_everything_public_is_described(path):
    if path.name.startswith("test_") or not path.read_text().strip():
        return
    assert ast.get_docstring(tree(path)), f"{path} does not say what it is about"
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} of {path} has no docstring"


def test_the_example_is_as_short_as_the_readme_says():
    folder = ROOT / "plugins/zoo-example"
    found = {path.name for path in folder.iterdir() if path.suffix in (".py", ".toml")}
    assert found == {"pyproject.toml", "zoo_example.py", "test_zoo_example.py"}
    assert lines(folder / "pyproject.toml") == 7


@pytest.mark.parametrize("size", [{"heads": 0}, {"head_dim": 0}, {"length": (4, 0)}, {"length": ()}, {"layers": -1}])
def test_a_geometry_has_sizes(size):
    with pytest.raises(ZooError, match="1 or more"):
        Geometry(**{"dim": 8, "heads": 2, "kv_heads": 2, "head_dim": 4, "length": (4,), **size})
