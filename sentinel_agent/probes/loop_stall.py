"""The event loop that does not come back from a callback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.errors import TargetError
from sentinel_agent.probes.base import Moment, Subject, collect

if TYPE_CHECKING:
    from sentinel_agent.core.model import Reading


class LoopStallProbe:
    """`loop_stall`: seconds, the longest that an event loop was seen in one callback since the last tick, up to now.

    A process without an event loop has no reading.
    """

    metrics = ("loop_stall",)

    def __init__(self, subject: Subject) -> None:
        self._reader = subject.reader
        self._proc = subject.proc

    def read(self, now: Moment) -> list[Reading]:
        """What the flight recorder's looks since the last tick have seen."""
        return collect(self.metrics, now, self._measure)

    def _measure(self) -> dict[str, float]:
        if self._proc.stat().ended:
            raise ProcessLookupError
        if self._reader.interpreter is None:
            raise TargetError(self._reader.why_not)
        found = self._reader.pulse.stall()
        if isinstance(found, str):
            raise TargetError(found)
        return {} if found is None else {"loop_stall": found}
