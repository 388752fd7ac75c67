"""One finished unit of work in a trace: what the proxy produces and every exporter encodes.

The shape follows the OpenTelemetry trace data model and Zipkin's v2 span; `SkyWalking` holds what only SkyWalking's
protocol (cross-process header `sw8`, version 3) needs and the others have no place for. Ids are checked when a
span is made, so that one wrong header cannot spoil a batch later.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

AttributeValue = str | int | float | bool
SpanKind = Literal["server", "client", "internal"]
SpanStatus = Literal["unset", "ok", "error"]

_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}").fullmatch
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}").fullmatch


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """The other side of a span. `address` is an IPv4 or IPv6 address as text, or a host name; `port` 0: not known."""

    service: str = ""
    address: str = ""
    port: int = 0


class SpanEvent(msgspec.Struct, frozen=True):
    """Something that happened at one moment of a span; `time` in nanoseconds since the epoch."""

    time: int
    name: str
    attributes: dict[str, AttributeValue] = {}


class SegmentReference(msgspec.Struct, frozen=True, gc=False):
    """The caller's span as the header `sw8` names it: `span_id` counts within the caller's segment.

    `address` is the one by which the caller reached this process, as it wrote it.
    """

    trace_id: str
    segment_id: str
    span_id: int
    service: str
    instance: str
    endpoint: str
    address: str


class SkyWalking(msgspec.Struct, frozen=True):
    """A span's place in SkyWalking's model, where a segment is all spans of one request in one process.

    `trace_id` and `segment_id` are free text: a caller's need not be hexadecimal. `span_id` counts from 0 within the
    segment, `parent_span_id` is -1 for its first span. `correlation` is what `sw8-correlation` carried.
    """

    trace_id: str
    segment_id: str
    span_id: int
    parent_span_id: int = -1
    refs: tuple[SegmentReference, ...] = ()
    correlation: dict[str, str] = {}
    skip_analysis: bool = False


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A finished span.

    `trace_id` has 32 and `span_id`, `parent_id` have 16 lower-case hexadecimal digits, not all zero; a 64-bit trace id
    is padded with zeros on the left. `start` is in nanoseconds since the epoch, `duration` in nanoseconds. `service`
    and `instance` name the process that did the work, `remote` the one it worked for (server) or asked (client).
    `sampled` is the decision that was passed on with the trace, `debug` that the caller forced it (B3 flags),
    `shared` that the caller's client span has the same id (Zipkin).

    Raises:
        ValueError: an id is not as said, or the duration is negative.
    """

    trace_id: str
    span_id: str
    parent_id: str | None = None
    name: str
    kind: SpanKind = "internal"
    start: int
    duration: int
    service: str
    instance: str = ""
    status: SpanStatus = "unset"
    status_message: str = ""
    attributes: dict[str, AttributeValue] = {}
    events: tuple[SpanEvent, ...] = ()
    remote: Endpoint | None = None
    sampled: bool = True
    debug: bool = False
    shared: bool = False
    trace_state: str = ""
    skywalking: SkyWalking | None = None

    def __post_init__(self) -> None:
        if not _TRACE_ID(self.trace_id):
            raise ValueError(f"expected a trace id of 32 lower-case hex digits, found {self.trace_id!r:.60}")
        for name, found in (("span", self.span_id), ("parent", self.parent_id)):
            if found is not None and not _SPAN_ID(found):
                raise ValueError(f"expected a {name} id of 16 lower-case hex digits, found {found!r:.60}")
        if self.duration < 0:
            raise ValueError(f"a span cannot take {self.duration} ns")
