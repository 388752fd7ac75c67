"""One rule on one role: what it has seen so far, and what becomes of that when the rule changes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.core.ring import HolmesRing
from sentinel_agent.core.trigger import Judgement, judge, judge_holmes

if TYPE_CHECKING:
    from sentinel_agent.core.decision import Reason
    from sentinel_agent.core.model import Role
    from sentinel_agent.core.rule import Match, Rule
    from sentinel_agent.core.state import State


@dataclass(slots=True)
class Running:
    """What a rule knows of a role that a restart may forget: readings `seen`, since when the condition is true."""

    rule: Rule
    state: State
    seen: int = 0
    ring: HolmesRing | None = None
    since: float | None = None
    light_after: float = -math.inf

    def has_held(self, now: float) -> bool:
        """Whether the condition has been true for the rule's hold time."""
        return self.since is not None and now - self.since >= self.rule.hold

    @classmethod
    def fresh(cls, rule: Rule) -> Running:
        """A rule that has seen nothing."""
        ring = HolmesRing() if uses_holmes(rule) else None
        return cls(rule=rule, state="warmup" if needs_warmup(rule) else "inactive", ring=ring)


def uses_holmes(rule: Rule) -> bool:
    """Whether the rule is judged as holmes does; an expression never is."""
    return rule.baseline.kind == "holmes" and not isinstance(rule.trigger, str)


def needs_warmup(rule: Rule) -> bool:
    """Whether the rule uses a baseline: it has `diff`, or is of kind `holmes`."""
    return not isinstance(rule.trigger, str) and (rule.trigger.diff is not None or uses_holmes(rule))


def matches(match: Match, role: Role) -> bool:
    """Whether a rule with `match` is for `role`. A pattern that is no regular expression matches nothing."""
    try:
        return (match.service is None or re.search(match.service, role.service) is not None) and (
            match.worker is None or re.search(match.worker, role.worker) is not None
        )
    except re.error:
        return False


def is_light(run: Running, now: float, reason: Reason, judgement: Judgement, value: float | None) -> bool:
    """Whether the rule would have fired, had it not spared the target, and has not said so for a cooldown."""
    if reason == "cpu_gate":
        would_fire = run.has_held(now)
    else:
        would_fire = _matches_without_guard(run.rule, judgement, value)
    if not would_fire or now < run.light_after <= now + run.rule.cooldown:
        return False
    run.light_after = now + run.rule.cooldown
    return True


def _matches_without_guard(rule: Rule, judgement: Judgement, value: float | None) -> bool:
    """Whether `value`, which the `max` guard refused, would have matched without it."""
    assert not isinstance(rule.trigger, str)
    assert value is not None  # only a value can be at or over a guard
    open_trigger = msgspec.structs.replace(rule.trigger, max=None)
    if uses_holmes(rule):
        return judge_holmes(open_trigger, value, int(judgement.baseline or 0)).matched
    return judge(open_trigger, value, judgement.baseline).matched


def carried(was: Running, rule: Rule) -> Running:
    """What a running rule becomes when its definition is now `rule`."""
    if was.rule == rule:
        return was
    fresh = Running.fresh(rule)
    if _reads(was.rule) != _reads(rule):
        return fresh
    fresh.seen = was.seen
    fresh.ring = was.ring
    return fresh


def _reads(rule: Rule) -> tuple[object, ...]:
    """What the warm-up depends on."""
    return rule.metric, rule.baseline, rule.warmup, isinstance(rule.trigger, str)
