"""What the parser says when a recipe or a flag does not fit: a sentence instead of a nest of unions.

jsonargparse knows exactly what was wrong and says it in the words of Python's type system. Each kind of its messages is
recognised here and said again in the user's words, with the near names; one that is not recognised is passed on whole.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import set_loader
from jsonargparse._loaders_dumpers import yaml_load
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from zoo import plugins
from zoo.checkpoints import NESTED, SLOTS
from zoo.decoder import Decoder
from zoo.errors import ZooError, listing, near
from zoo.matrix import unfit
from zoo.pipeline import Extend, FineTune
from zoo.strict_yaml import check_yaml
from zoo.trunk import Trunk
from zoo.vit import ViT

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a mapping of names to values",
    "list": "a list",
    "NoneType": "null",
}

BASES = {
    "model": "zoo.task.Task",
    "data": "lightning.pytorch.LightningDataModule",
    "schedule": "zoo.schedules.Schedule",
    "optimizer": "torch.optim.Optimizer",
    "adapter": "zoo.adapter.Adapter",
}
CLASSES = ("callbacks", "logger", "strategy", "plugins", "profiler")
"""Settings of the trainer whose values are classes of Lightning's or of anybody's."""
PLUGINS = {**SLOTS, **NESTED}
"""Settings that name a plugin, and their groups."""
SECTIONS = ("model", "data", "trainer", "config", "ckpt_path", "seed_everything")


def load_strict_yaml(text: str) -> Any:
    """YAML as jsonargparse reads it, once the text is known to be strict; words on the command line too."""
    if "\n" in text or any(char in text for char in "&*{["):
        check_yaml(text)
    return yaml_load(text)


set_loader("yaml", load_strict_yaml, exceptions=(yaml.YAMLError, ValueError, RecursionError))


class Parser(LightningArgumentParser):
    """LightningCLI's parser, its errors in a sentence or two."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a trial within a trial: whoever asked will try something else, or say it all
            super().error(message, ex)
        print(f"zoo: {said(message, self)}", file=sys.stderr)
        raise SystemExit(2)


def options(parser: LightningArgumentParser) -> Iterator[str]:
    """Every name that may stand in a recipe: of this parser, of the tasks, the data, the schedules and the plugins."""
    for action in parser._actions:
        yield action.dest
        yield action.dest.rpartition(".")[2]
    classes: list[type] = [Trainer, Decoder, ViT, Trunk, Extend, FineTune]
    for base in ("model", "schedule", "adapter", "data"):
        classes += subclasses(BASES[base])
    for group in PLUGINS.values():
        classes += plugins.classes(group).values()
    for found in classes:
        yield from parameters(found)


def parameters(plugin: type) -> list[str]:
    """The names of the arguments that build it."""
    return list(inspect.signature(plugin).parameters)


def subclasses(path: str) -> list[type]:
    """All classes known so far that derive from the one at this import path, of zoo or its plugins."""
    module, _, name = path.rpartition(".")
    base, found = getattr(importlib.import_module(module), name), []
    queue = list(base.__subclasses__())
    while queue:
        one = queue.pop(0)
        queue += one.__subclasses__()
        if not one.__module__.startswith(("lightning.", "pytorch_lightning.")):
            found.append(one)
    return found


def said(message: str, parser: LightningArgumentParser) -> str:
    """The message in the user's words."""
    keys = re.findall(r'[Kk]ey "([^"]+)":', message)
    path, word = ".".join(keys), keys[-1].rpartition(".")[2] if keys else ""
    # The innermost complaint: after the last key, up to the value that it was about.
    inner = re.split(r'[Kk]ey "[^"]+":', message)[-1]
    first = inner.strip().partition("\n")[0]
    inner = first if "Got value" in first else "".join(re.split(r"(Given value: [^\n]*)", inner)[:2])
    flat = " ".join(inner.split())

    if missing := re.search(r"File does not exist: '([^']+)'", flat):
        found = sorted(str(recipe) for recipe in Path("recipes").glob("*.yaml"))
        return f"There is no recipe at {missing[1]}. Recipes here: {listing(found)}."
    if broken := re.search(r"Problems parsing config: (.*)", flat):
        return f"The recipe cannot be read as YAML: {broken[1]}"
    if text := re.search(r"Unexpected config: (.*)", flat):
        return f"The recipe is not a mapping of sections such as model, data and trainer: {text[1][:80]}"
    for pattern in (
        r"Option '([^']+)' is not accepted",
        r"[Uu]nrecognized arguments: (\S+)",
        r"does not accept option '([^']+)'",
        r'Key "([^"]+)" is not expected',
    ):
        if stray := re.search(pattern, flat):
            name = stray[1].partition("=")[0]
            place = f" in {path}" if path and not name.startswith("--") else ""
            asked = re.search(rf"\b{name}='(\w+)'", flat)
            if name.lstrip("-").partition(".")[0] in NESTED and (owner := holder(flat)):
                return unfit(owner, asked[1] if asked else name)
            return f"No setting is called {name}{place}.{suggestion(name, parser)}  See  zoo {sys.argv[1]} --help"
    if unknown := re.search(r"Expected a dot import path string: (\S+)", flat):
        return unknown_class(word, unknown[1], flat)
    if absent := re.search(r"the following arguments are required: (\w+(?:, \w+)*)", flat):
        who = re.search(r"class_path='(?:[\w.]+\.)?(\w+)'", flat)
        flags = " ".join(f"--{path}.{name} VALUE" for name in absent[1].split(", "))
        return f"{who[1] if who else path} needs a {absent[1].replace(', ', ' and a ')}.   Try:  {flags}"
    if word in PLUGINS and (orphan := re.search(r"Dict must include a class_path .*?key='([\w.]+)'", flat)):
        group, kind = PLUGINS[word], plugins.GROUPS[PLUGINS[word]]
        return (
            f"{path}.{orphan[1]} is a setting of the {kind}, and none is named.   Try:  --{path} NAME, "
            f"one of {listing(plugins.names(group))}"
        )
    if literal := re.search(r"Expected a typing\.Literal\[(.*?)\]\. Got value: (\w+)", flat):
        names = re.findall(r"'([^']+)'", literal[1])
        near_names = near(literal[2], names)
        hint = f" Did you mean {near_names[0]}?" if near_names else ""
        return f"{path} takes one of {listing(names)}, and got {literal[2]!r}.{hint}"
    if kinds := re.findall(r"Expected an? <class '([\w.]+)'>", flat):
        words = re.findall(r"'([^']+)'", " ".join(re.findall(r"typing\.Literal\[(.*?)\]", flat)))
        what = " or ".join(dict.fromkeys([*(KINDS.get(name, name.rpartition(".")[2]) for name in kinds), *words]))
        rest = r" value: (.+?)(?:\. Got value|$)"
        value = re.search("Given" + rest, flat) or re.search("Got" + rest, flat)
        got = value[1].partition(" - Expected")[0] if value else "something else"
        if (
            set(kinds) == {"NoneType"} and not words
        ):  # no type but null is plain: the others are classes, with a mapping for each
            what = describe_class_setting(word)
        return f"{path} takes {what}, and got {'null' if got == 'None' else repr(got)}."
    return message.strip()


def buried(message: str) -> str:
    """What a class said when it refused its arguments, out of jsonargparse's list of types that were tried."""
    tried = re.search(r"Errors:\s*\n(.*?)(?=\nGiven value|\Z)", message, re.DOTALL)
    said = re.split(r"(?:^|\n)\s*- ", tried[1]) if tried else []
    types = ("Expected ", "Does not validate")  # that were tried, some within others
    return next((one.strip() for one in said if one.strip() and not one.startswith(types)), message)


def suggestion(name: str, parser: LightningArgumentParser) -> str:
    """' Did you mean ...?' for a misspelt setting, or nothing."""
    bare, dashes = name.lstrip("-"), "--" if name.startswith("--") else ""
    known = set(options(parser)) - {"help", "print_config", ""}
    guess = [] if bare in known else near(bare, known)  # what is known belongs to another class
    if "." in bare:
        head, _, tail = bare.partition(".")
        heads = [head] if head in SECTIONS else near(head, SECTIONS)[:1]
        guess = [f"{start}.{end}" for start in heads for end in near(tail, known) or [tail]]
        guess = [one for one in guess if one != bare]
    return f" Did you mean {' or '.join(dashes + one for one in guess)}?" if guess else ""


def holder(flat: str) -> type | None:
    """The plugin whose argument a message is about, which is the first that it says it got."""
    got = re.search(r"Got value: Namespace\(.*?class_path='(?:[\w.]+\.)?(\w+)'", flat)
    found = (plugins.classes(group).get(got[1]) for group in PLUGINS.values()) if got else ()
    return next(filter(None, found), None)


def describe_class_setting(word: str) -> str:
    """What a setting takes whose type is a class, or a group of settings."""
    if word in PLUGINS:
        kind = plugins.GROUPS[PLUGINS[word]]
        return f"the name of a {kind}, or a mapping of class_path and init_args, which is a mapping itself, or null"
    if word in BASES:
        return f"the name of a {word}, or a mapping of class_path and init_args, which is a mapping itself, or null"
    return "a mapping of settings to values, or null"


def unknown_class(word: str, name: str, flat: str) -> str:
    """No class of that name: the near ones and the installed ones; or it is one that does not fit."""
    if word in PLUGINS:
        try:
            plugins.load(PLUGINS[word], name)
        except ZooError as error:
            return str(error)
        if word in NESTED and (owner := holder(flat)):
            return unfit(owner, name)
    if word not in BASES and word not in PLUGINS and word not in CLASSES:
        return f"{word} takes a number, or another plain value of its type, and got {name!r}."
    if word in CLASSES:
        return f"There is no class {name} for {word}.   Try:  its import path, package.module.Class"
    names = [one.__name__ for one in subclasses(BASES[word])] if word in BASES else []
    guess = near(name, names)
    hint = f" Did you mean {' or '.join(guess)}?" if guess else ""
    return f"No {word} is called {name}.{hint} There are: {listing(names)}."
