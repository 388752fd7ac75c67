"""A folder for the spools of one agent: those that share a data directory take different ones, by a lock."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

_SLOTS = 8
"""Agents that may share a data directory and spool."""


@contextlib.contextmanager
def spool_slot(folder: Path | None) -> Iterator[Path | None]:
    """A folder below `folder` that no other agent uses, with what agents that have ended left in theirs.

    None where there is none to be had; the reason is logged.
    """
    own: tuple[Path, int] | None = None
    if folder is not None:
        try:
            for number in range(_SLOTS):
                place = folder / str(number)
                if own is not None and not place.exists():
                    continue
                held = _held(place)
                if held is None:
                    continue
                if own is None:
                    own = (place, held)
                else:
                    try:
                        _adopt(own[0], place)
                    finally:
                        os.close(held)
        except OSError as error:
            log.warning("what waits for a backend may not be on disk: %s", error)
    try:
        yield own[0] if own is not None else None
    finally:
        if own is not None:
            os.close(own[1])


def _held(place: Path) -> int | None:
    """A descriptor that locks the folder, which is made if need be; None if another process holds it."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _adopt(own: Path, left: Path) -> None:
    """Move the batches of an agent that has ended to our folder."""
    for path in left.glob("*/*/*.batch"):
        place = own / path.parent.relative_to(left)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.rename(place / path.name)
