"""What several exporters say alike: an incident as a span, values as text, addresses."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import msgspec

from sentinel_agent.core.event import (
    IncidentLost,
    IncidentOpened,
    IncidentSealed,
    LimitReached,
    TargetAppeared,
    TargetGone,
)
from sentinel_agent.profile.protobuf import block

if TYPE_CHECKING:
    from sentinel_agent.core.model import Incident, Target
    from sentinel_agent.core.span import AttributeValue
    from sentinel_agent.export.base import ExportedEvent


_encode = msgspec.json.Encoder().encode


def incident_ids(incident_id: str) -> tuple[str, str]:
    """A trace id and a span id that always belong to this incident, so that every backend shows it under the same."""
    digest = blake2b(incident_id.encode(), digest_size=24).digest()
    return digest[:16].hex(), digest[16:].hex()


def incident_facts(incident: Incident) -> dict[str, AttributeValue]:
    """What tells an incident, as attributes."""
    facts: dict[str, AttributeValue] = {
        "sentinel.incident.id": incident.id,
        "sentinel.incident.rule": incident.rule,
        "sentinel.incident.reason": incident.reason,
        "sentinel.incident.summary": incident.summary,
        "sentinel.incident.metric": incident.metric,
        "sentinel.incident.unit": incident.unit,
        "sentinel.incident.artifacts": len(incident.artifacts),
        "sentinel.incident.lost_samples": incident.lost_samples,
    }
    for name, value in (("value", incident.value), ("baseline", incident.baseline)):
        if value is not None:
            facts[f"sentinel.incident.{name}"] = value
    for name, bound in incident.thresholds.items():
        if bound is not None:
            facts[f"sentinel.incident.threshold.{name}"] = bound
    return facts


def target_facts(target: Target) -> dict[str, AttributeValue]:
    """Which process, by the names of OpenTelemetry's semantic conventions."""
    facts: dict[str, AttributeValue] = {
        "service.name": target.service,
        "service.instance.id": f"{target.instance}/{target.worker}",
        "process.pid": target.pid,
        "process.runtime.name": "cpython",
    }
    if target.python:
        facts["process.runtime.version"] = target.python
    return facts


def event_name(event: ExportedEvent) -> str:
    """`sentinel.incident.sealed` and so on: the name of an event for machines."""
    return f"sentinel.{_NAMES[type(event)]}"


_NAMES: dict[type, str] = {
    TargetAppeared: "target.appeared",
    TargetGone: "target.gone",
    IncidentOpened: "incident.opened",
    IncidentSealed: "incident.sealed",
    IncidentLost: "incident.lost",
    LimitReached: "limit.reached",
}


def event_words(event: ExportedEvent) -> str:
    """An event in a sentence, for people."""
    match event:
        case TargetAppeared():
            return f"{event.target.role.key} is watched"
        case TargetGone():
            return f"{event.target.role.key} {event.how}"
        case IncidentOpened():
            return f"{event.rule} fired: {event.summary}"
        case IncidentSealed():
            return f"{event.incident.rule} fired: {event.incident.summary}"
        case IncidentLost():
            return f"{event.rule} fired and nothing was kept: {event.why}"
        case LimitReached():
            return f"{event.rule} is met, but its limit is used up"


def event_facts(event: ExportedEvent) -> dict[str, AttributeValue]:
    """What else an event says."""
    match event:
        case IncidentSealed():
            return incident_facts(event.incident)
        case IncidentOpened():
            return {"sentinel.incident.id": event.id, "sentinel.incident.rule": event.rule}
        case IncidentLost():
            return {"sentinel.incident.rule": event.rule, "sentinel.incident.lost": event.why}
        case LimitReached():
            return {"sentinel.incident.rule": event.rule}
        case TargetGone():
            return {"sentinel.target.end": event.how}
    return {}


def event_target(event: ExportedEvent) -> Target:
    """Whom an event is about."""
    return event.incident.target if isinstance(event, IncidentSealed) else event.target


def as_text(value: AttributeValue) -> str:
    """A value where only text is taken: `true`, `12.5`, `200`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def sound(text: str) -> str:
    """Text that UTF-8 can say: a lone surrogate, which a name of a target may hold, becomes `?`."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def text(field: int, value: str) -> bytes:
    """A string field of a protobuf message; nothing for the default, which is no text."""
    return block(field, sound(value).encode()) if value else b""


def to_json(document: Any) -> bytes:
    """JSON of plain data, whatever its texts hold."""
    try:
        return _encode(document)
    except UnicodeEncodeError:
        return _encode(_sound(document))


def _sound(value: Any) -> Any:
    if isinstance(value, str):
        return sound(value)
    if isinstance(value, dict):
        return {sound(key): _sound(item) for key, item in value.items()}
    return [_sound(item) for item in value] if isinstance(value, list | tuple) else value


@lru_cache(maxsize=4096)
def ip_version(address: str) -> int:
    """4 or 6, or 0 for what is no IP address."""
    try:
        return ip_address(address).version
    except ValueError:
        return 0
