"""client -> proxy -> service -> proxy -> service: one trace in each header format, every parent right.

The client and the services read and write the headers with code of their own, by the formats' documents; the spans are those
that both proxies told the agent.
"""

from __future__ import annotations

import asyncio
import base64
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest

from sentinel_agent.tap.spans import spans_of
from tests.proxy.support import OK, PATIENCE, parse_text, read_head, serving, upstream
from tests.tap.test_tap import hub_on, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sentinel_agent.core.span import Span
    from sentinel_agent.proxy.records import RequestRecord
    from sentinel_agent.tap.hub import WorkerView

TRACE = "463ac35c9f6413ad48485a3953bb6124"
CLIENT, SERVICE = "a2fb4a1d1a96d312", "0020000000000001"
SW_TRACE = "5b2e.72.16985"
CARRIED = "tracestate: v=1\r\nsw8-correlation: a2V5:dmFsdWU=\r\nbaggage: user=7\r\n"


class Parent(NamedTuple):
    """What a service finds in the headers of a request."""

    trace: str
    span: str
    sampled: str


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def unb64(text: str) -> str:
    return base64.b64decode(text).decode()


def write_w3c(span: str) -> str:
    return f"traceparent: 00-{TRACE}-{span}-01\r\n"


def write_b3(span: str) -> str:
    return f"b3: {TRACE}-{span}-d\r\n"


def write_b3multi(span: str) -> str:
    return f"X-B3-TraceId: {TRACE}\r\nX-B3-SpanId: {span}\r\nX-B3-Sampled: 1\r\n"


def write_sw8(span: str) -> str:
    parts = [
        b64(SW_TRACE),
        b64(f"segment-of-{span}"),
        "3",
        b64("shop"),
        b64("shop-1"),
        b64("/cart"),
        b64("peer:80"),
    ]
    return "sw8: 1-" + "-".join(parts) + "\r\n"


def read_w3c(headers: dict[str, str]) -> Parent:
    version, trace, span, flags = headers["traceparent"].split("-")
    assert version == "00"
    return Parent(trace, span, flags)


def read_b3(headers: dict[str, str]) -> Parent:
    return Parent(*headers["b3"].split("-"))


def read_b3multi(headers: dict[str, str]) -> Parent:
    return Parent(headers["x-b3-traceid"], headers["x-b3-spanid"], headers["x-b3-sampled"])


def read_sw8(headers: dict[str, str]) -> Parent:
    sample, trace, segment, span, *names = headers["sw8"].split("-")
    assert span == "0"
    assert len(names) == 4
    return Parent(unb64(trace), unb64(segment), sample)


FORMATS: dict[str, tuple[Callable[[str], str], Callable[[dict[str, str]], Parent], str, str]] = {
    "tracecontext": (write_w3c, read_w3c, TRACE, "01"),
    "b3": (write_b3, read_b3, TRACE, "d"),
    "b3multi": (write_b3multi, read_b3multi, TRACE, "1"),
    "sw8": (write_sw8, read_sw8, SW_TRACE, "1"),
}


def headers_of(head: bytes) -> dict[str, str]:
    lines = head.decode().split("\r\n")[1:-2]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("kind", FORMATS)
async def test_one_trace_over_two_proxies_and_two_services(tmp_path: Path, kind: str) -> None:
    """Ids, parents and the decision; what is not ours to read (tracestate, correlation, baggage) arrives too."""
    write, read, trace, decision = FORMATS[kind]
    seen: list[dict[str, str]] = []
    told: dict[str, list[RequestRecord]] = {"one": [], "two": []}
    second_port = 0

    async def last(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(headers_of(await read_head(reader)))
        writer.write(OK)

    async def middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A service with a span of its own, which asks the next one through its proxy."""
        seen.append(headers_of(await read_head(reader)))
        asks, answers = await asyncio.open_connection("127.0.0.1", second_port)
        answers.write(f"GET /next HTTP/1.1\r\nHost: next\r\n{write(SERVICE)}{CARRIED}\r\n".encode())
        await read_head(asks)
        answers.close()
        writer.write(OK)

    async with AsyncExitStack() as stack, asyncio.timeout(PATIENCE):
        ports = {}
        for name, service in (("two", last), ("one", middle)):
            port = await stack.enter_async_context(upstream(service))
            folder = tmp_path / name
            folder.mkdir()
            text = f"""
listeners: [{{name: web, address: "127.0.0.1:0", routes: [{{name: {name}, cluster: back}}]}}]
clusters: [{{name: back, endpoints: [{{address: "127.0.0.1:{port}"}}]}}]
tracing: {{sampling: 0, write: [{kind}]}}
"""

            def keep(_: WorkerView, records: tuple[RequestRecord, ...], name: str = name) -> None:
                told[name] += records

            hub = await stack.enter_async_context(hub_on(folder / "nobody-listens.sock"))
            hub.on_records = keep
            running = await stack.enter_async_context(serving(parse_text(text), folder / "access.log"))
            ports[name] = running.port
            second_port = ports["two"]
        reader, writer = await asyncio.open_connection("127.0.0.1", ports["one"])
        writer.write(f"GET / HTTP/1.1\r\nHost: first\r\n{write(CLIENT)}{CARRIED}\r\n".encode())
        await read_head(reader)
        writer.close()
        await until(lambda: told["one"] and told["two"])
    first, second = (spans_of(told[name][0], name, "i") for name in ("one", "two"))
    at_middle, at_last = (read(headers) for headers in seen)
    assert at_middle == (trace, first[1].span_id, decision)
    assert at_last == (trace, second[1].span_id, decision)
    assert {span.trace_id for span in (*first, *second)} == {first[0].trace_id}
    for spans, caller in ((first, CLIENT), (second, SERVICE)):
        _check(spans, caller, kind)
    for headers in seen:
        assert headers["sw8-correlation"] == "a2V5:dmFsdWU="
        assert headers["baggage"] == "user=7"
        if kind == "tracecontext":
            assert headers["tracestate"] == "v=1"
    if kind == "b3multi":
        assert [headers["x-b3-parentspanid"] for headers in seen] == [first[0].span_id, second[0].span_id]


def _check(spans: tuple[Span, ...], caller: str, kind: str) -> None:
    """A server span under the caller's, and a client span under that."""
    server, client = spans
    assert client.parent_id == server.span_id
    assert server.debug is client.debug is (kind == "b3")
    if kind != "sw8":
        assert server.trace_id == TRACE
        assert server.parent_id == caller
        assert server.skywalking is None
        return
    assert server.skywalking is not None
    assert client.skywalking is not None
    (reference,) = server.skywalking.refs
    assert (reference.trace_id, reference.segment_id, reference.span_id) == (
        SW_TRACE,
        f"segment-of-{caller}",
        3,
    )
    assert (reference.service, reference.endpoint) == ("shop", "/cart")
    assert server.skywalking.segment_id == client.skywalking.segment_id == client.span_id
    assert client.skywalking.parent_span_id == server.skywalking.span_id == 0
    assert server.skywalking.correlation == {"key": "value"}
