"""The short way of the most common exchange: a request without a body whose head came whole, an answer that came whole.

It does what `Downstream`, `Exchange` and `UpstreamConnection` do with such a pair, in one function each way, without the
objects and calls that everything else needs: in about a third of the time. Whatever is not plain, in the request, the
route, the pool or the answer, is left to them before anything was changed. `tests/proxy/test_lean.py` holds the two ways
to the same bytes, counters and records.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Final

import httptools

from sentinel_agent.proxy.accounting import SLOW_SECONDS, account
from sentinel_agent.proxy.exchange import Exchange
from sentinel_agent.proxy.forwarding import added_lines
from sentinel_agent.proxy.stats import bucket_of
from sentinel_agent.proxy.wire.head import END, RESPONSE_PATTERN, RequestHead, is_host, parse_request

if TYPE_CHECKING:
    from sentinel_agent.proxy.cluster import ClusterPool
    from sentinel_agent.proxy.downstream import Downstream
    from sentinel_agent.proxy.routes import CompiledRoute
    from sentinel_agent.proxy.upstream import UpstreamConnection

# Methods whose requests have no body and whose answers have one; targets that need no second look.
_REQUEST: Final = re.compile(rb"(GET|DELETE|OPTIONS) (/[\x21\x22\x24-\x7e]*+) HTTP/1\.1\r\n")
_STATUS: Final = re.compile(rb"HTTP/1\.1 ([2-4][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n")
_EMPTY: Final = frozenset((b"204", b"205", b"304"))
_MAX_ANSWER_LINES = 100


class LeanExchange(Exchange):
    """An exchange that began the short way; its head is read in full only if it does not end that way."""

    def __init__(
        self, downstream: Downstream, raw: bytes, line: re.Match[bytes], host: bytes, now: float
    ) -> None:
        self.downstream = downstream
        self.worker = downstream.listener.worker
        self.start_time = self.first_try = self.sent_time = now
        self.bytes_in = len(raw)
        self.body_done = True
        self._raw = raw
        self._line = line
        self._host = host

    @cached_property
    def head(self) -> RequestHead:  # type: ignore[override]  # an attribute there, read when it is asked for here
        """The request's head."""
        listener = self.downstream.listener
        return parse_request(self._raw, listener.limits, listener.pattern)

    def names(self) -> tuple[str, str, str]:
        """Method, target and host, for the record."""
        line = self._line
        return line[1].decode(), line[2].decode(), self._host.decode("latin-1")

    def send_plain(self, route: CompiledRoute, cluster: ClusterPool, connection: UpstreamConnection) -> None:
        """Send the request on."""
        worker, spec, now = self.worker, route.spec, self.start_time
        if spec.trace:
            self.place = worker.tracer.begin({})
        table = worker.inflight
        if table is not None:
            trace = self.place.context.trace_id if self.place is not None else 0
            self.slot = table.enter(worker.wall(now), route.number, trace, self._raw)
        server = connection.server
        self.cluster, self.server, self.connection = cluster, server, connection
        self.counted = self.sent = True
        self.stats = route.ways[0].stats
        self.tries = 1
        cluster.active += 1
        server.active += 1
        connection.exchange = self
        if route.passthrough:
            connection.transport.write(self._raw)
        else:
            added = added_lines(self, route, server.address, self._line[2], None)
            connection.transport.write(b"%b%b\r\n" % (self._raw[:-2], added))
        self.sent_time = worker.now()
        self.total_deadline = total = now + spec.timeout
        each = spec.retry.per_try_timeout
        worker.wheel.arm(self.downstream, total if each is None else min(total, now + each))

    def end_plain(self, connection: UpstreamConnection, size: int) -> None:
        """The answer, of `size` bytes, is on its way to the client."""
        worker, route, cluster, downstream = self.worker, self.route, self.cluster, self.downstream
        assert route is not None, "it was routed"
        assert cluster is not None, "it was chosen"
        now = worker.now()
        seconds = now - self.start_time
        self.connection = None
        self.over = True
        self.bytes_out = size
        server = connection.server
        server.active -= 1
        connection.served += 1
        if connection.paused or len(server.idle) >= server.room:
            connection.release(now)
        else:
            connection.exchange = None
            server.idle.append(connection)
            worker.wheel.arm(connection, now + cluster.spec.idle_timeout)
        cluster.active -= 1
        if cluster.measured:
            server.measure(seconds, False, now)
        worker.exchanges.discard(self)
        if self.slot >= 0 and worker.inflight is not None:
            worker.inflight.leave(self.slot)
        stats = self.stats
        route.stats.inflight -= 1
        stats.requests += 1
        stats.seconds += seconds
        stats.bytes_in += self.bytes_in
        stats.bytes_out += size
        stats.classes[self.status // 100] += 1
        stats.latency[bucket_of(seconds)] += 1
        stats.own[bucket_of(seconds - self.head_time + self.sent_time)] += 1
        try:
            if worker.access_log is not None or self.place is not None or seconds >= SLOW_SECONDS:
                account(self, seconds)
        finally:
            downstream.finished(close=False, now=now)


def begin(downstream: Downstream, data: bytes) -> bool:  # noqa: PLR0911 - each return is one thing that is not plain
    """Send a plain request on; False if it is none, or cannot go at once."""
    line = _REQUEST.match(data)
    listener = downstream.listener
    if line is None or len(data) > listener.lean_bytes:
        return False
    fields, target = data[line.end() :], line[2]
    known, host = downstream.seen_fields
    if known != fields:
        found = _plain_host(downstream, data, line.end())
        if found is None:
            return False
        host = found
        downstream.seen_fields = (fields, host)
    if b"/." in target or b"/%2" in target:
        return False
    route, worker = listener.plain_route(target), listener.worker
    if route is None or not route.lean or route.held is not None or listener.draining:
        return False
    cluster = route.ways[0].pool
    now = worker.now()
    server = cluster.pick(b"", now)
    if server is None or not server.idle or cluster.active >= cluster.most:
        return False
    connection = server.idle.pop()
    if connection.closing:
        return False
    exchange = LeanExchange(downstream, data, line, host, now)
    downstream.exchange = exchange
    exchange.enter(route)
    limit = route.bucket
    if limit is not None and not limit.take(now) and exchange.over_limit(route):
        server.idle.append(connection)
        return True
    exchange.send_plain(route, cluster, connection)
    return True


def _plain_host(downstream: Downstream, data: bytes, fields: int) -> bytes | None:
    """The host of a request whose header lines, from `fields` on, are whole, sound and plain; None where they are not.

    A client repeats most of them on a connection, so what was found is good for the same bytes after any other line.
    """
    listener = downstream.listener
    if data.find(END) != len(data) - 4 or data.count(b"\n") > listener.limits.headers + 2:
        return None
    host: bytes | None = None
    found = listener.pattern.findall(data, fields - 1)
    if len(found) > 2:
        return None
    for name, value in found:
        low = name.lower()
        if low == b"host" and host is None:
            host = value
        elif low != b"connection" or value.lower() != b"keep-alive":
            return None
    if host is None or not is_host(host):
        return None
    worker = listener.worker
    try:
        worker.request_judge.feed_data(data)
    except httptools.HttpParserError:
        worker.new_judges()
        return None
    return host


def end(exchange: LeanExchange, data: bytes) -> bool:  # noqa: PLR0911 - as above
    """Answer the client with a plain answer that is whole; False if it is none."""
    line = _STATUS.match(data)
    stop = data.find(END)
    if line is None or stop < 0 or line[1] in _EMPTY:
        return False
    size, found = -1, RESPONSE_PATTERN.findall(data, line.end() - 1, stop + 2)
    if len(found) > 2:
        return False
    for name, value in found:
        low = name.lower()
        if low == b"content-length" and size < 0 and value.isdigit() and len(value) < 10:
            size = int(value)
        elif low != b"connection" or value.lower() != b"keep-alive":
            return False
    if size < 0 or stop + 4 + size != len(data):
        return False
    route, connection, downstream = exchange.route, exchange.connection, exchange.downstream
    if route is None or not route.lean_answer or connection is None or connection.heads.held:
        return False
    worker = exchange.worker
    if downstream.listener.draining or downstream.full or connection.full:
        return False
    if data.count(b"\n", 0, stop) > _MAX_ANSWER_LINES:
        return False
    try:
        worker.response_judge.feed_data(data)
    except httptools.HttpParserError:
        worker.new_judges()
        return False
    exchange.head_time = worker.now()
    downstream.transport.write(data)
    exchange.status = int(line[1])
    exchange.end_plain(connection, len(data))
    return True
