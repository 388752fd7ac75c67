"""What the target's garbage collector has done since the last tick, read in its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.cpython.collector import GENERATIONS
from sentinel_agent.errors import TargetError
from sentinel_agent.probes.base import Moment, Subject, collect

if TYPE_CHECKING:
    from sentinel_agent.core.model import Reading

_COUNTS = ("collections", "collected", "uncollectable")


class GcProbe:
    """`gc_collections_gen0` and so on: collections of each generation, objects they freed, and objects they could not.

    Each counts since the last tick, so the first one has no reading.
    """

    metrics = tuple(f"gc_{count}_gen{generation}" for count in _COUNTS for generation in range(GENERATIONS))

    def __init__(self, subject: Subject) -> None:
        self._reader = subject.reader
        self._proc = subject.proc
        self._before: dict[str, int] = {}

    def read(self, now: Moment) -> list[Reading]:
        """What has been collected since the last tick."""
        return collect(self.metrics, now, self._measure)

    def _measure(self) -> dict[str, float]:
        interpreter = self._reader.interpreter
        state = interpreter.collector().read() if interpreter else None
        if self._proc.stat().ended:  # looked at last: what was read was not another process's memory
            raise ProcessLookupError
        if state is None:
            raise TargetError(self._reader.why_not)
        counts = {
            f"gc_{count}_gen{number}": getattr(generation, count)
            for number, generation in enumerate(state.generations)
            for count in _COUNTS
        }
        before, self._before = self._before, counts
        return {name: count - before[name] for name, count in counts.items() if before}
