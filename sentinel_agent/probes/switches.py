"""Context switches: of its own will, when a thread waits, and against it, when it is pushed off its core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.probes.base import Moment, Subject, collect
from sentinel_agent.probes.per_thread import ThreadSums

if TYPE_CHECKING:
    from sentinel_agent.core.model import Reading


class SwitchesProbe:
    """`ctx_voluntary` and `ctx_involuntary` per second, over all threads."""

    metrics = ("ctx_voluntary", "ctx_involuntary")

    def __init__(self, subject: Subject) -> None:
        self._sums = ThreadSums(subject.proc, subject.proc.switches)

    def read(self, now: Moment) -> list[Reading]:
        """Switches since the last tick."""
        return collect(self.metrics, now, lambda: self._measure(now))

    def _measure(self, now: Moment) -> dict[str, float]:
        rates = self._sums.per_second(now)
        return dict(zip(self.metrics, rates, strict=True)) if rates else {}
