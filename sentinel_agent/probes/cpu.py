"""CPU time as the difference of two readings of the kernel's own account: no blind window, no sampling error."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from sentinel_agent.probes.base import Moment, Rates, Subject, collect
from sentinel_agent.target.procfs import CLOCK_TICKS

if TYPE_CHECKING:
    from sentinel_agent.core.model import Reading
    from sentinel_agent.target.procfs import ProcDir


def process_clock(pid: int) -> int:
    """The id of the clock that counts a process's CPU time, in nanoseconds.

    clock_getcpuclockid(3); the kernel forms it as in `include/linux/posix-timers_types.h`:
    `(~pid << 3) | CPUCLOCK_SCHED`.
    """
    return (~pid << 3) | 2


class CpuProbe:
    """`cpu` in percent of one core, `cpu_limit` in percent of the CPU limit."""

    metrics = ("cpu", "cpu_limit")

    def __init__(self, subject: Subject) -> None:
        self._proc = subject.proc
        self._limits = subject.limits
        self._rates = Rates()
        self._clock = _usable_clock(subject.proc)

    @property
    def exact(self) -> bool:
        """Whether nanoseconds are read; otherwise the kernel refuses and it is 10 ms ticks."""
        return self._clock is not None

    def read(self, now: Moment) -> list[Reading]:
        """CPU time used since the last tick."""
        return collect(self.metrics, now, lambda: self._measure(now))

    def _measure(self, now: Moment) -> dict[str, float]:
        used = self._used()
        rate = self._rates.per_second(now, {"used": used}).get("used")
        if rate is None:
            return {}
        return {"cpu": rate * 100, "cpu_limit": rate * 100 / self._limits(now.monotonic).cpu_cores}

    def _used(self) -> float:
        """Seconds of CPU time so far.

        The clock goes by pid. Reading `stat` after it proves that the process was still there, so that no
        other process can have had the pid when the clock was read.
        """
        nanoseconds = None
        if self._clock is not None:
            with suppress(OSError):  # EINVAL once it is gone; `stat` then says so
                nanoseconds = time.clock_gettime_ns(self._clock)
        ticks = self._proc.stat().cpu_ticks
        return ticks / CLOCK_TICKS if nanoseconds is None else nanoseconds / 1e9


def _usable_clock(proc: ProcDir) -> int | None:
    """The process's clock if the kernel gives it and it agrees with `stat`, as it must."""
    if not proc.real:
        return None
    try:
        clock = process_clock(proc.pid)
        seconds = time.clock_gettime_ns(clock) / 1e9
        return clock if abs(seconds - proc.stat().cpu_ticks / CLOCK_TICKS) <= 1 + 0.05 * seconds else None
    except OSError:
        return None
