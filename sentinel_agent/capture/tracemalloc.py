"""`tracemalloc`: which lines allocated the memory that grew, by the target's own tracemalloc. Needs `capture.allow_injection`.

What runs in the target is `inject/payload/growth.py`: it traces for a bounded time with bounded tracebacks, ends early before a
snapshot would hold the GIL for longer than the cap, and stops again unless tracing was on before. Refused near the memory limit,
since tracing takes memory itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from importlib import resources
from typing import Annotated

import msgspec
from msgspec import Meta

from sentinel_agent.capture.base import CapturedFile, CapturePlan, CaptureResult
from sentinel_agent.clock import Clock, SystemClock
from sentinel_agent.core.units import format_duration, format_size
from sentinel_agent.errors import NotPermittedError, PeerError, TargetError
from sentinel_agent.inject.deliver import Delivered, deliver
from sentinel_agent.profile import heap
from sentinel_agent.profile.heap import HeapLine, HeapSite
from sentinel_agent.profile.record import MAX_NAME, clean_name

SECONDS = 3.0
FRAMES = 1
"""Each frame more makes an allocation dearer: see docs/captures.md."""
MOST_RSS_LIMIT = 85.0
_MOST_OVERHEAD = 64 * 1024**2
_KEEP = 10.0
_GRACE = 6.0
_TOP_LINES = 200

Natural = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0, le=3600)]
_Frame = tuple[Annotated[str, Meta(max_length=MAX_NAME)], Natural]
_Site = tuple[Natural, int, Natural, Natural, Annotated[list[_Frame], Meta(max_length=256)]]


class _Answer(msgspec.Struct, frozen=True):
    """What the payload says; it comes out of the target, so it may be anything."""

    error: Annotated[str, Meta(max_length=1000)] = ""
    seconds: Seconds = 0.0
    ended_by: Annotated[str, Meta(max_length=20)] = "time"
    was_on: bool = False
    traces: Natural = 0
    traced_bytes: int = 0
    overhead_bytes: Natural = 0
    holds: dict[Annotated[str, Meta(max_length=20)], Seconds] = {}
    grown_bytes: Natural = 0
    tracebacks: Natural = 0
    top: Annotated[list[_Site], Meta(max_length=1000)] = []


class LineGrowth(msgspec.Struct, frozen=True):
    """What one line allocated meanwhile and still holds."""

    file: str
    line: int
    bytes: int
    blocks: int


class Injection(msgspec.Struct, frozen=True):
    """What was run in the target: how it came there, its digest and length, and how long the main thread was stopped for it."""

    way: str
    sha256: str
    bytes: int
    stops_us: tuple[int, ...]


class TracemallocDocument(msgspec.Struct, frozen=True):
    """The document of `tracemalloc.json`. Bytes as tracemalloc counts them; `seconds` is how long was traced.

    `grown_bytes` is what was allocated meanwhile and still held at the end; `lines` are by the innermost line of each traceback, `sites` by
    the whole of it. `holds_us`: the longest time that each call held the GIL.
    """

    seconds: float
    ended_by: str
    was_on: bool
    frames: int
    traces: int
    grown_bytes: int
    tracebacks: int
    overhead_bytes: int
    holds_us: dict[str, int]
    lines: tuple[LineGrowth, ...]
    sites: tuple[HeapSite, ...]
    injection: Injection


class TracemallocCapture:
    """Growth by line as `tracemalloc.json`, and by traceback as `tracemalloc.pb.gz`."""

    kind = "tracemalloc"
    attaches = True
    duration = SECONDS
    skip_when = "cpu > 80 || rss_limit > 85"

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        """Trace for `plan.duration` seconds.

        Raises:
            NotPermittedError: the settings do not allow it.
            TargetError: the target is not fit for it, near its memory limit, or did not answer.
            PeerError: hypno is missing or failed, or the answer is nonsense.
        """
        if not plan.allow_injection:
            raise NotPermittedError(
                "running code in the target is not allowed",
                hint="set capture.allow_injection: true, or use --allow-injection",
            )
        _refuse_near_the_limit(plan)
        start = self._clock.wall()
        payload = resources.files("sentinel_agent.inject.payload").joinpath("growth.py").read_text()
        delivered = await deliver(
            plan.target.id,
            payload,
            "work",
            {
                "seconds": plan.duration,
                "frames": plan.spec.frames or FRAMES,
                "most_hold": plan.max_pause,
                "most_bytes": _MOST_OVERHEAD,
                "keep": _KEEP,
            },
            seconds=plan.duration + _GRACE,
            clock=self._clock,
        )
        document = await asyncio.to_thread(_write, plan, delivered, start)
        return CaptureResult(
            files=(
                CapturedFile("tracemalloc.json", "tracemalloc", "json"),
                CapturedFile("tracemalloc.pb.gz", "tracemalloc", "pprof"),
            ),
            pause_us=max(document.injection.stops_us, default=0),
            gil_hold_us=max(document.holds_us.values(), default=0),
            note=_note(document),
        )


def _refuse_near_the_limit(plan: CapturePlan) -> None:
    share = plan.series().metrics.get("rss_limit")
    if share is None or not share.values:
        raise TargetError("how near the target is to its memory limit is not known, so nothing is run in it")
    if share.values[-1] >= MOST_RSS_LIMIT:
        raise TargetError(
            f"the target uses {share.values[-1]:.0f}% of its memory limit: over {MOST_RSS_LIMIT:.0f}% tracing, which takes memory itself, could kill it"
        )


def _write(plan: CapturePlan, delivered: Delivered, start: float) -> TracemallocDocument:
    try:
        answer = msgspec.json.decode(delivered.answer, type=_Answer)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError(f"what came back from the target is not usable: {error}") from error
    if answer.error:
        raise TargetError(f"tracing did not work in the target: {answer.error}")
    sites = tuple(
        HeapSite(
            size, blocks, held, held_blocks, tuple(HeapLine(clean_name(file), line) for file, line in lines)
        )
        for size, blocks, held, held_blocks, lines in answer.top
        if lines
    )
    document = TracemallocDocument(
        seconds=answer.seconds,
        ended_by=answer.ended_by,
        was_on=answer.was_on,
        frames=plan.spec.frames or FRAMES,
        traces=answer.traces,
        grown_bytes=answer.grown_bytes,
        tracebacks=answer.tracebacks,
        overhead_bytes=answer.overhead_bytes,
        holds_us={name: round(seconds * 1e6) for name, seconds in answer.holds.items()},
        lines=_by_line(sites),
        sites=sites,
        injection=Injection(
            delivered.way,
            delivered.sha256,
            delivered.size,
            tuple(round(stop * 1e6) for stop in delivered.stops),
        ),
    )
    (plan.folder / "tracemalloc.json").write_bytes(msgspec.json.encode(document))
    profile = heap.encode(sites, start=start, seconds=answer.seconds, source="tracemalloc")
    (plan.folder / "tracemalloc.pb.gz").write_bytes(profile)
    return document


def _by_line(sites: tuple[HeapSite, ...]) -> tuple[LineGrowth, ...]:
    sizes: Counter[HeapLine] = Counter()
    blocks: Counter[HeapLine] = Counter()
    for site in sites:
        sizes[site.lines[0]] += site.bytes
        blocks[site.lines[0]] += site.blocks
    return tuple(
        LineGrowth(line.file, line.line, size, blocks[line]) for line, size in sizes.most_common(_TOP_LINES)
    )


def _note(document: TracemallocDocument) -> str:
    words = [f"{format_size(document.grown_bytes)} grew within {format_duration(document.seconds)}"]
    if document.was_on:
        words.append("tracemalloc was on before and stays on")
    if document.ended_by == "hold":
        words.append("ended early, before a snapshot would have held the GIL for too long")
    if document.ended_by == "load":
        words.append("ended early, because the target had no CPU left: tracing makes allocations dearer")
    if document.ended_by == "memory":
        words.append("ended early, because tracing took much memory")
    return "; ".join(words)
