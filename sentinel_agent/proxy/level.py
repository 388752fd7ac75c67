"""How loaded a worker is: by its own readings, and by what the agent reads of the processes that it watches.

1 is all there is. Its own are its CPU of one core, the delay of its event loop over `lag`, and the CPU of its container
of the quota, where there is one. The agent tells of its targets once a second; what it told counts for three seconds, so that
a worker whose agent is gone goes by its own.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.proxy.config import AdaptiveLimit
    from sentinel_agent.proxy.messages import TargetLevel
    from sentinel_agent.target.cgroup import LimitsView

TOLD_SECONDS: Final = 3.0


class Level(NamedTuple):
    """A level, and what it is of."""

    value: float
    source: str


class LevelMeter:
    """Measures from one call of `measure` to the next; `now` is monotonic."""

    def __init__(self, spec: AdaptiveLimit, now: float) -> None:
        self._lag = spec.lag
        self._metrics = frozenset(spec.metrics)
        self._time = now
        self._cpu = time.process_time()
        self._told: tuple[TargetLevel, ...] = ()
        self._told_at = -TOLD_SECONDS
        self._container = _Container(now)

    def told(self, levels: Sequence[TargetLevel], now: float) -> None:
        """The agent has told of its targets."""
        self._told = tuple(each for each in levels if each.metric in self._metrics)
        self._told_at = now

    def measure(self, now: float, lag: float) -> Level:
        """The highest level; `lag` is the longest delay of the event loop since the last call, in seconds."""
        cpu = time.process_time()
        seconds = max(now - self._time, 1e-3)
        found = [
            Level((cpu - self._cpu) / seconds, "cpu of this worker"),
            Level(lag / self._lag, "delay of the event loop"),
        ]
        self._time, self._cpu = now, cpu
        container = self._container.share(now)
        if container is not None:
            found.append(Level(container, "cpu of the container"))
        if now - self._told_at <= TOLD_SECONDS:
            found += [Level(each.value, f"{each.metric} of {each.target}") for each in self._told]
        return max(found)


class _Container:
    """The CPU of this process's container, as a share of its quota (cgroup v2, `cpu.stat`)."""

    def __init__(self, now: float) -> None:
        self._view = _own_limits()
        self._time = now
        self._used: dict[str, int] = {}

    def share(self, now: float) -> float | None:
        """Since the last call; None where there is no quota, or nothing can be read."""
        if self._view is None:
            return None
        from sentinel_agent.target.cgroup import read_counters  # noqa: PLC0415 - only where a limit is wanted

        try:
            limits = self._view.at(now)
            if limits.cpu is None:
                return None
            used = {
                level: read_counters(limits.cpu, level, "cpu.stat").get("usage_usec", 0)
                for level in limits.cpu_levels
            }
        except OSError:
            return None
        before, self._used = self._used, used
        seconds, self._time = max(now - self._time, 1e-3), now
        grown = [(used[level] - before[level]) / 1e6 / seconds for level in used if level in before]
        return max(grown) / limits.cpu_cores if grown else None


def _own_limits() -> LimitsView | None:
    from sentinel_agent.target.cgroup import LimitsView  # noqa: PLC0415 - only where a limit is wanted
    from sentinel_agent.target.procfs import ProcDir  # noqa: PLC0415 - as above

    try:
        return LimitsView(ProcDir(os.getpid()))
    except OSError:
        return None
