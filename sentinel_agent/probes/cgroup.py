"""How often the container's CPU and memory limits were hit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from sentinel_agent.probes.base import Moment, Subject, collect
from sentinel_agent.target.cgroup import read_counters

if TYPE_CHECKING:
    from sentinel_agent.core.model import Reading
    from sentinel_agent.target.cgroup import Controller

_Counters = dict[str, int]


class Increases:
    """By how much the counters of a cgroup file grew since the last call, per level."""

    def __init__(self) -> None:
        self._before: dict[str, _Counters] = {}

    def of(self, controller: Controller, levels: tuple[str, ...], name: str) -> list[_Counters]:
        """One entry per level that was there at the last call too."""
        counters = {level: read_counters(controller, level, name) for level in levels}
        before, self._before = self._before, counters
        return [
            {key: max(0, value - before[level].get(key, 0)) for key, value in now.items()}
            for level, now in counters.items()
            if level in before
        ]


class _CgroupProbe(ABC):
    """What the probes of a cgroup's counters share: whose cgroup it is, and what the counters were at the last tick."""

    metrics: tuple[str, ...]

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._increases = Increases()

    def read(self, now: Moment) -> list[Reading]:
        """What has happened since the last tick."""
        return collect(self.metrics, now, lambda: self._measure(now))

    @abstractmethod
    def _measure(self, now: Moment) -> dict[str, float]:
        """The metrics by name; raises as `collect` allows."""


class ThrottlingProbe(_CgroupProbe):
    """`throttled`: percent of the CPU periods since the last tick in which the quota was used up.

    From `cpu.stat` of every level that has a quota, the worst one; 0 where no level has one.
    """

    metrics = ("throttled",)

    def _measure(self, now: Moment) -> dict[str, float]:
        limits = self._subject.limits(now.monotonic)
        if limits.cpu is None:
            raise FileNotFoundError("no CPU controller of the target's cgroup can be seen")
        grown = self._increases.of(limits.cpu, limits.cpu_levels, "cpu.stat")
        self._subject.proc.stat()  # the folders go by pid: whose they were is proved afterwards
        if not limits.cpu_levels:
            return {"throttled": 0.0}
        shares = [level.get("nr_throttled", 0) / max(1, level.get("nr_periods", 0)) for level in grown]
        return {"throttled": min(1.0, max(shares)) * 100} if shares else {}


class MemoryEventsProbe(_CgroupProbe):
    """`memory_events`: times a memory limit was hit since the last tick, at the level where it was hit most.

    v2: `max` of memory.events. v1: memory.failcnt.
    """

    metrics = ("memory_events",)

    def _measure(self, now: Moment) -> dict[str, float]:
        limits = self._subject.limits(now.monotonic)
        controller = limits.memory_controller
        if controller is None:
            raise FileNotFoundError("no memory controller of the target's cgroup can be seen")
        name, key = ("memory.failcnt", "") if controller.version == 1 else ("memory.events", "max")
        grown = self._increases.of(controller, limits.memory_levels, name)
        self._subject.proc.stat()
        if not limits.memory_levels:
            return {"memory_events": 0}
        return {"memory_events": max(level.get(key, 0) for level in grown)} if grown else {}
