"""The adaptive limit of a real worker: whom it refuses, in which order, and that it can say why."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.proxy.config import AdaptiveLimit
from sentinel_agent.proxy.gate import InflightGate
from sentinel_agent.proxy.level import TOLD_SECONDS, Level, LevelMeter
from sentinel_agent.proxy.limiter import AdaptiveLimiter
from sentinel_agent.proxy.messages import TargetLevel
from tests.proxy.support import GET, OK, PATIENCE, parse_text, read_head, serving, status_of, upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.proxy.support import Proxy

HEAVY = GET.replace(b"/ ", b"/heavy ", 1)
MARKED = GET[:-2] + b"X-Load-Test: 1\r\n\r\n"


@asynccontextmanager
async def limited(tmp_path: Path, mode: str, release: asyncio.Event, more: str = "") -> AsyncIterator[Proxy]:
    """Two routes to an upstream that answers `/heavy` only when it may."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            if b"/heavy" in await read_head(reader):
                await release.wait()
            writer.write(OK)

    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(upstream(script))
        log = tmp_path / f"{mode}.log"
        text = f"""
listeners:
  - name: web
    address: 127.0.0.1:0
    routes:
      - {{name: heavy, match: {{prefix: /heavy}}, cluster: back}}
      - {{name: light, cluster: back}}
clusters: [{{name: back, endpoints: [{{address: "127.0.0.1:{port}"}}]}}]
adaptive_limit: {{mode: {mode}, threshold: 0.5, hold: 2, {more}}}
access_log: {{path: {log}}}
"""
        yield await stack.enter_async_context(serving(parse_text(text), log))


def play(running: Proxy, *levels: float, heavy: float = 4.0, light: float = 0.1) -> None:
    """So many seconds with these levels."""
    for level in levels:
        use = {"web/heavy": 1.0 if level < 1 else heavy, "web/light": light}
        running.worker.shedding.step(Level(level, "cpu of shop (pid 7)"), use)


@pytest.mark.parametrize("mode", ["enforce", "observe"])
async def test_an_overloaded_worker_holds_the_route_that_did_it(tmp_path: Path, mode: str) -> None:
    """Of two routes the one that rose is held to its baseline and answered 429; in observe mode it is only counted.

    Counter, access log and state say what was decided, on what route, by which figures.
    """
    release = asyncio.Event()
    async with limited(tmp_path, mode, release) as running:
        play(running, 0.1, 1.5, 1.5, 1.5, 1.5)
        heavy, light = running.worker.http[0].routes
        assert light.held is None
        assert heavy.held is not None
        heavy.held.base = 1.0
        event = "adaptive_limit.held" + ".observed" * (mode == "observe")
        asked = []
        for count in (1, 2):
            asked.append(asyncio.create_task(running.ask(HEAVY)))
            async with asyncio.timeout(PATIENCE):
                while heavy.stats.inflight + heavy.stats.events.get(event, 0) < count:
                    await asyncio.sleep(0.01)
        assert status_of(await running.ask(GET)) == 200
        release.set()
        assert [status_of(await each) for each in asked] == [200, 429 if mode == "enforce" else 200]
        assert heavy.stats.events == {event: 1}
        assert light.stats.events == {}
        lines = await running.log(3)
        state = running.worker.shedding.state()
    (told,) = [line["detail"] for line in lines if "detail" in line]
    assert told.startswith(
        "adaptive limit would answer 429: " * (mode == "observe") + "route heavy is held to 1 requests"
    )
    assert (
        "cpu of shop (pid 7) 1.14, over 0.50 for 2 s; its use of 4.0 requests under way rose from 1.0" in told
    )
    assert [line.get("flags") for line in lines].count("RL") == (mode == "enforce")
    assert state is not None
    (held,) = state.held
    assert (held.route, held.base) == ("heavy", 1.0)
    assert held.why in told
    assert [each.route for each in state.recent] == ["heavy"]


async def test_the_load_test_goes_first_and_comes_back_last(tmp_path: Path) -> None:
    """Marked requests are refused before any route is held; others pass; the mark returns by tenths when there is room."""
    release = asyncio.Event()
    more = "load_test: {name: X-Load-Test}"
    async with limited(tmp_path, "enforce", release, more) as running:
        light = running.worker.http[0].routes[1]
        play(running, 0.1)
        assert status_of(await running.ask(MARKED)) == 200
        play(running, 1.5)
        assert status_of(await running.ask(MARKED)) == 200
        play(running, 1.5)
        assert light.held is None
        assert status_of(await running.ask(MARKED)) == 429
        assert status_of(await running.ask(GET)) == 200
        assert light.stats.events == {"adaptive_limit.load_test": 1}
        line = (await running.log(4))[2]
        assert line["detail"].startswith("the load test is refused, 1 requests a second: cpu of shop")
        play(running, *[0.1] * 15)
        assert status_of(await running.ask(MARKED)) == 200
        state = running.worker.shedding.state()
    assert state is not None
    assert state.load_test == 1
    assert "let pass" in state.recent[-1].words


async def test_without_a_marked_request_a_route_is_held_at_once(tmp_path: Path) -> None:
    """A mark that nobody carries costs no time."""
    async with limited(tmp_path, "enforce", asyncio.Event(), "load_test: {name: X-Load-Test}") as running:
        play(running, 0.1, 1.5, 1.5)
        assert running.worker.http[0].routes[0].held is not None


async def test_the_gate_bounds_all_routes_where_none_is_to_blame(tmp_path: Path) -> None:
    """A hundred small routes: no one is held, but no more are under way in all than the gate allows."""
    release = asyncio.Event()
    async with limited(tmp_path, "enforce", release) as running:
        shedding = running.worker.shedding
        for _ in range(20):
            shedding._gate.bucket(
                {"web/light": (10, 10 * 0.01)}
            )  # 100 a second, 10 ms each: one is under way
        for level in (0.1, 1.5, 1.5):
            many = {f"web/{number}": 0.5 for number in range(100)}
            shedding.step(Level(level, "delay of the event loop"), many)
        heavy, light = running.worker.http[0].routes
        first = asyncio.create_task(running.ask(HEAVY))
        async with asyncio.timeout(PATIENCE):
            while heavy.stats.inflight != 1:
                await asyncio.sleep(0.01)
        assert status_of(await running.ask(GET)) == 429
        assert light.stats.events == {"adaptive_limit.gate": 1}
        release.set()
        assert status_of(await first) == 200
        assert status_of(await running.ask(GET)) == 200
        line = (await running.log(3))[0]
        assert line["detail"].startswith("more than 1 requests under way: the global gate is shut")
        for _ in range(15):
            shedding.step(Level(0.1, "cpu"), {})
        assert light.held is None
        state = shedding.state()
    assert state is not None
    assert state.gate is None
    assert "gone" in state.recent[-1].words


# -- the parts ---------------------------------------------------------------------------------------------------


def test_the_gate_is_littles_law_of_the_best() -> None:
    """Most that ended in a tenth of a second, times the shortest mean time; of each route; forgotten after ten seconds."""
    gate = InflightGate()
    assert gate.limit is None
    gate.bucket({"a": (0, 0.0)})
    assert gate.limit is None
    gate.bucket({"a": (50, 50 * 0.04)})  # 500 a second at 40 ms
    gate.bucket({"a": (20, 20 * 0.02), "b": (1, 0.5)})
    assert gate.limit == 10 + 5  # 500 a second at 20 ms, 10 a second at 500 ms
    for _ in range(100):
        gate.bucket({"a": (1, 0.001)})
    assert gate.limit == 1


def test_a_level_has_the_name_of_its_source() -> None:
    """Its own readings; the agent's while they are fresh, of the metrics that count."""
    meter = LevelMeter(AdaptiveLimit(lag=0.1, metrics=("cpu",)), 0.0)
    value, source = meter.measure(100.0, 0.05)
    assert value == pytest.approx(0.5)
    assert source == "delay of the event loop"
    told = [TargetLevel("shop (pid 7)", "cpu", 0.9), TargetLevel("shop (pid 7)", "rss_limit", 5.0)]
    meter.told(told, 100.0)
    assert meter.measure(101.0, 0.05) == (0.9, "cpu of shop (pid 7)")
    assert meter.measure(100.0 + TOLD_SECONDS + 0.1, 0.05).source == "delay of the event loop"


def test_routes_that_are_all_held_leave_the_gate() -> None:
    """The level does not fall, and there is nobody left to hold."""
    limiter = AdaptiveLimiter(0.5, 1)
    words = []
    for _ in range(60):
        words += [change.words for change in limiter.step(1.5, {"a": 10.0})]
    assert list(limiter.held) == ["a"]
    assert limiter.gated
    assert any("gate is shut" in each for each in words)
    limiter.step(0.0, {"a": 1.0})
    limiter.step(0.0, {"a": 1.0})
    limiter.step(0.0, {"a": 1.0})
    assert not limiter.gated  # open while there is room
