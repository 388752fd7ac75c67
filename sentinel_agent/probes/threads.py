"""OS threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.probes.base import Moment, Subject, collect

if TYPE_CHECKING:
    from sentinel_agent.core.model import Reading


class ThreadsProbe:
    """`threads`: how many the process has."""

    metrics = ("threads",)

    def __init__(self, subject: Subject) -> None:
        self._proc = subject.proc

    def read(self, now: Moment) -> list[Reading]:
        """The number of threads at this moment."""
        return collect(self.metrics, now, self._measure)

    def _measure(self) -> dict[str, float]:
        stat = self._proc.stat()
        if stat.ended:
            raise ProcessLookupError
        return {"threads": stat.threads}
