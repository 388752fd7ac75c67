"""What leaves the agent: each tick's readings, its own figures, and the events that concern others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sentinel_agent import agent as module
from sentinel_agent.core.event import IncidentSealed, LimitReached, SettingsReloaded
from sentinel_agent.export.base import AgentReading, ExporterOptions, ReadingSet
from sentinel_agent.export.hub import Hub
from sentinel_agent.export.registry import Made
from tests.agent.bench import SPIKE, Bench, config

if TYPE_CHECKING:
    import pytest


class Seen:
    """A view that keeps everything."""

    Options = ExporterOptions
    signals = ("metrics", "spans", "events", "artifacts")

    def __init__(self) -> None:
        self.items: list[Any] = []

    def observe(self, item: Any) -> None:
        self.items.append(item)

    def render(self, accept: str | None) -> tuple[str, bytes]:
        return "text/plain", b"page"

    def of(self, kind: type) -> list[Any]:
        return [item for item in self.items if isinstance(item, kind)]


async def test_readings_events_and_the_agents_own_figures_are_offered(
    bench: Bench, pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick is one set of readings; a rule that used up its limit is told once; a sealed incident brings its files."""
    seen = Seen()
    made = Made("seen", "seen", ExporterOptions(), seen, seen.signals)  # type: ignore[arg-type]  # a view
    monkeypatch.setattr(module, "make_hub", lambda *_: Hub([made], None, bench.clock))
    async with bench.running(pid, config(SPIKE)) as agent:
        bench.gauge.values["cpu"] = 95.0
        await bench.clock.let_pass(1.0)
        await bench.wait_for(IncidentSealed)
        await bench.clock.let_pass(65.0)
        await bench.wait_for(IncidentSealed, 2)
        await bench.clock.let_pass(120.0)
        while seen.of(AgentReading)[-1].values["incidents_sealed"] < 2:  # the status waits for the disk
            await bench.disk_idle()
            await bench.clock.let_pass(1.0)
        assert agent.exports.metrics_text is not None
        assert agent.exports.metrics_text(None) == ("text/plain", b"page")
    readings = seen.of(ReadingSet)
    assert len(readings) > 100
    assert readings[-1].values == {"cpu": 95.0, "rss": 5.0}
    assert readings[-1].target.pid == pid
    assert len(seen.of(IncidentSealed)) == 4  # each as an event and as artifacts
    assert [(event.rule, event.target.pid) for event in seen.of(LimitReached)] == [("spike", pid)]
    own = seen.of(AgentReading)[-1]
    assert own.values["ticks"] > 0
    assert own.values["incidents_sealed"] == 2
    assert own.rules == (("spike", "shop/here/main", "cooling"),)


async def test_changed_settings_of_exporters_need_no_restart(bench: Bench, pid: int) -> None:
    """One that is added is listed within a poll, and one that is taken out is gone; the event says so."""
    added = "exporters: {zipkin: {url: 'http://127.0.0.1:1'}}"
    async with bench.running(pid, config(SPIKE)) as agent:
        assert not agent.exports.lines
        await bench.reload(config(SPIKE, extra=added))
        assert [(line.name, line.signal) for line in agent.exports.lines] == [
            ("zipkin", "spans"),
            ("zipkin", "events"),
        ]
        await bench.reload(config(SPIKE))
        assert not agent.exports.lines
    assert [event.changes for event in bench.told(SettingsReloaded)] == [("settings of exporters",)] * 2
