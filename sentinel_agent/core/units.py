"""Durations and sizes as people write them: `90s`, `1m30s`, `64MiB`.

In settings they are plain floats and ints (seconds, bytes, never negative), marked with `Duration` and `ByteSize`, so that
the loader knows where the written form is allowed and the JSON Schema says so.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE_UNITS = {
    "": 1,
    "B": 1,
    "k": 1000,
    "M": 1000**2,
    "G": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|k|M|G|KiB|MiB|GiB|)")

Duration = Annotated[
    float,
    msgspec.Meta(
        extra={"unit": "duration"},
        extra_json_schema={"type": ["number", "string"], "examples": ["500ms", "60s", "1h30m"]},
    ),
]
"""Seconds; written as a number or as `500ms`, `60s`, `1h30m`, `2d`."""

ByteSize = Annotated[
    int,
    msgspec.Meta(
        extra={"unit": "bytes"},
        extra_json_schema={"type": ["integer", "string"], "examples": ["64MiB", "1G"]},
    ),
]
"""Bytes; written as a number or as `64MiB`, `1G`."""


def parse_duration(text: str) -> float:
    """Seconds of `text` such as `1m30s`; a bare number is seconds.

    Raises:
        ValueError: `text` is no duration.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is no duration: expected for example 500ms, 60s, 1m30s, 2h")
    return sum(float(count) * _DURATION_UNITS[unit] for count, unit in _DURATION_PART.findall(text))


def parse_size(text: str) -> int:
    """Bytes of `text` such as `64MiB`; a bare number is bytes.

    Raises:
        ValueError: `text` is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no size: expected for example 512KiB, 64MiB, 1G")
    return int(float(found[1]) * _SIZE_UNITS[found[2]])


def format_duration(seconds: float) -> str:
    """The shortest written form that a reader wants: `250ms`, `4.2s`, `1m30s`, `2h`, `3d`."""
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}".rstrip("0").rstrip(".") + "s"
    parts: list[str] = []
    rest = round(seconds)
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, int(_DURATION_UNITS[unit]))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def format_size(count: float) -> str:
    """Bytes in binary units with three significant figures: `512 B`, `1.5 KiB`, `64.0 MiB`."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if abs(count) < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GiB"
