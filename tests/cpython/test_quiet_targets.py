"""At a quiet point the reader's stacks and tasks equal what the target says of itself, exactly."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.cpython.layouts import MINORS as LAYOUT_MINORS
from sentinel_agent.cpython.process import Interpreter, ThreadView, open_process

if TYPE_CHECKING:
    from tests.cpython.conftest import StartTarget, Target

SCENES = ["plain", "recursion", "sorted_with_key", "generators", "unwinding", "threads", "nested"]
SCENES += ["c_extension"]
TASK_SCENES = ["tasks", "running_task", "loops", "many_tasks", "uvloop"]


def quiet_threads(target: Target, views: list[ThreadView]) -> dict[str, ThreadView]:
    """The views of the threads whose stacks the target told, by ident."""
    by_native = {str(native): ident for ident, (_, native) in target.truth["threads"].items()}
    found = {by_native[str(view.native_id)]: view for view in views if str(view.native_id) in by_native}
    return {ident: found[ident] for ident in target.truth["stacks"]}


def places(frames: Any) -> list[list[Any]]:
    return [[frame.function, frame.file, frame.line] for frame in frames]


def assert_stacks_are_true(target: Target, reader: Interpreter) -> None:
    views = reader.stacks()
    assert len(views) == len(target.truth["stacks"]) + 1, "the reporter's thread is the only other one"
    for ident, view in quiet_threads(target, views).items():
        assert view.kind == "whole"
        assert places(view.frames) == target.truth["stacks"][ident]
        assert [view.name, view.native_id] == target.truth["threads"][ident]
        assert (view.state, view.gil) == ("waiting", False)


def assert_tasks_are_true(target: Target, reader: Interpreter) -> None:
    dump = reader.tasks()
    assert (dump.unreadable, dump.truncated) == (0, False)
    names = {task.id: task.name for task in dump.tasks}
    found = [
        [
            task.name,
            task.coroutine,
            places(task.frames),
            task.waiting_on,
            sorted(names[awaiter] for awaiter in task.awaited_by),
        ]
        for task in dump.tasks
    ]
    assert sorted(found, key=repr) == sorted(target.truth["tasks"], key=repr)
    assert all(task.whole for task in dump.tasks)
    assert (reader.task_count() or 0) >= dump.count


@pytest.mark.parametrize("scene", SCENES)
def test_stacks_equal_those_the_target_saw(python: Path, start_target: StartTarget, scene: str) -> None:
    """Function, file and line of every frame, thread names and native ids are the target's own."""
    target = start_target(python, scene)
    reader = open_process(target.pid)
    assert reader.version == ".".join(map(str, target.truth["version"]))
    assert_stacks_are_true(target, reader)


@pytest.mark.parametrize("scene", TASK_SCENES)
def test_tasks_equal_those_the_target_saw(python: Path, start_target: StartTarget, scene: str) -> None:
    """Name, coroutine, await chain and awaited future of every pending task are the target's own, and so are the stacks."""
    target = start_target(python, scene)
    reader = open_process(target.pid)
    assert len(target.truth["tasks"]) > 100
    assert_stacks_are_true(target, reader)
    assert_tasks_are_true(target, reader)


def test_running_task_shows_what_its_thread_executes(python: Path, start_target: StartTarget) -> None:
    """The one task that runs is said to, and its innermost frame is the one that blocks."""
    reader = open_process(start_target(python, "running_task").pid)
    running = [task for task in reader.tasks().tasks if task.state == "running"]
    assert [task.frames[-1].function for task in running] == ["hold"]


def test_repeated_samples_of_a_quiet_target_cost_two_calls(python: Path, start_target: StartTarget) -> None:
    """One gathering call for a thread that did nothing, one for the lists: no frame is asked for one by one."""
    reader = open_process(start_target(python, "nested").pid)
    for _ in range(3):
        reader.sample()
    before = reader.memory.calls
    assert [thread.stack.kind for thread in reader.sample()] == ["whole", "whole"]
    assert reader.memory.calls - before <= 3


def test_the_reader_does_not_disturb_its_target(python: Path, start_target: StartTarget) -> None:
    """Reading does not write to the target's memory, does not stop it and is no tracer of it."""
    target = start_target(python, "tasks")
    status = Path(f"/proc/{target.pid}/status")
    reader = open_process(target.pid)
    stat_before = Path(f"/proc/{target.pid}/stat").read_text().rpartition(")")[2].split()
    for _ in range(50):
        reader.sample()
        reader.task_count()
        assert "TracerPid:\t0" in status.read_text()
    reader.tasks()
    stat_after = Path(f"/proc/{target.pid}/stat").read_text().rpartition(")")[2].split()
    assert stat_after[7:9] == stat_before[7:9], "no page fault of the target"
    assert stat_after[11:13] == stat_before[11:13], "no CPU time of the target"


def test_no_asyncio_is_no_count(python: Path, start_target: StartTarget) -> None:
    """A target that has not imported asyncio has no task count, and no tasks."""
    code = "import sys, os; os.write(1, b'{}\\n'); sys.stdin.read()"
    reader = open_process(start_target(python, "-c", code).pid)
    assert reader.task_count() is None
    assert reader.tasks().tasks == ()


def test_a_system_interpreter_can_be_read(start_target: StartTarget) -> None:
    """The distribution's own CPython, stripped and statically linked, of another micro release, is read as well."""
    system = Path("/usr/bin/python3")
    if not system.exists():
        pytest.skip("this machine has no /usr/bin/python3")
    minor = subprocess.run(
        [system, "-c", "import sys; print(sys.version_info[1])"], capture_output=True, check=True, text=True
    )
    if int(minor.stdout) not in LAYOUT_MINORS:
        pytest.skip(f"/usr/bin/python3 is 3.{minor.stdout.strip()}")
    for scene in ("generators", "tasks"):
        target = start_target(system, scene)
        reader = open_process(target.pid)
        assert_stacks_are_true(target, reader)
        assert_tasks_are_true(target, reader)
