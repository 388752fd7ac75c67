"""The asyncio tasks of a live CPython 3.8 to 3.15, each with its await chain. Which there are, `task_registry` knows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from sentinel_agent.cpython.awaiters import Awaiters
from sentinel_agent.cpython.awaits import Awaits
from sentinel_agent.cpython.contexts import Contexts
from sentinel_agent.cpython.memory import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sentinel_agent.cpython.code import CodeCache, Frame
    from sentinel_agent.cpython.contexts import Labels
    from sentinel_agent.cpython.modules import Modules
    from sentinel_agent.cpython.objects import Objects
    from sentinel_agent.cpython.task_registry import TaskRegistry
    from sentinel_agent.cpython.threads import ThreadStack

_PENDING = 0
_BATCH = 5000

TaskState = Literal["running", "waiting", "ready"]


@dataclass(frozen=True, slots=True)
class TaskView:
    """One task that is not done.

    `frames` are outermost first: the task's coroutine, then along the await chain; for a running task, what its thread executes.
    `waiting_on` names the future that will wake it, or the task it awaits. `whole` is False where the chain was cut.
    `id` tells the tasks of one dump apart; `awaited_by` are the ids of those that are known to wait for this one.
    `context` is what the target says that the task is for, by `sentinel_agent.context`.
    """

    name: str
    state: TaskState
    coroutine: str
    frames: tuple[Frame, ...]
    waiting_on: str | None
    whole: bool
    id: int = 0
    awaited_by: tuple[int, ...] = ()
    context: Labels = ()


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
class _Raw:
    """A pending task, all parts by address; 0 for none."""

    address: int
    name: int
    coroutine: int
    waiter: int
    context: int = 0
    callback: int = 0
    awaited_by: int = 0
    awaited_by_is_set: bool = False


class Tasks:
    """Reads the tasks that `registry` names."""

    def __init__(self, objects: Objects, codes: CodeCache, registry: TaskRegistry, modules: Modules) -> None:
        self._objects = objects
        self._registry = registry
        self._awaits = Awaits(objects, codes)
        self._contexts = Contexts(objects, modules)
        self._c_types: dict[int, bool] = {}
        self._type_names: dict[int, str] = {}

    def dump(self, threads: Sequence[ThreadStack], most: int, every: int = 1) -> TaskDump:
        """Every pending task, `most` at the most. `threads` is a sample taken just before, for the running ones.

        With `every` above 1 only each so-manieth is read, in the order in which they are registered.
        """
        if not self._registry.find():
            return TaskDump((), 0, truncated=False)
        self._c_types.clear()
        self._type_names.clear()
        addresses = self._registry.addresses()[::every]
        awaiters = Awaiters(self._objects, self._type_of)
        views: list[TaskView] = []
        unreadable = 0
        for first in range(0, len(addresses), _BATCH):
            raw, lost = self._read(addresses[first : first + _BATCH])
            unreadable += lost
            views += self._views(raw, threads)
            awaiters.note(raw)
            if len(views) > most:
                break
        truncated = len(views) > most
        del views[most:]
        known = awaiters.of({view.id for view in views})
        tasks = tuple(
            replace(view, awaited_by=known[view.id]) if view.id in known else view for view in views
        )
        return TaskDump(tasks, unreadable, truncated)

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
                    raw = self._c_task(address, data)
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
            c_tasks = self._registry.c_tasks
            try:
                known = any(base in c_tasks for base in self._objects.bases(type_address))
            except UnreadableError:
                return False
            self._c_types[type_address] = known
        return known

    def _c_task(self, address: int, data: bytes) -> _Raw | None:
        task = self._objects.layout.task
        if int.from_bytes(data[task.state : task.state + 4], "little") != _PENDING:
            return None
        context_at = task.name + 8  # task_context follows task_name in all versions; its type is checked
        name, coroutine, waiter, context, callback, awaited_by = (
            int.from_bytes(data[at : at + 8], "little") if at >= 0 else 0
            for at in (task.name, task.coro, task.waiter, context_at, task.callback0, task.awaited_by)
        )
        is_set = bool(awaited_by and data[task.awaited_by_is_set])
        return _Raw(address, name, coroutine, waiter, context, callback, awaited_by, is_set)

    def _python_task(self, address: int) -> _Raw | None:
        """A task that keeps its parts in its instance dictionary; None for one that is done, and for None itself."""
        objects = self._objects
        type_address = objects.type_of(address)
        if self._short_type(type_address) == "NoneType":
            return None
        state, name, coroutine, waiter, context = objects.attributes(
            address, "_state", "_name", "_coro", "_fut_waiter", "_context"
        )
        if not coroutine:
            raise UnreadableError(f"the object at {address:#x} is no task as it is known")
        # A pending task may have no state of its own: that is its class's default.
        if state and objects.text(state) != "PENDING":
            return None
        return _Raw(address, name or 0, coroutine, self._unless_none(waiter), context or 0)

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
        contexts = self._contexts.labels([one.context for one in raw])
        for one, chain, name, qualname, waiting_on, labels in zip(
            raw, chains, names, qualnames, waits, contexts, strict=True
        ):
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
                one.address,
                context=labels,
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
