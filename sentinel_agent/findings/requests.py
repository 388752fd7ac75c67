"""Findings about the requests through the embedded proxy: which one holds the event loop, which route is busier than before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.core.units import format_duration
from sentinel_agent.findings.base import Facts, Finding, NotKnown, finding, place
from sentinel_agent.profile.views import hottest

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAST_SECONDS = 0.25
_LEAST_RATE = 1.0


class UnderWay(msgspec.Struct, frozen=True):
    """A request under way, in `requests.json`; `on_loop` while a filter of its route holds the event loop."""

    request: str
    route: str
    seconds: float
    trace: str
    on_loop: bool = False


class RouteRate(msgspec.Struct, frozen=True):
    """A route, in `requests.json`; requests a second."""

    route: str
    rate: float
    rate_before: float | None


class Ended(msgspec.Struct, frozen=True):
    """A request that is over, in `requests.json`."""

    method: str
    path: str
    status: int
    seconds: float
    route: str = ""
    flags: str = ""
    detail: str = ""
    trace: str = ""


class Held(msgspec.Struct, frozen=True):
    """A route that the adaptive limit holds, in `requests.json`."""

    route: str
    base: float
    why: str


class Limit(msgspec.Struct, frozen=True):
    """The adaptive limit, in `requests.json`."""

    mode: str
    held: tuple[Held, ...] = ()


class RequestsDocument(msgspec.Struct, frozen=True):
    """What is read again of `requests.json`."""

    in_flight: tuple[UnderWay, ...]
    routes: tuple[RouteRate, ...]
    slowest: tuple[Ended, ...] = ()
    failed: tuple[Ended, ...] = ()
    adaptive_limit: Limit | None = None

    def rising(self, least: float = 0.5) -> list[RouteRate]:
        """Routes with more than twice the requests a second of before and `least` of them; what grew the most comes first."""
        grown = [
            (each.rate / (each.rate_before + 0.5), each)
            for each in self.routes
            if each.rate_before is not None and each.rate > 2 * each.rate_before and each.rate >= least
        ]
        return [each for _, each in sorted(grown, key=lambda pair: -pair[0])]


def in_words(document: RequestsDocument, most: int = 3) -> list[str]:
    """What stands out, a line each: who holds the event loop, who waits the longest, routes that grew the most or are held.

    Then the slowest requests and the last that failed, with their traces.
    """
    longest = sorted(document.in_flight, key=lambda each: (not each.on_loop, -each.seconds))
    return [
        *(
            f"{'on the event loop' if each.on_loop else 'under way'} for {format_duration(each.seconds)}: {_named(each)}"
            for each in longest[:most]
        ),
        *map(_rise, document.rising()[:most]),
        *(
            f"route {each.route}: the adaptive limit holds it to {each.base:.1f} requests under way: {each.why}"
            for each in (document.adaptive_limit.held if document.adaptive_limit else ())[:most]
        ),
        *(f"slowest: {_over(each)}" for each in document.slowest[:most]),
        *(f"failed: {_over(each)}" for each in document.failed[:most]),
    ]


def held_loop(facts: Facts) -> Finding | NotKnown | None:
    """The request in whose filter the event loop stands. In-flight tables say so; a target that is no proxy has none."""
    if facts.requests is None:
        return _no_requests(facts, "held_loop")
    holding = max(
        (each for each in facts.requests.in_flight if each.on_loop),
        key=lambda each: each.seconds,
        default=None,
    )
    if holding is None or holding.seconds < _LEAST_SECONDS:
        return None
    hot = hottest(facts.during, 1) if facts.during and facts.during.seconds > 0 else ()
    where = place(hot[0].function, hot[0].file, hot[0].line) if hot else ""
    others = len(facts.requests.in_flight) - 1
    return finding(
        "held_loop",
        (91 if facts.about("cpu", "cpu_limit", "loop_stall", "latency_p99") else 70)
        + min(8, 4 * holding.seconds),
        f"the event loop is held for {format_duration(holding.seconds)} by {holding.request} (route {holding.route})"
        + (f": {where}" if where else ""),
        f"trace {holding.trace}" if holding.trace else "",
        f"{hot[0].self_share:.0%} of the CPU samples since the condition began are in {where}" if hot else "",
        f"{others} other request{'s' if others > 1 else ''} under way in this worker"
        if others
        else "no other request was under way in this worker",
        next_step="move that work off the event loop: a filter that needs long belongs in a thread or an upstream",
        subject=f"route {holding.route}",
    )


def busier_route(facts: Facts) -> Finding | NotKnown | None:
    """The route whose requests grew the most."""
    if facts.requests is None:
        return _no_requests(facts, "busier_route")
    rising = facts.requests.rising(_LEAST_RATE)
    if not rising:
        return None
    first, *others = rising
    return finding(
        "busier_route",
        45 if facts.about("rps", "inflight", "cpu", "rss", "tasks", "fds") else 30,
        f"route {first.route} gets {first.rate:.1f} requests a second, {first.rate_before:.1f} before",
        *map(_rise, others[:3]),
        next_step="see who calls it: the access log and the traces of this route; a rate limit on the route bounds it",
        subject=f"route {first.route}",
    )


def _no_requests(facts: Facts, check: str) -> NotKnown | None:
    """Not known where requests were to be captured; a target that is no proxy has none to look at."""
    planned: Iterator[bool] = (report.kind == "requests" for report in facts.incident.captures)
    return facts.not_known(check, "requests") if any(planned) else None


def _over(request: Ended) -> str:
    parts = (
        f"{request.method} {request.path}".strip(),
        f"route {request.route}" if request.route else "",
        f"{request.status} {request.flags}".strip(),
        f"after {format_duration(request.seconds)}",
        request.detail,
        f"trace {request.trace}" if request.trace else "",
    )
    return ", ".join(part for part in parts if part)


def _rise(route: RouteRate) -> str:
    return f"route {route.route}: {route.rate:.1f} requests a second, {route.rate_before:.1f} before"


def _named(request: UnderWay) -> str:
    return f"{request.request}, route {request.route}" + (f", trace {request.trace}" if request.trace else "")
