"""The aiohttp application: every route behind one gate that checks, limits, and makes errors of one form."""

from __future__ import annotations

import asyncio
import importlib.resources
import logging
from typing import TYPE_CHECKING, Final

from aiohttp import web

from sentinel_agent.api import openapi, pyroscope, rest
from sentinel_agent.api.connect import CODE_OF_STATUS, error_body
from sentinel_agent.api.context import CONTEXT, Context
from sentinel_agent.api.rest import ApiError, error_response, json_response
from sentinel_agent.api.work import BusyError
from sentinel_agent.errors import NoSuchIncidentError, SentinelError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sentinel_agent.api.guard import Refusal, Scope

log = logging.getLogger(__name__)

MAX_BODY = 1024**2
SECONDS = 30.0
"""How long an answer may take, reading the request included."""
_OPEN = frozenset({"/", "/healthz", "/readyz"})
_ASSETS = "/assets/"
_KINDS: Final = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

routes = web.RouteTableDef()


@routes.get("/healthz")
async def healthz(_: web.Request) -> web.Response:
    """The process lives and its loop turns."""
    return json_response({"status": "ok"})


@routes.get("/readyz")
async def readyz(request: web.Request) -> web.Response:
    """It can do its work: the store can be read."""
    context = request.app[CONTEXT]
    try:
        statistics = await context.workers.read(context.store.statistics)
    except SentinelError as error:
        return error_response(503, "not_ready", error.message, error.hint)
    live = context.live
    return json_response(
        {
            "status": "ok",
            "incidents": statistics.incidents,
            "targets": len(live.targets()) if live else 0,
            "agent": live is not None,
        }
    )


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.Response:
    """Figures for Prometheus, where its exporter is installed."""
    context = request.app[CONTEXT]
    make = context.metrics
    if make is None:
        raise ApiError(
            404, "no_metrics", "no exporter for Prometheus is active", "see `exporters` in the configuration"
        )
    # A thousand series take tens of milliseconds: not on the loop that ticks.
    content_type, body = await context.workers.merge(make, request.headers.get("Accept"))
    return web.Response(body=body, headers={"Content-Type": content_type})


@routes.get("/api/v1/openapi.json")
async def description(_: web.Request) -> web.Response:
    """This interface, described."""
    return json_response(openapi.document())


@routes.get("/")
async def page(_: web.Request) -> web.Response:
    """The web page."""
    return _file("index.html")


@routes.get("/assets/{name}")
async def asset(request: web.Request) -> web.Response:
    """Its parts."""
    return _file(request.match_info["name"])


def _file(name: str) -> web.Response:
    folder = importlib.resources.files("sentinel_agent.api") / "web"
    found = {each.name: each for each in folder.iterdir()}.get(name)
    kind = _KINDS.get(f".{name.rpartition('.')[2]}")
    if found is None or kind is None:
        raise ApiError(404, "not_found", f"there is nothing at {name[:100]!r}", "the page is at /")
    return web.Response(
        body=found.read_bytes(), content_type=kind, charset="utf-8", headers={"Cache-Control": "no-cache"}
    )


@web.middleware
async def gate(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Check, bound in time, and turn every failure into its document."""
    response = await _guarded(request, handler)
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


async def _guarded(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    refusal = _check(request)
    if refusal is not None:
        if request.path.startswith(pyroscope.SERVICE):
            code = CODE_OF_STATUS.get(refusal.status, "permission_denied")
            return web.Response(
                body=error_body(code, f"{refusal.message}; {refusal.hint}"),
                status=refusal.status,
                content_type="application/json",
            )
        return error_response(refusal.status, refusal.code, refusal.message, refusal.hint)
    try:
        async with asyncio.timeout(SECONDS):
            return await handler(request)
    except web.HTTPException as error:
        return _http_error(request, error)
    except Exception as error:  # noqa: BLE001 - whatever it is, an answer must come
        return error_response(*_words(request, error))


def _words(request: web.Request, error: Exception) -> tuple[int, str, str, str | None]:
    """Status, code, message and hint of a failure."""
    match error:
        case ApiError():
            return error.status, error.code, error.message, error.hint
        case BusyError():
            return 429, "busy", "more is asked for than is done at once", "ask again later"
        case TimeoutError():
            return 503, "timeout", f"it took longer than {SECONDS:.0f} s", "ask for less"
        case NoSuchIncidentError():
            return 404, "not_found", error.message, error.hint
        case SentinelError():
            return 500, "failed", error.message, error.hint
    log.error("internal fault while answering %s", request.path[:200], exc_info=error)
    return 500, "internal", "internal fault, please report it", "the agent's log says more"


def _check(request: web.Request) -> Refusal | None:
    open_to_all = request.path in _OPEN or request.path.startswith(_ASSETS)
    guard = request.app[CONTEXT].guard
    if open_to_all and not guard.address.loopback:
        return None
    scope: Scope = (
        "capture"
        if request.path.startswith("/api/v1/") and request.method not in {"GET", "HEAD", "OPTIONS"}
        else "read"
    )
    if request.path.startswith("/api/v1/") or request.method != "POST":
        return guard.check(request.method, request.headers, scope)
    return guard.check("GET", request.headers, scope)  # a call of Grafana's is a read that comes as a POST


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    """Aiohttp's own refusals in our form."""
    known = {
        404: ("not_found", f"there is nothing at {request.path[:100]!r}", "see /api/v1/openapi.json"),
        405: ("method_not_allowed", f"{request.method} is not possible here", "see /api/v1/openapi.json"),
        413: ("too_large", f"a request has at most {MAX_BODY} bytes", "send less"),
    }
    code, message, hint = known.get(error.status, ("bad_request", error.reason, "see /api/v1/openapi.json"))
    response = error_response(error.status, code, message, hint)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def make_app(context: Context) -> web.Application:
    """The application; cleaning it up ends its captures and threads."""
    app = web.Application(middlewares=[gate], client_max_size=MAX_BODY)
    app[CONTEXT] = context
    for table in (routes, rest.routes, pyroscope.routes):
        app.add_routes(table)

    async def close(_: web.Application) -> None:
        if context.jobs is not None:
            await context.jobs.close()
        await context.peers.close()
        await asyncio.to_thread(context.workers.close)

    app.on_cleanup.append(close)
    return app
