"""Trace context on the wire: W3C Trace Context, B3 (one header and several) and SkyWalking's sw8, read and written.

Sources: W3C Trace Context level 1, section 3; openzipkin/b3-propagation; SkyWalking Cross Process Propagation Headers
Protocol v3 (sw8). A header that is malformed counts as absent: a trace that starts here beats a wrong parent.

SkyWalking names a trace by text and a parent by segment and span number. A trace id of 32 hexadecimal digits (with or
without dashes) is taken as it is, any other text as 128 bits of its BLAKE2b, and the text itself goes on in sw8. The
parent span is the first 64 bits of BLAKE2b of `segment/span`; where a receiver writes sw8 itself, its segment is its
own span id in hexadecimal and its span number 0, so that both ends compute the same parent.
"""

from __future__ import annotations

import base64
import binascii
import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Format = Literal["tracecontext", "b3", "b3multi", "sw8"]

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_B3 = re.compile(rb"([0-9a-f]{32}|[0-9a-f]{16})-([0-9a-f]{16})(?:-([01d])(?:-[0-9a-f]{16})?)?")
_B3_TRACE = re.compile(rb"[0-9a-f]{32}|[0-9a-f]{16}")
_B3_SPAN = re.compile(rb"[0-9a-f]{16}")
_HEX_TRACE = re.compile(r"[0-9a-f]{32}")
_MAX_STATE = 512
_MAX_SW8 = 2048


class TraceContext(NamedTuple):
    """Where a request stands in a trace. `sampled` is None where the sender left the decision to us.

    `state` is the vendor's part of W3C, passed on; `sw_trace` SkyWalking's text for the trace, where it is not the
    hexadecimal form; `debug` B3's wish that the trace is kept whatever it costs.
    """

    trace_id: int
    span_id: int
    sampled: bool | None
    state: bytes = b""
    sw_trace: str = ""
    debug: bool = False


class Decision(NamedTuple):
    """What a sender that began no trace said of the one that begins here."""

    sampled: bool
    debug: bool = False


class SwPlace(NamedTuple):
    """What sw8 says of the sender beside the trace: names of service and instance, and where it sends to."""

    service: str
    instance: str
    endpoint: str
    address: str


def read_context(fields: Mapping[bytes, bytes], formats: Sequence[Format]) -> TraceContext | None:
    """The context of a request from the first of `formats` that is there and sound; None where there is none."""
    for each in formats:
        found = _READERS[each](fields)
        if found is not None and found.trace_id and found.span_id:
            return found
    return None


def _read_tracecontext(fields: Mapping[bytes, bytes]) -> TraceContext | None:
    value = fields.get(b"traceparent")
    found = _TRACEPARENT.fullmatch(value) if value else None
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5] is not None):
        return None
    state = fields.get(b"tracestate", b"")
    return TraceContext(
        int(found[2], 16),
        int(found[3], 16),
        bool(int(found[4], 16) & 1),
        state if len(state) <= _MAX_STATE else b"",
    )


def _read_b3(fields: Mapping[bytes, bytes]) -> TraceContext | None:
    value = fields.get(b"b3")
    found = _B3.fullmatch(value) if value else None
    if found is None:
        return None
    sampled = None if found[3] is None else found[3] != b"0"
    return TraceContext(int(found[1], 16), int(found[2], 16), sampled, debug=found[3] == b"d")


def _read_b3multi(fields: Mapping[bytes, bytes]) -> TraceContext | None:
    trace, span = fields.get(b"x-b3-traceid", b""), fields.get(b"x-b3-spanid", b"")
    if _B3_TRACE.fullmatch(trace) is None or _B3_SPAN.fullmatch(span) is None:
        return None
    decision = _decide_b3multi(fields)
    if decision is None:
        return TraceContext(int(trace, 16), int(span, 16), None)
    return TraceContext(int(trace, 16), int(span, 16), decision.sampled, debug=decision.debug)


def read_decision(fields: Mapping[bytes, bytes], formats: Sequence[Format]) -> Decision | None:
    """The decision that came without a trace (B3 alone has that: `b3: 0`), from the first of `formats` that has one."""
    for each in formats:
        decide = _DECIDERS.get(each)
        found = None if decide is None else decide(fields)
        if found is not None:
            return found
    return None


def _decide_b3(fields: Mapping[bytes, bytes]) -> Decision | None:
    return _B3_DECISIONS.get(fields.get(b"b3", b""))


def _decide_b3multi(fields: Mapping[bytes, bytes]) -> Decision | None:
    if fields.get(b"x-b3-flags") == b"1":  # debug says sampled too
        return Decision(True, True)
    return _B3MULTI_DECISIONS.get(fields.get(b"x-b3-sampled", b""))


def _read_sw8(fields: Mapping[bytes, bytes]) -> TraceContext | None:
    value = fields.get(b"sw8", b"")
    parts = value.split(b"-")
    if len(value) > _MAX_SW8 or len(parts) != 8 or parts[0] not in (b"0", b"1") or not parts[3].isdigit():
        return None
    try:
        trace = base64.b64decode(parts[1], validate=True).decode()
        segment = base64.b64decode(parts[2], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    if not trace or not segment:
        return None
    plain = trace.replace("-", "")
    hexadecimal = _HEX_TRACE.fullmatch(plain) is not None
    trace_id = int(plain, 16) if hexadecimal else _number(trace, 16)
    return TraceContext(
        trace_id,
        sw_span(segment, int(parts[3][:9])),
        parts[0] == b"1",
        sw_trace="" if plain == trace and hexadecimal else trace,
    )


def sw_span(segment: str, number: int) -> int:
    """The 64-bit name of SkyWalking's span `number` of `segment`; a segment that is our own span id is that span."""
    if number == 0 and re.fullmatch(r"[0-9a-f]{16}", segment):
        return int(segment, 16)
    return _number(f"{segment}/{number}", 8)


def _number(text: str, size: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest(), "big")


_READERS = {
    "tracecontext": _read_tracecontext,
    "b3": _read_b3,
    "b3multi": _read_b3multi,
    "sw8": _read_sw8,
}

_B3_DECISIONS: Final = {b"0": Decision(False), b"1": Decision(True), b"d": Decision(True, True)}
_B3MULTI_DECISIONS: Final = {
    b"0": Decision(False),
    b"1": Decision(True),
    b"false": Decision(False),
    b"true": Decision(True),
}
_DECIDERS: Final[dict[Format, Callable[[Mapping[bytes, bytes]], Decision | None]]] = {
    "b3": _decide_b3,
    "b3multi": _decide_b3multi,
}

HEADERS: dict[Format, tuple[bytes, ...]] = {
    "tracecontext": (b"traceparent", b"tracestate"),
    "b3": (b"b3",),
    "b3multi": (b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"x-b3-sampled", b"x-b3-flags"),
    "sw8": (b"sw8",),
}
"""The header fields of each format: what must be taken out where ours go in."""


def write_context(
    context: TraceContext, parent: int, formats: Sequence[Format], place: SwPlace | None = None
) -> bytes:
    """Header lines for a request that is sent as span `context.span_id`, whose own parent is `parent` (0: none)."""
    trace, span = context.trace_id, context.span_id
    sampled = bool(context.sampled)
    if formats == ("tracecontext",) and not context.state:
        return b"traceparent: 00-%032x-%016x-0%d\r\n" % (trace, span, sampled)
    text = b""
    for each in formats:
        if each == "tracecontext":
            text += b"traceparent: 00-%032x-%016x-0%d\r\n" % (trace, span, sampled)
            if context.state:
                text += b"tracestate: %b\r\n" % context.state
        elif each == "b3":
            text += b"b3: %032x-%016x-%b\r\n" % (trace, span, b"d" if context.debug else b"%d" % sampled)
        elif each == "b3multi":
            decision = b"X-B3-Flags: 1" if context.debug else b"X-B3-Sampled: %d" % sampled
            text += b"X-B3-TraceId: %032x\r\nX-B3-SpanId: %016x\r\n%b\r\n" % (trace, span, decision)
            if parent:
                text += b"X-B3-ParentSpanId: %016x\r\n" % parent
        else:
            text += _write_sw8(context, place or SwPlace("-", "-", "-", "-"))
    return text


def _write_sw8(context: TraceContext, place: SwPlace) -> bytes:
    trace = context.sw_trace or f"{context.trace_id:032x}"
    names = (trace, f"{context.span_id:016x}", place.service, place.instance, place.endpoint, place.address)
    one, two, *rest = (base64.b64encode(name.encode()) for name in names)
    return b"sw8: %d-%b-%b-0-%b\r\n" % (bool(context.sampled), one, two, b"-".join(rest))
