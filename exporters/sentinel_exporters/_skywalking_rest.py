"""SkyWalking's REST endpoints: the messages of `_skywalking_messages` as the JSON that protobuf says is theirs.

What waits, in memory or on disk, are always the messages; so a server can be asked over gRPC today and over HTTP tomorrow.
The fields are those that we write. Meters have no endpoint.

Sources: protobuf.dev, "ProtoJSON Format"; skywalking-data-collect-protocol v3; the handlers of SkyWalking's receivers
(Trace, Log, Management and Event), which take arrays where `_ENDPOINTS` says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sentinel_agent.profile.protobuf import fields
from sentinel_exporters._common import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class _Of(NamedTuple):
    """A field: its name, and what it holds. `long`: 64 bits, which JSON has as text."""

    name: str
    holds: str | tuple[str, ...] | Mapping[int, _Of] = "text"
    repeated: bool = False


_PAIR = {1: _Of("key"), 2: _Of("value")}
_REFERENCE = {
    1: _Of("refType", ("CrossProcess", "CrossThread")),
    2: _Of("traceId"),
    3: _Of("parentTraceSegmentId"),
    4: _Of("parentSpanId", "int"),
    5: _Of("parentService"),
    6: _Of("parentServiceInstance"),
    7: _Of("parentEndpoint"),
    8: _Of("networkAddressUsedAtPeer"),
}
_SPAN = {
    1: _Of("spanId", "int"),
    2: _Of("parentSpanId", "int"),
    3: _Of("startTime", "long"),
    4: _Of("endTime", "long"),
    5: _Of("refs", _REFERENCE, repeated=True),
    6: _Of("operationName"),
    7: _Of("peer"),
    8: _Of("spanType", ("Entry", "Exit", "Local")),
    9: _Of("spanLayer", ("Unknown", "Database", "RPCFramework", "Http", "MQ", "Cache", "FAAS")),
    10: _Of("componentId", "int"),
    11: _Of("isError", "bool"),
    12: _Of("tags", _PAIR, repeated=True),
    13: _Of("logs", {1: _Of("time", "long"), 2: _Of("data", _PAIR, repeated=True)}, repeated=True),
    14: _Of("skipAnalysis", "bool"),
}
_SEGMENT = {
    1: _Of("traceId"),
    2: _Of("traceSegmentId"),
    3: _Of("spans", _SPAN, repeated=True),
    4: _Of("service"),
    5: _Of("serviceInstance"),
}
_EVENT = {
    1: _Of("uuid"),
    2: _Of("source", {1: _Of("service"), 2: _Of("serviceInstance")}),
    3: _Of("name"),
    4: _Of("type", ("Normal", "Error")),
    5: _Of("message"),
    6: _Of("parameters", "map"),
    7: _Of("startTime", "long"),
    8: _Of("endTime", "long"),
    9: _Of("layer"),
}
_LOG = {
    1: _Of("timestamp", "long"),
    2: _Of("service"),
    3: _Of("serviceInstance"),
    5: _Of("body", {1: _Of("type"), 2: _Of("text", {1: _Of("text")})}),
    6: _Of("traceContext", {1: _Of("traceId")}),
    7: _Of("tags", {1: _Of("data", _PAIR, repeated=True)}),
    8: _Of("layer"),
}
_PROPERTIES = {
    1: _Of("service"),
    2: _Of("serviceInstance"),
    3: _Of("properties", _PAIR, repeated=True),
    4: _Of("layer"),
}
_PING = {1: _Of("service"), 2: _Of("serviceInstance"), 3: _Of("layer")}


class _Endpoint(NamedTuple):
    path: str
    holds: Mapping[int, _Of]
    array: bool = True


_ENDPOINTS = {
    "/skywalking.v3.TraceSegmentReportService/collectInSync": _Endpoint(
        "/v3/segments", {1: _Of("segments", _SEGMENT, repeated=True)}
    ),
    "/skywalking.v3.EventService/collect": _Endpoint("/v3/events", _EVENT),
    "/skywalking.v3.LogReportService/collect": _Endpoint("/v3/logs", _LOG),
    "/skywalking.v3.ManagementService/reportInstanceProperties": _Endpoint(
        "/v3/management/reportProperties", _PROPERTIES, array=False
    ),
    "/skywalking.v3.ManagementService/keepAlive": _Endpoint("/v3/management/keepAlive", _PING, array=False),
}


def rest_call(method: str, messages: Sequence[bytes]) -> tuple[str, bytes]:
    """The path and the body of a call that `_ENDPOINTS` has."""
    endpoint = _ENDPOINTS[method]
    found = [as_plain(memoryview(message), endpoint.holds) for message in messages]
    if endpoint.path == "/v3/segments":  # a collection there, an array here
        found = [segment for each in found for segment in each["segments"]]
    return endpoint.path, to_json(found if endpoint.array else found[0])


def as_plain(message: memoryview, shape: Mapping[int, _Of]) -> dict[str, Any]:
    """A message of ours as ProtoJSON has it."""
    found: dict[str, Any] = {}
    for field in fields(message):
        name, holds, repeated = shape[field.number]
        if holds == "map":
            pair = as_plain(field.body, _PAIR)
            found.setdefault(name, {})[pair["key"]] = pair.get("value", "")
            continue
        value: Any
        if isinstance(holds, tuple):
            value = holds[field.value]
        elif not isinstance(holds, str):
            value = as_plain(field.body, holds)
        elif holds == "text":
            value = str(field.body, "utf-8")
        elif holds == "bool":
            value = bool(field.value)
        else:
            value = str(field.value) if holds == "long" else field.value
        if repeated:
            found.setdefault(name, []).append(value)
        else:
            found[name] = value
    return found
