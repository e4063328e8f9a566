"""Discovery: entry points to classes, by name, with near names, duplicates and broken plugins told apart.

Groups are `zoo.positions`, `zoo.kernels` and `zoo.extensions`; an entry point's name is its class's name, the word in
a recipe and the row in the table. First-party plugins come through the same door as anybody else's. Listing reads
metadata only; a class is imported when it is asked for, each in its own try, so a broken plugin harms nobody who does
not use it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any

from zoo.errors import ZooError, listing, near

GROUPS = {"zoo.positions": "position encoding", "zoo.kernels": "kernel", "zoo.extensions": "extension"}


@dataclass(frozen=True)
class Row:
    """One installed plugin, as its distribution's metadata describes it.

    Args:
        group: Entry-point group.
        name: The word in a recipe.
        distribution: Name of the distribution that brings it.
        version: Of the distribution.
        target: "module:Class".
    """

    group: str
    name: str
    distribution: str
    version: str
    target: str

    def asdict(self) -> dict[str, str]:
        return asdict(self)


def origin(point: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that brings an entry point."""
    return owner(point.dist) if point.dist is not None else ("unknown", "0")


@cache
def owner(distribution: Distribution) -> tuple[str, str]:
    """Its name and version, for which all of its metadata is read."""
    return distribution.name, distribution.version


@cache
def points(group: str) -> tuple[EntryPoint, ...]:
    """All entry points of a group, duplicates included, first-party first, then by name."""
    found = entry_points(group=group)
    return tuple(sorted(found, key=lambda point: (origin(point)[0] != "positionzoo", point.name.lower())))


def table() -> list[Row]:
    """A row per installed plugin of every group; imports nothing."""
    return [Row(group, point.name, *origin(point), point.value) for group in GROUPS for point in points(group)]


def names(group: str) -> list[str]:
    """The names of a group, each once."""
    return list(dict.fromkeys(point.name for point in points(group)))


def clashes() -> list[str]:
    """A sentence for each name that two distributions claim within one group."""
    sentences = []
    for group, kind in GROUPS.items():
        for name in names(group):
            owners = [" ".join(origin(point)) for point in points(group) if point.name == name]
            if len(owners) > 1:
                sentences.append(
                    f"Two {kind}s are called {name}: one comes with {' and one with '.join(owners)}. "
                    f"Uninstall one of them: pip uninstall {owners[-1].split()[0]}"
                )
    return sentences


def find(group: str, name: str) -> EntryPoint:
    """The entry point of that name; a sentence with the near names where there is none, or two."""
    found = [point for point in points(group) if point.name == name]
    if len(found) > 1:
        raise ZooError(next(line for line in clashes() if f" {name}: " in line))
    if not found:
        guess = near(name, names(group))
        hint = f" Did you mean {' or '.join(guess)}?" if guess else ""
        raise ZooError(f"No {GROUPS[group]} is called {name}.{hint} Installed: {listing(names(group))}.")
    return found[0]


@cache
def load(group: str, name: str) -> Any:
    """The class of that name, imported."""
    point = find(group, name)
    try:
        return point.load()
    except Exception as error:
        raise ZooError(
            f"The {GROUPS[group]} {name} of {' '.join(origin(point))} cannot be imported "
            f"({type(error).__name__}: {error}). "
            f"Repair or reinstall it: pip install --force-reinstall {origin(point)[0]}"
        ) from error


def broken() -> Iterator[str]:
    """Import every plugin; a line for each that fails."""
    for row in table():
        try:
            load(row.group, row.name)
        except ZooError as error:
            yield str(error)


def load_all() -> None:
    """Import every plugin so that its class is known by name; a broken one costs one line on stderr.

    Two plugins of one name are an error even if neither is asked for, since a recipe could not tell them apart.
    """
    for sentence in clashes():
        raise ZooError(sentence)
    for line in broken():
        print(f"zoo: {line}", file=sys.stderr)


def classes(group: str) -> dict[str, Any]:
    """All classes of a group that can be imported, by name."""
    found = {}
    for name in names(group):
        try:
            found[name] = load(group, name)
        except ZooError:
            continue  # `load_all` has said so, or `zoo plugins` will
    return found
