"""One request's life: routed, tried, answered, accounted for. The only place where client and upstream meet.

    read -> route -> limit -> filters -> choose -> connect -> send -> answer -> account
                                            ^____ try again ____|

Here is its state and its way in. `forwarding` makes the head that goes upstream, `answering` brings the answer back,
`recovery` decides what becomes of a failure, `accounting` keeps the books.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sentinel_agent.proxy import answering, flags, recovery
from sentinel_agent.proxy.accounting import settle
from sentinel_agent.proxy.filtering import run_filters
from sentinel_agent.proxy.filters import Reply
from sentinel_agent.proxy.forwarding import upstream_head
from sentinel_agent.proxy.recovery import fail
from sentinel_agent.proxy.view import RequestView
from sentinel_agent.proxy.wire.reply import reply

if TYPE_CHECKING:
    import asyncio

    from sentinel_agent.proxy.cluster import ClusterPool, Server
    from sentinel_agent.proxy.downstream import Downstream
    from sentinel_agent.proxy.encoding import Encoding
    from sentinel_agent.proxy.routes import CompiledRoute, Way
    from sentinel_agent.proxy.stats import RouteStats
    from sentinel_agent.proxy.subsets import Subset
    from sentinel_agent.proxy.tracing import Place
    from sentinel_agent.proxy.upstream import UpstreamConnection
    from sentinel_agent.proxy.wire.body import ChunkedBody
    from sentinel_agent.proxy.wire.head import RequestHead, ResponseHead


class Exchange:
    """A request under way. `connection` is the upstream's, once there is one; `waiting` the task in which a filter waits.

    `stats` count it when it is over.
    """

    stats: RouteStats

    answered = answering.answered
    upstream_lost = recovery.upstream_lost

    # Most of these never change in the life of a request: as defaults of the class they cost it nothing.
    route: CompiledRoute | None = None
    cluster: ClusterPool | None = None
    subset: Subset[Server] | None = None
    mark: bytes | None = None
    server: Server | None = None
    connection: UpstreamConnection | None = None
    response: ResponseHead | None = None
    place: Place | None = None
    view: RequestView | None = None
    waiting: asyncio.Task[Any] | None = None
    encoding: Encoding | None = None
    body_done = False
    over = False
    status = 0
    tries = 0
    bytes_out = 0
    first_try = 0.0
    sent_time = 0.0
    head_time = 0.0
    held_body: list[bytes] | None = None
    held_bytes = 0
    body_gone = False
    sent = False
    retrying = False
    counted = False
    stale = 0
    total_deadline = 0.0
    flag: flags.Flag | None = None
    detail = ""
    close_after = False
    dechunk = False
    answer_left = 0
    slot = -1
    answer_chunks: ChunkedBody | None = None

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
        shedding = self.worker.shedding
        if (route.held is not None or shedding.looks) and shedding.refuses(self, route):
            return
        if route.spec.trace:
            self.place = self.worker.tracer.begin(self.head.fields)
        table = self.worker.inflight
        if table is not None:
            trace = self.place.context.trace_id if self.place is not None else 0
            self.slot = table.enter(self.worker.wall(self.start_time), route.number, trace, self.head.raw)
        if route.filters:
            self.view = RequestView(self)
            self.arm()
            route.call(run_filters, self)
            return
        self.proceed()

    def enter(self, route: CompiledRoute) -> None:
        """It is under way on this route."""
        self.route = route
        self.stats = route.stats
        route.stats.inflight += 1
        self.worker.exchanges.add(self)

    def over_limit(self, route: CompiledRoute) -> bool:
        """The route's rate limit is reached: answer so, if the limit is enforced; whether it was answered."""
        spec, limit = route.spec.rate_limit, route.bucket
        assert spec is not None, "it has a limit"
        assert limit is not None, "it has a limit"
        self.downstream.listener.limited += 1
        if spec.mode != "enforce":
            route.stats.count("rate_limit.observed")
            self.observe("rate limit would answer 429")
            return False
        route.stats.count("rate_limit")
        wait = f"{max(1, round(limit.wait()))}"
        self.answer(Reply(429, b"rate limit\n", (("Retry-After", wait),)), flags.RATE_LIMITED)
        return True

    def names(self) -> tuple[str, str, str]:
        """Method, target and host, for the record."""
        head = self.head
        host = head.fields.get(b"host", b"")
        return head.method.decode(), head.target.decode("latin-1"), host.decode("latin-1")

    def trace_words(self) -> str:
        """The trace, for the name of a task."""
        return f" trace={self.place.context.trace_id:032x}" if self.place is not None else ""

    def observe(self, words: str) -> None:
        """Something only looked at what it would have done to this request: said in its record."""
        self.detail = f"{self.detail}; {words}" if self.detail else words

    def onward_head(self, address: str) -> bytes:
        """Its head as a server at `address` would get it; nothing, where the route's rewrite makes no path."""
        assert self.route is not None, "it was routed"
        return upstream_head(self, self.route, address)

    def proceed(self) -> None:
        """The filters let it pass: choose a cluster and try."""
        route = self.route
        assert route is not None, "it was routed"
        direct = route.spec.response
        if direct is not None:
            self.answer(Reply(direct.status, direct.body.encode()))
            return
        way = route.ways[0] if len(route.ways) == 1 else self._choose(route)
        self.cluster = cluster = way.pool
        self.subset = way.subset
        self.stats = way.stats
        if not cluster.may_request():
            fail(self, flags.OVERFLOW, "requests")
            return
        cluster.active += 1
        self.counted = True
        self.first_try = self.start_time
        self.attempt()

    def _choose(self, route: CompiledRoute) -> Way:
        """By the mark that came with the request, if some way has it, else by weight; then it gets the way's mark."""
        color, share = route.color, self.worker.random.random()
        if color is not None and (mark := color.read(self.head.fields.get(color.field))) is not None:
            for way in route.ways:
                if way.mark == mark:
                    return way
            return next(way for way in route.unmarked if share < way.end)
        way = next(way for way in route.ways if share < way.end)
        self.mark = way.mark
        return way

    def body(self, data: bytes, done: bool) -> None:
        """A piece of the request's body, `done` with the last one."""
        self.bytes_in += len(data)
        self.body_done = done
        if self.over:
            return
        if self.view is not None:
            for sink in self.view.sinks:
                sink(data, done)
        limit = self.downstream.listener.spec.limits.buffer
        if not self.body_gone:
            if self.held_body is None:
                self.held_body = []
            self.held_body.append(data)
            self.held_bytes += len(data)
            if self.sent and self.held_bytes > limit:
                self._let_go()
        connection = self.connection
        if connection is not None and self.sent:
            connection.transport.write(data)
            if connection.full:
                self.downstream.pause_reading()
            self.arm()
        elif self.held_bytes > limit:
            self.downstream.pause_reading()

    def pause_sender(self) -> None:
        """The upstream does not read."""
        self.downstream.pause_reading()

    def resume_sender(self) -> None:
        """The upstream reads again."""
        self.downstream.resume_reading()

    def _let_go(self) -> None:
        """The body is too large to be kept for a second try."""
        self.held_body, self.body_gone = None, True

    # -- upstream ------------------------------------------------------------------------------------------------

    def attempt(self) -> None:
        """Choose a server, and send to it or connect first."""
        cluster = self.cluster
        assert cluster is not None, "it was chosen"
        self.tries += 1
        key = cluster.key(self.head, self.downstream.client)
        pick = cluster.pick if self.subset is None else self.subset.pick
        server = pick(key, self.start_time)
        if server is not None and server is self.server and len(cluster.servers) > 1:  # tried just now
            server = pick(key, self.start_time)
        if server is None:
            fail(self, flags.NO_HEALTHY, cluster.name)
            return
        self.server = server
        connection = cluster.take(server) if not self.stale else None
        if connection is not None:
            self.send(connection)
        elif not cluster.may_connect():
            fail(self, flags.OVERFLOW, "connections")
        else:
            self.arm()
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
            data = upstream_head(self, route, server.address)
            if not data:
                fail(self, flags.INTERNAL, "the rewrite makes no path")
                return
        held = self.held_body
        if held:
            data = b"".join((data, *held))
            if self.held_bytes > self.downstream.listener.spec.limits.buffer:
                self._let_go()
        self.sent = True
        self.sent_time = self.worker.now()
        connection.transport.write(data)
        if self.downstream.full:
            connection.pause_reading()
        if connection.full:
            self.downstream.pause_reading()
        else:
            self.downstream.resume_reading()
        self.arm()

    def arm(self) -> None:
        """The next deadline: the client's next piece, the answer's head, or the next piece of a body."""
        route, worker, downstream = self.route, self.worker, self.downstream
        assert route is not None, "it was routed"
        now = worker.now()
        if self.response is not None or not self.body_done:
            worker.wheel.arm(downstream, now + route.spec.idle_timeout)
            return
        if not self.total_deadline:
            self.total_deadline = now + route.spec.timeout
        each = route.spec.retry.per_try_timeout
        worker.wheel.arm(
            downstream, self.total_deadline if each is None else min(self.total_deadline, now + each)
        )

    # -- the end -------------------------------------------------------------------------------------------------

    def answer(self, own: Reply, flag: flags.Flag | None = None, detail: str = "") -> None:
        """Answer in place of an upstream."""
        if self.over:
            return
        self.detail = self.detail or detail
        close = not self.head.keep_alive or not self.body_done or self.downstream.listener.draining
        self.status, self.flag = own.status, flag
        lines = b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in own.headers)
        if not self.head.minor and not close:
            lines += b"Connection: keep-alive\r\n"
        data = reply(
            own.status,
            own.body,
            close=close,
            head_only=self.head.method == b"HEAD",
            headers=lines,
            typed=any(name.lower() == "content-type" for name, _ in own.headers),
        )
        self.bytes_out += len(data)
        self.downstream.transport.write(data)
        self.finish(self.worker.now(), close=close)

    def complete(self, *, reusable: bool) -> None:
        """The answer is whole; its connection goes back to the pool if it is `reusable`."""
        now = self.worker.now()
        if self.encoding is not None and (rest := self.encoding.end()):
            self.downstream.transport.write(rest)
            self.bytes_out += len(rest)
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.server.active -= 1
            connection.served += 1
            if reusable and not connection.full:
                connection.release(now)
            else:
                connection.close()
        self.finish(now, close=self.close_after or not self.body_done)

    def finish(self, now: float, *, close: bool) -> None:
        """It is over; what is left is the books, and the client's next request unless `close`."""
        if self.over:
            return
        self.over = True
        if self.waiting is not None:
            self.waiting.cancel()
        if self.encoding is not None:
            self.encoding.drop()
        try:
            settle(self, now)
        finally:  # a fault of ours in the books must not leave the client waiting
            self.downstream.finished(close=close, now=now)
