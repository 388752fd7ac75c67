"""From a firing to a sealed incident: the budget is asked, captures run, the folder is sealed or discarded whole."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import msgspec

from sentinel_agent import __version__
from sentinel_agent.capture.base import Recording, Series, SeriesWindow
from sentinel_agent.capture.room import Room
from sentinel_agent.core.event import IncidentLost, IncidentOpened, IncidentSealed
from sentinel_agent.core.metrics import unit_of
from sentinel_agent.core.model import CaptureReport, Incident, Target, Window
from sentinel_agent.core.sentence import summary
from sentinel_agent.errors import SentinelError
from sentinel_agent.findings.load import write_findings
from sentinel_agent.profile.views import on_cpu_only
from sentinel_agent.target.own_memory import OwnMemory, give_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sentinel_agent.capture.heap_snapshots import HeapSnapshots
    from sentinel_agent.capture.runner import Captured, CaptureRunner
    from sentinel_agent.capture.task_groups import TaskSnapshot
    from sentinel_agent.capture.task_snapshots import TaskSnapshots
    from sentinel_agent.clock import Clock
    from sentinel_agent.core.budget import Budget
    from sentinel_agent.core.decision import Decision
    from sentinel_agent.core.event import Event
    from sentinel_agent.core.rule import CaptureSpec, Rule
    from sentinel_agent.recorder.deck import FlightDeck
    from sentinel_agent.recorder.ring import Ring
    from sentinel_agent.sampler import TargetSeries
    from sentinel_agent.store.folder import IncidentWriter
    from sentinel_agent.store.store import Store

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DiskThread:
    """The one thread in which the agent touches its disk, in order; a slow disk delays neither ticks nor captures."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sentinel-disk")

    async def __call__(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run `work` there. If the caller is cancelled, work that has begun goes on to its end."""
        return await asyncio.wrap_future(self._executor.submit(work, *args, **kwargs))

    def close(self) -> None:
        """Let what has been handed over finish."""
        self._executor.shutdown(wait=True)


@dataclass(frozen=True, slots=True)
class Firing:
    """Why an incident is made and what it shall hold. Times in seconds since the epoch.

    `since` is when the condition became true, None for the time of the reading that fired.
    `spared` is set when the rule's guard forbids captures that cost the target something; then only the
    readings are kept and every other capture says so. `ended` is how the target ended, if it has: then `time` is when.
    """

    rule: str
    reason: str
    summary: str
    metric: str
    value: float | None
    baseline: float | None
    thresholds: dict[str, float | str | None]
    time: float
    captures: tuple[CaptureSpec, ...]
    cooldown: float = 0.0
    spared: str | None = None
    since: float | None = None
    ended: str | None = None


def firing_of(rule: Rule, decision: Decision) -> Firing:
    """What is needed of a decision that fired, or that would have but for a guard."""
    return Firing(
        rule=rule.name,
        reason=decision.test,
        summary=summary(rule, decision, unit_of(decision.metric)),
        metric=decision.metric,
        value=decision.value,
        baseline=decision.baseline,
        thresholds=rule.thresholds(),
        time=decision.time,
        captures=rule.captures(),
        cooldown=rule.cooldown,
        since=decision.since,
        spared=None if decision.fire else decision.reason,
    )


def manual_firing(
    series: TargetSeries,
    summary: str,
    captures: Sequence[CaptureSpec],
    now: float,
    since: float | None = None,
) -> Firing:
    """An incident that somebody asked for, as if a rule had fired `now`; `summary` says by which way."""
    cpu = series.latest.get("cpu")
    return Firing(
        rule="manual",
        reason="manual",
        summary=summary,
        metric="cpu",
        value=cpu.value if cpu else None,
        baseline=None,
        thresholds={},
        time=now,
        captures=tuple(captures),
        since=since,
    )


@dataclass(slots=True)
class ResponderStatistics:
    """How incidents have ended since the start."""

    sealed: int = 0
    lost: int = 0
    last_lost: str = ""


@dataclass(slots=True)
class Responder:
    """Makes incidents. `runner` and `window_before` (seconds) may be replaced when the settings are reloaded."""

    store: Store
    disk: DiskThread
    runner: CaptureRunner
    budget: Budget
    clock: Clock
    host: str
    interval: float
    window_before: float
    tell: Callable[[Event], None]
    deck: FlightDeck | None = None
    task_snapshots: TaskSnapshots | None = None
    heap_snapshots: HeapSnapshots | None = None
    room: Room = field(default_factory=lambda: Room(OwnMemory().left, give_back))
    statistics: ResponderStatistics = field(default_factory=ResponderStatistics)

    async def respond(self, firing: Firing, series: TargetSeries) -> Incident | None:
        """The sealed incident, or None if nothing was kept; the reason is told and counted.

        Cancelling it discards the incident whole; one that is just being sealed is still returned.
        """
        refusal = self.budget.admit(self.clock.monotonic())
        if refusal is not None:
            self._lost(firing, series.target, f"the budget is used up: {refusal}")
            return None
        size = 0
        try:
            async with self.room.place() as crowded:
                incident = await self._make(firing, series, crowded)
            size = sum(artifact.bytes for artifact in incident.artifacts)
        except SentinelError as error:
            self._lost(firing, series.target, error.message)
            return None
        except asyncio.CancelledError:
            self._lost(firing, series.target, "it was ended before its captures were")
            raise
        finally:
            self.budget.finished(self.clock.monotonic(), size)
        self.statistics.sealed += 1
        folder = str(self.store.data_dir / "incidents" / incident.id)
        self.tell(IncidentSealed(self.clock.wall(), incident, folder))
        return incident

    async def _make(self, firing: Firing, series: TargetSeries, crowded: str | None) -> Incident:
        """`crowded`: why there is no room for captures."""
        incident_id = await self.disk(self.store.new_id, firing.time)
        writer = await self._begin(incident_id)
        self.tell(IncidentOpened(self.clock.wall(), incident_id, firing.rule, series.target, firing.summary))
        try:
            return await self._write(firing, series, writer, firing.spared or crowded)
        except BaseException:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self.disk(writer.discard))
            raise

    async def _begin(self, incident_id: str) -> IncidentWriter:
        """The writer. A folder whose making had begun when this was cancelled is removed again."""
        beginning = asyncio.ensure_future(self.disk(self.store.begin, incident_id))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            writer = await beginning
            await self.disk(writer.discard)
            raise

    async def _write(
        self, firing: Firing, series: TargetSeries, writer: IncidentWriter, spared: str | None
    ) -> Incident:
        wanted = () if spared else firing.captures
        ring = self.deck.ring(series.target.id) if self.deck else None
        taken = SeriesWindow(firing.time, firing.time, self.interval, {})
        recorded: Recording | None = None

        def take() -> SeriesWindow:
            nonlocal taken
            taken = self.window(series, firing.time)
            return taken

        async def record() -> Recording | None:
            nonlocal recorded
            recorded = await self._recording(firing, series.target, ring)
            return recorded

        captured = await self.runner.run(
            series.target,
            wanted,
            folder=writer.folder,
            trigger_time=firing.time,
            series=take,
            recording=record if self.deck else None,
            ended=firing.ended,
            tasks_before=partial(self._tasks_before, firing, series.target) if self.task_snapshots else None,
            heap_before=partial(self.heap_snapshots.before, series.target.id)
            if self.heap_snapshots
            else None,
        )
        if spared:
            skipped = (CaptureReport(spec.kind, "skipped", spared) for spec in firing.captures)
            reports = (*skipped, *captured.reports)
        else:
            reports = captured.reports
        window = Window(taken.start, taken.end)
        sealing = asyncio.ensure_future(
            self.disk(self._seal, firing, series.target, writer, window, captured, reports, recorded)
        )
        try:
            return await asyncio.shield(sealing)
        except asyncio.CancelledError:  # everything is captured: sealing it takes no longer than removing it
            return await sealing

    def _seal(
        self,
        firing: Firing,
        target: Target,
        writer: IncidentWriter,
        window: Window,
        captured: Captured,
        reports: tuple[CaptureReport, ...],
        recorded: Recording | None,
    ) -> Incident:
        for file in captured.files:
            writer.add(writer.folder / file.name, file.kind, file.format)
        now = self.clock.wall()
        incident = Incident(
            id=writer.id,
            rule=firing.rule,
            target=target,
            reason=firing.reason,
            summary=firing.summary,
            metric=firing.metric,
            unit=unit_of(firing.metric),
            value=firing.value,
            baseline=firing.baseline,
            thresholds=firing.thresholds,
            time=firing.time,
            sealed_time=now,
            window=window,
            artifacts=writer.artifacts,
            captures=reports,
            lost_samples=sum(report.lost_samples for report in reports),
            longest_pause_us=max((report.pause_us for report in reports), default=0),
            agent_version=__version__,
            host=self.host,
            cooldown_until=0.0 if firing.spared else now + firing.cooldown,
        )
        incident = self._with_findings(writer, incident, recorded)
        self.store.seal(writer, incident)
        return incident

    def _with_findings(
        self, writer: IncidentWriter, incident: Incident, recorded: Recording | None
    ) -> Incident:
        """The incident with what it says in plain words; one whose findings cannot be written goes without."""
        try:
            name = write_findings(writer.folder, incident, self.store, recorded)
            writer.add(writer.folder / name, "findings", "json")
        except (OSError, SentinelError) as error:
            log.warning("incident %s goes without findings: %s", incident.id, error)
            return incident
        return msgspec.structs.replace(incident, artifacts=writer.artifacts)

    async def _recording(self, firing: Firing, target: Target, ring: Ring | None) -> Recording | None:
        """What the flight recorder holds: its whole window, and the part since the condition became true.

        Without a ring it is what another agent has spooled, which is behind by seconds: nothing after the trigger counts.
        """
        assert self.deck is not None
        end = firing.time if firing.ended or ring is None else self.clock.wall()
        start = end - self.deck.settings.window
        began = (firing.since if firing.since is not None else firing.time) - self.interval
        wall = await self.deck.window(target, ring, start, end)
        if not wall.record.samples:
            return None
        during = await self.deck.window(target, ring, max(began, start), end)
        return Recording(
            wall=wall.record,
            cpu=on_cpu_only(wall.record),
            during=on_cpu_only(during.record),
            coverage=during.coverage,
        )

    def _tasks_before(self, firing: Firing, target: Target) -> TaskSnapshot | str:
        assert self.task_snapshots is not None
        return self.task_snapshots.before(target.id, firing.baseline if firing.metric == "tasks" else None)

    def window(self, series: TargetSeries, trigger_time: float) -> SeriesWindow:
        """The readings from at most `window_before` seconds before the trigger until now."""
        end = self.clock.wall()
        metrics = {
            name: Series(
                unit=unit_of(name),
                times=[time for time, _ in readings],
                values=[value for _, value in readings],
            )
            for name, readings in series.window(trigger_time - self.window_before, end).items()
        }
        start = min((each.times[0] for each in metrics.values() if each.times), default=trigger_time)
        errors = {name: f"{count} readings failed" for name, count in series.errors.items()}
        errors |= {name: reading.error for name, reading in series.latest.items() if reading.error}
        return SeriesWindow(start, end, self.interval, metrics, errors)

    def _lost(self, firing: Firing, target: Target, why: str) -> None:
        self.statistics.lost += 1
        self.statistics.last_lost = why
        log.warning("incident of rule %s on %s is lost: %s", firing.rule, target.role.key, why)
        self.tell(IncidentLost(self.clock.wall(), firing.rule, target, why))
