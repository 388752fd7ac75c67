"""The description of `/api/v1`: valid, whole, and true: schemathesis sends what it allows and judges what comes back."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, Phase, given, settings

from sentinel_agent.api import openapi
from sentinel_agent.api.app import make_app
from sentinel_agent.api.context import Context
from tests.api.support import LOOPBACK, MadeUpAgent, save_spike

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentinel_agent.store.store import Store
    from sentinel_agent.testing import FakeClock

CHECKS = (
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.response_schema_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_headers_conformance,
)
OPERATIONS = [
    (method.upper(), path) for path, found in openapi.document()["paths"].items() for method in found
]


@pytest.fixture
def base(store: Store, fake_clock: FakeClock) -> Iterator[str]:
    """The application in a thread of its own, with one incident and one target."""
    save_spike(store)
    fake_clock.advance(20)
    loop = asyncio.new_event_loop()
    runner: list[web.AppRunner] = []

    async def start() -> int:
        app = make_app(Context(store, fake_clock, LOOPBACK, MadeUpAgent()))
        runner.append(web.AppRunner(app, access_log=None))
        await runner[0].setup()
        site = web.TCPSite(runner[0], "127.0.0.1", 0)
        await site.start()
        port: int = runner[0].addresses[0][1]
        return port

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        port = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
        yield f"http://127.0.0.1:{port}"
        asyncio.run_coroutine_threadsafe(runner[0].cleanup(), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_every_route_is_described(store: Store, fake_clock: FakeClock) -> None:
    """A path that is served and not described, or the other way round, is a mistake."""
    app = make_app(Context(store, fake_clock, LOOPBACK, MadeUpAgent()))
    served = {
        (route.method, resource.canonical)
        for resource in app.router.resources()
        for route in resource
        if resource.canonical.startswith("/api/v1/") and route.method != "HEAD"
    }
    assert served - {("GET", "/api/v1/openapi.json")} == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_what_comes_back_is_what_is_described(base: str, method: str, path: str) -> None:
    """Whatever is sent that the description allows, the answer is one that it has, and never a fault of ours."""
    schema = schemathesis.openapi.from_dict(openapi.document())
    operation: Any = schema[path][method]

    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any) -> None:
        response = case.call(base_url=base, timeout=20)
        case.validate_response(response, checks=CHECKS)

    given(operation.as_strategy())(run)()  # type: ignore[no-untyped-call] # hypothesis's wrapper has no type
