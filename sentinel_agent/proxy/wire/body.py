"""Where a body ends, and what is in it (RFC 9112 sections 6 and 7.1).

Chunks go on as they came, so every byte is checked against the grammar: sizes of at most 15 hexadecimal digits,
lines that end in CRLF and nowhere else, bounded extensions and trailers, no trailer that frames or routes.
"""

from __future__ import annotations

import re
from typing import Final

from sentinel_agent.proxy.wire.faults import WireError

MAX_LINE: Final = 1024
"""Bytes of a size line with its extensions, or of one trailer line."""
MAX_TRAILERS: Final = 8192
"""Bytes of all trailer lines."""

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*+)?\r\n")
_TRAILER_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[\t\x20-\x7e\x80-\xff]*+\r\n")
_NO_TRAILERS: Final = frozenset(
    (b"content-length", b"transfer-encoding", b"host", b"connection", b"trailer", b"content-encoding")
)

_SIZE, _DATA, _DATA_END, _TRAILERS, _DONE = range(5)


class ChunkedBody:
    """Follows one chunked body through pieces of any size."""

    __slots__ = ("_left", "_line", "_state", "_status", "_trailer_bytes")

    def __init__(self, status: int) -> None:
        """`status` is the answer to a fault: 400 in a request, 502 in a response."""
        self._status = status
        self._state = _SIZE
        self._left = 0
        self._line = b""
        self._trailer_bytes = 0

    @property
    def done(self) -> bool:
        """Whether the last byte of the body has been seen."""
        return self._state == _DONE

    def feed(self, data: bytes, start: int = 0, payload: list[bytes] | None = None) -> int:
        """Follow `data` from `start`; where the body's part of it ends. What the chunks hold goes to `payload`.

        Raises:
            WireError: this is no chunked body; nothing may be read from this connection any more.
        """
        at, size = start, len(data)
        while at < size and self._state != _DONE:
            if self._state == _DATA:
                taken = min(self._left, size - at)
                if payload is not None:
                    payload.append(data[at : at + taken])
                at += taken
                self._left -= taken
                if not self._left:
                    self._state = _DATA_END
            else:
                at = self._take_line(data, at)
        return at

    def _take_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at, at + MAX_LINE + 2)
        piece = data[at : end + 1] if end >= 0 else data[at : at + MAX_LINE + 2]
        line = self._line + piece if self._line else piece
        if len(line) > (2 if self._state == _DATA_END else MAX_LINE):
            raise WireError(self._status, self._what_is_wrong())
        if end < 0:
            self._line = line
            return at + len(piece)
        self._line = b""
        self._end_line(line)
        return end + 1

    def _end_line(self, line: bytes) -> None:
        if self._state == _SIZE:
            found = _SIZE_LINE.fullmatch(line)
            if found is None:
                raise WireError(self._status, self._what_is_wrong())
            self._left = int(found[1], 16)
            self._state = _DATA if self._left else _TRAILERS
        elif line == b"\r\n":
            self._state = _SIZE if self._state == _DATA_END else _DONE
        elif self._state == _DATA_END:
            raise WireError(self._status, self._what_is_wrong())
        else:
            self._trailer_bytes += len(line)
            found = _TRAILER_LINE.fullmatch(line)
            if found is None or found[1].lower() in _NO_TRAILERS or self._trailer_bytes > MAX_TRAILERS:
                raise WireError(self._status, self._what_is_wrong())

    def _what_is_wrong(self) -> str:
        if self._state == _SIZE:
            return "a chunk's size line is malformed"
        if self._state == _DATA_END:
            return "a chunk does not end where its size says"
        return "a trailer is malformed, too large, or of a kind that is not allowed there"


class FixedBody:
    """Follows a body of `length` bytes as `ChunkedBody` does; None: it ends with the connection."""

    __slots__ = ("_left",)

    def __init__(self, length: int | None) -> None:
        self._left = length

    @property
    def done(self) -> bool:
        """Whether the last byte of the body has been seen."""
        return self._left == 0

    def feed(self, data: bytes, start: int = 0, payload: list[bytes] | None = None) -> int:
        """Follow `data` from `start`; where the body's part of it ends. That part goes to `payload`."""
        end = len(data)
        if self._left is not None:
            end = min(end, start + self._left)
            self._left -= end - start
        if payload is not None and end > start:
            payload.append(data[start:end])
        return end


def chunk(data: bytes) -> bytes:
    """One chunk; never call it with nothing, which would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"
