"""Where the rooms are wired together: one TaskGroup, and nothing else runs.

Ticking (`Sampler`), looking for targets (`Watchlist`), hot reload (`Reloader`), publishing the status, and one
task per incident (`Responder`). What may block runs in threads: the disk in one of its own, so that a slow disk
delays no tick.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from sentinel_agent.api.running import RunningAgent
from sentinel_agent.capture.heap_snapshots import HeapSnapshots
from sentinel_agent.capture.registry import load_captures
from sentinel_agent.capture.runner import CaptureRunner
from sentinel_agent.capture.task_snapshots import TaskSnapshots, Watched
from sentinel_agent.config.watch import differences
from sentinel_agent.core.budget import Budget
from sentinel_agent.core.decision import to_line
from sentinel_agent.core.engine import RuleEngine
from sentinel_agent.core.event import (
    LimitReached,
    SettingsRefused,
    SettingsReloaded,
    TargetAppeared,
    TargetGone,
    Trouble,
)
from sentinel_agent.errors import SentinelError, StoreError
from sentinel_agent.export.base import ReadingSet
from sentinel_agent.export.setup import make_hub, set_up
from sentinel_agent.postmortem import Postmortem
from sentinel_agent.probes.registry import load_registry
from sentinel_agent.recorder.deck import SPOOL_SECONDS, make_deck
from sentinel_agent.responder import DiskThread, Firing, Responder, firing_of
from sentinel_agent.sampler import Sampler
from sentinel_agent.status import StatusWriter
from sentinel_agent.store.limits import encode_limits, stored_limits
from sentinel_agent.tap.capture import RequestsCapture
from sentinel_agent.tap.forward import RequestForwarder
from sentinel_agent.tap.levels import levels_of
from sentinel_agent.tap.probe import ProxyProbe
from sentinel_agent.target.orphans import Orphans
from sentinel_agent.target.own_memory import OwnMemory
from sentinel_agent.watchlist import Watchlist

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from sentinel_agent.api.server import HttpServer
    from sentinel_agent.clock import Clock
    from sentinel_agent.config.load import Loaded
    from sentinel_agent.config.settings import CaptureSettings
    from sentinel_agent.config.watch import Reloader
    from sentinel_agent.core.decision import Decision
    from sentinel_agent.core.ending import Ending
    from sentinel_agent.core.event import Event
    from sentinel_agent.core.limits import LimitRecord
    from sentinel_agent.core.model import Reading
    from sentinel_agent.core.rule import Rule
    from sentinel_agent.recorder.ring import Batch
    from sentinel_agent.recorder.spool import Spool
    from sentinel_agent.sampler import TargetSeries
    from sentinel_agent.store.store import Store
    from sentinel_agent.tap.hub import TapHub
    from sentinel_agent.watchlist import WatchRequest

log = logging.getLogger(__name__)

DRAIN_SECONDS = 3.0
"""How long a stop waits for incidents under way before it discards them."""

UNDER_WAY_AT_MOST = 32
"""Incidents at once, those that wait for a turn included; more are refused and counted."""

_TROUBLES_KEPT = 100
OPEN_SECONDS = 0.25
RELOAD_SECONDS = 1.0
STATUS_SECONDS = 2.0
SNAPSHOT_SECONDS = 2.0
REAP_SECONDS = 5.0


class Agent:
    """Watches what `request` names, by the rules and settings in force, until it is told to stop.

    `tell` gets every event, on the agent's own thread; it must not block. If it raises OSError, nobody listens any
    more: the run ends in order and raises it. Any other exception of it is logged, and watching goes on.
    """

    def __init__(
        self,
        request: WatchRequest,
        reloader: Reloader,
        store: Store,
        clock: Clock,
        tell: Callable[[Event], None],
        http: HttpServer | None = None,
        tap: TapHub | None = None,
    ) -> None:
        """Resolve the pids of `request`; `tap` takes in what workers of the embedded proxy tell.

        Raises:
            TargetError: one of them cannot be watched; its exit code tells which kind of obstacle.
        """
        loaded = reloader.loaded
        settings = loaded.settings
        self._reloader = reloader
        self._store = store
        self._clock = clock
        self._listener = tell
        self._refused_text: str | None = None
        self._unheard: OSError | None = None
        self._stop = asyncio.Event()
        self._appeared = asyncio.Event()  # there may be a reader to open
        self._began = clock.monotonic()
        self._troubles: Counter[str] = Counter()
        self._disk = DiskThread()
        self.exports = make_hub(settings.exporters, store.data_dir, clock)
        self._registry = load_registry()
        self._captures = load_captures(clock=clock)
        self._tap = tap
        if tap is not None:
            self._registry.factories["proxy"] = partial(ProxyProbe, tap)
            self._captures.captures["requests"] = RequestsCapture(tap, clock)
            instance = settings.target.instance or socket.gethostname()
            tap.on_records = RequestForwarder(self.exports, clock, instance)
            tap.levels = lambda: levels_of(tuple(self._sampler.targets.values()), tap.pids)
        self._engine = RuleEngine(rules_of(loaded), cpu_max=settings.capture.cpu_max)
        self._sampler = Sampler(clock, settings.sampler.interval, self._on_tick)
        self._postmortem = Postmortem(settings.postmortem)
        self._watchlist = Watchlist(
            request, settings, self._sampler, self._registry, clock, self._tell, self._on_end
        )
        self._responder = Responder(
            store=store,
            disk=self._disk,
            runner=CaptureRunner(self._captures, settings.capture, clock=clock),
            budget=_budget(settings.capture),
            clock=clock,
            host=socket.gethostname(),
            interval=settings.sampler.interval,
            window_before=settings.capture.window_before,
            tell=self._tell,
        )
        self._deck = make_deck(
            settings, store.data_dir, clock, self._cores, self._trouble, OwnMemory().limit()
        )
        self._responder.deck = self._deck
        self._task_snapshots = TaskSnapshots(clock, settings.overhead.cpu / 100, self._task_holders)
        self._responder.task_snapshots = self._task_snapshots
        self._heap_snapshots = HeapSnapshots(clock, settings.overhead.cpu / 100, self._task_holders)
        self._responder.heap_snapshots = self._heap_snapshots
        self._status = StatusWriter(store.data_dir, clock, frozenset(self._captures.captures))
        self._orphans = Orphans()
        self._responding: set[asyncio.Task[None]] = set()
        self._http = http
        if http is not None:
            http.live = RunningAgent(
                self._sampler,
                self._responder,
                self._deck,
                frozenset(self._captures.captures),
                clock,
                self._responding,
            )
            http.metrics = self.exports.metrics_text

    @property
    def url(self) -> str | None:
        """Where the web page is."""
        return self._http.address.url if self._http else None

    @property
    def targets_seen(self) -> int:
        """How many targets were taken up since the start."""
        return self._watchlist.seen

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop` is set, or until everything that was asked for has ended.

        Incidents under way are then given `DRAIN_SECONDS` to be sealed and are discarded whole after that. An agent
        runs once.

        Raises:
            StoreError: the limits cannot be read at the start.
            OSError: nobody listens any more.
        """
        self._stop = stop
        self.exports.start()
        try:
            limits = await self._disk(stored_limits, self._store)
            self._engine.load_limits(limits)
            self._postmortem.load_limits(limits)
            self._began = self._clock.monotonic()
            await self._scan()
            async with asyncio.TaskGroup() as group:
                self._group = group
                loops = [
                    group.create_task(self._sampler.run(self._after_tick)),
                    group.create_task(
                        self._every(self._scan, lambda: self._reloader.loaded.settings.target.scan_interval)
                    ),
                    group.create_task(self._every(self._reload, lambda: RELOAD_SECONDS)),
                    group.create_task(self._every(self._publish, lambda: STATUS_SECONDS)),
                    *(group.create_task(work) for work in self._recording()),
                    group.create_task(self._every(self._open_readers, lambda: OPEN_SECONDS)),
                    group.create_task(self._every(self._task_snapshots.round, lambda: SNAPSHOT_SECONDS)),
                    group.create_task(self._every(self._heap_snapshots.round, lambda: SNAPSHOT_SECONDS)),
                    *(
                        [group.create_task(self._every(self._reap, lambda: REAP_SECONDS))]
                        if os.getpid() == 1
                        else []
                    ),
                    *([group.create_task(self._tap.run())] if self._tap is not None else []),
                ]
                http = group.create_task(self._http.run()) if self._http else None
                await stop.wait()
                for loop in loops:
                    loop.cancel()
                await self._drain()
                if http is not None:  # only now: it ends the captures that were asked for over it
                    http.cancel()
                await self._keep_limits(self._changed_limits())  # the cooldowns that began just now
                if self._deck is not None:
                    await self._deck.spool(self._write_spool)
        finally:
            self._watchlist.close()
            await self.exports.close()
            if self._tap is not None:
                self._tap.close()
            await self._disk(self._status.withdraw)
            self._disk.close()
        if self._unheard is not None:
            raise self._unheard

    async def _every(
        self, work: Callable[[], Coroutine[None, None, None]], seconds: Callable[[], float]
    ) -> None:
        """Do `work` at intervals for ever. A fault of one round is told and counted; the next round comes.

        All intervals are counted from one moment, so that rounds fall together: to be woken costs more than most of them do.
        """
        while True:
            interval = seconds()
            await self._clock.sleep(interval - (self._clock.monotonic() - self._began) % interval)
            try:
                await work()
            except SentinelError as error:
                self._trouble(error.message)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next round must come
                self._internal_fault(error)

    async def _scan(self) -> None:
        await self._watchlist.scan()
        self._stop_if_finished()

    def _stop_if_finished(self) -> None:
        if self._watchlist.finished:
            self._stop.set()

    async def _drain(self) -> None:
        """Give incidents under way their time, then cancel them; each is sealed or discarded when this returns."""
        waiting = tuple(self._responding)
        if not waiting:
            return
        _, late = await asyncio.wait(waiting, timeout=DRAIN_SECONDS)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    # -- ticking ---------------------------------------------------------------------------------------------

    def _on_tick(self, now: float, series: TargetSeries, readings: Mapping[str, Reading]) -> None:
        try:
            self._judge(now, series, readings)
        except Exception as error:  # noqa: BLE001 - a fault with one target must not hide the others
            self._internal_fault(error)

    def _judge(self, now: float, series: TargetSeries, readings: Mapping[str, Reading]) -> None:
        if self.exports.wants("metrics"):
            values = {name: each.value for name, each in readings.items() if each.value is not None}
            self.exports.offer("metrics", ReadingSet(now, series.target, values))
        role = series.target.role
        decisions = self._engine.tick(role, now, readings, series.rings)
        before = self._status.note(series.target, decisions)
        for decision in decisions:
            if decision.reason == "limit" and before.get(decision.rule) != "limit":
                self._tell(LimitReached(now, decision.rule, series.target))
            if log.isEnabledFor(logging.DEBUG):
                log.debug("decision %s", to_line(self._engine.record(decision, readings, series.rings)))
            if decision.fire or decision.light:
                self._respond(decision, series)

    def _respond(self, decision: Decision, series: TargetSeries) -> None:
        rule = next(rule for rule in self._engine.rules if rule.name == decision.rule)
        self._begin_incident(firing_of(rule, decision), series)

    def _on_end(self, series: TargetSeries, ending: Ending, time: float) -> str:
        """A target has ended: its post-mortem begins, unless we are ending ourselves; or why there is none."""
        if self._stop.is_set():
            return ""
        firing, note = self._postmortem.judge(series.target.role, ending, time, series.latest)
        if firing is not None:
            self._begin_incident(firing, series)
        return note

    def _begin_incident(self, firing: Firing, series: TargetSeries) -> None:
        if len(self._responding) >= UNDER_WAY_AT_MOST:
            self._incident_ended(firing, series, firing.time)
            self._trouble(
                f"rule {firing.rule} fired, but {UNDER_WAY_AT_MOST} incidents are under way already"
            )
            return
        task = self._group.create_task(self._make_incident(firing, series))
        self._responding.add(task)
        task.add_done_callback(self._responding.discard)

    def _incident_ended(self, firing: Firing, series: TargetSeries, now: float) -> None:
        """The cooldown of what fired counts from `now`."""
        if firing.ended is None:
            self._engine.capture_finished(series.target.role, firing.rule, now)
        else:
            self._postmortem.finished(series.target.role, now)

    async def _make_incident(self, firing: Firing, series: TargetSeries) -> None:
        try:
            await self._responder.respond(firing, series)
        except Exception as error:  # noqa: BLE001 - the other incidents must be saved
            self._internal_fault(error)
        finally:
            self._incident_ended(firing, series, self._clock.wall())

    async def _after_tick(self) -> None:
        if changed := self._changed_limits():
            self._group.create_task(self._keep_limits(changed))

    def _changed_limits(self) -> list[LimitRecord]:
        return [*self._engine.changed_limits(), *self._postmortem.changed_limits()]

    async def _keep_limits(self, changed: list[LimitRecord]) -> None:
        if not changed:
            return
        try:
            await self._disk(self._store.put_limits, encode_limits(changed))
        except StoreError as error:
            self._trouble(
                f"limits are kept in memory only, and will be forgotten at a restart: {error.message}"
            )

    # -- the slower rounds -----------------------------------------------------------------------------------

    async def _reap(self) -> None:
        self._orphans.reap(self._clock.monotonic())

    async def _reload(self) -> None:
        before = self._reloader.loaded
        loaded = await self._disk(self._reloader.poll, self._clock.wall())
        if loaded is not None:
            changes = await self._apply(before, loaded)
            self._tell(SettingsReloaded(self._clock.wall(), changes))
        fault = self._reloader.last_error
        if fault is not None and fault != self._refused_text:
            self._tell(SettingsRefused(self._clock.wall(), fault))
        self._refused_text = fault

    async def _apply(self, before: Loaded, loaded: Loaded) -> tuple[str, ...]:
        """Put a changed configuration in force; what changed, in words."""
        settings = loaded.settings
        self._engine.cpu_max = settings.capture.cpu_max
        self._engine.replace(rules_of(loaded))
        known = self._engine.limits()
        stored = await self._disk(stored_limits, self._store)
        self._engine.load_limits(record for record in stored if (record.role, record.rule) not in known)
        self._sampler.interval = self._responder.interval = settings.sampler.interval
        self._store.settings = settings.store
        self._postmortem.settings = settings.postmortem
        if settings.capture != before.settings.capture:
            self._responder.runner = CaptureRunner(self._captures, settings.capture, clock=self._clock)
            self._responder.window_before = settings.capture.window_before
            self._responder.budget.rebound(
                incidents_per_hour=settings.capture.max_incidents_per_hour,
                bytes_per_hour=settings.capture.max_bytes_per_hour,
            )
        if settings.exporters != before.settings.exporters:
            await asyncio.to_thread(set_up, self.exports, settings.exporters, self._clock)
            if self._http is not None:
                self._http.metrics = self.exports.metrics_text
        if self._deck is not None:
            self._deck.overhead = settings.overhead.cpu / 100
        self._task_snapshots.overhead = settings.overhead.cpu / 100
        self._heap_snapshots.overhead = settings.overhead.cpu / 100
        return differences(before, loaded)

    def _recording(self) -> list[Coroutine[None, None, None]]:
        """The recorder's loop and its way to the disk."""
        deck = self._deck
        if deck is None:
            return []
        return [deck.run(), self._every(lambda: deck.spool(self._write_spool), lambda: SPOOL_SECONDS)]

    async def _write_spool(self, spool: Spool, batches: Sequence[Batch], now: float) -> None:
        await self._disk(lambda: [spool.write(batch, now) for batch in batches])

    def _cores(self, pid: int) -> float:
        series = self._sampler.targets.get(pid)
        reading = series.latest.get("cpu") if series else None
        return reading.value / 100 if reading and reading.value is not None else 0.0

    def _task_holders(self) -> list[Watched]:
        """Every target with its number of tasks; well is one on which no rule is about to fire or has just fired."""
        found = []
        for series in self._sampler.targets.values():
            tasks = series.latest.get("tasks")
            well = self._status.is_well(series.target)
            found.append(Watched(series.target.id, tasks.value if tasks else None, well))
        return found

    async def _open_readers(self) -> None:
        """Open what is not open yet, one after the other, in a thread: it takes tens of milliseconds each. Waits until there may be one."""
        await self._appeared.wait()
        for series in tuple(self._sampler.targets.values()):
            if series.reader.wanted:
                await asyncio.to_thread(series.reader.open)
        if not any(series.reader.wanted for series in self._sampler.targets.values()):
            self._appeared.clear()

    async def _publish(self) -> None:
        reloader = self._reloader
        exports = self.exports.statistics()
        if self.exports.wants("metrics"):
            self.exports.offer("metrics", self._status.reading(self._sampler, self._responder, exports))
        document = self._status.describe(
            reloader.loaded,
            reloader.last_error,
            self._engine,
            self._sampler,
            self._responder,
            self._troubles,
            exports,
        )
        await self._disk(self._status.publish, document)

    def _tell(self, event: Event) -> None:
        if isinstance(event, TargetAppeared):
            self._appeared.set()
            if self._deck is not None:
                self._deck.add(event.target, self._sampler.targets[event.target.pid].reader)
        if isinstance(event, TargetGone):
            if self._deck is not None:
                self._deck.remove(event.target.pid)
            self._engine.forget(event.target.role)
            self._status.forget(event.target)
            self._stop_if_finished()
        if isinstance(event, Trouble):
            if event.what in self._troubles:  # told already: it is counted, and in the status
                self._troubles[event.what] += 1
                return
            if len(self._troubles) < _TROUBLES_KEPT:
                self._troubles[event.what] = 1
        self.exports.tell(event)
        if self._unheard is not None:
            return
        try:
            self._listener(event)
        except OSError as error:
            self._unheard = error
            self._stop.set()
        except Exception:
            log.exception("an event could not be told: %s", type(event).__name__)

    def _internal_fault(self, error: Exception) -> None:
        what = f"internal fault, please report it: {type(error).__name__}: {error}"
        if what not in self._troubles:
            log.error("internal fault", exc_info=error)
        self._trouble(what)

    def _trouble(self, what: str) -> None:
        self._tell(Trouble(self._clock.wall(), what))


def rules_of(loaded: Loaded) -> tuple[Rule, ...]:
    """The rules in force, without where they came from."""
    return tuple(each.rule for each in loaded.rules)


def _budget(settings: CaptureSettings) -> Budget:
    return Budget(
        concurrency=UNDER_WAY_AT_MOST,
        incidents_per_hour=settings.max_incidents_per_hour,
        bytes_per_hour=settings.max_bytes_per_hour,
    )
