"""Puts the stacks of a live target into its ring: one `sample` is one look at all its threads.

A look comes every 10 to 50 ms, when the processor's caches hold other things: code that runs once costs several times
what it does in a loop. So a look takes only what cannot wait, the stacks and whether each thread is on a CPU; they go to the ring
BATCH at a time, and before anybody reads it.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import clock_gettime_ns, thread_time
from typing import TYPE_CHECKING, NamedTuple

from sentinel_agent.cpython.memory import UnreadableError
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.recorder.sample import ThreadSample, Tick

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.cpython.code import Frame
    from sentinel_agent.cpython.process import Interpreter
    from sentinel_agent.cpython.threads import ThreadFacts, ThreadStack
    from sentinel_agent.probes.live import LiveReader
    from sentinel_agent.recorder.ring import Ring
    from sentinel_agent.recorder.sample import Place

MAX_THREADS = 64
"""Of a target with more threads, those that CPython lists first are recorded; the others count as failed."""
MAX_PLACES = 50_000
BATCH = 32
"""Looks that wait to be put into the ring, at most."""
_FACTS_EVERY = 15.0
_FEW_THREADS = 4
"""Of so many the states are asked for before anything is read: that costs a tenth of a look each."""
_CPUCLOCK_SCHED = (
    2  # clock_getres(2), and include/linux/posix-timers.h: the clock of another process's CPU time
)


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


class _Look(NamedTuple):
    """One look that is not in the ring yet: `on_cpu` is of each thread. None of `threads` could be read: they are one, failed."""

    wall: float
    monotonic: float
    period: float
    late: float
    threads: list[ThreadStack] | None
    on_cpu: list[bool | None]
    lead: float


class Flight:
    """The recording of one target. `cost` is the CPU time of the last sample in seconds, `now` the monotonic clock."""

    def __init__(
        self,
        pid: int,
        reader: LiveReader,
        ring: Ring,
        root: Path = Path("/"),
        now: Callable[[], float] | None = None,
    ) -> None:
        self.cost = 0.0
        self._now = now
        self._ring = ring
        self._reader = reader
        self._states = KernelStates(pid, root)
        self._clock = ~pid << 3 | _CPUCLOCK_SCHED
        self._used: int | None = None  # nanoseconds of CPU time at the last look, and when that was
        self._looked = 0.0
        self._before: int | None = (
            None  # the same before the threads were last read; None if they could not be
        )
        self._threads: list[ThreadStack] = []
        self._settled = False  # they were read twice and were the same
        self._on_cpu: list[bool | None] = []
        self._looks: list[_Look] = []
        self._places: dict[Frame, Place] = {}
        self._facts: dict[int, ThreadFacts] = {}
        self._facts_at = -_FACTS_EVERY

    @property
    def ring(self) -> Ring:
        """The ring, with every look up to now."""
        self.flush()
        return self._ring

    def sample(self, wall: float, monotonic: float, period: float, late: float = 0.0) -> bool:
        """Take one look. False if there is nothing to look at (the reader is not open, the target has ended)."""
        interpreter = self._reader.interpreter
        if interpreter is None:
            return False
        began = thread_time()
        if self._stands_still():
            self._reader.pulse.again(monotonic)
            self._looked = monotonic
            self._note(_Look(wall, monotonic, period, late, self._threads, self._on_cpu, 0.0), began)
            return True
        before, self._before = self._cpu_time(), None
        try:
            threads = interpreter.sample()
        except NoSuchTargetError:
            return False
        except UnreadableError:
            self._looks.append(_Look(wall, monotonic, period, late, None, [], 0.0))
            return True
        self._learn(interpreter, threads, monotonic)
        self._reader.pulse.see(interpreter, threads, monotonic, self._asleep, self._now)
        on_cpu, lead = self._who_runs(threads, monotonic)
        self._before = before
        self._note(_Look(wall, monotonic, period, late, threads, on_cpu, lead), began)
        return True

    def _note(self, look: _Look, began: float) -> None:
        self._looks.append(look)
        if len(self._looks) >= BATCH:
            self.flush()
        self.cost = thread_time() - began

    def flush(self) -> None:
        """Put what waits into the ring."""
        looks, self._looks = self._looks, []
        before: _Look | None = None
        samples: list[ThreadSample] = []
        for look in looks:
            wall, monotonic, period, late, threads, on_cpu, lead = look
            if threads is None:
                self._ring.put(Tick(wall, monotonic, period, (), failed=1, late=late))
                continue
            if before is None or threads is not before.threads or on_cpu is not before.on_cpu:
                samples = [
                    self._sample_of(thread, runs)
                    for thread, runs in zip(threads, on_cpu, strict=False)
                    if thread.stack.kind != "failed"
                ]
                before = look
            failed = len(threads) - len(samples)
            self._ring.put(Tick(wall, monotonic, period, samples, failed, late, lead))

    def close(self) -> None:
        """Give back the descriptors; the ring stays readable."""
        self.flush()
        self._states.close()

    def _learn(self, interpreter: Interpreter, threads: list[ThreadStack], monotonic: float) -> None:
        """Names and kernel ids: when a thread is new, and now and then, since names may change."""
        if monotonic - self._facts_at < _FACTS_EVERY and (
            threads is self._threads or all(thread.id in self._facts for thread in threads)
        ):
            return
        self.flush()  # by what was known of threads that may have ended
        self._facts = interpreter.facts(threads)
        self._facts_at = monotonic
        self._threads = []
        self._states.keep({fact.native_id for fact in self._facts.values() if fact.native_id is not None})
        if len(self._places) > MAX_PLACES:
            self._places.clear()

    def _cpu_time(self) -> int | None:
        """Nanoseconds that the process has used; None if the kernel does not tell."""
        try:
            return clock_gettime_ns(self._clock)
        except OSError:
            return None

    def _stands_still(self) -> bool:
        """Whether no thread has run since before the last look: then all is as it was seen, and need not be read.

        The kernel adds a thread's time to the sum when it leaves its CPU, so who is on one is asked first and the sum afterwards.
        """
        return (
            self._settled
            and self._before is not None
            and 0 < len(self._threads) <= _FEW_THREADS
            and all(self._states.on_cpu(self._native_id(thread)) is False for thread in self._threads)
            and self._cpu_time() == self._before
        )

    def _who_runs(self, threads: list[ThreadStack], monotonic: float) -> tuple[list[bool | None], float]:
        """Whether each thread is on a CPU, and the tick's `lead`.

        Where no stack changed and no CPU time was used since the last look, nothing else changed either.
        """
        used = self._cpu_time()
        lead = 0.0
        if used is None or used != self._used or threads is not self._threads:
            before = self._on_cpu
            self._on_cpu = [self._states.on_cpu(self._native_id(thread)) for thread in threads[:MAX_THREADS]]
            if (
                used is not None
                and self._used is not None
                and True not in before
                and sum(map(bool, self._on_cpu)) == 1
            ):
                lead = min((used - self._used) / 1e9, monotonic - self._looked)
        self._settled = threads is self._threads
        self._used, self._threads, self._looked = used, threads, monotonic
        return self._on_cpu, lead

    def _native_id(self, thread: ThreadStack) -> int | None:
        facts = self._facts.get(thread.id)
        return facts.native_id if facts else thread.native_id

    def _sample_of(self, thread: ThreadStack, on_cpu: bool | None) -> ThreadSample:
        facts = self._facts.get(thread.id)
        native_id = self._native_id(thread)
        return ThreadSample(
            native_id=native_id if native_id is not None else thread.ident,
            name=(facts.name if facts else None) or "",
            on_cpu=on_cpu,
            kind="partial" if thread.stack.kind == "partial" else "whole",
            frames=tuple([self._place(frame) for frame in thread.stack.frames]),
        )

    def _asleep(self, thread: ThreadStack) -> int | None:
        return self._states.asleep(self._native_id(thread))

    def _place(self, frame: Frame) -> Place:
        place = self._places.get(frame)
        if place is None:
            place = self._places[frame] = (frame.function, frame.file, frame.line or 0)
        return place
