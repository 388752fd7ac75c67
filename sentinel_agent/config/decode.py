"""Plain data (what YAML, TOML and JSON give) into the structs of the settings and rules; every fault, not the first.

`msgspec.convert` checks a value, but stops at its first fault and knows no written forms. So this walks structs,
lists and unions itself and hands only the leaves to msgspec. It works from the type alone: there is nothing here
about any one setting.

The data is hostile: the walk goes no deeper than the type does, stops after `MAX_NODES` values (shared parts of a
YAML document count each time they are met, so an alias bomb ends there) and lists at most `MAX_FAULTS` faults.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

import msgspec

from sentinel_agent.config.hints import (
    Place,
    bounds,
    expected,
    format_path,
    is_plugged,
    is_sequence,
    is_struct,
    members,
    unit_of,
    unwrap,
)
from sentinel_agent.core.units import parse_duration, parse_size
from sentinel_agent.errors import Fault
from sentinel_agent.export.base import ExporterOptions
from sentinel_agent.export.registry import installed

if TYPE_CHECKING:
    from sentinel_agent.export.base import ExporterFactory

MAX_NODES = 100_000
MAX_FAULTS = 100
_LARGEST = 2**63 - 1
_SHOWN = 40
_SECRET = re.compile(
    r"pass(word|wd|phrase)|secret|token|credential|authorization|(api|private|access)_?key|headers",
    re.IGNORECASE,
)
_ENTRY = re.compile(r"[A-Za-z0-9_-]{1,60}")  # also the name of a folder
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

S = TypeVar("S", bound=msgspec.Struct)
Where = Callable[[Place], str]
"""Says where in its source a place is: `sentinel.yaml:12`."""


_BAD: Final[Any] = object()
"""Stands for a value with a fault that is already reported."""


class _TooMuchError(Exception):
    """The document is larger than any real one."""


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def is_secret(path: Place) -> bool:
    """Whether a setting is a secret, judged by its name."""
    return any(_SECRET.search(str(part)) for part in path)


def close_match(word: str, known: Sequence[str]) -> str:
    """`: did you mean `interval`?`, or nothing if nothing is like it."""
    found = difflib.get_close_matches(word[:64], known, n=1)
    return f": did you mean `{found[0]}`?" if found else ""


class Decoder:
    """One walk over one document.

    `leaves` holds every value that the document gives outside of lists, checked, by its path: what the layers of a
    configuration are merged from. With `text=True` leaves are written as text (an environment variable): numbers and
    booleans are read from it and a list is separated by commas.
    """

    def __init__(
        self, where: Where, *, text: bool = False, kinds: Mapping[str, ExporterFactory] | None = None
    ) -> None:
        self.faults: list[Fault] = []
        self.leaves: dict[Place, Any] = {}
        self._where = where
        self._text = text
        self._kinds = kinds
        self._left = MAX_NODES

    def decode(self, kind: type[S], data: object) -> S | None:
        """The struct, or None if there are `faults`; never raises."""
        found = self.value(kind, data, ())
        return None if self.faults else found

    def value(self, hint: Any, data: object, path: Place) -> Any:
        """The value of one place, checked; a fault is noted and nothing usable returned."""
        try:
            return self._any(hint, data, path)
        except _TooMuchError as error:
            self.faults.append(Fault(self._where(path), "", str(error)))
            return _BAD

    def fault(self, path: Place, message: str) -> Any:
        """Note one fault."""
        if len(self.faults) >= MAX_FAULTS:
            raise _TooMuchError(f"more than {MAX_FAULTS} faults: the rest is not listed")
        self.faults.append(Fault(self._where(path), format_path(path), message))
        return _BAD

    def _any(self, hint: Any, data: object, path: Place) -> Any:
        self._left -= 1
        if self._left < 0:
            raise _TooMuchError(f"more than {MAX_NODES} values (aliases written out)")
        choices = members(hint)
        if data is None and type(None) in choices:
            return None
        struct = next((choice for choice in choices if is_struct(choice)), None)
        if struct is not None and (len(choices) == 1 or isinstance(data, Mapping)):
            return self._struct(struct, data, path)
        if is_plugged(hint):
            return self._plugged(data, path)
        if is_sequence(hint):
            return self._list(hint, data, path)
        return self._leaf(hint, data, path)

    def _struct(self, kind: type[msgspec.Struct], data: object, path: Place) -> Any:
        if data is None:  # a section whose every key is commented out
            data = {}
        if not isinstance(data, Mapping):
            return self._mismatch(kind, data, path)
        fields = _fields(kind)
        good = True
        values: dict[str, Any] = {}
        for key, item in data.items():
            place = (*path, key if isinstance(key, str) else repr(key)[:_SHOWN])
            field = fields.get(key) if isinstance(key, str) else None
            if field is None:
                found = self._unknown(str(place[-1]), list(fields), place)
            else:
                found = self._any(field.type, item, place)
                values[field.name] = found
                if found is not _BAD and not is_struct(field.type):
                    self._keep(place, found)
            good = good and found is not _BAD
        for field in fields.values():
            if field.required and field.name not in values:
                self.fault((*path, field.encode_name), f"missing: expected {expected(field.type)}")
                good = False
        return kind(**values) if good else _BAD

    def _plugged(self, data: object, path: Place) -> Any:
        """Named entries, each with the keys of its kind."""
        if data is None:
            data = {}
        if not isinstance(data, Mapping):
            return self.fault(path, f"expected a mapping of names to exporters; found {_describe(data)}")
        kinds = installed() if self._kinds is None else self._kinds
        entries: dict[str, Any] = {}
        for name, entry in data.items():
            place = (*path, name if isinstance(name, str) else repr(name)[:_SHOWN])
            if not isinstance(name, str) or not _ENTRY.fullmatch(name):
                found = self.fault(
                    place, f"expected a name of letters, digits, _ and -; found {_describe(name)}"
                )
            else:
                found = self._entry(name, entry, place, kinds)
            entries[str(name)] = found
        return _BAD if any(found is _BAD for found in entries.values()) else entries

    def _entry(self, name: str, entry: object, path: Place, kinds: Mapping[str, ExporterFactory]) -> Any:
        if entry is None:
            entry = {}
        if not isinstance(entry, Mapping):
            return self._mismatch(ExporterOptions, entry, path)
        kind = entry.get("kind") or name
        factory = kinds.get(kind) if isinstance(kind, str) else None
        if factory is None:
            near = close_match(kind, list(kinds)) if isinstance(kind, str) else ""
            return self.fault(
                (*path, "kind"),
                f"no such exporter is installed{near or '; known: ' + ', '.join(sorted(kinds))}",
            )
        return self._struct(factory.Options, entry, path)

    def _keep(self, path: Place, value: Any) -> None:
        if all(isinstance(part, str) for part in path):
            self.leaves[path] = value

    def _unknown(self, key: str, known: list[str], path: Place) -> Any:
        return self.fault(path, "unknown key" + (close_match(key, known) or f"; known: {', '.join(known)}"))

    def _list(self, hint: Any, data: object, path: Place) -> Any:
        base, marks = unwrap(hint)
        if data is None:
            data = ()
        elif self._text and isinstance(data, str):
            data = [part.strip() for part in data.split(",") if part.strip()]
        if not isinstance(data, list | tuple):
            return self._mismatch(hint, data, path)
        if len(data) > bounds(marks).get("max_length", MAX_NODES):
            return self.fault(path, f"expected {expected(hint)}, found {len(data)}")
        kind = get_args(base)[0]
        items = [self._any(kind, item, (*path, index)) for index, item in enumerate(data)]
        return _BAD if any(item is _BAD for item in items) else tuple(items)

    def _leaf(self, hint: Any, data: object, path: Place) -> Any:
        unit = unit_of(hint)
        try:
            value = _written(unit, data) if isinstance(data, str) else data
            found = msgspec.convert(value, hint, strict=not self._text)
        except ValueError:  # msgspec.ValidationError is one
            return self._mismatch(hint, data, path)
        if isinstance(found, int | float) and not _usable(found, unit):
            return self._mismatch(hint, data, path)
        if isinstance(found, str) and (trouble := _text_trouble(hint, found, unit)):
            return self.fault(path, trouble)
        return found

    def _mismatch(self, hint: Any, data: object, path: Place) -> Any:
        shown = "a value that is not shown here" if is_secret(path) else _describe(data)
        return self.fault(path, f"expected {expected(hint)}; found {shown}")


def _written(unit: str | None, text: str) -> str | float:
    """The number that a duration or size stands for; other text as it is."""
    if unit == "duration":
        return parse_duration(text)
    if unit == "bytes":
        try:
            return parse_size(text)
        except OverflowError:
            raise ValueError(f"{text[:_SHOWN]} is larger than any size") from None
    return text


def _usable(value: float, unit: str | None) -> bool:
    """A number (NaN is not under any), no larger than what files and databases hold, and not negative where that has no meaning."""
    return abs(value) <= _LARGEST and (unit is None or value >= 0)


def _text_trouble(hint: Any, text: str, unit: str | None) -> str | None:
    if found := _CONTROL.search(text):
        return (
            f"expected text without control characters; found {found[0]!r} at character {found.start() + 1}"
        )
    if text.endswith("\n") and any("pattern" in bounds(unwrap(member)[1]) for member in members(hint)):
        return "expected one line; found a line break at the end"  # `$` of a pattern lets it pass
    if unit == "regex":
        return _regex_trouble(text)
    if unit == "address" and text != "off":
        port = text.rpartition(":")[2]
        return None if port.isdecimal() and int(port) <= 65535 else f"expected a port to 65535; found {port}"
    return None


def _regex_trouble(text: str) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            return f"expected a regular expression; {_describe(text)} is none: {error}"
    return None


def _describe(data: object) -> str:
    """What was found, in a few words; never the whole of it."""
    if isinstance(data, str):
        return (
            f"the text {data!r}"
            if len(data) <= _SHOWN
            else f"the text {data[:_SHOWN]!r}... ({len(data)} characters)"
        )
    if data is None:
        return "nothing"
    if isinstance(data, bool):
        return str(data).lower()
    if isinstance(data, int | float):
        return "a number that is too large" if abs(data) > _LARGEST else repr(data)
    if isinstance(data, Mapping):
        return "a mapping"
    return "a list" if isinstance(data, list | tuple) else f"a {type(data).__name__}"
