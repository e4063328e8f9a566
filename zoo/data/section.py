"""The data section that a checkpoint stores: which of zoo's data modules it names, and what is taken of it.

Such a section is data of a file, not a request of the user. It names one of zoo's own modules, with plain arguments.
No folder is written because a file names it (`cache`), no process is started because a file counts it (`workers`).
Files and data sets that it names are opened by the Trainer's commands only, which say so before they do.
"""

from __future__ import annotations

import glob
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
from zoo.errors import ZooError, escape_controls, listing
from zoo.values import check_arguments

MODULES: dict[str, type[LightningDataModule]] = {"Text": Text, "Images": Images}
NOT_STORED = re.compile(
    r"cache.*|.*_cache|.*workers|num_proc\w*|processes|n_jobs|jobs|.*threads|.*(output|save|log|out)_?dir\w*"
)
"""Arguments that write to a folder or start processes; each command has its own default."""
FILES = ("files", "valid_files", "test_files", "tokenizer")
"""Arguments of zoo's modules that may name files."""
SYSTEM = tuple(map(Path, ("/proc", "/dev", "/sys")))
"""Folders whose files are no data."""
MOST = 10_000
"""Files of a folder that are looked at before it is opened."""
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
    taken = {name: value for name, value in arguments.items() if not NOT_STORED.fullmatch(str(name))}
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
    if dataset and (not HUB_NAME.fullmatch(str(dataset)) or Path(str(dataset)).exists() or is_packaged(str(dataset))):
        raise ZooError(
            f"{path} names the data set {dataset}, which is not the name of one on the hub. A checkpoint does not "
            "choose what is opened.   Try:  --data.dataset NAME, or --data.files FILES"
        )


def is_packaged(name: str) -> bool:
    """Whether a data set's name is that of a loader of `datasets`, which would read the current folder."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return name in _PACKAGED_DATASETS_MODULES


def check_local(word: str, path: object) -> None:
    """Raise ZooError where a word of a checkpoint names a URL, or something that is no regular file and no folder."""
    reason = None if "://" not in word and "::" not in word and "\0" not in word else "which is no local file"
    try:
        named = Path(word).expanduser()
        found = [named] if reason or named.exists() else [Path(each) for each in glob.iglob(str(named), recursive=True)]
        reason = reason or next(filter(None, map(unreadable, found)), None)
    except (OSError, ValueError, RuntimeError):
        reason = "which cannot be looked at"
    if reason is not None:
        raise ZooError(
            f"{path} names {word} as data, {reason}. A checkpoint does not choose what is opened.   "
            "Try:  --data.files FILES"
        )


def unreadable(file: Path) -> str | None:
    """Why a file that a checkpoint names is not opened; None where it is a regular one, or a folder of such."""
    whole = file.resolve()
    if any(root in (whole, *whole.parents) for root in SYSTEM) or whole == Path(whole.anchor):
        return "which is a file of the system"
    inner = sorted(whole.iterdir())[:MOST] if whole.is_dir() else []
    for each in [whole, *inner]:
        if not each.exists():
            continue
        kind = os.stat(each).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            return "which is no regular file"
    return None


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
        line = escape_controls(f"zoo: {path} names the data that are read: {listing(sources)}")
        rank_zero_only(print)(line, file=sys.stderr)


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
