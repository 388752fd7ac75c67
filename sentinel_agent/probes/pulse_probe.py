"""What the flight recorder's looks have seen since the last tick: stalls of the event loop, pauses of the collector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.errors import TargetError
from sentinel_agent.probes.base import Moment, Subject, collect
from sentinel_agent.probes.pulse import Pulse

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.core.model import Reading


class PulseProbe:
    """One metric that `ask` has of the pulse: None for no reading, words for why it is not known."""

    def __init__(self, subject: Subject, metric: str, ask: Callable[[Pulse], float | str | None]) -> None:
        self.metrics = (metric,)
        self._reader = subject.reader
        self._proc = subject.proc
        self._ask = ask

    def read(self, now: Moment) -> list[Reading]:
        """What has been seen by now, or why nothing was."""
        return collect(self.metrics, now, self._measure)

    def _measure(self) -> dict[str, float]:
        if self._proc.stat().ended:
            raise ProcessLookupError
        if self._reader.interpreter is None:
            raise TargetError(self._reader.why_not)
        found = self._ask(self._reader.pulse)
        if isinstance(found, str):
            raise TargetError(found)
        return {} if found is None else {self.metrics[0]: found}


def loop_stall(subject: Subject) -> PulseProbe:
    """`loop_stall`: the longest that an event loop was seen in one callback since the last tick, up to now.

    A process without an event loop has no reading.
    """
    return PulseProbe(subject, "loop_stall", Pulse.stall)


def gc_pause(subject: Subject) -> PulseProbe:
    """`gc_pause`: the longest that one collection was seen at work since the last tick."""
    return PulseProbe(subject, "gc_pause", Pulse.pause)


def gc_share(subject: Subject) -> PulseProbe:
    """`gc_share`: percent of the looks since the last tick that saw the collector at work, which estimates its time."""
    return PulseProbe(subject, "gc_share", Pulse.share)
