"""The short way of plain exchanges against the long way: the same bytes, counters and records."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sentinel_agent.proxy import downstream as downstream_module
from sentinel_agent.proxy.bucket import TokenBucket
from sentinel_agent.proxy.downstream import Downstream
from sentinel_agent.proxy.lean import LeanExchange
from sentinel_agent.proxy.upstream import UpstreamConnection
from sentinel_agent.proxy.worker import Worker
from tests.proxy.support import parse_text

if TYPE_CHECKING:
    from sentinel_agent.proxy.records import RequestRecord

TEXT = """
listeners:
  - name: web
    address: 127.0.0.1:0
    routes:
      - {name: pass, match: {prefix: /pass}, cluster: back, trace: false, forwarded: false, request_id: false}
      - {name: edit, match: {prefix: /edit}, cluster: back, request_headers: {set: {X-A: b}}, response_headers: {remove: [server]}}
      - {name: exact, match: {exact: /exact}, cluster: back}
      - {name: limited, match: {prefix: /limited}, cluster: back, rate_limit: {rate: 0.001, burst: 1}}
      - {name: posts, match: {prefix: /only, methods: [POST]}, cluster: back}
      - {name: rest, match: {prefix: /}, cluster: back}
clusters:
  - {name: back, endpoints: [{address: "127.0.0.1:1"}]}
tracing: {sampling: 50}
"""
CONFIG = parse_text(TEXT)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Wire:
    """A transport that remembers what was written and whether it was ended."""

    def __init__(self) -> None:
        self.written = b""
        self.ended = ""

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, name: str) -> Any:
        return ("10.0.0.1", 5) if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = "eof"

    def close(self) -> None:
        self.ended = "close"

    def abort(self) -> None:
        self.ended = "abort"

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Ledger:
    """Takes the records that the agent would be told."""

    table = None

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def keep(self, record: RequestRecord) -> None:
        self.records.append(record)


def play(exchanges: list[tuple[bytes, list[bytes]]]) -> tuple[Any, ...]:
    """What becomes of requests and answers on one connection each way."""
    now = 1000.0
    ledger = Ledger()
    worker = Worker(CONFIG, {}, tap=cast(Any, ledger))
    worker.now = lambda: now
    worker.random.seed(7)
    worker.tracer._bits = Random(7).getrandbits
    worker.tracer._random = Random(7)
    worker._wall_offset = 0.0
    worker.spawn = lambda work, name: work.close()  # type: ignore[method-assign]  # nobody connects here
    worker.soon = lambda call, *arguments: call(*arguments)  # type: ignore[method-assign]  # at once
    limited = next(route for route in worker.http[0].routes if route.name == "limited")
    limited.bucket = TokenBucket(0.001, 1, now)
    pool = worker.clusters["back"]
    client, server = Wire(), Wire()
    downstream = Downstream(worker.http[0])
    downstream.connection_made(cast(asyncio.Transport, client))
    connection = UpstreamConnection(worker, pool, pool.servers[0])
    connection.connection_made(cast(asyncio.Transport, server))
    pool.servers[0].idle.append(connection)
    lean = 0
    for request, answers in exchanges:
        downstream.data_received(request)
        lean += type(downstream.exchange) is LeanExchange
        for answer in answers:
            now += 0.01
            if not connection.closing:
                connection.data_received(answer)
    stats = [
        [getattr(each, name) for name in each.__slots__]
        for route in worker.http[0].routes
        for each in route.all_stats.values()
    ]
    state = (
        *(client.written, client.ended, server.written, server.ended, stats, ledger.records),
        *(pool.active, pool.servers[0].active, len(pool.servers[0].idle), len(worker.exchanges)),
        downstream.exchange is None,
    )
    return lean, state


_LINES = st.sampled_from(
    [
        *(b"", b"", b"", b"Connection: keep-alive\r\n", b"Connection: close\r\n", b"X-A: c\r\n"),
        *(b"x-forwarded-for: 1\r\n", b"Host: b\r\n", b"Bad : x\r\n", b"Content-Length: 0\r\n"),
        b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
        *(b"Content-Length: 3\r\n\r\nabc", b"Expect: 100-continue\r\n", b"X: a\r\n b\r\n"),
    ]
)
_TARGETS = st.sampled_from(
    [
        b"/",
        b"/pass",
        b"/pass/../x",
        b"/edit",
        b"/exact?q",
        b"/exactly",
        b"/limited",
        b"/only",
        b"/%2e",
        b"*",
        b"/#",
        b"/\xff",
    ]
)
_METHODS = st.sampled_from([b"GET", b"GET", b"GET", b"HEAD", b"DELETE", b"POST", b"OPTIONS", b"get"])


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    version = draw(st.sampled_from([b"1.1"] * 6 + [b"1.0"]))
    host = draw(st.sampled_from([b"Host: h:80\r\n"] * 6 + [b"", b"Host: a b\r\n", b"host:h\r\n"]))
    head = b"%b %b HTTP/%b\r\n%b%b%b" % (
        draw(_METHODS), draw(_TARGETS), version, host, draw(_LINES), draw(_LINES),
    )  # fmt: skip
    return head + draw(st.sampled_from([b"\r\n"] * 8 + [b"", b"\r\nGET /p HTTP/1.1\r\nHost: h\r\n\r\n"]))


@st.composite
def _answers(draw: st.DrawFn) -> list[bytes]:
    status = draw(
        st.sampled_from([b"200 OK"] * 6 + [b"204 No", b"304 Not", b"500 No", b"100 Go", b"404 None", b"20 x"])
    )
    body = draw(st.binary(max_size=20))
    framing = draw(
        st.sampled_from(
            [b"Content-Length: %d\r\n" % len(body)] * 6
            + [b"", b"Content-Length: 5\r\n", b"Content-Length: x\r\n"]
        )
    )
    other = draw(
        st.sampled_from(
            [
                b"Server: s\r\n",
                b"Connection: keep-alive\r\n",
                b"Connection: close\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"X : y\r\n",
            ]
        )
    )
    data = b"HTTP/1.1 %b\r\n%b%b\r\n%b" % (status, other, framing, body)
    cut = draw(st.integers(0, len(data)))
    return draw(
        st.sampled_from(
            [[data], [data], [data], [data[:cut], data[cut:]], [data + b"HTTP/1.1 200 OK\r\n\r\n"], []]
        )
    )


def both(exchanges: list[tuple[bytes, list[bytes]]]) -> tuple[int, Any, Any]:
    """How many went the short way, and what came of them by it and by the long way."""
    lean, short = play(exchanges)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downstream_module, "begin", lambda _downstream, _data: False)
        none, long = play(exchanges)
    assert none == 0
    return lean, short, long


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(_requests(), _answers()), min_size=1, max_size=4))
@example(
    [(b"GET /pass HTTP/1.1\r\nHost: h\r\n\r\n", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"])] * 3
)
@example(
    [
        (
            b"GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nConnection: keep-alive\r\n\r\n",
            [
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\nConnection: keep-alive\r\n\r\n"
            ],
        )
    ]
)
@example([(b"GET / HTTP/1.1\r\n", [])])
@example([(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", [OK]), (b"GET / HTTP/1.1\r\n", [])])
@example([(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", [OK]), (b"POST /only HTTP/1.1\r\nHost: h\r\n\r\n", [OK])])
@example([(b"GET /%b HTTP/1.1\r\nHost: h\r\n\r\n" % (b"x" * 9000), [OK])])
def test_both_ways_come_to_the_same(exchanges: list[tuple[bytes, list[bytes]]]) -> None:
    """Whatever a client and an upstream write, plain or not, whole or cut."""
    _, short, long = both(exchanges)
    assert short == long


@pytest.mark.parametrize("path", [b"/pass", b"/edit", b"/exact", b"/other?x=y"])
def test_plain_exchanges_go_the_short_way(path: bytes) -> None:
    """Otherwise the comparison above would compare nothing, and the figures of the bench would be others."""
    answer = b"HTTP/1.1 404 None\r\nServer: s\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok"
    exchanges = [(b"GET %b HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n" % path, [answer])] * 3
    lean, short, long = both(exchanges)
    assert lean == 3
    assert short == long
    assert short[0].count(b"HTTP/1.1 404") == 3


def test_a_limit_holds_on_the_short_way_too() -> None:
    """The second request is answered 429 and the upstream's connection stays idle."""
    exchanges = [
        (b"GET /limited HTTP/1.1\r\nHost: h\r\n\r\n", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"])
    ]
    exchanges.append((b"GET /limited HTTP/1.1\r\nHost: h\r\n\r\n", []))
    _, short, long = both(exchanges)
    assert short == long
    assert b"HTTP/1.1 429" in short[0]
    assert short[8] == 1
