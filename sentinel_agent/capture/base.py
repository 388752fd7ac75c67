"""What a capture is: a plan in, files out, bounded in time, bytes and pause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from sentinel_agent.capture.heap import HeapCensus
    from sentinel_agent.capture.task_groups import TaskSnapshot
    from sentinel_agent.core.model import Target
    from sentinel_agent.core.rule import CaptureSpec

if TYPE_CHECKING:
    from sentinel_agent.profile.record import ProfileRecord


_FRESH = 5  # intervals


class Series(msgspec.Struct, frozen=True):
    """One metric's readings; `times` in seconds since the epoch, `values` in `unit`."""

    unit: str
    times: list[float]
    values: list[float]


class SeriesWindow(msgspec.Struct, frozen=True):
    """The readings around an incident; `errors` says per metric why there are none, or how many failed."""

    start: float
    end: float
    interval: float
    metrics: dict[str, Series]
    errors: dict[str, str] = {}


def latest(window: SeriesWindow) -> dict[str, float]:
    """The value of each metric as it is at the end of the window; one that was last read long ago is left out."""
    oldest = window.end - _FRESH * window.interval
    return {
        name: series.values[-1]
        for name, series in window.metrics.items()
        if series.values and series.times[-1] >= oldest
    }


@dataclass(frozen=True, slots=True)
class Recording:
    """What the flight recorder holds of a target around an incident.

    `wall` has every thread, `cpu` only those on a CPU, `during` the latter since the condition became true.
    `coverage` is the share (0 to 1) of the wall time of that last part for which there is a stack.
    """

    wall: ProfileRecord
    cpu: ProfileRecord
    during: ProfileRecord
    coverage: float


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """What one capture is to do.

    `spec` has every key filled in from the settings. The capture writes only into `folder`, which is its own
    and goes with whatever a failed capture leaves in it. It is cancelled after `deadline` seconds, and refused
    if its files are larger than `max_bytes` together. `series` gives the readings as they are when it is called,
    `recording` the stacks of the flight recorder, None where nothing is recorded. `tail` is how many seconds after
    the trigger a capture of what is recorded anyway should wait for. `ended` is how the target ended, if it has: then
    nothing can be read of it, and its pid may be another's. `max_pause` is for how many seconds it may be stopped at once,
    if the spec asks for a pause, and for how many code of ours may hold its GIL at once; `allow_injection` whether such
    code may be run in the target at all. `tasks_before` gives the tasks as they were when the target was well, or why they are
    not known; `heap_before` the same of its objects.
    """

    target: Target
    folder: Path
    trigger_time: float
    spec: CaptureSpec
    deadline: float
    max_bytes: int
    series: Callable[[], SeriesWindow]
    redact: bool = True
    recording: Callable[[], Awaitable[Recording | None]] | None = None
    tail: float = 0.0
    ended: str | None = None
    max_pause: float = 0.0
    allow_injection: bool = False
    tasks_before: Callable[[], TaskSnapshot | str] | None = None
    heap_before: Callable[[], HeapCensus | str] | None = None

    @property
    def duration(self) -> float:
        """Seconds that a capture over time runs."""
        assert self.spec.duration is not None, "the runner fills it in"
        return self.spec.duration

    @property
    def rate(self) -> int:
        """Samples per second."""
        assert self.spec.rate is not None, "the runner fills it in"
        return self.spec.rate


@dataclass(frozen=True, slots=True)
class CapturedFile:
    """A file that a capture wrote: its plain name in the folder, what it shows, and its open format."""

    name: str
    kind: str
    format: str


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """What a capture made.

    `pause_us` is the longest time that the target was stopped at once, `gil_hold_us` the longest that code of ours held its
    GIL at once.
    """

    files: tuple[CapturedFile, ...]
    pause_us: int = 0
    lost_samples: int = 0
    gil_hold_us: int = 0
    note: str = ""


class Capture(Protocol):
    """One kind of capture. Strangers' ones are classes named by the entry point group `sentinel_agent.captures`.

    It may have a `duration` in seconds and a guard `skip_when`, for steps that name none themselves.
    """

    @property
    def kind(self) -> str:
        """The word used in rules."""
        ...

    @property
    def attaches(self) -> bool:
        """Whether it reads the target's memory; such captures take turns on a target."""
        ...

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        """Write the files of the plan.

        Raises:
            SentinelError: what went wrong, by whose fault. Cancellation must end it at once and leave no child.
        """
        ...
