"""Findings about the CPU and the threads: what is hottest, who is held back, which pool has nobody left."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from sentinel_agent.findings.base import Facts, Finding, NotKnown, finding, place
from sentinel_agent.profile.views import hottest

if TYPE_CHECKING:
    from sentinel_agent.capture.stacks import ThreadStack

_CPU = ("cpu", "cpu_limit", "throttled")
_LEAST_THROTTLED = 10.0  # percent of the periods
_LAST = 10  # readings
_SMALLEST_POOL = 2
_IDLE_WORKER = ("_worker", "concurrent/futures/thread.py")


def hottest_function(facts: Facts) -> Finding | NotKnown | None:
    """The function that most of the CPU samples of the spike are in."""
    if facts.during is None:
        return facts.not_known("hottest", "during")
    hot = hottest(facts.during, 4) if facts.during.seconds > 0 else ()
    if not hot:
        return None
    first = hot[0]
    where = place(first.function, first.file, first.line)
    return finding(
        "hottest",
        (70 if facts.about(*_CPU) else 20) + 25 * first.self_share,
        f"hottest: {where}, {first.self_share:.0%} of the CPU samples",
        f"{facts.during.seconds:.2f} s on a CPU are in the stacks since the condition began",
        *(
            f"then {place(each.function, each.file, each.line)}, {each.self_share:.0%}"
            for each in hot[1:]
            if each.self_share >= 0.05
        ),
        next_step="look at the flame graph of this incident; if it runs in the event loop, move it to a thread or process",
        subject=place(first.function, first.file, 0),
    )


def throttling(facts: Facts) -> Finding | NotKnown | None:
    """The container's CPU limit held the process back."""
    series = facts.readings("throttled")
    if series is None:
        return facts.no_readings("throttling", "throttled")
    last = series.values[-_LAST:]
    worst = max(last)
    if worst < _LEAST_THROTTLED:
        return None
    limit = facts.readings("cpu_limit")
    return finding(
        "throttling",
        (55 if facts.about("throttled", "cpu_limit") else 30) + worst * 0.3,
        f"the cgroup's CPU limit stopped it in up to {worst:.0f}% of the scheduling periods",
        f"throttled in {sum(value >= _LEAST_THROTTLED for value in last)} of the last {len(last)} readings",
        f"CPU was at {max(limit.values[-_LAST:]):.0f}% of the limit" if limit else "",
        next_step="raise the CPU limit, or use less CPU: see the hottest function",
        subject="the cgroup's CPU limit",
    )


def busy_pools(facts: Facts) -> Finding | NotKnown | None:
    """A thread pool none of whose threads is idle; how many jobs wait for one is not seen from outside."""
    if facts.stacks is None:
        return facts.not_known("thread_pool", "stacks")
    pools: dict[str, list[ThreadStack]] = defaultdict(list)
    for thread in facts.stacks.threads:
        name, _, number = thread.name.rpartition("_")
        if name and number.isdecimal() and any(_is_worker(frame) for frame in thread.frames):
            pools[name].append(thread)
    full = [
        (name, threads)
        for name, threads in pools.items()
        if len(threads) >= _SMALLEST_POOL and not any(_is_worker(thread.frames[0]) for thread in threads)
    ]
    if not full:
        return None
    name, threads = max(full, key=lambda item: len(item[1]))
    leaves = Counter(
        place(frame.function, frame.file, frame.line) for frame in (thread.frames[0] for thread in threads)
    )
    where, count = leaves.most_common(1)[0]
    share = count / len(threads)
    return finding(
        "thread_pool",
        (60 if facts.about("threads", "loop_stall") else 40) + 15 * share,
        f"thread pool exhausted: all {len(threads)} threads of {name} are busy, {count} of them in {where}",
        "how many jobs wait for a thread is not known: the queue is not read",
        next_step="bound what the jobs may wait for (timeouts), or give the pool more threads",
        subject=where,
    )


def _is_worker(frame: object) -> bool:
    function, file = getattr(frame, "function", ""), getattr(frame, "file", "")
    return function == _IDLE_WORKER[0] and file.endswith(_IDLE_WORKER[1])
