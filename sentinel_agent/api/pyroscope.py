"""Grafana's side: the calls of `querier.v1.QuerierService`, and the plain HTTP that Profiles Drilldown uses beside them.

Which calls, and how they are encoded: `messages` and `connect`. A call with a format that is not made here is answered
with `unimplemented`, on which Grafana falls back to the flame graph.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

from sentinel_agent.api import messages
from sentinel_agent.api.connect import (
    JSON,
    STATUS,
    ConnectError,
    codec_of,
    compressed,
    error_body,
)
from sentinel_agent.api.context import CONTEXT, Context
from sentinel_agent.api.peers import MISSING_HEADER, PEER_HEADER, merged
from sentinel_agent.api.querier import TYPES, LiveRecord, ProfileType, query_of, times_of
from sentinel_agent.api.rest import json_response
from sentinel_agent.api.work import BusyError
from sentinel_agent.core.units import parse_duration
from sentinel_agent.errors import SentinelError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Call = Callable[[Context, dict[str, Any]], Awaitable[dict[str, Any]]]

SERVICE = "/querier.v1.QuerierService/"
_FLAMEGRAPH_FORMATS = (0, 1)
_RELATIVE = re.compile(r"now(?:-(.+))?")

routes = web.RouteTableDef()


class _Method(NamedTuple):
    """A call: its messages and what does it."""

    request: messages.Message
    reply: messages.Message
    call: Call


async def _profile_types(_: Context, __: dict[str, Any]) -> dict[str, Any]:
    found = []
    for kind in TYPES.values():
        labels = kind.labels
        found.append(
            {
                "ID": kind.id,
                "name": labels["__name__"],
                "sample_type": labels["__type__"],
                "sample_unit": labels["__unit__"],
                "period_type": labels["__period_type__"],
                "period_unit": labels["__period_unit__"],
            }
        )
    return {"profile_types": found}


async def _label_names(context: Context, _: dict[str, Any]) -> dict[str, Any]:
    return {"names": context.querier.label_names()}


async def _label_values(context: Context, request: dict[str, Any]) -> dict[str, Any]:
    querier, targets = context.querier, _targets(context)

    def work() -> list[str]:
        sets = querier.label_sets(request["matchers"], *times_of(request), targets)
        return querier.label_values(request["name"], sets)

    return {"names": await context.workers.merge(work)}


async def _series(context: Context, request: dict[str, Any]) -> dict[str, Any]:
    targets = _targets(context)

    def work() -> list[tuple[tuple[str, str], ...]]:
        wanted = set(request["label_names"])
        found: dict[tuple[tuple[str, str], ...], None] = {}
        for labels in context.querier.label_sets(request["matchers"], *times_of(request), targets):
            kept = sorted((name, labels[name]) for name in labels if not wanted or name in wanted)
            found[tuple(kept)] = None
            if len(found) >= messages.MAX_LIST:
                break
        return list(found)

    sets = await context.workers.merge(work)
    return {
        "labels_set": [
            {"labels": [{"name": name, "value": value} for name, value in labels]} for labels in sets
        ]
    }


async def _stacktraces(context: Context, request: dict[str, Any]) -> dict[str, Any]:
    if request["format"] not in _FLAMEGRAPH_FORMATS:
        raise ConnectError(
            "unimplemented", f"{messages.FORMAT[request['format']]} is not made here, a flame graph is"
        )
    if request.get("span_selector"):
        return {}  # stacks are not kept per span
    live = await _live_records(context, request)
    return await context.workers.merge(context.querier.flame_graph, request, live)


async def _select_series(context: Context, request: dict[str, Any]) -> dict[str, Any]:
    live = await _live_records(context, request)
    return await context.workers.merge(context.querier.series, request, live)


async def _merge_profile(context: Context, request: dict[str, Any]) -> dict[str, Any]:
    live = await _live_records(context, request)
    return await context.workers.merge(context.querier.pprof, request, live)


async def _diff(context: Context, request: dict[str, Any]) -> dict[str, Any]:
    left = await _live_records(context, request["left"])
    right = await _live_records(context, request["right"])
    return await context.workers.merge(context.querier.difference, request, left, right)


async def _stats(context: Context, _: dict[str, Any]) -> dict[str, Any]:
    return await context.workers.merge(context.querier.stats, _targets(context))


METHODS = {
    "ProfileTypes": _Method(messages.TIMES, messages.PROFILE_TYPES, _profile_types),
    "LabelNames": _Method(messages.LABEL_NAMES, messages.NAMES, _label_names),
    "LabelValues": _Method(messages.LABEL_VALUES, messages.NAMES, _label_values),
    "Series": _Method(messages.SERIES, messages.SERIES_REPLY, _series),
    "SelectSeries": _Method(messages.SELECT_SERIES, messages.SELECT_SERIES_REPLY, _select_series),
    "SelectMergeStacktraces": _Method(messages.STACKTRACES, messages.STACKTRACES_REPLY, _stacktraces),
    "SelectMergeSpanProfile": _Method(messages.SPAN_PROFILE, messages.STACKTRACES_REPLY, _stacktraces),
    "SelectMergeProfile": _Method(messages.MERGE_PROFILE, messages.PPROF, _merge_profile),
    "Diff": _Method(messages.DIFF, messages.DIFF_REPLY, _diff),
    "GetProfileStats": _Method(messages.NOTHING, messages.STATS_REPLY, _stats),
}


def _targets(context: Context) -> tuple[Any, ...]:
    return tuple(context.live.targets()) if context.live else ()


async def _live_records(context: Context, request: Mapping[str, Any]) -> list[LiveRecord]:
    """What the recorder holds of every target that the query may be about."""
    query, live = query_of(request), context.live
    if live is None or not query.type.recorded or query.selector.exact("dump_id") or query.ids:
        return []
    now = context.clock.wall()
    since, until = max(query.start, now - live.recorder_window), min(query.end, now)
    found = []
    for target in _targets(context) if since < until else ():
        record = await live.recorded(target.pid, since, until)
        if record is not None:
            found.append(LiveRecord(target, record))
    return found


@routes.post(SERVICE + "{method}")
async def call(request: web.Request) -> web.Response:
    """One unary call."""
    codec = codec_of(request.headers.get("Content-Type", ""))
    if codec is None:
        return web.Response(status=415, headers={"Accept-Post": "application/proto, application/json"})
    return await _connected(_call(request, codec))


async def _connected(answer: Awaitable[web.Response]) -> web.Response:
    """The answer, or its failure as Connect has it."""
    try:
        return await answer
    except ConnectError as error:
        return _failed(error)
    except (ValueError, KeyError) as error:
        unknown = isinstance(error, messages.UnknownEnumError)
        return _failed(ConnectError("unimplemented" if unknown else "invalid_argument", str(error)))
    except BusyError:
        return _failed(ConnectError("resource_exhausted", "too many queries wait already; ask again later"))
    except SentinelError as error:
        return _failed(ConnectError("internal", error.message))


async def _call(request: web.Request, codec: str) -> web.Response:
    body, missing = await _answer(request, json=codec == JSON)
    accepted = request.headers.get("Accept-Encoding", "")
    small = await request.app[CONTEXT].workers.merge(compressed, body, accepted)
    headers = {"Content-Type": codec} | ({"Content-Encoding": "gzip"} if small else {})
    return web.Response(body=small or body, headers=headers | missing)


async def _answer(request: web.Request, *, json: bool) -> tuple[bytes, dict[str, str]]:
    name = request.match_info["method"]
    method = METHODS.get(name)
    if method is None:
        raise ConnectError("unimplemented", f"{name[:100]} is not answered here")
    message = messages.decode(method.request, await request.read(), json=json)
    reply, missing = await _reply(request, name, method, message)
    body = await request.app[CONTEXT].workers.merge(messages.encode, method.reply, reply, json=json)
    return body, missing


async def _reply(
    request: web.Request, name: str, method: _Method, message: dict[str, Any]
) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Our own reply, with those of the peers where there are any; and the header that says who is missing."""
    context = request.app[CONTEXT]
    if not context.peers.all or PEER_HEADER in request.headers:
        return await method.call(context, message), {}
    asking = asyncio.ensure_future(context.peers.ask(name, method.request, method.reply, message))
    try:
        own = await method.call(context, message)
        others, missing = await asking
    finally:
        asking.cancel()
    reply, faults = await merged(context.workers, name, message, own, others)
    missing += faults
    return reply, {MISSING_HEADER: ", ".join(missing)} if missing else {}


def _failed(error: ConnectError) -> web.Response:
    return web.Response(
        body=error_body(error.code, error.message), status=STATUS[error.code], content_type="application/json"
    )


@routes.post("/settings.v1.SettingsService/Get")
async def settings(_: web.Request) -> web.Response:
    """Drilldown's settings: none are kept."""
    return json_response({"settings": []})


@routes.post("/capabilities.v1.FeatureFlagsService/GetFeatureFlags")
async def feature_flags(_: web.Request) -> web.Response:
    """None of Pyroscope's optional features."""
    return json_response({})


@routes.get("/pyroscope/render")
async def render(request: web.Request) -> web.Response:
    """The older form of a flame graph, which Drilldown still asks for in places."""
    if request.query.get("format", "json") != "json":
        return _failed(ConnectError("unimplemented", "only format=json is made here"))
    return await _connected(_render(request))


@routes.get("/pyroscope/render-diff")
async def render_diff(request: web.Request) -> web.Response:
    """The older form of a difference, which Drilldown's comparison asks for."""
    return await _connected(_render_diff(request))


async def _render(request: web.Request) -> web.Response:
    wanted = _side(request, "query", "from", "until")
    kind = query_of(wanted).type
    reply, missing = await _reply(
        request, "SelectMergeStacktraces", METHODS["SelectMergeStacktraces"], wanted
    )
    return json_response(_flamebearer(reply, kind, "single"), headers=missing)


async def _render_diff(request: web.Request) -> web.Response:
    sides = {
        side: _side(request, f"{side}Query", f"{side}From", f"{side}Until") for side in ("left", "right")
    }
    kinds = [query_of(side).type for side in sides.values()]
    if kinds[0] != kinds[1]:
        raise ValueError(f"both sides must be of one profile type, found {kinds[0].id} and {kinds[1].id}")
    reply, missing = await _reply(request, "Diff", METHODS["Diff"], sides)
    graph = reply.get("flamegraph", {})
    ticks = {name: graph.get(name, 0) for name in ("leftTicks", "rightTicks")}
    return json_response(_flamebearer(reply, kinds[0], "double") | ticks, headers=missing)


def _flamebearer(reply: Mapping[str, Any], kind: ProfileType, form: str) -> dict[str, Any]:
    """grafana/pyroscope, pkg/og/structs/flamebearer: FlamebearerProfileV1; its ticks are samples of one nanosecond."""
    graph = reply.get("flamegraph", {"names": [], "levels": [], "total": 0, "max_self": 0})
    timed = kind.labels["__unit__"] == "nanoseconds"
    units = {"nanoseconds": "samples", "bytes": "bytes"}.get(kind.labels["__unit__"], "objects")
    return {
        "version": 1,
        "flamebearer": {
            "names": graph["names"],
            "levels": [level["values"] for level in graph["levels"]],
            "numTicks": graph["total"],
            "maxSelf": graph["max_self"],
        },
        "metadata": {
            "format": form,
            "units": units,
            "name": kind.labels["__type__"],
            "sampleRate": 1_000_000_000 if timed else 1,
            "spyName": "sentinel-agent",
        },
        "timeline": None,
    }


def _side(request: web.Request, query: str, start: str, end: str) -> dict[str, Any]:
    now = request.app[CONTEXT].clock.wall()
    most = request.query.get("max-nodes") or request.query.get("maxNodes") or "0"
    return messages.decode(messages.STACKTRACES, b"", json=True) | {
        "label_selector": request.query.get(query, ""),
        "start": round(_moment(request.query.get(start, "now-1h"), now) * 1000),
        "end": round(_moment(request.query.get(end, "now"), now) * 1000),
        "max_nodes": int(most[:9]),
    }


def _moment(text: str, now: float) -> float:
    """`now-1h`, or a number of seconds or milliseconds since the epoch."""
    relative = _RELATIVE.fullmatch(text)
    if relative:
        return now - (parse_duration(relative[1]) if relative[1] else 0.0)
    number = int(text[:16])
    return number / 1000 if number > 1e11 else float(number)
