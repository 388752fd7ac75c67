"""The capture `requests`: what the proxy was doing, request by request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from sentinel_agent.capture.base import CapturedFile, CaptureResult
from sentinel_agent.errors import TargetError
from sentinel_agent.proxy.stats import by_route, quantile
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
                "events": each.events,
                "latency_p50": quantile(each.latency, 0.5),
                "latency_p99": quantile(each.latency, 0.99),
                "own_p99": quantile(each.own, 0.99),
            }
            for each, (rate, before) in zip(by_route(batch.counts if batch else ()), rates, strict=False)
        ],
        "adaptive_limit": batch.limit if batch else None,
        "records_dropped": batch.dropped if batch else 0,
    }
