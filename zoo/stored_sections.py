"""The model and data sections that a checkpoint stores, as the Trainer's commands take them.

What a user types, in recipes and flags, may name any class. What a file of weights says is data: its classes are looked
up among zoo's own tasks, data modules, schedules and adapters, torch's optimizers and the installed plugins, and its
arguments are plain values. Another class is asked of the user, who names it by a flag; then the arguments that the file
has for it apply.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from zoo import adapter, checkpoints, plugins, resume, schedules
from zoo.data import section as data
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.recipe import FREE, TOLD
from zoo.tasks import ImageClassifier, LanguageModel
from zoo.trunk import Trunk
from zoo.values import DEPTH, annotations_of, brief, check_arguments
from zoo.vit import ViT

TASKS: dict[str, tuple[type, type]] = {
    "zoo.decoder.Decoder": (LanguageModel, Decoder),
    "zoo.vit.ViT": (ImageClassifier, ViT),
}
"""Task and network by the network that a description names."""
SETTINGS: dict[str, type] = {
    "optimizer": torch.optim.Optimizer,
    "schedule": schedules.Schedule,
    "adapter": adapter.Adapter,
}
"""Arguments of a task that are classes but no plugins, and what they derive from."""


def read_model_section(about: Mapping[str, Any], argv: Sequence[str], path: object) -> dict[str, Any]:
    """The model section of a recipe that goes on with a checkpoint, or measures it.

    Args:
        about: The description of the checkpoint, which has a model section.
        argv: The command, its first word included, and what the user typed.
        path: The checkpoint, for messages.

    Raises ZooError where the section needs a class that the user has to name, or is damaged.
    """
    section = about["asked"]["model"]
    if not isinstance(section, Mapping) or not isinstance(section.get("init_args") or {}, Mapping):
        raise ZooError(f"{path} is damaged: its model section is no mapping.")
    fits = argv[0] == "fit"
    checkpoints.check_installed(about, path)
    task, network = task_of(about, path)
    stored, typed = str(section.get("class_path")), typed_class(argv, "model")
    other = None if is_own(stored, task) else typed
    if other is not None and fits and not is_class(other, stored):
        other = None  # whatever the user names is built from the recipe, as far as it takes these settings
    elif fits and other is None and not is_own(stored, task):
        raise ask_for_class(path, "task", stored, "model")
    owner = import_class(other) if other is not None and fits else task
    return {
        "class_path": other if owner is not task else class_path(task),
        "init_args": read_task_arguments(section.get("init_args") or {}, owner, network, argv, path),
    }


def read_weights_section(about: Mapping[str, Any], path: object) -> dict[str, Any]:
    """The model section of a recipe that builds the network of a checkpoint.

    Args:
        about: The description of the checkpoint.
        path: The checkpoint, for messages.
    """
    checkpoints.check_installed(about, path)
    asked = about.get("asked")
    section = (asked.get("model") if isinstance(asked, Mapping) else None) or {}
    task, network = task_of(about, path)
    own = {key: value for key, value in about["network"]["init_args"].items() if key not in FREE | TOLD}
    known = annotations_of(task, network, Trunk)
    rest = {key: value for key, value in (section.get("init_args") or {}).items() if key not in FREE and key in known}
    return {
        "class_path": class_path(task),
        "init_args": read_task_arguments({**rest, **own}, task, network, ["fit"], path),
    }


def read_data_section(about: Mapping[str, Any], argv: Sequence[str], path: object) -> dict[str, Any] | None:
    """The data section of a recipe that goes on with a checkpoint, or measures it; None where it stores none.

    What it would have opened is printed, unless the user names other data.

    Args:
        about: The description of the checkpoint.
        argv: The command, its first word included, and what the user typed.
        path: The checkpoint, for messages.

    Raises ZooError where the data module is another program's and the user has not named it, or where the section
    names what is no local file.
    """
    section = data.stored_section(about)
    if not section:
        return None
    module, stored = data.own_module(section), str(section.get("class_path"))
    typed = typed_class(argv, "data")
    if module is None and typed is None:
        raise ask_for_class(path, "data module", stored, "data")
    if typed is not None and not (module is not None and is_own(typed, module)):
        if not is_class(typed, stored):
            return None
        return {"class_path": typed, "init_args": read_foreign_data(section, import_class(typed), argv, path)}
    assert module is not None
    arguments = data.plain_arguments(section, module, path)
    if resume.asked(argv, "data.files") is not None or resume.asked(argv, "data.dataset") is not None:
        arguments = {key: value for key, value in arguments.items() if key not in ("files", "dataset", "subset")}
    shown = {key: value for key, value in arguments.items() if resume.asked(argv, f"data.{key}") is None}
    if about.get("tokenizer"):  # which is the one that is used
        shown.pop("tokenizer", None)
        arguments.pop("tokenizer", None)
    data.announce_sources(shown, path)
    return {"class_path": class_path(module), "init_args": arguments}


def read_foreign_data(section: Mapping[str, Any], module: type, argv: Sequence[str], path: object) -> dict[str, Any]:
    """The arguments that a checkpoint stores for a data module that the user has named; printed where they are text."""
    arguments = data.plain_arguments(section, module, path)
    arguments = {key: value for key, value in arguments.items() if resume.asked(argv, f"data.{key}") is None}
    for word in data.text_strings(list(arguments.values())):
        data.check_local(word, path)
    shown = [f"{key} {brief(value)}" for key, value in arguments.items() if any(data.text_strings(value))]
    if shown:
        resume.say(f"{path} has settings of {module.__name__}: {', '.join(shown)}")
    return arguments


def read_task_arguments(
    arguments: Mapping[str, Any], owner: type, network: type, argv: Sequence[str], path: object
) -> dict[str, Any]:
    """The stored arguments of a task: plugins as descriptions, classes by import path, all else plain values."""
    found = dict(arguments)
    found.pop("weights", None)  # a path, which a file does not choose
    where = f"The model section of {path}"
    slots = checkpoints.SLOTS
    for name, group in slots.items():
        if isinstance(node := found.get(name), str):
            node = {"class_path": node}
        if node is not None:
            found[name] = read_plugin(node, group, where)
    for name, base in SETTINGS.items():
        if (node := found.pop(name, None)) is not None:
            read = read_setting(node, name, base, argv, path)
            found |= {name: read} if read is not None else {}
    check_arguments(found, (owner, network, Trunk), where, (*slots, *SETTINGS))
    return found


def read_plugin(node: Any, group: str, where: str, depth: int = 1) -> dict[str, Any]:
    """The description of an installed plugin, with the import path of its class.

    Raises ZooError where it names none, or an argument is neither a plain value nor a plugin.
    """
    arguments = node.get("init_args") or {} if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping) or not isinstance(arguments, Mapping) or depth > DEPTH:
        raise ZooError(f"{where} is damaged: {brief(node)} does not describe a {plugins.GROUPS[group]}.")
    name = str(node.get("class_path", "")).rpartition(".")[2]
    owner = plugins.load(group, name)
    check_arguments(arguments, (owner,), f"{where}, {name},", checkpoints.NESTED)
    inner = {
        key: read_plugin(arguments[key], nested, where, depth + 1)
        for key, nested in checkpoints.NESTED.items()
        if arguments.get(key) is not None
    }
    return {"class_path": class_path(owner), "init_args": {**arguments, **inner}}


def read_setting(node: Any, name: str, base: type, argv: Sequence[str], path: object) -> dict[str, Any] | None:
    """Optimizer, schedule or adapter of a stored model section; None where the command does without.

    Raises ZooError where `fit` needs a class that the user has not named.
    """
    fits, where = argv[0] == "fit", f"The {name} of {path}"
    if not isinstance(node, Mapping) or not isinstance(node.get("init_args") or {}, Mapping):
        raise ZooError(f"{where} is damaged: {brief(node)} is no description.")
    stored, arguments = str(node.get("class_path", "")), dict(node.get("init_args") or {})
    owner = own_setting(stored, base)
    typed = typed_class(argv, f"model.{name}") if fits else None
    if owner is None and not fits:
        return None
    if typed is not None and (owner is None or not is_class(typed, class_path(owner))):
        if not is_class(typed, stored):
            return None  # another one, which the recipe describes
        owner = import_class(typed)
    if owner is None:
        raise ask_for_class(path, name, stored, f"model.{name}")
    check_arguments(arguments, (owner,), where)
    return {"class_path": named_path(owner), "init_args": arguments}


def own_setting(path: str, base: type) -> type | None:
    """One of torch's optimizers or of zoo's own classes, by the import path that a file has; None for another."""
    module, _, name = path.rpartition(".")
    home: Any = torch.optim if base is torch.optim.Optimizer else schedules if base is schedules.Schedule else adapter
    here = home.__name__
    found = getattr(home, name, None) if module in ("", here) or module.startswith(f"{here}.") else None
    is_theirs = not isinstance(found, type) or not issubclass(found, base)
    return None if is_theirs or f"{found.__module__}.".partition(f"{here}.")[0] else found


def task_of(about: Mapping[str, Any], path: object) -> tuple[type, type]:
    """zoo's task for the network of a description, and that network."""
    network = about.get("network")
    name = network.get("class_path") if isinstance(network, Mapping) else None
    if not isinstance(name, str) or name not in TASKS or not isinstance(network.get("init_args"), Mapping):  # type: ignore[union-attr]
        raise ZooError(f"{path} is damaged: it does not describe a network of zoo's.")
    return TASKS[name]


def is_own(path: str, owner: type) -> bool:
    """Whether an import path, or a bare name, is meant for this class of zoo's."""
    module, _, name = path.rpartition(".")
    return name == owner.__name__ and (not module or module.split(".")[0] == "zoo")


def class_path(owner: type) -> str:
    """The import path of a class."""
    return f"{owner.__module__}.{owner.__qualname__}"


def named_path(owner: type) -> str:
    """The import path by which a recipe names a class: of torch's optimizers the short one."""
    short = getattr(torch.optim, owner.__name__, None) is owner
    return f"torch.optim.{owner.__name__}" if short else class_path(owner)


def typed_class(argv: Sequence[str], setting: str) -> str | None:
    """The class that the user names for a setting, in recipes or by a flag; the last of them, None where there is none.

    Args:
        argv: What the user typed.
        setting: Such as `data` or `model.optimizer`.
    """
    *sections, last = setting.split(".")
    spellings = {setting, ".".join([*sections, "init_args", last])}
    found: Any = None
    for flag, value in resume.given(argv):
        if flag in spellings or flag.removesuffix(".class_path") in spellings:
            found = value
        elif flag in ("config", "c") and Path(value).is_file():
            node = resume.asked(["--config", value], setting)
            found = node.get("class_path", found) if isinstance(node, Mapping) else node or found
    return str(found) if found not in (None, "null") else None


def import_class(path: str) -> type:
    """The class at an import path that the user typed."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ZooError(
            f"There is no class {path} to import.   Try:  its whole import path, package.module.Class"
        ) from None
    if not isinstance(found, type):
        raise ZooError(f"{path} is no class.")
    return found


def is_class(typed: str, stored: str) -> bool:
    """Whether a class that the user typed is the one that a file has stored."""
    if typed == stored:
        return True
    if typed.rpartition(".")[2] != stored.rpartition(".")[2]:
        return False
    if "." not in typed:
        return False  # a bare name, which is one of the classes that the parser knows
    return class_path(import_class(typed)) == stored


def ask_for_class(path: object, kind: str, stored: str, flag: str) -> ZooError:
    """What is said where a checkpoint would need a class that is not zoo's."""
    return ZooError(
        f"{path} was trained with the {kind} {stored}, which is not zoo's own, and a checkpoint does not choose what "
        f"runs. Where you trust that class, name it yourself:  --{flag} CLASS"
    )
