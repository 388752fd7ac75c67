"""The threads of a live CPython: found, followed from one reading to the next, and their stacks read.

CPython keeps its interpreters and, in each, its threads in linked lists, the newest first. The list of the last reading is taken
for granted and confirmed by what each thread's state says, so that a quiet list costs one small call.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from operator import is_not
from typing import TYPE_CHECKING, Literal

from sentinel_agent.cpython.frames import StateFormat
from sentinel_agent.cpython.memory import MAX_RANGES, MAX_READ, Buffer, Gathering, UnreadableError
from sentinel_agent.cpython.snapshot import ChunkFormat
from sentinel_agent.cpython.walk_chunks import ChunkWalk
from sentinel_agent.cpython.walk_objects import ObjectFormat, ObjectWalk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sentinel_agent.cpython.code import CodeCache
    from sentinel_agent.cpython.frames import Reading, Stack, Walk
    from sentinel_agent.cpython.objects import Objects

MAX_INTERPRETERS = 64
MAX_THREADS = 2000
_MAX_NAME = 200

KernelState = Literal["running", "waiting"]


@dataclass(frozen=True, slots=True)
class ThreadStack:
    """One thread at one moment.

    `id` is CPython's own number of the thread, never used twice; `ident` is `threading.get_ident()`; `native_id` is the
    kernel's, None where CPython does not keep it (before 3.11) and no `threading.Thread` tells. `gil` says whether
    the thread held the GIL, None where it cannot be told.
    """

    id: int
    ident: int
    native_id: int | None
    gil: bool | None
    stack: Stack


@dataclass(frozen=True, slots=True)
class ThreadFacts:
    """What `threading` knows of a thread."""

    name: str | None
    native_id: int | None


@dataclass(slots=True)
class _Interp:
    address: int
    gil: int
    threads: list[int]


class _Batch:
    """The heads and the readings of the threads, to be gathered in one call, and where in it each thread's lie."""

    def __init__(self) -> None:
        self.gathering = Gathering()
        self.parts: list[tuple[Walk, Gathering]] = []
        self.spans: dict[int, tuple[int, int]] = {}


class _Heads:
    """The beginnings of the lists: the first interpreter, and of each the next one, its first thread and its GIL."""

    def __init__(
        self, first: int, interps: list[int], next_at: int, threads_at: int, gils: list[tuple[int, int]]
    ) -> None:
        ranges = [(first, 8)]
        form = "<Q"
        for address, (locked, holder) in zip(interps, gils, strict=True):
            ranges += [(address + next_at, 8), (address + threads_at, 8)]
            if locked:
                ranges += [(locked, 4), (holder, 8)]
            form += "QQIQ" if locked else "QQ"
        self.gathering = Gathering(ranges)
        self._form = struct.Struct(form)
        self._expected = [*interps, 0]
        self._locks = [bool(locked) for locked, _ in gils]
        self._words: tuple[int, ...] = ()
        self._answer: list[tuple[int, int | None]] = []

    def see(self, data: memoryview | None) -> list[tuple[int, int | None]] | None:
        """First thread and GIL holder (0: free, None: unknown) of each interpreter; None if the list has changed."""
        if data is None:
            return None
        words = self._form.unpack_from(data, 0)
        if words == self._words:
            return self._answer
        expected, at = self._expected, 1
        if words[0] != expected[0]:
            return None
        answer: list[tuple[int, int | None]] = []
        for following, locks in zip(expected[1:], self._locks, strict=True):
            if words[at] != following:
                return None
            holder = None if not locks else words[at + 3] if words[at + 2] else 0
            answer.append((words[at + 1], holder))
            at += 4 if locks else 2
        self._words, self._answer = words, answer
        return answer


class Threads:
    """All threads of all interpreters under the `_PyRuntime` at `runtime`."""

    def __init__(self, objects: Objects, codes: CodeCache, runtime: int) -> None:
        self._objects = objects
        self._memory = objects.memory
        self._runtime = runtime
        self._layout = objects.layout
        self._state = StateFormat(objects.layout)
        self._native_at = self._state.index("native_thread_id")
        self._interps: list[_Interp] = []
        self._heads: _Heads | None = None
        self._walks: dict[int, Walk] = {}
        self._new_walk = walk_maker(objects, codes)
        self._facts: dict[int, ThreadFacts] = {}
        self._batch: _Batch | None = None
        self._buffer = Buffer()
        self._answer: list[ThreadStack] = []
        self._stacks: dict[int, tuple[Reading, int | None, ThreadStack]] = {}

    def read(self) -> list[ThreadStack]:
        """One reading of every thread, the oldest first; the same list if nothing is otherwise than the last time.

        Raises:
            UnreadableError: the lists of interpreters or threads cannot be read.
        """
        data = self._gathered()
        heads = self._heads.see(data or self._gather(self._heads.gathering)) if self._heads else None
        if heads is None:
            data = None
            heads = self._list_interps()
        answer: list[ThreadStack] = []
        for interp, (head, holder) in zip(self._interps, heads, strict=True):
            answer += self._read_interp(interp, head, holder, data)
        if len(self._walks) > sum(len(interp.threads) for interp in self._interps):
            alive = {address for interp in self._interps for address in interp.threads}
            self._walks = {address: walk for address, walk in self._walks.items() if address in alive}
            self._stacks = {address: kept for address, kept in self._stacks.items() if address in alive}
        answer.reverse()
        if len(answer) != len(self._answer) or any(map(is_not, answer, self._answer)):
            self._answer = answer
        return self._answer

    def forget(self) -> None:
        """Some code of the target, or what is known of its threads, is not what it was: equal bytes may mean something else."""
        self._stacks.clear()
        for walk in self._walks.values():
            walk.forget()

    def _gathered(self) -> memoryview | None:
        """The heads and what the walks ask for, in one call; None if that cannot be had."""
        batch = self._batch
        if batch is not None:
            for walk, part in batch.parts:
                if walk.gathering() is not part:
                    batch = None
                    break
        if batch is None:
            batch = self._batch = self._new_batch()
        return None if batch is None else self._gather(batch.gathering)

    def _gather(self, gathering: Gathering) -> memoryview | None:
        return self._memory.gather(gathering, self._buffer)

    def _new_batch(self) -> _Batch | None:
        if self._heads is None:
            return None
        parts = [self._heads.gathering]
        count, at = parts[0].count, parts[0].total
        batch = _Batch()
        for address, walk in self._walks.items():
            part = walk.gathering()
            # Threads for which there is no room are read one by one.
            if count + part.count <= MAX_RANGES and at + part.total <= MAX_READ:
                parts.append(part)
                batch.parts.append((walk, part))
                batch.spans[address] = (at, at + part.total)
                count += part.count
                at += part.total
        batch.gathering = Gathering(parts=parts)
        return batch

    def interpreters(self) -> list[int]:
        """Addresses of the interpreters' states, the newest first.

        Raises:
            UnreadableError: the list cannot be read.
        """
        self._list_interps()
        return [interp.address for interp in self._interps]

    def states(self) -> list[tuple[int, list[int]]]:
        """The address of each interpreter's state and those of its threads' states.

        Raises:
            UnreadableError: the lists cannot be read.
        """
        at = self._layout.thread.next
        self._list_interps()
        for interp in self._interps:
            links = [(interp.address + self._layout.interp.threads_head, 8)]
            links += [(thread + at, 8) for thread in interp.threads]
            expected = [thread.to_bytes(8, "little") for thread in (*interp.threads, 0)]
            if self._objects.many(links) != expected:
                interp.threads = self._list_threads(interp)
        return [(interp.address, list(interp.threads)) for interp in self._interps]

    def _gil_addresses(self, interp: _Interp) -> tuple[int, int]:
        layout = self._layout
        if layout.minor <= 11:
            return self._runtime + layout.runtime.gil_locked, self._runtime + layout.runtime.gil_holder
        return (interp.gil + layout.gil.locked, interp.gil + layout.gil.holder) if interp.gil else (0, 0)

    def _list_interps(self) -> list[tuple[int, int | None]]:
        """List the interpreters; the first thread and GIL holder of each."""
        layout, objects = self._layout, self._objects
        known = {interp.address: interp for interp in self._interps}
        found: list[_Interp] = []
        address = objects.word(self._runtime + layout.runtime.interpreters_head)
        while address:
            if len(found) >= MAX_INTERPRETERS or any(address == interp.address for interp in found):
                raise UnreadableError(
                    f"the list of interpreters is longer than {MAX_INTERPRETERS} or has a loop"
                )
            gil = objects.word(address + layout.interp.gil) if layout.minor >= 12 else 0
            threads = known[address].threads if address in known else []
            found.append(_Interp(address, gil, threads))
            address = objects.word(address + layout.interp.next)
        if not found:
            raise UnreadableError(
                "there is no interpreter: it has not started yet, or has ended", hint="try again"
            )
        self._interps = found
        self._batch = None
        self._heads = _Heads(
            self._runtime + layout.runtime.interpreters_head,
            [interp.address for interp in found],
            layout.interp.next,
            layout.interp.threads_head,
            [self._gil_addresses(interp) for interp in found],
        )
        heads = self._heads.see(self._gather(self._heads.gathering))
        if heads is None:
            raise UnreadableError("the list of interpreters keeps changing")
        return heads

    def _read_interp(
        self, interp: _Interp, head: int, holder: int | None, data: memoryview | None
    ) -> list[ThreadStack]:
        readings = {address: self._read_thread(address, data) for address in interp.threads}
        if not self._confirmed(interp, head, readings):
            interp.threads = self._list_threads(interp)
            self._batch = None
            for address in interp.threads:
                if address not in readings:
                    readings[address] = self._read_thread(address, None)
        answer = []
        for address in interp.threads:
            thread = self._thread_stack(interp, address, readings[address], holder)
            if thread is not None:
                answer.append(thread)
        return answer

    def _read_thread(self, address: int, data: memoryview | None) -> Reading:
        walk = self._walks.get(address)
        if walk is None:
            walk = self._walks[address] = self._new_walk(address)
            self._batch = None
        span = self._batch.spans.get(address) if self._batch and data is not None else None
        return walk.read(data[span[0] : span[1]] if data is not None and span else None)

    def _confirmed(self, interp: _Interp, head: int, readings: dict[int, Reading]) -> bool:
        """Whether the states that were read link the threads in the order known."""
        at, expected = self._state.next, head
        for address in interp.threads:
            state = readings[address].state
            if address != expected or state is None:
                return False
            expected = state[at]
        return not expected

    def _list_threads(self, interp: _Interp) -> list[int]:
        found: dict[int, None] = {}
        address = self._objects.word(interp.address + self._layout.interp.threads_head)
        while address:
            if len(found) >= MAX_THREADS or address in found:
                raise UnreadableError(f"the list of threads is longer than {MAX_THREADS} or has a loop")
            found[address] = None
            address = self._objects.word(address + self._layout.thread.next)
        return list(found)

    def _thread_stack(
        self, interp: _Interp, address: int, reading: Reading, holder: int | None
    ) -> ThreadStack | None:
        """None for what is no thread of this interpreter any more."""
        form, state = self._state, reading.state
        if state is None or state[form.interp] != interp.address:
            return None
        kept = self._stacks.get(address)
        if kept is not None and kept[0] is reading and kept[1] == holder:
            return kept[2]
        number = state[form.id]
        native = state[self._native_at] if self._native_at >= 0 else 0
        known = self._facts.get(number)
        native_id = native or (known.native_id if known else None)
        gil = None if holder is None else address == holder
        thread = ThreadStack(number, state[form.thread_id], native_id, gil, reading.stack)
        self._stacks[address] = (reading, holder, thread)
        return thread

    def facts(self, threads: list[ThreadStack], active: int | None) -> dict[int, ThreadFacts]:
        """What `threading` knows of `threads`, by their `id`; `active` is the address of `threading._active`, if there is one."""
        by_ident = dict(self._active(active)) if active else {}
        nothing = ThreadFacts(None, None)
        self._facts = {thread.id: by_ident.get(thread.ident, nothing) for thread in threads}
        if self._native_at < 0:
            self.forget()
        return self._facts

    def _active(self, active: int) -> list[tuple[int, ThreadFacts]]:
        answer = []
        try:
            items = list(self._objects.mapping_items(active, MAX_THREADS))
        except UnreadableError:
            return []
        for key, thread in items:
            try:
                name, native = self._objects.attributes(thread, "_name", "_native_id")
                facts = ThreadFacts(
                    self._objects.text(name)[:_MAX_NAME] if name else None,
                    self._objects.integer(native) or None if native else None,
                )
                answer.append((self._objects.integer(key), facts))
            except UnreadableError:
                continue
        return answer


def walk_maker(objects: Objects, codes: CodeCache) -> Callable[[int], Walk]:
    """How a walk of one thread, given its state's address, is made for the layout of `objects`."""
    buffer = Buffer()  # one for all: a walk is done with it before the next one begins
    if objects.layout.minor <= 10:
        old = ObjectFormat(objects.layout)
        return lambda address: ObjectWalk(objects.memory, buffer, codes, old, address)
    form = ChunkFormat(objects.layout)
    return lambda address: ChunkWalk(objects.memory, buffer, codes, form, address)


def kernel_state(proc: Path, native_id: int) -> KernelState | None:
    """`running` or `waiting`, from /proc/PID/task/TID/stat (proc(5), field 3); None if the thread is not there."""
    try:
        text = (proc / "task" / str(native_id) / "stat").read_bytes()
    except OSError:
        return None
    # The command's name is in parentheses and may hold anything, parentheses too.
    return "running" if text.rpartition(b")")[2].split()[:1] == [b"R"] else "waiting"


def host_ids(proc: Path) -> dict[int, int]:
    """The kernel's thread ids as the target's pid namespace numbers them, mapped to ours; empty if both are the same."""
    if len(_namespace_ids(proc / "status")) < 2:
        return {}
    answer: dict[int, int] = {}
    for task in list((proc / "task").iterdir())[:MAX_THREADS]:
        ids = _namespace_ids(task / "status")
        if ids:
            answer[ids[-1]] = ids[0]
    return answer


def _namespace_ids(status: Path) -> list[int]:
    """The `NSpid` line of a status file: from our namespace to the innermost."""
    try:
        lines = status.read_bytes().split(b"\n")
    except OSError:
        return []
    return [int(number) for line in lines if line.startswith(b"NSpid:") for number in line.split()[1:]]
