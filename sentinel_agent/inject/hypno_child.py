"""A process of its own that brings Python code into a target with the package `hypno`; `python -m` runs it.

hypno (1.1.0, kmaork/hypno) stops the target's main thread with ptrace(2), makes it load a small shared library, and that runs
the code in the very thread, wherever it was. In the middle of other code that can deadlock or corrupt the target: it may hold
a lock of malloc, or change a dict. So the moment is chosen here: the thread is stopped, and only if the kernel says that it was
in a system call in which CPython has given up the GIL and holds no lock (it waits for events, or sleeps) does anything happen;
else it goes on at once, and the next try follows. The code itself must only start a thread.

Arguments: the pid, and for how many seconds to try. Standard input: the code. Standard output: one JSON object.
Never kill it: the target's thread would go on from the middle of what was called in it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path

# Numbers of epoll_wait, epoll_pwait, epoll_pwait2, poll, ppoll, select, pselect6, nanosleep, clock_nanosleep and restart_syscall
# (arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h). Not futex: that may be the wait for the GIL.
PARKED = {
    "x86_64": frozenset({232, 281, 441, 7, 271, 23, 270, 35, 230, 219}),
    "aarch64": frozenset({22, 441, 73, 72, 101, 115, 128}),
}
_WAIT = 0.0005
_BLIND_EVERY = 10  # looks
_MOST_STOPS = 300


def parked(pid: int, known: frozenset[int]) -> bool:
    """Whether the main thread of `pid` is in one of the system calls (proc(5), `/proc/PID/syscall`)."""
    word = Path(f"/proc/{pid}/task/{pid}/syscall").read_text().split()[0]
    return word.isdecimal() and int(word) in known


def main(pid: int, seconds: float, code: str) -> dict[str, object]:
    """Run `code` in the target; what is answered says how often and for how long its main thread was stopped."""
    known = PARKED.get(platform.machine())
    if known is None:
        return {"error": f"there is no table of system calls for {platform.machine()}"}
    try:
        hypno = importlib.import_module("hypno.api")
        injector = importlib.import_module("pyinjector.api")
    except ImportError as error:
        return {"error": f"{error}: pip install 'sentinel-agent[inject]'"}
    stops: list[float] = []
    done = False
    with contextlib.suppress(
        OSError
    ):  # while it is stopped, the target waits for us: nobody should go before
        os.setpriority(os.PRIO_PROCESS, 0, -10)

    def at_the_right_moment(target: int, library: str, uninject: bool = True) -> None:
        nonlocal done
        until, tries = time.perf_counter() + seconds, 0
        while not done and time.perf_counter() < until:
            # While a thread is on a CPU the kernel tells nothing of it; one that always is must be stopped for a look.
            tries += 1
            if parked(target, known) or (tries % _BLIND_EVERY == 0 and len(stops) < _MOST_STOPS):
                began = time.perf_counter()
                with injector.attach(target) as stopped:
                    if parked(target, known):
                        stopped.uninject(stopped.inject(library.encode()))
                        done = True
                stops.append(time.perf_counter() - began)
            time.sleep(_WAIT)

    vars(hypno)["inject"] = at_the_right_moment  # hypno prepares the library; the moment is ours
    try:
        hypno.inject_py(pid, code)
    except Exception as error:  # noqa: BLE001 - the injector is a stranger's
        return {"error": f"{type(error).__name__}: {error}"[:500], "stops": stops}
    if not done:
        why = f"its main thread was never seen waiting for events within {seconds:g} s, so there was no safe moment"
        return {"error": why, "stops": stops}
    return {"stops": stops}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]), float(sys.argv[2]), sys.stdin.read())))
