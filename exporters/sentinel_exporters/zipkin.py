"""Zipkin v2 JSON (zipkin-api, zipkin2-api.yaml 1.0): spans of requests, and each incident as a span.

Zipkin takes no metrics; what a rule saw stands as tags and annotations on the incident's span. Our own encoder, because
OpenTelemetry's (removed from its specification in December 2026) names no remote endpoint, so peers vanish from the
dependency graph, and marks every span `debug`, which overrules the server's sampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sentinel_agent.core.event import IncidentSealed
from sentinel_exporters._common import as_text, incident_facts, incident_ids, ip_version, to_json
from sentinel_exporters.http import HttpOptions, HttpSender, with_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.core.model import Incident
    from sentinel_agent.core.span import Endpoint, Span
    from sentinel_agent.export.base import ExporterContext, ExporterOptions, Item, Signal

PATH = "/api/v2/spans"
_KIND = {"server": "SERVER", "client": "CLIENT"}


class Options(HttpOptions, frozen=True, kw_only=True):
    """Where Zipkin is: `http://zipkin:9411`."""


class ZipkinExporter:
    """See the module."""

    Options: ClassVar[type[ExporterOptions]] = Options
    signals: ClassVar[tuple[Signal, ...]] = ("spans", "events")

    def __init__(self, options: ExporterOptions, context: ExporterContext) -> None:
        assert isinstance(options, Options)
        self._http = HttpSender(options, context)
        self._url = with_path(options.url, PATH)

    def encode(self, signal: Signal, items: Sequence[Item]) -> bytes | None:
        """A JSON array of spans; of events only sealed incidents become one."""
        spans = [
            *(
                zipkin_span(span)
                for item in items
                if isinstance(item, tuple)
                for span in item
                if span.sampled
            ),
            *(incident_span(item.incident) for item in items if isinstance(item, IncidentSealed)),
        ]
        return to_json(spans) if spans else None

    async def send(self, signal: Signal, body: bytes) -> str:
        """POST the array; Zipkin answers 202 before it has stored anything."""
        words, _ = await self._http.post(self._url, body, "application/json")
        return words

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


def zipkin_span(span: Span) -> dict[str, Any]:
    """One span; fields that have nothing to say are left out."""
    tags = {name: as_text(value) for name, value in span.attributes.items()}
    if span.status == "error":
        tags["error"] = span.status_message or "true"
    if span.instance:
        tags["service.instance.id"] = span.instance
    found: dict[str, Any] = {
        "traceId": span.trace_id.removeprefix("0000000000000000"),
        "id": span.span_id,
        "name": span.name.lower(),
        "timestamp": max(1, span.start // 1000),
        "duration": max(1, round(span.duration / 1000)),
        "localEndpoint": {"serviceName": span.service.lower()},
        "tags": tags,
    }
    if span.parent_id is not None:
        found["parentId"] = span.parent_id
    if span.kind in _KIND:
        found["kind"] = _KIND[span.kind]
    if span.remote is not None and (remote := _endpoint(span.remote)):
        found["remoteEndpoint"] = remote
    if span.events:
        found["annotations"] = [
            {"timestamp": event.time // 1000, "value": event.name} for event in span.events
        ]
    if span.debug:
        found["debug"] = True
    if span.shared and span.kind == "server":
        found["shared"] = True
    return found


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    found: dict[str, Any] = {}
    version = ip_version(endpoint.address) if endpoint.address else 0
    name = endpoint.service or ("" if version else endpoint.address)
    if name:
        found["serviceName"] = name.lower()
    if version:
        found[f"ipv{version}"] = endpoint.address
    if endpoint.port:
        found["port"] = endpoint.port
    return found


def incident_span(incident: Incident) -> dict[str, Any]:
    """An incident: from the moment its rule fired until it was sealed."""
    trace_id, span_id = incident_ids(incident.id)
    tags = {name: as_text(value) for name, value in incident_facts(incident).items()}
    began, sealed = int(incident.time * 1e6), int(incident.sealed_time * 1e6)
    return {
        "traceId": trace_id,
        "id": span_id,
        "name": f"incident {incident.rule}".lower(),
        "timestamp": max(1, began),
        "duration": max(1, sealed - began),
        "localEndpoint": {"serviceName": incident.target.service.lower()},
        "annotations": [
            {"timestamp": max(1, began), "value": f"fired: {incident.summary}"},
            {"timestamp": max(1, sealed), "value": f"saved as {incident.id}"},
        ],
        "tags": tags | {"error": incident.summary, "process.pid": str(incident.target.pid)},
    }
