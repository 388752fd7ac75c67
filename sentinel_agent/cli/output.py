"""How things are shown: tables and colour on a terminal, plain columns in a pipe, JSON on demand.

Everything that comes from a target is hostile: `clean` takes control characters away, and no text of a
target is ever read as markup.
"""

from __future__ import annotations

import datetime
import itertools
import re
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import click
import msgspec

from sentinel_agent.core.sentence import format_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

_BARS = "▁▂▃▄▅▆▇█"
_PIPE_WIDTH = 200
_NARROW = 120
_LIBRARY = re.compile(r"^/.*/(?:site-packages|dist-packages|lib(?:64)?/python3\.\d+t?)/(?=.)")
_LIBRARY_IN_BRACKETS = re.compile(
    r"(?<=\()/[^()\s]*/(?:site-packages|dist-packages|lib(?:64)?/python3\.\d+t?)/(?=[^()\s])"
)
_LABEL = re.compile(r" *\S+(?: \S+)? {2,}(?=\S)")
_NO_GLYPH = re.compile(r"[^\x20-\x7e]")  # also what has one; `_escape` tells


def console(*, stderr: bool = False) -> Console:
    """A rich console: colour on a terminal only, wide lines in a pipe, no markup."""
    from rich.console import Console  # noqa: PLC0415 - heavy, and `--json` never needs it

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the program at once, whatever it is about to save

    stream = sys.stderr if stderr else sys.stdout
    return Screen(
        stderr=stderr,
        markup=False,
        highlight=False,
        emoji=False,
        width=None if stream.isatty() else _PIPE_WIDTH,
    )


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    click.echo(msgspec.json.format(to_json(document).encode(), indent=2).decode())


def to_json(document: Any) -> str:
    """One line of JSON in which every character without a glyph is escaped, so that a terminal may show it."""
    return _NO_GLYPH.sub(_escape, msgspec.json.encode(document).decode())


def _escape(found: re.Match[str]) -> str:
    """As JSON does (RFC 8259, section 7), with a surrogate pair beyond U+FFFF; what has a glyph stays."""
    char = found[0]
    if char.isprintable():
        return char
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Columns with a heading; `right` names the columns of figures. On a terminal a row may wrap, never vanish."""
    from rich.table import Table  # noqa: PLC0415 - heavy, and `--json` never needs it
    from rich.text import Text  # noqa: PLC0415 - as above

    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    console().print(table)


def clean(text: str, limit: int = 2000) -> str:
    """`text` without control, bidirectional-override and other invisible characters, at most `limit` long."""
    kept = "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text[:limit])
    return kept if len(text) <= limit else f"{kept}…"


def short_path(file: str) -> str:
    """A file as a person knows it: of the standard library or an installed package, only what comes after its folder."""
    return _LIBRARY.sub("", file)


def short_paths(text: str) -> str:
    """`text` with each `(file:line)` in it as `short_path` has the file."""
    return _LIBRARY_IN_BRACKETS.sub("", text)


def columns() -> int | None:
    """The width of the terminal, None where stdout is none: then lines are as long as they are."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def is_narrow() -> bool:
    """Whether a table with a sentence in it would break up."""
    width = columns()
    return width is not None and width < _NARROW


def say(text: str, **style: Any) -> None:
    """Lines on stdout in a style of `click.style`, on a terminal broken at words to its width."""
    width = columns()
    click.secho(text if width is None else wrapped(text, width), **style)


def wrapped(text: str, width: int) -> str:
    """`text` broken at words, each line's rest under its beginning or under what follows its label.

    A word is never broken, so that paths and commands can still be copied.
    """
    lines = []
    for line in text.split("\n"):
        label = _LABEL.match(line)
        spaces = len(label[0]) if label else len(line) - len(line.lstrip()) + 4
        lines += textwrap.wrap(
            line,
            max(width, 40),
            subsequent_indent=" " * min(spaces, 24),
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        ) or [""]
    return "\n".join(lines)


def show_value(value: float | None, unit: str) -> str:
    """A reading as a person reads it; a dash for none."""
    return "-" if value is None else format_value(value, unit)


def show_time(seconds: float) -> str:
    """Local date and time with milliseconds."""
    try:
        moment = datetime.datetime.fromtimestamp(seconds).astimezone()
    except (ValueError, OverflowError, OSError):  # a damaged document may say anything
        return f"{seconds:g} s after 1970"
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def sparkline(
    values: Sequence[float], width: int = 60, *, low: float | None = None, high: float | None = None
) -> str:
    """The course of `values` as bars; each bar is the highest of its share, so that a short spike stays visible.

    The bars stand between `low` and `high`, where not given between the least and the greatest of the values.
    """
    if not values:
        return ""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [max(values[a:b]) for a, b in itertools.pairwise(edges) if b > a]
    low = min(values) if low is None else low
    span = ((max(values) if high is None else high) - low) or 1.0
    return "".join(_BARS[max(0, min(7, int((value - low) / span * 8)))] for value in values)
