"""Recipes that YAML would read in another way than they are meant, or that would never end, are refused by line."""

import time

import pytest
import yaml

from zoo.errors import ZooError
from zoo.recipe import check_recipe, refuse_nulls
from zoo.resume import asked
from zoo.strict_yaml import StrictYAMLError, check_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model: 1\nmodel: 2\n", r"the key 'model' is written twice in one mapping \(line 2\)"),
        ("trainer: {max_steps: 1, max_steps: 2}\n", "'max_steps' is written twice"),
        ("a: &a\n  <<: *a\n", "stands within what it names"),
        ("a: &a [1, *a]\n", "stands within what it names"),
        ("<<: *self\n", "names nothing above it"),
        (BOMB, "its aliases make more than"),
        ("[" * 5000, "levels deep"),
        ("a: " + "9" * 5000, "a number has 5000 digits"),
        ("? [1]\n: 2\n", "keys are words"),
    ],
)
def test_what_is_refused(text, reason):
    start = time.monotonic()
    with pytest.raises(StrictYAMLError, match=reason):
        check_yaml(text)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "text",
    [
        "model: {a: 1}\ndata: {a: 1}\n",
        "a: &x {b: 1}\nc: {<<: *x, b: 2}\n",
        "a: &x [1]\nb: [*x, *x]\n",
        "- {a: 1}\n- {a: 2}\n",
        "",
        "x: '" + "9" * 5000 + "'\n",
    ],
)
def test_what_is_read(text):
    check_yaml(text)
    yaml.safe_load(text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"trainer: [1]\n", "The section trainer .* is \\[1\\]"),
        (b"data: 5\n", "The section data"),
        ("model: \u00e4\n".encode("latin-1"), "not text in UTF-8"),
        ("model: LanguageModel\n".encode("utf-16"), "it is in UTF-16"),
        (b"- a\n", "not a mapping of sections"),
        (b"5: a\n", "keys are words"),
        (b"model: {\n", "cannot be read as YAML"),
    ],
)
def test_recipes_that_are_refused(content, reason, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ZooError, match=reason):
        check_recipe(tmp_path / "recipe.yaml")
    assert asked(["--config", str(tmp_path / "recipe.yaml")], "model.weights") is None


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbfmodel: {weights: here}\n")
    check_recipe(tmp_path / "recipe.yaml")
    assert asked(["--config", str(tmp_path / "recipe.yaml")], "model.weights") == "here"


def test_null_is_refused_where_a_number_is_wanted():
    class Owner:
        def __init__(self, steps: int = 1, rate: float | None = None):
            pass

    refuse_nulls({"steps": 2, "rate": None}, (Owner,), "trainer")
    with pytest.raises(ZooError, match=r"trainer\.steps takes a whole number, and got null"):
        refuse_nulls({"steps": None}, (Owner,), "trainer")
