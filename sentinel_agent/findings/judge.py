"""All checks over one incident. A check that fails is data: it is not known what it would have found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.findings import history, loop, memory, process, requests, work
from sentinel_agent.findings.base import MAX_FINDINGS, Facts, Finding, Findings, NotKnown, cut

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CHECKS: Mapping[str, Callable[[Facts], Finding | NotKnown | None]] = {
    "death": process.death,
    "held_loop": requests.held_loop,
    "blocked_loop": loop.blocked_loop,
    "hottest": work.hottest_function,
    "allocations": memory.allocations,
    "object_growth": memory.object_growth,
    "memory_growth": memory.growth,
    "malloc_arenas": memory.malloc_arenas,
    "tasks": loop.alike_tasks,
    "busier_route": requests.busier_route,
    "connections": process.connections,
    "throttling": work.throttling,
    "gc_storm": memory.gc_storm,
    "thread_pool": work.busy_pools,
}
"""By name, in the order that decides between equal scores."""


def judge(facts: Facts) -> Findings:
    """The findings, the highest score first."""
    found: list[Finding] = []
    unknown: list[NotKnown] = []
    nothing: list[str] = []
    for name, check in CHECKS.items():
        _sort(name, check, facts, found, unknown, nothing)
    found.sort(key=lambda each: -each.score)
    _sort("seen_before", lambda facts: history.seen_before(facts, found), facts, found, unknown, nothing)
    found.sort(key=lambda each: -each.score)
    return Findings(tuple(found[:MAX_FINDINGS]), tuple(unknown), tuple(nothing))


def _sort(
    name: str,
    check: Callable[[Facts], Finding | NotKnown | None],
    facts: Facts,
    found: list[Finding],
    unknown: list[NotKnown],
    nothing: list[str],
) -> None:
    try:
        answer = check(facts)
    except Exception as error:  # noqa: BLE001 - what a target chose to show must not cost the incident
        answer = NotKnown(
            name, f"the check failed, which is a fault of ours: {type(error).__name__}: {error}"
        )
    match answer:
        case Finding():
            found.append(answer)
        case NotKnown():
            unknown.append(NotKnown(answer.check, cut(answer.why)))
        case None:
            nothing.append(name)
