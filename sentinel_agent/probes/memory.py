"""Resident memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.probes.base import Moment, Subject, collect
from sentinel_agent.target.procfs import PAGE_SIZE, ProcFormatError

if TYPE_CHECKING:
    from sentinel_agent.core.model import Reading


class MemoryProbe:
    """`rss` in bytes, `rss_limit` in percent of the memory limit.

    From `statm` (proc(5)): the kernel sums it up without stopping or locking the process. It may be off by
    some pages per core; the exact `smaps_rollup` would hold the target's memory lock.
    """

    metrics = ("rss", "rss_limit")

    def __init__(self, subject: Subject) -> None:
        self._proc = subject.proc
        self._limits = subject.limits

    def read(self, now: Moment) -> list[Reading]:
        """Resident memory at this moment."""
        return collect(self.metrics, now, lambda: self._measure(now))

    def _measure(self, now: Moment) -> dict[str, float]:
        fields = self._proc.read("statm").split()
        if len(fields) < 2:
            raise ProcFormatError(f"a statm line has {len(fields)} fields, expected 7")
        if int(fields[0]) == 0:  # a zombie has given its memory back
            raise ProcessLookupError
        rss = int(fields[1]) * PAGE_SIZE
        return {"rss": rss, "rss_limit": rss / self._limits(now.monotonic).memory * 100}
