"""The data section that a checkpoint stores: which of zoo's data modules it names, and what is taken of it.

Such a section is data of a file, not a request of the user. It names one of zoo's own modules, with plain arguments.
No folder is written because a file names it (`cache`), no process is started because a file counts it (`workers`).
Files and data sets that it names are opened by the Trainer's commands only, which say so before they do.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only

from zoo.data.images import Images
from zoo.data.text import Text
from zoo.errors import ZooError, listing
from zoo.values import check_arguments

MODULES: dict[str, type[LightningDataModule]] = {"Text": Text, "Images": Images}
NOT_STORED = frozenset({"cache", "cache_dir", "workers", "num_workers", "num_proc", "processes"})
"""Arguments that write to a folder or start processes; each command has its own default."""
FILES = ("files", "valid_files", "test_files", "tokenizer")
"""Arguments of zoo's modules that may name files."""
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def stored_section(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data section of a description; empty where there is none."""
    asked = about.get("asked")
    section = asked.get("data") if isinstance(asked, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def own_module(section: Mapping[str, Any]) -> type[LightningDataModule] | None:
    """The one of zoo's data modules that a section names; None where it names another class."""
    module, _, name = str(section.get("class_path", "")).rpartition(".")
    return MODULES.get(name) if not module or module.split(".")[0] == "zoo" else None


def plain_arguments(section: Mapping[str, Any], module: type, path: object) -> dict[str, Any]:
    """The arguments of a stored section, without those that write or start processes.

    Args:
        section: The section.
        module: The data module, which says of what type they are.
        path: The checkpoint, for messages.

    Raises ZooError where one is no plain value of its type.
    """
    arguments = section.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        raise ZooError(f"{path} is damaged: the arguments of its data section are not a mapping.")
    taken = {name: value for name, value in arguments.items() if name not in NOT_STORED}
    check_arguments(taken, (module,), f"The data section of {path}")
    return taken


def named_files(arguments: Mapping[str, Any]) -> list[str]:
    """Files, folders and globs that the arguments of one of zoo's modules name."""
    found = list[str]()
    for name in FILES:
        value = arguments.get(name)
        words = value if isinstance(value, list | tuple) else [value] if value else []
        found += [str(word) for word in words if name != "tokenizer" or is_path(str(word))]
    return found


def is_path(word: str) -> bool:
    """Whether a tokenizer is given as a file and not by name."""
    return "/" in word or "\\" in word or word.endswith(".tiktoken") or word.startswith("~")


def named_sources(arguments: Mapping[str, Any]) -> list[str]:
    """All that a stored section would have opened: files, and a data set of the hub."""
    dataset = arguments.get("dataset")
    return [*named_files(arguments), *([f"the data set {dataset}"] if dataset else [])]


def check_sources(arguments: Mapping[str, Any], path: object) -> None:
    """Raise ZooError where a stored section names anything but local regular files, folders of them, or a hub's name.

    Args:
        arguments: Of one of zoo's modules.
        path: The checkpoint, for messages.
    """
    for word in named_files(arguments):
        check_local(word, path)
    dataset = arguments.get("dataset")
    if dataset and (not HUB_NAME.fullmatch(str(dataset)) or Path(str(dataset)).exists()):
        raise ZooError(
            f"{path} names the data set {dataset}, which is not the name of one on the hub. A checkpoint does not "
            "choose what is opened.   Try:  --data.dataset NAME, or --data.files FILES"
        )


def check_local(word: str, path: object) -> None:
    """Raise ZooError where a word of a checkpoint names a URL, or something that is no regular file and no folder."""
    here = Path(word).expanduser()
    try:
        kind = os.stat(here).st_mode
    except (OSError, ValueError):
        kind = None  # a glob, or not there: whoever opens it says so
    if "://" in word or "::" in word or "\0" in word:
        reason = "which is no local file"
    elif kind is not None and not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        reason = "which is no regular file"
    elif Path("/proc") in here.absolute().parents or Path("/dev") in here.absolute().parents:
        reason = "which is a file of the system"
    else:
        return
    raise ZooError(
        f"{path} names {word} as data, {reason}. A checkpoint does not choose what is opened.   "
        "Try:  --data.files FILES"
    )


def text_strings(value: Any) -> Iterator[str]:
    """All strings within a plain value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from text_strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from text_strings(each)


def announce_sources(arguments: Mapping[str, Any], path: object) -> None:
    """Check what a stored section would have opened, and print it.

    Args:
        arguments: Of one of zoo's modules.
        path: The checkpoint, for messages.

    Raises ZooError as `check_sources` does.
    """
    check_sources(arguments, path)
    if sources := named_sources(arguments):
        rank_zero_only(print)(f"zoo: {path} names the data that are read: {listing(sources)}", file=sys.stderr)


def refuse_sources(arguments: Mapping[str, Any], path: object) -> None:
    """Raise ZooError where a stored section names files or a data set, for commands that open none.

    Args:
        arguments: Of one of zoo's modules.
        path: The checkpoint, for messages.
    """
    if sources := named_sources(arguments):
        raise ZooError(
            f"{path} was trained on {listing(sources[:3])}{', ...' if len(sources) > 3 else ''}. Only fit, validate, "
            "test and predict open what a checkpoint names.   Try:  --files with the same files, of which then only "
            "what its run held out is read, or with others"
        )
