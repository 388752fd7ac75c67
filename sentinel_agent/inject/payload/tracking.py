"""Runs inside a target, in a thread of its own: let the target's own memray track allocations for a while.

memray is imported from where the target finds it; without it nothing happens. Its aggregated format is used, which keeps sums and writes a
small file at the end. It follows every thread, and makes each allocation dearer, so it ends early when the process has no CPU left.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # the module `typing` may not be loaded in the target
if TYPE_CHECKING:
    from typing import Any

    from sentinel_agent.inject.payload.common import let_run, timer  # noqa: TC004 - it is sent before this

MOST_GROWTH = 128 * 1024 * 1024  # of resident memory, which the sums are part of


def tracking(time: Any, seconds: float, path: str, most_hold: float) -> dict[str, Any]:
    """Track for `seconds`; memray's file is at `path` afterwards, until `work` ends."""
    import memray  # noqa: PLC0415 - in the target, if it has it

    timed, holds = timer(time)
    tracker = memray.Tracker(
        destination=memray.FileDestination(path, overwrite=False, compress_on_exit=False),
        file_format=memray.FileFormat.AGGREGATED_ALLOCATIONS,
        trace_python_allocators=True,
        follow_fork=False,
    )
    timed("start", tracker.__enter__)
    began = time.perf_counter()
    why = "hold"
    try:
        if holds["start"] <= most_hold:
            base = _resident()
            why = let_run(time, seconds, lambda: "memory" if _resident() - base > MOST_GROWTH else "")
        ran = time.perf_counter() - began
    finally:
        timed("stop", tracker.__exit__, None, None, None)
    return {
        "seconds": ran,
        "ended_by": why,
        "holds": holds,
        "version": str(getattr(memray, "__version__", ""))[:40],
        "python": "%d.%d" % sys.version_info[:2],  # noqa: UP031 - 3.8 too
    }


def _resident() -> int:
    """Bytes of resident memory; 0 where the process has no descriptor left to learn it."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - nothing is imported
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0
