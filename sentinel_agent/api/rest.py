"""`/api/v1`: what the store and the running agent know, as JSON; asking for captures; deleting.

Errors: `{"error":{"code","message","hint"}}`.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from sentinel_agent.api.captures import AlreadyCapturingError
from sentinel_agent.api.context import CONTEXT
from sentinel_agent.core.rule import CaptureSpec
from sentinel_agent.profile import speedscope
from sentinel_agent.standing import rules_of_agent, running_agents
from sentinel_agent.store.files import read_bounded
from sentinel_agent.store.folder import encode_incident
from sentinel_agent.store.ids import is_id
from sentinel_agent.store.index import IncidentFilter

if TYPE_CHECKING:
    from sentinel_agent.api.live import Live
    from sentinel_agent.store.store import Store

LISTED = 1000
"""Incidents in one answer where no limit is given."""
LISTED_AT_MOST = 10_000
_ARTIFACT_BYTES = 64 * 1024**2
_MAX_TEXT = 1000
_MAX_PID = 2**31 - 1
_LATER = {"Retry-After": "5"}
_PLAIN = {"json": "application/json", "speedscope": "application/json"}


class ApiError(Exception):
    """A request that is not done: status, code and words for the error document."""

    def __init__(self, status: int, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint


def error_response(status: int, code: str, message: str, hint: str | None = None) -> web.Response:
    """The error document."""
    headers = _LATER if status in {429, 503} else {}
    if status == 401:
        headers = {"WWW-Authenticate": "Bearer"}
    return json_response({"error": {"code": code, "message": message, "hint": hint}}, status, headers)


def json_response(
    document: Any, status: int = 200, headers: dict[str, str] | None = None, encoded: bytes | None = None
) -> web.Response:
    """A JSON document."""
    body = msgspec.json.encode(document) if encoded is None else encoded
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


routes = web.RouteTableDef()


@routes.get("/api/v1/targets")
async def targets(request: web.Request) -> web.Response:
    """The watched processes of every agent that runs on this data directory, with their last readings."""
    context = request.app[CONTEXT]
    now = context.clock.wall()
    found = await context.workers.read(running_agents, context.store.data_dir, now)
    recorded = {target.pid for target in context.live.targets()} if context.live else set()
    return json_response(
        [
            {
                "pid": state.target.pid,
                "key": state.target.role.key,
                "target": state.target,
                "readings": state.readings,
                "errors": state.errors,
                "time": agent.time,
                "agent_pid": agent.pid,
                "live": state.target.pid in recorded,
            }
            for agent in found.agents
            for state in agent.targets
        ]
    )


@routes.get("/api/v1/targets/{pid}/series")
async def series(request: web.Request) -> web.Response:
    """The readings of a target, of the last minutes."""
    live, pid = _live(request), _pid(request)
    since = _number(request, "since", 0.0)
    found = live.series(pid, since)
    if found is None:
        raise _no_target(pid)
    return json_response(found)


@routes.get("/api/v1/targets/{pid}/stacks")
async def stacks(request: web.Request) -> web.Response:
    """What the flight recorder holds of a target, as a speedscope timeline."""
    live, pid = _live(request), _pid(request)
    context = request.app[CONTEXT]
    until = min(_number(request, "until", math.inf), context.clock.wall())
    since = max(_number(request, "since", 0.0), until - live.recorder_window)
    if since >= until:
        raise ApiError(400, "bad_request", "the range is empty", "since must be before until")
    record = await live.recorded(pid, since, until)
    if record is None:
        raise _no_target(pid)
    return json_response(None, encoded=await context.workers.merge(speedscope.encode, record))


@routes.get("/api/v1/peers")
async def peers(request: web.Request) -> web.Response:
    """The agents whose data Grafana sees through this one, and how they answered last."""
    return json_response([peer.document() for peer in request.app[CONTEXT].peers.all])


@routes.get("/api/v1/rules")
async def rules(request: web.Request) -> web.Response:
    """Every rule on every target, its state, and why it is not firing."""
    context = request.app[CONTEXT]
    now = context.clock.wall()
    found = await context.workers.read(running_agents, context.store.data_dir, now)
    return json_response([view for agent in found.agents for view in rules_of_agent(agent, now)])


@routes.get("/api/v1/incidents")
async def incidents(request: web.Request) -> web.Response:
    """What was saved, newest first."""
    context = request.app[CONTEXT]
    limit = request.query.get("limit", str(LISTED))
    if not limit.isascii() or not limit.isdecimal() or not 1 <= int(limit[:9]) <= LISTED_AT_MOST:
        raise ApiError(400, "bad_request", f"limit is {limit[:50]!r}", f"a number from 1 to {LISTED_AT_MOST}")
    wanted = IncidentFilter(
        rule=_text(request, "rule"),
        target=_text(request, "target"),
        since=_number(request, "since", None),
        until=_number(request, "until", None),
        limit=int(limit),
    )
    return json_response(
        None, encoded=await context.workers.read(lambda: msgspec.json.encode(context.store.list(wanted)))
    )


@routes.get("/api/v1/incidents/{id}")
async def incident(request: web.Request) -> web.Response:
    """The incident document."""
    store, incident_id = _stored(request)
    work = request.app[CONTEXT].workers.read
    return json_response(None, encoded=await work(lambda: encode_incident(store.read(incident_id))))


@routes.delete("/api/v1/incidents/{id}")
async def delete_incident(request: web.Request) -> web.Response:
    """Remove an incident for good; the limits of its rule stay used."""
    store, incident_id = _stored(request)
    await request.app[CONTEXT].workers.read(store.delete, incident_id)
    return web.Response(status=204)


@routes.get("/api/v1/incidents/{id}/artifacts/{name}")
async def artifact(request: web.Request) -> web.Response:
    """One captured file, to be saved: what is in it came from the target, so a browser must not show it as a page."""
    store, incident_id = _stored(request)
    name = request.match_info["name"]

    def read() -> tuple[bytes, str]:
        path = store.artifact(incident_id, name)
        document = store.read(incident_id)
        form = next((each.format for each in document.artifacts if each.name == name), "json")
        return read_bounded(path, _ARTIFACT_BYTES), form

    try:
        content, form = await request.app[CONTEXT].workers.read(read)
    except OSError as error:
        raise ApiError(404, "not_found", f"{name} cannot be read: {error.strerror}") from error
    return web.Response(
        body=content,
        content_type=_PLAIN.get(form, "application/octet-stream"),
        headers={
            "Content-Disposition": f'attachment; filename="{incident_id}-{name}"',
            "Content-Security-Policy": "sandbox; default-src 'none'",
        },
    )


class _CaptureRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a capture request."""

    pid: int
    captures: tuple[str, ...] = ("stacks", "tasks", "process")
    duration: float | None = None


@routes.post("/api/v1/captures")
async def start_capture(request: web.Request) -> web.Response:
    """Save one incident of a watched target now."""
    jobs = request.app[CONTEXT].jobs
    live = _live(request)
    assert jobs is not None
    wanted = await _capture_request(request, live)
    if not any(target.pid == wanted.pid for target in live.targets()):
        raise _no_target(wanted.pid)
    try:
        job = jobs.start(
            wanted.pid, tuple(CaptureSpec(kind, duration=wanted.duration) for kind in wanted.captures)
        )
    except AlreadyCapturingError:
        raise ApiError(
            429, "busy", f"process {wanted.pid} is being captured already", "wait until that has ended"
        ) from None
    return json_response(job.document(), 202, {"Location": f"/api/v1/captures/{job.id}"})


async def _capture_request(request: web.Request, live: Live) -> _CaptureRequest:
    if request.content_type != "application/json":
        raise ApiError(
            415, "unsupported_media_type", "the body is not JSON", "send Content-Type: application/json"
        )
    try:
        wanted = msgspec.json.decode(await request.read(), type=_CaptureRequest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ApiError(
            400, "bad_request", f"the body cannot be used: {error}", 'for example {"pid": 4711}'
        ) from None
    unknown = [kind for kind in wanted.captures if kind not in live.capture_kinds]
    if unknown or not 1 <= len(wanted.captures) <= len(live.capture_kinds):
        named = ", ".join(repr(kind[:50]) for kind in unknown[:5])
        raise ApiError(
            400,
            "bad_request",
            f"no capture {named or 'was named'}",
            f"there are: {', '.join(sorted(live.capture_kinds))}",
        )
    if wanted.duration is not None and not 0 < wanted.duration <= 60:
        raise ApiError(400, "bad_request", "duration is out of bounds", "more than 0 and at most 60 seconds")
    return wanted


@routes.get("/api/v1/captures/{job}")
async def capture(request: web.Request) -> web.Response:
    """How a capture is going."""
    jobs = request.app[CONTEXT].jobs
    job = jobs.get(request.match_info["job"]) if jobs else None
    if job is None:
        raise ApiError(404, "not_found", "no such capture, or it is long over", "see /api/v1/incidents")
    return json_response(job.document())


@routes.delete("/api/v1/captures/{job}")
async def cancel_capture(request: web.Request) -> web.Response:
    """End a capture that runs; what it wrote is discarded."""
    jobs = request.app[CONTEXT].jobs
    job = jobs.get(request.match_info["job"]) if jobs else None
    if jobs is None or job is None:
        raise ApiError(404, "not_found", "no such capture, or it is long over", "see /api/v1/incidents")
    await jobs.cancel(job)
    return json_response(job.document())


def _live(request: web.Request) -> Live:
    live = request.app[CONTEXT].live
    if live is None:
        raise ApiError(
            404, "no_agent", "no agent runs here, only its store is shown", "sentinel-agent attach PID"
        )
    return live


def _stored(request: web.Request) -> tuple[Store, str]:
    incident_id = request.match_info["id"]
    if not is_id(incident_id):
        raise ApiError(404, "not_found", f"no incident {incident_id[:50]!r}", "see /api/v1/incidents")
    return request.app[CONTEXT].store, incident_id


def _pid(request: web.Request) -> int:
    text = request.match_info["pid"]
    if not text.isascii() or not text.isdecimal() or int(text[:12]) > _MAX_PID:
        raise ApiError(404, "not_found", f"{text[:50]!r} is no process id", "see /api/v1/targets")
    return int(text)


def _no_target(pid: int) -> ApiError:
    return ApiError(404, "not_found", f"process {pid} is not watched", "see /api/v1/targets")


def _text(request: web.Request, name: str) -> str | None:
    text = request.query.get(name)
    if text is not None and len(text) > _MAX_TEXT:
        raise ApiError(400, "bad_request", f"{name} has more than {_MAX_TEXT} characters")
    return text or None


def _number(request: web.Request, name: str, default: Any) -> Any:
    text = request.query.get(name)
    if text is None:
        return default
    with contextlib.suppress(ValueError):
        value = float(text)
        if math.isfinite(value):
            return value
    raise ApiError(400, "bad_request", f"{name} is {text[:50]!r}", "seconds since the epoch are expected")
