"""Runs inside a target, in a thread of its own: trace allocations for a while, add up by traceback what was kept, stop.

Rules: only built-in modules; nothing of the target is called; the GIL is held for as short as can be. Each C call of
`_tracemalloc` holds it from its beginning to its end (Modules/_tracemalloc.c), and how long is measured. `_get_traces`
costs about a microsecond a trace, so tracing ends early when that would come over the cap. It makes each allocation several times
dearer, so it also ends when the process has no CPU left. A child that is forked meanwhile stops tracing at once.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # the module `typing` may not be loaded in the target
if TYPE_CHECKING:
    from typing import Any

    from sentinel_agent.inject.payload.common import let_run, timer  # noqa: TC004 - it is sent before this

FORK_HOOK = "_sentinel_agent_at_fork"
SECONDS_PER_TRACE = 1.5e-6  # of `_get_traces`; measured 0.4 to 1.0 on 3.9 to 3.13
BYTES_PER_TRACE = 56  # an entry of tracemalloc's table; what a traceback takes comes on top
SLICE = 400  # traces between two offers of the GIL
TOP = 400


def growth(time: Any, seconds: float, frames: int, most_hold: float, most_bytes: int) -> dict[str, Any]:
    """Trace for `seconds`; what was allocated meanwhile and is still held, by traceback."""
    import _tracemalloc as tracing  # noqa: PLC0415 - in the target, where this runs

    clock = time.perf_counter
    timed, holds = timer(time)
    was_on = tracing.is_tracing()
    if was_on and _predicted(tracing) > most_hold:
        raise RuntimeError("tracemalloc is on already, and a snapshot of it would hold the GIL for too long")
    _stop_in_forked_children(tracing)
    before: dict[Any, list[int]] = {}
    base = 0
    if was_on:
        before = _added_up(timed("snapshot", tracing._get_traces), time)  # noqa: SLF001
        base = tracing.get_traced_memory()[0]
    else:
        timed("start", tracing.start, frames)
    vars(sys)[FORK_HOOK][0] = not was_on
    began = clock()
    try:
        why = _trace(tracing, time, seconds, most_hold, most_bytes)
        ran = clock() - began
        traced = tracing.get_traced_memory()[0]
        traces = timed("snapshot", tracing._get_traces)  # noqa: SLF001
        overhead = tracing.get_tracemalloc_memory()
    finally:
        vars(sys)[FORK_HOOK][0] = False
        if not was_on and tracing.is_tracing():
            timed("stop", tracing.stop)
    count = len(traces)
    after = _added_up(traces, time)
    del traces
    grown = _difference(before, after)
    return {
        "seconds": ran,
        "ended_by": why,
        "was_on": was_on,
        "traces": count,
        "traced_bytes": traced - base,
        "overhead_bytes": overhead,
        "holds": holds,
        "grown_bytes": sum(item[0] for item in grown),
        "tracebacks": len(grown),
        "top": [[*item[:4], [list(frame) for frame in item[4]]] for item in grown[:TOP]],
    }


def _trace(tracing: Any, time: Any, seconds: float, most_hold: float, most_bytes: int) -> str:
    """Let the target run for so many seconds, or until it costs too much; what ended it."""

    def dear() -> str:
        if not tracing.is_tracing():
            raise RuntimeError("the target switched tracemalloc off")
        if tracing.get_tracemalloc_memory() > most_bytes:
            return "memory"
        return "hold" if _predicted(tracing) > 0.7 * most_hold else ""

    return let_run(time, seconds, dear)


def _difference(before: dict[Any, list[int]], after: dict[Any, list[int]]) -> list[Any]:
    """Bytes and blocks more, then all of them, and the traceback; the most bytes first."""
    grown = []
    for traceback, (size, number) in after.items():
        old_size, old_number = before.get(traceback, (0, 0))
        if size > old_size:
            grown.append((size - old_size, number - old_number, size, number, traceback))
    grown.sort(key=lambda item: -item[0])
    return grown


def _predicted(tracing: Any) -> float:
    """How long a snapshot would hold the GIL, in seconds; never too little, since tracebacks are taken for traces."""
    traces: float = tracing.get_tracemalloc_memory() / BYTES_PER_TRACE
    return traces * SECONDS_PER_TRACE


def _added_up(traces: Any, time: Any) -> dict[Any, list[int]]:
    """Bytes and blocks by traceback, innermost frame first; the GIL is offered again and again."""
    sums: dict[Any, list[int]] = {}
    for number, trace in enumerate(traces):
        entry = sums.get(trace[2])
        if entry is None:
            sums[trace[2]] = entry = [0, 0]
        entry[0] += trace[1]
        entry[1] += 1
        if number % SLICE == SLICE - 1:
            time.sleep(0.0003)
    return sums


def _stop_in_forked_children(tracing: Any) -> None:
    """Once per process: a hook that does nothing but while we trace. It cannot be taken away again."""
    if FORK_HOOK in vars(sys):
        return
    vars(sys)[FORK_HOOK] = ours = [False]

    def in_child() -> None:
        if ours[0]:
            ours[0] = False
            tracing.stop()

    import posix  # noqa: PLC0415 - as above

    posix.register_at_fork(after_in_child=in_child)
