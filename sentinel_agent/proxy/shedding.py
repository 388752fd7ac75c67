"""The adaptive limit of one worker: measures, lets the limiter decide, refuses what is too much, and can say why."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from itertools import count
from typing import TYPE_CHECKING, Final

from sentinel_agent.proxy import flags
from sentinel_agent.proxy.filters import Reply
from sentinel_agent.proxy.gate import BUCKET_SECONDS, InflightGate
from sentinel_agent.proxy.level import Level, LevelMeter
from sentinel_agent.proxy.limiter import AdaptiveLimiter, Decided, Held, HeldState, LimitState
from sentinel_agent.proxy.matching import header_test

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sentinel_agent.proxy.config import AdaptiveLimit
    from sentinel_agent.proxy.exchange import Exchange
    from sentinel_agent.proxy.messages import TargetLevel
    from sentinel_agent.proxy.routes import CompiledRoute
    from sentinel_agent.proxy.worker import Worker

log = logging.getLogger(__name__)

KEPT: Final = 50
"""Decisions that are remembered."""
_STEP: Final = round(1 / BUCKET_SECONDS)
_FREE: Final = Held(float("inf"), 0.0)
"""Marks a route that is not held while the global gate decides, so that its requests are looked at."""


class Shedding:
    """`looks` is whether every request must be asked about, not only those of held routes."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.take(worker.config.adaptive_limit)

    def take(self, spec: AdaptiveLimit) -> None:
        """Go by `spec` from now on, and know nothing of before."""
        self.spec = spec
        self._limiter = AdaptiveLimiter(spec.threshold, spec.hold)
        self._gate = InflightGate()
        self._gate_limit: int | None = None
        self._meter = LevelMeter(spec, self._worker.now()) if spec.mode != "off" else None
        self._source = ""
        self._recent: deque[Decided] = deque(maxlen=KEPT)
        marked = spec.load_test if spec.mode != "off" else None
        self._mark = None if marked is None else (marked.name.lower().encode(), header_test(marked))
        self._marked = 0
        self._why: dict[str, str] = {}
        self.looks = self._mark is not None
        for route in self._routes():
            route.held = None

    def told(self, levels: Sequence[TargetLevel]) -> None:
        """The agent has told of its targets."""
        if self._meter is not None:
            self._meter.told(levels, self._worker.now())

    # -- once a second -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        worker = self._worker
        began = worker.now()
        before, seen, came = self._spent(), Counter[str](), self._came()
        bucket = before
        for number in count(1):
            await asyncio.sleep(BUCKET_SECONDS)
            meter = self._meter
            if meter is None:
                continue
            after = self._spent()
            self._gate.bucket(_grown(bucket, after))
            bucket = after
            for route in self._routes():
                seen[route.key] += route.stats.inflight
            if number % _STEP == 0:
                now = worker.now()
                grown = _grown(before, after)
                use = {
                    key: max(grown[key][1] / (now - began) if key in grown else 0.0, seen[key] / _STEP)
                    for key in after
                }
                arrived = self._came()
                rate = {key: (arrived[key] - came[key]) / (now - began) for key in arrived if key in came}
                self.step(meter.measure(now, worker.take_lag()), use, rate)
                began, before, came = now, after, arrived
                seen.clear()

    def _spent(self) -> dict[str, tuple[int, float]]:
        """Requests that ended on each route, and the seconds they took."""
        return {
            route.key: (
                sum(each.requests for each in route.all_stats.values()),
                sum(each.seconds for each in route.all_stats.values()),
            )
            for route in self._routes()
        }

    def _came(self) -> dict[str, int]:
        """Requests that came to each route."""
        return {route.key: route.stats.requests + route.stats.inflight for route in self._routes()}

    def _routes(self) -> Iterator[CompiledRoute]:
        return (route for listener in self._worker.http for route in listener.routes)

    def step(self, level: Level, use: Mapping[str, float], rate: Mapping[str, float] | None = None) -> None:
        """One second; what was decided is logged and remembered."""
        limiter = self._limiter
        self._source = level.source
        marked, self._marked = self._marked, 0
        changes = limiter.step(level.value, use, rate, marked=marked, source=level.source)
        names = {route.key: route.name for route in self._routes()}
        for change in changes:
            name = names.get(str(change.route), "") if change.route is not None else ""
            self._recent.append(Decided(self._worker.wall(), name, change.words))
            log.warning(
                "adaptive limit (%s): %s%s", self.spec.mode, f"route {name} " * bool(name), change.words
            )
            self._why[change.measure] = change.words
        for route in self._routes():
            route.held = limiter.held.get(route.key) or (_FREE if limiter.gated else None)
        self._gate_limit = self._gate.limit if limiter.gated else None

    # -- for each request ----------------------------------------------------------------------------------------

    def refuses(self, exchange: Exchange, route: CompiledRoute) -> bool:
        """Whether a request, which counts as under way already, was answered because it is too much."""
        held, limiter = route.held, self._limiter
        if self._mark is not None:
            name, test = self._mark
            if test(exchange.head.fields.get(name)):
                self._marked += 1
                if limiter.load_test < 1 and self._worker.random.random() >= limiter.load_test:
                    return self._refuse(exchange, route, "load_test", self._why.get("load_test", ""))
        if held is not None and not held.allows(route.stats.inflight, self._worker.random.random()):
            why = f"route {route.name} is held to {held.base:.2g} requests under way: {held.why}"
            return self._refuse(exchange, route, "held", why)
        limit = self._gate_limit
        if limit is not None and len(self._worker.exchanges) > limit:
            why = f"more than {limit} requests under way: {self._why.get('gate', '')}"
            return self._refuse(exchange, route, "gate", why)
        return False

    def _refuse(self, exchange: Exchange, route: CompiledRoute, measure: str, why: str) -> bool:
        if self.spec.mode != "enforce":
            route.stats.count(f"adaptive_limit.{measure}.observed")
            exchange.observe(f"adaptive limit would answer 429: {why}")
            return False
        route.stats.count(f"adaptive_limit.{measure}")
        exchange.answer(Reply(429, b"overloaded\n", (("Retry-After", "1"),)), flags.RATE_LIMITED, why)
        return True

    # -- for people ----------------------------------------------------------------------------------------------

    def state(self) -> LimitState | None:
        """What is done at this moment and why; None where the limit is off."""
        if self._meter is None:
            return None
        limiter = self._limiter
        held = tuple(
            HeldState(route.listener, route.name, round(each.base, 2), route.stats.inflight, each.why)
            for route in self._routes()
            if (each := limiter.held.get(route.key)) is not None
        )
        return LimitState(
            self.spec.mode,
            round(limiter.level, 4),
            self._source,
            self.spec.threshold,
            held,
            round(limiter.load_test, 2),
            self._gate_limit,
            tuple(self._recent),
        )


def _grown(
    before: Mapping[str, tuple[int, float]], after: Mapping[str, tuple[int, float]]
) -> dict[str, tuple[int, float]]:
    """By how much; of routes that are there before and after."""
    return {
        key: (requests - before[key][0], max(0.0, seconds - before[key][1]))
        for key, (requests, seconds) in after.items()
        if key in before and requests > before[key][0]
    }
