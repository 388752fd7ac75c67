"""The mark of a request, by which its whole way through several hops stays in one colour. Pure.

In a header of its own, or as a member of `baggage` (W3C Baggage, section 3.3.1), which services hand on with the trace.
A mark that came is passed on as it came; one that a route gives is added to what came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentinel_agent.proxy.config_upstream import Coloring

MAX_BAGGAGE = 8192
"""Bytes of a header `baggage` that everybody must be able to pass on (W3C Baggage, section 3.3.2)."""


class Color:
    """Reads and writes marks. `field` is the header where they are, in lower case."""

    __slots__ = ("_member", "_name", "field")

    def __init__(self, coloring: Coloring) -> None:
        self._member = None if coloring.baggage is None else coloring.baggage.encode()
        self._name = (coloring.header or "baggage").encode()
        self.field = self._name.lower()

    def read(self, value: bytes | None) -> bytes | None:
        """The mark in the value of the header."""
        if value is None or self._member is None:
            return value
        for entry in value.split(b","):
            key, found, rest = entry.partition(b"=")
            if found and key.strip() == self._member:
                return rest.partition(b";")[0].strip()
        return None

    def line(self, value: bytes | None, mark: bytes) -> bytes:
        """The header's line with `mark` in it, in place of any other mark; `value` is what came."""
        if self._member is None:
            return b"%b: %b\r\n" % (self._name, mark)
        ours = b"%b=%b" % (self._member, mark)
        others = [
            entry.strip()
            for entry in (value or b"").split(b",")
            if entry.partition(b"=")[0].strip() != self._member
        ]
        kept = b",".join(entry for entry in others if entry)
        if not kept or len(kept) + len(ours) > MAX_BAGGAGE:
            return b"baggage: %b\r\n" % ours
        return b"baggage: %b,%b\r\n" % (kept, ours)
