"""Zipkin's JSON: what is in it, what is left out, and that every value is text."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.event import IncidentSealed, TargetGone
from sentinel_agent.core.span import Endpoint, SpanEvent
from sentinel_exporters.zipkin import Options, ZipkinExporter
from tests.export.support import NOW, TARGET, group, span
from tests.exporters.support import context, incident, options, serving

WIDE = f"{2**100 + 7:032x}"


def encoded(*spans: Any) -> list[dict[str, Any]]:
    made = ZipkinExporter(options(Options, url="http://127.0.0.1:9411"), context())
    body = made.encode("spans", [spans])
    assert body is not None
    return json.loads(body)  # type: ignore[no-any-return]


def test_a_request_is_two_spans_that_belong_together() -> None:
    """The client span hangs below the server span, and each names the other side: so the dependency graph has edges."""
    server, client = encoded(*group(7))
    assert server["kind"] == "SERVER"
    assert client["kind"] == "CLIENT"
    assert client["parentId"] == server["id"]
    assert client["traceId"] == server["traceId"]
    assert server["remoteEndpoint"] == {"ipv4": "127.0.0.1", "port": 50123}
    assert client["remoteEndpoint"] == {"serviceName": "orders", "ipv4": "10.0.0.7", "port": 8080}
    assert server["localEndpoint"] == {"serviceName": "gateway"}
    assert server["timestamp"] == int(NOW * 1e6)
    assert server["duration"] == 1500
    assert "debug" not in server
    assert "shared" not in server


def test_flags_are_said_only_where_they_are_true() -> None:
    """`debug` overrules the server's sampling, so it is passed on only from a caller who asked for it; `shared` likewise."""
    (forced,) = encoded(span(1, debug=True, shared=True))
    assert forced["debug"] is True
    assert forced["shared"] is True


def test_what_is_not_sampled_is_not_sent() -> None:
    """A decision against a trace holds for us too; a batch of nothing is no request."""
    made = ZipkinExporter(options(Options, url="http://127.0.0.1:9411"), context())
    assert made.encode("spans", [(span(1, sampled=False),)]) is None


def test_a_fault_is_tagged_and_events_are_annotations() -> None:
    """Zipkin marks a span red by the tag `error`, also where nobody said why."""
    (failed,) = encoded(
        span(1, status="error", status_message="upstream reset", events=(SpanEvent(5000, "retry"),))
    )
    assert failed["tags"]["error"] == "upstream reset"
    assert failed["annotations"] == [{"timestamp": 5, "value": "retry"}]
    (silent,) = encoded(span(1, status="error"))
    assert silent["tags"]["error"] == "true"


def test_ids_and_addresses_in_every_form() -> None:
    """A wide trace id is whole, a padded one short; IPv6 has its own field, a name is a service, nothing is left out as null."""
    v6 = Endpoint("", "2001:db8::1", 443)
    name = Endpoint("", "Upstream.Example", 0)
    wide, padded, bare = encoded(
        span(1, trace_id=WIDE, remote=v6), span(2, remote=name), span(3, remote=Endpoint(), kind="internal")
    )
    assert wide["traceId"] == WIDE
    assert wide["remoteEndpoint"] == {"ipv6": "2001:db8::1", "port": 443}
    assert padded["traceId"] == f"{2:016x}"
    assert padded["remoteEndpoint"] == {"serviceName": "upstream.example"}
    assert not {"kind", "remoteEndpoint", "parentId", "annotations"} & bare.keys()


@given(
    st.dictionaries(st.text(), st.text() | st.integers(-(2**63), 2**63) | st.floats() | st.booleans()),
    st.text(),
)
def test_whatever_attributes_hold_it_is_json_of_text(attributes: dict[str, Any], name: str) -> None:
    """A strict JSON parser takes it, every tag is a string, and a span of no time has its microsecond."""
    (found,) = encoded(span(1, attributes=attributes, name=name, duration=0))
    (surrogate,) = encoded(span(1, name="\udcff", attributes={"\udcff": "\udcff"}))
    assert surrogate["tags"]["?"] == surrogate["name"] == "?"
    assert all(isinstance(value, str) for value in found["tags"].values())
    assert set(attributes) <= set(found["tags"])
    assert found["duration"] == 1


def test_an_incident_is_a_span() -> None:
    """Its readings are tags and annotations, since Zipkin takes no metrics; other events are not for Zipkin."""
    made = ZipkinExporter(options(Options, url="http://127.0.0.1:9411"), context())
    sealed = incident()
    body = made.encode("events", [TargetGone(NOW, TARGET, "ended"), IncidentSealed(NOW, sealed, "folder")])
    assert body is not None
    (found,) = json.loads(body)
    assert found["name"] == "incident cpu-spike"
    assert found["tags"]["sentinel.incident.value"] == "95.0"
    assert found["tags"]["sentinel.incident.id"] == sealed.id
    assert found["duration"] == 700_000
    assert [note["timestamp"] for note in found["annotations"]] == [int(NOW * 1e6), int((NOW + 0.7) * 1e6)]
    assert made.encode("events", [TargetGone(NOW, TARGET, "ended")]) is None


async def test_it_is_posted_as_json() -> None:
    """To the path of the protocol, and the answer is told."""
    async with serving() as server:
        made = ZipkinExporter(options(Options, url=server.url), context())
        body = made.encode("spans", [group()])
        assert body is not None
        assert await made.send("spans", body) == "202 Accepted"
        await made.close()
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/api/v2/spans")
    assert request.headers["content-type"] == "application/json"
    assert len(json.loads(request.body)) == 2
