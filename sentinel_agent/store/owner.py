"""Who made a temporary or status file, and whether that process still runs.

A process is its id with its start time: a reused id has another one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sentinel_agent.core.model import TargetId
from sentinel_agent.target import procfs

if TYPE_CHECKING:
    from pathlib import Path


def this_process(root: Path = procfs.ROOT) -> TargetId:
    """The calling process; its start time is 0 where /proc cannot be read."""
    pid = os.getpid()
    return TargetId(pid, _start_time(pid, root) or 0)


def is_alive(owner: TargetId, root: Path = procfs.ROOT) -> bool:
    """Whether `owner` still runs in this pid namespace; a zombie does not."""
    return _start_time(owner.pid, root) == owner.start_time


def _start_time(pid: int, root: Path) -> int | None:
    try:
        stat = procfs.parse_stat(procfs.read_bounded(root / "proc" / str(pid) / "stat", procfs.MAX_STAT))
    except (OSError, procfs.ProcFormatError):
        return None
    return None if stat.ended else stat.start_time
