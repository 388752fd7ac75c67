"""A body that filters change on its way to the client, and its new framing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.proxy.wire.body import LAST_CHUNK, chunk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.proxy.filters import Encoder


class Encoding:
    """The encoders of one body, one after the other; in chunks if `chunked`, else it ends with the connection."""

    __slots__ = ("_chunked", "_encoders", "_over")

    def __init__(self, encoders: Sequence[Encoder], *, chunked: bool) -> None:
        self._encoders = encoders
        self._chunked = chunked
        self._over = False

    def feed(self, data: bytes) -> bytes:
        """What goes to the client for the next piece; may be nothing yet."""
        for encoder in self._encoders:
            data = encoder.feed(data) if data else b""
        return chunk(data) if data and self._chunked else data

    def end(self, data: bytes = b"") -> bytes:
        """What goes to the client for the last piece; nothing, if that was said before."""
        if self._over:
            return b""
        begin, rest = self.feed(data), b""
        for encoder in self._encoders:
            rest = (encoder.feed(rest) if rest else b"") + encoder.end()
        self.drop()
        if not self._chunked:
            return begin + rest
        return begin + (chunk(rest) if rest else b"") + LAST_CHUNK

    def drop(self) -> None:
        """The body is over, or broke off."""
        if not self._over:
            self._over = True
            for encoder in self._encoders:
                encoder.drop()
