"""The nouns of the program: target, reading, incident, artifact. Facts only, frozen, checked on construction.

`Incident` is the waist: everything before makes one, everything after starts from one. It is the document
written as `incident.json`; keys may be added, none renamed (`SCHEMA_VERSION` says which).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

SCHEMA_VERSION = 1


class TargetId(msgspec.Struct, frozen=True, order=True):
    """What makes a process itself: a reused pid has another start time.

    `start_time` is in clock ticks after boot (field 22 of /proc/PID/stat, proc(5)); `pid_namespace` is the
    inode of /proc/PID/ns/pid, 0 where it cannot be read.
    """

    pid: int
    start_time: int
    pid_namespace: int = 0


class Role(msgspec.Struct, frozen=True, order=True):
    """The place a target fills; it outlives restarts, and limits belong to it.

    `worker` is `main` for a process by itself or a master, and `worker-N` for the N-th of its children.
    """

    service: str
    instance: str
    worker: str = "main"

    @property
    def key(self) -> str:
        """`service/instance/worker`, the form shown to people and kept in the store."""
        return f"{self.service}/{self.instance}/{self.worker}"


class Target(msgspec.Struct, frozen=True):
    """One watched process: what identifies it, the role it fills, and how it is called.

    Flat, because this is how it stands in `incident.json`; `id` and `role` give the parts. `command` is the
    command line, secrets already redacted.
    """

    pid: int
    start_time: int
    pid_namespace: int
    service: str
    instance: str
    worker: str
    name: str
    command: tuple[str, ...]
    parent_pid: int | None = None
    python: str | None = None

    @property
    def id(self) -> TargetId:
        """Which process it is."""
        return TargetId(self.pid, self.start_time, self.pid_namespace)

    @property
    def role(self) -> Role:
        """The place it fills."""
        return Role(self.service, self.instance, self.worker)


@dataclass(frozen=True, slots=True)
class Reading:
    """One measured value of one metric of one target at one time.

    `value` is None where the measurement failed; then `error` says why. `late` is how many seconds after its
    planned moment it was taken.
    """

    metric: str
    time: float
    value: float | None
    error: str | None = None
    late: float = 0.0

    def __post_init__(self) -> None:
        if (self.value is None) != (self.error is not None):
            raise ValueError("a reading has either a value or an error")


class Artifact(msgspec.Struct, frozen=True):
    """One captured file of an incident. `format` is an open one: json, pprof, speedscope, collapsed, text."""

    name: str
    kind: str
    format: str
    bytes: int
    sha256: str


CaptureStatus = Literal["ok", "failed", "skipped", "timeout"]


class CaptureReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one capture of an incident went. A capture that did not happen says why, never disappears."""

    kind: str
    status: CaptureStatus
    reason: str = ""
    seconds: float = 0.0
    pause_us: int = 0
    lost_samples: int = 0
    gil_hold_us: int = 0


class Window(msgspec.Struct, frozen=True):
    """The stretch of time that an incident's readings cover, in seconds since the epoch."""

    start: float
    end: float


class Incident(msgspec.Struct, frozen=True):
    """One firing of one rule on one target; the document of `incident.json`.

    Times are seconds since the epoch. `value` and `baseline` are in the metric's unit. `reason` is the test
    that matched (`above_abs`, `diff`, `below`, `expression`, `manual`), `summary` the same in words.
    `thresholds` holds the trigger as it stood, so that a later change of the rule does not rewrite history.
    """

    id: str
    rule: str
    target: Target
    reason: str
    summary: str
    metric: str
    unit: str
    value: float | None
    baseline: float | None
    thresholds: dict[str, float | str | None]
    time: float
    sealed_time: float
    window: Window
    artifacts: tuple[Artifact, ...]
    captures: tuple[CaptureReport, ...]
    lost_samples: int
    longest_pause_us: int
    agent_version: str
    host: str
    cooldown_until: float = 0.0
    schema_version: int = SCHEMA_VERSION


class IncidentRow(msgspec.Struct, frozen=True):
    """One line of `incidents list`: what identifies an incident and why it is there. `target` is the role's key."""

    id: str
    rule: str
    target: str
    time: float
    value: float | None
    reason: str
    pid: int
    metric: str
    unit: str
    summary: str
    bytes: int
