"""The tasks of a real service, against what the service itself knows of them, on every interpreter of the machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from sentinel_agent.capture.task_groups import LISTED, TasksDocument
from sentinel_agent.capture.tasks import TasksCapture, read_tasks
from sentinel_agent.cli.task_view import groups, tree
from sentinel_agent.core.rule import CaptureSpec
from sentinel_agent.errors import NoSuchTargetError, TargetError
from tests.capture.targets import interpreters, plan_for, started, target_of

if TYPE_CHECKING:
    from pathlib import Path

SERVICE = """
import asyncio, json, sys
async def backend(): await asyncio.sleep(3600)
async def handler(): await backend()
async def main():
    leaked = [asyncio.create_task(handler()) for _ in range(int(sys.argv[1]))]
    queue = asyncio.Queue()
    reader = asyncio.create_task(queue.get())
    await asyncio.sleep(0.01)
    names = sorted(task.get_name() for task in asyncio.all_tasks())
    json.dump(names, open(sys.argv[2], "w"))
    print("ready", flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


@pytest.mark.parametrize("python", interpreters())
async def test_a_leak_is_the_first_group_with_its_line(python: str, tmp_path: Path) -> None:
    """300 tasks of one kind are one group, its chain ends in the line that awaits; names are those of the service."""
    with started(python, "-c", SERVICE, "300", str(tmp_path / "names")) as process:
        result = await TasksCapture().capture(
            plan_for(target_of(process.pid), tmp_path, CaptureSpec("tasks"))
        )
    (file,) = result.files
    document = msgspec.json.decode((tmp_path / file.name).read_bytes(), type=TasksDocument)
    names = json.loads((tmp_path / "names").read_text())
    assert sorted(task.name for task in document.tasks) == names
    assert document.count == len(names) == 302
    first = document.groups[0]
    assert (first.count, first.coroutine, first.states) == (300, "handler", {"waiting": 300})
    assert [(frame.function, frame.line) for frame in first.frames[:2]] == [("handler", 4), ("backend", 3)]
    assert next(groups(document, 10)).startswith("300 x handler  (300 waiting)")
    assert list(tree(document))[:2] == [
        "302 tasks",
        "├─ 300 x handler (<string>:4) > backend > sleep, waiting on Future",
    ]
    assert (document.origins[0].count, document.origins[0].awaited_by) == (300, None)
    assert first.defined is not None
    assert (first.defined.file, first.defined.line) == ("<string>", 4)


def test_only_so_many_are_listed_but_all_are_counted(tmp_path: Path) -> None:
    """With more tasks than are listed one by one, the groups still hold every one."""
    with started(interpreters()[0], "-c", SERVICE, str(LISTED + 500), str(tmp_path / "names")) as process:
        document = read_tasks(target_of(process.pid).id)
    assert document.count == LISTED + 502
    assert len(document.tasks) == LISTED
    assert sum(group.count for group in document.groups) == document.count


async def test_a_target_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    """The fault is the target's, in words."""
    with started(interpreters()[0], "-c", "print('ready', flush=True); input()") as process:
        target = target_of(process.pid)
        assert read_tasks(target.id).count == 0
    with pytest.raises(NoSuchTargetError):
        await TasksCapture().capture(plan_for(target, tmp_path, CaptureSpec("tasks")))


def test_a_program_that_is_no_python_is_refused() -> None:
    """There is nothing to read in it, and the message says what was looked for."""
    with (
        started("sh", "-c", "echo ready; read line") as process,
        pytest.raises(TargetError, match="no CPython"),
    ):
        read_tasks(target_of(process.pid).id)
