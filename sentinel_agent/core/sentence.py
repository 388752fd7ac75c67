"""Decisions and figures in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.core.units import format_duration, format_size

if TYPE_CHECKING:
    from sentinel_agent.core.decision import Decision
    from sentinel_agent.core.rule import Rule


def format_value(value: float, unit: str) -> str:
    """A figure with its unit as people write it: `85.5%`, `1.5 MiB`, `120`, `4.2s`, `12/s`; `unit` as in `Metric`."""
    if unit == "bytes":
        return format_size(value)
    if unit == "bytes_per_second":
        return f"{format_size(value)}/s"
    if unit == "seconds":
        return format_duration(value)
    figure = f"{value:,.1f}".removesuffix(".0").replace(",", "")
    return figure + {"percent": "%", "per_second": "/s"}.get(unit, "")


def summary(rule: Rule, decision: Decision, unit: str) -> str:
    """What has happened, in one line; the `summary` of an incident."""
    text = _test_words(rule, decision, unit)
    if decision.value is not None:
        text = f"{rule.metric} {format_value(decision.value, unit)}: {text}"
    if rule.hold > 0:
        text += f", for {format_duration(rule.hold)} at least"
    if decision.rearmed:
        text += "; worse than the last time, so it passed the cooldown"
    return text


def _test_words(rule: Rule, decision: Decision, unit: str) -> str:
    if isinstance(rule.trigger, str):
        return f"`{rule.trigger}` is true"
    trigger = rule.trigger
    if decision.test == "above_abs" and trigger.abs is not None:
        return f"above {format_value(trigger.abs, unit)}"
    if decision.test == "below" and trigger.below is not None:
        return f"below {format_value(trigger.below, unit)}"
    if decision.test == "diff" and decision.baseline is not None and trigger.diff is not None:
        usual = format_value(decision.baseline, unit)
        return f"{trigger.diff:g}% or more over the usual {usual} ({rule.baseline.kind})"
    return "no test matches"


def conditions(rule: Rule, unit: str, bar: float | None = None) -> list[str]:
    """What would make the rule fire, one condition each, any of which is enough. `bar`: what `diff` needs at present."""
    if isinstance(rule.trigger, str):
        return [f"`{rule.trigger}` becomes true"]
    trigger, metric = rule.trigger, rule.metric or "the metric"
    found = []
    if trigger.abs is not None:
        found.append(f"{metric} goes above {format_value(trigger.abs, unit)}")
    if trigger.diff is not None:
        at = f", {format_value(bar, unit)} at present" if bar is not None else ""
        usual = "holmes average" if rule.baseline.kind == "holmes" else rule.baseline.kind
        found.append(f"{metric} reaches {trigger.diff:g}% over its {usual}{at}")
    if trigger.below is not None:
        found.append(f"{metric} goes below {format_value(trigger.below, unit)}")
    return found


def guards(rule: Rule, unit: str) -> list[str]:
    """What must hold besides."""
    if isinstance(rule.trigger, str):
        return []
    trigger = rule.trigger
    found = []
    if trigger.min is not None:
        found.append(f"it is {format_value(trigger.min, unit)} or more")
    if trigger.max is not None and not (rule.baseline.kind == "holmes" and trigger.max == 0):
        found.append(f"it is under the guard of {format_value(trigger.max, unit)}")
    if rule.hold > 0:
        found.append(f"it stays so for {format_duration(rule.hold)}")
    return found
