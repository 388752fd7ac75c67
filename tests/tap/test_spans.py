"""A request through a real worker as spans; what is no request of ours is none; hostile records cost themselves only."""

from __future__ import annotations

import asyncio
import base64
import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.span import SegmentReference
from sentinel_agent.proxy.records import RequestRecord
from sentinel_agent.proxy.wire.trace import sw_span
from sentinel_agent.tap.spans import spans_of
from tests.proxy.support import GET, OK, answering, upstream
from tests.tap.test_tap import hub_on, until, worker_telling

if TYPE_CHECKING:
    from pathlib import Path

RECORD = RequestRecord(
    time=1_700_000_000.25,
    listener="web",
    route="all",
    cluster="back",
    upstream="10.0.0.7:8080",
    client="[2001:db8::1]:4711",
    method="GET",
    path="/orders?token=s3cret",
    host="shop.example",
    status=200,
    seconds=0.25,
    upstream_seconds=0.2,
    bytes_in=0,
    bytes_out=2,
    tries=1,
    trace=f"{7:032x}",
    span=f"{1:016x}",
    parent="",
    client_span=f"{2:016x}",
    sampled=True,
)


def changed(**changes: Any) -> RequestRecord:
    return msgspec.structs.replace(RECORD, **changes)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_a_request_is_a_server_and_a_client_span() -> None:
    """Linked, with the conventions' attributes, both sides named, the query left out (it may hold secrets), no path in the name."""
    server, client = spans_of(RECORD, "gateway", "host-1")
    assert (server.kind, client.kind) == ("server", "client")
    assert client.parent_id == server.span_id
    assert server.parent_id is None
    assert server.name == "GET all"
    assert server.attributes["url.path"] == "/orders"
    assert server.start == 1_700_000_000_250_000_000
    assert (server.duration, client.duration) == (250_000_000, 200_000_000)
    assert server.remote is not None
    assert (server.remote.address, server.remote.port) == ("2001:db8::1", 4711)
    assert client.remote is not None
    assert (client.remote.service, client.remote.address, client.remote.port) == ("back", "10.0.0.7", 8080)
    assert server.skywalking is client.skywalking is None


def test_whose_fault_it_was() -> None:
    """By the conventions: 4xx is no error of the server span, but one of the client span; a flag is an error of both."""
    server, client = spans_of(changed(status=404), "gateway", "h")
    assert (server.status, client.status) == ("unset", "error")
    server, client = spans_of(
        changed(status=504, flags="UT", detail="no answer in 5 s", tries=3), "gateway", "h"
    )
    assert (server.status, server.status_message, server.attributes["error.type"]) == (
        "error",
        "no answer in 5 s",
        "UT",
    )
    assert client.attributes["http.request.resend_count"] == 2


def test_a_request_that_never_left_is_one_span() -> None:
    """Answered by a filter or for want of a route: there was no upstream. One that is not sampled has none."""
    (server,) = spans_of(changed(upstream="", client_span="", route=""), "gateway", "h")
    assert server.name == "GET"
    assert spans_of(changed(sampled=False), "gateway", "h") == ()


def test_a_caller_that_speaks_sw8_is_referred_to() -> None:
    """Only if the trace was joined by its header; a header that lies about it, or is none, is left alone."""
    parts = (
        "1",
        b64("trace.7"),
        b64("segment.9"),
        "3",
        b64("shop"),
        b64("shop-1"),
        b64("/buy"),
        b64("gw:80"),
    )
    header = "-".join(parts)
    server, client = spans_of(changed(sw8=header, parent=f"{sw_span('segment.9', 3):016x}"), "gateway", "h")
    assert server.skywalking is not None
    assert client.skywalking is not None
    assert server.skywalking.refs == (
        SegmentReference("trace.7", "segment.9", 3, "shop", "shop-1", "/buy", "gw:80"),
    )
    assert server.skywalking.segment_id == client.skywalking.segment_id == client.span_id
    assert (client.skywalking.span_id, client.skywalking.parent_span_id) == (1, 0)
    for sw8, parent in ((header, f"{5:016x}"), ("1-a-b", f"{5:016x}"), (header.replace(parts[1], "!!"), "")):
        server, _ = spans_of(changed(sw8=sw8, parent=parent), "gateway", "h")
        assert server.skywalking is None


@given(st.builds(RequestRecord, sampled=st.just(True)))
def test_whatever_a_record_says(record: RequestRecord) -> None:
    """It is spans, or nothing, or ValueError; never anything else."""
    try:
        spans = spans_of(record, "gateway", "h")
    except ValueError:
        return
    assert len(spans) <= 2


async def test_a_real_request_has_the_ids_that_the_upstream_was_told(tmp_path: Path) -> None:
    """The upstream's traceparent names our client span, whose parent is our server span, whose parent is the caller's."""
    heads: list[bytes] = []
    path = tmp_path / "tap"
    caller = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
    async with (
        hub_on(path) as hub,
        upstream(answering(OK, heads=heads)) as port,
        worker_telling(path, port) as running,
    ):
        got: list[RequestRecord] = []
        hub.on_records = lambda _view, records: got.extend(records)
        await until(lambda: hub.worker(os.getpid()))
        await running.ask(GET.replace(b"Host: h\r\n", b"Host: h\r\n" + caller))
        await until(lambda: got)
        await asyncio.sleep(0)
    server, client = spans_of(got[0], "proxy", "here")
    assert server.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert server.parent_id == "b7ad6b7169203331"
    assert f"traceparent: 00-{server.trace_id}-{client.span_id}-01".encode() in heads[0]
    assert client.parent_id == server.span_id
    assert 0 < client.duration <= server.duration


def test_ids_that_are_none_are_refused() -> None:
    """A record with a broken id raises, so the caller can leave it out."""
    with pytest.raises(ValueError, match="trace id"):
        spans_of(changed(trace="x"), "gateway", "h")
