"""What a probe is: made for one target, read at each tick, never raising; what fails is a reading that says why."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sentinel_agent.core.model import Reading
from sentinel_agent.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sentinel_agent.core.model import Target
    from sentinel_agent.probes.live import LiveReader
    from sentinel_agent.probes.oom import OomCount
    from sentinel_agent.target.cgroup import Limits
    from sentinel_agent.target.procfs import ProcDir


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant on both clocks, in seconds: `wall` stamps readings, `monotonic` measures between ticks.

    `late` is how long after its planned moment the tick began.
    """

    wall: float
    monotonic: float
    late: float = 0.0


@dataclass(frozen=True, slots=True)
class Subject:
    """What a probe is made for.

    `limits` answers for a monotonic time; `proc` can only ever read this target; `reader` reads its memory, as soon
    as somebody has opened it; `oom` counts what the kernel killed for memory in its cgroup.
    """

    target: Target
    proc: ProcDir
    reader: LiveReader
    limits: Callable[[float], Limits]
    oom: OomCount


class Probe(Protocol):
    """Reads one thing of one target.

    `metrics` names all that `read` may answer. `read` is called on the sampling path: it must be short (well
    under a millisecond), must not wait and must not raise. A metric that is a difference between two ticks has
    no reading at the first one.
    """

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics, the same for the probe's whole life."""
        ...

    def read(self, now: Moment) -> Sequence[Reading]:
        """The readings of this tick."""
        ...


def collect(
    metrics: tuple[str, ...], now: Moment, measure: Callable[[], Mapping[str, float]]
) -> list[Reading]:
    """Measure; what comes becomes readings, a failure becomes one reading with the reason for each metric."""
    try:
        return [reading(metric, now, value) for metric, value in measure().items()]
    except (OSError, ValueError, ArithmeticError, TargetError) as error:
        reason = in_words(error)
        return [Reading(metric, now.wall, None, reason, now.late) for metric in metrics]


def reading(metric: str, now: Moment, value: float) -> Reading:
    """A reading of a value; one that is no number is an error."""
    if math.isfinite(value):
        return Reading(metric, now.wall, value, late=now.late)
    return Reading(metric, now.wall, None, f"measured {value}, which is no number", now.late)


def in_words(error: Exception) -> str:
    """Why a measurement failed, for people."""
    if isinstance(error, ProcessLookupError):
        return "the process has ended"
    if isinstance(error, PermissionError):
        return f"not permitted: {_what(error)}; see `sentinel-agent doctor`"
    if isinstance(error, FileNotFoundError):
        return f"not available here: {_what(error)}"
    if isinstance(error, OSError):
        return _what(error)
    return str(error) or type(error).__name__


def _what(error: OSError) -> str:
    if error.errno is None:
        return str(error)
    words = os.strerror(error.errno)
    return f"{error.filename}: {words}" if isinstance(error.filename, str) else words


class Rates:
    """Differences per second of counters that only grow; a counter that was set back gives nothing once."""

    def __init__(self) -> None:
        self._before: tuple[float, Mapping[str, float]] | None = None

    def per_second(self, now: Moment, counters: Mapping[str, float]) -> dict[str, float]:
        """The rate of each counter since the last call, nothing at the first."""
        before, self._before = self._before, (now.monotonic, counters)
        if before is None or now.monotonic <= before[0]:
            return {}
        elapsed = now.monotonic - before[0]
        return {
            name: (count - before[1][name]) / elapsed
            for name, count in counters.items()
            if name in before[1] and count >= before[1][name]
        }
