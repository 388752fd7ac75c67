"""Counters that the kernel keeps per thread only, summed over the threads of a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.probes.base import Moment
    from sentinel_agent.target.procfs import ProcDir

MAX_THREADS = 64


class ThreadSums:
    """Rates of per-thread counters, over the 64 oldest threads.

    /proc/PID/status and /proc/PID/stat count switches and waiting for the main thread alone (psutil passes
    that on), so each thread is read. A thread that began since the last tick counts from zero; what one did
    between the last tick and its end is lost.
    """

    def __init__(self, proc: ProcDir, read: Callable[[int], tuple[int, ...]]) -> None:
        self._proc = proc
        self._read = read
        self._before: tuple[float, dict[int, tuple[int, ...]]] | None = None

    def per_second(self, now: Moment) -> tuple[float, ...]:
        """The rate of each counter since the last call, empty at the first.

        Raises:
            OSError: the process has ended or may not be read.
        """
        counts: dict[int, tuple[int, ...]] = {}
        for thread in self._proc.threads(MAX_THREADS):
            try:
                counts[thread] = self._read(thread)
            except (FileNotFoundError, ProcessLookupError):  # this thread ended after the listing
                continue
        if not counts:
            raise ProcessLookupError
        before, self._before = self._before, (now.monotonic, counts)
        if before is None or now.monotonic <= before[0]:
            return ()
        zeros = (0,) * len(next(iter(counts.values())))
        grown = (
            [max(0, new - old) for new, old in zip(count, before[1].get(thread, zeros), strict=True)]
            for thread, count in counts.items()
        )
        return tuple(sum(column) / (now.monotonic - before[0]) for column in zip(*grown, strict=True))
