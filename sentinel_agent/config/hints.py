"""What the type of a setting says: its unit and bounds, in words and in the way people write values.

Everything that speaks of a setting (faults, the reference, the JSON Schema) takes its words from here, so that all
of them say the same.
"""

from __future__ import annotations

import json
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from sentinel_agent.core import units

Place = tuple[str | int, ...]
"""A place in a document: keys and list indexes, outermost first."""

_PLAIN_KEY = re.compile(r"[\w-]{1,60}")


def format_path(path: Place) -> str:
    """`rules[0].trigger.min`; a key that is no plain word is quoted and cut."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." * bool(text) + (part if _PLAIN_KEY.fullmatch(part) else json.dumps(part[:60]))
    return text


def unwrap(hint: Any) -> tuple[Any, tuple[Meta, ...]]:
    """The type under `Annotated`, and its marks."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        base, more = unwrap(inner)
        return base, (*more, *(mark for mark in marks if isinstance(mark, Meta)))
    return hint, ()


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself."""
    base, _ = unwrap(hint)
    return get_args(base) if get_origin(base) in (Union, types.UnionType) else (hint,)


def is_struct(hint: Any) -> bool:
    """Whether the type is a section: a mapping with known keys."""
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def is_plugged(hint: Any) -> bool:
    """Whether the type maps names to sections whose keys a plug-in knows: the exporters."""
    base, _ = unwrap(hint)
    return get_origin(base) is dict and is_struct(get_args(base)[1])


def is_sequence(hint: Any) -> bool:
    """Whether the type is a list of any length."""
    return get_origin(unwrap(hint)[0]) in (list, tuple)


def unit_of(hint: Any) -> str | None:
    """The mark `unit` of a type or of one of its alternatives: `duration`, `bytes`, `regex`, `address`, or None."""
    for member in (hint, *members(hint)):
        for mark in unwrap(member)[1]:
            if mark.extra and "unit" in mark.extra:
                return str(mark.extra["unit"])
    return None


def bounds(marks: tuple[Meta, ...]) -> dict[str, Any]:
    """Every bound that the marks set, by the names of `msgspec.Meta`."""
    names = ("gt", "ge", "lt", "le", "min_length", "max_length", "pattern")
    return {name: value for mark in marks for name in names if (value := getattr(mark, name)) is not None}


def expected(hint: Any) -> str:
    """What may be written for a type, in words: `a duration from 50ms to 1m`, `one of debug, info`."""
    options = [member for member in members(hint) if member is not types.NoneType]
    return " or ".join(dict.fromkeys(_expected_one(option) for option in options))


_UNITS = {
    "duration": "a duration",
    "bytes": "a size",
    "regex": "a regular expression",
    "address": "HOST:PORT",
    "secret": "text",
}
_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _expected_one(hint: Any) -> str:
    base, marks = unwrap(hint)
    if is_struct(base) or get_origin(base) is dict:
        return "a mapping"
    if get_origin(base) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(base))
    limits = bounds(marks)
    if is_sequence(base):
        words = f"a list of {expected(get_args(base)[0])}"
        return f"{words}, at most {limits['max_length']}" if "max_length" in limits else words
    unit = unit_of(hint)
    words = _UNITS.get(unit or "", _KINDS.get(base, "a value"))
    for name, text in (("gt", "over"), ("ge", "from"), ("lt", "under"), ("le", "to")):
        if name in limits:
            words += f" {text} {write(limits[name], unit)}"
    if "pattern" in limits and unit is None:
        words += f" matching {limits['pattern']}"
    if "max_length" in limits:
        words += f", at most {limits['max_length']} characters"
    return words + ", not empty" * bool(limits.get("min_length"))


def write(value: float, unit: str | None) -> str:
    """A number in the shortest form that reads back as the very same number."""
    if unit == "duration":
        text = units.format_duration(value)
        return text if value > 0 and units.parse_duration(text) == value else _plain(value)
    if unit == "bytes":
        text = units.format_size(value).replace(".0 ", "").replace(" ", "")
        return text if value >= 1024 and units.parse_size(text) == value else _plain(value)
    return _plain(value)


def _plain(value: float) -> str:
    return repr(int(value)) if value == int(value) and abs(value) < 10**15 else repr(value)
