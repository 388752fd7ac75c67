"""Why a rule is not firing now, and what would make it fire (`rules explain NAME`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.core import limits as limiting
from sentinel_agent.core.health import Problem, health
from sentinel_agent.core.running import needs_warmup
from sentinel_agent.core.sentence import conditions, format_value, guards, summary
from sentinel_agent.core.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sentinel_agent.core.decision import Decision
    from sentinel_agent.core.limits import LimitRecord
    from sentinel_agent.core.metrics import Metric
    from sentinel_agent.core.model import Role
    from sentinel_agent.core.rule import Rule


class Explanation(msgspec.Struct, frozen=True):
    """The answer in words. `now` is why it does or does not fire, `fires_when` what is enough, `provided` what must hold too."""

    rule: str
    can_fire: bool
    now: str
    fires_when: tuple[str, ...]
    provided: tuple[str, ...]
    problems: tuple[Problem, ...]


def explain(
    rule: Rule,
    decision: Decision | None,
    record: LimitRecord | None,
    metrics: Mapping[str, Metric],
    now: float,
    *,
    capture_kinds: Collection[str] | None = None,
    roles: Collection[Role] = (),
) -> Explanation:
    """Put together what is known of `rule` on one role.

    `decision` is its last one there, `record` its limits; None where there is none. The rest is as for `health`.
    """
    problems = health(rule, metrics, capture_kinds=capture_kinds, roles=roles)
    known = metrics.get(rule.metric or "")
    unit = known.unit if known is not None else ""
    causes = [problem.text for problem in problems if problem.severity == "cannot_fire"]
    if causes:
        text = f"it cannot fire: {'; '.join(causes)}"
    elif decision is None:
        text = "it has judged nothing so far: no target that it is for has been read"
    else:
        text = _why(rule, decision, record, unit, now)
    return Explanation(
        rule=rule.name,
        can_fire=not causes,
        now=text,
        fires_when=tuple(conditions(rule, unit, decision.bar if decision is not None else None)),
        provided=tuple(guards(rule, unit)),
        problems=tuple(problems),
    )


def _why(rule: Rule, decision: Decision, record: LimitRecord | None, unit: str, now: float) -> str:
    if decision.fire:
        return f"it has just fired: {summary(rule, decision, unit)}"
    if decision.state == "firing":
        return "it has fired; its capture is under way"
    if decision.state == "pending":
        since = decision.since if decision.since is not None else now
        left = max(0.0, since + rule.hold - now)
        return f"{summary(rule, decision, unit)}; it must stay so for another {format_duration(left)}"
    if decision.reason == "limit":
        return _limit_words(rule, record, now)
    if decision.reason == "cooldown":
        return _cooldown_words(rule, decision, record, unit, now)
    return _reason_words(rule, decision, unit)


def _limit_words(rule: Rule, record: LimitRecord | None, now: float) -> str:
    free = limiting.free_again(record, rule.limit, now) if record is not None else None
    until = f"; free again in {format_duration(max(0.0, free - now))}" if free is not None else ""
    return f"its limit is used up: {rule.limit.count} in {format_duration(rule.limit.per)}{until}"


def _cooldown_words(rule: Rule, decision: Decision, record: LimitRecord | None, unit: str, now: float) -> str:
    until = record.cooldown_until if record is not None else decision.cooldown_until
    text = f"it fired lately; the cooldown ends in {format_duration(max(0.0, until - now))}"
    text += ", and its condition is true" if decision.matched else ""
    highest = limiting.high_water(record, rule.limit, now) if record is not None else None
    if rule.limit.rearm_above is not None and highest is not None:
        text += f"; {format_value(highest * rule.limit.rearm_above, unit)} would pass it"
    return text


def _reason_words(rule: Rule, decision: Decision, unit: str) -> str:
    value = "nothing" if decision.value is None else format_value(decision.value, unit)
    shown = f"{rule.metric or 'the metric'} is {value}"
    baseline = "unknown" if decision.baseline is None else format_value(decision.baseline, unit)
    words: dict[str, str] = {
        "warmup": f"it is warming up: it waits for {rule.warmup} readings, to know what is usual",
        "no_data": f"there is no reading to judge: {decision.detail}",
        "error": f"its expression failed: {decision.detail}",
        "cpu_gate": "the target's CPU is at or over capture.cpu_max, so nothing fires",
        "disabled": "it is disabled",
        "below_min": f"{shown}, under its min",
        "above_max": f"{shown}, at or over its max, the guard that spares the target",
    }
    usual = f" (usual: {baseline})" if needs_warmup(rule) else ""
    return words.get(decision.reason, f"its condition is false: {shown}{usual}")
