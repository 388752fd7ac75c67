"""Stop all threads of a process for the time of one look. Never done by default: see `capture.max_pause`.

ptrace(2) with PTRACE_SEIZE and PTRACE_INTERRUPT: no signal is sent, so neither the process nor its parent notices, and if
we die, the kernel lets it go on. That holds for each of our threads by itself: all requests must come from one, and what it
has stopped goes on when it ends. So a pause has a thread of its own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from time import sleep
from typing import TYPE_CHECKING, Self, TypeVar

from sentinel_agent.errors import NoSuchTargetError, NotPermittedError, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sentinel_agent.cpython.memory import Buffer, Gathering, Memory, Range

_T = TypeVar("_T")

# include/uapi/linux/ptrace.h and wait.h
_DETACH, _SEIZE, _INTERRUPT = 17, 0x4206, 0x4207
_EVENT_STOP = 128
_WALL = 0x40000000
_WAIT = 0.00005
MAX_THREADS = 1000


class PauseTooLongError(TargetError):
    """The process was let go on before the look was over, because its time was up. `seconds` is how long it was stopped."""

    seconds = 0.0


def in_own_thread(work: Callable[[], _T]) -> _T:
    """Do `work` in a thread that has ended when this returns, and so has everything that it stopped."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="sentinel-pause") as pool:
        return pool.submit(work).result()


class Pause:
    """While it is entered, no thread of process `pid` runs, for `most` seconds at the most if `check` is called.

    `seconds` is how long it took so far: from before the first thread was stopped until after the last one was let go.

    Raises:
        NoSuchTargetError: on entering, the process has ended.
        NotPermittedError: it may not be traced, or something else traces it.
        PauseTooLongError: its threads did not stop in time.
    """

    def __init__(self, pid: int, most: float, monotonic: Callable[[], float], proc: Path) -> None:
        self.seconds = 0.0
        self._pid = pid
        self._most = most
        self._monotonic = monotonic
        self._tasks = proc / "task"
        self._seized: dict[int, int] = {}  # thread: the signal that it gets when it goes on
        self._began = 0.0
        self._ptrace = ctypes.CDLL(None, use_errno=True).ptrace
        self._ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._ptrace.restype = ctypes.c_long

    def __enter__(self) -> Self:
        self._began = self._monotonic()
        try:
            while fresh := [tid for tid in self._threads() if tid not in self._seized]:
                stopping = [tid for tid in fresh if self._seize(tid)]
                for tid in stopping:
                    self._wait_for(tid)
        except BaseException as error:
            self.__exit__(type(error), error)
            raise
        return self

    def __exit__(self, _: object, error: object, *__: object) -> None:
        self._let_go()
        if isinstance(error, PauseTooLongError):
            error.seconds = self.seconds

    def check(self) -> None:
        """Raise PauseTooLongError if the time is up."""
        if self._monotonic() - self._began > self._most:
            raise PauseTooLongError(
                f"process {self._pid} would have been stopped for longer than {self._most * 1000:g} ms",
                hint="raise capture.max_pause, or read without `pause`",
            )

    def _threads(self) -> list[int]:
        try:
            found = [int(name) for name in os.listdir(self._tasks)]  # noqa: PTH208 - names are all that is needed
        except FileNotFoundError:
            raise NoSuchTargetError(f"process {self._pid} has ended") from None
        if len(found) > MAX_THREADS:
            raise TargetError(
                f"process {self._pid} has {len(found)} threads: at most {MAX_THREADS} are stopped"
            )
        return found

    def _seize(self, tid: int) -> bool:
        """Ask one thread to stop. False if it has ended."""
        self.check()
        for request in (_SEIZE, _INTERRUPT):
            if self._ptrace(request, tid, None, None) < 0:
                code = ctypes.get_errno()
                if code == errno.ESRCH:
                    self._seized.setdefault(tid, 0)
                    return False
                raise NotPermittedError(
                    f"process {self._pid} may not be stopped: {os.strerror(code)}",
                    hint="tracing needs CAP_SYS_PTRACE or kernel.yama.ptrace_scope=0, and one tracer at a time",
                )
            self._seized[tid] = 0
        return True

    def _wait_for(self, tid: int) -> None:
        """Wait until it stands. It may have stopped for a signal that just came: then it gets it later."""
        while True:
            try:
                # Stops only: the end of a child of ours is for whoever started it to know.
                found = os.waitid(os.P_PID, tid, os.WSTOPPED | os.WNOHANG | _WALL)
            except ChildProcessError:  # it has ended
                return
            if found is not None:
                event, number = found.si_status >> 8, found.si_status & 0xFF
                if event != _EVENT_STOP and number != signal.SIGTRAP:
                    self._seized[tid] = number
                return
            self.check()
            sleep(_WAIT)

    def _let_go(self) -> None:
        for tid, number in self._seized.items():
            self._ptrace(
                _DETACH, tid, None, number
            )  # one that has not stopped yet goes on when this thread ends
        self._seized.clear()
        self.seconds = self._monotonic() - self._began


class TimedMemory:
    """Reads `memory` as long as `pause` may last, where there is one."""

    def __init__(self, memory: Memory) -> None:
        self.calls = 0
        self.pause: Pause | None = None
        self._memory = memory

    def read(self, address: int, size: int) -> bytes | None:
        return self.read_many([(address, size)])[0]

    def read_many(self, ranges: Sequence[Range]) -> list[bytes | None]:
        if self.pause is not None:
            self.pause.check()
        self.calls += 1
        return self._memory.read_many(ranges)

    def gather(self, gathering: Gathering, buffer: Buffer) -> memoryview | None:
        if self.pause is not None:
            self.pause.check()
        self.calls += 1
        return self._memory.gather(gathering, buffer)
