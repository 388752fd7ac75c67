"""One request's life: routed, tried, answered, accounted for. The only place where client and upstream meet.

    read -> route -> limit -> filters -> choose -> connect -> send -> answer -> account
                                            ^____ try again ____|

Until the answer's head is on its way to the client, a failure may be tried again or becomes an answer of ours with a
flag. After that the client's connection is broken off, so that it cannot take a part for the whole.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from sentinel_agent.proxy import flags
from sentinel_agent.proxy.filters import Reply
from sentinel_agent.proxy.stats import bucket
from sentinel_agent.proxy.tunnel import join_upgraded
from sentinel_agent.proxy.view import RequestView, ResponseView
from sentinel_agent.proxy.wire.body import ChunkedBody
from sentinel_agent.proxy.wire.edit import lines_pattern, request_head, response_head
from sentinel_agent.proxy.wire.faults import WireError
from sentinel_agent.proxy.wire.head import ResponseHead, parse_response
from sentinel_agent.proxy.wire.reply import reply

if TYPE_CHECKING:
    from sentinel_agent.proxy.cluster import ClusterPool, Server
    from sentinel_agent.proxy.downstream import Downstream
    from sentinel_agent.proxy.routes import CompiledRoute
    from sentinel_agent.proxy.tracing import Place
    from sentinel_agent.proxy.upstream import UpstreamConnection
    from sentinel_agent.proxy.wire.head import RequestHead

log = logging.getLogger(__name__)

IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"))
"""RFC 9110 section 9.2.2: what may be sent twice."""
_TRANSFER_ENCODING = lines_pattern((b"transfer-encoding",))
_JOIN_BYTES = 16 * 1024
_STALE_TRIES = 2
_GATEWAY = (502, 503, 504)


class Exchange:
    """A request under way. `connection` is the upstream's, once there is one."""

    # Most of these never change in the life of a request: as defaults of the class they cost it nothing.
    route: CompiledRoute | None = None
    cluster: ClusterPool | None = None
    server: Server | None = None
    connection: UpstreamConnection | None = None
    response: ResponseHead | None = None
    place: Place | None = None
    view: RequestView | None = None
    body_done = False
    over = False
    status = 0
    tries = 0
    bytes_out = 0
    first_try = 0.0
    sent_time = 0.0
    head_time = 0.0
    _held: list[bytes] | None = None
    _held_bytes = 0
    _gone = False
    _sent = False
    _retrying = False
    _counted = False
    _stale = 0
    _total = 0.0
    _flag: flags.Flag | None = None
    _detail = ""
    _close = False
    _dechunk = False
    _answer_left = 0
    slot = -1
    _answer_chunks: ChunkedBody | None = None

    def __init__(self, downstream: Downstream, head: RequestHead) -> None:
        self.downstream = downstream
        self.worker = downstream.listener.worker
        self.head = head
        self.start_time = self.worker.now()
        self.bytes_in = len(head.raw)

    # -- on the way in -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Route the request, and send it on or answer it."""
        listener = self.downstream.listener
        route = listener.table.match(self.head)
        if route is None:
            self.answer(Reply(404, b"no route matches\n"), flags.NO_ROUTE)
            return
        self.enter(route)
        limit = route.bucket
        if limit is not None and not limit.take(self.start_time) and self.over_limit(route):
            return
        held = route.held
        if held is not None and route.stats.inflight > held.base and self.worker.shed(self, route):
            return
        if route.spec.trace:
            self.place = self.worker.tracer.begin(self.head.fields)
        table = self.worker.inflight
        if table is not None:
            trace = self.place.context.trace_id if self.place is not None else 0
            self.slot = table.enter(self.worker.wall(self.start_time), route.number, trace, self.head.raw)
        if route.hooks:
            self.view = RequestView(self)
            self._arm()
            self.worker.run_filters(self, self.view)
            return
        self.proceed()

    def enter(self, route: CompiledRoute) -> None:
        """It is under way on this route."""
        self.route = route
        route.stats.inflight += 1
        self.worker.exchanges.add(self)

    def over_limit(self, route: CompiledRoute) -> bool:
        """The route's rate limit is reached: answer so, if the limit is enforced; whether it was answered."""
        spec, limit = route.spec.rate_limit, route.bucket
        assert spec is not None, "it has a limit"
        assert limit is not None, "it has a limit"
        self.downstream.listener.limited += 1
        if spec.mode != "enforce":
            return False
        wait = b"%d" % max(1, round(limit.wait()))
        self.answer(Reply(429, b"rate limit\n", ((b"Retry-After", wait),)), flags.RATE_LIMITED)
        return True

    def names(self) -> tuple[str, str, str]:
        """Method, target and host, for the record."""
        head = self.head
        host = head.fields.get(b"host", b"")
        return head.method.decode(), head.target.decode("latin-1"), host.decode("latin-1")

    def proceed(self) -> None:
        """The filters let it pass: choose a cluster and try."""
        route = self.route
        assert route is not None, "it was routed"
        direct = route.spec.response
        if direct is not None:
            self.answer(Reply(direct.status, direct.body.encode()))
            return
        pools = route.pools
        if len(pools) == 1:
            cluster = pools[0][1]
        else:
            share = self.worker.random.random()
            cluster = next(pool for end, pool in pools if share < end)
        self.cluster = cluster
        if cluster.full:
            self._fail(flags.OVERFLOW, "requests")
            return
        cluster.active += 1
        self._counted = True
        self.first_try = self.start_time
        self._try()

    def body(self, data: bytes, done: bool) -> None:
        """A piece of the request's body, `done` with the last one."""
        self.bytes_in += len(data)
        self.body_done = done
        if self.over:
            return
        limit = self.downstream.listener.spec.limits.buffer
        if not self._gone:
            if self._held is None:
                self._held = []
            self._held.append(data)
            self._held_bytes += len(data)
            if self._sent and self._held_bytes > limit:
                self._let_go()
        connection = self.connection
        if connection is not None and self._sent:
            connection.transport.write(data)
            if connection.full:
                self.downstream.pause_reading()
            self._arm()
        elif self._held_bytes > limit:
            self.downstream.pause_reading()

    def _let_go(self) -> None:
        """The body is too large to be kept for a second try."""
        self._held, self._gone = None, True

    # -- upstream ------------------------------------------------------------------------------------------------

    def _try(self) -> None:
        cluster = self.cluster
        assert cluster is not None, "it was chosen"
        self.tries += 1
        key = cluster.key(self.head, self.downstream.client)
        server = cluster.pick(key, self.start_time)
        if server is not None and server is self.server and len(cluster.servers) > 1:  # tried just now
            server = cluster.pick(key, self.start_time)
        if server is None:
            self._fail(flags.NO_HEALTHY, cluster.name)
            return
        self.server = server
        connection = cluster.take(server) if not self._stale else None
        if connection is not None:
            self.send(connection)
        elif not cluster.may_connect:
            self._fail(flags.OVERFLOW, "connections")
        else:
            self._arm()
            self.worker.connect(self, cluster, server)

    def send(self, connection: UpstreamConnection) -> None:
        """A connection is there: the head and what there is of the body go out."""
        route, server = self.route, connection.server
        assert route is not None, "it was routed"
        self.connection = connection
        connection.exchange = self
        server.active += 1
        if route.passthrough and self.head.as_it_is:
            data = self.head.raw
        else:
            data = self._upstream_head(route, server)
            if not data:
                self._fail(flags.INTERNAL, "the rewrite makes no path")
                return
        held = self._held
        if held:
            data = b"".join((data, *held))
            if self._held_bytes > self.downstream.listener.spec.limits.buffer:
                self._let_go()
        self._sent = True
        self.sent_time = self.worker.now()
        connection.transport.write(data)
        if self.downstream.full:
            connection.pause_reading()
        if connection.full:
            self.downstream.pause_reading()
        else:
            self.downstream.resume_reading()
        self._arm()

    def _upstream_head(self, route: CompiledRoute, server: Server) -> bytes:
        head = self.head
        fields = head.fields
        came = fields.get(b"x-forwarded-for") if self.downstream.listener.spec.trust_forwarded else None
        added = self.added_lines(route, server, head.target, came, b"x-request-id" in fields)
        removed = None if route.removed.isdisjoint(fields) else route.removed_pattern
        view = self.view
        if view is not None and view.edits:
            added += view.lines()
            removed = lines_pattern((*route.removed, *view.names()))
        target = route.rewritten(head.target)
        if target == b"":
            return b""
        host = route.spec.host_rewrite.encode() if route.spec.host_rewrite is not None else None
        if host is None and b"host" not in fields:
            host = server.address.encode()
        upgrade = head.upgrade
        return request_head(
            head,
            target=target,
            host=host,
            removed=removed,
            added=added,
            upgrade=upgrade if upgrade and upgrade.decode("latin-1") in route.spec.upgrades else None,
        )

    def added_lines(
        self, route: CompiledRoute, server: Server, target: bytes, came: bytes | None, has_id: bool = False
    ) -> bytes:
        """The header lines that the upstream gets from us; `came` is the chain of proxies before us, where we trust it."""
        downstream, place = self.downstream, self.place
        added, spec = route.added, route.spec
        if spec.forwarded:
            chain = downstream.forwarded if came is None else b"%b, %b" % (came, downstream.forwarded)
            scheme = downstream.listener.scheme
            added += b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (chain, scheme)
        if spec.request_id and not has_id:
            number = place.context.trace_id if place else self.worker.random.getrandbits(128)
            added += b"X-Request-Id: %032x\r\n" % number
        if place is not None:
            added += self.worker.tracer.lines(place, target, server.address)
        return added

    def _arm(self) -> None:
        """The next deadline: the client's next piece, the answer's head, or the next piece of a body."""
        route, worker, downstream = self.route, self.worker, self.downstream
        assert route is not None, "it was routed"
        now = worker.now()
        if self.response is not None or not self.body_done:
            worker.wheel.arm(downstream, now + route.spec.idle_timeout)
            return
        if not self._total:
            self._total = now + route.spec.timeout
        each = route.spec.retry.per_try_timeout
        worker.wheel.arm(downstream, self._total if each is None else min(self._total, now + each))

    # -- on the way back -----------------------------------------------------------------------------------------

    def answered(self, data: bytes) -> None:
        """A piece of the upstream's answer."""
        try:
            if self.response is None:
                self._read_head(data)
            else:
                self._relay(b"", data)
        except WireError as error:
            self._upstream_broke(flags.UPSTREAM_FAULT, error.message)
        except Exception as error:
            log.exception("internal fault while an answer was read")
            self._upstream_broke(flags.INTERNAL, f"{type(error).__name__}: {error}")

    def _read_head(self, data: bytes) -> None:
        connection = self.connection
        assert connection is not None, "the answer came from it"
        while True:
            taken = connection.heads.take(data)
            if taken is None:
                return
            raw, data = taken
            response = parse_response(raw, self.head.method)
            if response.status >= 200 or response.status == 101:
                break
            if self.head.minor:
                self.downstream.transport.write(raw)
                self.bytes_out += len(raw)
        if response.status == 101:
            self._switch(response, data)
        elif not self._retry_status(response.status):
            self._begin(response, data)

    def _begin(self, response: ResponseHead, rest: bytes) -> None:
        route, head = self.route, self.head
        assert route is not None, "it was routed"
        self.response = response
        self.status = response.status
        self.head_time = self.worker.now()
        close = self._close = (
            not head.keep_alive or response.until_close or not self.body_done or self.worker.draining
        )
        removed, added = route.response_removed, route.response_added
        if response.chunked:
            self._answer_chunks = ChunkedBody(502)
            if not head.minor:
                self._dechunk = self._close = close = True
                removed = _TRANSFER_ENCODING if removed is None else removed
        else:
            self._answer_left = response.length or 0
        if self.view is not None:
            view = ResponseView(response)
            for hooks in route.hooks:
                if hooks.response is not None:
                    hooks.response(self.view, view)
            if view.edits:
                added += view.lines()
                removed = lines_pattern(view.names())
        out = response_head(response, close=close, minor=head.minor, removed=removed, added=added)
        if self._dechunk and removed is not _TRANSFER_ENCODING:
            out = _TRANSFER_ENCODING.sub(b"", out)
        self._relay(out, rest)

    def _relay(self, out: bytes, data: bytes) -> None:
        """Hand on a piece of the answer's body, after `out`; end the exchange with the last piece."""
        response = self.response
        assert response is not None, "its head was read"
        extra = False
        if self._answer_chunks is not None:
            payload: list[bytes] | None = [] if self._dechunk else None
            end = self._answer_chunks.feed(data, 0, payload)
            done = self._answer_chunks.done
            if end < len(data):
                data, extra = data[:end], True
            if payload is not None:
                data = b"".join(payload)
        elif response.until_close:
            done = False
        else:
            left = self._answer_left
            if len(data) > left:
                data, extra = data[:left], True
            left = self._answer_left = left - len(data)
            done = not left
        transport = self.downstream.transport
        if not out:
            transport.write(data)
        elif len(data) <= _JOIN_BYTES:
            data = out + data
            transport.write(data)
        else:
            transport.write(out)
            transport.write(data)
            self.bytes_out += len(out)
        self.bytes_out += len(data)
        if done:
            self._complete(reusable=response.keep_alive and self.body_done and not extra)
        else:
            self._arm()

    def _complete(self, *, reusable: bool) -> None:
        now = self.worker.now()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.server.active -= 1
            connection.served += 1
            if reusable and not connection.full:
                connection.release(now)
            else:
                connection.close()
        self._finish(now, close=self._close or not self.body_done)

    def _switch(self, response: ResponseHead, rest: bytes) -> None:
        """101: from here on bytes go both ways, whatever they are."""
        wanted, route = self.head.upgrade, self.route
        assert route is not None, "it was routed"
        if wanted is None or wanted.decode("latin-1") not in route.spec.upgrades or not self.body_done:
            raise WireError(502, "the upstream changed to a protocol that nobody asked for")
        connection, downstream = self.connection, self.downstream
        assert connection is not None, "the answer came from it"
        self.response, self.status, self.head_time = response, 101, self.worker.now()
        self.bytes_out += len(response.raw)
        connection.exchange = None
        self.connection = None
        join_upgraded(self, downstream, connection, response.raw + rest)

    # -- what goes wrong -----------------------------------------------------------------------------------------

    def connect_failed(self, detail: str) -> None:
        """No connection came about."""
        if not self.over:
            self._failed(flags.CONNECT_FAILED, detail, retry=self._wants("connect"))

    def upstream_lost(self, exc: Exception | None) -> None:
        """The upstream's connection is gone."""
        response, connection = self.response, self.connection
        if response is not None and response.until_close and exc is None:
            self._complete(reusable=False)
            return
        detail = "" if exc is None else str(exc)
        if response is not None:
            self._upstream_broke(flags.CONNECTION_ENDED, detail)
            return
        idempotent = self.head.method in IDEMPOTENT
        untouched = connection is not None and not connection.heads.held
        if (
            untouched
            and idempotent
            and connection is not None
            and connection.served
            and self._stale < _STALE_TRIES
        ):
            self._stale += 1  # it was closing while we chose it: that is no failure of the server
            self._drop_connection()
            if not self._gone:
                self.tries -= 1
                self._try()
                return
        self._failed(flags.CONNECTION_ENDED, detail, retry=idempotent and untouched and self._wants("reset"))

    def expired(self, now: float) -> None:
        """A deadline has passed: whose, depends on what is awaited."""
        if self.response is not None:
            whose = flags.CLIENT_TIMEOUT if self.downstream.full else flags.UPSTREAM_TIMEOUT
            self._upstream_broke(whose, "silence inside the answer's body")
        elif not self.body_done and not (self.connection is not None and self.connection.full):
            self.refused(flags.CLIENT_TIMEOUT, 408, "the body did not come in time")
        else:
            again = 0 < now < self._total and self.head.method in IDEMPOTENT
            self._failed(flags.UPSTREAM_TIMEOUT, "", retry=again)

    def client_left(self) -> None:
        """The client's connection is gone."""
        if self.over:
            return
        self._drop_connection()
        self._flag = flags.CLIENT_LEFT
        self.status = self.status or flags.CLIENT_LEFT.status
        self._finish(self.worker.now(), close=True)

    def refused(self, flag: flags.Flag, status: int, message: str) -> None:
        """The request broke the protocol after its head was read, or the proxy has a fault."""
        if self.over:
            return
        self.body_done = False
        if self.response is not None:
            self._upstream_broke(flag, message)
            return
        self._drop_connection()
        self._detail = message
        self.answer(Reply(status, f"{message}\n".encode()), flag)

    def _wants(self, what: str) -> bool:
        return self.route is not None and what in self.route.spec.retry.on

    def _retry_status(self, status: int) -> bool:
        """Try again for this status, if that was asked for; whether it was done."""
        if status < 500 or not (self._wants("5xx") or (status in _GATEWAY and self._wants("gateway_error"))):
            return False
        if not self._may_retry():
            return False
        self._drop_connection(failed=True)
        self._again()
        return True

    def _may_retry(self) -> bool:
        route, cluster = self.route, self.cluster
        if route is None or cluster is None or self._gone or self.over or self.worker.draining:
            return False
        if self.tries > route.spec.retry.attempts:
            return False
        return self._retrying or cluster.may_retry

    def _again(self) -> None:
        assert self.cluster is not None, "it was tried before"
        if not self._retrying:
            self._retrying = True
            self.cluster.retries += 1
        self._try()

    def _failed(self, flag: flags.Flag, detail: str, *, retry: bool) -> None:
        self._drop_connection(failed=True)
        if retry and self._may_retry():
            self._again()
        else:
            self._fail(flag, detail)

    def _fail(self, flag: flags.Flag, detail: str) -> None:
        self._drop_connection()
        self._detail = detail
        self.answer(Reply(flag.status, f"{flag.words}\n".encode()), flag)

    def _upstream_broke(self, flag: flags.Flag, detail: str) -> None:
        """A fault of the upstream, before or in the middle of its answer."""
        if self.over:
            return
        if self.response is None:
            self._failed(flag, detail, retry=False)
            return
        self._drop_connection(failed=True)
        self._flag, self._detail = flag, detail
        self.downstream.abort()
        self._finish(self.worker.now(), close=True)

    def _drop_connection(self, *, failed: bool = False) -> None:
        connection, self.connection = self.connection, None
        self._sent = False
        if connection is not None:
            connection.server.active -= 1
            if failed and self.cluster is not None and self.cluster.measured:
                now = self.worker.now()
                connection.server.measure(now - self.start_time, True, now)
            connection.close()

    # -- the end -------------------------------------------------------------------------------------------------

    def answer(self, own: Reply, flag: flags.Flag | None = None, detail: str = "") -> None:
        """Answer in place of an upstream."""
        if self.over:
            return
        self._detail = self._detail or detail
        close = not self.head.keep_alive or not self.body_done or self.worker.draining
        self.status, self._flag = own.status, flag
        lines = b"".join(b"%b: %b\r\n" % pair for pair in own.headers)
        if not self.head.minor and not close:
            lines += b"Connection: keep-alive\r\n"
        data = reply(own.status, own.body, close=close, head_only=self.head.method == b"HEAD", headers=lines)
        self.bytes_out += len(data)
        self.downstream.transport.write(data)
        self._finish(self.worker.now(), close=close)

    def _finish(self, now: float, *, close: bool) -> None:
        if self.over:
            return
        self.over = True
        try:
            self.settle(now)
        finally:  # a fault of ours in the books must not leave the client waiting
            self.downstream.finished(close=close, now=now)

    def settle(self, now: float) -> None:
        """Account for the request: breakers, balancers, counters, the record."""
        cluster, route, flag = self.cluster, self.route, self._flag
        if cluster is not None and self._counted:
            cluster.active -= 1
            if self._retrying:
                cluster.retries -= 1
            if cluster.measured and self.server is not None and self.head_time:
                self.server.measure(self.head_time - self.first_try, self.status >= 500, now)
        seconds = now - self.start_time
        if route is not None:
            stats = route.stats
            stats.inflight -= 1
            self.worker.exchanges.discard(self)
            if self.slot >= 0 and self.worker.inflight is not None:
                self.worker.inflight.leave(self.slot)
            stats.requests += 1
            stats.seconds += seconds
            stats.bytes_in += self.bytes_in
            stats.bytes_out += self.bytes_out
            stats.classes[self.status // 100] += 1
            stats.latency[bucket(int(seconds * 1e6))] += 1
            if self.head_time:  # the proxy's own share: all but the wait for the upstream's head
                own = seconds - (self.head_time - self.sent_time)
                stats.own[bucket(int(own * 1e6))] += 1
            if flag is not None:
                stats.flags[flag.code] = stats.flags.get(flag.code, 0) + 1
                stats.self_failed += flag.ours
            if self.status >= 500 or (flag is not None and flag.code in _BROKEN):
                stats.errors += 1
        self.worker.account(self, seconds, flag, self._detail)


_BROKEN: Final = frozenset(
    (flags.CONNECTION_ENDED.code, flags.UPSTREAM_FAULT.code, flags.UPSTREAM_TIMEOUT.code)
)
