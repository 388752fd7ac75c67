"""The books of a request that is over: breakers, balancers, counters, and its record where somebody wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from sentinel_agent.proxy import flags
from sentinel_agent.proxy.records import RequestRecord
from sentinel_agent.proxy.stats import bucket_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sentinel_agent.proxy.exchange import Exchange
    from sentinel_agent.proxy.tracing import Place

SLOW_SECONDS: Final = 1.0
"""A request that took longer is worth telling the agent of."""
_BROKEN: Final = frozenset(
    (flags.CONNECTION_ENDED.code, flags.UPSTREAM_FAULT.code, flags.UPSTREAM_TIMEOUT.code)
)


def settle(exchange: Exchange, now: float) -> None:
    """Account for the request: breakers, balancers, counters, the record."""
    cluster, route, flag = exchange.cluster, exchange.route, exchange.flag
    if cluster is not None and exchange.counted:
        cluster.active -= 1
        if exchange.retrying:
            cluster.retries -= 1
        if cluster.measured and exchange.server is not None and exchange.head_time:
            exchange.server.measure(exchange.head_time - exchange.first_try, exchange.status >= 500, now)
    seconds = now - exchange.start_time
    if route is not None:
        stats = exchange.stats
        route.stats.inflight -= 1
        exchange.worker.exchanges.discard(exchange)
        if exchange.slot >= 0 and exchange.worker.inflight is not None:
            exchange.worker.inflight.leave(exchange.slot)
        stats.requests += 1
        stats.seconds += seconds
        stats.bytes_in += exchange.bytes_in
        stats.bytes_out += exchange.bytes_out
        stats.classes[exchange.status // 100] += 1
        stats.latency[bucket_of(seconds)] += 1
        if exchange.head_time:  # the proxy's own share: all but the wait for the upstream's head
            own = seconds - (exchange.head_time - exchange.sent_time)
            stats.own[bucket_of(own)] += 1
        if flag is not None:
            stats.flags[flag.code] = stats.flags.get(flag.code, 0) + 1
            stats.self_failed += flag.ours
        if exchange.status >= 500 or (flag is not None and flag.code in _BROKEN):
            stats.errors += 1
    account(exchange, seconds)


def account(exchange: Exchange, seconds: float) -> None:
    """A request is over: make its record, where somebody wants it."""
    worker, place, flag = exchange.worker, exchange.place, exchange.flag
    sampled = place is not None and place.context.sampled
    failed = exchange.status >= 500 or (flag is not None and flag not in flags.REFUSALS)
    notable = sampled or failed or seconds >= SLOW_SECONDS
    if notable and worker.tap is not None:
        worker.keep(record_of(exchange, seconds), notable=True)
    elif worker.access_log is not None:
        worker.access_log.add_later(exchange, seconds)


def record_of(exchange: Exchange, seconds: float) -> RequestRecord:
    """The record of a request that is over."""
    worker, place, route, flag = exchange.worker, exchange.place, exchange.route, exchange.flag
    cluster, downstream = exchange.cluster, exchange.downstream
    method, path, host = exchange.names()
    server = exchange.server
    record = RequestRecord(
        worker.wall(exchange.start_time),
        downstream.listener.spec.name,
        route.name if route is not None else "",
        cluster.name if cluster is not None else "",
        server.address if server is not None else "",
        downstream.client,
        method,
        path,
        host,
        exchange.status,
        seconds,
        exchange.head_time - exchange.first_try if exchange.head_time else 0.0,
        exchange.bytes_in,
        exchange.bytes_out,
        exchange.tries,
        flag.code if flag is not None else "",
        exchange.detail,
        f"{place.context.trace_id:032x}" if place is not None else "",
    )
    if place is not None and place.context.sampled:
        return _with_spans(record, place, exchange.head.fields)
    return record


def _with_spans(record: RequestRecord, place: Place, fields: Mapping[bytes, bytes]) -> RequestRecord:
    """The record of a sampled request."""
    return msgspec.structs.replace(
        record,
        span=f"{place.server:016x}",
        parent=f"{place.parent:016x}" if place.parent else "",
        client_span=f"{place.context.span_id:016x}",
        sampled=True,
        debug=place.context.debug,
        sw8=fields.get(b"sw8", b"").decode("latin-1") if place.parent else "",
        sw8_correlation=fields.get(b"sw8-correlation", b"").decode("latin-1"),
    )
