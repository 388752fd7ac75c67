"""The asyncio tasks of a live CPython 3.8 to 3.13: how many, and each with its await chain.

asyncio registers every task in module globals of `asyncio.tasks`: `_all_tasks` up to 3.11, `_scheduled_tasks` and `_eager_tasks`
from 3.12 on (Lib/asyncio/tasks.py), whichever of the C and the pure-Python task, and whichever event loop, is used. The first
two are a `weakref.WeakSet`, so a count is the size of a set at a known address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sentinel_agent.cpython.awaits import Awaits
from sentinel_agent.cpython.elf import UnsupportedTargetError
from sentinel_agent.cpython.memory import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sentinel_agent.cpython.code import CodeCache, Frame
    from sentinel_agent.cpython.modules import Modules
    from sentinel_agent.cpython.objects import Objects
    from sentinel_agent.cpython.threads import ThreadStack

_PENDING = 0
_BATCH = 5000

TaskState = Literal["running", "waiting", "ready"]


@dataclass(frozen=True, slots=True)
class TaskView:
    """One task that is not done.

    `frames` are outermost first: the task's coroutine, then along the await chain; for a running task, what its thread executes.
    `waiting_on` names the future that will wake it, or the task it awaits. `whole` is False where the chain was cut.
    """

    name: str
    state: TaskState
    coroutine: str
    frames: tuple[Frame, ...]
    waiting_on: str | None
    whole: bool


@dataclass(frozen=True, slots=True)
class TaskDump:
    """All tasks that were found. `unreadable` were registered but could not be read; `truncated`: there were more."""

    tasks: tuple[TaskView, ...]
    unreadable: int
    truncated: bool

    @property
    def count(self) -> int:
        """How many tasks are listed."""
        return len(self.tasks)


@dataclass(frozen=True, slots=True)
class _Registry:
    """Addresses in one interpreter: the weak set, its inner set and its list of removals to come, the set of eager tasks."""

    weak_set: int
    weak_set_type: int
    members: int
    removals: int
    eager: int
    c_task: int


@dataclass(frozen=True, slots=True)
class _Raw:
    """A pending task, all parts by address; 0 for none."""

    name: int
    coroutine: int
    waiter: int


class Tasks:
    """Reads the task registries."""

    def __init__(self, objects: Objects, codes: CodeCache, modules: Modules) -> None:
        self._objects = objects
        self._modules = modules
        self._awaits = Awaits(objects, codes)
        self._registries: list[_Registry] = []
        self._without: list[tuple[int, int]] | None = None
        self._c_types: dict[int, bool] = {}
        self._type_names: dict[int, str] = {}

    def count(self) -> int | None:
        """How many tasks are registered, from one small read once the registries are known; None without asyncio."""
        for _ in range(2):
            if not self._registries and not self._find():
                return None
            found = self._sizes()
            if found is not None:
                return found
            self._registries = []
        raise UnreadableError("asyncio's registry of tasks cannot be read")

    def dump(self, threads: Sequence[ThreadStack], most: int) -> TaskDump:
        """Every pending task, `most` at the most. `threads` is a sample taken just before, for the running ones."""
        if not self._find():
            return TaskDump((), 0, truncated=False)
        self._c_types.clear()
        self._type_names.clear()
        addresses = [address for registry in self._registries for address in self._members(registry)]
        addresses = list(dict.fromkeys(addresses))
        views: list[TaskView] = []
        unreadable = 0
        for first in range(0, len(addresses), _BATCH):
            raw, lost = self._read(addresses[first : first + _BATCH])
            unreadable += lost
            views += self._views(raw, threads)
            if len(views) > most:
                break
        return TaskDump(tuple(views[:most]), unreadable, truncated=len(views) > most)

    def _find(self) -> bool:
        """Look the registries up; False where no interpreter has loaded asyncio."""
        tables = self._modules.tables()
        if tables == self._without:
            return False
        self._registries = [found for table, _ in tables for found in [self._registry(table)] if found]
        self._without = None if self._registries else tables
        return bool(self._registries)

    def _registry(self, table: int) -> _Registry | None:
        objects, layout = self._objects, self._objects.layout
        namespace, c_namespace = self._modules.namespaces(table, "asyncio.tasks", "_asyncio")
        if not namespace:
            return None
        weak_set, all_tasks, eager = objects.lookup(
            namespace, "_scheduled_tasks", "_all_tasks", "_eager_tasks"
        )
        weak_set = weak_set or all_tasks
        if not weak_set:
            return None  # asyncio is being imported
        members, removals = objects.attributes(weak_set, "data", "_pending_removals")
        if not members or not removals:
            raise UnreadableError("asyncio's registry of tasks is no WeakSet as it is known")
        self._check_size(objects.type_of(members), "set", layout.set.size)
        c_task = objects.lookup(c_namespace, "Task")[0] if c_namespace else None
        if c_task:
            self._check_size(c_task, "_asyncio.Task", layout.task.size)
        return _Registry(weak_set, objects.type_of(weak_set), members, removals, eager or 0, c_task or 0)

    def _check_size(self, type_address: int, name: str, size: int) -> None:
        found = (self._objects.type_name(type_address), self._objects.basicsize(type_address))
        if found != (name, size):
            raise UnsupportedTargetError(
                f"the target's {found[0]!r} has {found[1]} bytes: {name!r} with {size} was expected",
                hint="this build needs a layout table of its own: see tools/gen_layouts.py",
            )

    def _sizes(self) -> int | None:
        """The sum over the registries; None if one is not where it was."""
        layout = self._objects.layout
        ranges: list[tuple[int, int]] = []
        for registry in self._registries:
            ranges += [
                (registry.weak_set + layout.objects.ob_type, 8),
                (registry.members + layout.set.used, 8),
                (registry.removals + layout.objects.ob_size, 8),
                (registry.eager + layout.set.used if registry.eager else 0, 8),
            ]
        words = [
            None if data is None else int.from_bytes(data, "little") for data in self._objects.many(ranges)
        ]
        total = 0
        for registry, at in zip(self._registries, range(0, len(words), 4), strict=True):
            kind, members, removals, eager = words[at : at + 4]
            if kind != registry.weak_set_type or members is None or removals is None:
                return None
            total += max(0, members - removals) + (eager or 0)
        return total

    def _members(self, registry: _Registry) -> Iterator[int]:
        """Addresses of the registered tasks, and of None for those that have just died."""
        objects = self._objects
        at = objects.layout.objects.weakref_object
        for word in objects.many([(reference + at, 8) for reference in objects.set_items(registry.members)]):
            if word is not None:
                yield int.from_bytes(word, "little")
        if registry.eager:
            yield from objects.set_items(registry.eager)

    def _read(self, addresses: list[int]) -> tuple[list[_Raw], int]:
        """The pending ones among the tasks, and how many could not be read."""
        task = self._objects.layout.task
        answer: list[_Raw] = []
        lost = 0
        for address, data in zip(
            addresses, self._objects.many([(one, task.size) for one in addresses]), strict=True
        ):
            try:
                if data is not None and self._is_c_task(data):
                    raw = self._c_task(data)
                else:
                    raw = self._python_task(address)
            except UnreadableError:
                lost += 1
                continue
            if raw is not None:
                answer.append(raw)
        return answer, lost

    def _is_c_task(self, data: bytes) -> bool:
        at = self._objects.layout.objects.ob_type
        type_address = int.from_bytes(data[at : at + 8], "little")
        known = self._c_types.get(type_address)
        if known is None:
            c_tasks = {registry.c_task for registry in self._registries} - {0}
            try:
                known = any(base in c_tasks for base in self._objects.bases(type_address))
            except UnreadableError:
                return False
            self._c_types[type_address] = known
        return known

    def _c_task(self, data: bytes) -> _Raw | None:
        task = self._objects.layout.task
        if int.from_bytes(data[task.state : task.state + 4], "little") != _PENDING:
            return None
        name, coroutine, waiter = (
            int.from_bytes(data[at : at + 8], "little") for at in (task.name, task.coro, task.waiter)
        )
        return _Raw(name, coroutine, waiter)

    def _python_task(self, address: int) -> _Raw | None:
        """A task that keeps its parts in its instance dictionary; None for one that is done, and for None itself."""
        objects = self._objects
        type_address = objects.type_of(address)
        if self._short_type(type_address) == "NoneType":
            return None
        state, name, coroutine, waiter = objects.attributes(
            address, "_state", "_name", "_coro", "_fut_waiter"
        )
        if not coroutine:
            raise UnreadableError(f"the object at {address:#x} is no task as it is known")
        # A pending task may have no state of its own: that is its class's default.
        if state and objects.text(state) != "PENDING":
            return None
        return _Raw(name or 0, coroutine, self._unless_none(waiter))

    def _unless_none(self, address: int | None) -> int:
        return address if address and self._type_of(address) != "NoneType" else 0

    def _views(self, raw: list[_Raw], threads: Sequence[ThreadStack]) -> Iterator[TaskView]:
        objects = self._objects
        chains = self._awaits.chains([one.coroutine for one in raw])
        names = self._names([one.name for one in raw])
        at = objects.layout.generator.qualname
        words = objects.many([(one.coroutine + at, 8) for one in raw])
        qualnames = objects.texts([0 if word is None else int.from_bytes(word, "little") for word in words])
        waits = self._describe([one.waiter for one in raw])
        for one, chain, name, qualname, waiting_on in zip(raw, chains, names, qualnames, waits, strict=True):
            frames = tuple(chain.frames)
            if chain.running:
                frames = frames[:-1] + self._running(chain.running, threads, frames[-1])
            state: TaskState = "running" if chain.running else "waiting" if one.waiter else "ready"
            yield TaskView(
                name,
                state,
                # What is no coroutine of CPython's own (Cython has its own kind) has no qualified name in that place.
                qualname if frames and qualname else self._type_of(one.coroutine),
                frames,
                waiting_on,
                chain.whole,
            )

    @staticmethod
    def _running(address: int, threads: Sequence[ThreadStack], own: Frame) -> tuple[Frame, ...]:
        """The frames from the executing one at `address` to its thread's innermost, outermost first."""
        for thread in threads:
            if address in thread.stack.addresses:
                return thread.stack.frames[thread.stack.addresses.index(address) :: -1]
        return (own,)

    def _names(self, addresses: Sequence[int]) -> list[str]:
        """Names of tasks. One that was never asked for its name may keep a number instead (Modules/_asynciomodule.c, 3.13)."""
        kinds = self._types_of(addresses)
        names = self._objects.texts(
            [at if kind == "str" else 0 for at, kind in zip(addresses, kinds, strict=True)]
        )
        numbers = self._objects.integers(
            [at if kind == "int" else 0 for at, kind in zip(addresses, kinds, strict=True)]
        )
        return [
            name if name is not None else "" if number is None else f"Task-{number}"
            for name, number in zip(names, numbers, strict=True)
        ]

    def _types_of(self, addresses: Sequence[int]) -> list[str]:
        at = self._objects.layout.objects.ob_type
        words = self._objects.many([(address + at, 8 if address else 0) for address in addresses])
        return ["" if word is None else self._short_type(int.from_bytes(word, "little")) for word in words]

    def _type_of(self, address: int, data: bytes | None = None) -> str:
        """The short type name of an object, of which `data` may have been read already; empty if it cannot be read."""
        at = self._objects.layout.objects.ob_type
        return (
            self._short_type(int.from_bytes(data[at : at + 8], "little"))
            if data
            else self._types_of([address])[0]
        )

    def _short_type(self, type_address: int) -> str:
        """A type's name without its module; empty if it cannot be read."""
        name = self._type_names.get(type_address)
        if name is None:
            try:
                name = self._objects.type_name(type_address).rpartition(".")[2]
            except UnreadableError:
                name = ""
            self._type_names[type_address] = name
        return name

    def _describe(self, waiters: Sequence[int]) -> Iterator[str | None]:
        """For each future that a task waits for: `Task 'name'` for a task, else its type."""
        task = self._objects.layout.task
        data = self._objects.many([(waiter, task.size if waiter else 0) for waiter in waiters])
        c_tasks = {i for i, one in enumerate(data) if one is not None and self._is_c_task(one)}
        name_addresses = [
            int.from_bytes(one[task.name : task.name + 8], "little")
            if one is not None and i in c_tasks
            else 0
            for i, one in enumerate(data)
        ]
        names = self._names(name_addresses)
        for i, waiter in enumerate(waiters):
            if i in c_tasks:
                yield f"Task {names[i]!r}"
            else:
                yield self._describe_other(waiter, data[i]) if waiter else None

    def _describe_other(self, waiter: int, data: bytes | None) -> str:
        kind = self._type_of(waiter, data)
        if kind in ("Task", "_PyTask"):
            try:
                (name,) = self._objects.attributes(waiter, "_name")
                return f"Task {self._objects.text(name)!r}" if name else kind
            except UnreadableError:
                return kind
        return kind or "?"
