"""The bytes of a segment, in memory and on disk alike: a magic number, then framed blocks, the first one its header.

A block is a mark, its length and its CRC-32 (both unsigned 32 bit, of this machine's byte order), then MessagePack. Its
tables continue those of the blocks before it and say at which number they begin, so that a reader who misses one
block knows what it misses and never takes one name for another. A segment needs no other segment.
"""

from __future__ import annotations

import struct
import sys
import zlib
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.core.model import Role, TargetId
from sentinel_agent.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = 2
MAGIC = f"SNTLREC{VERSION}".encode()
MAX_BLOCK = 16 * 1024**2
MAX_SEGMENT = 32 * 1024**2
"""Bytes of the largest block and segment that are read."""
MAX_RESUMED = 64
"""After how many corrupt places the rest of a segment is given up: each may cost a checksum over all that follows."""
_MARK = b"\xf5blk"
_FRAME = struct.Struct("=4sII")


class SegmentError(StoreError):
    """A file is no segment of the recorder, or not one that this machine and version can read."""


class Header(msgspec.Struct, frozen=True, array_like=True):
    """Whose stacks a segment holds, and which segment it is.

    `run` is the same for all segments of one ring and greater for a later one, `number` counts within it; `start` is
    in seconds since the epoch.
    """

    byteorder: str
    role: Role
    target: TargetId
    run: int
    number: int
    start: float


class Block(msgspec.Struct, frozen=True, array_like=True):
    """Part of a segment. Each `*_at` is the number of the first entry in this block's part of that table.

    The tables are arrays of machine words: `frames` (function text, file text, line), `nodes` (parent node << 32 |
    frame; node 0 is the empty stack and not in the table, so the first one is 1), `threads` (native id, name text),
    `ticks` (wall, monotonic, period, lead), `failed` (one per tick), `runs` (thread, node, flags, first tick, how many ticks).
    """

    texts_at: int
    texts: list[str]
    frames_at: int
    frames: bytes
    nodes_at: int
    nodes: bytes
    threads_at: int
    threads: bytes
    ticks_at: int
    ticks: bytes
    failed: bytes
    runs: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode_block = msgspec.msgpack.Decoder(Block).decode


def encode_header(header: Header) -> bytes:
    """The beginning of a segment."""
    return MAGIC + _framed(_encode(header))


def encode_block(block: Block) -> bytes:
    """One framed block."""
    return _framed(_encode(block))


def decode_header(data: bytes) -> tuple[Header, int]:
    """The header, and where the blocks begin.

    Raises:
        SegmentError: this is no segment, its header is damaged, or it is too large.
    """
    if len(data) > MAX_SEGMENT:
        raise SegmentError(f"a recorder segment has at most {MAX_SEGMENT} bytes, found {len(data)}")
    if not data.startswith(MAGIC):
        raise SegmentError(
            f"not a recorder segment of version {VERSION}: it begins with {data[: len(MAGIC)]!r}",
            hint="files of another version are removed as they grow old",
        )
    payload = _payload_at(data, len(MAGIC))
    if payload is None:
        raise SegmentError("a recorder segment's header is damaged")
    try:
        header = _decode_header(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SegmentError(f"a recorder segment's header is not understood: {error}") from error
    if header.byteorder != sys.byteorder:
        raise SegmentError(f"a recorder segment of a {header.byteorder}-endian machine cannot be read here")
    return header, len(MAGIC) + _FRAME.size + len(payload)


def decode_blocks(data: bytes, at: int) -> Iterator[Block | None]:
    """The blocks from offset `at` on; None stands for a damaged place. A last block that is torn is just not there."""
    damaged = 0
    while at < len(data):
        payload = _payload_at(data, at)
        block = None if payload is None else _block(payload)
        if payload is not None and block is not None:
            at += _FRAME.size + len(payload)
            yield block
            continue
        following = data.find(_MARK, at + 1)
        damaged += 1
        if following < 0 and _is_torn(data, at):
            return
        yield None
        if following < 0 or damaged > MAX_RESUMED:
            return
        at = following


def _framed(payload: bytes) -> bytes:
    return _FRAME.pack(_MARK, len(payload), zlib.crc32(payload)) + payload


def _payload_at(data: bytes, at: int) -> bytes | None:
    if len(data) - at < _FRAME.size:
        return None
    mark, length, checksum = _FRAME.unpack_from(data, at)
    if mark != _MARK or length > min(MAX_BLOCK, len(data) - at - _FRAME.size):
        return None
    payload = data[at + _FRAME.size : at + _FRAME.size + length]
    return payload if zlib.crc32(payload) == checksum else None


def _is_torn(data: bytes, at: int) -> bool:
    """Whether the rest is the beginning of a block: what a killed writer leaves."""
    rest = data[at : at + _FRAME.size]
    if len(rest) < _FRAME.size:
        return rest[: len(_MARK)] == _MARK[: len(rest)]
    mark, length, _ = _FRAME.unpack(rest)
    return bool(mark == _MARK and len(data) - at - _FRAME.size < length <= MAX_BLOCK)


def _block(payload: bytes) -> Block | None:
    try:
        return _decode_block(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
