"""What the agent itself may still use: the room below the memory limit of its own cgroup.

Page cache does not count, because the kernel takes it back before it kills anybody (admin-guide `cgroup-v2.rst` and
`cgroup-v1/memory.rst`: `active_file` and `inactive_file` of `memory.stat`, in v1 with those below it `total_...`).
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from sentinel_agent.target.cgroup import locate, read_counters, set_limits
from sentinel_agent.target.procfs import ROOT, ProcDir

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.target.cgroup import Controller

_USAGE = {1: "memory.usage_in_bytes", 2: "memory.current"}
_CACHE = {1: ("total_active_file", "total_inactive_file"), 2: ("active_file", "inactive_file")}


class OwnMemory:
    """The limits that hold for this process, looked at each time: they can be changed while it runs."""

    def __init__(self, root: Path = ROOT, pid: int | None = None) -> None:
        self._controller: Controller | None = None
        with suppress(OSError), ProcDir(os.getpid() if pid is None else pid, root) as proc:
            self._controller = locate(proc, "memory")

    def limit(self) -> int | None:
        """The lowest limit in bytes; None where there is none."""
        return int(min(set_limits(self._controller).values(), default=0)) or None

    def left(self) -> int | None:
        """Bytes until the first of the limits is reached; None where there is none or the kernel does not tell."""
        rooms = [
            limit - used
            for level, limit in set_limits(self._controller).items()
            if (used := self._used(level)) is not None
        ]
        return max(0, int(min(rooms))) if rooms else None

    def _used(self, level: str) -> int | None:
        assert self._controller is not None
        version = self._controller.version
        try:
            usage = read_counters(self._controller, level, _USAGE[version])[""]
            counters = read_counters(self._controller, level, "memory.stat")
        except (OSError, KeyError):
            return None
        return usage - sum(counters.get(name, 0) for name in _CACHE[version])


def give_back() -> None:
    """Return to the kernel what the C library keeps of memory that was freed (malloc_trim(3)); nothing where it has no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
