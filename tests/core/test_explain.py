"""Health and explanation: why a rule cannot fire, does not fire now, and what would make it."""

from __future__ import annotations

from typing import Any

import pytest

from sentinel_agent.core.explain import Explanation, explain
from sentinel_agent.core.health import health
from sentinel_agent.core.limits import FIRES_KEPT
from sentinel_agent.core.metrics import METRICS
from sentinel_agent.core.model import Role
from sentinel_agent.core.rule import CaptureSpec, Limit, Match, Rule
from sentinel_agent.core.sentence import conditions, format_value, summary
from tests.core.support import HOLMES, ROLE, Watch, holmes, threshold

MIB = 1024**2


def problems(rule: Rule, **keys: Any) -> list[tuple[str, str]]:
    return [(problem.severity, problem.text) for problem in health(rule, METRICS, **keys)]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (threshold(abs=1, enabled=False), "it is disabled"),
        (threshold(metric=None, abs=1), "no metric is given"),
        (threshold(metric="cpuu", abs=1), "did you mean cpu"),
        (threshold(metric="zzzzzz", abs=1), "nothing publishes it"),
        (threshold(min=5), "no test"),
        (threshold(min=5, max=5, abs=6), "min 5 is not under max 5"),
        (threshold(max=0, min=0, abs=1), "min 0 is not under max 0"),
        (threshold(abs=9, max=9), "abs 9 can never match under max 9"),
        (threshold(abs=8, max=9, baseline=HOLMES), "abs 8 can never match under max 9"),
        (threshold(below=5, min=5), "below 5 can never match"),
        (threshold(abs=1, limit=Limit(count=0)), "count is 0"),
        (threshold(abs=1, match=Match(service="(")), "match.service '(' is no regular expression"),
        (Rule(name="x", trigger="cpu >"), "Syntax error"),
        (Rule(name="x", trigger="size('a') > 2 && cpu > 1"), "write double"),
        (Rule(name="x", trigger="cpuu > 1 || zzzzzz > 2"), "did you mean cpu"),
    ],
)
def test_why_a_rule_cannot_fire(rule: Rule, words: str) -> None:
    """One grave problem each, in words; the explanation begins with them."""
    grave = [text for severity, text in problems(rule) if severity == "cannot_fire"]
    assert any(words in text for text in grave)
    told = explain(rule, None, None, METRICS, 0)
    assert not told.can_fire
    assert words in told.now


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (threshold(diff=50), "diff without min"),
        (threshold(min=1, diff=950, baseline=HOLMES), "cannot match over a level of 2"),
        (threshold(abs=9, max=9, min=1, diff=50), "abs 9 can never match"),
        (threshold(below=5, min=5, abs=9), "below 5 can never match"),
        (threshold(below=5, limit=Limit(rearm_above=2)), "rearm_above does nothing with `below`"),
        (Rule(name="x", trigger="cpu > 1", limit=Limit(rearm_above=2)), "without `metric`"),
        (Rule(name="x", trigger="cpu > 1 || zzzzzz > 2"), "nothing publishes it"),
        (threshold(abs=1, capture=(CaptureSpec("profile", pause=True),)), "cannot pause its target"),
        (
            threshold(abs=1, capture=("stacks", CaptureSpec("profile", skip_when="rsss > 1"))),
            "did you mean rss",
        ),
        (threshold(abs=1, capture=(CaptureSpec("profile", skip_when="rss >"),)), "is always skipped"),
        (threshold(abs=1, limit=Limit(count=9999)), f"taken as {FIRES_KEPT}"),
        (threshold(abs=1, cooldown=0.0), "at every tick"),
    ],
)
def test_what_is_worth_a_warning(rule: Rule, words: str) -> None:
    """The rule works; there is one warning and nothing grave."""
    ((severity, text),) = problems(rule)
    assert severity == "warning"
    assert words in text
    assert explain(rule, None, None, METRICS, 0).can_fire


@pytest.mark.parametrize(
    "rule",
    [
        threshold(min=20, diff=50, abs=90),
        holmes(10, 25, 70, 0, cooldown=60.0),
        holmes(10, 25, 70, 100, cooldown=60.0),
        threshold(below=5, abs=9),
        threshold(abs=7, max=9, baseline=HOLMES),
        Rule(name="x", trigger="cpu > 1", metric="cpu", limit=Limit(rearm_above=2, count=5)),
    ],
)
def test_a_sound_rule_has_no_problem(rule: Rule) -> None:
    """The rule of the design among them."""
    assert problems(rule, capture_kinds=("stacks",), roles=[ROLE]) == []


def test_unknown_captures_and_roles_that_do_not_match() -> None:
    """A capture that is not there is skipped; a rule for nobody cannot fire."""
    rule = threshold(abs=1, capture=("stacks", CaptureSpec("tasks"), "tasks"), match=Match(service="^other$"))
    found = problems(rule, capture_kinds={"stacks"}, roles=[ROLE, Role("a", "b")])
    assert [severity for severity, _ in found] == ["cannot_fire", "warning"]
    assert "none of the 2 roles" in found[0][1]
    assert "'tasks' is not known here" in found[1][1]


def told(watch: Watch, now: float, **values: float | None) -> Explanation:
    """The explanation right after a tick of a single rule."""
    decision = watch.one(now, **values)
    (rule,) = watch.engine.rules
    return explain(rule, decision, watch.engine.limits().get((ROLE.key, rule.name)), METRICS, now)


def test_what_would_make_it_fire_is_said_with_figures() -> None:
    """In the metric's unit, and with what the baseline asks for at present."""
    rule = threshold(
        metric="rss", min=64 * MIB, max=512 * MIB, abs=256 * MIB, diff=50, below=MIB, warmup=2, hold=30.0
    )
    watch = Watch(rule)
    assert "waits for 2 readings" in told(watch, 0, rss=100.0 * MIB).now
    found = told(watch, 1, rss=110.0 * MIB)
    assert found.now == "its condition is false: rss is 110.0 MiB (usual: 100.0 MiB)"
    assert found.fires_when == (
        "rss goes above 256.0 MiB",
        "rss reaches 50% over its mean, 150.0 MiB at present",
        "rss goes below 1.0 MiB",
    )
    assert found.provided == (
        "it is 64.0 MiB or more",
        "it is under the guard of 512.0 MiB",
        "it stays so for 30s",
    )
    assert "under its min" in told(watch, 2, rss=1.0).now
    assert "guard that spares" in told(watch, 3, rss=900.0 * MIB).now
    assert told(watch, 4, rss=300.0 * MIB).now.endswith("it must stay so for another 30s")
    assert told(watch, 5, rss=None).now == "there is no reading to judge: gone"


def test_a_firing_its_cooldown_and_what_would_pass_it() -> None:
    """From the firing to the end of the limit."""
    watch = Watch(threshold(abs=90, cooldown=60.0, limit=Limit(count=2, per=3600.0, rearm_above=1.2)))
    first = told(watch, 0, cpu=97.0)
    assert first.now == "it has just fired: cpu 97%: above 90%"
    assert told(watch, 1, cpu=97.0).now == "it has fired; its capture is under way"
    watch.finish(2)
    cooling = told(watch, 12, cpu=97.0).now
    assert (
        cooling
        == "it fired lately; the cooldown ends in 50s, and its condition is true; 116.4% would pass it"
    )
    assert "cooldown ends in 49s; 116.4%" in told(watch, 13, cpu=1.0).now
    again = told(watch, 14, cpu=120.0).now
    assert again.endswith("worse than the last time, so it passed the cooldown")
    watch.finish(14)
    assert told(watch, 100, cpu=97.0).now == "its limit is used up: 2 in 1h; free again in 58m20s"


def test_explanations_need_no_record() -> None:
    """The caller may not have it: the decision's own figures are used, and what is not known is left out."""
    watch = Watch(threshold(abs=90, cooldown=60.0, limit=Limit(count=1)))
    rule = watch.engine.rules[0]
    watch.one(0, cpu=97.0)
    watch.finish(0)
    assert "ends in 50s" in explain(rule, watch.one(10, cpu=97.0), None, METRICS, 10).now
    assert explain(rule, watch.one(70, cpu=97.0), None, METRICS, 70).now == "its limit is used up: 1 in 1h"


def test_the_other_reasons_in_words() -> None:
    """The gate, an expression that fails, a rule without a baseline, one that has judged nothing."""
    assert "capture.cpu_max" in told(Watch(threshold(abs=90), cpu_max=50), 0, cpu=60.0).now
    failing = Rule(name="spike", trigger="int(1 / cpu) > int(1)")
    assert told(Watch(failing), 0, cpu=0.0).now.startswith("its expression failed: OUT_OF_RANGE")
    assert told(Watch(failing), 0, cpu=5.0).now == "its condition is false: the metric is nothing"
    assert told(Watch(threshold(abs=90), cpu_max=0), 0, cpu=60.0).now == "its condition is false: cpu is 60%"
    assert "judged nothing" in explain(threshold(abs=90), None, None, METRICS, 0).now
    first = told(Watch(threshold(diff=90, warmup=1)), 0, cpu=60.0)
    assert first.now == "its condition is false: cpu is 60% (usual: unknown)"
    assert first.fires_when == ("cpu reaches 90% over its mean",)


def test_a_plug_ins_metric_has_no_unit_and_is_explained_all_the_same() -> None:
    """A bare figure."""
    watch = Watch(threshold(metric="queue_depth", abs=90))
    decision = watch.one(0, queue_depth=60.0)
    found = explain(watch.engine.rules[0], decision, None, METRICS, 0)
    assert found.fires_when == ("queue_depth goes above 90",)


@pytest.mark.parametrize(
    ("rule", "values", "words"),
    [
        (threshold(abs=90), [97.0], "cpu 97%: above 90%"),
        (threshold(below=5), [2.5], "cpu 2.5%: below 5%"),
        (threshold(diff=50, warmup=1), [20.0, 40.0], "cpu 40%: 50% or more over the usual 20% (mean)"),
        (threshold(abs=90, hold=1.0), [97.0, 98.0], "cpu 98%: above 90%, for 1s at least"),
        (Rule(name="spike", trigger="cpu > 1"), [5.0], "`cpu > 1` is true"),
        (threshold(abs=90), [7.0], "cpu 7%: no test matches"),
    ],
)
def test_the_summary_of_a_firing(rule: Rule, values: list[float], words: str) -> None:
    """One line, as it stands in the incident."""
    watch = Watch(rule)
    decision = [watch.one(time, cpu=value) for time, value in enumerate(values)][-1]
    assert summary(rule, decision, "percent") == words


def test_the_conditions_of_holmes_and_of_expressions() -> None:
    """holmes' average is called so; an expression is its own condition, and guards it has none."""
    assert conditions(holmes(10, 25, 70), "percent")[1] == "cpu reaches 25% over its holmes average"
    assert conditions(threshold(metric=None, abs=7), "")[0] == "the metric goes above 7"
    found = explain(Rule(name="x", trigger="cpu > 1"), None, None, METRICS, 0)
    assert (found.fires_when, found.provided) == (("`cpu > 1` becomes true",), ())
    guarded = explain(holmes(10, 25, 70, 0, cooldown=1.0), None, None, METRICS, 0)
    assert guarded.provided == ("it is 10% or more",)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (85.55, "percent", "85.5%"),
        (100.0, "percent", "100%"),
        (1.5 * MIB, "bytes", "1.5 MiB"),
        (1536.0, "bytes_per_second", "1.5 KiB/s"),
        (12000.0, "count", "12000"),
        (0.25, "seconds", "250ms"),
        (12.5, "per_second", "12.5/s"),
        (3.0, "", "3"),
    ],
)
def test_figures_with_their_units(value: float, unit: str, text: str) -> None:
    """As people write them."""
    assert format_value(value, unit) in {text, text.replace("85.5", "85.6")}
