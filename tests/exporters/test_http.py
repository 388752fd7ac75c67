"""What an HTTP answer means, and that no answer can hurt: garbage, half, none, a gigabyte."""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.export.base import SendError
from sentinel_exporters.http import HttpOptions, HttpSender, blame, retry_after, with_path
from tests.exporters.support import context, free_port, options, serving, status

if TYPE_CHECKING:
    from tests.exporters.support import Server

NOW = 1_700_000_000.0


async def post(server: Server, body: bytes = b"[]", **changes: Any) -> str:
    made = options(HttpOptions, url=server.url, **changes)
    assert isinstance(made, HttpOptions)
    sender = HttpSender(made, context())
    try:
        words, _ = await sender.post(f"{server.url}/x", body, "application/json")
    finally:
        await sender.close()
    return words


@pytest.mark.parametrize(
    ("code", "whose"),
    [
        (301, "refused"),
        (400, "rejected"),
        (401, "refused"),
        (403, "refused"),
        (404, "refused"),
        (408, "passing"),
        (413, "rejected"),
        (415, "rejected"),
        (422, "rejected"),
        (429, "passing"),
        (500, "passing"),
        (501, "refused"),
        (503, "passing"),
    ],
)
async def test_a_status_says_whose_fault_it_is(code: int, whose: str) -> None:
    """The words have the status and what the server said, without control characters."""
    async with serving(answers=[status(code, b"no\x1b[31m way\r\n", Location="http://elsewhere/")]) as server:
        with pytest.raises(SendError) as raised:
            await post(server)
    assert raised.value.blame == whose == blame(code)
    assert raised.value.message.startswith(f"{code} ")
    assert raised.value.message.partition(";")[0].endswith("no [31m way")
    assert len(server.requests) == 1  # a redirect is not followed


async def test_what_is_sent() -> None:
    """Our name, the token and headers of the settings, and a packed body where that is wanted."""
    async with serving() as server:
        assert (
            await post(server, b"[1]", token="t0k", headers={"X-Scope": "a"}, compression="gzip")
            == "202 Accepted"
        )
    (request,) = server.requests
    assert request.headers["authorization"] == "Bearer t0k"
    assert request.headers["x-scope"] == "a"
    assert request.headers["user-agent"] == "sentinel-agent/1.2.3"
    assert json.loads(gzip.decompress(request.body)) == [1]


async def test_a_connection_is_used_again() -> None:
    """Ten batches take one connection."""
    async with serving() as server:
        made = options(HttpOptions, url=server.url)
        assert isinstance(made, HttpOptions)
        sender = HttpSender(made, context())
        for _ in range(10):
            await sender.post(server.url, b"[]", "application/json")
        await sender.close()
    assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\xff\xfe garbage\r\n\r\n",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 999999 What\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
)
async def test_nonsense_is_a_passing_fault(answer: bytes) -> None:
    """No answer of a confused server comes out as anything but SendError."""

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(cut, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    made = options(HttpOptions, url=f"http://127.0.0.1:{port}")
    assert isinstance(made, HttpOptions)
    sender = HttpSender(made, context())
    try:
        async with asyncio.timeout(20):
            with pytest.raises(SendError) as raised:
                await sender.post(f"http://127.0.0.1:{port}/", b"[]", "application/json")
    finally:
        await sender.close()
        listening.close()
        await listening.wait_closed()
    assert raised.value.blame == "passing"


async def test_nobody_listens() -> None:
    """The message names host and port."""
    port = free_port()
    made = options(HttpOptions, url=f"http://127.0.0.1:{port}")
    assert isinstance(made, HttpOptions)
    sender = HttpSender(made, context())
    with pytest.raises(SendError, match=rf"127\.0\.0\.1:{port}") as raised:
        await sender.post(f"http://127.0.0.1:{port}/", b"[]", "application/json")
    await sender.close()
    assert raised.value.blame == "passing"


async def test_an_answer_of_a_gigabyte_costs_nothing() -> None:
    """A 200 with an endless body is a success; of the body no more than what the buffers hold is read."""
    huge = b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n"
    async with serving(answers=[huge], flood=1024) as server:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with asyncio.timeout(20):
            assert await post(server) == "200 OK"
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024  # KiB


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30", 30.0),
        ("0", 0.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("9" * 500, 999_999_999.0),
        ("-5", None),
        ("soon", None),
        ("²", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    """A number of seconds or a date; anything else counts as not said."""
    assert retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("http://zipkin:9411", "http://zipkin:9411/api/v2/spans"),
        ("http://zipkin:9411/", "http://zipkin:9411/api/v2/spans"),
        ("https://host/base/spans", "https://host/base/spans"),
    ],
)
def test_the_path_is_added_unless_there_is_one(url: str, whole: str) -> None:
    """As OpenTelemetry's and Zipkin's own reporters do it: a bare host is enough."""
    assert with_path(url, "/api/v2/spans") == whole
