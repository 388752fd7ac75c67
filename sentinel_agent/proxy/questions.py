"""The supervisor's line to a worker: a socket pair, a question in one frame, its answer in one. Bounded, never trusted.

A worker whose event loop is blocked does not answer; the supervisor says so and waits for nobody.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from sentinel_agent.errors import PeerError
from sentinel_agent.proxy.snapshot import WorkerFacts, snapshot

if TYPE_CHECKING:
    import socket

    from sentinel_agent.proxy.worker import Worker

ANSWER_SECONDS: Final = 3.0
MAX_FRAME: Final = 64 * 1024 * 1024
_HEADER: Final = struct.Struct(">II")

Question = Literal["snapshot", "drain_listeners"]


async def answer_questions(sock: socket.socket, worker: Worker) -> None:
    """The worker's end: answer until the other end is gone."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    try:
        while True:
            number, body = await _frame(reader)
            question = msgspec.json.decode(body, type=Question)
            if question == "drain_listeners":
                worker.drain_listeners()
            writer.write(_framed(number, msgspec.msgpack.encode(snapshot(worker))))
            await writer.drain()
    except (EOFError, OSError):
        pass
    finally:
        writer.close()


class WorkerLine:
    """The supervisor's end. Answers that come late are told apart by their number, and thrown away."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._turn = asyncio.Lock()
        self._number = 0
        self._reading: asyncio.Task[tuple[int, bytes]] | None = None

    async def ask(self, question: Question) -> WorkerFacts:
        """Ask, and wait for the answer.

        Raises:
            PeerError: there is none in time, or it is no answer.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    return await self._ask(question)
            except TimeoutError:
                raise PeerError(f"it does not answer within {ANSWER_SECONDS:.0f} s") from None
            except (EOFError, OSError, ValueError) as error:
                raise PeerError(f"it is gone: {error}") from None

    async def _ask(self, question: Question) -> WorkerFacts:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(sock=self._sock, limit=1 << 20)
        reader, writer = self._streams
        self._number += 1
        writer.write(_framed(self._number, msgspec.json.encode(question)))
        await writer.drain()
        while True:
            if self._reading is None:
                self._reading = asyncio.create_task(_frame(reader), name="an answer of a worker")
            number, body = await asyncio.shield(self._reading)
            self._reading = None
            if number == self._number:
                return msgspec.msgpack.decode(body, type=WorkerFacts)

    def close(self) -> None:
        """Hang up."""
        if self._reading is not None:
            self._reading.cancel()
        if self._streams is not None:
            self._streams[1].close()
        self._sock.close()


def _framed(number: int, body: bytes) -> bytes:
    return _HEADER.pack(number, len(body)) + body


async def _frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    number, size = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    if size > MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes: expected at most {MAX_FRAME}")
    return number, await reader.readexactly(size)
