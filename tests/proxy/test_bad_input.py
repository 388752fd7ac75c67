"""What goes wrong on either side: a defined answer, a flag, a line in the log, and everybody else unharmed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.proxy.support import GET, OK, answering, proxy, read_head, status_of, upstream

if TYPE_CHECKING:
    from pathlib import Path

ANSWER = b"HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: 10\r\n\r\n0123456789"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n3;x=y\r\nefg\r\n0\r\nT: v\r\n\r\n"
)

CLIENT_FAULTS = [
    (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "DPE"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400, "DPE"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400, "DPE"),
    (b"GET / HTTP/1.1\nHost: a\n\n", 400, "DPE"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 1_000_000, 431, "DPE"),
    (b"GET / HTTP/2.0\r\n\r\n", 505, "DPE"),
    (b"\x16\x03\x01\x00\x01", 400, "DPE"),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n", 400, "DPE"),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n", 413, "DL"),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n" + b"x" * 4096 + b"\r\n",
        413,
        "DL",
    ),
    (b"GET / HTTP/1.1\r\nHost: a\r\n", 408, "DT"),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe", 408, "DT"),
]


@pytest.mark.parametrize(("data", "status", "flag"), CLIENT_FAULTS)
async def test_a_client_that_breaks_the_rules_is_answered(
    tmp_path: Path, data: bytes, status: int, flag: str
) -> None:
    """Status, flag and reason; the connection is closed, and the next client is served."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            if b"GET" in head:
                writer.write(OK)

    limits = "limits: {body: 4000}\n    timeouts: {head: 300ms}"
    async with (
        upstream(script) as port,
        proxy(tmp_path, port, listener=limits, route="idle_timeout: 300ms") as running,
    ):
        answer = await running.ask(data)
        assert status_of(answer) == status, answer
        assert b"Connection: close" in answer
        line = (await running.log())[0]
        assert (line["status"], line["flags"]) == (status, flag)
        assert line["detail"]
        assert (await running.ask(GET)).endswith(b"\r\n\r\nok")


UPSTREAM_FAULTS = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 502, "UPE"),
    (b"HTTP/1.1 200 OK\r\nX: a\n\r\n\r\n", 502, "UPE"),
    (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000 + b"\r\n\r\n", 502, "UPE"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", 502, "UC"),
    (b"nonsense\r\n\r\n", 502, "UPE"),
    (b"", 502, "UC"),
    (b"HTTP/1.1 200 OK\r\nContent-Le", 502, "UC"),
    (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 502, "UPE"),
]


@pytest.mark.parametrize(("data", "status", "flag"), UPSTREAM_FAULTS)
async def test_an_upstream_that_breaks_the_rules_is_a_bad_gateway(
    tmp_path: Path, data: bytes, status: int, flag: str
) -> None:
    """The client's connection lives on."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        writer.write(OK if b"/good" in head else data)

    async with (
        upstream(script) as port,
        proxy(tmp_path, port) as running,
        running.connection() as (reader, writer),
    ):
        writer.write(b"POST /bad HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        head = await read_head(reader)
        assert status_of(head) == status
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r")[0])
        await reader.readexactly(length)
        writer.write(b"GET /good HTTP/1.1\r\nHost: h\r\n\r\n")
        assert status_of(await read_head(reader)) == 200
        line = (await running.log(2))[0]
        assert (line["status"], line["flags"]) == (status, flag)


@pytest.mark.parametrize("answer", [ANSWER, CHUNKED])
async def test_an_upstream_that_ends_at_any_byte_is_never_taken_for_whole(
    tmp_path: Path, answer: bytes
) -> None:
    """Cut at every position: before the head's end a 502, after it a broken connection; only the whole is whole."""
    cut = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(answer[:cut])

    async with upstream(script) as port, proxy(tmp_path, port) as running:
        head_end = answer.index(b"\r\n\r\n") + 4
        for cut in range(len(answer) + 1):
            got = await running.ask(
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            body = answer[head_end:]
            if cut < head_end:
                assert status_of(got) == 502, cut
            elif cut < len(answer):
                assert not got.endswith(body), cut
            else:
                assert got.endswith(body)
        await running.idle()
        assert running.worker.clusters["back"].active == 0


async def test_a_second_answer_belongs_to_nobody(tmp_path: Path) -> None:
    """Bytes after the answer end the upstream's connection; the next client does not get them."""
    script = answering(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    async with upstream(script) as port, proxy(tmp_path, port) as running:
        for _ in range(5):
            assert (await running.ask(GET)).endswith(b"\r\n\r\nok")


async def test_a_second_answer_that_comes_later_belongs_to_nobody_either(tmp_path: Path) -> None:
    """It arrives while the connection is in the pool."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_head(reader)
            writer.write(OK)
            await asyncio.sleep(0.05)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    async with upstream(script) as port, proxy(tmp_path, port) as running:
        assert (await running.ask(GET)).endswith(b"ok")
        server = running.worker.clusters["back"].servers[0]
        async with asyncio.timeout(10):
            while server.idle:
                await asyncio.sleep(0.01)
        assert (await running.ask(GET)).endswith(b"ok")


async def test_an_answer_before_the_request_ends(tmp_path: Path) -> None:
    """It is passed on at once, and neither connection is used again: what is left of the body has no place."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await reader.read(-1)

    async with upstream(script) as port, proxy(tmp_path, port) as running:
        head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"
        answer = await running.ask(head + b"x" * 1000)
        assert status_of(answer) == 413
        assert b"Connection: close" in answer
        assert not running.worker.clusters["back"].servers[0].idle


async def test_an_upstream_that_never_answers_times_out(tmp_path: Path) -> None:
    """504 after the route's timeout."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async with upstream(script) as port, proxy(tmp_path, port, route="timeout: 200ms") as running:
        assert status_of(await running.ask(GET)) == 504
        assert (await running.log())[0]["flags"] == "UT"


async def test_an_upstream_that_stops_in_the_middle_times_out(tmp_path: Path) -> None:
    """The client's connection is broken off: it cannot take the part for the whole."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123")
        await reader.read(-1)

    async with upstream(script) as port, proxy(tmp_path, port, route="idle_timeout: 200ms") as running:
        assert not (await running.ask(GET)).endswith(b"4567890")
        assert (await running.log())[0]["flags"] == "UT"


async def test_nobody_listens(tmp_path: Path) -> None:
    """503 with the reason in the log; the counters of the cluster are back at zero."""
    async with proxy(tmp_path, 1, route="retry: {attempts: 2}") as running:
        assert status_of(await running.ask(GET)) == 503
        line = (await running.log())[0]
        assert (line["flags"], line["tries"]) == ("UF", 3)
        assert "refused" in line["detail"].lower()
        cluster = running.worker.clusters["back"]
        assert (cluster.active, cluster.pending, cluster.retries, cluster.connections) == (0, 0, 0, 0)


async def test_a_client_that_leaves_takes_its_request_along(tmp_path: Path) -> None:
    """The upstream's connection is closed, the log says so."""
    closed = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await reader.read(-1)
        closed.set()

    async with upstream(script) as port, proxy(tmp_path, port) as running:
        async with running.connection() as (_, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            async with asyncio.timeout(10):
                while not running.worker.exchanges:
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            await closed.wait()
        line = (await running.log())[0]
        assert (line["status"], line["flags"]) == (499, "DC")


async def test_a_slow_reader_bounds_what_is_held(tmp_path: Path) -> None:
    """An upstream with 64 MiB and a client that does not read: the proxy stops reading, both ways."""
    size = 64 * 1024 * 1024
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()

    async with (
        upstream(script) as port,
        proxy(tmp_path, port) as running,
        running.connection() as (reader, writer),
    ):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        last = -1
        while sent != last:  # until nothing moves any more
            last = sent
            await asyncio.sleep(0.3)
        assert sent < size / 2
        (client,) = running.worker.http[0].connections
        assert client.transport.get_write_buffer_size() < 1024 * 1024
        await read_head(reader)
        assert len(await reader.read(-1)) == size


async def test_an_upstream_that_never_reads_bounds_what_is_held(tmp_path: Path) -> None:
    """A client that sends 64 MiB is not read from while the upstream does not read."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's own transport has it
        await asyncio.sleep(60)

    async with (
        upstream(script) as port,
        proxy(tmp_path, port) as running,
        running.connection() as (_, writer),
    ):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 67108864\r\n\r\n")
        sent = 0
        try:
            while sent < 64 * 1024 * 1024:
                writer.write(b"x" * 65536)
                sent += 65536
                async with asyncio.timeout(0.5):
                    await writer.drain()
        except TimeoutError:
            pass
        assert sent < 48 * 1024 * 1024
        (client,) = running.worker.http[0].connections
        assert client.exchange is not None
        connection = client.exchange.connection
        assert connection is not None
        assert connection.transport.get_write_buffer_size() < 1024 * 1024
        writer.transport.abort()


async def test_many_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    """A thousand at once, some refused by the proxy itself; what waits its turn is bounded."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            name = head.split(b" ")[1]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name))

    async with (
        upstream(script) as port,
        proxy(tmp_path, port) as running,
        running.connection() as (reader, writer),
    ):
        count = 1000
        for number in range(count):
            writer.write(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number)
        for number in range(count):
            head = await read_head(reader)
            length = int(head.split(b"Content-Length: ")[1].split(b"\r")[0])
            assert await reader.readexactly(length) == b"/%d" % number


async def test_one_connection_too_many_is_refused(tmp_path: Path) -> None:
    """503 at once; the others are not touched."""
    async with (
        upstream(answering(OK)) as port,
        proxy(tmp_path, port, listener="limits: {connections: 1}") as running,
        running.connection() as (reader, writer),
    ):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await read_head(reader)
        assert status_of(await running.ask(GET)) == 503
        await reader.readexactly(2)
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert status_of(await read_head(reader)) == 200
