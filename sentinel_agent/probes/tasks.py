"""asyncio tasks, counted in the memory of the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.errors import TargetError
from sentinel_agent.probes.base import Moment, Subject, collect

if TYPE_CHECKING:
    from sentinel_agent.core.model import Reading


class TasksProbe:
    """`tasks`: how many are registered, which costs the same for ten as for a hundred thousand.

    A process that has not loaded asyncio has no reading.
    """

    metrics = ("tasks",)

    def __init__(self, subject: Subject) -> None:
        self._reader = subject.reader
        self._proc = subject.proc

    def read(self, now: Moment) -> list[Reading]:
        """The number of tasks at this moment."""
        return collect(self.metrics, now, self._measure)

    def _measure(self) -> dict[str, float]:
        interpreter = self._reader.interpreter
        count = interpreter.task_count() if interpreter else None
        if (
            self._proc.stat().ended
        ):  # looked at last: it proves that what was read was not another process's memory
            raise ProcessLookupError
        if interpreter is None:
            raise TargetError(self._reader.why_not)
        return {} if count is None else {"tasks": count}
