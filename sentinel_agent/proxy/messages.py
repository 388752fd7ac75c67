"""What a worker tells the agent over their local socket: frames of a length and a MessagePack document.

The first frame is a `Hello`, which brings the descriptor of the in-flight table with it (unix(7), SCM_RIGHTS); every
other is a `Batch`. Counters are cumulative, so that a batch that is lost costs no count. The other way go `Levels`.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec

from sentinel_agent.proxy.limiter import LimitState
from sentinel_agent.proxy.records import RequestRecord
from sentinel_agent.proxy.stats import RouteCounts

if TYPE_CHECKING:
    import socket

VERSION: Final = 2
MAX_FRAME: Final = 4 * 1024 * 1024
MAX_LEVELS: Final = 1000
_LENGTH = struct.Struct(">I")
HEADER_BYTES: Final = _LENGTH.size


class Hello(msgspec.Struct, frozen=True, tag=True):
    """Who speaks. `routes` are the names of the routes, by their numbers in the in-flight table."""

    version: int
    pid: int
    service: str
    routes: tuple[str, ...]


class ClusterHealth(msgspec.Struct, frozen=True, array_like=True):
    """A cluster as this worker sees it. `servers` are the first of them, each with whether it is fit."""

    name: str
    total: int
    fit: int
    panic: bool
    servers: tuple[tuple[str, bool], ...]


class Batch(msgspec.Struct, frozen=True, tag=True):
    """What is new. `time` is on the worker's monotonic clock; `dropped` records were never sent, since the start."""

    time: float
    counts: tuple[RouteCounts, ...]
    records: tuple[RequestRecord, ...]
    dropped: int
    connections: int
    limit: LimitState | None = None
    clusters: tuple[ClusterHealth, ...] = ()


class TargetLevel(msgspec.Struct, frozen=True, array_like=True):
    """How loaded one of the agent's targets is, by one metric; 1 is all there is."""

    target: str
    metric: str
    value: float


class Levels(msgspec.Struct, frozen=True, tag=True):
    """What the agent tells its workers, once a second."""

    levels: Annotated[tuple[TargetLevel, ...], msgspec.Meta(max_length=MAX_LEVELS)]


M = TypeVar("M", Hello, Batch, Levels)
_ENCODER = msgspec.msgpack.Encoder()


def encode(message: Hello | Batch | Levels) -> bytes:
    """A frame."""
    body = _ENCODER.encode(message)
    return _LENGTH.pack(len(body)) + body


def frame_length(header: bytes) -> int:
    """The length of the document that follows.

    Raises:
        ValueError: no frame is so long.
    """
    (length,) = _LENGTH.unpack(header)
    if length > MAX_FRAME:
        raise ValueError(f"a frame of {length} bytes: expected at most {MAX_FRAME}")
    return int(length)


def decode(body: bytes, kind: type[M]) -> M:
    """A document of one kind.

    Raises:
        ValueError: it is none (msgspec.ValidationError and DecodeError are ValueErrors).
    """
    return msgspec.msgpack.decode(body, type=kind)


async def receive(sock: socket.socket) -> bytes:
    """The next frame's document, from a socket that does not block.

    Raises:
        EOFError, OSError: the other side is gone.
        ValueError: no frame is so long.
    """
    return await receive_exactly(sock, frame_length(await receive_exactly(sock, HEADER_BYTES)))


async def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes; raises like `receive`."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size:
        piece = await loop.sock_recv(sock, min(size - len(data), MAX_FRAME))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
