"""Findings about the event loop: what blocks it, and what its tasks have in common.

From outside, a thread is known to run a loop by the frames of asyncio (Lib/asyncio/base_events.py, runners.py) or
uvloop at its root. The loop waits for events where no other frame lies on top of these, or that of `selectors`.
Everything else is one callback. Two samples in one callback do not show that it was the same call of it, unless the thread
slept in it: a loop that sleeps anywhere but in its selector is blocked. For work on a CPU the readings of `loop_stall` say so.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sentinel_agent.capture.task_groups import context_in_words
from sentinel_agent.core.units import format_duration
from sentinel_agent.findings.base import Facts, Finding, NotKnown, finding, is_library, place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentinel_agent.capture.task_groups import Growth, TaskGroup, TasksDocument
    from sentinel_agent.profile.record import Frame, ProfileRecord

_LEAST_SECONDS = 0.25
_LEAST_SAMPLES = 4
_GAP = 2.5  # periods without a sample that end a stretch
_LOOP_PARTS = ("/asyncio/", "/uvloop/", "uvloop/loop.pyx")
_LOOP_ROOTS = frozenset({"run_forever", "run_until_complete"})
_LEAST_SHARE = 0.5
_MANY_TASKS = 100


@dataclass(slots=True)
class _Stretch:
    """Samples of one loop's thread, one after the other, in one callback."""

    callback: tuple[str, str]
    start: float
    end: float
    samples: int = 0
    asleep: int = 0
    places: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        return self.end - self.start


def blocked_loop(facts: Facts) -> Finding | NotKnown | None:
    """The event loop stood in one callback."""
    stall = facts.readings("loop_stall")
    longest = max(stall.values, default=0.0) if stall else 0.0
    if facts.timeline is None:
        return facts.not_known("blocked_loop", "timeline")
    stretches = [
        stretch
        for stretch in _stretches(facts.timeline)
        if stretch.seconds >= _LEAST_SECONDS and stretch.samples >= _LEAST_SAMPLES
    ]
    asleep = [stretch for stretch in stretches if stretch.asleep * 2 > stretch.samples]
    worst = max(asleep or stretches, key=lambda stretch: stretch.seconds, default=None)
    if worst is None or (not asleep and longest < _LEAST_SECONDS):
        return None
    seconds = worst.seconds if asleep else min(longest, worst.seconds)
    (user, leaf), count = worst.places.most_common(1)[0]
    called = "" if leaf == user else f", waiting in {leaf}" if asleep else f", in {leaf}"
    what = "a call that blocks" if asleep else "work on the CPU"
    score = 90 if facts.about("loop_stall") else 75 if asleep else 60
    return finding(
        "blocked_loop",
        score + min(8, seconds),
        f"the event loop was blocked for {format_duration(seconds)} by {what}: {user}{called}",
        f"{worst.samples} samples of the loop's thread in a row are in it, {count} of them at this line; "
        f"in {worst.asleep} the thread slept",
        f"loop_stall reached {format_duration(longest)}"
        if longest
        else "there are no readings of loop_stall",
        next_step="use an asynchronous call there, or hand it to a thread: `await asyncio.to_thread(...)`",
        subject=user,
    )


def _stretches(timeline: ProfileRecord) -> Iterator[_Stretch]:
    """Stretches in which a loop's thread was in one callback."""
    gap = _GAP * (timeline.period or 0.1)
    for thread in range(len(timeline.threads)):
        now: _Stretch | None = None
        for sample in timeline.samples:
            if sample.thread != thread:
                continue
            frames = [timeline.frames[index] for index in sample.stack]
            callback = callback_frames(frames)
            if callback is None or not callback:
                if now:
                    yield now
                now = None
                continue
            first = callback[-1]
            key = (first.function, first.file)
            if now and (now.callback != key or sample.offset - now.end > gap):
                yield now
                now = None
            if now is None:
                now = _Stretch(key, sample.offset, sample.offset)
            now.end = max(now.end, sample.offset + sample.weight)
            now.samples += sample.count
            now.asleep += sample.count if sample.on_cpu is False else 0
            now.places[_place(callback)] += sample.count
        if now:
            yield now


def callback_frames(frames: list[Frame]) -> list[Frame] | None:
    """The frames (innermost first) above those of the loop: empty while it waits, None for a thread without a loop."""
    roots = [number for number, frame in enumerate(frames) if _runs_loop(frame)]
    if not roots:
        return None
    above = frames[: roots[0]]
    while above and _is_loop(above[-1]):
        above.pop()
    return [] if above and above[0].file.endswith("selectors.py") and len(above) == 1 else above


def _runs_loop(frame: Frame) -> bool:
    if frame.function.rpartition(".")[2] in _LOOP_ROOTS and _is_loop(frame):
        return True
    return frame.function.rpartition(".")[2] == "run" and frame.file.endswith(
        ("asyncio/runners.py", "uvloop/__init__.py")
    )


def _is_loop(frame: Frame) -> bool:
    return any(part in frame.file for part in _LOOP_PARTS)


def _place(callback: list[Frame]) -> tuple[str, str]:
    """The innermost frame of the program's own code, and the innermost of all."""
    own = next((frame for frame in callback if not is_library(frame.file)), callback[0])
    leaf = callback[0]
    return place(own.function, own.file, own.line), place(leaf.function, leaf.file, leaf.line)


def alike_tasks(facts: Facts) -> Finding | NotKnown | None:
    """The coroutine of which there are most tasks more than before; without a comparison, the one that makes most of them."""
    if facts.tasks is None:
        return facts.not_known("tasks", "tasks")
    document = facts.tasks
    if not document.groups or not document.count:
        return None
    first = document.groups[0]
    grown = document.grown[0] if document.grown else None
    share = (grown.now - grown.was if grown else first.count) / document.count
    about = facts.about("tasks")
    if not about and (share < _LEAST_SHARE or first.count < _MANY_TASKS):
        return None
    outer = first.frames[0] if first.frames else None
    where = place(first.coroutine, outer.file if outer else "", outer.line if outer else 0)
    waits = f", waiting in {first.frames[-1].function}" if len(first.frames) > 1 else ""
    on = f" on {first.waiting_on}" if first.waiting_on else ""
    return finding(
        "tasks",
        (70 if grown else 60) + 25 * share if about else 35 + 35 * share,
        f"{_how_many(document, first, grown)} {where}{waits}{on}",
        f"they are for {context_in_words(first)}" if first.context else "",
        *(place(frame.function, frame.file, frame.line) for frame in first.frames[-4:]),
        _compared(document),
        f"{document.unreadable} tasks could not be read" if document.unreadable else "",
        next_step="find who creates them and what they wait for; bound their number, or give the wait a timeout",
        subject=place(first.coroutine, outer.file if outer else "", 0),
    )


def _how_many(document: TasksDocument, first: TaskGroup, grown: Growth | None) -> str:
    """`a leak? 500 tasks, where 3 were before, are`, or `300 of 305 tasks (98%) are`."""
    if grown is None:
        return f"{first.count} of {document.count} tasks ({first.count / document.count:.0%}) are"
    about = "about " if document.compared_with and document.compared_with.every > 1 else ""
    return f"{grown.now} of {document.count} tasks, {about}{grown.was} before, are"


def _compared(document: TasksDocument) -> str:
    """How it was before, or that this is not known."""
    before = document.compared_with
    if before is None:
        return f"not compared with before: {document.not_compared}" if document.not_compared else ""
    others = "; ".join(f"{each.coroutine} {each.was} then, {each.now} now" for each in document.grown[1:4])
    sampled = f" (estimated: each {before.every}th was read)" if before.every > 1 else ""
    return f"there were {before.count} tasks when all was well{sampled}" + (
        f"; also grown: {others}" if others else ""
    )
