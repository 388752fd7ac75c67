"""The status says what is so, can be read back, and is never too large to be published."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from sentinel_agent.config.load import Loaded, RuleWithSource
from sentinel_agent.config.settings import Settings
from sentinel_agent.core.engine import RuleEngine
from sentinel_agent.core.metrics import METRICS
from sentinel_agent.core.model import Reading, Role, TargetId
from sentinel_agent.core.rule import Rule, Trigger
from sentinel_agent.responder import ResponderStatistics
from sentinel_agent.sampler import Sampler
from sentinel_agent.status import AgentStatus, StatusWriter, known_metrics
from sentinel_agent.store.status import MAX_STATUS_BYTES, read_all
from sentinel_agent.testing import make_target
from tests.agent.support import Gauge, series_of

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.testing import FakeClock


class _Responder:
    statistics = ResponderStatistics(sealed=2, lost=1, last_lost="the disk is full")
    task_snapshots = None


def _loaded(*rules: Rule) -> Loaded:
    return Loaded(
        settings=Settings(),
        rules=tuple(RuleWithSource(rule, f"rules.yaml:{number}") for number, rule in enumerate(rules, 1)),
        sources={},
        warnings=(),
        files={},
    )


def _describe(
    writer: StatusWriter, rules: tuple[Rule, ...], engine: RuleEngine, sampler: Sampler, **changes: Any
) -> bytes:
    facts: dict[str, Any] = {"reload_error": None, "troubles": Counter({"a trouble": 3})} | changes
    return writer.describe(
        _loaded(*rules),
        facts["reload_error"],
        engine,
        sampler,
        _Responder(),  # type: ignore[arg-type]  # its statistics are what is used of it
        facts["troubles"],
    )


def test_what_is_described_is_read_back_the_same(tmp_path: Path, fake_clock: FakeClock) -> None:
    """Targets with readings and errors, rules with their place, the last decisions with the limits used."""
    gauge = Gauge({"cpu": 95.0})
    series = series_of(gauge, Gauge({"rss": OSError("no such luck")}))
    rule = Rule(name="spike", trigger=Trigger(abs=90.0), metric="cpu")
    engine, writer = RuleEngine([rule]), StatusWriter(tmp_path, fake_clock, frozenset({"stacks"}))

    def on_tick(now: float, each: Any, readings: Any) -> None:
        writer.note(each.target, engine.tick(each.target.role, now, readings, each.rings))

    sampler = Sampler(fake_clock, 1.0, on_tick)
    sampler.add(series)
    sampler.tick()
    document = _describe(writer, (rule,), engine, sampler, reload_error="1 fault")
    writer.publish(document)
    (published,) = read_all(tmp_path, fake_clock.wall())
    assert published.alive
    found = msgspec.json.decode(published.document, type=AgentStatus)
    assert msgspec.json.encode(found) == document
    (target,) = found.targets
    assert (target.target, target.readings) == (series.target, {"cpu": 95.0})
    assert "no such luck" in target.errors["rss"]
    assert [(entry.rule, entry.source) for entry in found.rules] == [(rule, "rules.yaml:1")]
    (state,) = found.states
    assert (state.pid, state.role, state.decision.fire) == (series.target.pid, series.target.role, True)
    assert state.limits is not None
    assert state.limits.fires == ((fake_clock.wall(), 95.0),)
    assert found.metrics == ("cpu", "rss")
    assert (found.reload_error, found.troubles) == ("1 fault", {"a trouble": 3})
    assert (found.incidents_sealed, found.incidents_lost, found.last_lost) == (2, 1, "the disk is full")
    writer.forget(series.target)
    empty = msgspec.json.decode(_describe(writer, (rule,), engine, sampler), type=AgentStatus)
    assert empty.states == ()
    writer.withdraw()
    assert read_all(tmp_path, fake_clock.wall()) == []
    series.close()


def test_secrets_of_the_command_that_the_agent_started_are_not_published(
    tmp_path: Path, fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run -- CMD` has the command line of the target in its own; bytes that are no text do not stop it."""
    monkeypatch.setattr(
        sys, "argv", ["sentinel-agent", "run", "--", "serve", "--password", "hunter2", "\udcff"]
    )
    writer = StatusWriter(tmp_path, fake_clock, frozenset())
    document = _describe(writer, (), RuleEngine([]), Sampler(fake_clock, 1.0, lambda *_: None))
    assert b"hunter2" not in document
    found = msgspec.json.decode(document, type=AgentStatus)
    assert found.command[:5] == ("sentinel-agent", "run", "--", "serve", "--password")
    assert found.command[-1] == "\\udcff"


def test_a_metric_that_a_plug_in_publishes_is_known() -> None:
    """The catalogue's own words stay as they are."""
    found = known_metrics(["cpu", "of_a_plug_in"])
    assert found["cpu"] == METRICS["cpu"]
    assert found["of_a_plug_in"].unit == "count"


def fleet(writer: StatusWriter, engine: RuleEngine, targets: int, now: float) -> None:
    """So many targets, each judged once; on the last one every rule fires."""
    for number in range(targets):
        target = make_target(TargetId(1000 + number, 1), Role("gateway", "a-host-name", f"worker-{number}"))
        value = 95.0 if number == targets - 1 else 5.0
        readings = {"cpu": Reading("cpu", now, value)}
        writer.note(target, engine.tick(target.role, now, readings, {}))


def status_of_fleet(folder: Path, clock: FakeClock, rules: int, targets: int, **keys: Any) -> bytes:
    made = tuple(
        Rule(name=f"rule-{number}", trigger=Trigger(abs=90.0), metric="cpu", **keys)
        for number in range(rules)
    )
    engine, writer = RuleEngine(made), StatusWriter(folder, clock, frozenset({"stacks"}))
    fleet(writer, engine, targets, clock.wall())
    return _describe(writer, made, engine, Sampler(clock, 1.0, lambda *_: None))


def test_the_status_of_a_usual_fleet_is_whole(tmp_path: Path, fake_clock: FakeClock) -> None:
    """Fifteen rules on as many targets as are watched by default."""
    found = msgspec.json.decode(status_of_fleet(tmp_path, fake_clock, 15, 64), type=AgentStatus)
    assert (len(found.states), found.states_left_out) == (15 * 64, 0)


@pytest.mark.parametrize("description", ["", "d" * 500])
def test_the_status_of_the_largest_fleet_is_cut_to_what_may_be_published(
    description: str, tmp_path: Path, fake_clock: FakeClock
) -> None:
    """What fires is kept, what is left out is counted: a thousand rules on 64 targets, with long words too."""
    document = status_of_fleet(tmp_path, fake_clock, 1000, 64, description=description)
    assert len(document) <= MAX_STATUS_BYTES
    found = msgspec.json.decode(document, type=AgentStatus)
    assert len(found.states) + found.states_left_out == 64_000
    assert len(found.states) >= 700
    assert {state.decision.state for state in found.states[:700]} == {"firing"}
