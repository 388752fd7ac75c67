"""SkyWalking's messages (skywalking-data-collect-protocol v3: Tracing, Meter, Event, Logging, Management .proto).

Our own encoder: the Python package of the generated messages brings grpcio, which deadlocks and crashes
where processes are started, and its newest release lacks the messages altogether. Times are milliseconds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from sentinel_agent.profile.protobuf import block, double, integer
from sentinel_exporters._common import as_text, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sentinel_agent.core.span import SegmentReference, Span, SpanKind

_TYPES: dict[SpanKind, int] = {"server": 0, "client": 1, "internal": 2}  # Entry, Exit, Local
_HTTP = 3
_LONG = 100
"""Characters of a value that are worth keeping for the next span."""
_TAGS = {
    "http.request.method": "http.method",
    "http.response.status_code": "http.status_code",
    "url.full": "url",
    "url.path": "url",
}
"""What SkyWalking's screens and analyzers look for, by the names of OpenTelemetry."""


def pairs(field: int, values: Mapping[str, str]) -> bytes:
    """KeyStringValuePair*, in the order given."""
    return b"".join(
        (_pair if len(value) > _LONG else _known_pair)(field, key, value) for key, value in values.items()
    )


def _pair(field: int, key: str, value: str) -> bytes:
    return block(field, text(1, key) + text(2, value))


_known_pair = lru_cache(maxsize=4096)(_pair)
"""Most tags of most spans are the same few."""


def segment(
    spans: Sequence[Span],
    places: Sequence[tuple[int, int]],
    *,
    trace_id: str,
    segment_id: str,
    component: int,
    correlated: Sequence[str] = (),
) -> bytes:
    """A SegmentObject; `places` are the (span id, parent span id) of each span within it.

    Of what a caller's correlation carried, the keys in `correlated` become tags.
    """
    first = spans[0]
    return b"".join(
        (
            text(1, trace_id),
            text(2, segment_id),
            *(
                block(3, _span(span, place, component, correlated))
                for span, place in zip(spans, places, strict=True)
            ),
            text(4, first.service),
            text(5, instance_of(first.service, first.instance)),
        )
    )


def _span(span: Span, place: tuple[int, int], component: int, correlated: Sequence[str]) -> bytes:
    own = span.skywalking
    start = span.start // 1_000_000
    tags = {_TAGS.get(name, name): as_text(value) for name, value in span.attributes.items()}
    if correlated and own is not None:
        tags |= {key: own.correlation[key] for key in correlated if key in own.correlation}
    failure = {"event": "error", "message": span.status_message} if span.status_message else {}
    end = (span.start + span.duration) // 1_000_000
    return b"".join(
        (
            integer(1, place[0]),
            integer(2, place[1]),
            integer(3, start),
            integer(4, end),
            *(block(5, _reference(ref)) for ref in (own.refs if own else ())),
            text(6, span.name),
            text(7, _peer(span)),
            integer(8, _TYPES[span.kind]),
            integer(9, _HTTP if span.kind != "internal" else 0),
            integer(10, component),
            integer(11, span.status == "error"),
            pairs(12, tags),
            *(
                block(
                    13,
                    integer(1, event.time // 1_000_000)
                    + pairs(
                        2,
                        {
                            "event": event.name,
                            **{key: as_text(each) for key, each in event.attributes.items()},
                        },
                    ),
                )
                for event in span.events
            ),
            block(13, integer(1, end) + pairs(2, failure)) if failure else b"",
            integer(14, bool(own and own.skip_analysis)),
        )
    )


def _reference(ref: SegmentReference) -> bytes:
    return b"".join(
        (
            text(2, ref.trace_id),
            text(3, ref.segment_id),
            integer(4, ref.span_id),
            text(5, ref.service),
            text(6, ref.instance),
            text(7, ref.endpoint),
            text(8, ref.address),
        )
    )


def _peer(span: Span) -> str:
    """An Exit span must name the address that was dialled: the topology's edge ends there."""
    if span.kind != "client" or span.remote is None:
        return ""
    remote = span.remote
    host = remote.address or remote.service
    if ":" in host:
        host = f"[{host}]"
    return f"{host}:{remote.port}" if remote.port else host


def meters(service: str, instance: str, time: int, values: Mapping[str, float]) -> bytes:
    """A MeterDataCollection: the values of one moment. Who and when stands in its first element only."""
    found: list[bytes] = []
    for name, value in values.items():
        who = b"" if found else text(3, service) + text(4, instance) + integer(5, time)
        found.append(block(1, block(1, text(1, name) + double(3, value)) + who))
    return b"".join(found)


def event(
    *,
    uuid: str,
    service: str,
    instance: str,
    name: str,
    error: bool,
    words: str,
    parameters: Mapping[str, str],
    start: int,
    end: int,
    layer: str,
) -> bytes:
    """An Event. A second one of the same `uuid` ends the first. The server refuses one without `layer`."""
    return b"".join(
        (
            text(1, uuid),
            block(2, text(1, service) + text(2, instance)),
            text(3, name),
            integer(4, error),
            text(5, words),
            pairs(6, parameters),
            integer(7, start),
            integer(8, end),
            text(9, layer),
        )
    )


def log(
    *,
    time: int,
    service: str,
    instance: str,
    words: str,
    trace_id: str,
    tags: Mapping[str, str],
    layer: str,
) -> bytes:
    """A LogData with a text as its body."""
    return b"".join(
        (
            integer(1, time),
            text(2, service),
            text(3, instance),
            block(5, text(1, "TEXT") + block(2, text(1, words))),
            block(6, text(1, trace_id)) if trace_id else b"",
            block(7, pairs(1, tags)),
            text(8, layer),
        )
    )


def properties(service: str, instance: str, values: Mapping[str, str], layer: str) -> bytes:
    """InstanceProperties."""
    return b"".join((text(1, service), text(2, instance), pairs(3, values), text(4, layer)))


def ping(service: str, instance: str, layer: str) -> bytes:
    """InstancePingPkg."""
    return b"".join((text(1, service), text(2, instance), text(3, layer)))


def instance_of(service: str, instance: str) -> str:
    """SkyWalking wants a name for every instance."""
    return instance or service
