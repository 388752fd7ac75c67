"""The filter `gzip`: what is compressed, for whom, and that it comes out as it went in. zlib itself is the judge."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.proxy.filters.compression import accepts_gzip
from tests.proxy.support import GET, PATIENCE, answering, proxy, read_head, status_of, upstream

if TYPE_CHECKING:
    from pathlib import Path

USE = "filters: [{name: gzip, config: {min_length: 100, content_types: [text/plain], %s}}]"
WANTS = GET[:-2] + b"Accept-Encoding: br, gzip;q=0.5\r\n\r\n"
TEXT = b"all work and no play makes a dull page\n" * 400


def page(body: bytes = TEXT, lines: bytes = b"", kind: bytes = b"text/plain; charset=x") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n%b" % (
        kind,
        len(body),
        lines,
        body,
    )


def chunks(body: bytes, sizes: random.Random) -> bytes:
    """The body in chunks."""
    found = b""
    while body:
        size = sizes.randint(1, 5000)
        found += b"%x\r\n%b\r\n" % (len(body[:size]), body[:size])
        body = body[size:]
    return found + b"0\r\n\r\n"


def parts(answer: bytes) -> tuple[bytes, bytes]:
    """The head in lower case, and the body without its chunks, which end as they must."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"\r\nTransfer-Encoding: chunked" not in head:
        return head.lower(), body
    plain = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        plain += body[: int(size, 16)]
        assert body[int(size, 16) : int(size, 16) + 2] == b"\r\n"
        body = body[int(size, 16) + 2 :]
        if int(size, 16) == 0:
            assert not body
            return head.lower(), plain


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("minor", [0, 1])
async def test_what_is_compressed_comes_out_as_it_went_in(tmp_path: Path, framing: str, minor: int) -> None:
    """However the upstream frames and cuts it, for clients of HTTP/1.1 (chunks) and 1.0 (until the end)."""
    sizes = random.Random(3)
    body = TEXT + sizes.randbytes(150_000) + TEXT
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
    sent = {
        "length": page(body),
        "chunked": head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(body, sizes),
        "close": head + b"\r\n" + body,
    }[framing]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        at = 0
        while at < len(sent):
            size = sizes.choice((1, 7, 1000, 40_000))
            writer.write(sent[at : at + size])
            await writer.drain()
            await asyncio.sleep(0)
            at += size

    async with upstream(script) as port, proxy(tmp_path, port, route=USE % "") as running:
        got = await running.ask(WANTS.replace(b"HTTP/1.1", b"HTTP/1.%d" % minor))
        stats = running.worker.http[0].routes[0].stats
        line = (await running.log())[0]
    found, compressed = parts(got)
    assert b"\r\ncontent-encoding: gzip" in found
    assert b"\r\ncontent-length" not in found
    assert found.count(b"\r\ntransfer-encoding: chunked") == minor
    assert gzip.decompress(compressed) == body
    assert stats.events == {"gzip.compressed": 1}
    assert line["bytes_out"] == len(got)


@pytest.mark.parametrize(
    ("request_", "answer", "vary"),
    [
        (GET, page(), True),
        (GET[:-2] + b"Accept-Encoding: gzip;q=0, br\r\n\r\n", page(), True),
        (WANTS, page(b"short"), False),
        (WANTS, page(kind=b"image/png"), False),
        (WANTS, page(lines=b"Content-Encoding: br\r\n"), False),
        (WANTS, page(lines=b"Cache-Control: public, no-transform\r\n"), False),
        (WANTS, page(lines=b"Content-Range: bytes 0-9/10\r\n").replace(b"200 OK", b"206 Part"), False),
    ],
    ids=["not wanted", "refused", "short", "of another kind", "encoded", "no-transform", "a range"],
)
async def test_what_stays_as_it_is(tmp_path: Path, request_: bytes, answer: bytes, vary: bool) -> None:
    """Byte by byte, with its length; where another client would get gzip, caches are told so."""
    async with upstream(answering(answer)) as port, proxy(tmp_path, port, route=USE % "") as running:
        got = await running.ask(request_)
    head, body = parts(got)
    assert body == answer.partition(b"\r\n\r\n")[2]
    assert b"\r\ncontent-length: %d" % len(body) in head
    assert (b"\r\nvary: accept-encoding" in head) is vary
    assert b"content-encoding: gzip" not in head


async def test_head_says_what_get_would_without_a_body(tmp_path: Path) -> None:
    """No chunk, no byte; the connection goes on."""
    answer = page().partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    async with (
        upstream(answering(answer)) as port,
        proxy(tmp_path, port, route=USE % "") as running,
        running.connection() as (reader, writer),
    ):
        for _ in range(2):
            writer.write(WANTS.replace(b"GET", b"HEAD").replace(b"Connection: close\r\n", b""))
            assert status_of(await read_head(reader)) == 200


async def test_the_head_tells_caches_the_truth(tmp_path: Path) -> None:
    """A strong ETag becomes weak, a weak one stays, Vary is added to, what belongs to other bytes goes."""
    lines = b'ETag: "abc"\r\nVary: Origin\r\nAccept-Ranges: bytes\r\nContent-MD5: x\r\n'
    answers = (page(lines=lines), page(lines=b'ETag: W/"abc"\r\nVary: *\r\n'))
    async with upstream(answering(*answers)) as port, proxy(tmp_path, port, route=USE % "") as running:
        strong = parts(await running.ask(WANTS))[0]
        weak = parts(await running.ask(WANTS))[0]
    assert b'\r\netag: w/"abc"' in strong
    assert b"\r\nvary: origin, accept-encoding" in strong
    assert strong.count(b"etag") == strong.count(b"vary") == 1
    assert b"accept-ranges" not in strong
    assert b"content-md5" not in strong
    assert b'\r\netag: w/"abc"' in weak
    assert b"\r\nvary: *" in weak


async def test_a_stream_is_not_held_back(tmp_path: Path) -> None:
    """Of a body without a length, each piece can be read by the client before the next one is written."""
    events = [b"event %d\n" % number for number in range(5)]
    seen = asyncio.Semaphore(0)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in events:
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await seen.acquire()
        writer.write(b"0\r\n\r\n")
        await reader.read(-1)

    async with (
        upstream(script) as port,
        proxy(tmp_path, port, route=USE % "") as running,
        running.connection() as (reader, writer),
    ):
        writer.write(WANTS)
        await read_head(reader)
        unzip = zlib.decompressobj(31)
        for event in events:
            text = b""
            while text != event:
                size = int(await reader.readline(), 16)
                text += unzip.decompress(await reader.readexactly(size))
                await reader.readexactly(2)
            seen.release()


async def test_an_answer_that_breaks_off_is_not_ended(tmp_path: Path) -> None:
    """No last chunk: the client cannot take a part for the whole. The stream is given back."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(page()[:-1000])
        await writer.drain()

    async with (
        upstream(script) as port,
        proxy(tmp_path, port, route=USE % "max_streams: 1") as running,
    ):
        for _ in range(2):
            got = await running.ask(WANTS)
            assert not got.endswith(b"0\r\n\r\n")
        assert running.worker.http[0].routes[0].stats.events == {"gzip.compressed": 2}


async def test_streams_are_bounded(tmp_path: Path) -> None:
    """One too many goes as it is, and is counted."""
    release = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(page()[:-1])
        await release.wait()
        writer.write(page()[-1:])
        await reader.read(-1)

    async with (
        upstream(script) as port,
        proxy(tmp_path, port, route=USE % "max_streams: 1") as running,
        running.connection() as (reader, writer),
        asyncio.timeout(PATIENCE),
    ):
        writer.write(WANTS)
        assert b"Content-Encoding: gzip" in await read_head(reader)
        second = asyncio.create_task(running.ask(WANTS))
        stats = running.worker.http[0].routes[0].stats
        while "gzip.skipped" not in stats.events:
            await asyncio.sleep(0.01)
        release.set()
        assert parts(await second)[1] == TEXT
    assert stats.events == {"gzip.compressed": 1, "gzip.skipped": 1}


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        (None, False),
        (b"", False),
        (b"gzip", True),
        (b"deflate, GZIP", True),
        (b"x-gzip", True),
        (b"*", True),
        (b"*;q=0", False),
        (b"gzip;q=0, *", False),
        (b"*;q=0, gzip;q=0.001", True),
        (b"gzip; q=0.000", False),
        (b"gzip;q=banana", False),
        (b"gzipped", False),
        (b"identity", False),
    ],
)
def test_accept_encoding(value: bytes | None, taken: bool) -> None:
    """RFC 9110 section 12.5.3: a name or `*`, a weight over 0, the name before the star."""
    assert accepts_gzip(value) is taken
