"""What is wrong with a rule before it has judged anything: why it cannot fire, or will fire too often."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from sentinel_agent.core.expression import Expression, ExpressionFaultError
from sentinel_agent.core.guard import Guard
from sentinel_agent.core.limits import FIRES_KEPT
from sentinel_agent.core.running import matches, uses_holmes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sentinel_agent.core.metrics import Metric
    from sentinel_agent.core.model import Role
    from sentinel_agent.core.rule import Rule, Trigger


class Problem(NamedTuple):
    """`cannot_fire`: the rule is there but will do nothing. `warning`: it works, perhaps not as meant."""

    severity: Literal["cannot_fire", "warning"]
    text: str


def health(
    rule: Rule,
    metrics: Mapping[str, Metric],
    *,
    capture_kinds: Collection[str] | None = None,
    roles: Collection[Role] = (),
) -> list[Problem]:
    """Every problem of `rule`, the grave ones first.

    `metrics` are those that are known, by name. `capture_kinds` are those that can be done (None: not looked at),
    `roles` those that are watched (none: not looked at).
    """
    problems = [] if rule.enabled else [Problem("cannot_fire", "it is disabled (enabled: false)")]
    if isinstance(rule.trigger, str):
        problems += _expression_problems(rule, rule.trigger, metrics)
    else:
        problems += _metric_problems(rule, metrics)
        problems += _trigger_problems(rule, rule.trigger)
    problems += _limit_problems(rule)
    problems += _match_problems(rule, roles)
    problems += _guard_problems(rule, metrics)
    if capture_kinds is not None:
        problems += [
            Problem(
                "warning",
                f"the capture {kind!r} is not known here; it will be skipped, and the incident notes it",
            )
            for kind in dict.fromkeys(spec.kind for spec in rule.captures())
            if kind not in capture_kinds
        ]
    if any(spec.kind == "profile" and spec.pause for spec in rule.captures()):
        problems.append(
            Problem("warning", "a profile cannot pause its target and will fail: leave out `pause`")
        )
    return sorted(problems, key=lambda problem: problem.severity)


def _guard_problems(rule: Rule, metrics: Mapping[str, Metric]) -> list[Problem]:
    """A guard that cannot be judged skips its capture every time."""
    problems = []
    for spec in rule.captures():
        if spec.skip_when is None:
            continue
        try:
            faults = _unpublished(Guard(spec.skip_when).metrics, metrics)
        except ExpressionFaultError as fault:
            faults = [fault.message]
        problems += [
            Problem("warning", f"capture {spec.kind} is always skipped: skip_when: {text}") for text in faults
        ]
    return problems


def _unpublished(names: Iterable[str], metrics: Mapping[str, Metric]) -> list[str]:
    found = []
    for name in names:
        if name not in metrics:
            close = difflib.get_close_matches(name, metrics, n=3)
            like = f"; did you mean {' or '.join(close)}?" if close else ""
            found.append(f"the metric {name!r} is not known, nothing publishes it{like}")
    return found


def _expression_problems(rule: Rule, source: str, metrics: Mapping[str, Metric]) -> list[Problem]:
    try:
        expression = Expression(source)
    except ExpressionFaultError as fault:
        return [Problem("cannot_fire", f"{fault.message} ({fault.hint})" if fault.hint else fault.message)]
    missing = _unpublished(expression.metrics, metrics)
    # `a || missing` may still be true, so only an expression of which nothing is there can never fire.
    severity: Literal["cannot_fire", "warning"] = (
        "cannot_fire" if len(missing) == len(expression.metrics) else "warning"
    )
    problems = [Problem(severity, text) for text in missing]
    if rule.limit.rearm_above is not None and rule.metric is None:
        problems.append(
            Problem("warning", "rearm_above does nothing: without `metric` there is no value to compare")
        )
    return problems


def _metric_problems(rule: Rule, metrics: Mapping[str, Metric]) -> list[Problem]:
    if rule.metric is None:
        return [Problem("cannot_fire", "no metric is given: threshold tests need `metric`")]
    return [Problem("cannot_fire", text) for text in _unpublished([rule.metric], metrics)]


def _trigger_problems(rule: Rule, trigger: Trigger) -> list[Problem]:
    if trigger.abs is None and trigger.diff is None and trigger.below is None:
        return [Problem("cannot_fire", "the trigger has no test: give one of abs, diff, below")]
    holmes = uses_holmes(rule)
    # holmes compares integers: the least value over abs is abs + 1, and `max: 0` is no guard.
    figures = {name: _figure(getattr(trigger, name), whole=holmes) for name in ("min", "max", "abs", "below")}
    low, guard, bound, below = figures["min"], figures["max"], figures["abs"], figures["below"]
    if holmes and guard == 0:
        guard = None
    if guard is not None and low is not None and low >= guard:
        return [Problem("cannot_fire", f"min {low:g} is not under max {guard:g}: no value passes both")]
    useless = []
    if bound is not None and guard is not None and bound + (1 if holmes else 0) >= guard:
        useless.append(("abs", f"abs {bound:g} can never match under max {guard:g}"))
    if below is not None and low is not None and below <= low:
        useless.append(("below", f"below {below:g} can never match: min {low:g} lets no such value pass"))
    tests = {name for name in ("abs", "diff", "below") if getattr(trigger, name) is not None}
    severity: Literal["cannot_fire", "warning"] = (
        "cannot_fire" if tests == {name for name, _ in useless} else "warning"
    )
    problems = [Problem(severity, text) for _, text in useless]
    if trigger.diff is not None:
        problems += _diff_problems(trigger, trigger.diff, holmes=holmes)
    if rule.limit.rearm_above is not None and tests == {"below"}:
        problems.append(
            Problem("warning", "rearm_above does nothing with `below`: there a higher value is no worse")
        )
    return problems


def _figure(value: float | None, *, whole: bool) -> float | None:
    return value if value is None or not whole else int(value)


def _diff_problems(trigger: Trigger, diff: float, *, holmes: bool) -> list[Problem]:
    problems = []
    if trigger.min is None:
        problems.append(
            Problem("warning", "diff without min fires on noise when the usual level is low: add `min`")
        )
    if holmes and diff >= 900:
        text = f"diff {diff:g} cannot match over a level of 2 or more: the current value is part of holmes' average"
        problems.append(Problem("warning", text))
    return problems


def _limit_problems(rule: Rule) -> list[Problem]:
    count = rule.limit.count
    if count == 0:
        return [Problem("cannot_fire", "limit.count is 0: it may never fire")]
    if count is not None and count > FIRES_KEPT:
        return [Problem("warning", f"limit.count {count} is taken as {FIRES_KEPT}, the most that is counted")]
    if count is None and rule.cooldown == 0:
        return [Problem("warning", "neither cooldown nor limit.count: it may fire at every tick")]
    return []


def _match_problems(rule: Rule, roles: Collection[Role]) -> list[Problem]:
    for name in ("service", "worker"):
        pattern = getattr(rule.match, name)
        try:
            re.compile(pattern or "")
        except re.error as fault:
            text = f"match.{name} {pattern!r} is no regular expression: {fault}"
            return [Problem("cannot_fire", text)]
    if roles and not any(matches(rule.match, role) for role in roles):
        return [Problem("cannot_fire", f"match fits none of the {len(roles)} roles that are watched")]
    return []
