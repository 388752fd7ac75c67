"""A soak of the proxy: random bodies, chunkings, aborts and keep-alive; every body's hash must be right.

`python tests/proxy/soak.py COUNT` from the checkout runs as many requests as asked against a worker process of its own
loop; the test runs some thousands. A client sends a body with the hash in a header; the upstream checks it, and answers
with another body and its hash. Some clients leave in the middle, some upstreams break off or close, some answers come
in pieces. What must never happen: a wrong hash, an answer that belongs to another request, a connection mixed up.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
import tempfile
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.proxy.support import proxy, read_head, upstream

CLIENTS = 24


@dataclass
class Tally:
    """What came of it."""

    whole: int = 0
    broken: int = 0
    aborted: int = 0
    wrong: list[str] = field(default_factory=list)


def _pieces(chance: random.Random, data: bytes) -> list[bytes]:
    """The same bytes, cut at random."""
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((0, 0, 1, 2, 8))))
    edges = [0, *cuts, len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


def _body(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 10, 100, 1000, 5000, 70_000, chance.randrange(200_000))))


def _framed(chance: random.Random, body: bytes) -> tuple[bytes, bytes]:
    """A framing header and the body in it."""
    if chance.random() < 0.5:
        return b"Content-Length: %d\r\n" % len(body), body
    data = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in _pieces(chance, body))
    return b"Transfer-Encoding: chunked\r\n", data + b"0\r\n\r\n"


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    low = head.lower()
    if b"transfer-encoding: chunked" in low:
        body = b""
        while size := int((await reader.readuntil(b"\n")).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return body
    if b"content-length: " in low:
        return await reader.readexactly(int(low.split(b"content-length: ")[1].split(b"\r\n")[0]))
    return b""


def _field(head: bytes, name: bytes) -> bytes:
    return head.split(b"%b: " % name)[1].split(b"\r\n")[0]


async def _write(chance: random.Random, writer: asyncio.StreamWriter, data: bytes) -> None:
    for piece in _pieces(chance, data):
        writer.write(piece)
        await writer.drain()
        if chance.random() < 0.2:
            await asyncio.sleep(0)


async def soak(count: int, seed: int, folder: Path) -> Tally:
    """Run `count` requests."""
    tally = Tally()
    left = iter(range(count))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chance = random.Random(seed)
        while True:
            head = await read_head(reader)
            number = _field(head, b"X-Number")
            chance.seed(b"%d %b" % (seed, number))
            body = await _read_body(reader, head)
            if hashlib.sha256(body).hexdigest().encode() != _field(head, b"X-Hash"):
                tally.wrong.append(f"request {number!r} reached the upstream with another body")
            answer = _body(chance)
            framing, data = _framed(chance, answer)
            ending = chance.random()
            close = b"Connection: close\r\n" if ending < 0.05 else b""
            digest = hashlib.sha256(answer).hexdigest().encode()
            whole = b"HTTP/1.1 200 OK\r\nX-Number: %b\r\nX-Hash: %b\r\n%b%b\r\n" % (
                number,
                digest,
                framing,
                close,
            )
            whole += data
            if 0.05 <= ending < 0.08:  # breaks off
                await _write(chance, writer, whole[: chance.randrange(len(whole))])
                return
            await _write(chance, writer, whole)
            if ending < 0.1:  # closes, having said so or not
                return

    async def client(name: int, port: int) -> None:
        chance = random.Random(seed * 1000 + name)
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for number in left:
            if streams is None:
                streams = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = streams
            plain = chance.random() < 0.4
            body = b"" if plain else _body(chance)
            framing, data = (b"", b"") if plain else _framed(chance, body)
            digest = hashlib.sha256(body).hexdigest().encode()
            head = b"%b /%d HTTP/1.1\r\nHost: h\r\nX-Number: %d\r\nX-Hash: %b\r\n%b\r\n" % (
                *(b"GET" if plain else b"POST", number, number, digest, framing),
            )
            aborts = chance.random() < 0.03
            whole = head + data
            try:
                async with asyncio.timeout(60):
                    await _write(chance, writer, whole[: chance.randrange(len(whole))] if aborts else whole)
                    if aborts:
                        tally.aborted += 1
                        raise ConnectionError
                    await _check(reader, number, tally)
            except (ConnectionError, asyncio.IncompleteReadError):
                tally.broken += not aborts
                writer.transport.abort()
                streams = None
            else:
                if chance.random() < 0.02:
                    writer.close()
                    streams = None
        if streams is not None:
            streams[1].close()

    async with upstream(serve) as port, proxy(folder, port, route="retry: {attempts: 0}") as running:
        await asyncio.gather(*(client(name, running.port) for name in range(CLIENTS)))
        await running.idle()
        pool = running.worker.clusters["back"]
        if pool.active or any(server.active for server in pool.servers):
            tally.wrong.append("a request is still counted as under way")
    return tally


async def _check(reader: asyncio.StreamReader, number: int, tally: Tally) -> None:
    head = await read_head(reader)
    body = await _read_body(reader, head)
    if b" 200 " not in head.split(b"\r\n")[0]:
        tally.broken += 1  # the proxy says that the upstream broke off
        return
    if int(_field(head, b"X-Number")) != number:
        tally.wrong.append(f"request {number} got the answer to {_field(head, b'X-Number')!r}")
    elif hashlib.sha256(body).hexdigest().encode() != _field(head, b"X-Hash"):
        tally.wrong.append(f"request {number} got another body than was sent")
    else:
        tally.whole += 1


if __name__ == "__main__":
    import uvloop

    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        result = uvloop.run(soak(int(sys.argv[1]), 1, Path(place)))
    print(f"whole {result.whole}, broken off {result.broken}, left by the client {result.aborted}")
    print("\n".join(result.wrong[:20]) or "no body wrong, no answer mixed up")
    sys.exit(bool(result.wrong))
