"""One reader for every value of a setting, so that a YAML file and the command line are checked alike.

A setting's type is an annotation: int, float, bool, str, Path, Literal, a tuple of these (fixed or ``...``), a union of
these, None included.
"""

from __future__ import annotations

import math
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from effdense.errors import UserError, nearest

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
NONE_WORDS = ("None", "none", "null")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


class Word(str):
    """Text without quotes, as on a command line or plain in YAML: may also spell a number, true, or none."""

    __slots__ = ()


class Quoted(str):
    """Text that stood in quotes in a YAML file: never a number, never none."""

    __slots__ = ()


class WrongValue(ValueError):
    """A value does not fit its type; the message says what came and what was expected, and the caller adds where."""


def read_value(value: Any, hint: Any) -> Any:
    """Return ``value`` as the type ``hint`` has it.

    Args:
        value: text (``Word``, ``Quoted`` or plain), None, a bool, a number, a Path, a list, a tuple or a mapping.
        hint: the annotation, resolved.

    Raises:
        WrongValue: it does not fit.
    """
    members = union_members(hint)
    if value is None or (isinstance(value, Word) and _spells_none(value, members)):
        if type(None) in members:
            return None
        raise _wrong(value, hint)
    for member in members:
        if member is type(None):
            continue
        try:
            return _read_one(value, member)
        except WrongValue:
            if len(members) == 1 or (get_origin(member) is Literal and members[1:] == (type(None),)):
                raise
    raise _wrong(value, hint)


def union_members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the hint alone; ``str`` last, as it takes everything."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(sorted(get_args(hint), key=lambda member: member is str))
    return (hint,)


def is_tuple(hint: Any) -> bool:
    """Return whether a hint asks for a tuple, be it one of several alternatives."""
    return any(get_origin(member) is tuple for member in union_members(hint))


def tuple_length(hint: Any) -> int | None:
    """Return how many values a hint takes: 1 for a plain value, n for a tuple of n, None for any number."""
    for member in union_members(hint):
        if get_origin(member) is tuple:
            arguments = get_args(member)
            return None if len(arguments) == 2 and arguments[1] is Ellipsis else len(arguments)
    return 1


def describe(hint: Any) -> str:
    """Return what a hint asks for, in words: ``an integer``, ``one of auto, off``, ``2 values (...)``."""
    members = union_members(hint)
    if len(members) > 1:
        return " or ".join(describe(member) for member in members)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        arguments = get_args(hint)
        if tuple_length(hint) is None:
            return f"a list, each item {describe(arguments[0])}"
        return f"{len(arguments)} values ({', '.join(describe(argument) for argument in arguments)})"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    if hint is type(None):
        return "none"
    if hint not in words:
        raise TypeError(f"a setting of type {hint!r} is not supported")
    return words[hint]


def _read_one(value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        return _read_choice(value, hint)
    if get_origin(hint) is tuple:
        return _read_tuple(value, hint)
    if hint is bool:
        return _read_bool(value)
    if hint is int:
        return _read_int(value)
    if hint is float:
        return _read_float(value)
    if hint is Path and isinstance(value, str | Path) and str(value):
        return Path(str(value)).expanduser()
    if hint is str and isinstance(value, str):
        return str(value)
    raise _wrong(value, hint)


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, Word) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise _wrong(value, bool)


def _read_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and not isinstance(value, Quoted) and _INTEGER.fullmatch(value):
        return int(value)
    raise _wrong(value, int)


def _read_float(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if isinstance(value, str) and not isinstance(value, Quoted) and _NUMBER.fullmatch(value):
        number = float(value)
        if math.isfinite(number):
            return number
    raise _wrong(value, float)


def _read_choice(value: Any, hint: Any) -> Any:
    choices = get_args(hint)
    for choice in choices:
        if value == choice and isinstance(value, bool) == isinstance(choice, bool):
            return choice
        if isinstance(value, Word) and value == str(choice):
            return choice
    if isinstance(value, str):
        known = [str(choice) for choice in choices]
        raise WrongValue(f"{str(value)!r} is none of {', '.join(known)}{nearest(value, known)}")
    raise _wrong(value, hint)


def _read_tuple(value: Any, hint: Any) -> tuple[Any, ...]:
    arguments, length = get_args(hint), tuple_length(hint)
    if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
        raise _wrong(value, hint)
    items = [arguments[0]] * len(value) if length is None else arguments
    return tuple(read_value(part, item) for part, item in zip(value, items, strict=True))


def _spells_none(word: str, members: tuple[Any, ...]) -> bool:
    """``None`` and ``null`` mean none wherever none is allowed; ``none`` does unless it is itself a choice or text."""
    if type(None) not in members:
        return False
    if word in ("None", "null"):
        return True
    is_text = any(m is str or (get_origin(m) is Literal and "none" in get_args(m)) for m in members)
    return word == "none" and not is_text


def _wrong(value: Any, hint: Any) -> WrongValue:
    return WrongValue(f"expected {describe(hint)}, came {_came(value)}")


def _came(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"{len(value)} value{'' if len(value) == 1 else 's'} ({', '.join(str(part) for part in value)})"
    if isinstance(value, Quoted):
        return f"the quoted text {str(value)!r}"
    return repr(str(value)) if isinstance(value, str) else repr(value)


def unknown_name(what: str, name: str, known: list[str]) -> UserError:
    """Return the error for a setting, flag or command that does not exist, with the nearest that does."""
    return UserError(sentence(f"{what} {name!r} is unknown{nearest(name, known)}"))


def sentence(text: str) -> str:
    """Return the text with its full stop, which a question needs not."""
    return text if text.endswith(("?", ".", "!")) else text + "."
