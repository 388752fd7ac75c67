r"""Label selectors as Grafana sends them: `{service_name="shop",rule=~"cpu.*"}`, with an optional name before the brace.

Grammar: prometheus/prometheus, "Querying basics", instant vector selectors: `=`, `!=`, `=~`, `!~`, fully anchored
regular expressions, quoted label names, a trailing comma, strings in double, single or back quotes with the escapes
of Go. Expressions are those of `pattern`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sentinel_agent.api.pattern import Pattern

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SELECTOR = 8192  # characters
_SUBJECT = 1000  # characters of a label that an expression sees
_KNOWN = 1000  # answers that a matcher remembers: labels repeat

_TOKEN = re.compile(
    r"""\s*(?:(?P<name>[A-Za-z_][A-Za-z0-9_.]*)|(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`)"""
    r"""|(?P<mark>=~|!~|!=|=|,|\{|\}))""",
    re.DOTALL,
)
_PREFIX = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_:.]*)\s*")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}

Operator = Literal["=", "!=", "=~", "!~"]


@dataclass(frozen=True, slots=True)
class Matcher:
    """One test of one label; a missing label is an empty one."""

    label: str
    operator: Operator
    value: str
    pattern: Pattern | None = None
    known: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def matches(self, value: str) -> bool:
        """Whether a label's value passes."""
        if self.pattern is None:
            return (value == self.value) == (self.operator == "=")
        subject = value[:_SUBJECT]
        found = self.known.get(subject)
        if found is None:
            found = self.pattern.fullmatch(subject)
            if len(self.known) < _KNOWN:
                self.known[subject] = found
        return found == (self.operator == "=~")


@dataclass(frozen=True, slots=True)
class Selector:
    """All tests must pass. `prefix` is the name before the brace: Grafana puts a profile type there."""

    matchers: tuple[Matcher, ...] = ()
    prefix: str = ""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels pass."""
        return all(matcher.matches(labels.get(matcher.label, "")) for matcher in self.matchers)

    def exact(self, label: str) -> str | None:
        """The value that the label must have, if one is asked for."""
        found = [each.value for each in self.matchers if each.label == label and each.operator == "="]
        return found[0] if found else None

    def split(self, label: str) -> tuple[Selector, Selector]:
        """The tests of all other labels, and those of this one."""
        about = tuple(each for each in self.matchers if each.label == label)
        others = tuple(each for each in self.matchers if each.label != label)
        return Selector(others, self.prefix), Selector(about)

    def names(self, label: str) -> bool:
        """Whether some test is about the label."""
        return any(matcher.label == label for matcher in self.matchers)


def parse(text: str) -> Selector:
    """The selector that `text` is; an empty text and `{}` pass everything.

    Raises:
        ValueError: it is none; the message says where.
    """
    if len(text) > MAX_SELECTOR:
        raise ValueError(f"a label selector has at most {MAX_SELECTOR} characters, found {len(text)}")
    prefix, at = "", 0
    found = _PREFIX.match(text)
    if found and not text.lstrip().startswith("{"):
        prefix, at = found[1], found.end()
    rest = text[at:].strip()
    if not rest:
        return Selector((), prefix)
    tokens = _tokens(text, at)
    return Selector(tuple(_matchers(tokens)), prefix)


def _tokens(text: str, at: int) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    while at < len(text) and text[at:].strip():
        token = _TOKEN.match(text, at)
        if token is None:
            raise ValueError(
                f"label selector: not understood from character {at + 1}: {text[at : at + 20]!r}"
            )
        kind = token.lastgroup or ""
        found.append((kind, token[kind]))
        at = token.end()
    return found


def _matchers(tokens: list[tuple[str, str]]) -> list[Matcher]:
    if tokens[0] != ("mark", "{") or tokens[-1] != ("mark", "}"):
        raise ValueError('label selector: expected {label="value",...}')
    found: list[Matcher] = []
    inner = tokens[1:-1]
    for at in range(0, len(inner), 4):
        part = inner[at : at + 4]
        if len(part) < 3 or part[0][0] == "mark" or part[1][0] != "mark" or part[2][0] != "string":
            raise ValueError(
                f'label selector: expected label="value", found {"".join(text for _, text in part)!r}'
            )
        if len(part) == 4 and part[3] != ("mark", ","):
            raise ValueError(f"label selector: expected a comma, found {part[3][1]!r}")
        name = _unquote(part[0][1]) if part[0][0] == "string" else part[0][1]
        found.append(_matcher(name, part[1][1], _unquote(part[2][1])))
    return found


def _matcher(label: str, operator: str, value: str) -> Matcher:
    match operator:
        case "=" | "!=":
            return Matcher(label, operator, value)
        case "=~" | "!~":
            return Matcher(label, operator, value, _compiled(value))
    raise ValueError(f"label selector: expected = != =~ or !~ behind {label!r}, found {operator!r}")


def _compiled(value: str) -> Pattern:
    try:
        return Pattern(value)
    except ValueError as error:
        raise ValueError(f"label selector: {error}") from error


def _unquote(text: str) -> str:
    inner = text[1:-1]
    return inner if text[0] == "`" else _ESCAPE.sub(_unescape, inner)


def _unescape(found: re.Match[str]) -> str:
    body = found[1]
    if body[0] in "xuU":
        code = int(body[1:], 16)
    elif body.isdigit():
        code = int(body, 8)
    else:
        return _SIMPLE.get(body, body)
    if code > 0x10FFFF:
        raise ValueError(f"label selector: {found[0]} is no character")
    return chr(code)
