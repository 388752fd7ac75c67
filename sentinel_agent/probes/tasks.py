"""asyncio tasks, counted in the memory of the process."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sentinel_agent.errors import TargetError
from sentinel_agent.probes.base import Moment, Subject, collect

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.core.model import Reading

BUDGET = 0.002
"""The share of one core that counting may take, where its cost follows the number of tasks."""
_LEAST_STEPS = 500
_STEP_COST = 2e-6  # seconds of CPU a task, until it has been measured
_MEASURABLE = 100  # steps of a call whose cost says something about the cost of one
_LONGEST = 10.0  # seconds between two ticks that the budget adds up over


class TasksProbe:
    """`tasks`: how many are registered, which costs the same for ten as for a hundred thousand up to CPython 3.13.

    From 3.14 on counting means walking over all of them. Each tick walks over as many as BUDGET allows, and what one tick does
    not reach the next ones do; until they have, the last count is given again, late by its age. A process that has not loaded
    asyncio has no reading, nor has one whose first count is not done yet.
    """

    metrics = ("tasks",)

    def __init__(self, subject: Subject, cpu_time: Callable[[], float] = time.thread_time) -> None:
        self._reader = subject.reader
        self._proc = subject.proc
        self._cpu_time = cpu_time
        self._step_cost = _STEP_COST
        self._ticked: float | None = None
        self._counted: tuple[int, float] | None = None  # the last count and when it was done

    def read(self, now: Moment) -> list[Reading]:
        """The number of tasks at this moment, or when it was last known."""
        readings = collect(self.metrics, now, lambda: self._measure(now))
        age = now.monotonic - self._counted[1] if self._counted else 0.0
        return [replace(one, late=now.late + age) if one.error is None else one for one in readings]

    def _measure(self, now: Moment) -> dict[str, float]:
        interpreter = self._reader.interpreter
        count, steps = None, 0
        if interpreter:
            started = self._cpu_time()
            count = interpreter.task_count(self._most_steps(now))
            steps = interpreter.task_steps
            if steps >= _MEASURABLE:
                self._step_cost = max((self._cpu_time() - started) / steps, _STEP_COST / 100)
        if (
            self._proc.stat().ended
        ):  # looked at last: it proves that what was read was not another process's memory
            raise ProcessLookupError
        if interpreter is None:
            raise TargetError(self._reader.why_not)
        if count is not None:
            self._counted = (count, now.monotonic)
        elif not steps:
            self._counted = None
        return {"tasks": self._counted[0]} if self._counted else {}

    def _most_steps(self, now: Moment) -> int:
        """How many tasks may be walked over in this tick."""
        elapsed = min(now.monotonic - self._ticked, _LONGEST) if self._ticked is not None else 1.0
        self._ticked = now.monotonic
        return max(_LEAST_STEPS, int(BUDGET * elapsed / self._step_cost))
