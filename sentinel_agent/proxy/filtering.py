"""Runs the filters of a route, in order: on the spot as long as none has to wait, then in a task of the request's own.

A filter that only observes gets a view of its own, whose edits go nowhere; where it waits, the request does not. What it
would have answered is counted under the route and shown in the access log.
"""

from __future__ import annotations

import asyncio
import logging
from inspect import isawaitable, iscoroutine
from typing import TYPE_CHECKING, Final

from sentinel_agent.proxy import flags
from sentinel_agent.proxy.filters import Reply
from sentinel_agent.proxy.recovery import refused
from sentinel_agent.proxy.view import RequestView, ResponseView

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sentinel_agent.proxy.exchange import Exchange
    from sentinel_agent.proxy.filters import Verdict
    from sentinel_agent.proxy.filters.loading import RouteFilter
    from sentinel_agent.proxy.wire.head import ResponseHead

log = logging.getLogger(__name__)

MAX_OBSERVING: Final = 1000
"""Verdicts of observing filters that a worker waits for at once; the others are counted as skipped."""


def run_filters(exchange: Exchange, first: int = 0) -> None:
    """Run the request hooks from the `first`-th filter on, then let the request proceed or answer it."""
    route, view = exchange.route, exchange.view
    assert route is not None, "it was routed"
    assert view is not None, "it is there where filters are"
    table, slot = exchange.worker.inflight, exchange.slot
    if table is not None and slot >= 0:
        table.hold_loop(slot, holds=True)
    try:
        for number in range(first, len(route.filters)):
            each = route.filters[number]
            if each.request is None:
                continue
            if each.observe:
                _observe(exchange, each)
                continue
            verdict = each.request(view)
            if verdict is None:
                continue
            if not isinstance(verdict, Reply):
                _spawn(exchange, number, verdict)
                return
            _answer(exchange, each, verdict)
            return
    finally:
        if table is not None and slot >= 0 and not exchange.over:
            table.hold_loop(slot, holds=False)
    exchange.proceed()


def _spawn(exchange: Exchange, number: int, verdict: Awaitable[Verdict]) -> None:
    """Wait for a verdict in a task; its name is what a dump of tasks shows."""
    if not isawaitable(verdict):
        raise TypeError(
            f"a filter returned a {type(verdict).__name__}: expected a Reply, None or an awaitable"
        )
    method, path, _ = exchange.names()
    route = exchange.route
    assert route is not None, "it was routed"
    name = f"{method} {path[:80]} route={route.name}{exchange.trace_words()}"
    exchange.worker.spawn(_wait(exchange, number, verdict), name)


async def _wait(exchange: Exchange, number: int, verdict: Awaitable[Verdict]) -> None:
    route = exchange.route
    assert route is not None, "it was routed"
    if exchange.over:
        _close(verdict)
        return
    exchange.waiting = asyncio.current_task()
    try:
        own = await route.wait(verdict)
        exchange.waiting = None
        if exchange.over:
            return
        exchange.total_deadline = 0.0  # the upstream's time begins now
        if own is not None:
            _answer(exchange, route.filters[number], own)
        else:
            route.call(run_filters, exchange, number + 1)
    except Exception as error:
        log.exception("internal fault in a filter of route %s", route.name)
        exchange.waiting = None
        refused(exchange, flags.INTERNAL, 500, f"{type(error).__name__} in a filter")


def _close(verdict: Awaitable[Verdict]) -> None:
    """Nobody will await it; a coroutine wants to be told."""
    if iscoroutine(verdict):
        verdict.close()


def _answer(exchange: Exchange, each: RouteFilter, own: Reply) -> None:
    route = exchange.route
    assert route is not None, "it was routed"
    route.stats.count(f"{each.name}.answered")
    exchange.answer(own, flags.FILTERED, f"filter {each.name}")


# -- observing ---------------------------------------------------------------------------------------------------


def _observe(exchange: Exchange, each: RouteFilter) -> None:
    assert each.request is not None, "it was looked at before"
    worker, route = exchange.worker, exchange.route
    assert route is not None, "it was routed"
    try:
        verdict = each.request(RequestView(exchange))
    except Exception:
        log.exception("internal fault in filter %s of route %s, which observes", each.name, route.name)
        route.stats.count(f"{each.name}.observe_failed")
        return
    if verdict is None or isinstance(verdict, Reply):
        _note(exchange, each, verdict)
    elif worker.observing >= MAX_OBSERVING:
        _close(verdict)
        route.stats.count(f"{each.name}.observe_skipped")
    else:
        worker.observing += 1
        worker.spawn(_watch(exchange, each, verdict), f"observe {each.name} route={route.name}")


async def _watch(exchange: Exchange, each: RouteFilter, verdict: Awaitable[Verdict]) -> None:
    route = exchange.route
    assert route is not None, "it was routed"
    try:
        _note(exchange, each, await route.wait(verdict))
    except Exception:
        log.exception("internal fault in filter %s of route %s, which observes", each.name, route.name)
        route.stats.count(f"{each.name}.observe_failed")
    finally:
        exchange.worker.observing -= 1


def _note(exchange: Exchange, each: RouteFilter, verdict: Verdict) -> None:
    """What an observing filter would have done."""
    if verdict is not None and exchange.route is not None:
        exchange.route.stats.count(f"{each.name}.observed")
        exchange.observe(f"filter {each.name} would answer {verdict.status}")


# -- on the way back ---------------------------------------------------------------------------------------------


def run_response_filters(exchange: Exchange, request: RequestView, response: ResponseHead) -> ResponseView:
    """Show the response to the filters, in reverse order; what they made of it."""
    route = exchange.route
    assert route is not None, "it was routed"
    has_body = exchange.head.method != b"HEAD" and response.status not in (204, 304) and response.length != 0
    view = ResponseView(response, has_body=has_body)
    for each in reversed(route.filters):
        if each.response is not None and not each.observe:
            each.response(request, view)
    return view
