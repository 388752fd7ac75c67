"""Puts the stacks of a live target into its ring: one `sample` is one look at all its threads.

The reader gives frames that are the same object for the same place, so what a sample costs here is a dictionary
look-up per frame and one small read of `/proc` per thread, for whether it is on a CPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import thread_time
from typing import TYPE_CHECKING

from sentinel_agent.cpython.memory import UnreadableError
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.recorder.sample import ThreadSample, Tick

if TYPE_CHECKING:
    from sentinel_agent.cpython.code import Frame
    from sentinel_agent.cpython.process import Interpreter
    from sentinel_agent.cpython.threads import ThreadFacts, ThreadStack
    from sentinel_agent.probes.live import LiveReader
    from sentinel_agent.recorder.ring import Ring
    from sentinel_agent.recorder.sample import Place

MAX_THREADS = 64
"""Of a target with more threads, those that CPython lists first are recorded; the others count as failed."""
MAX_PLACES = 50_000
_FACTS_EVERY = 5.0


class KernelStates:
    """Whether threads are on a CPU, from /proc/PID/task/TID/stat (proc(5), field 3); one descriptor is kept per thread."""

    def __init__(self, pid: int, root: Path = Path("/")) -> None:
        self._folder = root / "proc" / str(pid) / "task"
        self._open: dict[int, int] = {}

    def on_cpu(self, native_id: int | None) -> bool | None:
        """Running or ready to run; None where it cannot be told."""
        if native_id is None:
            return None
        descriptor = self._open.get(native_id)
        try:
            if descriptor is None:
                descriptor = os.open(self._folder / str(native_id) / "stat", os.O_RDONLY | os.O_CLOEXEC)
                self._open[native_id] = descriptor
            return os.pread(descriptor, 512, 0).rpartition(b")")[2].lstrip().startswith(b"R")
        except OSError:
            self._forget(native_id)
            return None

    def asleep(self, native_id: int | None) -> int | None:
        """Nanoseconds of CPU time that a sleeping thread has used (/proc/PID/task/TID/schedstat); None if it does not sleep."""
        if self.on_cpu(native_id) is not False:
            return None
        try:
            return int((self._folder / str(native_id) / "schedstat").read_bytes().split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def keep(self, native_ids: set[int]) -> None:
        """Close what belongs to threads that have ended."""
        for native_id in self._open.keys() - native_ids:
            self._forget(native_id)

    def close(self) -> None:
        """Close everything."""
        self.keep(set())

    def _forget(self, native_id: int) -> None:
        descriptor = self._open.pop(native_id, None)
        if descriptor is not None:
            os.close(descriptor)


class Flight:
    """The recording of one target. `cost` is the CPU time of the last sample in seconds."""

    def __init__(self, pid: int, reader: LiveReader, ring: Ring, root: Path = Path("/")) -> None:
        self.ring = ring
        self.cost = 0.0
        self._reader = reader
        self._states = KernelStates(pid, root)
        self._places: dict[Frame, Place] = {}
        self._facts: dict[int, ThreadFacts] = {}
        self._facts_at = -_FACTS_EVERY

    def sample(self, wall: float, monotonic: float, period: float, late: float = 0.0) -> bool:
        """Take one look. False if there is nothing to look at (the reader is not open, the target has ended)."""
        interpreter = self._reader.interpreter
        if interpreter is None:
            return False
        began = thread_time()
        try:
            threads = interpreter.sample()
        except NoSuchTargetError:
            return False
        except UnreadableError:
            self.ring.put(Tick(wall, monotonic, period, (), failed=1, late=late))
            return True
        self._learn(interpreter, threads, monotonic)
        self._reader.pulse.see(interpreter, threads, monotonic, self._asleep)
        samples = [
            self._sample_of(thread) for thread in threads[:MAX_THREADS] if thread.stack.kind != "failed"
        ]
        self.ring.put(Tick(wall, monotonic, period, samples, failed=len(threads) - len(samples), late=late))
        self.cost = thread_time() - began
        return True

    def close(self) -> None:
        """Give back the descriptors; the ring stays readable."""
        self._states.close()

    def _learn(self, interpreter: Interpreter, threads: list[ThreadStack], monotonic: float) -> None:
        """Names and kernel ids: when a thread is new, and now and then, since names may change."""
        known = self._facts.keys() >= {thread.id for thread in threads}
        if known and monotonic - self._facts_at < _FACTS_EVERY:
            return
        self._facts = interpreter.facts(threads)
        self._facts_at = monotonic
        self._states.keep({fact.native_id for fact in self._facts.values() if fact.native_id is not None})
        if len(self._places) > MAX_PLACES:
            self._places.clear()

    def _sample_of(self, thread: ThreadStack) -> ThreadSample:
        facts = self._facts.get(thread.id)
        native_id = facts.native_id if facts else thread.native_id
        return ThreadSample(
            native_id=native_id if native_id is not None else thread.ident,
            name=(facts.name if facts else None) or "",
            on_cpu=self._states.on_cpu(native_id),
            kind="partial" if thread.stack.kind == "partial" else "whole",
            frames=tuple([self._place(frame) for frame in thread.stack.frames]),
        )

    def _asleep(self, thread: ThreadStack) -> int | None:
        facts = self._facts.get(thread.id)
        return self._states.asleep(facts.native_id if facts else thread.native_id)

    def _place(self, frame: Frame) -> Place:
        place = self._places.get(frame)
        if place is None:
            place = self._places[frame] = (frame.function, frame.file, frame.line or 0)
        return place
