"""Writing an extended checkpoint: whole or not at all, and its weights by a link where the file system has one.

Everything is made under a hidden name beside the target, flushed to the disk and renamed. What stood there before is
moved aside only then, and removed when the new one is in its place. A hard link shares the parent's bytes; nothing here
ever writes into a file of weights that exists, so neither harms the other.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo import checkpoints
from zoo.checkpoints import folder, lightning
from zoo.checkpoints.stored import Stored
from zoo.errors import ZooError, listing
from zoo.extend.rewrite import Plan
from zoo.hub import files
from zoo.hub import folder as hub
from zoo.lengths import short

SUFFIX = ".ckpt"
CLONE = 0x40049409
"""The ioctl that makes a file of another's blocks, where the file system can (FICLONE)."""


def usual(plan: Plan) -> Path:
    """The name of the result where none is given: beside the source, with the length at the end."""
    path, step = Path(os.path.abspath(plan.source.path)), plan.step
    stem = path.name.removesuffix(SUFFIX)
    if len(plan.about["extended"]["chain"]) > 1:
        stem = stem.removesuffix(f"-{short(step['from'])}")
    return path.with_name(f"{stem}-{short(step['to'])}{SUFFIX * path.name.endswith(SUFFIX)}")


def free(out: Path, source: Path, overwrite: bool) -> None:
    """Raise ZooError where the result may not stand."""
    here, there = out.resolve(), source.resolve()
    if here == there or there in here.parents or here in there.parents:
        how = (
            "holds the checkpoint that is extended"
            if here in there.parents
            else "is the checkpoint that is extended, or inside it"
        )
        raise ZooError(f"{out} {how}.   Try:  --out another path")
    parent = next(path for path in here.parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ZooError(f"{out} cannot be written: {parent} is no folder that takes files.   Try:  --out another path")
    if not (out.exists() or out.is_symlink()):
        return
    if not overwrite:
        raise ZooError(f"{out} exists.   Try:  --overwrite, or --out another path")
    single = out.name.endswith(SUFFIX)
    held = (out / folder.CONFIG).is_file() and ((out / folder.WEIGHTS).is_file() or (out / folder.HUB).is_dir())
    if single != out.is_file() or not (single or held):
        raise ZooError(f"{out} is no checkpoint{' file' * single}, and --overwrite replaces those only.")
    own = (folder.CONFIG, folder.WEIGHTS, folder.ADDED, folder.TOKENIZER, folder.CARD, folder.HUB)
    others = [] if single else [path.name for path in out.iterdir() if path.name not in own and path.suffix != ".png"]
    if others:
        raise ZooError(
            f"{out} holds {listing(sorted(others)[:3])} too, which --overwrite would delete. Move that first."
        )


def write(plan: Plan, out: Path, card: Callable[[str], str]) -> str:
    """Write the result, and say how its weights came there: hard link, reflink, copy or conversion.

    Args:
        plan: What to write.
        out: Where: a Lightning checkpoint if it ends in .ckpt, else a folder.
        card: Makes the README of a folder of how the weights came.
    """
    source = plan.source
    weights = {name: stored for name, stored in source.weights.items() if name not in plan.dropped}
    weights |= {name: Stored.of(tensor) for name, tensor in plan.added.items()}
    with whole(out) as beside:
        if out.name.endswith(SUFFIX):
            lightning.write(beside, plan.about, weights, source.run)
        elif checkpoints.form(source.path) in (folder, hub):
            return linked(plan, weights, beside, card)
        else:
            folder.write(beside, plan.about, weights, card("conversion"))
    return "conversion"


def linked(plan: Plan, weights: Mapping[str, Stored], beside: Path, card: Callable[[str], str]) -> str:
    """Make a folder of a folder: its file of weights under another name, and beside it what that does not hold."""
    source = plan.source
    beside.mkdir()
    first, how = kept(source.path, beside)
    first |= {same: first[name] for same, name in source.tied.items() if name in first}
    added = {name: stored for name, stored in weights.items() if first.get(name) != stored}
    second = source.path / folder.ADDED
    recorded = folder.recorded_checksums(source.path)
    linked_files = [str(path.relative_to(beside)) for path in beside.rglob("*") if path.suffix in files.SUFFIXES]
    checksums = {name: recorded.get(name, folder.UNRECORDED) for name in linked_files}
    if added and second.is_file() and added == folder.header(second):
        clone(second, beside / folder.ADDED)
        checksums[folder.ADDED] = recorded.get(folder.ADDED, folder.UNRECORDED)
    elif added:
        checksums[folder.ADDED] = folder.pack(beside / folder.ADDED, added)
    notes = {
        "tied": source.tied,
        "added": folder.ADDED if added else None,
        "dropped": sorted(first.keys() - weights.keys()),
        "checksums": dict(sorted(checksums.items())),
    }
    folder.describe(beside, {**plan.about, **notes}, card(how))
    return how


def kept(source: Path, beside: Path) -> tuple[dict[str, Stored], str]:
    """Make the weights of a folder those of another too: where they lie, and how they came there."""
    if (source / folder.WEIGHTS).is_file() and checkpoints.form(source) is folder:
        return folder.header(source / folder.WEIGHTS), clone(source / folder.WEIGHTS, beside / folder.WEIGHTS)
    whole = source if checkpoints.form(source) is hub else source / folder.HUB
    (beside / folder.HUB).mkdir()
    weighty = files.weight_files(whole)
    how = {clone(path, beside / folder.HUB / path.name) for path in weighty if path.suffix in files.SUFFIXES}
    small = [*(path for path in weighty if path.suffix not in files.SUFFIXES), *files.companion_files(whole)]
    for path in small:  # people edit these in place
        shutil.copyfile(path, beside / folder.HUB / path.name)
    files.tell_left(whole, [*weighty, *small])
    return files.weights(whole), listing(sorted(how))


def clone(source: Path, target: Path) -> str:
    """The same bytes under another name, by the cheapest way that the file system has."""
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        with source.open("rb") as old, target.open("wb") as new:
            try:
                fcntl.ioctl(new.fileno(), CLONE, old.fileno())
                return "reflink"
            except OSError:
                pass
        shutil.copyfile(source, target)
        return "copy"
    return "hard link"


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A name beside `out` for what is written; it takes its place when all is on the disk, and else is removed."""
    target = Path(os.path.realpath(out))
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        for path in [*beside.rglob("*"), beside] if beside.is_dir() else [beside]:
            flush(path)
        replace(beside, target)
        flush(target.parent)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise ZooError(f"{out} was not written: {reason}. What was there before is as it was.") from error
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            with suppress(OSError):  # there may be none, nor a folder for one
                beside.unlink()


def flush(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def replace(new: Path, target: Path) -> None:
    """Rename; a folder that stands there is moved aside before, and put back should that fail."""
    if not target.is_dir():
        os.replace(new, target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
