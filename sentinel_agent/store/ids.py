"""Names that are safe to become part of a path: incident ids and artifact names. Nothing else is let in."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_10000 = 253_402_300_800_000
_ID = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{3}Z-[0-9a-f]{4}")
_ID_START = re.compile(r"[0-9TZa-f.-]{1,25}")
_ARTIFACT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
DOCUMENT_NAME = "incident.json"


def new_id(now: float, random: int) -> str:
    """An incident id such as `20261123T041500.123Z-1a2b`: UTC to the millisecond, then 16 bits of `random`.

    All are of one length, so they sort by time. `now` is in seconds since the epoch and is bounded to what four
    digits of a year can hold.
    """
    milliseconds = int(min(max(now * 1000, 0), _YEAR_10000 - 1))
    stamp = _EPOCH + timedelta(milliseconds=milliseconds)
    return f"{stamp:%Y%m%dT%H%M%S}.{milliseconds % 1000:03d}Z-{random & 0xFFFF:04x}"


def is_id(text: str) -> bool:
    """Whether `text` has the form of an incident id."""
    return _ID.fullmatch(text) is not None


def is_id_start(text: str) -> bool:
    """Whether `text` can be the first characters of an incident id."""
    return _ID_START.fullmatch(text) is not None


def is_artifact_name(text: str) -> bool:
    """Whether `text` can name a captured file: letters, digits, `._-`, no leading dot, not the document itself."""
    return _ARTIFACT_NAME.fullmatch(text) is not None and text != DOCUMENT_NAME
