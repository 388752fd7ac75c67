"""The engine: states, hold time, gaps, limits that outlive it, hot reload, captures that never end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from sentinel_agent.core.engine import CAPTURE_AT_MOST, RuleEngine
from sentinel_agent.core.limits import LimitRecord
from sentinel_agent.core.model import Reading, Role
from sentinel_agent.core.rule import Limit, Match, Rule, Trigger
from sentinel_agent.core.running import matches
from sentinel_agent.core.state import EVENTS, STATES, TRANSITIONS, advance
from tests.core.support import HOLMES, ROLE, Watch, holmes, threshold

if TYPE_CHECKING:
    from sentinel_agent.core.decision import Decision


def answers(decision: Decision) -> tuple[str, bool, str]:
    return decision.state, decision.fire, decision.reason


def test_the_table_speaks_of_all_states_and_events_and_of_no_others() -> None:
    """Every state can be entered and left, every event does something, all have a meaning for the documents."""
    assert {state for state, _ in TRANSITIONS} == set(STATES) == set(TRANSITIONS.values())
    assert {event for _, event in TRANSITIONS} == set(EVENTS)


def test_an_impossible_event_is_a_fault_of_the_program() -> None:
    """A firing rule cannot fire."""
    with pytest.raises(KeyError):
        advance("firing", "fire")


def test_one_life_of_a_rule() -> None:
    """warmup, inactive, pending, firing, cooling, inactive."""
    watch = Watch(threshold(abs=50, diff=1000, warmup=2, hold=2.0, cooldown=5.0))
    assert answers(watch.one(0, cpu=10.0)) == ("warmup", False, "warmup")
    assert answers(watch.one(1, cpu=10.0)) == ("inactive", False, "no_match")
    assert answers(watch.one(2, cpu=60.0)) == ("pending", False, "above_abs")
    assert answers(watch.one(3, cpu=60.0)) == ("pending", False, "above_abs")
    assert answers(watch.one(4, cpu=60.0)) == ("firing", True, "above_abs")
    assert answers(watch.one(5, cpu=60.0)) == ("firing", False, "cooldown")
    watch.finish(6)
    assert answers(watch.one(7, cpu=10.0)) == ("cooling", False, "cooldown")
    assert answers(watch.one(11, cpu=10.0)) == ("inactive", False, "no_match")


def test_a_rule_without_a_baseline_has_no_warm_up() -> None:
    """abs alone fires at the first reading, whatever `warmup` says."""
    assert watch_first(threshold(abs=50, warmup=100)).fire
    assert not watch_first(threshold(abs=50, warmup=2, baseline=HOLMES)).fire


def watch_first(rule: Rule) -> Decision:
    return Watch(rule).one(0, cpu=60.0)


def test_a_condition_that_breaks_off_starts_its_hold_time_again() -> None:
    """False for one tick, or no reading for one tick: both begin again from nothing."""
    for gap in (10.0, None):
        watch = Watch(threshold(abs=50, hold=2.0))
        watch.one(0, cpu=60.0)
        assert watch.one(1, cpu=gap).state == "inactive"
        assert watch.one(2, cpu=60.0).state == "pending"
        assert watch.one(3, cpu=60.0).state == "pending"
        assert watch.one(4, cpu=60.0).fire


def test_a_clock_that_jumps_back_starts_the_hold_time_again() -> None:
    """Not a day of pending."""
    watch = Watch(threshold(abs=50, hold=2.0))
    watch.one(100_000, cpu=60.0)
    assert watch.one(0, cpu=60.0).state == "pending"
    assert watch.one(2, cpu=60.0).fire


def test_a_condition_that_lasts_through_the_cooldown_has_held_at_its_end() -> None:
    """It fires at the end of the cooldown, not a hold time later."""
    watch = Watch(threshold(abs=50, hold=3.0, cooldown=5.0))
    fires = []
    for time in range(20):
        if watch.one(time, cpu=60.0).fire:
            fires.append(time)
            watch.finish(time)
    assert fires == [3, 8, 13, 18]


@pytest.mark.parametrize(
    ("reading", "detail"),
    [
        (None, "no reading of cpu"),
        (Reading("cpu", 0, None, "permission denied"), "permission denied"),
        (Reading("cpu", 0, float("nan")), "no reading of cpu"),
        (Reading("cpu", 0, float("inf")), "no reading of cpu"),
    ],
)
def test_what_is_no_number_is_no_data(reading: Reading | None, detail: str) -> None:
    """A missing metric, a failed probe, NaN and infinity are said, and fire nothing; in a warm-up too."""
    for rule, state in ((threshold(abs=1), "inactive"), (holmes(0, 0, 0), "warmup")):
        engine = RuleEngine([rule])
        (decision,) = engine.tick(ROLE, 0, {"cpu": reading} if reading else {}, {})
        assert (decision.state, decision.reason, decision.detail) == (state, "no_data", detail)


def test_a_threshold_rule_without_a_metric_has_no_data() -> None:
    """Health says why; the engine does not break."""
    assert Watch(threshold(metric=None, abs=1)).one(0, cpu=5.0).detail == "no reading of any metric"


def test_a_rule_with_diff_and_no_history_has_no_baseline() -> None:
    """The caller has no ring for the metric: diff decides nothing."""
    (decision,) = RuleEngine([threshold(diff=10, warmup=1)]).tick(
        ROLE, 0, {"cpu": Reading("cpu", 0, 5.0)}, {}
    )
    assert (decision.reason, decision.baseline) == ("no_match", None)


def test_an_expression_reads_several_metrics_and_shows_one() -> None:
    """Its value is that of `metric`; a worse one passes the cooldown as with a threshold."""
    rule = Rule(
        name="spike",
        metric="cpu",
        trigger="cpu > 80 && rss_limit > 70",
        limit=Limit(rearm_above=1.2),
        warmup=100,
    )
    watch = Watch(rule)
    assert watch.one(0, cpu=81.0, rss_limit=70.0).reason == "no_match"
    assert watch.one(1, cpu=81.0).reason == "no_data"
    decision = watch.one(2, cpu=81.0, rss_limit=71.0)
    assert (answers(decision), decision.value) == (("firing", True, "expression"), 81.0)
    watch.finish(2)
    assert watch.one(3, cpu=81.0, rss_limit=71.0).reason == "cooldown"
    again = watch.one(4, cpu=100.0, rss_limit=71.0)
    assert (again.fire, again.rearmed, again.reason) == (True, True, "expression")


def test_an_expression_that_cannot_be_used_is_data() -> None:
    """The engine takes it, and every decision says what is wrong."""
    decision = Watch(Rule(name="spike", trigger="cpu +")).one(0, cpu=5.0)
    assert decision.reason == "error"
    assert "Syntax error" in decision.detail


def test_a_worse_spike_passes_the_cooldown_and_an_equal_one_does_not() -> None:
    """Not while the capture is under way, and never past the count."""
    watch = Watch(threshold(abs=50, cooldown=100.0, limit=Limit(count=2, rearm_above=1.2)))
    assert watch.one(0, cpu=60.0).fire
    assert not watch.one(1, cpu=99.0).fire
    watch.finish(1)
    assert not watch.one(2, cpu=60.0).fire
    decision = watch.one(3, cpu=72.0)
    assert (decision.fire, decision.rearmed) == (True, True)
    watch.finish(3)
    assert watch.one(4, cpu=1000.0).reason == "cooldown"
    assert watch.one(104, cpu=1000.0).reason == "limit"


def test_a_lower_value_is_no_worse_spike_of_a_below_rule() -> None:
    """`rearm_above` speaks of higher values."""
    watch = Watch(threshold(below=50, cooldown=100.0, limit=Limit(rearm_above=1.2)))
    assert watch.one(0, cpu=10.0).reason == "below"
    watch.finish(0)
    assert watch.one(1, cpu=40.0).reason == "cooldown"


def test_a_used_up_limit_cools_and_says_limit_until_the_window_has_moved_on() -> None:
    """Two in ten seconds, also while the condition is false."""
    watch = Watch(threshold(abs=50, cooldown=0.0, limit=Limit(count=2, per=10.0)))
    found = []
    for time in range(12):
        found.append(watch.one(time, cpu=60.0 if time != 5 else 0.0))
        watch.finish(time)
    assert [d.fire for d in found] == [True, True, *[False] * 8, True, True]
    assert {answers(d) for d in found[2:10]} == {("cooling", False, "limit")}


def test_a_count_of_zero_never_fires() -> None:
    """From the first tick on the reason is `limit`."""
    assert answers(Watch(threshold(abs=1, limit=Limit(count=0))).one(0, cpu=5.0)) == (
        "cooling",
        False,
        "limit",
    )


def test_limits_belong_to_a_role_and_come_back_from_the_store() -> None:
    """Written, read into another engine: the same role cools, another one fires; those of strange rules stay out."""
    watch = Watch(threshold(abs=50, cooldown=60.0))
    assert watch.one(0, cpu=60.0).fire
    assert [record.cooldown_until for record in watch.engine.changed_limits()] == [60]
    watch.finish(5)
    (record,) = watch.engine.changed_limits()
    assert watch.engine.changed_limits() == []
    stored = msgspec.msgpack.encode(record)

    later = Watch(threshold(abs=50, cooldown=60.0))
    later.engine.load_limits(
        [msgspec.msgpack.decode(stored, type=LimitRecord), LimitRecord(ROLE.key, "stranger")]
    )
    assert later.engine.limits() == {(ROLE.key, "spike"): record}
    assert later.engine.changed_limits() == []
    assert answers(later.one(64.9, cpu=60.0)) == ("cooling", False, "cooldown")
    other = later.engine.tick(Role("gateway", "host-2"), 64.9, {"cpu": Reading("cpu", 64.9, 60.0)}, {})
    assert other[0].fire
    assert later.one(65, cpu=60.0).fire


def test_a_jump_of_the_clock_is_written_to_the_record_once() -> None:
    """A day back: the rule fires again one cooldown later, and the store is told of the new end."""
    watch = Watch(threshold(abs=50, cooldown=60.0))
    watch.one(100_000, cpu=60.0)
    watch.finish(100_000)
    watch.engine.changed_limits()
    assert watch.one(10, cpu=60.0).reason == "cooldown"
    assert [record.cooldown_until for record in watch.engine.changed_limits()] == [70]
    assert watch.one(69, cpu=60.0).reason == "cooldown"
    assert watch.engine.changed_limits() == []
    assert watch.one(70, cpu=60.0).fire


def test_the_number_of_limit_records_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was written longest ago goes first."""
    monkeypatch.setattr("sentinel_agent.core.engine.RECORDS_KEPT", 3)
    engine = RuleEngine([threshold(abs=1)])
    for number in range(5):
        engine.tick(Role("s", str(number)), 0, {"cpu": Reading("cpu", 0, 5.0)}, {})
    kept = [f"s/{number}/main" for number in (2, 3, 4)]
    assert [role for role, _ in engine.limits()] == kept
    assert [record.role for record in engine.changed_limits()] == kept


def test_an_end_that_was_reported_twice_or_for_nothing_changes_nothing() -> None:
    """Only the first end of a capture that is under way counts."""
    watch = Watch(threshold(abs=50, cooldown=10.0))
    watch.finish(0)
    assert watch.engine.limits() == {}
    watch.one(1, cpu=60.0)
    watch.finish(1)
    watch.finish(9)
    assert watch.one(11, cpu=60.0).fire


def test_a_capture_whose_end_is_never_reported_does_not_silence_its_rule_for_ever() -> None:
    """After 15 minutes it counts as ended."""
    watch = Watch(threshold(abs=50, cooldown=1.0))
    watch.one(0, cpu=60.0)
    assert watch.one(CAPTURE_AT_MOST, cpu=60.0).state == "firing"
    assert watch.one(CAPTURE_AT_MOST + 1, cpu=60.0).fire


def test_a_capture_outlives_its_target() -> None:
    """The role is started afresh in the middle: no second capture beside it, and the cooldown counts from its end."""
    watch = Watch(threshold(abs=50, cooldown=10.0))
    watch.one(0, cpu=60.0)
    watch.engine.forget(ROLE)
    assert watch.one(11, cpu=60.0).state == "firing"
    watch.engine.forget(ROLE)
    watch.finish(12)
    assert watch.one(21, cpu=60.0).state == "cooling"
    assert watch.one(22, cpu=60.0).fire


def test_a_warm_up_goes_on_while_an_earlier_capture_ends() -> None:
    """The target came back during a capture: warm-up first, then the cooldown."""
    watch = Watch(holmes(0, 25, 50, cooldown=30.0))
    for time in range(10):
        watch.one(time, cpu=60.0)
    watch.engine.forget(ROLE)
    assert watch.one(10, cpu=60.0).state == "warmup"
    watch.finish(11)
    assert [watch.one(12 + time, cpu=60.0).state for time in range(9)] == ["warmup"] * 8 + ["cooling"]


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        (Match(), True),
        (Match(service="^gate"), True),
        (Match(service="other"), False),
        (Match(worker="main"), True),
        (Match(service="gate", worker=r"worker-\d+"), False),
        (Match(service="("), False),
    ],
)
def test_a_rule_is_for_the_roles_that_it_matches(match: Match, fits: bool) -> None:
    """Searched in service and worker; what is no regular expression matches nothing."""
    assert matches(match, ROLE) == fits
    assert len(Watch(threshold(abs=1, match=match)).tick(0, cpu=5.0)) == fits


def test_two_rules_of_one_name_are_refused_and_the_old_rules_stay() -> None:
    """At the start and at a reload."""
    engine = RuleEngine([threshold("a", abs=1)])
    with pytest.raises(ValueError, match="same name: b"):
        engine.replace([threshold("b", abs=1), threshold("b", abs=2)])
    assert [rule.name for rule in engine.rules] == ["a"]


def test_a_reload_leaves_untouched_rules_alone_and_drops_those_that_are_gone() -> None:
    """Hold time and ring go on for `a`; `b` loses its hold; `c` and its limits go."""
    a = threshold("a", abs=50, hold=2.0)
    b = threshold("b", abs=50, hold=2.0)
    c = threshold("c", abs=50)
    watch = Watch(a, b, c)
    watch.tick(0, cpu=60.0)
    watch.engine.replace([a, msgspec.structs.replace(b, cooldown=1.0)])
    assert watch.engine.limits() == {}
    assert watch.engine.changed_limits() == []
    watch.tick(1, cpu=60.0)
    found = watch.tick(2, cpu=60.0)
    assert {name: decision.state for name, decision in found.items()} == {"a": "firing", "b": "pending"}
    watch.finish(3, "c")


def test_a_changed_rule_keeps_its_limits_and_warms_up_again_if_it_reads_something_else() -> None:
    """Other thresholds: no new warm-up. Another metric: a new one. The cooldown stands in both."""
    rule = holmes(0, 25, 50, cooldown=60.0)
    watch = Watch(rule)
    for time in range(10):
        watch.one(time, cpu=60.0, threads=60.0)
    watch.finish(9)
    watch.engine.replace([msgspec.structs.replace(rule, trigger=Trigger(abs=40), cooldown=1.0)])
    assert watch.one(10, cpu=60.0, threads=60.0).reason == "cooldown"
    watch.engine.replace([msgspec.structs.replace(rule, metric="threads")])
    found = [watch.one(11 + time, cpu=60.0, threads=60.0).reason for time in range(10)]
    assert found == ["warmup"] * 9 + ["cooldown"]


def test_a_rule_that_changes_during_its_capture_still_waits_for_it() -> None:
    """No second capture beside the first."""
    watch = Watch(threshold(abs=50, cooldown=5.0))
    watch.one(0, cpu=60.0)
    watch.engine.replace([threshold(abs=40, cooldown=5.0)])
    watch.finish(1)
    assert watch.one(2, cpu=60.0).state == "cooling"
    watch.one(6, cpu=60.0)
    watch.engine.replace([threshold(abs=30, cooldown=5.0)])
    assert watch.one(20, cpu=60.0).state == "firing"


def test_a_rule_that_is_added_is_for_the_roles_that_are_watched_already() -> None:
    """The plan of a role is made anew after a reload."""
    watch = Watch(threshold("a", abs=50))
    watch.tick(0, cpu=60.0)
    watch.engine.replace([threshold("a", abs=50), threshold("b", abs=50)])
    assert list(watch.tick(1, cpu=60.0)) == ["a", "b"]


def test_the_gate_leaves_a_cooling_rule_cooling() -> None:
    """Its state tells the truth although the reason is the gate."""
    watch = Watch(threshold(metric="rss", abs=50, cooldown=10.0), cpu_max=90)
    watch.one(0, rss=60.0, cpu=1.0)
    assert answers(watch.one(1, rss=60.0, cpu=95.0)) == ("firing", False, "cpu_gate")
    watch.finish(1)
    assert answers(watch.one(2, rss=60.0, cpu=95.0)) == ("cooling", False, "cpu_gate")
    assert answers(watch.one(11, rss=60.0, cpu=95.0)) == ("inactive", False, "cpu_gate")
    assert watch.one(12, rss=60.0, cpu=1.0).fire
