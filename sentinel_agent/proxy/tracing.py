"""Where a request stands in a trace: joined where the client sent one, begun where it did not. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sentinel_agent.proxy.wire.head import TRACE_FIELDS
from sentinel_agent.proxy.wire.trace import SwPlace, TraceContext, read_context, read_decision, write_context

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from sentinel_agent.proxy.config import Tracing

_FIELDS = frozenset(TRACE_FIELDS)
_SPAN = (1 << 64) - 1
_tuple = tuple.__new__


class Place(NamedTuple):
    """Our two spans of a request: `context` is the client span, which the upstream is told; its parent is `server`.

    `parent` is the caller's span, 0 where the trace begins here.
    """

    context: TraceContext
    server: int
    parent: int


class Tracer:
    """Reads and writes as the configuration says; decides which of the traces that begin here are kept."""

    def __init__(self, config: Tracing, service: str, instance: str, random: Random) -> None:
        self._read = config.read
        self._write = config.write
        self._share = config.sampling / 100
        self._random = random
        self._bits = random.getrandbits
        self._service = service
        self._instance = instance

    def begin(self, fields: Mapping[bytes, bytes]) -> Place:
        """The place of a request with these header fields.

        A decision of the caller holds, with or without a trace; one that it left open is made here, once for all after us.
        """
        bits = self._bits
        found, decision = None, None
        if fields and not _FIELDS.isdisjoint(fields):
            found = read_context(fields, self._read)
            decision = None if found is not None else read_decision(fields, self._read)
        if (
            found is None and decision is None
        ):  # on the path of nearly every request: one draw, and tuples without their `__new__`
            number = bits(256)
            context = (
                number >> 128 or 1,
                number & _SPAN or 1,
                self._random.random() < self._share,
                b"",
                "",
                False,
            )
            return _tuple(Place, (_tuple(TraceContext, context), number >> 64 & _SPAN or 1, 0))
        server, client = bits(64) or 1, bits(64) or 1
        if found is None:
            assert decision is not None, "else it was handled above"
            began = TraceContext(bits(128) or 1, client, decision.sampled, debug=decision.debug)
            return Place(began, server, 0)
        sampled = found.sampled
        if sampled is None:
            sampled = self._random.random() < self._share
        return Place(found._replace(span_id=client, sampled=sampled), server, found.span_id)

    def lines(self, place: Place, endpoint: bytes, address: str) -> bytes:
        """The header lines for the upstream; `endpoint` is the path, `address` where it goes (for sw8)."""
        names = None
        if "sw8" in self._write:
            path = endpoint.partition(b"?")[0].decode("ascii", "replace")
            names = SwPlace(self._service, self._instance, path, address)
        return write_context(place.context, place.server, self._write, names)
