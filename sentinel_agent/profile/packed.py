"""An incident's timeline packed for merging: read in a twentieth of the time of the file that it is made from.

It is a copy that can be lost: whoever finds it missing, damaged or of another version makes it anew from
`stacks.speedscope.json`. So its form is free to change with `_MAGIC`, and is no format for others. It holds what a flame
graph needs: labels instead of frames, each stack once, the sums of the whole, and each run for those who ask for a slice.
"""

from __future__ import annotations

import sys
import zlib
from array import array
from sys import intern
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from sentinel_agent.profile.digest import Costs, Digest, frame_label, summed
from sentinel_agent.profile.names import thread_name
from sentinel_agent.profile.record import MAX_DEPTH, MAX_NAME, MAX_SECONDS, Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sentinel_agent.profile.digest import Interval, StackTable, View
    from sentinel_agent.profile.speedscope import File

MAX_BYTES = 8 * 1024**2
_NANO = 1_000_000_000
_MAGIC = b"sentinel digest 1 " + sys.byteorder[:1].encode()
_CRC = 4

_MOST = 2**62  # nanoseconds, of all threads together
_Cost = Annotated[int, Meta(ge=0, le=_MOST)]
_Sums = tuple[_Cost, _Cost, _Cost, _Cost]


class Packed(msgspec.Struct, frozen=True, array_like=True):
    """One recording. Times in seconds since the epoch, costs in nanoseconds.

    `stacks` are indexes of `labels`, root first; a place is a stack in a thread of one name, (thread, stack). `sums` has for each
    place what it cost on a CPU before and since `since`, and then in all; `seconds` has by whole second the cost on a CPU and in
    all. Of each run `offsets` (int64, nanoseconds after `start`), `runs` (uint32, its place), `costs` (int64) and `on_cpu` (a byte).
    """

    start: float
    end: float
    since: float
    labels: list[str]
    threads: list[str]
    stacks: list[list[int]]
    places: list[tuple[int, int]]
    sums: list[_Sums]
    seconds: list[tuple[int, _Cost, _Cost]]
    offsets: bytes
    runs: bytes
    costs: bytes
    on_cpu: bytes


def encode(packed: Packed) -> bytes:
    """The same recording gives the same bytes."""
    body = msgspec.msgpack.encode(packed)
    return _MAGIC + zlib.crc32(body).to_bytes(_CRC, "little") + body


def decode(data: bytes) -> Packed:
    """What `encode` made; its indexes are only checked where they are used.

    Raises:
        ValueError: it is damaged, or of another version or machine.
    """
    start = len(_MAGIC) + _CRC
    if not data.startswith(_MAGIC) or zlib.crc32(data[start:]) != int.from_bytes(
        data[len(_MAGIC) : start], "little"
    ):
        raise ValueError("a digest is damaged or of another version")
    try:
        return msgspec.msgpack.decode(data[start:], type=Packed)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"a digest cannot be read: {error}") from error


def pack(file: File) -> Packed:
    """The timeline of an incident.

    Raises:
        ValueError, IndexError: the file contradicts itself, or is none of ours.
    """
    ours = file.sentinel
    if ours is None or not 0 <= ours.start <= MAX_SECONDS:
        raise ValueError("it has no times of day")
    packer = _Packer(ours.start, ours.start if ours.since is None else ours.since, len(file.shared.frames))
    for profile, states in zip(file.profiles, ours.states, strict=True):
        if profile.unit != "nanoseconds":
            continue  # a look, not a recording: nothing took time
        thread = packer.thread(thread_name(profile.name[:MAX_NAME]))
        at = round(profile.start_value)
        for indexes, weight, state in zip(profile.samples, profile.weights, states, strict=True):
            cost = round(weight)
            if not 0 <= at <= at + cost <= MAX_SECONDS * _NANO:
                raise ValueError("it is longer than there is time")
            if indexes and cost > 0:
                packer.add(at, thread, tuple(indexes[:MAX_DEPTH]), cost, on_cpu=state == "r")
            at += cost
        packer.end = max(packer.end, at)
    names = [
        frame_label(Frame(frame.name[:MAX_NAME], (frame.file or "")[:MAX_NAME]))
        for frame in file.shared.frames
    ]
    return packer.build(names)


class _Packer:
    """Sums up runs; `end` is in nanoseconds after the start."""

    def __init__(self, start: float, since: float, frames: int) -> None:
        self.end = 0
        self._start, self._since, self._frames = start, since, frames
        self._threads: dict[str, int] = {}
        self._stacks: dict[tuple[int, ...], int] = {}
        self._places: dict[tuple[int, int], int] = {}
        self._sums: list[list[int]] = []
        self._seconds: dict[int, list[int]] = {}
        self._runs: tuple[array[int], array[int], array[int]] = (array("q"), array("I"), array("q"))
        self._on_cpu = bytearray()

    def thread(self, name: str) -> int:
        return self._threads.setdefault(name, len(self._threads))

    def add(self, at: int, thread: int, stack: tuple[int, ...], cost: int, *, on_cpu: bool) -> None:
        number = self._stacks.get(stack)
        if number is None:
            if max(stack) >= self._frames:
                raise IndexError(f"a sample names a frame that is not among the {self._frames} of the file")
            number = self._stacks[stack] = len(self._stacks)
        place = self._places.setdefault((thread, number), len(self._places))
        if place == len(self._sums):
            self._sums.append([0, 0, 0, 0])
        time = self._start + at / _NANO
        during = time >= self._since
        sums, second = self._sums[place], self._seconds.setdefault(int(time), [0, 0])
        sums[2 + during] += cost
        second[1] += cost
        if on_cpu:
            sums[during] += cost
            second[0] += cost
        for column, value in zip(self._runs, (at, place, cost), strict=True):
            column.append(value)
        self._on_cpu.append(on_cpu)

    def build(self, names: Sequence[str]) -> Packed:
        """Labels that are equal become one: functions of one name in one file differ in their lines only."""
        if sum(wall for _, wall in self._seconds.values()) > _MOST:
            raise ValueError("its threads together took longer than can be counted")
        labels: dict[str, int] = {}
        of = [labels.setdefault(name, len(labels)) for name in names]
        return Packed(
            start=self._start,
            end=self._start + self.end / _NANO,
            since=self._since,
            labels=list(labels),
            threads=list(self._threads),
            stacks=[[of[index] for index in stack] for stack in self._stacks],
            places=list(self._places),
            sums=[(one, two, three, four) for one, two, three, four in self._sums],
            seconds=[(second, cpu, wall) for second, (cpu, wall) in self._seconds.items()],
            offsets=self._runs[0].tobytes(),
            runs=self._runs[1].tobytes(),
            costs=self._runs[2].tobytes(),
            on_cpu=bytes(self._on_cpu),
        )


def fold(packed: Packed, view: View, table: StackTable, inside: Sequence[Interval] | None = None) -> Digest:
    """The costs of a view, by the table's numbers; only of runs that begin in `inside`, which do not overlap (None: all).

    Raises:
        ValueError, IndexError: it contradicts itself.
    """
    if inside is not None:
        return _slice(packed, view, table, inside)
    first, column = (0, 1) if view == "cpu" else (2, 2)
    places = [place for place, sums in enumerate(packed.sums) if sums[first] or sums[first + 1]]
    before: dict[int, int] = {}
    during: dict[int, int] = {}
    for place, number in _numbers(packed, view, table, places).items():
        earlier, later = packed.sums[place][first : first + 2]
        if earlier:
            before[number] = before.get(number, 0) + earlier
        if later:
            during[number] = during.get(number, 0) + later
    seconds = {each[0]: each[column] for each in packed.seconds if each[column]}
    return Digest(packed.start, packed.end, packed.since, Costs(before), Costs(during), Costs(seconds))


def _numbers(packed: Packed, view: View, table: StackTable, places: Iterable[int]) -> dict[int, int]:
    """The table's number of each of these places. Written for speed: it is what a merge spends its time with."""
    label = [intern(name) for name in packed.labels].__getitem__
    stacks, where, number = packed.stacks, packed.places, table.number
    if view == "cpu":
        return {place: number(tuple(map(label, stacks[where[place][1]]))) for place in places}
    roots = [intern(name) for name in packed.threads]
    return {
        place: number((roots[thread], *map(label, stacks[stack])))
        for place, (thread, stack) in ((place, where[place]) for place in places)
    }


def _slice(packed: Packed, view: View, table: StackTable, inside: Sequence[Interval]) -> Digest:
    start, wall = packed.start, view == "wall"
    times = [start + offset / _NANO for offset in array("q", packed.offsets)]
    runs, costs = array("I", packed.runs), array("q", packed.costs)
    if not len(times) == len(runs) == len(costs) == len(packed.on_cpu):
        raise ValueError("a digest's columns differ in length")
    chosen = [
        run
        for begin, end in inside
        for run, time in enumerate(times)
        if begin <= time < end and (wall or packed.on_cpu[run])
    ]
    numbers = _numbers(packed, view, table, {runs[run] for run in chosen})
    found = ((times[run], numbers[runs[run]], costs[run]) for run in chosen)
    return summed(found, start, packed.end, packed.since)
