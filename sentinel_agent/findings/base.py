"""The words of this room: facts go in, a finding comes out, or why it is not known.

A check looks at one thing. It answers with a `Finding`, with None (it looked, and there is nothing to say) or with a
`NotKnown` (what it would look at is not there). Missing data is never "fine".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sentinel_agent.capture.base import Series, SeriesWindow
    from sentinel_agent.capture.heap import HeapDocument
    from sentinel_agent.capture.memray import MemrayDocument
    from sentinel_agent.capture.stacks import Stacks
    from sentinel_agent.capture.task_groups import TasksDocument
    from sentinel_agent.capture.tracemalloc import TracemallocDocument
    from sentinel_agent.core.model import Incident
    from sentinel_agent.findings.requests import RequestsDocument
    from sentinel_agent.profile.record import ProfileRecord

MAX_FINDINGS = 20
_LIBRARY = ("/lib/python3", "<frozen", "/site-packages/", "/dist-packages/")
_MAX_LINE = 400
_MAX_EVIDENCE = 8


class Finding(msgspec.Struct, frozen=True):
    """One conclusion. `score` (0 to 100) says how much it explains; `subject` is the place or thing that it names."""

    check: str
    score: Annotated[int, Meta(ge=0, le=100)]
    text: str
    evidence: tuple[str, ...]
    next_step: str
    subject: str = ""


class NotKnown(msgspec.Struct, frozen=True):
    """A check that could not be made, and why."""

    check: str
    why: str


class Findings(msgspec.Struct, frozen=True):
    """The document of `findings.json`: conclusions, the best first; what is not known; what was looked at in vain."""

    findings: tuple[Finding, ...] = ()
    not_known: tuple[NotKnown, ...] = ()
    nothing_found: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The best finding in one line; empty without one."""
        return self.findings[0].text if self.findings else ""


class Socket(msgspec.Struct, frozen=True):
    """One end of a connection."""

    protocol: str = ""
    remote: str = ""
    state: str = ""


class OpenFile(msgspec.Struct, frozen=True):
    """One open descriptor."""

    kind: str = ""
    socket: Socket | None = None


class OpenFiles(msgspec.Struct, frozen=True):
    """The descriptors that were looked at."""

    looked_at: int = 0
    by_kind: dict[str, int] = {}
    listed: tuple[OpenFile, ...] = ()


class MappingTotal(msgspec.Struct, frozen=True):
    """Mappings of one kind (target/mappings.py): how many, and how many bytes of them are resident."""

    count: int = 0
    resident_bytes: int = 0


class ProcessFacts(msgspec.Struct, frozen=True):
    """What is used of `process.json`; every part may be missing."""

    memory: dict[str, int] = {}
    mappings: dict[str, MappingTotal] = {}
    files: OpenFiles = OpenFiles()


class EarlierIncident(msgspec.Struct, frozen=True):
    """An incident of the same rule and role, and the subject of its best finding (empty: not known)."""

    time: float
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an incident. A part that is None is named in `missing`, with the reason.

    `during` holds the stacks on a CPU since the condition became true, `timeline` every thread's over the recorder's
    window, `stacks` those of the moment. `earlier` are incidents of the same rule and role, newest first.
    """

    incident: Incident
    series: SeriesWindow | None = None
    during: ProfileRecord | None = None
    timeline: ProfileRecord | None = None
    stacks: Stacks | None = None
    tasks: TasksDocument | None = None
    process: ProcessFacts | None = None
    allocations: TracemallocDocument | None = None
    memray: MemrayDocument | None = None
    heap: HeapDocument | None = None
    requests: RequestsDocument | None = None
    gc: HeapDocument | None = None
    earlier: tuple[EarlierIncident, ...] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def about(self, *metrics: str) -> bool:
        """Whether the rule watches one of these metrics."""
        return self.incident.metric in metrics

    def readings(self, metric: str) -> Series | None:
        """The readings of a metric, None without any."""
        series = self.series.metrics.get(metric) if self.series else None
        return series if series and series.values else None

    def not_known(self, check: str, part: str) -> NotKnown:
        """That a check could not be made for want of a part."""
        return NotKnown(check, self.missing.get(part, f"there is no {part}"))

    def no_readings(self, check: str, metric: str) -> NotKnown:
        """That a check could not be made for want of a metric's readings."""
        if self.series is None:
            return self.not_known(check, "series")
        return NotKnown(check, self.series.errors.get(metric, f"there are no readings of {metric}"))


def finding(
    check: str, score: float, text: str, *evidence: str, next_step: str, subject: str = ""
) -> Finding:
    """A finding within its bounds; empty lines of evidence are left out."""
    return Finding(
        check=check,
        score=min(100, max(0, round(score))),
        text=cut(text),
        evidence=tuple(cut(line) for line in evidence if line)[:_MAX_EVIDENCE],
        next_step=cut(next_step),
        subject=cut(subject),
    )


def cut(text: str) -> str:
    """`text` on one line and of a bounded length; it may hold anything that a target chose to call its functions."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_LINE else f"{line[: _MAX_LINE - 1]}…"


def place(function: str, file: str, line: int) -> str:
    """`function (file:line)`, the form of every place in a finding."""
    if not file:
        return function
    return f"{function} ({file}:{line})" if line else f"{function} ({file})"


def is_library(file: str) -> bool:
    """Whether a file is of the standard library or of an installed package, as far as its path tells."""
    return any(part in file for part in _LIBRARY)
