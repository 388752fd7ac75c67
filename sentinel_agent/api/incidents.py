"""What the store's incidents have to show in a flame graph: their files as digests, the last ones used kept in memory.

Everything here blocks and is called from the API's own worker thread.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from sentinel_agent.capture.stacks import Stacks
from sentinel_agent.capture.task_groups import TasksDocument
from sentinel_agent.errors import SentinelError
from sentinel_agent.profile import packed, pprof
from sentinel_agent.profile.digest import (
    Digest,
    StackTable,
    counted,
    digest,
    frame_label,
)
from sentinel_agent.profile.heap import HeapSite
from sentinel_agent.profile.names import printable
from sentinel_agent.profile.record import MAX_DEPTH, Frame
from sentinel_agent.store.digests import TIMELINE_NAME
from sentinel_agent.store.files import read_bounded
from sentinel_agent.store.index import IncidentFilter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sentinel_agent.capture.stacks import StackFrame
    from sentinel_agent.core.model import IncidentRow
    from sentinel_agent.profile.digest import Interval, View
    from sentinel_agent.profile.flamegraph import Folded
    from sentinel_agent.profile.packed import Packed
    from sentinel_agent.store.store import Store

Memory = Literal["inuse_space", "inuse_objects", "alloc_space", "alloc_objects"]
Kind = Literal["cpu", "wall", "threads", "tasks"] | Memory

CACHE_BYTES = 8 * 1024**2
"""Estimated bytes of digests that are kept; the table of their stacks comes to it, and is bounded too."""
_FILE_BYTES = 32 * 1024**2
_KNOWN_FOLDERS = 20_000
_PROFILE = "profile.pb.gz"
_NEEDS: dict[Kind, tuple[str, ...]] = {
    "cpu": (TIMELINE_NAME, _PROFILE),
    "wall": (TIMELINE_NAME,),
    "threads": ("stacks.json",),
    "tasks": ("tasks.json",),
    **dict.fromkeys(get_args(Memory), ("tracemalloc.json",)),
}
_UNREADABLE = (OSError, ValueError, IndexError, OverflowError, RecursionError, SentinelError)


_Key = tuple[str, Kind, "tuple[Interval, ...] | None"]


class IncidentProfiles:
    """Digests of the incidents of one store. `unreadable` counts files that could not be used."""

    def __init__(self, store: Store, cache_bytes: int = CACHE_BYTES) -> None:
        self.store = store
        self.unreadable = 0
        self.table = StackTable()
        self._folder = store.data_dir / "incidents"
        self._room = cache_bytes
        self._used = 0
        self._digests: OrderedDict[_Key, tuple[Digest | None, int]] = OrderedDict()
        self._kinds: OrderedDict[str, frozenset[Kind]] = OrderedDict()
        self._spans: OrderedDict[str, Interval] = OrderedDict()
        self._last: tuple[str, Packed] | None = None  # its span is asked first, then its stacks

    def trim(self) -> None:
        """Begin anew where the table of stacks is nearly full; between two questions, because it renumbers them."""
        if self.table.filled > 0.5:
            self.table = StackTable()
            self._digests.clear()
            self._used = 0

    def rows(self, since: float | None, until: float | None, limit: int) -> list[IncidentRow]:
        """Incidents whose trigger is in the range, newest first."""
        return self.store.list(IncidentFilter(since=since, until=until, limit=limit))

    def kinds(self, row: IncidentRow) -> frozenset[Kind]:
        """What an incident has files for."""
        found = self._kinds.get(row.id)
        if found is None:
            folder = self._folder / row.id
            found = frozenset(
                kind for kind, names in _NEEDS.items() if any((folder / name).exists() for name in names)
            )
            self._kinds[row.id] = found
            if len(self._kinds) > _KNOWN_FOLDERS:
                self._kinds.popitem(last=False)
        return found

    def span(self, row: IncidentRow, kind: Kind) -> Interval | None:
        """From when to when an incident's stacks were recorded; None where it has none."""
        found = self._spans.get(row.id)
        if found is None:
            try:
                timeline = self._packed(row.id)
                found = (timeline.start, timeline.end)
            except _UNREADABLE:  # it may have an older form
                whole = self.digest(row, kind)
                return None if whole is None else (whole.start, whole.end)
            self._spans[row.id] = found
            if len(self._spans) > _KNOWN_FOLDERS:
                self._spans.popitem(last=False)
        return found

    def digest(self, row: IncidentRow, kind: Kind, inside: Sequence[Interval] | None = None) -> Digest | None:
        """An incident's stacks of a kind; None where it has none or they cannot be read.

        With `inside` only those of these times.
        """
        key = (row.id, kind, None if inside is None else tuple(inside))
        if key in self._digests:
            self._digests.move_to_end(key)
            return self._digests[key][0]
        found = self._read(row, kind, inside)
        size = _size(found)
        self._digests[key] = (found, size)
        self._used += size
        while self._used > self._room and len(self._digests) > 1:
            self._used -= self._digests.popitem(last=False)[1][1]
        return found

    def _read(self, row: IncidentRow, kind: Kind, inside: Sequence[Interval] | None) -> Digest | None:
        folder = self._folder / row.id
        try:
            match kind:
                case "cpu" | "wall":
                    return self._recorded(folder, kind, inside)
                case "threads":
                    stacks = _threads(folder)
                case "tasks":
                    stacks = _tasks(folder)
                case _:
                    stacks = _memory(folder, kind)
            return counted(stacks, row.time, self.table)
        except FileNotFoundError:
            return None
        except _UNREADABLE:
            self.unreadable += 1
            return None

    def _recorded(self, folder: Path, view: View, inside: Sequence[Interval] | None) -> Digest:
        try:
            found = self._packed(folder.name)
        except FileNotFoundError:
            if view == "wall":
                raise
            return digest(
                pprof.decode(read_bounded(folder / _PROFILE, _FILE_BYTES)), view, self.table, inside
            )
        try:
            return packed.fold(found, view, self.table, inside)
        except _UNREADABLE:  # whole, and yet it contradicts itself: somebody else wrote it
            self._last = None
            return packed.fold(self.store.digest(folder.name, anew=True), view, self.table, inside)

    def _packed(self, incident_id: str) -> Packed:
        if self._last is None or self._last[0] != incident_id:
            self._last = (incident_id, self.store.digest(incident_id))
        return self._last[1]


def _threads(folder: Path) -> Folded:
    found: Folded = {}
    for thread in msgspec.json.decode(read_bounded(folder / "stacks.json", _FILE_BYTES), type=Stacks).threads:
        root = printable(thread.name) or f"thread {thread.native_id}"
        stack = (root, *(_label(frame) for frame in reversed(thread.frames)))
        found[stack] = found.get(stack, 0) + 1
    return found


def _tasks(folder: Path) -> Folded:
    found: Folded = {}
    document = msgspec.json.decode(read_bounded(folder / "tasks.json", _FILE_BYTES), type=TasksDocument)
    for group in document.groups:
        waits = (f"waiting on {printable(group.waiting_on)}",) if group.waiting_on else ()
        stack = (*(_label(frame) for frame in group.frames), *waits) or (printable(group.coroutine),)
        found[stack] = found.get(stack, 0) + group.count
    return found


class _Sites(msgspec.Struct, frozen=True):
    """What is used of `tracemalloc.json`."""

    sites: tuple[HeapSite, ...]


def _memory(folder: Path, kind: Memory) -> Folded:
    """By traceback, its outermost line first, under the file of that line.

    `inuse` is all that a traceback holds, `alloc` what of it was allocated while it was traced: what was freed again
    meanwhile is not known to tracemalloc.
    """
    found: Folded = {}
    document = msgspec.json.decode(read_bounded(folder / "tracemalloc.json", _FILE_BYTES), type=_Sites)
    for site in document.sites:
        match kind:
            case "inuse_space":
                value = site.held_bytes
            case "inuse_objects":
                value = site.held_blocks
            case "alloc_space":
                value = site.bytes
            case "alloc_objects":
                value = site.blocks
        names = [printable("/".join(line.file.rsplit("/", 2)[-2:])) or "unknown" for line in site.lines]
        places = [f"{name}:{line.line}" for name, line in zip(names, site.lines, strict=True)][:MAX_DEPTH]
        stack = (*names[-1:], *reversed(places))
        if stack and value > 0:
            found[stack] = found.get(stack, 0) + value
    return found


def _label(frame: StackFrame) -> str:
    return frame_label(Frame(frame.function, frame.file, frame.line))


def _size(found: Digest | None) -> int:
    """About what a digest takes."""
    if found is None:
        return 200
    return 1000 + 16 * (len(found.before) + len(found.during) + len(found.seconds))
