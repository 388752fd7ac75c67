"""The targets that are watched just now: finds them, names their roles, notices their end.

Deciding what appeared and what is gone is `target.discover`'s; this keeps the books: a role and its slot, an
exit watch, and a series per target. Scanning /proc runs in a thread, so that a long list of processes delays no
tick.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
import time
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.core.event import TargetAppeared, TargetGone, Trouble
from sentinel_agent.core.redact import redact_command
from sentinel_agent.errors import NoSuchTargetError, TargetError
from sentinel_agent.probes.base import Moment, in_words
from sentinel_agent.probes.registry import Registry, build_probes
from sentinel_agent.sampler import TargetSeries
from sentinel_agent.target.criteria import Criteria
from sentinel_agent.target.discover import Process, resolve
from sentinel_agent.target.identity import SlotTable
from sentinel_agent.target.labels import container_of
from sentinel_agent.target.liveness import ExitWatch
from sentinel_agent.target.procfs import ProcDir
from sentinel_agent.target.watch import Found, TargetWatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sentinel_agent.clock import Clock
    from sentinel_agent.config.settings import Settings, TargetSettings
    from sentinel_agent.core.ending import Ending
    from sentinel_agent.core.event import Event
    from sentinel_agent.core.model import Role, TargetId
    from sentinel_agent.sampler import Sampler

_MAX_SAID = 200


class WatchRequest(msgspec.Struct, frozen=True):
    """What the operator asked for: processes by number, or by what they are like, or both.

    `match` takes the place of the pattern in the settings; `everything` means every Python process where neither names
    anything.
    """

    pids: tuple[int, ...] = ()
    match: str | None = None
    allow_non_python: bool = False
    everything: bool = False

    def criteria(self, settings: TargetSettings) -> Criteria | None:
        """What a process must be like to be watched; None: only those with the pids are."""
        pattern = self.match or settings.match
        criteria = Criteria(
            command=re.compile(pattern) if pattern else None,
            user=settings.user,
            container=re.compile(settings.container) if settings.container else None,
            environment=settings.environment,
            port=settings.port,
        )
        return criteria if self.everything or criteria != Criteria() else None


class Watchlist:
    """Keeps the sampler's targets in step with what runs."""

    def __init__(
        self,
        request: WatchRequest,
        settings: Settings,
        sampler: Sampler,
        registry: Registry,
        clock: Clock,
        tell: Callable[[Event], None],
        on_end: Callable[[TargetSeries, Ending, float], str] = lambda *_: "",
    ) -> None:
        """`on_end` is called, with the time, for each target that ended; it answers the `note` of `TargetGone`."""
        self._request = request
        self._settings = settings
        self._sampler = sampler
        self._registry = registry
        self._clock = clock
        self._tell = tell
        self._slots = _slot_table(settings)
        self._on_end = on_end
        self._exits: dict[TargetId, ExitWatch] = {}
        self._ending: dict[TargetId, tuple[TargetSeries, float, int]] = {}
        self._said: set[str] = set()
        self.seen = 0
        self._waiting: int | None = None  # for room; None before the first scan
        criteria = request.criteria(settings.target)
        self._watcher = TargetWatcher(
            roots=[resolve(pid, allow_non_python=request.allow_non_python) for pid in request.pids],
            criteria=criteria,
            follow_children=settings.target.children,
            max_targets=settings.target.max_targets,
        )
        self.open_ended = criteria is not None

    @property
    def finished(self) -> bool:
        """Whether everything that was asked for has ended and nothing else can come."""
        return not self.open_ended and self._waiting == 0 and not self._exits

    async def scan(self) -> None:
        """Look for new targets once and take them up."""
        changes = await asyncio.to_thread(self._watcher.scan, time.clock_gettime(time.CLOCK_BOOTTIME))
        for watch in tuple(self._exits.values()):
            if not watch.at_once:
                watch.check()
        for found in changes.appeared:
            self._take_up(found)
        self._waiting = changes.left_out
        if changes.left_out:
            most = self._settings.target.max_targets
            self._say_once(f"{changes.left_out} more processes match, but target.max_targets is {most}")
        for pid in changes.refused:
            self._say_once(f"process {pid} may match, but this user may not look into it; see `doctor {pid}`")

    def _take_up(self, found: Found) -> None:
        process = found.process
        role = self._slots.assign(process.id, process.command, found.parent, process.labels)
        try:
            watch = ExitWatch(process.id, self._ended, self._stopped)
        except NoSuchTargetError:
            self._slots.release(process.id)
            return
        try:
            series = _make_series(process, role, self._settings, self._registry)
        except TargetError as error:
            watch.close()
            self._slots.release(process.id)
            self._say_once(error.message)
            return
        self._exits[process.id] = watch
        # The first reading of a difference only sets its mark; taken here, the next tick has a value.
        series.read(Moment(wall=self._clock.wall(), monotonic=self._clock.monotonic()))
        self._sampler.add(series)
        self.seen += 1
        self._tell(TargetAppeared(self._clock.wall(), series.target))

    def _stopped(self, identity: TargetId) -> None:
        """It is not read any more from here on; how it ended may take a moment to be known."""
        series = self._sampler.remove(identity.pid)
        if series is not None:
            kills = series.oom_kills(self._clock.monotonic())
            self._ending[identity] = (series, self._clock.wall(), kills)
            series.close()

    def _ended(self, identity: TargetId, ending: Ending) -> None:
        self._exits.pop(identity, None)
        self._slots.release(identity)
        if identity in self._ending:
            series, when, kills = self._ending.pop(identity)
            ending = msgspec.structs.replace(ending, oom_kills=kills)
            note = self._on_end(series, ending, when)
            self._tell(TargetGone(when, series.target, ending.words, note))

    def _say_once(self, what: str) -> None:
        if what not in self._said and len(self._said) < _MAX_SAID:
            self._said.add(what)
            self._tell(Trouble(self._clock.wall(), what))

    def close(self) -> None:
        """Stop watching; what was read stays with who holds it."""
        for identity, watch in tuple(self._exits.items()):
            watch.close()
            series = self._sampler.remove(identity.pid)
            if series is not None:
                series.close()
        self._exits.clear()


def series_of(
    pid: int,
    settings: Settings,
    registry: Registry,
    *,
    allow_non_python: bool = False,
    roles: Mapping[TargetId, Role] | None = None,
) -> TargetSeries:
    """One process by itself, ready to be read. `roles` are those that are given out already.

    Raises:
        TargetError: it cannot be watched.
    """
    process = resolve(pid, allow_non_python=allow_non_python)
    role = (roles or {}).get(process.id) or _slot_table(settings).assign(
        process.id, process.command, labels=process.labels
    )
    return _make_series(process, role, settings, registry)


def _slot_table(settings: Settings) -> SlotTable:
    with ProcDir(os.getpid()) as proc:
        container = container_of(proc)
    return SlotTable(settings.target.service, settings.target.instance, socket.gethostname(), container)


def _make_series(process: Process, role: Role, settings: Settings, registry: Registry) -> TargetSeries:
    """The series of a process with its probes; its command line is redacted here, before anything else sees it.

    Raises:
        TargetError: the process has ended or may not be looked at.
    """
    command = redact_command(process.command) if settings.capture.redact else process.command
    target = process.target(role, command)
    limits = settings.limits
    try:
        probes = build_probes(target, registry, cpu_cores=limits.cpu_cores, memory=limits.memory)
    except ProcessLookupError:
        raise NoSuchTargetError(f"process {target.id.pid} has ended") from None
    except OSError as error:
        raise TargetError(f"process {target.id.pid} cannot be watched: {in_words(error)}") from error
    sampler = settings.sampler
    return TargetSeries(target, probes, sampler.ring_bytes, math.ceil(sampler.history / sampler.interval))
