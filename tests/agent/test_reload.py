"""What is kept over a restart of the agent and over a reload of its rules and settings."""

from __future__ import annotations

import asyncio

import pytest

from sentinel_agent.core.event import (
    IncidentLost,
    IncidentOpened,
    IncidentSealed,
    SettingsRefused,
    SettingsReloaded,
    Trouble,
)
from sentinel_agent.errors import StoreError
from sentinel_agent.store.index import INDEX_NAME
from tests.agent.bench import HELD, SPIKE, Bench, config, raising
from tests.agent.support import settle, until


async def test_limits_are_on_disk_when_a_rule_fires_not_when_its_capture_ends(bench: Bench, pid: int) -> None:
    """An agent that is killed during the capture comes back to a rule that cools."""
    end = asyncio.Event()
    bench.made.doing = end.wait  # type: ignore[assignment]  # anything that can be awaited
    async with bench.running(pid, config(SPIKE)):
        bench.gauge.values["cpu"] = 95.0
        await bench.clock.let_pass(1.0)
        await until(lambda: "spike" in bench.stored())
        record = bench.stored()["spike"]
        assert record.fires == ((bench.clock.wall(), 95.0),)
        assert record.cooldown_until == bench.clock.wall() + 60.0
        assert bench.told(IncidentSealed) == []
        end.set()


async def test_the_cooldown_that_begins_with_the_last_capture_is_kept_at_a_stop(
    bench: Bench, pid: int
) -> None:
    """The capture ends 5 s after the firing and during the stop: the cooldown counts from its end."""
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
        bench.clock.advance(5.0)
        end.set()
    assert bench.stored()["spike"].cooldown_until == bench.clock.wall() + 60.0


@pytest.mark.parametrize("index_lost", [False, True])
async def test_limits_are_restored_at_the_start(index_lost: bool, bench: Bench, pid: int) -> None:
    """Within its cooldown the rule stays quiet after a restart; a lost index is made again from the incidents."""
    bench.gauge.values["cpu"] = 95.0
    async with bench.running(pid, config(SPIKE)):
        await bench.wait_for(IncidentSealed)
    if index_lost:
        for path in bench.data.glob(f"{INDEX_NAME}*"):
            path.unlink()
    async with bench.running(pid):
        await bench.clock.let_pass(58.0)
        assert len(bench.told(IncidentOpened)) == 1
        await bench.clock.let_pass(3.0)
        await bench.wait_for(IncidentSealed, 2)
    bench.clock.advance(61.0)
    async with bench.running(pid):
        await bench.clock.let_pass(2.0)
        assert len(bench.told(IncidentOpened)) == 2  # `count: 2` an hour is used up
        bench.clock.advance(3600.0)
        await bench.clock.let_pass(1.0)
        await bench.wait_for(IncidentSealed, 3)


async def test_limits_that_cannot_be_stored_are_kept_in_memory_and_said(
    bench: Bench, pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.running(pid, config(SPIKE)) as agent:
        monkeypatch.setattr(agent._store, "put_limits", raising(StoreError("the disk is full")))
        bench.gauge.values["cpu"] = 95.0
        await bench.clock.let_pass(1.0)
        await bench.wait_for(IncidentSealed)
        await bench.clock.let_pass(30.0)
        assert [event.what for event in bench.told(Trouble)] == [
            "limits are kept in memory only, and will be forgotten at a restart: the disk is full"
        ]
        assert len(bench.told(IncidentOpened)) == 1  # it cools all the same


async def test_an_incident_that_spared_its_target_uses_no_limit(bench: Bench, pid: int) -> None:
    """Neither after a restart nor after a reload, where limits are made again from the incidents."""
    gated = "capture: {cpu_max: 80}"
    bench.gauge.values["cpu"] = 95.0
    async with bench.running(pid, config(SPIKE, extra=gated)):
        await bench.wait_for(IncidentSealed)
        await bench.reload(config(SPIKE, HELD, extra=gated))
    assert bench.stored() == {}
    async with bench.running(pid, config(SPIKE)):
        await bench.wait_for(IncidentSealed, 2)
    assert [report.status for report in bench.told(IncidentSealed)[1].incident.captures] == ["ok", "ok"]


async def test_a_rule_that_a_reload_does_not_touch_keeps_its_hold_time(bench: Bench, pid: int) -> None:
    """Its condition was true for 6 s when another rule was added: it fires 10 s after it became true."""
    async with bench.running(pid, config(HELD)):
        bench.gauge.values["rss"] = 95.0
        await bench.clock.let_pass(6.0)
        since = bench.clock.wall()
        await bench.reload(config(HELD, SPIKE))
        (reloaded,) = bench.told(SettingsReloaded)
        assert reloaded.changes == ("rule spike added",)
        assert bench.told(IncidentOpened) == []
        await bench.clock.let_pass(4.5 - (bench.clock.wall() - since))
        assert bench.told(IncidentOpened) == []
        await bench.clock.let_pass(1.5)  # the next tick, and the one after it: sums of floats are no clock
        assert (await bench.wait_for(IncidentSealed)).incident.rule == "held"


async def test_a_rule_that_a_reload_changes_starts_its_hold_time_afresh(bench: Bench, pid: int) -> None:
    async with bench.running(pid, config(HELD)):
        bench.gauge.values["rss"] = 95.0
        await bench.clock.let_pass(6.0)
        await bench.reload(config(HELD.replace("abs: 90", "abs: 91")))
        assert bench.told(SettingsReloaded)[0].changes == ("rule held changed",)
        await bench.clock.let_pass(8.0)
        assert bench.told(IncidentOpened) == []
        await bench.clock.let_pass(4.0)
        await bench.wait_for(IncidentSealed)


async def test_a_rule_that_is_removed_and_added_again_has_its_limits_again(bench: Bench, pid: int) -> None:
    """Taking a rule out and back is no way around its cooldown."""
    bench.gauge.values["cpu"] = 95.0
    async with bench.running(pid, config(SPIKE, HELD)):
        await bench.wait_for(IncidentSealed)
        await bench.clock.let_pass(1.0)
        await until(lambda: bench.stored()["spike"].cooldown_until > bench.clock.wall() + 58)
        await bench.reload(config(HELD))
        assert bench.told(SettingsReloaded)[-1].changes == ("rule spike removed",)
        await bench.reload(config(HELD, SPIKE))
        await bench.clock.let_pass(30.0)
        assert len(bench.told(IncidentOpened)) == 1


async def test_an_invalid_change_is_refused_and_told_once_and_the_old_rules_stay(
    bench: Bench, pid: int
) -> None:
    """The fault is in the status as long as it lasts; when it is repaired nothing of it is left."""
    async with bench.running(pid, config(SPIKE)) as agent:
        await bench.reload(config(SPIKE.replace("abs", "sba")))
        await bench.clock.let_pass(10.0)
        (refused,) = bench.told(SettingsRefused)
        assert "rules[0].trigger.sba" in refused.faults
        assert agent._reloader.last_error == refused.faults
        bench.gauge.values["cpu"] = 95.0
        await bench.clock.let_pass(1.0)
        await bench.wait_for(IncidentSealed)
        await bench.reload(config(SPIKE, HELD))
        assert bench.told(SettingsReloaded)[-1].changes == ("rule held added",)
        assert agent._reloader.last_error is None


async def test_changed_settings_are_in_force_or_said_to_be_later(bench: Bench, pid: int) -> None:
    """The interval, the window, the gate and the budget at once; how targets are found after a restart."""
    async with bench.running(pid, config(SPIKE)) as agent:
        await bench.reload(
            config(
                SPIKE,
                extra="sampler: {interval: 500ms}\n"
                "capture: {cpu_max: 80, max_incidents_per_hour: 1, window_before: 7s}\n"
                "log: {level: debug}",
            )
        )
        assert bench.told(SettingsReloaded)[-1].changes == (
            "settings of sampler",
            "settings of capture",
            "settings of log (in force after a restart)",
        )
        await bench.clock.let_pass(2.0)
        ticks = agent._sampler.statistics().ticks
        await bench.clock.let_pass(10.0)
        assert agent._sampler.statistics().ticks == ticks + 20
        assert agent._responder.window_before == 7.0
        bench.gauge.values["cpu"] = 95.0
        await bench.clock.let_pass(5.0)
        gated = await bench.wait_for(IncidentSealed)  # the gate spares the target: readings only, and why
        assert [(each.kind, each.status) for each in gated.incident.captures] == [
            ("stacks", "skipped"),
            ("series", "ok"),
        ]
        await bench.reload(config(SPIKE, extra="capture: {max_incidents_per_hour: 1}"))
        await bench.clock.let_pass(5.0)
        lost = await bench.wait_for(IncidentLost)
        assert "capture.max_incidents_per_hour 1" in lost.why
