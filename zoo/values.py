"""What a file of weights may say: plain values of the annotated types, and nodes that name installed plugins.

A description is data. The classes that it names are looked up among the installed plugins, by name, and every argument
has to be a plain value (null, boolean, number, string, list, mapping) of a type that the class declares for it. A
string for an argument that could also be a class or a function is refused, because whoever parses it would import it.
"""

from __future__ import annotations

import collections.abc
import enum
import inspect
import os
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from zoo.errors import ZooError

DEPTH = 4
"""Plugins that may stand within each other."""
SEQUENCES = (
    *(list, tuple, set, frozenset),
    *(collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection, collections.abc.Set),
)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


class Unresolved:
    """Stands for an annotation that only another parser may be able to resolve: a string is refused for it."""


@cache
def annotations_of(*classes: type) -> dict[str, Any]:
    """The annotations of the arguments that build these classes, by argument.

    A class that passes keywords on (`**kwargs`) has the arguments of its base classes too. Earlier classes win. An
    argument without an annotation has `Any`, and one whose annotation cannot be resolved has `Unresolved`.
    """
    found: dict[str, Any] = {}
    for owner in classes:
        for each in inspect.getmro(owner):
            if "__init__" not in vars(each) or each is object:
                continue
            parameters = inspect.signature(each.__init__).parameters  # type: ignore[misc]
            try:
                hints = typing.get_type_hints(each.__init__)  # type: ignore[misc]
            except Exception:  # a name that is imported for type checkers only
                hints = dict.fromkeys(parameters, Unresolved)
            for one in parameters.values():
                if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) and one.name != "self":
                    found.setdefault(one.name, hints.get(one.name, Any))
            if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
                break
    return found


def check_arguments(
    arguments: Mapping[str, Any], classes: Iterable[type], where: str, plugins: Iterable[str] = ()
) -> None:
    """Raise ZooError for an argument that the classes do not have, or that is no plain value of a type they declare.

    Args:
        arguments: By name.
        classes: What they build. Those of the first class come before those of the next.
        where: What is said to have the arguments, for the message.
        plugins: Arguments that hold plugins, which are not looked at here.
    """
    known = annotations_of(*classes)
    for name, value in arguments.items():
        if name not in known:
            raise ZooError(f"{where} has a setting that is not known here: {str(name)[:80]}.")
        if name in plugins and (isinstance(value, Mapping) or value is None):
            continue
        if not is_plain(value, known[name]):
            raise ZooError(
                f"{where} says {name}: {brief(value)}, which is no plain value of the type {spelled(known[name])}."
            )


def brief(value: Any) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or a deep nest
        return f"a value of the type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def spelled(hint: Any) -> str:
    """A type for a message."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def is_plain(value: Any, hint: Any) -> bool:
    """Whether a value is a plain one of an annotated type, so that nothing is imported or called to make it."""
    hint = unwrapped(hint)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        members = [unwrapped(each) for each in inner]
        if isinstance(value, str) and any(may_import(each) for each in members):
            return False
        written_out = any((get_origin(each) or each) in (*SEQUENCES, *MAPPINGS) for each in members)
        if isinstance(value, str) and written_out and not is_inert(value):
            return False  # a parser may take it for a list or a mapping
        return any(is_plain(value, each) for each in members)
    if value is None:
        return hint in (None, type(None), Any, object, Unresolved)
    if hint is Unresolved:
        return isinstance(value, bool | int | float)
    if hint in (Any, object):
        return is_inert(value)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if (origin or hint) in SEQUENCES:
        if not isinstance(value, list | tuple):
            return False
        if (origin or hint) is tuple and inner and inner[-1] is not ...:
            return len(value) == len(inner) and all(map(is_plain, value, inner))
        return all(is_plain(each, inner[0] if inner else Any) for each in value)
    if (origin or hint) in MAPPINGS:
        if not isinstance(value, Mapping) or "class_path" in value:
            return False
        keys, values = inner or (str, Any)
        return all(is_plain(key, keys) and is_plain(each, values) for key, each in value.items())
    if not isinstance(hint, type):
        return False
    if hint is bool or issubclass(hint, bool):
        return isinstance(value, bool)
    if issubclass(hint, enum.Enum):
        return isinstance(value, str) and value in hint.__members__
    if issubclass(hint, int):
        return isinstance(value, int) and not isinstance(value, bool)
    if issubclass(hint, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str) and issubclass(hint, str | os.PathLike)


def is_inert(value: Any) -> bool:
    """Whether a value stays what it is when a parser reads it without knowing a type."""
    if isinstance(value, str):
        try:
            return yaml.safe_load(value) == value
        except (yaml.YAMLError, ValueError):
            return True
        except RecursionError:
            return False
    if isinstance(value, list | tuple):
        return all(map(is_inert, value))
    return value is None or isinstance(value, bool | int | float)


def may_import(hint: Any) -> bool:
    """Whether a parser could take a string for the name of a class, a function or a module of this type."""
    origin = get_origin(hint)
    if hint in (None, type(None)) or origin is Literal or (origin or hint) in (*SEQUENCES, *MAPPINGS):
        return False
    return not (isinstance(hint, type) and issubclass(hint, bool | int | float | str | os.PathLike | enum.Enum))


def unwrapped(hint: Any) -> Any:
    """A type without `Annotated` and without the name of an alias."""
    while True:
        if get_origin(hint) is typing.Annotated:
            hint = get_args(hint)[0]
        elif hasattr(hint, "__value__"):  # `type Name = ...`
            hint = hint.__value__
        else:
            return hint
