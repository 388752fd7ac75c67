"""Bytes to and from storage, and the time spent waiting for it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from sentinel_agent.probes.base import Moment, Rates, Subject, collect
from sentinel_agent.probes.per_thread import ThreadSums
from sentinel_agent.target.procfs import CLOCK_TICKS, parse_keyed, read_bounded

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.core.model import Reading


class StorageProbe:
    """`io_read` and `io_write` in bytes per second: what reached a block device (`/proc/PID/io`, proc(5))."""

    metrics = ("io_read", "io_write")

    def __init__(self, subject: Subject) -> None:
        self._proc = subject.proc
        self._rates = Rates()

    def read(self, now: Moment) -> list[Reading]:
        """Bytes moved since the last tick."""
        return collect(self.metrics, now, lambda: self._measure(now))

    def _measure(self, now: Moment) -> dict[str, float]:
        counters = parse_keyed(self._proc.read("io"), b":")
        moved = {"io_read": counters.get("read_bytes", 0), "io_write": counters.get("write_bytes", 0)}
        return self._rates.per_second(now, moved)


class WaitProbe:
    """`io_wait` in percent of one core, over all threads; in steps of 10 ms.

    From `delayacct_blkio_ticks`, field 42 of `stat`. The kernel counts it only with delay accounting on; with
    it off the field is always 0, so that is an error and no reading.
    """

    metrics = ("io_wait",)

    def __init__(self, subject: Subject) -> None:
        self._proc = subject.proc
        self._sums = ThreadSums(subject.proc, lambda thread: (self._proc.stat(thread).block_io_ticks,))
        self._counted: bool | None = None

    def read(self, now: Moment) -> list[Reading]:
        """Time waited since the last tick."""
        return collect(self.metrics, now, lambda: self._measure(now))

    def _measure(self, now: Moment) -> dict[str, float]:
        if self._counted is None:
            self._counted = _delays_are_counted(self._proc.root)
        if not self._counted:
            raise ValueError(
                "the kernel does not count it: set sysctl kernel.task_delayacct=1 and restart the target"
            )
        rates = self._sums.per_second(now)
        return {"io_wait": rates[0] / CLOCK_TICKS * 100} if rates else {}


def _delays_are_counted(root: Path) -> bool:
    """Since Linux 5.14 a sysctl says whether delays are counted (default: no); before, they always were."""
    with suppress(FileNotFoundError):
        return read_bounded(root / "proc/sys/kernel/task_delayacct").strip() != b"0"
    major, minor = (int(part) for part in os.uname().release.split(".")[:2])
    return (major, minor) < (5, 14)
