"""A sampled request of the proxy as its spans: the one it served, and the one it sent on. Pure.

Names and attributes follow OpenTelemetry's conventions for HTTP; the name has the route, never the path. A caller that
speaks sw8 becomes a reference of the segment, if it was its header by which the trace was joined; the segment is called
by our client span, because that is what the proxy writes into the sw8 that the upstream gets (`proxy.wire.trace`).
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from sentinel_agent.core.span import Endpoint, SegmentReference, SkyWalking, Span
from sentinel_agent.proxy.wire.trace import sw_span

if TYPE_CHECKING:
    from sentinel_agent.core.span import AttributeValue
    from sentinel_agent.proxy.records import RequestRecord

_NANO = 1_000_000_000
_MAX_PATH = 500
_MAX_DURATION = 86_400.0
_MAX_CORRELATION = 4096
_MAX_PAIRS = 3


def spans_of(record: RequestRecord, service: str, instance: str) -> tuple[Span, ...]:
    """The spans of one request, none if it is not sampled.

    Raises:
        ValueError: the record's ids or times are none.
    """
    if not record.sampled or not 0 <= record.time < 2**33 or not 0 <= record.seconds <= _MAX_DURATION:
        return ()
    start = round(record.time * 1_000_000) * 1000  # a float of today has no more than microseconds
    failed = bool(record.flags) or record.status >= 500
    segment = _place(record)
    server = Span(
        trace_id=record.trace,
        span_id=record.span,
        parent_id=record.parent or None,
        name=f"{record.method} {record.route}".strip() or "request",
        kind="server",
        start=start,
        duration=int(record.seconds * _NANO),
        service=service,
        instance=instance,
        status="error" if failed else "unset",
        status_message=record.detail if failed else "",
        attributes=_attributes(record),
        remote=_endpoint(record.client),
        skywalking=segment,
        debug=record.debug,
    )
    if not record.upstream or not record.client_span:
        return (server,)
    upstream: dict[str, AttributeValue] = {
        "http.request.method": record.method,
        "http.response.status_code": record.status,
        "server.address": record.upstream,
    }
    if record.tries > 1:
        upstream["http.request.resend_count"] = record.tries - 1
    # An upstream that never answered was waited for until the end.
    waited = record.upstream_seconds if 0 < record.upstream_seconds <= record.seconds else record.seconds
    client = Span(
        trace_id=record.trace,
        span_id=record.client_span,
        parent_id=record.span,
        name=f"{record.method} {record.cluster}".strip(),
        kind="client",
        start=start,
        duration=int(waited * _NANO),
        service=service,
        instance=instance,
        status="error" if failed or record.status >= 400 else "unset",
        status_message=record.detail if failed else "",
        attributes=upstream,
        remote=_endpoint(record.upstream, record.cluster),
        skywalking=None if segment is None else SkyWalking(segment.trace_id, segment.segment_id, 1, 0),
        debug=record.debug,
    )
    return (server, client)


def _attributes(record: RequestRecord) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {
        "http.request.method": record.method,
        "url.path": record.path.partition("?")[0][:_MAX_PATH],
        "http.response.status_code": record.status,
        "http.route": record.route,
        "sentinel.listener": record.listener,
    }
    if record.cluster:
        found["sentinel.cluster"] = record.cluster
    if record.host:
        found["server.address"] = record.host
    if record.flags:
        found["error.type"] = record.flags
    return found


def _endpoint(address: str, service: str = "") -> Endpoint | None:
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        host, port = address, "0"
    host = host.strip("[]")
    return Endpoint(service, host, int(port[:5])) if host or service else None


def _place(record: RequestRecord) -> SkyWalking | None:
    """The place in SkyWalking's model that the caller's sw8 gives, None if the trace was not joined by it."""
    reference = _reference(record.sw8)
    if reference is None or f"{sw_span(reference.segment_id, reference.span_id):016x}" != record.parent:
        return None
    segment = record.client_span or record.span
    correlation = _correlation(record.sw8_correlation)
    return SkyWalking(reference.trace_id, segment, 0, -1, (reference,), correlation)


def _correlation(header: str) -> dict[str, str]:
    """What sw8-correlation carries (Cross Process Correlation Headers Protocol v1): base64 pairs; a malformed one is left out."""
    found = {}
    for pair in header[:_MAX_CORRELATION].split(",")[:_MAX_PAIRS]:
        key, _, value = pair.strip().partition(":")
        try:
            found[base64.b64decode(key, validate=True).decode()] = base64.b64decode(
                value, validate=True
            ).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
    found.pop("", None)
    return found


def _reference(header: str) -> SegmentReference | None:
    """What an sw8 header says of the caller (Cross Process Propagation Headers Protocol v3), None if it is none."""
    parts = header.split("-")
    if len(parts) != 8 or not parts[3].isdecimal():
        return None
    try:
        trace, segment, *rest = (
            base64.b64decode(part, validate=True).decode() for part in (*parts[1:3], *parts[4:])
        )
    except (binascii.Error, UnicodeDecodeError):
        return None
    return SegmentReference(trace, segment, int(parts[3][:9]), *rest)
