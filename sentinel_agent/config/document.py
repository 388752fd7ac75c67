"""The text of a configuration or rule file into plain data, with the line of every value where YAML gives it.

YAML is read as events, not with PyYAML's loader: events give lines, a fault for a key given twice, and the end of
reading at the first too deep level, before anything recurses. Plain scalars follow the core schema of YAML 1.2
(section 10.3.2), not that of 1.1, so `on`, `no`, `12:30` and `2024-01-01` stay text. Of YAML's features, tags, merge
keys (`<<`) and several documents in one file are refused; anchors and aliases work.

TOML goes through `tomllib`, which gives no lines except in its own faults.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from sentinel_agent.config.hints import Place, format_path
from sentinel_agent.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 32
_MAX_DOTS = 100
_MAX_FAULTS = 100
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TEXT_TAGS = ("!", "tag:yaml.org,2002:str")


@dataclass(slots=True)
class Document:
    """Plain data with where it came from: `name` is what people call the source, `lines` the line of each place."""

    name: str
    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def where(self, path: Place) -> str:
        """`sentinel.yaml:12`; for a place without a line, that of the nearest place around it."""
        for end in range(len(path), -1, -1):
            if line := self.lines.get(path[:end]):
                return f"{self.name}:{line}"
        return self.name


def parse_document(name: str, content: bytes, *, what: str = "settings") -> Document:
    """The document of a file; what is wrong with its text is in `faults`. Never raises.

    A name that ends in `.toml` is TOML, any other YAML. `what` says in a fault what an empty file should hold.
    """
    document = Document(name)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return _broken(document, f"expected text in UTF-8; byte {error.start + 1} is not")
    if "\0" in text:
        return _broken(document, "expected text, found a binary file")
    if not text.strip():
        return _broken(document, f"the file is empty: expected a mapping of {what}")
    if name.endswith(".toml"):
        return _parse_toml(document, text)
    return _parse_yaml(document, text)


def _broken(document: Document, message: str, line: int | None = None) -> Document:
    place = f"{document.name}:{line}" if line else document.name
    document.faults.append(Fault(place, "", message))
    document.data = {}
    return document


def _parse_toml(document: Document, text: str) -> Document:
    # tomllib takes time in the square of a dotted key's length.
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > _MAX_DOTS:
            return _broken(document, f"more than {_MAX_DOTS} dots in one line", number)
    try:
        document.data = tomllib.loads(text)
    except RecursionError:
        return _broken(document, "nested too deeply")
    except ValueError as error:  # TOMLDecodeError is one; so is a number of thousands of digits
        return _broken(document, f"not TOML: {error}")
    return document


class _BrokenYamlError(Exception):
    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def _parse_yaml(document: Document, text: str) -> Document:
    try:
        _Builder(document).build(yaml.parse(text, Loader=_LOADER))
    except _BrokenYamlError as error:
        return _broken(document, str(error), error.line)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = " ".join(part for part in (error.context, error.problem) if part)
        return _broken(document, f"not YAML: {words}", mark.line + 1 if mark else None)
    except yaml.YAMLError as error:
        return _broken(document, f"not YAML: {' '.join(str(error).split())}")
    return document


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end is not reached yet."""

    container: Any
    path: Place
    anchor: str | None
    key: str | None = None
    keys: dict[str, int] = field(default_factory=dict)

    def place(self) -> Place:
        part = len(self.container) if isinstance(self.container, list) else self.key
        return self.path if part is None else (*self.path, part)


class _Builder:
    """Builds the data of one document from its events."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._open: list[_Open] = []
        self._anchors: dict[str, Any] = {}
        self._documents = 0

    def build(self, events: Iterator[Any]) -> None:
        for event in events:
            line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    raise _BrokenYamlError("expected one document, found a second one (`---`)", line)
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event, line)
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in self._anchors:
                    raise _BrokenYamlError(f"the alias *{event.anchor} has no anchor that is complete", line)
                self._add(self._anchors[event.anchor], line)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._start(event, line)
            elif isinstance(event, yaml.CollectionEndEvent):
                done = self._open.pop()
                if done.anchor:
                    self._anchors[done.anchor] = done.container

    def _start(self, event: Any, line: int) -> None:
        if event.tag is not None and not event.implicit:
            raise _BrokenYamlError(f"tags are not supported: {event.tag[:60]}", line)
        if len(self._open) >= MAX_DEPTH:
            raise _BrokenYamlError(f"nested deeper than {MAX_DEPTH} levels", line)
        container: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        path = self._open[-1].place() if self._open else ()
        self._add(container, line)
        self._open.append(_Open(container, path, event.anchor))

    def _scalar(self, event: Any, line: int) -> None:
        plain = event.implicit[0]
        if event.tag not in (None, *_TEXT_TAGS):
            raise _BrokenYamlError(f"tags are not supported: {event.tag[:60]}", line)
        top = self._open[-1] if self._open else None
        if top and isinstance(top.container, dict) and top.key is None:
            self._take_key(top, event.value, line)
            value: Any = event.value
        else:
            value = resolve(event.value) if plain else event.value
            self._add(value, line)
        if event.anchor:
            self._anchors[event.anchor] = value

    def _take_key(self, top: _Open, key: str, line: int) -> None:
        if key == "<<":
            raise _BrokenYamlError("merge keys (<<) are not supported: write the keys out", line)
        top.key = key
        if key in top.keys and len(self._document.faults) < _MAX_FAULTS:
            place = self._document.name
            message = f"given twice: first on line {top.keys[key]}"
            self._document.faults.append(Fault(f"{place}:{line}", format_path(top.place()), message))
        top.keys.setdefault(key, line)
        self._document.lines.setdefault(top.place(), line)

    def _add(self, value: Any, line: int) -> None:
        if not self._open:
            self._document.data = value
            return
        top = self._open[-1]
        if isinstance(top.container, list):
            self._document.lines[top.place()] = line
            top.container.append(value)
        elif top.key is None:
            raise _BrokenYamlError("expected a plain key, found a mapping, a list or an alias", line)
        else:
            top.container.setdefault(top.key, value)
            top.key = None


def resolve(text: str) -> bool | float | str | None:
    """The value of a plain scalar, by the core schema of YAML 1.2."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text, 0) if text.startswith("0") and text[1:2] in "ox" and len(text) > 1 else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text
