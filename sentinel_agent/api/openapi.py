"""The description of `/api/v1` (OpenAPI 3.1), from the same types that are sent."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from sentinel_agent import __version__
from sentinel_agent.api import rest
from sentinel_agent.capture.base import SeriesWindow
from sentinel_agent.core.model import Incident, IncidentRow, Target
from sentinel_agent.standing import RuleView


class Error(msgspec.Struct):
    """What went wrong, for programs (`code`) and people."""

    code: str
    message: str
    hint: str | None


class ErrorDocument(msgspec.Struct):
    """Every answer that is not 2xx."""

    error: Error


class TargetView(msgspec.Struct):
    """A watched process with its last readings. `live`: it is this agent's, its series and stacks can be had."""

    pid: int
    key: str
    target: Target
    readings: dict[str, float]
    errors: dict[str, str]
    time: float
    agent_pid: int
    live: bool


class PeerView(msgspec.Struct):
    """Another agent that is asked. `trouble`: why its last answer is missing, empty if it is not."""

    url: str
    trouble: str
    answered: int
    failed: int


class CaptureView(msgspec.Struct):
    """A capture that was asked for."""

    id: str
    pid: int
    captures: tuple[str, ...]
    state: str
    incident: str | None
    reason: str


class CaptureBody(msgspec.Struct, forbid_unknown_fields=True):
    """What to capture; `duration` is of a profile, in seconds."""

    pid: int
    captures: tuple[str, ...] = ("stacks", "tasks", "process")
    duration: float | None = None


_TYPES = (
    *(ErrorDocument, TargetView, SeriesWindow, RuleView, IncidentRow, Incident, CaptureView),
    *(CaptureBody, PeerView),
)
_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_JOB = {"name": "job", "in": "path", "required": True, "schema": {"type": "string"}}
_PID = {"name": "pid", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}


@functools.cache
def document() -> dict[str, Any]:
    """The whole description."""
    _, components = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    found = {
        "/api/v1/targets": {"get": _get("The watched processes", _many("TargetView"))},
        "/api/v1/targets/{pid}/series": {
            "get": _get("The readings of a target", _ref("SeriesWindow"), _PID, _time("since"))
        },
        "/api/v1/targets/{pid}/stacks": {
            "get": _get(
                "What the flight recorder holds, as a speedscope file",
                {"type": "object"},
                *(_PID, _time("since"), _time("until")),
            )
        },
        "/api/v1/rules": {"get": _get("Every rule, its state and why it is not firing", _many("RuleView"))},
        "/api/v1/peers": {"get": _get("Other agents that are asked", _many("PeerView"))},
        "/api/v1/incidents": {
            "get": _get(
                "What was saved, newest first",
                _many("IncidentRow"),
                *(_word("rule"), _word("target"), _time("since"), _time("until"), _limit()),
            )
        },
        "/api/v1/incidents/{id}": {
            "get": _get("The incident document", _ref("Incident"), _ID),
            "delete": _operation("Remove an incident", {"204": {"description": "removed"}}, _ID),
        },
        "/api/v1/incidents/{id}/artifacts/{name}": {
            "get": _operation("A captured file", {"200": _file()}, _ID, _NAME)
        },
        "/api/v1/captures": {"post": _post()},
        "/api/v1/captures/{job}": {
            "get": _get("How a capture is going", _ref("CaptureView"), _JOB),
            "delete": _get("End a capture", _ref("CaptureView"), _JOB),
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sentinel Agent",
            "version": __version__,
            "description": "What the agent watches and has saved. Times are seconds since the epoch.",
        },
        "paths": found,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _many(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _ref(name)}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _operation(summary: str, answers: dict[str, Any], *parameters: dict[str, Any]) -> dict[str, Any]:
    failed = {"description": "an error", "content": _content(_ref("ErrorDocument"))}
    return {"summary": summary, "parameters": list(parameters), "responses": answers | {"default": failed}}


def _get(summary: str, schema: dict[str, Any], *parameters: dict[str, Any]) -> dict[str, Any]:
    return _operation(summary, {"200": {"description": "done", "content": _content(schema)}}, *parameters)


def _post() -> dict[str, Any]:
    accepted = {
        "description": "begun; ask at Location how it goes",
        "content": _content(_ref("CaptureView")),
        "headers": {"Location": {"schema": {"type": "string"}}},
    }
    found = _operation("Save one incident of a watched target now", {"202": accepted})
    return found | {"requestBody": {"required": True, "content": _content(_ref("CaptureBody"))}}


def _file() -> dict[str, Any]:
    anything = {"schema": {"type": "string", "format": "binary"}}
    kinds = ("application/json", "application/octet-stream")
    return {
        "description": "the file",
        "content": {kind: anything if "octet" in kind else {} for kind in kinds},
    }


def _time(name: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": "number"}}


def _word(name: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": "string", "maxLength": 1000}}


def _limit() -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1, "maximum": rest.LISTED_AT_MOST, "default": rest.LISTED}
    return {"name": "limit", "in": "query", "schema": schema}
