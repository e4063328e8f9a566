"""YAML as recipes may be written: each key once, aliases that end, nothing nested or multiplied beyond reason.

YAML itself takes the second of two equal keys in silence, lets a mapping hold itself, and multiplies what a few aliases
name. A text is looked at as a stream of events, without making anything of it, before a parser reads it.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import ZooError

DEEPEST = 64
"""Levels of a recipe."""
MOST = 200_000
"""Values in it, those that aliases repeat counted each time."""
LONGEST = 400
"""Digits of a number."""
DIGITS = re.compile(r"[-+]?[0-9_]+")


class StrictYAMLError(yaml.YAMLError):
    """A text that is YAML and is refused; the message says why, and in which line."""


def refuse(reason: str, event: Any) -> StrictYAMLError:
    """The error for an event."""
    return StrictYAMLError(f"{reason} (line {event.start_mark.line + 1})")


def read_text(path: Path) -> str:
    """The text of a recipe, in UTF-8, with a byte order mark or without.

    Raises ZooError where it is in another encoding.
    """
    data = path.read_bytes()
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError("it is in UTF-16")
        return data.decode("utf-8-sig")
    except ValueError as error:
        raise ZooError(
            f"The recipe {path} is not text in UTF-8: {str(error)[:120]}.   Try:  saving it again as UTF-8"
        ) from None


class Level:
    """A mapping or a sequence that is being read.

    Args:
        event: That begins it.
    """

    def __init__(self, event: Any) -> None:
        self.mapping = isinstance(event, yaml.MappingStartEvent)
        self.anchor, self.size = event.anchor, 1
        self.keys: set[str] = set()
        self.expects_key = self.mapping


def check_yaml(text: str) -> None:
    """Raise StrictYAMLError for a text that is refused, yaml.YAMLError for one that is no YAML."""
    levels: list[Level] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        here = levels[-1] if levels else None
        size = 0
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            if here is not None and here.mapping and here.expects_key:
                raise refuse("a key is a mapping or a list, and keys are words", event)
            levels.append(Level(event))
            if len(levels) > DEEPEST:
                raise refuse(f"it is nested more than {DEEPEST} levels deep", event)
            continue
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            closed = levels.pop()
            size = closed.size
            if closed.anchor:
                sizes[closed.anchor] = size
            here = levels[-1] if levels else None
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in {level.anchor for level in levels}:
                raise refuse(f"the alias *{event.anchor} stands within what it names", event)
            if event.anchor not in sizes:
                raise refuse(f"the alias *{event.anchor} names nothing above it", event)
            size = sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            if event.anchor:
                sizes[event.anchor] = 1
            if event.implicit[0] and len(event.value) > LONGEST and DIGITS.fullmatch(event.value):
                raise refuse(f"a number has {len(event.value)} digits", event)
            if here is not None and here.mapping and here.expects_key:
                if event.value in here.keys:
                    raise refuse(f"the key {event.value[:60]!r} is written twice in one mapping", event)
                here.keys.add(event.value)
        else:
            continue
        if here is not None:
            here.size += size
            here.expects_key = here.mapping and not here.expects_key
            if here.size > MOST:
                raise refuse(f"its aliases make more than {MOST} values of it", event)
