"""The kernel's ids and CPU times of threads that py-spy knows only by their `pthread_t`.

CPython stores the native id of a thread since 3.11. For older ones py-spy would have to stop the target to find
it. It is also in the C library's own record of a thread, at the address that `pthread_t` is (glibc: nptl/descr.h,
`struct pthread`, member `tid`; musl: src/internal/pthread_impl.h). At which offset differs from one library to
the next; it is the one at which every thread has another id of this process.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from sentinel_agent.target.procfs import ProcDir, ProcFormatError

if TYPE_CHECKING:
    from collections.abc import Collection

LARGEST_PID = 2**22  # PID_MAX_LIMIT, include/linux/threads.h; an address is always larger
_MAX_THREADS = 10_000
_HEAD = struct.Struct("=256i")  # the part of the record that is searched


def native_ids(proc: ProcDir, handles: Collection[int]) -> dict[int, int]:
    """`pthread_t` -> native id, read from the target's memory without stopping it; empty where none is certain."""
    heads: dict[int, tuple[int, ...]] = {}
    try:
        known = set(proc.threads(_MAX_THREADS))
        memory = os.open(proc.root / "proc" / str(proc.pid) / "mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        for handle in handles:
            head = _read(memory, handle)
            if head:
                heads[handle] = head
    finally:
        os.close(memory)
    for ids in zip(*heads.values(), strict=True):
        if known.issuperset(ids) and len(set(ids)) == len(ids):
            return dict(zip(heads, ids, strict=True))
    return {}


def _read(memory: int, address: int) -> tuple[int, ...] | None:
    try:
        return _HEAD.unpack(os.pread(memory, _HEAD.size, address))
    except (OSError, OverflowError, struct.error):  # the thread has ended, or there is no such address
        return None


def running_threads(proc: ProcDir) -> dict[int, bool]:
    """Native id -> whether the thread is on a core or waits for one (state R of proc(5))."""
    states = {}
    for thread in proc.threads(_MAX_THREADS):
        try:
            states[thread] = proc.stat(thread).state == "R"
        except (OSError, ProcFormatError):  # it ended meanwhile
            continue
    return states


def cpu_seconds(proc: ProcDir) -> dict[int, float]:
    """Native id -> CPU time so far (first field of `/proc/PID/task/TID/schedstat`, nanoseconds)."""
    times = {}
    for thread in proc.threads(_MAX_THREADS):
        try:
            times[thread] = int(proc.read(f"task/{thread}/schedstat", 200).split()[0]) / 1e9
        except (OSError, ValueError, IndexError):
            continue
    return times
