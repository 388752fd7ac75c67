"""One agent that is asked for what several hold: their data add up, and who is missing is said."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sentinel_agent.api import messages, peers
from sentinel_agent.api.guard import Address, Guard
from sentinel_agent.api.peers import MISSING_HEADER, PAUSE, PEER_HEADER
from sentinel_agent.api.pyroscope import METHODS, SERVICE
from sentinel_agent.config.settings import ApiSettings
from sentinel_agent.core.model import Role, TargetId
from sentinel_agent.profile import pprof
from sentinel_agent.store.store import Store
from sentinel_agent.testing import make_target
from tests.api.support import CPU, DUMPS, WALL, client_of, save_spike
from tests.store.helpers import SETTINGS, START

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from sentinel_agent.testing import FakeClock

NANO = 1_000_000_000
TOKEN = "a secret of the fleet"


async def ask(client: Any, method: str, **request: Any) -> tuple[Any, str]:
    """A reply, and who is missing in it."""
    response = await client.post(
        SERVICE + method, data=msgspec.json.encode(request), headers={"Content-Type": "application/json"}
    )
    assert response.status == 200, await response.text()
    return await response.json(), response.headers.get(MISSING_HEADER, "")


@pytest.fixture
def other(tmp_path: Path, fake_clock: FakeClock) -> Store:
    """The store of another machine."""
    return Store(tmp_path / "other", SETTINGS, fake_clock).open()


@asynccontextmanager
async def answering(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """The address of a server that answers every call so."""
    app = web.Application()
    app.router.add_post("/{rest:.*}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def test_their_data_add_up(store: Store, other: Store, fake_clock: FakeClock) -> None:
    """Every call answers as if both stores were one; the label `instance` says whose it is. A circle of peers is none."""
    here = save_spike(store)
    there = save_spike(
        other, START + 5, target=make_target(TargetId(1, 2), Role("gateway", "host-b")), rule="other"
    )
    async with AsyncExitStack() as stack:
        guard = Guard(Address("127.0.0.1", 0), (TOKEN,))
        circle = ApiSettings(peers=("http://127.0.0.1:9",), peer_token=TOKEN)
        second = await stack.enter_async_context(client_of(other, fake_clock, guard=guard, api=circle))
        url = str(second.make_url("/"))
        settings = ApiSettings(peers=(url,), peer_token=TOKEN)
        client = await stack.enter_async_context(client_of(store, fake_clock, api=settings))

        graph, missing = await ask(client, "SelectMergeStacktraces", profileTypeID=CPU)
        assert (int(graph["flamegraph"]["total"]) / NANO, missing) == (17.5, "")
        for instance in ("host-a", "host-b"):
            selector = f'{{instance="{instance}"}}'
            graph, _ = await ask(client, "SelectMergeStacktraces", profileTypeID=WALL, labelSelector=selector)
            assert int(graph["flamegraph"]["total"]) / NANO == 20
        few, _ = await ask(client, "SelectMergeStacktraces", profileTypeID=CPU, maxNodes=2)
        assert "other" in few["flamegraph"]["names"]
        assert (await ask(client, "LabelValues", name="dump_id", matchers=["{}"]))[0]["names"] == [
            there,
            here,
        ]
        assert (await ask(client, "LabelValues", name="instance", matchers=["{}"]))[0]["names"] == [
            "host-a",
            "host-b",
        ]
        sets, _ = await ask(client, "Series", labelNames=["instance", "service_name"])
        assert len(sets["labelsSet"]) == 2
        series, _ = await ask(client, "SelectSeries", profileTypeID=DUMPS, groupBy=["instance"], step=60)
        assert [each["labels"][0]["value"] for each in series["series"]] == ["host-a", "host-b"]
        one, _ = await ask(client, "SelectSeries", profileTypeID=CPU, groupBy=[], step=3600)
        assert sum(point["value"] for each in one["series"] for point in each["points"]) == 17.5 * NANO
        sides = [
            {"profileTypeID": CPU, "labelSelector": f'{{phase="{each}"}}'} for each in ("before", "during")
        ]
        found, _ = await ask(client, "Diff", left=sides[0], right=sides[1])
        assert [int(found["flamegraph"][each]) / NANO for each in ("leftTicks", "rightTicks")] == [7.5, 10]
        body = messages.encode(messages.MERGE_PROFILE, {"profile_typeID": CPU}, json=False)
        merged = await client.post(
            f"{SERVICE}SelectMergeProfile", data=body, headers={"Content-Type": "application/proto"}
        )
        assert pprof.decode(await merged.read()).seconds == pytest.approx(17.5)
        assert (await ask(client, "GetProfileStats"))[0]["newestProfileTime"] == str(
            round((START + 5) * 1000)
        )
        query = {"query": CPU, "from": "0", "until": str(round(START + 100))}
        rendered = await (await client.get("/pyroscope/render", params=query)).json()
        assert rendered["flamebearer"]["numTicks"] == 17.5 * NANO


async def test_who_is_down_is_left_out_and_named(
    store: Store, fake_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What is there is answered; the peer is left alone for a while, and is back when it answers again."""
    save_spike(store)
    calls = []

    async def handler(request: web.Request) -> web.StreamResponse:
        calls.append(request.headers[PEER_HEADER])
        if len(calls) == 1:
            return web.Response(status=503)
        return web.Response(body=b"", content_type="application/proto")

    async with answering(handler) as url:
        settings = ApiSettings(peers=(url,))
        async with client_of(store, fake_clock, api=settings) as client:
            for number in range(2):
                graph, missing = await ask(client, "SelectMergeStacktraces", profileTypeID=CPU)
                assert graph["flamegraph"]["total"] == "8750000000"
                assert missing == f"{url} (HTTP status 503)"
                assert len(calls) == 1, number
            state = await (await client.get("/api/v1/peers")).json()
            assert state == [{"url": url, "trouble": "HTTP status 503", "answered": 0, "failed": 1}]
            assert caplog.text.count("left out of answers") == 1
            fake_clock.advance(PAUSE)
            assert (await ask(client, "SelectMergeStacktraces", profileTypeID=CPU))[1] == ""
            assert "answers again" in caplog.text
            assert (await ask(client, "LabelNames"))[1] == ""
            assert calls == ["1", "1"]  # label names are the same everywhere


def flame_graph(names: list[str], *levels: list[int]) -> bytes:
    values = {"names": names, "levels": [{"values": level} for level in levels], "total": 10, "max_self": 1}
    return messages.encode(METHODS["SelectMergeStacktraces"].reply, {"flamegraph": values}, json=False)


@pytest.mark.parametrize(
    "body",
    [
        b"\xff" * 100,
        b"x" * 3000,
        flame_graph(["total"], [0, 10, 0, 0], [0, 10, 10, 7]),
        flame_graph(["total", "a"], [0, 10, 0, 0], [50, 10, 10, 1]),
        flame_graph(["total", "a"], [0, 10, 0, 0], [0, -5, 10, 1]),
        flame_graph(["total", "a"], [0, 10, 0, 0], [0, 10]),
    ],
    ids=["garbage", "too large", "no such name", "no parent", "negative", "half a bar"],
)
async def test_a_peer_that_answers_nonsense_does_no_harm(
    store: Store, fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    """Our own answer stands, and it is said that the peer's is missing."""
    monkeypatch.setattr(peers, "_ANSWER_BYTES", 2000)
    save_spike(store)

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/proto")

    async with (
        answering(handler) as url,
        client_of(store, fake_clock, api=ApiSettings(peers=(url,))) as client,
    ):
        graph, missing = await ask(client, "SelectMergeStacktraces", profileTypeID=CPU)
        assert graph["flamegraph"]["total"] == "8750000000"
        assert missing


async def test_a_slow_peer_and_one_that_sends_elsewhere(
    store: Store, fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer waits only so long; a token does not follow a redirect."""
    monkeypatch.setattr(peers, "SECONDS", 0.3)
    release = asyncio.Event()
    save_spike(store)

    async def slow(_: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.Response()

    async def elsewhere(_: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("http://127.0.0.1:9/")

    async with answering(slow) as one, answering(elsewhere) as two:
        settings = ApiSettings(peers=(one, two), peer_token=TOKEN)
        async with client_of(store, fake_clock, api=settings) as client:
            graph, missing = await ask(client, "SelectMergeStacktraces", profileTypeID=CPU)
            release.set()
        assert graph["flamegraph"]["total"] == "8750000000"
        assert missing == f"{one} (no answer within 0 s), {two} (HTTP status 307)"


async def test_a_request_that_is_wrong_here_is_wrong(store: Store, fake_clock: FakeClock) -> None:
    """Whatever the peers say to it."""
    async with client_of(store, fake_clock, api=ApiSettings(peers=("http://127.0.0.1:9",))) as client:
        response = await client.post(
            f"{SERVICE}SelectSeries",
            data=b'{"profileTypeID":"nope"}',
            headers={"Content-Type": "application/json"},
        )
        assert response.status == 400
