"""Which targets appeared and which are gone: a pure comparison, and the scan of /proc that feeds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sentinel_agent.target.discover import (
    Excluded,
    Process,
    ancestors,
    children,
    describe,
    glance,
    matching,
    pids,
)
from sentinel_agent.target.procfs import CLOCK_TICKS, ROOT, ProcDir, ProcFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from sentinel_agent.core.model import TargetId
    from sentinel_agent.target.criteria import Criteria
    from sentinel_agent.target.procfs import Stat


@dataclass(frozen=True, slots=True)
class Found:
    """A process to watch from here on, and the watched process that it belongs to, if any."""

    process: Process
    parent: TargetId | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What a scan found.

    `left_out` counts the processes for which there was no room, `refused` names the pids that match and may
    not be looked at.
    """

    appeared: tuple[Found, ...]
    gone: tuple[TargetId, ...]
    left_out: int = 0
    refused: tuple[int, ...] = ()


def decide(watched: Iterable[TargetId], present: Iterable[Found], room: int) -> Changes:
    """Compare what is watched with what is there; at most `room` targets in all, parents before children.

    Those watched already stay; of the others the oldest come first.
    """
    there = {found.process.id: found for found in present}
    before = set(watched)
    staying = before & there.keys()
    fresh = sorted(
        (found for identity, found in there.items() if identity not in before),
        key=lambda found: (found.parent is not None, found.process.id.start_time, found.process.id.pid),
    )
    free = max(0, room - len(staying))
    return Changes(tuple(fresh[:free]), tuple(sorted(before - staying)), len(fresh[free:]))


class TargetWatcher:
    """Scans for targets: what appeared and what is gone since the last scan.

    A scan with criteria reads each process once when it is first listed, again while it is young (a program
    may still be put in its place by exec), and everything again every 30 s. Children that are not Python, or
    that are too young to tell, are not taken.
    """

    YOUNG = 0.3
    SETTLED = 5.0
    FULL_EVERY = 30.0

    def __init__(
        self,
        root: Path = ROOT,
        *,
        roots: Iterable[Process] = (),
        criteria: Criteria | None = None,
        follow_children: bool = True,
        max_targets: int = 64,
        own_pid: int | None = None,
    ) -> None:
        self._root = root
        self._roots = {process.id: process for process in roots}
        self._criteria = criteria
        self._follow = follow_children
        self._max = max_targets
        self._excluded = Excluded(root, own_pid)
        self._watched: dict[TargetId, Found] = {}
        self._settled: set[int] = set()
        self._refused: set[int] = set()
        self._others: set[tuple[int, int]] = set()  # settled children that are not Python
        self._full_at = 0.0

    def scan(self, boottime: float) -> Changes:
        """Look at /proc once. `boottime` is CLOCK_BOOTTIME in seconds, the clock of start times."""
        present = {identity: found for identity, found in self._watched.items() if self._still(identity)}
        self._settled -= {identity.pid for identity in self._watched.keys() - present.keys()}
        for process in (*self._roots.values(), *self._matches(boottime)):
            if process.id not in present and self._still(process.id):
                present[process.id] = Found(process)
        if self._follow:
            self._add_children(present, boottime)
        changes = decide(self._watched, self._with_parents(present), self._max)
        for identity in changes.gone:
            self._watched.pop(identity, None)
            self._roots.pop(identity, None)
        self._watched |= {found.process.id: found for found in changes.appeared}
        return replace(changes, refused=tuple(sorted(self._refused)))

    def _still(self, identity: TargetId) -> bool:
        stat = glance(identity.pid, self._root)
        return stat is not None and stat.start_time == identity.start_time and not stat.ended

    def _matches(self, boottime: float) -> list[Process]:
        if self._criteria is None:
            return []
        if boottime >= self._full_at:
            self._settled.clear()
            self._full_at = boottime + self.FULL_EVERY
        listed = pids(self._root)
        self._settled &= set(listed)
        self._refused &= set(listed)
        matches: list[Process] = []
        for pid in listed:
            if pid in self._settled or pid in self._excluded.pids:
                continue
            stat = glance(pid, self._root)
            if stat is None or _age(stat, boottime) < self.YOUNG:
                continue
            if _age(stat, boottime) > self.SETTLED:
                self._settled.add(pid)
            try:
                process = matching(pid, self._criteria, self._root)
            except PermissionError:
                self._refused.add(pid)
                continue
            if process and not self._excluded.covers(process):
                matches.append(process)
        return matches

    def _add_children(self, present: dict[TargetId, Found], boottime: float) -> None:
        known = {identity.pid for identity in present}
        tops = [identity for identity, found in present.items() if found.parent not in present]
        others = self._others
        self._others = set()
        for top in tops:
            for pid in children(top.pid, self._root):
                if pid in known or pid in self._excluded.pids:
                    continue
                known.add(pid)
                process = self._grown_python(pid, boottime, others)
                if process:
                    present[process.id] = Found(process, top)

    def _grown_python(self, pid: int, boottime: float, others: set[tuple[int, int]]) -> Process | None:
        """The process if it is Python, and old enough not to be a fork that is about to become something else."""
        try:
            with ProcDir(pid, self._root) as proc:
                stat = proc.stat()
                key = (pid, stat.start_time)
                if stat.ended or _age(stat, boottime) < self.YOUNG:
                    return None
                process = None if key in others else describe(proc)
        except (OSError, ProcFormatError):
            return None
        if process and process.python:
            return process
        if _age(stat, boottime) > self.SETTLED:
            self._others.add(key)
        return None

    def _with_parents(self, present: Mapping[TargetId, Found]) -> Iterator[Found]:
        """Each process with the nearest of its ancestors that is watched as well: a match may be a child of another."""
        by_pid = {identity.pid: identity for identity in present}
        for identity, found in present.items():
            if identity in self._watched:
                yield found
                continue
            above = next((by_pid[pid] for pid in ancestors(identity.pid, self._root) if pid in by_pid), None)
            yield Found(found.process, above or found.parent)


def _age(stat: Stat, boottime: float) -> float:
    return boottime - stat.start_time / CLOCK_TICKS
