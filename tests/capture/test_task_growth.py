"""A leak is told from a crowd: by real services, and by made-up dumps for what real ones cannot be made to show."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from sentinel_agent.capture import task_snapshots as module
from sentinel_agent.capture.task_groups import TasksDocument, TaskSnapshot, take_snapshot, to_document
from sentinel_agent.capture.task_snapshots import Look, TaskSnapshots, Watched, look_at
from sentinel_agent.capture.tasks import TasksCapture
from sentinel_agent.core.model import TargetId
from sentinel_agent.core.rule import CaptureSpec
from sentinel_agent.cpython.code import Code, Frame
from sentinel_agent.cpython.tasks import TaskDump, TaskView
from sentinel_agent.errors import TargetError
from tests.capture.targets import interpreters, plan_for, started, target_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sentinel_agent.testing import FakeClock

LEAKING = """
import asyncio, sys
async def keep_alive(): await asyncio.sleep(3600)
async def audit_log(event): await event.wait()
async def main():
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    steady = [asyncio.create_task(keep_alive()) for _ in range(3000)]
    leaked = [asyncio.create_task(audit_log(event)) for _ in range(2)]
    await asyncio.sleep(0.01)
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    leaked += [asyncio.create_task(audit_log(event)) for _ in range(498)]
    await asyncio.sleep(0.01)
    print("leaked", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
asyncio.run(main())
"""
WAITS_AT = 4
TARGET = TargetId(7, 70, 700)
CODES = {name: Code(number, name, "app.py", 10 * number, b"", 11) for number, name in enumerate("abcdef", 1)}


def dump(*kinds: tuple[str, int, int]) -> TaskDump:
    """For each (coroutine, place in it, count) so many tasks that wait there."""
    views = [
        TaskView(
            "n",
            "waiting",
            name,
            (Frame(CODES[name], place),),
            f"Future{place}",
            whole=True,
            id=100 * i + place,
        )
        for name, place, count in kinds
        for i in range(count)
    ]
    return TaskDump(tuple(views), 0, truncated=False)


def order(document: TasksDocument) -> list[tuple[str, int, int | None]]:
    return [(group.coroutine, group.count, group.was) for group in document.groups]


@pytest.mark.parametrize("python", interpreters())
async def test_the_leak_comes_before_a_crowd_six_times_as_large(python: str, tmp_path: Path) -> None:
    """3,000 steady tasks, and another kind that grows from 2 to 500: the first group is the latter, with its line and growth."""
    with started(python, "-c", LEAKING) as process:
        target = target_of(process.pid)
        healthy = await asyncio.to_thread(look_at, target.id, 100.0, 1)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert await asyncio.to_thread(process.stdout.readline) == "leaked\n"
        plan = plan_for(target, tmp_path, CaptureSpec("tasks"), tasks_before=lambda: healthy.snapshot)
        await TasksCapture().capture(plan)
    document = msgspec.json.decode((tmp_path / "tasks.json").read_bytes(), type=TasksDocument)
    first, crowd = document.groups[0], next(each for each in document.groups if each.count == 3000)
    assert (first.coroutine, first.count, first.was) == ("audit_log", 500, 2)
    assert (first.frames[0].line, first.waiting_on) == (WAITS_AT, "Future")
    assert (crowd.coroutine, crowd.was) == ("keep_alive", 3000)
    assert [(each.coroutine, each.was, each.now) for each in document.grown] == [("audit_log", 2, 500)]
    assert document.compared_with is not None
    assert document.compared_with.count == healthy.snapshot.count == document.count - 498


@pytest.mark.parametrize("python", interpreters()[:1])
async def test_a_sampled_snapshot_finds_the_leak_too(python: str, tmp_path: Path) -> None:
    """Of 3,003 tasks each fifth is read: chance makes none of the crowd a leak, and the leak is first."""
    with started(python, "-c", LEAKING) as process:
        target = target_of(process.pid)
        healthy = await asyncio.to_thread(look_at, target.id, 100.0, 5)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert await asyncio.to_thread(process.stdout.readline) == "leaked\n"
        plan = plan_for(target, tmp_path, CaptureSpec("tasks"), tasks_before=lambda: healthy.snapshot)
        await TasksCapture().capture(plan)
    document = msgspec.json.decode((tmp_path / "tasks.json").read_bytes(), type=TasksDocument)
    assert document.groups[0].coroutine == "audit_log"
    assert [each.coroutine for each in document.grown] == ["audit_log"]
    assert document.compared_with is not None
    assert document.compared_with.every == 5
    assert abs(document.compared_with.count - 3003) <= 10


def test_a_crowd_that_waits_elsewhere_has_not_grown() -> None:
    """3,000 of a coroutine move from one line to another; 20 more of another one come first nevertheless."""
    before = take_snapshot(dump(("a", 2, 3000), ("b", 2, 5)), 0.0)
    document = to_document(dump(("a", 4, 3000), ("b", 2, 25)), before=before)
    assert order(document) == [("b", 25, 5), ("a", 3000, 0)]
    assert [each.coroutine for each in document.grown] == ["b"]


def test_without_a_snapshot_the_largest_comes_first_and_the_reason_is_said() -> None:
    document = to_document(dump(("a", 2, 3), ("b", 2, 9)), not_compared="it was asleep")
    assert order(document) == [("b", 9, None), ("a", 3, None)]
    assert (document.compared_with, document.not_compared, document.grown) == (None, "it was asleep", ())


def test_what_was_not_remembered_counts_as_the_largest_that_was_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With room for one group, another had at most as many as the largest left out: never less than it could have had."""
    monkeypatch.setattr("sentinel_agent.capture.task_groups.MAX_KEYS", 1)
    before = take_snapshot(dump(("a", 2, 9), ("b", 2, 5), ("c", 2, 3)), 0.0)
    assert (len(before.groups), len(before.coroutines), before.left_out) == (1, 1, 5)
    document = to_document(dump(("b", 2, 5), ("c", 2, 40)), before=before)
    assert order(document) == [("c", 40, 5), ("b", 5, 5)]


class Targets:
    """Made-up looks: each costs `cost` and finds `count` tasks."""

    def __init__(self, *watched: Watched) -> None:
        self.watched = list(watched)
        self.cost = 0.01
        self.looks: list[tuple[TargetId, float, int]] = []
        self.fault: TargetError | None = None

    def __call__(self, target: TargetId, time: float, every: int) -> Look:
        self.looks.append((target, time, every))
        if self.fault:
            raise self.fault
        tasks = next(each.tasks for each in self.watched if each.target == target)
        return Look(TaskSnapshot(time, int(tasks or 0), every, {}, {}, 0), (), self.cost)


def snapshots(clock: FakeClock, targets: Targets, overhead: float = 0.01) -> TaskSnapshots:
    return TaskSnapshots(clock, overhead, lambda: targets.watched, targets)


async def rounds(keeper: TaskSnapshots, clock: FakeClock, seconds: Iterable[float]) -> None:
    for each in seconds:
        clock.advance(each)
        await keeper.round()


async def test_only_healthy_moments_are_compared_with(fake_clock: FakeClock) -> None:
    """A look while a rule is about to fire is shown, and kept from comparison."""
    targets = Targets(Watched(TARGET, 10, healthy=True))
    keeper = snapshots(fake_clock, targets)
    assert keeper.before(TARGET) == "its tasks were not read before"
    await rounds(keeper, fake_clock, [0])
    targets.watched = [Watched(TARGET, 500, healthy=False)]
    await rounds(keeper, fake_clock, [61])
    before, latest = keeper.before(TARGET), keeper.latest(TARGET)
    assert isinstance(before, TaskSnapshot)
    assert latest is not None
    assert (before.count, latest.count) == (10, 500)
    targets.watched = []
    await rounds(keeper, fake_clock, [61])
    assert keeper.latest(TARGET) is None  # it has gone


async def test_a_target_that_was_never_well_has_nothing_to_compare_with_and_says_so(
    fake_clock: FakeClock,
) -> None:
    targets = Targets(Watched(TARGET, 10, healthy=False))
    keeper = snapshots(fake_clock, targets)
    await rounds(keeper, fake_clock, [0])
    assert "about to fire" in str(keeper.before(TARGET))


async def test_the_snapshot_nearest_to_what_is_usual_is_chosen(fake_clock: FakeClock) -> None:
    """A slow leak: 100, 200, ... 1,500 tasks. With a usual of 730 the one of 700 is it, of which ten are kept; else the newest."""
    targets = Targets()
    keeper = snapshots(fake_clock, targets)
    for count in range(100, 1600, 100):
        targets.watched = [Watched(TARGET, count, healthy=True)]
        await rounds(keeper, fake_clock, [61])
    found = [keeper.before(TARGET, usual) for usual in (730, None, 0)]
    assert [each.count for each in found if isinstance(each, TaskSnapshot)] == [700, 1500, 600]


async def test_looks_move_apart_until_they_keep_to_their_share(fake_clock: FakeClock) -> None:
    """Two targets whose look costs 0.3 s, at an overhead of 1% of which a tenth is theirs: one look each in 600 s, not in 60."""
    targets = Targets(Watched(TARGET, 10, healthy=True), Watched(TargetId(8, 80, 0), 10, healthy=True))
    targets.cost = 0.3
    keeper = snapshots(fake_clock, targets)
    await rounds(keeper, fake_clock, [5] * 720)
    allowed = module.SHARE * 0.01 * 3600
    assert keeper.statistics().cpu_seconds == pytest.approx(0.3 * len(targets.looks))
    assert allowed - 1.2 <= keeper.statistics().cpu_seconds <= allowed + 1.2  # the first ones come at once


async def test_a_huge_set_is_sampled_and_a_larger_one_left_alone_with_the_reason(
    fake_clock: FakeClock,
) -> None:
    """Never more than READ_AT_ONCE are read; above MAX_COUNTED nothing is."""
    targets = Targets(Watched(TARGET, 100_000, healthy=True))
    keeper = snapshots(fake_clock, targets)
    await rounds(keeper, fake_clock, [0])
    assert targets.looks[0][2] == 100_000 / module.READ_AT_ONCE
    targets.watched = [Watched(TargetId(9, 90, 0), module.MAX_COUNTED + 1, healthy=True)]
    await rounds(keeper, fake_clock, [61])
    assert len(targets.looks) == 1
    assert f"more than {module.MAX_COUNTED}" in str(keeper.before(TargetId(9, 90, 0)))
    statistics = keeper.statistics()
    assert (statistics.taken, statistics.sampled, statistics.left_out) == (1, 1, 1)


async def test_a_target_without_tasks_is_not_looked_at_and_a_failed_look_is_counted(
    fake_clock: FakeClock,
) -> None:
    targets = Targets(Watched(TARGET, None, healthy=True), Watched(TargetId(8, 80, 0), 5, healthy=True))
    targets.fault = TargetError("it moved")
    keeper = snapshots(fake_clock, targets)
    await rounds(keeper, fake_clock, [0, 1])
    assert [target.pid for target, _, _ in targets.looks] == [8]
    assert keeper.statistics().failed == 1
    assert keeper.before(TargetId(8, 80, 0)) == "its tasks could not be read before: it moved"
