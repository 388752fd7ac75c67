"""A record folded for merging: what each stack costs before and since the trigger, and what each second costs.

Stacks are tuples of labels, root first. In the view of all threads the root is the thread's name, without its id, so that
the same threads of several processes are merged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from sys import intern
from typing import TYPE_CHECKING, Literal

from sentinel_agent.profile.names import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.profile.flamegraph import Folded
    from sentinel_agent.profile.record import Frame, ProfileRecord

_NANO = 1_000_000_000
View = Literal["cpu", "wall"]
Interval = tuple[float, float]
"""A stretch of time, seconds since the epoch, the end not included."""


@dataclass(slots=True)
class Digest:
    """Costs in nanoseconds. `seconds` are by whole seconds since the epoch; `start` and `end` say what was recorded.

    `since` is when the trigger's condition became true; without a trigger everything is `during`.
    """

    start: float
    end: float
    since: float
    before: Folded = field(default_factory=dict)
    during: Folded = field(default_factory=dict)
    seconds: dict[int, int] = field(default_factory=dict)


def digest(
    record: ProfileRecord,
    view: View,
    *,
    since: float | None = None,
    inside: Sequence[Interval] | None = None,
) -> Digest:
    """Fold the samples of a view that begin in one of the intervals `inside` (None: all of them).

    A sample without weight (a look, not a recording) costs nothing and is left out. In the view "cpu" are samples that are known to have been on a CPU.
    """
    start = record.start
    found = Digest(start, start + record.end, start if since is None else since)
    labels = [intern(frame_label(frame)) for frame in record.frames]
    threads = [intern(printable(thread.name) or f"thread {thread.native_id}") for thread in record.threads]
    stacks: dict[tuple[int, tuple[int, ...]], tuple[str, ...]] = {}
    wall = view == "wall"
    for sample in record.samples:
        if not (wall or sample.on_cpu):
            continue
        time = start + sample.offset
        if inside is not None and not any(begin <= time < end for begin, end in inside):
            continue
        key = (sample.thread if wall else 0, sample.stack)
        stack = stacks.get(key)
        if stack is None:
            stack = tuple([labels[index] for index in reversed(sample.stack)])
            stack = stacks[key] = (threads[sample.thread], *stack) if wall else stack
        cost = round(sample.weight * _NANO)
        if cost <= 0:
            continue
        into = found.during if time >= found.since else found.before
        into[stack] = into.get(stack, 0) + cost
        second = int(time)
        found.seconds[second] = found.seconds.get(second, 0) + cost
    return found


def frame_label(frame: Frame) -> str:
    """`function (folder/file.py)`: lines would tear a function apart, and a whole path would hide its name."""
    if not frame.file:
        return printable(frame.function)
    return printable(f"{frame.function} ({'/'.join(frame.file.rsplit('/', 2)[-2:])})")


def gaps(interval: Interval, covered: Sequence[Interval]) -> list[Interval]:
    """What of `interval` is in none of `covered`, in order."""
    found: list[Interval] = []
    at, end = interval
    for begin, until in sorted(covered):
        if until <= at:
            continue
        if begin >= end:
            break
        if begin > at:
            found.append((at, begin))
        at = max(at, until)
    if at < end:
        found.append((at, end))
    return found
