"""From which checkpoint a run starts or goes on: decided from flags, recipes and folders before the parser reads them.

The checkpoint tells the parser's defaults, so it has to be known first. `--ckpt_path last` takes the newest checkpoint
under the run's folder that is whole, `auto` does the same and begins a run where there is none, so that a job that was
taken off its machine is simply started again. Age is that of the file, for a ZeRO directory that of its file `latest`,
which is written when all else is there. What is newer but not whole is passed over, and said.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from zoo import checkpoints, lock
from zoo.checkpoints import lightning, zero
from zoo.errors import ZooError, escape_controls
from zoo.limits import reporting_damage
from zoo.strict_yaml import check_yaml, read_text

FOLDER = "runs"
"""Where runs go whose recipe does not say."""


def given(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every `--name value` and `--name=value`, in order."""
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name.startswith("-") and equals:
            yield name.lstrip("-"), value
        elif name.startswith("-") and index + 1 < len(argv):
            yield name.lstrip("-"), argv[index + 1]


def asked(argv: Sequence[str], name: str) -> Any:
    """What flags and recipes say for a setting, the last of them; None where they say nothing."""
    *sections, last = name.split(".")
    spellings = (name, ".".join([*sections, "init_args", last]))
    found = None
    for flag, value in given(argv):
        if flag in spellings:
            found = value
        if flag in ("config", "c") and Path(value).is_file():
            try:
                text = read_text(Path(value))
                check_yaml(text)
                node = yaml.safe_load(text) or {}
                for section in sections:
                    node = node.get(section) or {}
                found = (node.get("init_args") or {}).get(last, node.get(last, found))
            except (ZooError, yaml.YAMLError, AttributeError, ValueError, RecursionError):
                return None  # which the parser tells better
    return None if found in (None, "null") else found


def is_set(argv: Sequence[str], name: str) -> bool:
    """Whether a flag without a value, or with `true`, is given, or a recipe says true."""
    alone = any(
        word == f"--{name}" and (index + 1 == len(argv) or argv[index + 1].startswith("-"))
        for index, word in enumerate(argv)
    )
    return alone or str(asked(argv, name)).lower() == "true"


def claim_folder(root: Path, *, unlock: bool = False) -> None:
    """Hold the lock on the folder of a run, in its first process; ZooError names the run that holds it otherwise."""
    if lock.is_first_process() and "://" not in str(root):
        lock.acquire_lock(root, unlock=unlock)


def claim_run(trainer: Trainer, *, unlock: bool = False) -> None:
    """Hold the locks on all folders that a run writes into, and remove what dead runs left unfinished there."""
    if not lock.is_first_process() or getattr(trainer, "fast_dev_run", False):
        return
    keepers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    if not (keepers or trainer.loggers):
        return
    root = Path(trainer.default_root_dir)
    claim_folder(root, unlock=unlock)
    others = [each.dirpath for each in keepers] + [getattr(each, "log_dir", None) for each in trainer.loggers]
    folders = [Path(each) for each in others if isinstance(each, str | Path) and "://" not in str(each)]
    for folder in folders:
        if not folder.resolve().is_relative_to(root.resolve()):
            claim_folder(folder, unlock=unlock)
    logs = [*folders, root, *root.glob("lightning_logs/*/")]
    for folder in [*logs, *(each / name for each in logs for name in ("checkpoints", "model"))]:
        lock.remove_left_overs(folder, earlier=True)


def staged(argv: Sequence[str]) -> bool:
    """Whether a recipe in stages is asked for, which finds its place by itself."""
    return argv[0] == "fit" and bool(asked(argv, "extend") or (asked(argv, "stages") or "all") != "all")


def chosen(argv: Sequence[str]) -> tuple[str | None, dict[str, Any] | None]:
    """The checkpoint that is continued, or measured, and what it says of itself; the verb is the first word."""
    word = asked(argv, "ckpt_path")
    if word in ("best", "hpc", "registry"):
        raise ZooError(f"--ckpt_path takes the path of a checkpoint, last or auto, and got {word}.")
    if word not in ("last", "auto"):
        return word, stored(word, argv[0])
    if staged(argv):
        return (None if word == "auto" else word), None
    root = Path(asked(argv, "trainer.default_root_dir") or FOLDER)
    if argv[0] == "fit" and root.is_dir():  # before the choice, so that another run saves nothing meanwhile
        claim_folder(root, unlock=is_set(argv, "unlock"))
    if path := newest(root, argv[0]):
        about = whole(path, argv[0])
        steps = (about.get("trained") or {}).get("steps")
        kind = "run goes on from" if argv[0] == "fit" else "checkpoint is"
        say(f"the {kind} {path}" + (f", after {steps} steps" if steps is not None else ""))
        return str(path), about
    if word == "last":
        raise ZooError(
            f"There is no whole checkpoint under {root}, the folder of this run.   "
            "Try:  --ckpt_path auto, which begins it then, or --trainer.default_root_dir FOLDER"
        )
    say(f"there is no checkpoint under {root}: the run starts from the beginning")
    return None, None


def newest(root: Path, verb: str = "fit") -> Path | None:
    """The newest checkpoint under a folder that is whole; those passed over for it are named."""
    for path in candidates(root):
        try:
            whole(path, verb)
        except ZooError as error:
            say(f"{path} is passed over: {str(error).partition('   Try:')[0]}")
        else:
            return path
    return None


def candidates(root: Path) -> list[Path]:
    """What a run saved under its folder, or was saving, newest first; not what runs in folders below have saved."""
    found: dict[Path, float] = {}
    for folder, below, files in os.walk(root):
        for name in [*below, *files]:
            path = Path(folder) / name
            if name.endswith((".ckpt", ".ckpt.part")) or (name.startswith(".") and name.endswith(".part")):
                mark = path / "latest" if (path / "latest").is_file() else path
                found[path] = mark.stat().st_mtime if mark.exists() else 0.0
        inner = Path(folder) != root
        below[:] = [
            name
            for name in below
            if Path(folder, name) not in found
            and not Path(folder, name, "pipeline.json").is_file()
            and not (inner and name == "lightning_logs")
        ]
    # Of two of the same moment the one by its lasting name.
    return sorted(found, key=lambda path: (found[path], path.name == "last.ckpt"), reverse=True)


def whole(path: Path, verb: str) -> dict[str, Any]:
    """What a checkpoint says of itself; ZooError where it is not whole, or nothing can be continued from it."""
    if path.name.endswith(".part") or (path.is_dir() and not (path / "latest").is_file()):
        raise ZooError("a run was stopped while it was being written.")
    return checkpoints.listed(path).about if path.is_dir() else stored(str(path), verb) or {}


def stored(path: str | None, verb: str) -> dict[str, Any] | None:
    """What a checkpoint says of itself, where a path names one."""
    if path is None or path == "null":
        return None
    if Path(path).is_dir() and zero.holds(Path(path)):
        return checkpoints.listed(path).about  # which looks at the files before DeepSpeed opens them
    if Path(path).is_dir():
        raise ZooError(
            f"{path} holds a model and no run, and --ckpt_path takes a run's checkpoint. "
            f"Try:  zoo evaluate {path}, or  zoo fit --model.weights {path}"
        )
    content = lightning.load(path)
    with reporting_damage(path):
        shapes = [each.shape for each in lightning.own(content["state_dict"]).values()]
        about = checkpoints.checked(lightning.told(content, Path(path)), shapes, Path(path))
    if "optimizer_states" not in content and verb == "fit":
        raise ZooError(
            f"{path} has no optimizer state, so a run cannot be continued from it. "
            f"Start one from its weights:  --model.weights {path}"
        )
    return about


def again(argv: Sequence[str], path: Path) -> str:
    """The command that continues a run which was started with these words."""
    words, rest = [], list(argv)
    if not staged(argv) and asked(argv, "ckpt_path") != "auto":
        while rest:
            word = rest.pop(0)
            if word == "--ckpt_path":
                rest[:1] = []
            elif not word.startswith("--ckpt_path="):
                words.append(word)
        rest = ["--ckpt_path", str(path)]
    return shlex.join(["zoo", *words, *rest])


@contextmanager
def reporting_interruptions(argv: Sequence[str]) -> Iterator[None]:
    """Say what to do where a disk is full; end with status 130 where Lightning has ended a run for Ctrl-C."""
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            end.code = 130
        raise
    except Exception as error:
        if isinstance(error, ZooError) or not lock.is_disk_full(error):
            raise
        found = lock.find_os_error(error)
        assert found is not None
        where = found.filename or f"a file under {asked(argv, 'trainer.default_root_dir') or FOLDER}"
        more = f"   Make room, and go on:  {again(argv, Path('auto'))}" if argv[0] == "fit" else ""
        raise ZooError(
            f"{where} was not written: {found.strerror}. What was saved before is as it was.{more}"
        ) from error


@rank_zero_only
def say(line: str) -> None:
    """One line on stderr, from the first process."""
    print(f"zoo: {escape_controls(line)}", file=sys.stderr)
