"""What the proxy does for well-behaved clients and servers: routing, editing, retries, filters, relays."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.proxy.filters import Hooks, Reply, Request, Response
from tests.proxy.support import (
    GET,
    OK,
    answering,
    bound,
    install,
    parse_text,
    proxy,
    read_head,
    serving,
    status_of,
    upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

PASS = "trace: false, forwarded: false, request_id: false"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the request's head and body, again and again."""
    while True:
        head = await read_head(reader)
        length = re.search(rb"(?i)content-length: (\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b%b" % (len(head + body), head, body))


async def test_a_pass_through_route_changes_no_byte(tmp_path: Path) -> None:
    """Of the request and of the answer, order, case and spacing included."""
    heads: list[bytes] = []
    answer = b"HTTP/1.1 200 Fine, thanks\r\nX-ODD:   1\r\ncontent-LENGTH: 2\r\n\r\nok"
    sent = b"GET /a?b HTTP/1.1\r\nX-Odd:  2 \r\nhOsT: h\r\n\r\n"
    async with (
        upstream(answering(answer, heads=heads)) as port,
        proxy(tmp_path, port, route=PASS) as running,
        running.connection() as (reader, writer),
    ):
        for _ in range(3):
            writer.write(sent)
            assert await reader.readexactly(len(answer)) == answer
    assert heads == [sent] * 3
    assert running.worker.http[0].routes[0].passthrough


async def test_the_full_path_adds_what_it_says(tmp_path: Path) -> None:
    """X-Forwarded-*, a request id, a trace that begins here; the client's own X-Forwarded-For is not believed."""
    async with upstream(echo) as port, proxy(tmp_path, port) as running:
        answer = await running.ask(
            b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 9.9.9.9\r\nConnection: close, x-drop\r\nX-Drop: 1\r\n\r\n"
        )
        line = (await running.log())[0]
    head = answer.split(b"\r\n\r\n", 1)[1]
    assert b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n" in head
    assert b"9.9.9.9" not in head
    assert b"rop" not in head
    assert f"X-Request-Id: {line['trace']}".encode() in head
    assert f"traceparent: 00-{line['trace']}-".encode() in head


async def test_a_trusted_chain_is_continued(tmp_path: Path) -> None:
    """With trust_forwarded the client's address is added to what came."""
    async with upstream(echo) as port, proxy(tmp_path, port, listener="trust_forwarded: true") as running:
        answer = await running.ask(GET[:-2] + b"X-Forwarded-For: 9.9.9.9\r\n\r\n")
    assert b"X-Forwarded-For: 9.9.9.9, 127.0.0.1\r\n" in answer


async def test_a_trace_goes_on_in_every_format(tmp_path: Path) -> None:
    """One trace in W3C, B3 and sw8; the span that the upstream is told is ours, its record names our parent."""
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    more = "tracing: {write: [tracecontext, b3, b3multi, sw8]}"
    async with upstream(echo) as port, proxy(tmp_path, port, more=more) as running:
        answer = await running.ask(
            GET[:-2] + f"traceparent: 00-{trace}-{parent}-01\r\nb3: 0\r\n\r\n".encode()
        )
        line = (await running.log())[0]
        (record,) = running.kept
    assert line["trace"] == trace
    assert (record.parent, record.sampled) == (parent, True)
    span = re.search(rb"traceparent: 00-%b-([0-9a-f]{16})-01" % trace.encode(), answer)
    assert span is not None
    assert span[1].decode() == record.client_span
    assert b"b3: %b-%b-1\r\n" % (trace.encode(), span[1]) in answer
    assert b"X-B3-SpanId: %b\r\n" % span[1] in answer
    assert answer.count(b"b3: ") == 1
    assert b"sw8: 1-" in answer
    assert record.span not in (record.client_span, parent)


ROUTES = """
listeners:
  - name: web
    address: 127.0.0.1:0
    routes:
      - {name: host, match: {hosts: [a.example], prefix: /}, response: {status: 201}}
      - {name: wild, match: {hosts: ["*.b.example"]}, response: {status: 202}}
      - {name: exact, match: {exact: /exact}, response: {status: 203}}
      - {name: method, match: {prefix: /m, methods: [post]}, response: {status: 205}}
      - {name: header, match: {prefix: /h, headers: [{name: X-Ring, exact: "1"}]}, response: {status: 206}}
      - {name: no-header, match: {prefix: /h, headers: [{name: x-ring, invert: true}]}, response: {status: 207}}
      - {name: query, match: {prefix: /q, query: [{name: v, exact: "2"}]}, response: {status: 208}}
      - {name: regex, match: {regex: '/r/(\\d+)/x'}, response: {status: 209}}
      - {name: prefix, match: {prefix: /p}, response: {status: 210, body: "words\\n"}}
clusters: []
access_log: {path: LOG}
"""


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        (b"GET /x", b"Host: a.example", 201),
        (b"GET /x", b"Host: A.EXAMPLE:80", 201),
        (b"GET /x", b"Host: x.y.b.example", 202),
        (b"GET /x", b"Host: b.example", 404),
        (b"GET /exact?x=1", b"Host: h", 203),
        (b"GET /exactly", b"Host: h", 404),
        (b"POST /m", b"Host: h", 205),
        (b"GET /m", b"Host: h", 404),
        (b"GET /h", b"Host: h\r\nx-RING: 1", 206),
        (b"GET /h", b"Host: h\r\nX-Ring: 2", 404),
        (b"GET /h", b"Host: h", 207),
        (b"GET /q?a=1&v=2", b"Host: h", 208),
        (b"GET /q?v=3", b"Host: h", 404),
        (b"GET /r/12/x?y", b"Host: h", 209),
        (b"GET /r/1a/x", b"Host: h", 404),
        (b"GET /p/../p/x", b"Host: h", 210),
        (b"GET /x/../../p", b"Host: h", 210),
    ],
)
async def test_the_first_route_that_matches_wins(
    tmp_path: Path, request_line: bytes, headers: bytes, status: int
) -> None:
    """By host, path, method, header, query; dot segments do not walk around a route."""
    log = tmp_path / "log"
    async with serving(parse_text(ROUTES.replace("LOG", str(log))), log) as running:
        answer = await running.ask(
            b"%b HTTP/1.1\r\n%b\r\nConnection: close\r\n\r\n" % (request_line, headers)
        )
        assert status_of(answer) == status
        if status == 404:
            assert (await running.log())[0]["flags"] == "NR"


async def test_a_head_request_gets_no_body(tmp_path: Path) -> None:
    """From an upstream (which gives the length of what it does not send) and from the proxy itself."""
    async with (
        upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")) as port,
        proxy(tmp_path, port) as running,
        running.connection() as (reader, writer),
    ):
        for _ in range(2):
            writer.write(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert b"Content-Length: 5000" in await read_head(reader)
        assert len(running.worker.clusters["back"].servers[0].idle) == 1


async def test_continue_comes_from_the_upstream(tmp_path: Path) -> None:
    """Expect goes on; the client gets the upstream's 100 before it sends anything."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        assert b"Expect: 100-continue" in head
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(5)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)

    async with (
        upstream(script) as port,
        proxy(tmp_path, port) as running,
        running.connection() as (reader, writer),
    ):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert await read_head(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert status_of(await read_head(reader)) == 200
        assert await reader.readexactly(5) == b"hello"


async def test_an_http_1_0_client_gets_no_chunks(tmp_path: Path) -> None:
    """What the upstream sends in chunks ends with the connection for it."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"
    async with upstream(answering(answer)) as port, proxy(tmp_path, port) as running:
        got = await running.ask(b"GET / HTTP/1.0\r\n\r\n")
    head, _, body = got.partition(b"\r\n\r\n")
    assert body == b"abcdef"
    assert b"ransfer" not in head


async def test_a_body_that_ends_with_the_connection(tmp_path: Path) -> None:
    """Is passed on, and the client is told by the same means."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nall of it")

    async with upstream(script) as port, proxy(tmp_path, port) as running:
        got = await running.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert got == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it"


async def test_a_connection_that_was_closing_costs_nobody_a_request(tmp_path: Path) -> None:
    """An upstream that closes after each answer without saying so: every request is served."""
    served = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await read_head(reader)
        served += 1
        writer.write(OK)
        await read_head(reader)  # the next request has come, and is dropped

    async with (
        upstream(script) as port,
        proxy(tmp_path, port) as running,
        running.connection() as (reader, writer),
    ):
        for _ in range(5):
            writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert status_of(await read_head(reader)) == 200
            await reader.readexactly(2)
    assert served == 5


@pytest.mark.parametrize(
    ("method", "retry", "status", "tries"),
    [
        ("GET", "attempts: 2, on: [5xx]", 200, 3),
        ("GET", "attempts: 1, on: [5xx]", 500, 2),
        ("GET", "attempts: 2, on: [gateway_error]", 500, 1),
        ("POST", "attempts: 2, on: [5xx]", 200, 3),
        ("GET", "attempts: 0, on: [5xx]", 500, 1),
    ],
)
async def test_retries(tmp_path: Path, method: str, retry: str, status: int, tries: int) -> None:
    """As often as allowed, for what was asked; the body is sent again."""
    bodies: list[bytes] = []
    answers = [b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"] * 2 + [OK]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_head(reader)
            bodies.append(await reader.readexactly(3))
            writer.write(answers[len(bodies) - 1])

    async with upstream(script) as port, proxy(tmp_path, port, route=f"retry: {{{retry}}}") as running:
        answer = await running.ask(
            f"{method} / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc".encode()
        )
        line = (await running.log())[0]
        assert (status_of(answer), line["tries"]) == (status, tries)
        assert bodies == [b"abc"] * tries
        assert running.worker.clusters["back"].retries == 0


async def test_a_retry_goes_to_another_server(tmp_path: Path) -> None:
    """One of two refuses connections: nobody notices."""
    dead = bound()
    dead_port = dead.getsockname()[1]
    dead.close()
    async with upstream(answering(OK)) as port, proxy(tmp_path, dead_port, port) as running:
        for _ in range(6):
            assert status_of(await running.ask(GET)) == 200


async def test_retries_have_a_budget(tmp_path: Path) -> None:
    """With none left, a failure stays a failure: a storm does not double itself."""
    breaker = "circuit_breaker: {retry_ratio: 0, retries_at_least: 0}"
    async with proxy(tmp_path, 1, cluster=breaker, route="retry: {attempts: 5}") as running:
        await running.ask(GET)
        assert (await running.log())[0]["tries"] == 1


async def test_a_full_cluster_refuses_at_once(tmp_path: Path) -> None:
    """Circuit breaker: the second request gets 503 and UO while the first is under way."""
    release = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await release.wait()
        writer.write(OK)

    async with (
        upstream(script) as port,
        proxy(tmp_path, port, cluster="circuit_breaker: {requests: 1}") as running,
    ):
        first = asyncio.create_task(running.ask(GET))
        async with asyncio.timeout(10):
            while not running.worker.exchanges:
                await asyncio.sleep(0.01)
        assert status_of(await running.ask(GET)) == 503
        assert (await running.log())[0]["flags"] == "UO"
        release.set()
        assert status_of(await first) == 200


async def test_a_rate_limit_enforces_or_observes(tmp_path: Path) -> None:
    """429 with Retry-After; in observe mode the same count, and everybody passes."""
    for mode, refused in (("enforce", 3), ("observe", 0)):
        limit = f"rate_limit: {{rate: 0.01, burst: 2, mode: {mode}}}"
        async with upstream(answering(OK)) as port, proxy(tmp_path, port, route=limit) as running:
            answers = [await running.ask(GET) for _ in range(5)]
            assert [status_of(answer) for answer in answers].count(429) == refused
            assert running.worker.http[0].limited == 3
            if refused:
                assert b"Retry-After: " in answers[-1]


async def test_weights_share_the_requests(tmp_path: Path) -> None:
    """Three to one over 400 requests, within six standard deviations."""
    log = tmp_path / "log"
    async with upstream(answering(OK)) as one, upstream(answering(OK.replace(b"ok", b"OK"))) as two:
        config = parse_text(f"""
listeners:
  - name: web
    address: 127.0.0.1:0
    routes: [{{name: all, clusters: [{{name: one, weight: 3}}, {{name: two, weight: 1}}]}}]
clusters:
  - {{name: one, endpoints: [{{address: "127.0.0.1:{one}"}}]}}
  - {{name: two, endpoints: [{{address: "127.0.0.1:{two}"}}]}}
""")
        async with serving(config, log) as running, running.connection() as (reader, writer):
            count = 0
            for _ in range(400):
                writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                await read_head(reader)
                count += await reader.readexactly(2) == b"ok"
    assert 248 <= count <= 352


@pytest.mark.parametrize(
    ("route", "sent", "expected"),
    [
        ("match: {prefix: /api}, prefix_rewrite: /v2", b"/api/x?y", b"GET /v2/x?y HTTP/1.1\r\nHost: h\r\n"),
        (
            "regex_rewrite: {pattern: '^/u/(\\d+)', substitution: '/user?id=\\1'}",
            b"/u/7",
            b"GET /user?id=7 HTTP/1.1\r\nHost: h\r\n",
        ),
        ("host_rewrite: real.example", b"/", b"GET / HTTP/1.1\r\nHost: real.example\r\n"),
        ("request_headers: {set: {X-Add: v}, remove: [X-Old]}", b"/", b"X-Add: v\r\n"),
    ],
    ids=["prefix", "regex", "host", "headers"],
)
async def test_rewrites(tmp_path: Path, route: str, sent: bytes, expected: bytes) -> None:
    """Prefix, expression, host, headers."""
    async with upstream(echo) as port, proxy(tmp_path, port, route=route) as running:
        got = await running.ask(
            b"GET %b HTTP/1.1\r\nHost: h\r\nX-Old: 1\r\nX-Add: 0\r\nConnection: close\r\n\r\n" % sent
        )
    assert expected in got
    if b"X-Add" in expected:
        assert b"X-Old" not in got
        assert b"X-Add: 0" not in got


async def test_response_headers_are_edited(tmp_path: Path) -> None:
    """Set replaces, remove takes out."""
    answer = b"HTTP/1.1 200 OK\r\nServer: secret\r\nX-Powered-By: p\r\nContent-Length: 2\r\n\r\nok"
    route = "response_headers: {set: {server: proxy}, remove: [x-powered-by]}"
    async with upstream(answering(answer)) as port, proxy(tmp_path, port, route=route) as running:
        got = await running.ask(GET)
    assert b"server: proxy\r\n" in got
    assert b"secret" not in got
    assert b"owered" not in got


async def test_filters_see_edit_and_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync and async hooks in order, a reply in place of the upstream's, an edit both ways, a fault that stays one request's."""
    seen: list[bytes] = []

    def first(request: Request) -> Reply | None:
        seen.append(request.target)
        request.set_header("X-First", "1")
        if request.target == b"/fault":
            raise RuntimeError("a filter's own")
        return Reply(403, b"no\n") if request.header("x-forbidden") else None

    async def second(request: Request) -> Reply | None:
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        names.append(task.get_name())
        return Reply(202) if request.target == b"/second" else None

    def response(request: Request, answer: Response) -> None:
        answer.set_header("X-Status", str(answer.status))

    names: list[str] = []
    install(monkeypatch, a=Hooks(request=first, response=response), b=Hooks(request=second))
    for use in ("{name: a}", "{name: a}, {name: b}"):
        async with upstream(echo) as port, proxy(tmp_path, port, route=f"filters: [{use}]") as running:
            got = await running.ask(GET)
            assert b"X-Status: 200\r\n" in got
            assert b"X-First: 1\r\n" in got
            assert status_of(await running.ask(GET[:-2] + b"X-Forbidden: 1\r\n\r\n")) == 403
            assert status_of(await running.ask(GET.replace(b"/ ", b"/fault ", 1))) == 500
            assert status_of(await running.ask(GET)) == 200
            if "b}" in use:
                assert status_of(await running.ask(GET.replace(b"/ ", b"/second ", 1))) == 202
    assert any(re.fullmatch(r"GET / route=all trace=[0-9a-f]{32}", name) for name in names)


async def test_a_changed_protocol_is_relayed(tmp_path: Path) -> None:
    """Bytes both ways after 101, those that came with the head too; the log says how many."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        assert b"Connection: Upgrade\r\nUpgrade: websocket\r\n" in head
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello"
        )
        while data := await reader.read(100):
            writer.write(data.upper())

    wish = b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    async with upstream(script) as port, proxy(tmp_path, port) as running:
        async with running.connection() as (reader, writer):
            writer.write(wish + b"early")
            assert status_of(await read_head(reader)) == 101
            assert await reader.readexactly(10) == b"helloEARLY"
            writer.write(b"late")
            assert await reader.readexactly(4) == b"LATE"
        line = (await running.log())[0]
        assert (line["status"], line["bytes_in"]) == (101, len(wish) + 9)
        cluster = running.worker.clusters["back"]
        assert (cluster.active, cluster.connections, cluster.servers[0].active) == (0, 0, 0)


async def test_a_change_that_is_not_allowed_is_not_passed_on(tmp_path: Path) -> None:
    """h2c would open a way around the routes."""
    async with upstream(echo) as port, proxy(tmp_path, port) as running:
        got = await running.ask(
            b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\n\r\n"
        )
    assert b"h2c" not in got
    assert b"HTTP2" not in got


async def test_a_tcp_listener_carries_anything(tmp_path: Path) -> None:
    """Both ways, with a half-closed connection at the end, and a line in the log."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(-1)
        writer.write(gzip.compress(data))

    log = tmp_path / "log"
    async with upstream(script) as port:
        config = parse_text(f"""
listeners: [{{name: raw, address: "127.0.0.1:0", protocol: tcp, cluster: back}}]
clusters: [{{name: back, endpoints: [{{address: "127.0.0.1:{port}"}}]}}]
access_log: {{path: {log}}}
""")
        async with serving(config, log) as running:
            payload = b"\x00\xff" * 200_000
            async with running.connection() as (reader, writer):
                writer.write(payload)
                writer.write_eof()
                assert gzip.decompress(await reader.read(-1)) == payload
            line = (await running.log())[0]
            assert (line["method"], line["bytes_in"]) == ("TCP", len(payload))
            assert running.worker.clusters["back"].connections == 0


async def test_a_stop_lets_requests_under_way_end(tmp_path: Path) -> None:
    """The answer still comes, with Connection: close; new connections are not accepted."""
    release = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await release.wait()
        writer.write(OK)

    async with upstream(script) as port, proxy(tmp_path, port) as running:
        first = asyncio.create_task(running.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"))
        async with asyncio.timeout(10):
            while not running.worker.exchanges:
                await asyncio.sleep(0.01)
        stopping = asyncio.create_task(running.worker.stop(10))
        await asyncio.sleep(0.1)
        release.set()
        answer = await first
        assert status_of(answer) == 200
        assert b"Connection: close" in answer
        await stopping


async def test_counters_add_up(tmp_path: Path) -> None:
    """Requests, classes, errors and bytes by route and cluster; nothing in flight at the end."""
    answers = answering(OK, b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", OK)
    async with upstream(answers) as port, proxy(tmp_path, port) as running:
        for _ in range(4):
            await running.ask(GET)
        route = running.worker.http[0].routes[0]
        stats = route.all_stats["back"]
        assert (stats.requests, stats.errors, stats.self_failed, route.stats.inflight) == (4, 1, 0, 0)
        assert route.stats.requests == 0
        assert stats.classes == [0, 0, 3, 0, 0, 1]
        assert sum(stats.latency) == 4
        lines = await running.log(4)
        assert stats.bytes_out == sum(line["bytes_out"] for line in lines)


async def test_the_log_escapes_what_a_client_writes(tmp_path: Path) -> None:
    """Each line is one JSON document, whatever the path and the host."""
    async with upstream(answering(OK)) as port, proxy(tmp_path, port) as running:
        await running.ask(b"GET /\"\\<x>' HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        (line,) = await running.log()
        assert line["path"] == "/\"\\<x>'"
        assert json.dumps(line)
