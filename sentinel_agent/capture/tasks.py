"""`tasks`: every asyncio task that is not done, read from outside and grouped by what it is waiting for.

The reader runs in a worker thread and only reads memory: the target is not stopped, whatever the number of tasks.
A leak is a group: many tasks with one and the same await chain. So groups come first, the largest on top.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.capture.base import CapturedFile, CapturePlan, CaptureResult
from sentinel_agent.capture.stacks import StackFrame
from sentinel_agent.cpython.process import open_process
from sentinel_agent.profile.record import MAX_DEPTH, clean_name

if TYPE_CHECKING:
    from sentinel_agent.core.model import TargetId
    from sentinel_agent.cpython.code import Frame
    from sentinel_agent.cpython.tasks import TaskDump, TaskView

MAX_TASKS = 1_000_000
LISTED = 2000
"""So many tasks are written one by one; all of them are in the groups."""
_NAMES = 5


class TaskEntry(msgspec.Struct, frozen=True):
    """One task; frames are outermost first, along the await chain."""

    name: str
    state: str
    coroutine: str
    frames: tuple[StackFrame, ...]
    waiting_on: str | None


class TaskGroup(msgspec.Struct, frozen=True):
    """Tasks with one and the same await chain; `names` are the first few."""

    count: int
    coroutine: str
    states: dict[str, int]
    frames: tuple[StackFrame, ...]
    waiting_on: str | None
    names: tuple[str, ...]


class TasksDocument(msgspec.Struct, frozen=True):
    """The document of `tasks.json` and of `tasks PID --json`. `count` is of all tasks, listed one by one or not."""

    count: int
    groups: tuple[TaskGroup, ...]
    tasks: tuple[TaskEntry, ...]
    unreadable: int = 0
    truncated: bool = False


class TasksCapture:
    """All tasks of the target as `tasks.json`."""

    kind = "tasks"
    attaches = False

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        """Write it.

        Raises:
            TargetError: the target has ended, may not be read, or is no CPython that the reader knows.
        """
        document = await asyncio.to_thread(read_tasks, plan.target.id)
        (plan.folder / "tasks.json").write_bytes(msgspec.json.encode(document))
        return CaptureResult(
            files=(CapturedFile("tasks.json", "tasks", "json"),),
            lost_samples=document.unreadable,
            note=f"{document.count} tasks in {len(document.groups)} groups",
        )


def read_tasks(target: TargetId, listed: int | None = LISTED) -> TasksDocument:
    """The tasks of a process as they are, with a reader made for this one look; `listed` one by one (None: all).

    Raises:
        TargetError: as `TasksCapture.capture`.
    """
    return to_document(open_process(target.pid).tasks(MAX_TASKS), listed)


def to_document(dump: TaskDump, listed: int | None = LISTED) -> TasksDocument:
    """Group the tasks; those with the most in common first."""
    members: dict[tuple[object, ...], list[TaskView]] = {}
    for task in dump.tasks:
        chain = tuple((frame.code.address, frame.lasti) for frame in task.frames)
        members.setdefault((task.coroutine, chain, _kind_of_wait(task.waiting_on)), []).append(task)
    groups = sorted(members.values(), key=lambda tasks: -len(tasks))
    return TasksDocument(
        count=dump.count,
        groups=tuple(_group(tasks) for tasks in groups),
        tasks=tuple(_entry(task) for task in dump.tasks[:listed]),
        unreadable=dump.unreadable,
        truncated=dump.truncated,
    )


def _kind_of_wait(waiting_on: str | None) -> str | None:
    """What is waited on without the name of the one object: `Task` rather than `Task-17`."""
    return None if waiting_on is None else waiting_on.split("(")[0].split("-")[0].split(" ")[0]


def _group(tasks: list[TaskView]) -> TaskGroup:
    first = tasks[0]
    waits = {task.waiting_on for task in tasks}
    return TaskGroup(
        count=len(tasks),
        coroutine=clean_name(first.coroutine),
        states=dict(Counter(task.state for task in tasks)),
        frames=_frames(first.frames),
        waiting_on=first.waiting_on if len(waits) == 1 else _kind_of_wait(first.waiting_on),
        names=tuple(clean_name(task.name) for task in tasks[:_NAMES]),
    )


def _entry(task: TaskView) -> TaskEntry:
    return TaskEntry(
        name=clean_name(task.name),
        state=task.state,
        coroutine=clean_name(task.coroutine),
        frames=_frames(task.frames),
        waiting_on=None if task.waiting_on is None else clean_name(task.waiting_on),
    )


def _frames(frames: tuple[Frame, ...]) -> tuple[StackFrame, ...]:
    return tuple(
        StackFrame(clean_name(frame.function), clean_name(frame.file), frame.line or 0)
        for frame in frames[:MAX_DEPTH]
    )
