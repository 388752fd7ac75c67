"""The wiring: what starts, stops and outlives faults. Time passes as the test says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from sentinel_agent import agent as module
from sentinel_agent.core.event import (
    IncidentLost,
    IncidentOpened,
    IncidentSealed,
    TargetAppeared,
    TargetGone,
    Trouble,
)
from sentinel_agent.errors import NoSuchTargetError, StoreError
from sentinel_agent.store.status import read_all
from tests.agent.bench import SPIKE, Bench, config, raising
from tests.agent.support import settle, sleeper, until

if TYPE_CHECKING:
    from sentinel_agent.core.event import Event


async def test_a_spike_is_saved_and_the_status_shows_the_rule(bench: Bench, pid: int) -> None:
    async with bench.running(pid, config(SPIKE)):
        assert bench.told(TargetAppeared)
        bench.gauge.values["cpu"] = 95.0
        await bench.clock.let_pass(1.0)
        sealed = await bench.wait_for(IncidentSealed)
        assert sealed.incident.summary
        await bench.clock.let_pass(2.0)
        await until(lambda: read_all(bench.data, bench.clock.wall()))
        assert b'"spike"' in read_all(bench.data, bench.clock.wall())[0].document
    assert bench.folders() == [sealed.incident.id]
    assert read_all(bench.data, bench.clock.wall()) == []  # withdrawn: the agent has ended in order


async def test_stopped_before_its_first_tick_it_ends_at_once(bench: Bench, pid: int) -> None:
    """Nothing has passed on the clock, and what it held is given back (the leak guard looks)."""
    bench.file.write_text(config(SPIKE))
    stop = asyncio.Event()
    stop.set()
    before = bench.clock.monotonic()
    await bench.agent(pid).run(stop)
    assert bench.clock.monotonic() == before


async def test_stop_and_start_again_is_one_loop_and_a_fresh_start(bench: Bench, pid: int) -> None:
    """holmes parity P36: stopping twice is stopping; after a second start there is one tick a second, not two."""
    warm = SPIKE.replace("{abs: 90}", "{abs: 90, diff: 100}").replace("cooldown", "warmup: 3, cooldown")
    async with bench.running(pid, config(warm)) as first:
        await bench.clock.let_pass(5.0)
        bench.stop.set()
        bench.stop.set()
    ticks = first._sampler.statistics().ticks
    bench.gauge.values["cpu"] = 95.0
    async with bench.running(pid) as second:
        await bench.clock.let_pass(1.0)
        assert second._sampler.statistics().ticks == 2
        assert bench.told(IncidentOpened) == []  # warming up again
        await bench.clock.let_pass(1.0)
        await bench.wait_for(IncidentSealed)
    assert first._sampler.statistics().ticks == ticks


async def test_a_stop_gives_a_capture_its_time_and_seals_it(bench: Bench, pid: int) -> None:
    capturing, end = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        capturing.set()
        await end.wait()

    bench.made.doing = wait  # type: ignore[assignment]  # anything that can be awaited
    async with bench.running(pid, config(SPIKE)):
        bench.gauge.values["cpu"] = 95.0
        await bench.clock.let_pass(1.0)
        await capturing.wait()
        bench.stop.set()
        await settle()
        end.set()
    assert len(bench.told(IncidentSealed)) == 1
    assert len(bench.folders()) == 1


async def test_a_capture_that_takes_longer_than_a_stop_waits_is_discarded_whole(
    bench: Bench, pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is told, nothing is left in the folder, and the firing stays counted."""
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.05)
    capturing = asyncio.Event()

    async def hang() -> None:
        capturing.set()
        await asyncio.Event().wait()

    bench.made.doing = hang  # type: ignore[assignment]  # anything that can be awaited
    async with bench.running(pid, config(SPIKE)):
        bench.gauge.values["cpu"] = 95.0
        await bench.clock.let_pass(1.0)
        await capturing.wait()
    assert bench.folders() == []
    assert len(bench.told(IncidentLost)) == 1
    assert len(bench.stored()["spike"].fires) == 1


async def test_the_end_of_all_targets_ends_the_run(bench: Bench) -> None:
    bench.file.write_text(config(SPIKE))
    with sleeper() as process:
        task = asyncio.create_task(bench.agent(process.pid).run(asyncio.Event()))
        await bench.wait_for(TargetAppeared)
        process.kill()
        await bench.wait_for(TargetGone)
    while not task.done():
        await bench.clock.let_pass(0.1)
    await task


async def test_a_pid_that_is_not_there_is_refused_before_anything_runs(bench: Bench) -> None:
    bench.file.write_text(config(SPIKE))
    with sleeper() as process:
        pass
    with pytest.raises(NoSuchTargetError):
        bench.agent(process.pid)


async def test_a_round_that_raises_is_told_once_and_counted_and_the_next_one_comes(
    bench: Bench, pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the status cannot be published three times; the fourth time it can."""
    published: list[bytes] = []

    def publish(document: bytes) -> None:
        published.append(document)
        if len(published) <= 3:
            raise StoreError("the disk is full") if len(published) < 3 else ZeroDivisionError("oops")

    async with bench.running(pid, config(SPIKE)) as agent:
        monkeypatch.setattr(agent._status, "publish", publish)
        async with asyncio.timeout(10):
            while len(published) < 4:
                await bench.clock.let_pass(1.0)
        assert [event.what for event in bench.told(Trouble)] == [
            "the disk is full",
            "internal fault, please report it: ZeroDivisionError: oops",
        ]
        assert b'"the disk is full":2' in published[-1]


async def test_a_fault_in_judging_one_tick_does_not_end_the_watching(
    bench: Bench, pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.running(pid, config(SPIKE)) as agent:
        with monkeypatch.context() as patch:
            patch.setattr(agent._engine, "tick", raising(KeyError("state")))
            await bench.clock.let_pass(2.0)
        assert [event.what for event in bench.told(Trouble)] == [
            "internal fault, please report it: KeyError: 'state'"
        ]
        bench.gauge.values["cpu"] = 95.0
        await bench.clock.let_pass(1.0)
        await bench.wait_for(IncidentSealed)


async def test_a_listener_with_a_fault_does_not_end_the_watching(bench: Bench, pid: int) -> None:
    """What is saved does not depend on who is told."""
    bench.listener = raising(ZeroDivisionError("oops"))
    async with bench.running(pid, config(SPIKE)) as agent:
        bench.gauge.values["cpu"] = 95.0
        await bench.clock.let_pass(1.0)
        await until(lambda: agent._responder.statistics.sealed)
    assert len(bench.folders()) == 1


async def test_when_nobody_listens_any_more_the_run_ends_in_order(bench: Bench, pid: int) -> None:
    """The incident under way is still sealed; the caller learns why the run ended."""

    def left(event: Event) -> None:
        if isinstance(event, IncidentOpened):
            raise BrokenPipeError(32, "Broken pipe")
        bench.events.append(event)

    bench.listener = left
    bench.gauge.values["cpu"] = 95.0
    bench.file.write_text(config(SPIKE))
    run = bench.agent(pid).run(bench.stop)
    with pytest.raises(BrokenPipeError):
        await run
    assert bench.stop.is_set()
    assert len(bench.folders()) == 1
    assert bench.told(IncidentSealed) == []  # it would be told to nobody


async def test_too_many_incidents_under_way_are_refused_and_said(
    bench: Bench, pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNDER_WAY_AT_MOST", 1)
    end = asyncio.Event()
    bench.made.doing = end.wait  # type: ignore[assignment]  # anything that can be awaited
    other = SPIKE.replace("name: spike", "name: other")
    async with bench.running(pid, config(SPIKE, other)):
        bench.gauge.values["cpu"] = 95.0
        await bench.clock.let_pass(1.0)
        assert [event.what for event in bench.told(Trouble)] == [
            "rule other fired, but 1 incidents are under way already"
        ]
        end.set()
        assert (await bench.wait_for(IncidentSealed)).incident.rule == "spike"
