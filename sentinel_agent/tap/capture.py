"""The capture `requests`: what the proxy was doing, request by request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from sentinel_agent.capture.base import CapturedFile, CaptureResult
from sentinel_agent.core.units import format_duration
from sentinel_agent.errors import TargetError
from sentinel_agent.proxy.stats import quantile
from sentinel_agent.tap.hub import RECENT_SECONDS

if TYPE_CHECKING:
    from sentinel_agent.capture.base import CapturePlan
    from sentinel_agent.clock import Clock
    from sentinel_agent.tap.hub import TapHub, WorkerView

MAX_IN_FLIGHT = 200
RATE_SECONDS = 1.5
"""`rate` of a route is over so many seconds, `rate_before` over the half minute before them."""


class RequestsCapture:
    """Requests under way, the slowest and the failed of the last minutes with their trace ids, and counts by route."""

    kind = "requests"
    attaches = False

    def __init__(self, hub: TapHub, clock: Clock) -> None:
        self._hub = hub
        self._clock = clock

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        """Write `requests.json`.

        Raises:
            TargetError: the target is no worker of the embedded proxy.
        """
        view = self._hub.worker(plan.target.pid)
        if view is None:
            raise TargetError(f"process {plan.target.pid} is no worker of the embedded proxy")
        document = describe(view, self._clock.wall(), self._clock.monotonic())
        data = msgspec.json.format(msgspec.json.encode(document), indent=1)
        await asyncio.to_thread((plan.folder / "requests.json").write_bytes, data)
        return CaptureResult((CapturedFile("requests.json", "requests", "json"),))


def describe(view: WorkerView, wall: float, monotonic: float) -> dict[str, Any]:
    """What is known of a worker's requests, as a document. Times in seconds since the epoch, durations in seconds."""
    in_flight = view.in_flight()
    batch = view.batch
    rates = view.rates(RATE_SECONDS)
    return {
        "time": wall,
        "last_heard_seconds": monotonic - view.heard,
        "in_flight_count": len(in_flight),
        "in_flight": [
            {
                "request": each.line,
                "route": view.route_name(each.route),
                "on_loop": each.on_loop,
                "seconds": round(max(0.0, wall - each.start), 6),
                "trace": each.trace,
            }
            for each in in_flight[:MAX_IN_FLIGHT]
        ],
        "slowest": view.slowest(wall - RECENT_SECONDS),
        "failed": [each for each in reversed(view.failed) if each.time >= wall - RECENT_SECONDS],
        "routes": [
            {
                "listener": each.listener,
                "route": each.route,
                "requests": each.requests,
                "errors": each.errors,
                "in_flight": each.inflight,
                "rate": rate,
                "rate_before": before,
                "flags": each.flags,
                "latency_p50": quantile(each.latency, 0.5),
                "latency_p99": quantile(each.latency, 0.99),
                "own_p99": quantile(each.own, 0.99),
            }
            for each, (rate, before) in zip(batch.counts if batch else (), rates, strict=False)
        ],
        "records_dropped": batch.dropped if batch else 0,
    }


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


class RequestsDocument(msgspec.Struct, frozen=True):
    """What is read again of `requests.json`."""

    in_flight: tuple[UnderWay, ...]
    routes: tuple[RouteRate, ...]


def in_words(document: RequestsDocument, most: int = 3) -> list[str]:
    """What stands out, a line each: who holds the event loop, who waits the longest, routes that grew the most."""
    lines = [
        f"{'on the event loop' if each.on_loop else 'under way'} for {format_duration(each.seconds)}: {each.request}, "
        f"route {each.route}" + (f", trace {each.trace}" if each.trace else "")
        for each in sorted(document.in_flight, key=lambda each: (not each.on_loop, -each.seconds))[:most]
    ]
    rising = [
        (each.rate / (each.rate_before + 0.5), each)
        for each in document.routes
        if each.rate_before is not None and each.rate > 2 * each.rate_before and each.rate >= 0.5
    ]
    rising.sort(key=lambda pair: -pair[0])
    lines += [
        f"route {each.route}: {each.rate:.1f} requests a second, {each.rate_before:.1f} before"
        for _, each in rising[:most]
    ]
    return lines
