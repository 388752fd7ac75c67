"""Where a live CPython registers its asyncio tasks: how many there are, and which.

Up to 3.13 every task is in module globals of `asyncio.tasks`: `_all_tasks` up to 3.11, `_scheduled_tasks` and `_eager_tasks`
in 3.12 and 3.13 (Lib/asyncio/tasks.py), whichever of the C and the pure-Python task, and whichever event loop, is used. The first
two are a `weakref.WeakSet`, so a count is the size of a set at a known address. From 3.14 on only tasks that are not of
the C type are there, or in two such sets that the C module `_asyncio` keeps; those of the C type are in linked lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sentinel_agent.cpython.elf import UnsupportedTargetError
from sentinel_agent.cpython.memory import UnreadableError
from sentinel_agent.cpython.task_lists import MAX_TASKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentinel_agent.cpython.modules import Modules
    from sentinel_agent.cpython.objects import Objects
    from sentinel_agent.cpython.task_lists import TaskLists


@dataclass(frozen=True, slots=True)
class _WeakSet:
    """Addresses: the weak set, its type, its inner set and its list of removals to come, 0 where it has none (from 3.14 on)."""

    address: int
    type: int
    members: int
    removals: int


@dataclass(frozen=True, slots=True)
class _Registry:
    """What one interpreter has. `eager` are addresses of sets, `c_task` is that of the C task's type, 0 for none."""

    weak_sets: tuple[_WeakSet, ...]
    eager: tuple[int, ...]
    c_task: int


class TaskRegistry:
    """The registries of all interpreters; `lists` are those of 3.14 and later."""

    def __init__(self, objects: Objects, modules: Modules, lists: TaskLists | None) -> None:
        self._objects = objects
        self._modules = modules
        self._lists = lists
        self._registries: list[_Registry] = []
        self._without: list[tuple[int, int]] | None = None

    @property
    def c_tasks(self) -> set[int]:
        """The addresses of the C task's types."""
        return {registry.c_task for registry in self._registries} - {0}

    @property
    def steps(self) -> int:
        """How many links the last count followed: what its cost depends on."""
        return self._lists.steps if self._lists else 0

    def count(self, most: int = MAX_TASKS) -> int | None:
        """How many tasks are registered; None without asyncio, and where a count needs more than `most` links: call again.

        Raises:
            UnreadableError: this count failed; the next may not.
        """
        if self._lists:
            self._lists.steps = 0
        for _ in range(2):
            if not self._registries and not self.find():
                return None
            found = self._sizes()
            if found is not None:
                listed = self._lists.count(most) if self._lists and self.c_tasks else 0
                return None if listed is None else found + listed
            self._registries = []
        raise UnreadableError("asyncio's registry of tasks cannot be read")

    def find(self) -> bool:
        """Look the registries up; False where no interpreter has loaded asyncio."""
        tables = self._modules.tables()
        if tables == self._without:
            return False
        self._registries = [found for table, _ in tables for found in [self._registry(table)] if found]
        self._without = None if self._registries else tables
        return bool(self._registries)

    def addresses(self) -> list[int]:
        """Addresses of the registered tasks, and of None for those that have just died."""
        found = [address for registry in self._registries for address in self._members(registry)]
        if self._lists and self.c_tasks:
            found += self._lists.addresses()
        return list(dict.fromkeys(found))

    def _registry(self, table: int) -> _Registry | None:
        objects = self._objects
        namespace, c_namespace = self._modules.namespaces(table, "asyncio.tasks", "_asyncio")
        if not namespace:
            return None
        weak_set, all_tasks, eager = objects.lookup(
            namespace, "_scheduled_tasks", "_all_tasks", "_eager_tasks"
        )
        weak_set = weak_set or all_tasks
        if not weak_set:
            return None  # asyncio is being imported
        weak_sets, eager_sets = [self._weak_set(weak_set)], [eager] if eager else []
        c_task = objects.lookup(c_namespace, "Task")[0] if c_namespace else None
        if c_task:
            self._check_size(c_task, "_asyncio.Task", objects.layout.task.size)
            foreign, foreign_eager = self._foreign(table)
            weak_sets += [self._weak_set(foreign)] if foreign else []
            eager_sets += [foreign_eager] if foreign_eager else []
        return _Registry(tuple(weak_sets), tuple(eager_sets), c_task or 0)

    def _foreign(self, table: int) -> tuple[int, int]:
        """The sets of tasks not of the C type that the C module keeps, 0 where it keeps none."""
        objects, layout = self._objects, self._objects.layout
        if layout.minor < 14:
            return 0, 0
        (module,) = objects.lookup(table, "_asyncio")
        state = objects.word(module + layout.objects.module_state) if module else 0
        return (
            (objects.word(state + layout.task.foreign), objects.word(state + layout.task.foreign_eager))
            if state
            else (0, 0)
        )

    def _weak_set(self, address: int) -> _WeakSet:
        objects = self._objects
        members, removals = objects.attributes(address, "data", "_pending_removals")
        if not members:
            raise UnreadableError("asyncio's registry of tasks is no WeakSet as it is known")
        self._check_size(objects.type_of(members), "set", objects.layout.set.size)
        return _WeakSet(address, objects.type_of(address), members, removals or 0)

    def _check_size(self, type_address: int, name: str, size: int) -> None:
        found = (self._objects.type_name(type_address), self._objects.basicsize(type_address))
        if found != (name, size):
            raise UnsupportedTargetError(
                f"the target's {found[0]!r} has {found[1]} bytes: {name!r} with {size} was expected",
                hint="this build needs a layout table of its own: see tools/gen_layouts.py",
            )

    def _sizes(self) -> int | None:
        """The sum over the sets, from one small read; None if one is not where it was."""
        layout = self._objects.layout
        weak_sets = [one for registry in self._registries for one in registry.weak_sets]
        eager = [address for registry in self._registries for address in registry.eager]
        ranges = [(address + layout.set.used, 8) for address in eager]
        for one in weak_sets:
            ranges += [
                (one.address + layout.objects.ob_type, 8),
                (one.members + layout.set.used, 8),
                (one.removals + layout.objects.ob_size if one.removals else 0, 8),
            ]
        words = [
            None if data is None else int.from_bytes(data, "little") for data in self._objects.many(ranges)
        ]
        total = sum(word or 0 for word in words[: len(eager)])
        for one, at in zip(weak_sets, range(len(eager), len(words), 3), strict=True):
            kind, members, removals = words[at : at + 3]
            if kind != one.type or members is None or (removals is None and one.removals):
                return None
            total += max(0, members - (removals or 0))
        return total

    def _members(self, registry: _Registry) -> Iterator[int]:
        objects = self._objects
        at = objects.layout.objects.weakref_object
        for one in registry.weak_sets:
            for word in objects.many([(reference + at, 8) for reference in objects.set_items(one.members)]):
                if word is not None:
                    yield int.from_bytes(word, "little")
        for address in registry.eager:
            yield from objects.set_items(address)
