"""How many processes of a target's own cgroup the kernel killed for memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.probes.base import Moment, Subject, collect
from sentinel_agent.target.cgroup import read_counters

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.core.model import Reading
    from sentinel_agent.target.cgroup import Controller, Limits

JUST_NOW = 2.0
"""A kill so many seconds ago may be that of a target that ends now: a large process takes its time to go."""


class OomCount:
    """`oom_kill` of memory.events (v2) or memory.oom_control (v1, Linux 4.13), from look to look."""

    def __init__(self, limits: Callable[[float], Limits]) -> None:
        self._limits = limits
        self._controller: Controller | None = None
        self._count = 0
        self._grown = (0.0, 0)

    def look(self, monotonic: float) -> int | None:
        """By how much the count grew since the last look; None at the first.

        Raises:
            OSError: it cannot be read.
        """
        controller = self._limits(monotonic).memory_controller
        if controller is None:
            raise FileNotFoundError("no memory controller of the target's cgroup can be seen")
        count = _read(controller)
        same = self._controller is not None and self._controller.path == controller.path
        grown = max(0, count - self._count) if same else None
        self._controller, self._count = controller, count
        if grown:
            self._grown = (monotonic, grown)
        return grown

    def just_now(self, monotonic: float) -> int:
        """The growth of the last `JUST_NOW` seconds; where it cannot be read any more, up to the last look."""
        seen, grown = self._grown
        recent = grown if monotonic - seen <= JUST_NOW else 0
        if self._controller is None:
            return recent
        try:
            return recent + max(0, _read(self._controller) - self._count)
        except OSError:
            return recent


def _read(controller: Controller) -> int:
    name = "memory.oom_control" if controller.version == 1 else "memory.events"
    return read_counters(controller, controller.levels[0], name).get("oom_kill", 0)


class OomKillsProbe:
    """`oom_kills`: processes of the target's own cgroup that the kernel killed for memory since the last tick."""

    metrics = ("oom_kills",)

    def __init__(self, subject: Subject) -> None:
        self._oom = subject.oom
        self._proc = subject.proc

    def read(self, now: Moment) -> list[Reading]:
        """What has happened since the last tick."""
        return collect(self.metrics, now, lambda: self._measure(now))

    def _measure(self, now: Moment) -> dict[str, float]:
        grown = self._oom.look(now.monotonic)
        self._proc.stat()  # the folders go by pid: whose they were is proved afterwards
        return {} if grown is None else {"oom_kills": grown}
