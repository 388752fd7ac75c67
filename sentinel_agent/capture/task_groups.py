"""asyncio tasks grouped by what they wait for, and compared with how it was when the target was well. Pure.

A leak is a group: many tasks with one and the same await chain. Where there is a snapshot from before, groups are ordered by how
much their coroutine has grown since, so that a leak comes before a large but steady crowd. Coroutines are compared before
chains: a crowd that only waits elsewhere now has not grown.

Who created a task is not kept by CPython. What is known is who awaits it (for some), and where its coroutine is defined.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.capture.stacks import StackFrame
from sentinel_agent.profile.record import MAX_DEPTH, clean_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sentinel_agent.cpython.code import Frame
    from sentinel_agent.cpython.tasks import TaskDump, TaskView

LISTED = 2000
"""So many tasks are written one by one; all of them are in the groups."""
MAX_KEYS = 2000
"""Most groups, and most coroutines, that a snapshot remembers: the largest."""
_NAMES = 5
_ORIGINS = 10
_GROWN = 10
_VALUES = 3  # of one label
_SURE = 2.0  # standard deviations by which a sampled count may be wrong


class TaskEntry(msgspec.Struct, frozen=True):
    """One task; frames are outermost first, along the await chain.

    `id` numbers the tasks of one document from 1 on; `awaited_by` are the numbers of those that are known to wait for it.
    `context` is what the target says that the task is for (`sentinel_agent.context`).
    """

    name: str
    state: str
    coroutine: str
    frames: tuple[StackFrame, ...]
    waiting_on: str | None
    id: int = 0
    awaited_by: tuple[int, ...] = ()
    context: dict[str, str] = {}


class TaskGroup(msgspec.Struct, frozen=True):
    """Tasks with one and the same await chain; `names` are the first few.

    `defined` is where the coroutine is written. `was` is how many there were in the snapshot from before, None without one.
    `context` has, by label, the values that most of the tasks have, and how many have each.
    """

    count: int
    coroutine: str
    states: dict[str, int]
    frames: tuple[StackFrame, ...]
    waiting_on: str | None
    names: tuple[str, ...]
    defined: StackFrame | None = None
    was: int | None = None
    context: dict[str, dict[str, int]] = {}


class Origin(msgspec.Struct, frozen=True):
    """`count` tasks of a coroutine that is written at `defined`; `awaited_by` is who is known to wait for them, None for nobody."""

    count: int
    coroutine: str
    defined: StackFrame | None
    awaited_by: StackFrame | None


class Growth(msgspec.Struct, frozen=True):
    """A coroutine of which there are more tasks than before; `now` of them, `was` then."""

    coroutine: str
    defined: StackFrame | None
    was: int
    now: int


class ComparedWith(msgspec.Struct, frozen=True):
    """The snapshot from before: when it was taken, how many tasks there were.

    Counts from it are estimates where `every` is above 1 (each so-manieth task was read), and upper bounds for groups that it
    does not remember, of which `left_out` is the largest.
    """

    time: float
    count: int
    every: int = 1
    left_out: int = 0


class TasksDocument(msgspec.Struct, frozen=True):
    """The document of `tasks.json` and of `tasks PID --json`. `count` is of all tasks, listed one by one or not.

    With `compared_with`, the groups whose coroutine has grown most come first, else the largest; without it `not_compared` says
    why. `origins` are the largest; `grown` what has grown most.
    """

    count: int
    groups: tuple[TaskGroup, ...]
    tasks: tuple[TaskEntry, ...]
    unreadable: int = 0
    truncated: bool = False
    compared_with: ComparedWith | None = None
    not_compared: str = ""
    grown: tuple[Growth, ...] = ()
    origins: tuple[Origin, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """How many tasks there were of each group and of each coroutine, by a key that only this process understands.

    Counts are of all tasks, estimated where only each `every`-th was read. `left_out`: no group or coroutine that is not
    here had more.
    """

    time: float
    count: int
    every: int
    groups: Mapping[int, int]
    coroutines: Mapping[int, int]
    left_out: int

    def group(self, key: int) -> int:
        """How many there were, at most."""
        return self.groups.get(key, self.left_out)

    def growth(self, key: int, now: int) -> int:
        """By how many a coroutine has grown for sure; 0 if it may be chance.

        A count c of a sample of each k-th task has a standard deviation of at most sqrt(k (k - 1) c).
        """
        was = self.coroutines.get(key, self.left_out)
        spread = math.sqrt((was + self.every) * (self.every - 1)) if self.every > 1 else 0.0
        return max(0, now - was - math.ceil(_SURE * spread))


@dataclass(slots=True)
class _Members:
    """The tasks of one group with the keys under which a snapshot knows them."""

    tasks: list[TaskView]
    group: int
    coroutine: int


def take_snapshot(dump: TaskDump, time: float, every: int = 1) -> TaskSnapshot:
    """What is remembered of a dump of each `every`-th task."""
    groups: Counter[int] = Counter()
    coroutines: Counter[int] = Counter()
    for members in _grouped(dump.tasks):
        groups[members.group] += every * len(members.tasks)
        coroutines[members.coroutine] += every * len(members.tasks)
    left_out = max(
        (
            counts.most_common(MAX_KEYS + 1)[-1][1]
            for counts in (groups, coroutines)
            if len(counts) > MAX_KEYS
        ),
        default=0,
    )
    return TaskSnapshot(
        time=time,
        count=every * dump.count,
        every=every,
        groups=dict(groups.most_common(MAX_KEYS)),
        coroutines=dict(coroutines.most_common(MAX_KEYS)),
        left_out=left_out,
    )


def largest_groups(dump: TaskDump, most: int, every: int = 1) -> tuple[TaskGroup, ...]:
    """The largest groups of a dump of each `every`-th task; their counts are estimates of all."""
    found = sorted(_grouped(dump.tasks), key=lambda members: -len(members.tasks))[:most]
    return tuple(_times(_group(members.tasks, None), every) for members in found)


def _times(group: TaskGroup, every: int) -> TaskGroup:
    """The group with its counts as estimates of all."""
    context = {
        name: {value: every * count for value, count in counts.items()}
        for name, counts in group.context.items()
    }
    return msgspec.structs.replace(group, count=every * group.count, context=context)


def to_document(
    dump: TaskDump,
    listed: int | None = LISTED,
    before: TaskSnapshot | None = None,
    not_compared: str = "",
) -> TasksDocument:
    """Group the tasks: what has grown most since `before` first, without it the largest. `listed` one by one (None: all)."""
    found = _grouped(dump.tasks)
    counts: Counter[int] = Counter()
    for members in found:
        counts[members.coroutine] += len(members.tasks)
    if before is not None:
        grown = {key: before.growth(key, now) for key, now in counts.items()}
        found.sort(
            key=lambda members: (
                -grown[members.coroutine],
                before.group(members.group) - len(members.tasks) if grown[members.coroutine] else 0,
                -len(members.tasks),
            )
        )
    else:
        found.sort(key=lambda members: -len(members.tasks))
    numbers = {task.id: number for number, task in enumerate(dump.tasks, 1)}
    return TasksDocument(
        count=dump.count,
        groups=tuple(
            _group(members.tasks, before.group(members.group) if before else None) for members in found
        ),
        tasks=tuple(_entry(task, numbers) for task in dump.tasks[:listed]),
        unreadable=dump.unreadable,
        truncated=dump.truncated,
        compared_with=ComparedWith(before.time, before.count, before.every, before.left_out)
        if before
        else None,
        not_compared="" if before else not_compared,
        grown=tuple(_grown(found, counts, before)) if before else (),
        origins=_origins(dump.tasks),
    )


def _grouped(tasks: Sequence[TaskView]) -> list[_Members]:
    """Tasks with one await chain and one kind of wait together, in the order in which they are met."""
    answer: dict[tuple[object, ...], _Members] = {}
    for task in tasks:
        chain = tuple((frame.code.address, frame.lasti) for frame in task.frames)
        wait = _kind_of_wait(task.waiting_on)
        members = answer.get((task.coroutine, chain, wait))
        if members is None:
            places = tuple((frame.function, frame.file, frame.line) for frame in task.frames)
            own = (task.coroutine, task.frames[0].file, task.frames[0].code.first_line) if task.frames else ()
            answer[task.coroutine, chain, wait] = _Members(
                [task], hash((task.coroutine, places, wait)), hash(own or task.coroutine)
            )
        else:
            members.tasks.append(task)
    return list(answer.values())


def _kind_of_wait(waiting_on: str | None) -> str | None:
    """What is waited on without the name of the one object: `Task` rather than `Task-17`."""
    return None if waiting_on is None else waiting_on.split("(")[0].split("-")[0].split(" ")[0]


def _group(tasks: list[TaskView], was: int | None) -> TaskGroup:
    first = tasks[0]
    waits = {task.waiting_on for task in tasks}
    waiting_on = first.waiting_on if len(waits) == 1 else _kind_of_wait(first.waiting_on)
    return TaskGroup(
        count=len(tasks),
        coroutine=clean_name(first.coroutine),
        states=dict(Counter(task.state for task in tasks)),
        frames=_frames(first.frames),
        waiting_on=None if waiting_on is None else clean_name(waiting_on),
        names=tuple(clean_name(task.name) for task in tasks[:_NAMES]),
        defined=_defined(first),
        was=was,
        context=_context(tasks),
    )


def _context(tasks: Sequence[TaskView]) -> dict[str, dict[str, int]]:
    """By label, in the order in which they are met, the values that most tasks have."""
    values: dict[str, Counter[str]] = {}
    for task in tasks:
        for name, value in task.context:
            values.setdefault(clean_name(name), Counter())[clean_name(value)] += 1
    return {name: dict(counts.most_common(_VALUES)) for name, counts in values.items()}


def context_in_words(group: TaskGroup) -> str:
    """`route=/pay (38 of 40), trace_id=4bf92f35, 77ac0d12, ...`: what the tasks are for; empty where the target does not say."""
    words = []
    for name, counts in group.context.items():
        values = [
            value if count in (1, group.count) else f"{value} ({count} of {group.count})"
            for value, count in counts.items()
        ]
        more = [] if sum(counts.values()) == group.count else ["..."]
        words.append(f"{name}={', '.join(values + more)}")
    return "; ".join(words)


def _entry(task: TaskView, numbers: Mapping[int, int]) -> TaskEntry:
    return TaskEntry(
        name=clean_name(task.name),
        state=task.state,
        coroutine=clean_name(task.coroutine),
        frames=_frames(task.frames),
        waiting_on=None if task.waiting_on is None else clean_name(task.waiting_on),
        id=numbers[task.id],
        awaited_by=tuple(numbers[parent] for parent in task.awaited_by if parent in numbers),
        context={clean_name(name): clean_name(value) for name, value in task.context},
    )


def _grown(found: Sequence[_Members], counts: Mapping[int, int], before: TaskSnapshot) -> list[Growth]:
    """The coroutines that have grown for sure, in the order of the groups."""
    first = {members.coroutine: members.tasks[0] for members in reversed(found)}
    order = dict.fromkeys(members.coroutine for members in found)
    return [
        Growth(
            coroutine=clean_name(first[key].coroutine),
            defined=_defined(first[key]),
            was=before.coroutines.get(key, before.left_out),
            now=counts[key],
        )
        for key in order
        if before.growth(key, counts[key])
    ][:_GROWN]


def _origins(tasks: Sequence[TaskView]) -> tuple[Origin, ...]:
    """By coroutine and by where its awaiter waits; of several awaiters the first that is known counts."""
    known = {task.id: task for task in tasks}
    counts: Counter[tuple[str, StackFrame | None, StackFrame | None]] = Counter()
    for task in tasks:
        parent = next((known[each] for each in task.awaited_by if each in known), None)
        waits = _frames(parent.frames[:1])[0] if parent is not None and parent.frames else None
        counts[task.coroutine, _defined(task), waits] += 1
    return tuple(
        Origin(count, clean_name(coroutine), defined, awaiter)
        for (coroutine, defined, awaiter), count in counts.most_common(_ORIGINS)
    )


def _defined(task: TaskView) -> StackFrame | None:
    if not task.frames:
        return None
    code = task.frames[0].code
    return StackFrame(clean_name(code.function), clean_name(code.file), max(0, code.first_line))


def _frames(frames: tuple[Frame, ...]) -> tuple[StackFrame, ...]:
    return tuple(
        StackFrame(clean_name(frame.function), clean_name(frame.file), frame.line or 0)
        for frame in frames[:MAX_DEPTH]
    )
