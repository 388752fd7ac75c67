"""What the agent knows of itself at one moment: targets, rules with their states, its own cost and troubles.

Published as a small file in the data directory, from which `rules list` and `rules explain` read, also after the
agent has ended.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import psutil

from sentinel_agent import __version__
from sentinel_agent.capture.task_groups import context_in_words
from sentinel_agent.capture.task_snapshots import TaskSnapshotStatistics
from sentinel_agent.core.decision import Decision
from sentinel_agent.core.limits import LimitRecord
from sentinel_agent.core.metrics import METRICS, Metric
from sentinel_agent.core.model import Role, Target
from sentinel_agent.core.redact import redact_command
from sentinel_agent.core.rule import Rule
from sentinel_agent.export.base import AgentReading, LineStatus, lost_rows
from sentinel_agent.store import status as files
from sentinel_agent.store.owner import this_process

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from sentinel_agent.capture.task_snapshots import TaskSnapshots
    from sentinel_agent.clock import Clock
    from sentinel_agent.config.load import Loaded
    from sentinel_agent.core.engine import RuleEngine
    from sentinel_agent.core.model import Reading, TargetId
    from sentinel_agent.core.state import State
    from sentinel_agent.responder import Responder
    from sentinel_agent.sampler import Sampler


STATES_AT_MOST = 1500
"""Rules times targets that are published; each takes about 400 bytes of the 1 MiB that a status may have."""

_TELLING: tuple[State, ...] = ("firing", "pending", "cooling", "inactive", "warmup")


RECENT = ("cpu", "rss", "tasks", "loop_stall")
"""Metrics of which the last minutes are published, for `top`."""
RECENT_STEP = 3.0
"""Seconds; of each such stretch the highest reading is kept."""
_RECENT_STEPS = 60
_SHOWN_TEXT = 100


class TaskLine(msgspec.Struct, frozen=True):
    """One group of tasks: how many, of which coroutine, where the chain ends, what it waits on, what it is for. Texts are cut."""

    count: int
    coroutine: str
    place: str
    waiting_on: str | None
    context: str = ""


class TasksSeen(msgspec.Struct, frozen=True):
    """The largest groups of tasks as they were at `time`; counts are estimates where `every` is above 1."""

    time: float
    count: int
    every: int
    groups: tuple[TaskLine, ...]


class TargetState(msgspec.Struct, frozen=True):
    """A target with its latest readings; a metric whose reading failed is in `errors`.

    `recent` has the last minutes of some metrics, oldest first, one value for each `RECENT_STEP`, None where there was none.
    """

    target: Target
    readings: dict[str, float]
    errors: dict[str, str]
    recent: dict[str, tuple[float | None, ...]] = {}
    tasks: TasksSeen | None = None


class RuleEntry(msgspec.Struct, frozen=True):
    """A rule in force and where it stands (`rules.yaml:12`)."""

    rule: Rule
    source: str


class RuleState(msgspec.Struct, frozen=True):
    """The last decision of a rule on a target, and what it has used of its limits there."""

    pid: int
    role: Role
    decision: Decision
    limits: LimitRecord | None


class AgentStatus(msgspec.Struct, frozen=True):
    """The whole status: facts, from which the reader makes words (`core.explain`).

    Times in seconds since the epoch; `cpu_ratio` is of one core since the start; `metrics` are those that the
    probes of some target publish; `states_left_out` counts the least telling states, for which there was no room.
    """

    pid: int
    version: str
    started: float
    time: float
    command: tuple[str, ...]
    targets: tuple[TargetState, ...]
    rules: tuple[RuleEntry, ...]
    states: tuple[RuleState, ...]
    states_left_out: int
    metrics: tuple[str, ...]
    capture_kinds: tuple[str, ...]
    reload_error: str | None
    ticks: int
    missed_ticks: int
    max_late: float
    incidents_sealed: int
    incidents_lost: int
    last_lost: str
    cpu_ratio: float
    troubles: dict[str, int]
    exporters: tuple[LineStatus, ...] = ()
    task_snapshots: TaskSnapshotStatistics | None = None


class StatusWriter:
    """Keeps the last decisions and makes the status of them."""

    def __init__(self, data_dir: Path, clock: Clock, capture_kinds: frozenset[str]) -> None:
        self._data_dir = data_dir
        self._clock = clock
        self._capture_kinds = tuple(sorted(capture_kinds))
        self._owner = this_process()
        self._started = clock.wall()
        self._began = clock.monotonic()
        self._last: dict[str, tuple[Target, Sequence[Decision]]] = {}
        self._recent: dict[TargetId, _Recent] = {}

    def note(self, target: Target, decisions: Sequence[Decision]) -> dict[str, str]:
        """Remember the newest decisions of a target; the reasons of those before, by rule."""
        _, before = self._last.get(target.role.key, (target, ()))
        self._last[target.role.key] = (target, decisions)
        return {decision.rule: decision.reason for decision in before}

    def is_well(self, target: Target) -> bool:
        """Whether its rules were judged, none of them is about to fire or firing, and the number of its tasks is as usual."""
        _, decisions = self._last.get(target.role.key, (target, ()))
        return bool(decisions) and not any(
            decision.state in ("pending", "firing") or (decision.matched and decision.metric == "tasks")
            for decision in decisions
        )

    def forget(self, target: Target) -> None:
        """The target has ended."""
        self._last.pop(target.role.key, None)
        self._recent.pop(target.id, None)

    def describe(
        self,
        loaded: Loaded,
        reload_error: str | None,
        engine: RuleEngine,
        sampler: Sampler,
        responder: Responder,
        troubles: Mapping[str, int],
        exports: Sequence[LineStatus] = (),
    ) -> bytes:
        """The status as JSON."""
        now = self._clock.wall()
        statistics = sampler.statistics()
        series = tuple(sampler.targets.values())
        limits = engine.limits()
        every = [
            (key, target, decision)
            for key, (target, decisions) in self._last.items()
            for decision in decisions
        ]
        kept = heapq.nsmallest(STATES_AT_MOST, every, key=lambda each: _TELLING.index(each[2].state))
        status = AgentStatus(
            pid=self._owner.pid,
            version=__version__,
            started=self._started,
            time=now,
            command=_own_command(),
            targets=tuple(
                TargetState(
                    each.target,
                    {name: found.value for name, found in each.latest.items() if found.value is not None},
                    {name: found.error for name, found in each.latest.items() if found.error is not None},
                    self._recent.setdefault(each.target.id, _Recent()).with_latest(now, each.latest),
                    _tasks_seen(responder.task_snapshots, each.target.id),
                )
                for each in series
            ),
            rules=tuple(RuleEntry(found.rule, found.source) for found in loaded.rules),
            states=tuple(
                RuleState(target.id.pid, target.role, decision, limits.get((key, decision.rule)))
                for key, target, decision in kept
            ),
            states_left_out=len(every) - len(kept),
            metrics=tuple(sorted({name for each in series for name in each.metrics})),
            capture_kinds=self._capture_kinds,
            reload_error=reload_error,
            ticks=statistics.ticks,
            missed_ticks=statistics.missed_ticks,
            max_late=statistics.max_late,
            incidents_sealed=responder.statistics.sealed,
            incidents_lost=responder.statistics.lost,
            last_lost=responder.statistics.last_lost,
            cpu_ratio=self._cpu_ratio(),
            troubles=dict(troubles),
            exporters=tuple(exports),
            task_snapshots=responder.task_snapshots.statistics() if responder.task_snapshots else None,
        )
        return _fitting(status)

    def reading(self, sampler: Sampler, responder: Responder, exports: Sequence[LineStatus]) -> AgentReading:
        """What the agent measures of itself, for exporters."""
        statistics = sampler.statistics()
        values = {
            "cpu_ratio": self._cpu_ratio(),
            "rss_bytes": float(psutil.Process().memory_info().rss),
            "lateness_seconds": statistics.last_late,
            "max_lateness_seconds": statistics.max_late,
            "ticks": float(statistics.ticks),
            "missed_ticks": float(statistics.missed_ticks),
            "read_errors": float(statistics.read_errors),
            "incidents_sealed": float(responder.statistics.sealed),
            "incidents_lost": float(responder.statistics.lost),
        }
        memory = psutil.virtual_memory()
        values |= {
            "host_cpu_percent": psutil.cpu_percent(),
            "host_memory_percent": memory.percent,
            "host_memory_bytes": float(memory.total),
        }
        if responder.deck is not None:
            values |= responder.deck.samples_taken()
        rules = tuple(
            (decision.rule, key, decision.state)
            for key, (_, decisions) in self._last.items()
            for decision in decisions
        )
        return AgentReading(self._clock.wall(), values, rules, lost_rows(exports))

    def _cpu_ratio(self) -> float:
        return time.process_time() / max(1.0, self._clock.monotonic() - self._began)

    def publish(self, document: bytes) -> None:
        """Put the status into the data directory. Raises StoreError."""
        files.publish(self._data_dir, self._owner.pid, self._owner.start_time, document)

    def withdraw(self) -> None:
        """The agent ends in order: its status is no longer true."""
        files.withdraw(self._data_dir, self._owner.pid, self._owner.start_time)


@dataclass(slots=True)
class _Recent:
    """The last minutes of one target: for each metric the highest reading of every step."""

    step: int = -1
    values: dict[str, deque[float | None]] = field(
        default_factory=lambda: {name: deque(maxlen=_RECENT_STEPS) for name in RECENT}
    )

    def with_latest(self, now: float, latest: Mapping[str, Reading]) -> dict[str, tuple[float | None, ...]]:
        """Take in the latest readings; what is to be published, without the metrics that never had one."""
        step = int(now // RECENT_STEP)
        for name, kept in self.values.items():
            if step != self.step:
                kept.append(None)
            reading = latest.get(name)
            if (
                reading is not None
                and reading.value is not None
                and (kept[-1] is None or reading.value > kept[-1])
            ):
                kept[-1] = round(reading.value, 3)
        self.step = step
        return {
            name: tuple(kept) for name, kept in self.values.items() if any(each is not None for each in kept)
        }


def _tasks_seen(snapshots: TaskSnapshots | None, target: TargetId) -> TasksSeen | None:
    latest = snapshots.latest(target) if snapshots else None
    if latest is None:
        return None
    lines = []
    for group in latest.groups:
        leaf = group.frames[-1] if group.frames else None
        place = f"{leaf.function[:_SHOWN_TEXT]} ({leaf.file[-_SHOWN_TEXT:]}:{leaf.line})" if leaf else ""
        waiting_on = group.waiting_on and group.waiting_on[:_SHOWN_TEXT]
        context = context_in_words(group)[:_SHOWN_TEXT]
        lines.append(TaskLine(group.count, group.coroutine[:_SHOWN_TEXT], place, waiting_on, context))
    return TasksSeen(latest.time, latest.count, latest.every, tuple(lines))


def _fitting(status: AgentStatus) -> bytes:
    """The status as JSON; if it is too large to be published, first the last minutes are left out, then halves of its states."""
    document = msgspec.json.encode(status)
    if len(document) > files.MAX_STATUS_BYTES:
        bare = tuple(msgspec.structs.replace(each, recent={}, tasks=None) for each in status.targets)
        status = msgspec.structs.replace(status, targets=bare)
        document = msgspec.json.encode(status)
    while len(document) > files.MAX_STATUS_BYTES and status.states:
        count = len(status.states)
        left = status.states_left_out + count - count // 2
        status = msgspec.structs.replace(status, states=status.states[: count // 2], states_left_out=left)
        document = msgspec.json.encode(status)
    return document


def _own_command() -> tuple[str, ...]:
    """How the agent was started; `run` has the command line of a target in it, with its secrets."""
    return tuple(word.encode("utf-8", "backslashreplace").decode() for word in redact_command(sys.argv))


def known_metrics(published: Iterable[str]) -> dict[str, Metric]:
    """The catalogue as it is here: what plug-ins publish and the catalogue has no word of is there as well."""
    others = (name for name in published if name not in METRICS)
    return METRICS | {name: Metric(name, "count", "published by a plug-in") for name in others}
