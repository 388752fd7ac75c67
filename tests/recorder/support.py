"""Rings, ticks and stacks for the recorder's tests, and what a recording holds, sample by sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.core.model import Role, TargetId
from sentinel_agent.recorder.ring import Ring
from sentinel_agent.recorder.sample import Place, ThreadSample, Tick
from sentinel_agent.recorder.segment import StoredSegment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROLE = Role("gateway", "host-1")
TARGET = TargetId(42, 1000, 7)
START = 1_700_000_000.0
PERIOD = 1 / 19
STACK: tuple[Place, ...] = tuple((f"function_{n}", f"app/part_{n % 5}.py", n) for n in range(30))

Seen = tuple[float, int, str, tuple[Place, ...], bool | None, bool]
"""Wall time, native id, name, frames, on CPU, partial."""


def make_ring(run: int = 1, **options: object) -> Ring:
    return Ring(ROLE, TARGET, run, **options)  # type: ignore[arg-type]  # passed through as the tests write them


def sample(
    frames: tuple[Place, ...] = STACK,
    native_id: int = 42,
    *,
    name: str = "MainThread",
    on_cpu: bool | None = True,
    partial: bool = False,
) -> ThreadSample:
    return ThreadSample(native_id, name, on_cpu, "partial" if partial else "whole", frames)


def tick(
    number: int,
    threads: Sequence[ThreadSample],
    *,
    period: float = PERIOD,
    failed: int = 0,
    late: float = 0.0,
    lead: float = 0.0,
) -> Tick:
    """Tick `number`, one every PERIOD seconds."""
    return Tick(START + number * PERIOD, 5000 + number * PERIOD, period, threads, failed, late, lead)


def put_in(ticks: Iterable[Tick]) -> list[Seen]:
    """What a recording of these ticks must hold."""
    return sorted(
        (
            (one.wall, s.native_id, s.name, s.frames, s.on_cpu, s.kind == "partial")
            for one in ticks
            for s in one.threads
        ),
        key=repr,
    )


def recorded(pieces: Iterable[bytes]) -> list[Seen]:
    """Every sample in these segments."""
    answer: list[Seen] = []
    for piece in pieces:
        segment = StoredSegment(piece)
        for thread, node, on_cpu, partial, first, count in segment.runs():
            who, frames = segment.thread(thread), segment.stack(node)
            assert who is not None
            assert frames is not None
            answer += [
                (segment.ticks[number][0], *who, frames, on_cpu, partial)
                for number in range(first, first + count)
            ]
    return sorted(answer, key=repr)
