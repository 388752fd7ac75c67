"""`tracemalloc`: which lines allocated the memory that grew, by the target's own tracemalloc. Needs `capture.allow_injection`.

What runs in the target is `inject/payload/growth.py`: it traces for a bounded time with bounded tracebacks, ends early before a
snapshot would hold the GIL for longer than the cap, and stops again unless tracing was on before. Refused near the memory limit,
since tracing takes memory itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Annotated

import msgspec
from msgspec import Meta

from sentinel_agent.capture.base import CapturedFile, CapturePlan, CaptureResult
from sentinel_agent.capture.injected import (
    ENDINGS,
    MOST_BYTES,
    Answer,
    InjectedCapture,
    Injection,
    Natural,
    inject,
    refuse,
)
from sentinel_agent.core.units import format_duration, format_size
from sentinel_agent.profile import heap
from sentinel_agent.profile.heap import HeapLine, HeapSite
from sentinel_agent.profile.record import MAX_NAME, clean_name
from sentinel_agent.target.procfs import PAGE_SIZE, ProcDir

FRAMES = 1
"""Each frame more makes an allocation dearer: see docs/captures.md."""
_TOP_LINES = 200

_Frame = tuple[Annotated[str, Meta(max_length=MAX_NAME)], Natural]
_Site = tuple[Natural, int, Natural, Natural, Annotated[list[_Frame], Meta(max_length=256)]]


class _Growth(Answer, frozen=True, kw_only=True):
    """What the payload says beside what all of them do."""

    was_on: bool = False
    traces: Natural = 0
    traced_bytes: int = 0
    overhead_bytes: Natural = 0
    grown_bytes: Natural = 0
    tracebacks: Natural = 0
    top: Annotated[tuple[_Site, ...], Meta(max_length=1000)] = ()


class LineGrowth(msgspec.Struct, frozen=True):
    """What one line allocated meanwhile and still holds."""

    file: str
    line: int
    bytes: int
    blocks: int


class TracemallocDocument(msgspec.Struct, frozen=True):
    """The document of `tracemalloc.json`. Bytes as tracemalloc counts them; `seconds` is how long was traced.

    `grown_bytes` is what was allocated meanwhile and still held at the end; `lines` are by the innermost line of each traceback, `sites` by
    the whole of it. `holds_us`: the longest time that each call held the GIL. `resident_grown_bytes` is by how much resident memory
    grew meanwhile; what tracing itself took and gave back is in it.
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
    resident_grown_bytes: int = 0


class TracemallocCapture(InjectedCapture):
    """Growth by line as `tracemalloc.json`, and by traceback as `tracemalloc.pb.gz`."""

    kind = "tracemalloc"

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        """Trace for `plan.duration` seconds.

        Raises:
            NotAllowedError: the settings do not allow it.
            TargetError: the target is not fit for it, near its memory limit, or did not answer.
            PeerError: hypno is missing or failed, or the answer is nonsense.
        """
        refuse(plan)
        start = self._clock.wall()
        resident = await asyncio.to_thread(_resident, plan)
        arguments: dict[str, object] = {"frames": plan.spec.frames or FRAMES, "most_bytes": MOST_BYTES}
        answer, injection = await inject(plan, "growth", arguments, _Growth, self._clock)
        document = _document(plan, answer, injection, await asyncio.to_thread(_resident, plan) - resident)
        await asyncio.to_thread(_write, plan, document, start)
        return CaptureResult(
            files=(
                CapturedFile("tracemalloc.json", "tracemalloc", "json"),
                CapturedFile("tracemalloc.pb.gz", "tracemalloc", "pprof"),
            ),
            pause_us=injection.pause_us,
            gil_hold_us=injection.gil_hold_us,
            note=_note(document),
        )


def _resident(plan: CapturePlan) -> int:
    """Bytes of resident memory; 0 where that cannot be read."""
    try:
        with ProcDir.of(plan.target.id) as proc:
            return int(proc.read("statm").split()[1]) * PAGE_SIZE
    except (OSError, ValueError, IndexError):
        return 0


def _document(
    plan: CapturePlan, answer: _Growth, injection: Injection, resident_grown: int
) -> TracemallocDocument:
    sites = tuple(
        HeapSite(
            size, blocks, held, held_blocks, tuple(HeapLine(clean_name(file), line) for file, line in lines)
        )
        for size, blocks, held, held_blocks, lines in answer.top
        if lines
    )
    return TracemallocDocument(
        seconds=answer.seconds,
        ended_by=answer.ended_by,
        was_on=answer.was_on,
        frames=plan.spec.frames or FRAMES,
        traces=answer.traces,
        grown_bytes=answer.grown_bytes,
        tracebacks=answer.tracebacks,
        overhead_bytes=answer.overhead_bytes,
        holds_us=injection.holds_us,
        lines=_by_line(sites),
        sites=sites,
        injection=injection,
        resident_grown_bytes=resident_grown,
    )


def _write(plan: CapturePlan, document: TracemallocDocument, start: float) -> None:
    (plan.folder / "tracemalloc.json").write_bytes(msgspec.json.encode(document))
    profile = heap.encode(document.sites, start=start, seconds=document.seconds, source="tracemalloc")
    (plan.folder / "tracemalloc.pb.gz").write_bytes(profile)


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
    if document.ended_by in ENDINGS:
        words.append(ENDINGS[document.ended_by])
    return "; ".join(words)
