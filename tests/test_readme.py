"""The README says what is: its table is the registry's, its example is the example, its commands exist.

`python tests/test_readme.py` writes the generated parts anew.
"""

import re
from pathlib import Path

import pytest

from zoo import cli, tables

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
EXAMPLE = ROOT / "plugins" / "zoo-example"


def fenced(path: Path, language: str) -> str:
    return f"```{language}\n{path.read_text().strip()}\n```"


def parts() -> dict[str, str]:
    """What stands between <!-- name --> and <!-- /name -->."""
    return {
        "matrix": tables.markdown(),
        "example": fenced(EXAMPLE / "zoo_example.py", "python"),
        "pyproject": fenced(EXAMPLE / "pyproject.toml", "toml"),
        "exam": fenced(EXAMPLE / "test_zoo_example.py", "python"),
    }


def written(text: str, name: str) -> re.Match[str]:
    found = re.search(rf"(?<=<!-- {name} -->\n)(.*?)(?=<!-- /{name} -->)", text, re.DOTALL)
    assert found, f"the README has no place for {name}"
    return found


@pytest.mark.parametrize("name", ["matrix", "example", "pyproject", "exam"])
def test_generated_parts_are_current(name):
    said = written(README.read_text(), name)[1].strip()
    if name == "matrix":  # third-party plugins may be installed beside ours
        ours = {line.split("|")[1] for line in said.splitlines() if line.startswith("| **")}
        now = [line for line in parts()[name].splitlines() if not line.startswith("| **") or line.split("|")[1] in ours]
        assert said == "\n".join(now).strip(), "write it anew:  python tests/test_readme.py"
    else:
        assert said == parts()[name].strip(), "write it anew:  python tests/test_readme.py"


def test_paths_and_verbs_exist():
    text = README.read_text()
    for path in set(re.findall(r"\b(?:recipes|plugins|checkpoints|zoo|tests)/[\w./-]*\w", text)):
        assert (ROOT / path).exists(), path
    for verb in set(re.findall(r"^zoo (\w+)", text, re.MULTILINE)):
        assert verb in cli.TRAINER or verb in cli.OWN, verb


if __name__ == "__main__":
    page = README.read_text()
    for key, value in parts().items():
        found = written(page, key)
        page = page[: found.start()] + value.strip() + "\n" + page[found.end() :]
    README.write_text(page)
