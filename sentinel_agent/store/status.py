"""The live state of running agents, for the command line: one small file per process, replaced at each change.

It is not fsynced: after a power cut no agent runs. What the document says is the agent's business.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from sentinel_agent.core.model import TargetId
from sentinel_agent.errors import StoreError
from sentinel_agent.store import owner as owners
from sentinel_agent.store.files import Files, read_bounded, store_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_STATUS_BYTES = 1024**2
_MAX_FILES = 1000
_KEEP_DEAD = 86400.0
_NAME = re.compile(r"([0-9]{1,10})-([0-9]{1,20})\.json")

log = logging.getLogger(__name__)


class Status(NamedTuple):
    """What one agent published, and whether it still runs."""

    document: bytes
    alive: bool


def publish(data_dir: Path, pid: int, start_time: int, document: bytes, files: Files | None = None) -> None:
    """Replace the status of this process as a whole: `<data-dir>/status/<pid>-<start_time>.json`.

    Raises:
        StoreError: it cannot be written, or is over 1 MiB.
    """
    if len(document) > MAX_STATUS_BYTES:
        raise StoreError(f"the status is too large: {len(document)} bytes, at most {MAX_STATUS_BYTES}")
    files = files or Files()
    path = data_dir / "status" / f"{pid}-{start_time}.json"
    temporary = path.with_name(f".{path.name}")
    try:
        files.ensure_folder(path.parent)
        files.remove(temporary)
        files.write(temporary, document)
        files.rename(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            files.remove(temporary)
        raise store_error(error, "publishing the agent's status") from error


def withdraw(data_dir: Path, pid: int, start_time: int, files: Files | None = None) -> None:
    """Remove the status of this process: it ends in order. Never raises OSError."""
    with contextlib.suppress(OSError):
        (files or Files()).remove(data_dir / "status" / f"{pid}-{start_time}.json")


def read_all(
    data_dir: Path,
    now: float,
    is_alive: Callable[[TargetId], bool] = owners.is_alive,
    files: Files | None = None,
) -> list[Status]:
    """What agents published (at most 1000), newest first; files of the dead older than a day are removed.

    `now` is in seconds since the epoch. A process of another pid namespace counts as dead.

    Raises:
        StoreError: the folder cannot be listed; a missing one is empty.
    """
    found: list[tuple[float, Status]] = []
    try:
        with os.scandir(data_dir / "status") as entries:
            for entry, _ in zip(entries, range(_MAX_FILES), strict=False):
                matched = _NAME.fullmatch(entry.name.removeprefix("."))
                if not matched:
                    continue
                path = data_dir / "status" / entry.name
                alive = is_alive(TargetId(int(matched[1]), int(matched[2])))
                with contextlib.suppress(OSError):
                    written = path.lstat().st_mtime
                    if not alive and now - written > _KEEP_DEAD:
                        (files or Files()).remove(path)
                    elif entry.name == matched[0]:
                        found.append((written, Status(read_bounded(path, MAX_STATUS_BYTES), alive)))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise store_error(error, "reading the status of running agents") from error
    return [status for _, status in sorted(found, key=lambda pair: pair[0], reverse=True)]
