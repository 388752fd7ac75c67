"""What the tests of the core share: short ways to say a rule, a role and a tick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sentinel_agent.core.engine import RuleEngine
from sentinel_agent.core.model import Reading, Role
from sentinel_agent.core.replay import ReplayEntry, replay
from sentinel_agent.core.ring import SeriesRing
from sentinel_agent.core.rule import Baseline, Rule, Trigger

if TYPE_CHECKING:
    from sentinel_agent.core.decision import Decision

ROLE = Role("gateway", "host-1")
HOLMES = Baseline(kind="holmes")


def threshold(name: str = "spike", *, metric: str | None = "cpu", **keys: Any) -> Rule:
    """A rule with a threshold trigger: min, max, abs, diff, below go into it, all else into the rule."""
    tests = {key: keys.pop(key) for key in ("min", "max", "abs", "diff", "below") if key in keys}
    return Rule(name=name, metric=metric, trigger=Trigger(**tests), **keys)


def holmes(minimum: float, diff: float, bound: float, guard: float = 0, **keys: Any) -> Rule:
    """A rule as holmes has it: all four figures given, judged as holmes judges; no cooldown unless said."""
    keys.setdefault("cooldown", 0.0)
    return threshold(min=minimum, diff=diff, abs=bound, max=guard, baseline=HOLMES, **keys)


def run(rule: Rule, values: list[float], *, step: float = 1.0) -> list[ReplayEntry]:
    """The answers of one rule to values of `cpu`, `step` seconds apart from time 0 on."""
    return replay([rule], [(index * step, {"cpu": value}) for index, value in enumerate(values)])


def reasons(rule: Rule, values: list[float]) -> list[str]:
    """The reasons from the 10th value on."""
    return [str(entry.reason) for entry in run(rule, values)][9:]


class Watch:
    """An engine with the rings of one role, ticked by hand."""

    def __init__(self, *rules: Rule, cpu_max: float = 0.0, role: Role = ROLE) -> None:
        self.engine = RuleEngine(rules, cpu_max=cpu_max)
        self.role = role
        self.rings: dict[str, SeriesRing] = {}

    def tick(self, now: float, **values: float | None) -> dict[str, Decision]:
        """One tick with these readings (None: the reading failed); the decisions by rule."""
        readings = {}
        for metric, value in values.items():
            failure = "gone" if value is None else None
            readings[metric] = Reading(metric, now, value, failure)
            if value is not None:
                self.rings.setdefault(metric, SeriesRing(24 * 100)).push(now, value)
        return {d.rule: d for d in self.engine.tick(self.role, now, readings, self.rings)}

    def one(self, now: float, **values: float | None) -> Decision:
        """The same with a single rule."""
        (decision,) = self.tick(now, **values).values()
        return decision

    def finish(self, now: float, rule: str = "spike") -> None:
        self.engine.capture_finished(self.role, rule, now)
