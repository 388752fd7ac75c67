"""The profile record: plain data, the waist of profiling.

Everything before makes one (py-spy's output, the stored pprof), everything after starts from one (encodings,
the text summary). Names are always valid UTF-8 and bounded, so that an encoder need not ask again; what they
contain is still whatever the target chose to call its functions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

_T = TypeVar("_T")

MAX_FRAMES = 100_000
MAX_THREADS = 10_000
MAX_SAMPLES = 500_000
MAX_DEPTH = 1024
MAX_NAME = 4096  # characters
MAX_INTEGER = 2**63 - 1  # what pprof's int64 holds
MAX_SECONDS = 4e9  # past the year 2090; its nanoseconds fit an int64


class Frame(msgspec.Struct, frozen=True, order=True):
    """One line of one function. `line` is 0 where it is not known."""

    function: str
    file: str = ""
    line: int = 0

    def __post_init__(self) -> None:
        _check_name(self.function)
        _check_name(self.file)
        _check_integer("line", self.line)


CUT = "<cut>"
"""The frame at the root of a stack that was deeper than `MAX_DEPTH`: what follows was read but not kept."""


class Thread(msgspec.Struct, frozen=True, order=True):
    """An OS thread: `native_id` as in /proc/PID/task, `name` as Python knows it."""

    native_id: int
    name: str = ""

    def __post_init__(self) -> None:
        _check_integer("native id", self.native_id)
        _check_name(self.name)


class Sample(msgspec.Struct, frozen=True):
    """One stack of one thread.

    `offset` is in seconds after the record's start, `weight` the seconds it stands for, `count` how many
    readings were merged into it. `stack` holds frame indexes, leaf first, and is never empty. `on_cpu` is
    None where the sampler could not tell.
    """

    offset: float
    thread: int
    stack: tuple[int, ...]
    weight: float
    on_cpu: bool | None = None
    count: int = 1


class ProfileRecord(msgspec.Struct, frozen=True):
    """Stacks of one target over a stretch of time.

    `start` is in seconds since the epoch, `period` the planned seconds between two samples (0: one look).
    `source` says what read it, `lost` how many readings failed.
    """

    frames: tuple[Frame, ...]
    threads: tuple[Thread, ...]
    samples: tuple[Sample, ...]
    start: float
    period: float
    source: str = ""
    lost: int = 0

    def __post_init__(self) -> None:
        for what, items, most in (
            ("frames", self.frames, MAX_FRAMES),
            ("threads", self.threads, MAX_THREADS),
            ("samples", self.samples, MAX_SAMPLES),
        ):
            if len(items) > most:
                raise ValueError(f"a record holds at most {most} {what}, found {len(items)}")
        _check_seconds("start", self.start)
        _check_seconds("period", self.period)
        _check_name(self.source)
        _check_integer("lost", self.lost)
        for sample in self.samples:
            _check_sample(sample, len(self.frames), len(self.threads))

    @property
    def seconds(self) -> float:
        """Sum of the samples' weights."""
        return math.fsum(sample.weight for sample in self.samples)

    @property
    def end(self) -> float:
        """Seconds after the start at which the last sample ends."""
        return max((sample.offset + sample.weight for sample in self.samples), default=0.0)


def clean_name(name: str) -> str:
    r"""Make `name` fit a record: valid UTF-8 (a lone surrogate is written `\udc80`), at most `MAX_NAME` characters."""
    if not name.isascii():
        name = name[:MAX_NAME].encode("utf-8", "backslashreplace").decode("utf-8")
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


class RecordBuilder:
    """Makes a record out of foreign data: interns, cleans and bounds; what does not fit is counted as lost."""

    def __init__(self, *, start: float, period: float, source: str = "", lost: int = 0) -> None:
        self._start = start
        self._period = period
        self._source = clean_name(source)
        self._frames: dict[Frame, int] = {}
        self._threads: dict[Thread, int] = {}
        self._samples: list[Sample] = []
        self.lost = lost

    def frame(self, function: str, file: str = "", line: int = 0) -> int | None:
        """Index of a frame, or None when the table is full."""
        return _intern(self._frames, Frame(clean_name(function), clean_name(file), _clamp(line)), MAX_FRAMES)

    def thread(self, native_id: int, name: str = "") -> int | None:
        """Index of a thread, or None when the table is full."""
        return _intern(self._threads, Thread(_clamp(native_id), clean_name(name)), MAX_THREADS)

    def add(
        self,
        thread: int | None,
        stack: Sequence[int | None],
        *,
        offset: float = 0.0,
        weight: float = 0.0,
        on_cpu: bool | None = None,
        count: int = 1,
    ) -> None:
        """Add a sample; `stack` is leaf first. Without a thread, a frame or a sound time it counts as lost."""
        if len(stack) > MAX_DEPTH:
            stack = [*stack[: MAX_DEPTH - 1], self.frame(CUT)]
        known = tuple(index for index in stack if index is not None)
        sound = 0 <= offset <= MAX_SECONDS and 0 <= weight <= MAX_SECONDS and 0 < count <= MAX_INTEGER
        if (
            thread is None
            or not known
            or len(known) < len(stack)
            or not sound
            or len(self._samples) >= MAX_SAMPLES
        ):
            self.lost += 1
            return
        self._samples.append(Sample(offset, thread, known, weight, on_cpu, count))

    def build(self) -> ProfileRecord:
        """The record; samples in order of time."""
        return ProfileRecord(
            frames=tuple(self._frames),
            threads=tuple(self._threads),
            samples=tuple(sorted(self._samples, key=lambda sample: (sample.offset, sample.thread))),
            start=self._start,
            period=self._period,
            source=self._source,
            lost=_clamp(self.lost),
        )


def _intern(table: dict[_T, int], item: _T, most: int) -> int | None:
    index = table.get(item)
    if index is None and len(table) < most:
        index = table[item] = len(table)
    return index


def _clamp(value: int) -> int:
    return min(max(value, 0), MAX_INTEGER)


def _check_name(name: str) -> None:
    if len(name) > MAX_NAME:
        raise ValueError(f"a name is at most {MAX_NAME} characters long, found {len(name)}")
    if not name.isascii():
        name.encode("utf-8")  # UnicodeEncodeError is a ValueError and says where the lone surrogate is


def _check_integer(what: str, value: int) -> None:
    if not 0 <= value <= MAX_INTEGER:
        raise ValueError(f"{what} is between 0 and 2**63 - 1, found {value}")


def _check_seconds(what: str, value: float) -> None:
    if not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"{what} is between 0 and {MAX_SECONDS:.0f} seconds, found {value}")


def _check_sample(sample: Sample, frames: int, threads: int) -> None:
    _check_seconds("offset", sample.offset)
    _check_seconds("weight", sample.weight)
    if not 1 <= sample.count <= MAX_INTEGER:
        raise ValueError(f"a sample counts at least one reading, found {sample.count}")
    if not 1 <= len(sample.stack) <= MAX_DEPTH:
        raise ValueError(f"a stack has 1 to {MAX_DEPTH} frames, found {len(sample.stack)}")
    if not 0 <= sample.thread < threads:
        raise ValueError(f"thread {sample.thread} is not among the {threads} of the record")
    if min(sample.stack) < 0 or max(sample.stack) >= frames:
        raise ValueError(f"a stack names a frame that is not among the {frames} of the record")
