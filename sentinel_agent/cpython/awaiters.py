"""Who waits for a task: the reverse of what tasks wait for.

CPython keeps it from 3.14 on (`fut_awaited_by`, Modules/_asynciomodule.c). Before, it is known where the task that waits says so
(it waits for the other task, or for a `gather` of some: Lib/asyncio/tasks.py), or where a task's first callback is that of a
TaskGroup (Lib/asyncio/taskgroups.py), which knows whose it is. A task that is waited for in any other way has no known awaiter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sentinel_agent.cpython.memory import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sentinel_agent.cpython.objects import Objects

MAX_CHILDREN = 100_000
"""Most tasks of one `gather`, and most awaiters of one task."""


class Waiting(Protocol):
    """What is needed to know of a task: addresses, 0 for none."""

    @property
    def address(self) -> int: ...
    @property
    def waiter(self) -> int: ...
    @property
    def callback(self) -> int: ...
    @property
    def awaited_by(self) -> int: ...
    @property
    def awaited_by_is_set(self) -> bool: ...


class Awaiters:
    """Collects who waits for whom among the tasks of one dump. `type_of` gives an object's short type name, empty if unreadable."""

    def __init__(self, objects: Objects, type_of: Callable[[int], str]) -> None:
        self._objects = objects
        self._type_of = type_of
        self._pairs: dict[tuple[int, int], None] = {}  # who is waited for, who waits
        self._parents: dict[int, int] = {}  # task group -> the task whose it is

    def note(self, tasks: Sequence[Waiting]) -> None:
        """Add some tasks."""
        for task in tasks:
            for child in self._awaited(task):
                self._pairs[child, task.address] = None
            for parent in self._told(task):
                self._pairs[task.address, parent] = None

    def of(self, known: Collection[int]) -> dict[int, tuple[int, ...]]:
        """For each task that has them, the tasks that wait for it; none but `known` ones."""
        answer: dict[int, list[int]] = {}
        for child, parent in self._pairs:
            if child in known and parent in known:
                answer.setdefault(child, []).append(parent)
        return {child: tuple(parents) for child, parents in answer.items()}

    def _awaited(self, task: Waiting) -> list[int]:
        """What a task waits for, and what that gathers."""
        if not task.waiter:
            return []
        if self._type_of(task.waiter) != "_GatheringFuture":
            return [task.waiter]
        try:
            (children,) = self._objects.attributes(task.waiter, "_children")
            return self._objects.list_items(children, MAX_CHILDREN) if children else []
        except UnreadableError:
            return []

    def _told(self, task: Waiting) -> Iterator[int]:
        """Who waits for a task, as the task itself tells."""
        try:
            if task.awaited_by_is_set:
                yield from self._objects.set_items(task.awaited_by, MAX_CHILDREN)
            elif task.awaited_by:
                yield task.awaited_by
            elif (
                self._objects.layout.minor < 14 and task.callback and self._type_of(task.callback) == "method"
            ):
                yield self._parent(
                    self._objects.word(task.callback + self._objects.layout.objects.method_self)
                )
        except UnreadableError:
            return

    def _parent(self, group: int) -> int:
        """The task that a TaskGroup belongs to, 0 for any other object."""
        parent = self._parents.get(group)
        if parent is None:
            parent = 0
            if self._type_of(group) == "TaskGroup":
                parent = self._objects.attributes(group, "_parent_task")[0] or 0
            self._parents[group] = parent
        return parent
