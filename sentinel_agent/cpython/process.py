"""Attach to a live CPython: find it, choose its layout, check that the layout is true, then read it on demand.

interpreter = open_process(1234)
interpreter.sample()        # every thread's stack, cheap: for the recorder
interpreter.stacks()        # the same with names and kernel states: for people
interpreter.task_count()    # cheap: for the probe
interpreter.tasks()         # every asyncio task with its await chain
"""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sentinel_agent.cpython.census import Census, CensusLimits, take_census
from sentinel_agent.cpython.code import CodeCache, Frame
from sentinel_agent.cpython.collector import Collector
from sentinel_agent.cpython.elf import Location, UnsupportedTargetError, locate, locate_section
from sentinel_agent.cpython.layouts import debug_version, layout_of, told_by_target
from sentinel_agent.cpython.loops import Loops
from sentinel_agent.cpython.memory import Memory, ProcessMemory, UnreadableError, must_read
from sentinel_agent.cpython.modules import Modules
from sentinel_agent.cpython.objects import Objects
from sentinel_agent.cpython.task_lists import MAX_TASKS, TaskLists
from sentinel_agent.cpython.task_registry import TaskRegistry
from sentinel_agent.cpython.tasks import TaskDump, Tasks
from sentinel_agent.cpython.threads import ThreadFacts, Threads, ThreadStack, host_ids, kernel_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.cpython.frames import Kind, Stack
    from sentinel_agent.cpython.layouts.model import Layout
    from sentinel_agent.cpython.loops import Doing
    from sentinel_agent.cpython.threads import KernelState

REVALIDATE_EVERY = 64
"""After how many samples the kept code objects are read again."""
_CALLS = 3000  # in which a busy target may show no whole stack before it is refused: a fraction of a second
_OPENINGS = 3
_CHECKS = 20


@dataclass(frozen=True, slots=True)
class ThreadView:
    """One thread as it is shown to people. `frames` are innermost first; `kind` is that of its `Stack`."""

    native_id: int | None
    name: str | None
    state: KernelState | None
    gil: bool | None
    kind: Kind
    frames: tuple[Frame, ...]


class StackSource(Protocol):
    """What the recorder needs of a reader; a native twin may serve it instead of `Interpreter`."""

    def sample(self) -> list[ThreadStack]:
        """Every thread's stack at this moment."""
        ...


class Interpreter:
    """A CPython that was found and checked. Not for use by several threads at once."""

    def __init__(self, memory: Memory, layout: Layout, runtime: int, proc: Path | None = None) -> None:
        self.memory = memory
        self.layout = layout
        self.runtime = runtime
        self._proc = proc
        self._objects = Objects(memory, layout)
        self._codes = CodeCache(self._objects)
        self._threads = Threads(self._objects, self._codes, runtime)
        self._modules = Modules(self._objects, self._threads)
        lists = (
            TaskLists(self._objects, self._threads, self._find_task_offsets) if layout.minor >= 14 else None
        )
        self._registry = TaskRegistry(self._objects, self._modules, lists)
        self._tasks = Tasks(self._objects, self._codes, self._registry, self._modules)
        self._loops = Loops(self._objects)
        self._collector: Collector | None = None
        self._samples = 0
        self._host_ids: dict[int, int] | None = None
        self.version = self._check()

    def sample(self) -> list[ThreadStack]:
        """Every thread's stack at this moment, the oldest thread first.

        Raises:
            UnreadableError: the lists of interpreters or threads cannot be read.
            NoSuchTargetError: the target has ended.
        """
        self._samples += 1
        if self._samples % REVALIDATE_EVERY == 0 and self._codes.revalidate():
            self._threads.forget()
        return self._threads.read()

    def stacks(self) -> list[ThreadView]:
        """Every thread with its name, kernel state and stack. Raises as `sample` does."""
        return self.views(self.sample())

    def views(self, threads: list[ThreadStack]) -> list[ThreadView]:
        """The threads of a sample with their names and what the kernel says of them now. Raises as `sample` does."""
        facts = self.facts(threads)
        views = []
        for thread in threads:
            name, native_id = facts[thread.id].name, facts[thread.id].native_id
            state = kernel_state(self._proc, native_id) if self._proc and native_id else None
            views.append(
                ThreadView(native_id, name, state, thread.gil, thread.stack.kind, thread.stack.frames)
            )
        return views

    def facts(self, threads: list[ThreadStack]) -> dict[int, ThreadFacts]:
        """By the `id` of each thread of a sample, its name and its native id as our pid namespace has it; costs much more than `sample`."""
        known = self._threads.facts(threads, self._modules.value("threading", "_active"))
        return {
            thread.id: ThreadFacts(
                known[thread.id].name, self._host_id(thread.native_id or known[thread.id].native_id)
            )
            for thread in threads
        }

    def task_count(self, most: int = MAX_TASKS) -> int | None:
        """How many asyncio tasks the target has registered; None without asyncio. Up to 3.13 done ones that are still alive count.

        From 3.14 on this walks over all tasks, `most` of them in one call; None where there are more: the next call goes on.

        Raises:
            UnreadableError: this reading failed; the next may not.
        """
        return self._registry.count(most)

    @property
    def task_steps(self) -> int:
        """How many tasks the last count walked over: what its cost depends on; always 0 up to 3.13."""
        return self._registry.steps

    def tasks(self, most: int = 1_000_000, every: int = 1) -> TaskDump:
        """Every asyncio task that is not done, `most` at the most; with `every` above 1 a sample, each so-manieth.

        Raises:
            UnreadableError: the registry of tasks cannot be read.
        """
        return self._tasks.dump(self.sample(), most, every)

    def _find_task_offsets(self) -> int | None:
        """Where the module `_asyncio` tells of its structs; None for a recorded image, which has no files to look in."""
        if self._proc is None:
            return None
        found = locate_section(self._proc, ".AsyncioDebug", "_asyncio.")
        if found is None:
            raise UnreadableError(
                "the target's `_asyncio` does not tell where its tasks are: it has no .AsyncioDebug"
            )
        return found

    def loop(self, thread: ThreadStack) -> Doing:
        """What the event loop of a thread does, whose stack was read just now; two small reads if it is in a callback.

        Raises:
            NoSuchTargetError: the target has ended.
        """
        return self._loops.doing(thread.stack)

    def collector(self) -> Collector:
        """The garbage collector of the main interpreter.

        Raises:
            UnreadableError: the list of interpreters cannot be read.
        """
        if self._collector is None:
            home = self.runtime if self.layout.minor == 8 else self.main_interpreter()
            self._collector = Collector(self.memory, self.layout, home + self.layout.gc.state)
        return self._collector

    def census(self, limits: CensusLimits, rest: Callable[[], None] = lambda: None) -> Census:
        """The objects that the garbage collector tracks, by type; see `cpython.census`.

        Raises:
            UnreadableError: the lists cannot be read at all.
        """
        return take_census(self._objects, self.collector().address, limits, rest)

    def main_interpreter(self) -> int:
        """Address of the main interpreter's `PyInterpreterState`. Raises as `sample` does."""
        return self._threads.interpreters()[-1]

    def sys_bytes(self, name: str, most: int) -> bytes | None:
        """The bytes object that the main interpreter's `sys` has under `name`, None where there is none.

        Raises:
            UnreadableError: it is no bytes object, longer than `most`, or cannot be read.
        """
        objects = self._objects
        sysdict = objects.word(self.main_interpreter() + self.layout.interp.sysdict)
        (address,) = objects.lookup(sysdict, name)
        if address is None:
            return None
        found = objects.type_name(objects.type_of(address))
        if found != "bytes":
            raise UnreadableError(f"sys.{name} is of type {found!r}, bytes were expected")
        return objects.bytes_of(address, most)

    def _host_id(self, native_id: int | None) -> int | None:
        """A thread id as our pid namespace numbers it."""
        if native_id is None or self._proc is None:
            return native_id
        if self._host_ids is None or (self._host_ids and native_id not in self._host_ids):
            self._host_ids = host_ids(self._proc)
        return self._host_ids.get(native_id) if self._host_ids else native_id

    def _check(self) -> str:
        """Refuse a target that the layout does not fit; returns the target's full version.

        Every part of the layout that a stack depends on is used once on something whose true value is known.
        """
        objects = self._objects
        interp = self._threads.interpreters()[-1]
        try:
            sysdict = objects.word(interp + self.layout.interp.sysdict)
            self._check_type(objects.type_of(sysdict), "dict", self.layout.dict.size)
            (hexversion,) = objects.lookup(sysdict, "hexversion")
            version = objects.integer(hexversion) if hexversion else 0
            if version >> 16 != 3 << 8 | self.layout.minor:
                raise UnsupportedTargetError(
                    f"sys.hexversion of the target reads {version:#x}: 3.{self.layout.minor} was expected"
                )
        except UnreadableError as error:
            raise self._moved(f"its sys module cannot be read ({error.message})") from error
        self._check_stacks()
        return f"3.{self.layout.minor}.{version >> 8 & 0xFF}"

    def _check_stacks(self) -> None:
        """At least one thread must show a stack whose code objects are what they should be."""
        whole: list[Stack] = []
        last_call = self.memory.calls + _CALLS
        while not whole:
            if self.memory.calls > last_call:
                raise self._moved("no stack of it can be read")
            threads = self._threads.read()
            self._check_native_ids(threads)
            whole = [thread.stack for thread in threads if thread.stack.kind == "whole"]
        codes = list(dict.fromkeys(frame.code for stack in whole for frame in stack.frames))
        named: list[bool] = []
        for code in codes[:_CHECKS]:
            self._check_type(self._objects.type_of(code.address), "code", self.layout.code.size)
            name = self._objects.text(self._objects.word(code.address + self.layout.code.name))
            named.append(code.function.endswith(name) and code.file != name)
        if named and not any(named):
            raise self._moved(
                f"its code objects have names like {code.function!r} and files like {code.file!r}"
            )

    def _check_native_ids(self, threads: list[ThreadStack]) -> None:
        if self._proc is None or self.layout.thread.native_thread_id < 0:
            return
        kernel = [self._host_id(thread.native_id) for thread in threads]
        if threads and not any(native and (self._proc / "task" / str(native)).exists() for native in kernel):
            raise self._moved("none of its threads' native ids is a thread of the process")

    def _check_type(self, type_address: int, name: str, size: int) -> None:
        found = (self._objects.type_name(type_address), self._objects.basicsize(type_address))
        if found != (name, size):
            raise self._moved(f"an object of type {found[0]!r} has {found[1]} bytes, not {name!r} and {size}")

    def _moved(self, what: str) -> UnsupportedTargetError:
        return UnsupportedTargetError(
            f"the target is no CPython laid out like {self.layout.generated_from}: {what}",
            hint="a patched or newer build needs a layout table of its own: see tools/gen_layouts.py",
        )


def open_process(pid: int, root: Path = Path("/"), *, memory: Memory | None = None) -> Interpreter:
    """Find and check the CPython in process `pid`; `root` is where `proc` is mounted, `memory` that of the process.

    Raises:
        NoSuchTargetError: there is no such process, or it is a zombie or a kernel thread.
        NotPermittedError: it may not be read.
        UnsupportedTargetError: it is no CPython that can be read.
        UnreadableError: it is starting or ending.
    """
    proc = root / "proc" / str(pid)
    location = locate(proc)
    memory = memory or ProcessMemory(pid)
    layout = choose_layout(memory, location)
    for _ in range(_OPENINGS - 1):
        # What is checked may change while it is read: a target at work is looked at again.
        with suppress(UnreadableError):
            return Interpreter(memory, layout, location.runtime, proc)
    return Interpreter(memory, layout, location.runtime, proc)


def choose_layout(memory: Memory, location: Location) -> Layout:
    """The layout of the interpreter at `location`.

    Raises:
        UnsupportedTargetError: its version cannot be told, or is not supported.
        UnreadableError: it cannot be read.
    """
    told = debug_version(must_read(memory, location.runtime, 24))
    if told is not None:
        minor, free_threaded = told
        if free_threaded:
            raise UnsupportedTargetError(
                f"the target is a free-threaded CPython 3.{minor}: only builds with a GIL can be read",
                hint="py-spy based captures may still work",
            )
        layout = layout_of(minor)
        return told_by_target(layout, must_read(memory, location.runtime, layout.debug_offsets["size"]))
    if location.version_symbol is not None:
        (version,) = struct.unpack("<Q", must_read(memory, location.version_symbol, 8))
        if version >> 24 != 3:
            raise UnsupportedTargetError(f"Py_Version of the target is {version:#x}: CPython 3 was expected")
        return layout_of(version >> 16 & 0xFF)
    if location.minor is None:
        raise UnsupportedTargetError(
            f"the CPython version of {location.file} cannot be told: no Py_Version, and no file name that names one"
        )
    return layout_of(location.minor)
