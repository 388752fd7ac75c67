"""`tasks`: every asyncio task that is not done, read from outside and grouped by what it is waiting for.

The reader runs in a worker thread and only reads memory: the target is not stopped, whatever the number of tasks.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.capture.base import CapturedFile, CapturePlan, CaptureResult
from sentinel_agent.capture.task_groups import LISTED, TasksDocument, TaskSnapshot, to_document
from sentinel_agent.cpython.process import open_process

if TYPE_CHECKING:
    from sentinel_agent.core.model import TargetId

MAX_TASKS = 1_000_000
_UNWATCHED = "no snapshot from before is at hand: only the agent that watches the process keeps them"


class TasksCapture:
    """All tasks of the target as `tasks.json`, compared with how it was when no rule was about to fire."""

    kind = "tasks"
    attaches = False

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        """Write it.

        Raises:
            TargetError: the target has ended, may not be read, or is no CPython that the reader knows.
        """
        before = plan.tasks_before() if plan.tasks_before else _UNWATCHED
        document = await asyncio.to_thread(read_tasks, plan.target.id, before=before)
        (plan.folder / "tasks.json").write_bytes(msgspec.json.encode(document))
        compared = f"; not compared with before: {document.not_compared}" if document.not_compared else ""
        return CaptureResult(
            files=(CapturedFile("tasks.json", "tasks", "json"),),
            lost_samples=document.unreadable,
            note=f"{document.count} tasks in {len(document.groups)} groups{compared}",
        )


def read_tasks(
    target: TargetId, listed: int | None = LISTED, before: TaskSnapshot | str = _UNWATCHED
) -> TasksDocument:
    """The tasks of a process as they are, with a reader made for this one look; `listed` one by one (None: all).

    `before` is the snapshot to compare with, or why there is none.

    Raises:
        TargetError: as `TasksCapture.capture`.
    """
    dump = open_process(target.pid).tasks(MAX_TASKS)
    if isinstance(before, str):
        return to_document(dump, listed, not_compared=before)
    return to_document(dump, listed, before)
