"""The linked lists of tasks that CPython 3.14 and later keep, walked while they change."""

from __future__ import annotations

import random
import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.cpython.layouts import TASK_OFFSETS_SIZE, layout_of
from sentinel_agent.cpython.memory import ImageMemory, UnreadableError
from sentinel_agent.cpython.process import open_process
from sentinel_agent.cpython.task_lists import TaskLists
from tests.cpython.conftest import MINORS, python_of

if TYPE_CHECKING:
    from tests.cpython.conftest import StartTarget

LAYOUT = layout_of(14)
INTERP, THREAD, TASKS, TASK_SIZE = 0x100_0000, 0x200_0000, 0x300_0000, 448


class Target:
    """One interpreter with one thread and its tasks, linked as CPython does it."""

    def __init__(self, count: int) -> None:
        self.words: dict[int, int] = {}
        self.thread_head = THREAD + LAYOUT.thread.tasks_head
        self.tasks = [TASKS + number * TASK_SIZE for number in range(count)]
        self.link(INTERP + LAYOUT.interp.tasks_head, [])
        self.link(self.thread_head, self.tasks)

    def link(self, head: int, tasks: list[int]) -> None:
        ring = [head, *(task + LAYOUT.task.node for task in tasks)]
        for node, following in zip(ring, [*ring[1:], head], strict=True):
            self.words[node] = following
            self.words[following + 8] = node

    def take_out(self, task: int) -> None:
        node = task + LAYOUT.task.node
        following, previous = self.words[node], self.words[node + 8]
        self.words[previous], self.words[following + 8] = following, previous
        self.words[node] = self.words[node + 8] = 0
        self.tasks.remove(task)

    @property
    def memory(self) -> ImageMemory:
        blocks: dict[int, bytearray] = {}
        for address, word in self.words.items():
            block = blocks.setdefault(address >> 14, bytearray(1 << 14))
            struct.pack_into("<Q", block, address & (1 << 14) - 1, word)
        return ImageMemory({number << 14: bytes(block) for number, block in blocks.items()})

    def lists(self, offsets: int | None = None) -> Any:
        """The lists, and the object whose `memory` they read."""
        objects: Any = SimpleNamespace(memory=self.memory, layout=LAYOUT)
        threads: Any = SimpleNamespace(states=lambda: [(INTERP, [THREAD])])
        return TaskLists(objects, threads, lambda: offsets), objects


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_all_tasks_of_all_lists_are_found(count: int) -> None:
    """In the order in which they were made; an empty list has none."""
    target = Target(count)
    lists, _ = target.lists()
    assert lists.addresses() == target.tasks
    assert lists.count(1000) == count


def test_a_count_is_done_in_parts() -> None:
    """Each call follows no more links than it is allowed, and only the last one has an answer."""
    lists, objects = Target(500).lists()
    answers = [lists.count(120) for _ in range(5)]
    assert answers == [None, None, None, None, 500]
    assert lists.steps == 20
    calls = objects.memory.calls
    assert lists.count(120) is None, "the next count begins anew"
    assert objects.memory.calls - calls < 120


def test_tasks_that_end_between_two_parts_are_not_counted_twice() -> None:
    """The walk goes on from the last task that is still listed, whichever ended meanwhile."""
    chance = random.Random(4)
    for _ in range(50):
        target = Target(300)
        lists, objects = target.lists()
        assert lists.count(200) is None
        gone = chance.sample(target.tasks, 150) if chance.random() < 0.9 else list(target.tasks)
        met = set(target.tasks[:200])
        for task in gone:
            target.take_out(task)
        objects.memory = target.memory
        walk = lists._under_way
        walk._memory = objects.memory
        found = lists.count(1000)
        still = len(target.tasks)
        assert still <= found <= still + len(met & set(gone))


def test_a_list_that_never_holds_still_is_given_up() -> None:
    """A link that is there in one direction only is not followed, however often it is tried."""
    target = Target(50)
    target.words[target.tasks[20] + LAYOUT.task.node + 8] = 4096
    lists, _ = target.lists()
    with pytest.raises(UnreadableError, match="faster than it can be read"):
        lists.count(1000)


def test_what_the_module_tells_of_its_structs_is_believed() -> None:
    """Heads that lie elsewhere than in the table are found through `Py_AsyncioModuleDebugOffsets`."""
    target = Target(10)
    task, moved = LAYOUT.task, LAYOUT.thread.tasks_head + 64
    target.link(THREAD + moved, target.tasks)
    told = [task.size, task.name, task.awaited_by, 0, task.awaited_by_is_set, task.coro, task.node]
    told += [0, LAYOUT.interp.tasks_head, 0, 0, 0, moved]
    for number, word in enumerate(told):
        target.words[0x400_0000 + 8 * number] = word
    assert len(told) * 8 == TASK_OFFSETS_SIZE
    lists, _ = target.lists(0x400_0000)
    assert lists.addresses() == target.tasks


@pytest.mark.parametrize("minor", [minor for minor in MINORS if minor >= 14])
def test_a_real_count_in_parts_is_the_whole_count(start_target: StartTarget, minor: int) -> None:
    """Part by part the count comes to what one call counts, and to what the target knows."""
    target = start_target(python_of(minor), "loops")
    reader = open_process(target.pid)
    whole = reader.task_count()
    assert whole == len(target.truth["tasks"]) == reader.task_steps + target.truth["foreign"]
    parts: list[int | None] = []
    while not parts or parts[-1] is None:
        parts.append(reader.task_count(50))
        assert reader.task_steps <= 50
    assert len(parts) > 3
    assert parts[-1] == whole


CHURN = """
import asyncio, os
async def short(): await asyncio.sleep(0)
async def long(): await asyncio.Event().wait()
async def main():
    kept = [asyncio.create_task(long()) for _ in range(2000)]
    await asyncio.sleep(0)
    os.write(1, b"{}\\n")
    while True:
        await asyncio.gather(*[short() for _ in range(100)])
asyncio.run(main())
"""


@pytest.mark.parametrize("minor", [minor for minor in MINORS if minor >= 14])
def test_a_list_that_changes_all_the_time_is_counted(start_target: StartTarget, minor: int) -> None:
    """Short-lived tasks come and go behind the long-lived ones: counts, in parts too, lie between what there can be."""
    reader = open_process(start_target(python_of(minor), "-c", CHURN).pid)
    counts = {
        most: [count for _ in range(60) if (count := reader.task_count(most))] for most in (10_000, 300)
    }
    assert len(counts[10_000]) > 40
    assert len(counts[300]) >= 6
    assert all(2001 <= count <= 2301 for found in counts.values() for count in found)
    assert reader.tasks().count >= 2001
