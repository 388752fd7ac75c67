"""Bytes of a head that has not ended yet: bounded, searched once, refused as soon as they cannot become a head."""

from __future__ import annotations

from sentinel_agent.proxy.wire.faults import WireError
from sentinel_agent.proxy.wire.head import END


class HeadBuffer:
    """Collects one head after the other from pieces of any size; reading takes time in proportion to the bytes."""

    __slots__ = ("_limit", "_status", "held")

    def __init__(self, limit: int, status: int) -> None:
        """`status` is the answer to a head that is too large: 431 for a request, 502 for a response.

        `held` is what came of a head so far.
        """
        self.held = bytearray()
        self._limit = limit
        self._status = status

    def take(self, data: bytes) -> tuple[bytes, bytes] | None:
        """A head, with its empty line, and what follows it; None while it has not ended.

        Empty lines before a head are skipped (RFC 9112 section 2.2).

        Raises:
            WireError: it is too large, or has a line that ends in a bare line feed.
        """
        held = self.held
        if not held:
            while data.startswith(b"\r\n"):
                data = data[2:]
            end = data.find(END)
            if 0 <= end <= self._limit - 4:
                return data[: end + 4], data[end + 4 :]
            start = 0
        else:
            start = max(0, len(held) - 3)
            held += data
            while held.startswith(b"\r\n"):
                del held[:2]
                start = 0
            end = held.find(END, start)
            if 0 <= end <= self._limit - 4:
                head, rest = bytes(held[: end + 4]), bytes(held[end + 4 :])
                self.held = bytearray()
                return head, rest
            data = b""
        held += data
        self._refuse_what_cannot_be(start, end)
        return None

    def _refuse_what_cannot_be(self, start: int, end: int) -> None:
        held = self.held
        if end > 0 or len(held) > self._limit:
            raise WireError(self._status, f"the head is longer than {self._limit} bytes")
        if held.count(b"\n", start) != held.count(b"\r\n", max(0, start - 1)):
            raise WireError(400 if self._status < 500 else 502, "a line ends in a bare line feed")
        if held and held[0] != 0x0D and not 0x41 <= held[0] <= 0x5A:  # A to Z: a method, or HTTP/
            raise WireError(400 if self._status < 500 else 502, "this is no HTTP")
