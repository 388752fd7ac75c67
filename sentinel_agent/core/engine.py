"""The rule engine: rules times roles, one decision for each pair at every tick.

Pure: readings, history and `now` come as arguments; what must outlive the agent (`LimitRecord`) is handed out
and taken back. `now` is wall-clock time. One thread uses it at a time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from sentinel_agent.core import limits as limiting
from sentinel_agent.core.baseline import baseline_of, earlier_values
from sentinel_agent.core.decision import Decision, DecisionRecord
from sentinel_agent.core.expression import Expression, ExpressionFaultError
from sentinel_agent.core.limits import LimitRecord
from sentinel_agent.core.running import Running, carried, is_light, matches, needs_warmup, uses_holmes
from sentinel_agent.core.state import advance
from sentinel_agent.core.trigger import Judgement, judge, judge_holmes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sentinel_agent.core.decision import Reason
    from sentinel_agent.core.model import Reading, Role
    from sentinel_agent.core.ring import SeriesRing
    from sentinel_agent.core.rule import Rule
    from sentinel_agent.core.state import Event

CAPTURE_AT_MOST = 900.0
"""Seconds after which a capture whose end was never reported no longer keeps its rule from firing."""

RECORDS_KEPT = 10_000
"""Limit records held at once; beyond, the one that was written longest ago is dropped."""

_RISING = frozenset({"above_abs", "diff", "expression"})  # tests of which a higher value is a worse one
_SPARING = frozenset({"above_max", "cpu_gate"})  # reasons not to fire that spare the target

Key = tuple[str, str]
"""(role key, rule name)."""


class _Tick(NamedTuple):
    """What all rules of a role share at one tick. `values` are the finite ones of `readings`."""

    role: str
    now: float
    readings: Mapping[str, Reading]
    history: Mapping[str, SeriesRing]
    values: Mapping[str, float]
    gated: bool


class RuleEngine:
    """Judges `rules` on every role it is given.

    With `cpu_max` above 0, no rule fires while the role's `cpu` is at or over it (holmes' CPUMax).
    """

    def __init__(self, rules: Iterable[Rule], *, cpu_max: float = 0.0) -> None:
        """Take `rules`; their names must differ.

        Raises:
            ValueError: two rules have one name.
        """
        self.cpu_max = cpu_max
        self._rules: dict[str, Rule] = {}
        self._expressions: dict[str, Expression | ExpressionFaultError] = {}
        self._running: dict[str, dict[str, Running]] = {}
        self._plans: dict[str, list[Running]] = {}
        self._capturing: dict[Key, float] = {}
        self._limits: dict[Key, LimitRecord] = {}
        self._changed: set[Key] = set()
        self.replace(rules)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in force, in their order."""
        return tuple(self._rules.values())

    def replace(self, rules: Iterable[Rule]) -> None:
        """Put other rules in force (hot reload); on a fault the old ones stay.

        A rule that stays as it was keeps everything. A rule that changed keeps its limits and starts its hold
        time afresh; its warm-up too if it reads something else (metric, baseline, kind of trigger). A rule
        that is gone takes everything with it.

        Raises:
            ValueError: two rules have one name.
        """
        listed = tuple(rules)
        wanted = {rule.name: rule for rule in listed}
        if len(wanted) != len(listed):
            names = [rule.name for rule in listed]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"rules of the same name: {', '.join(twice)}")
        self._expressions = {
            rule.name: _compiled(rule.trigger) for rule in listed if isinstance(rule.trigger, str)
        }
        self._running = {
            role: {name: carried(was, wanted[name]) for name, was in running.items() if name in wanted}
            for role, running in self._running.items()
        }
        self._limits = {key: record for key, record in self._limits.items() if key[1] in wanted}
        self._capturing = {key: time for key, time in self._capturing.items() if key[1] in wanted}
        self._changed = {key for key in self._changed if key[1] in wanted}
        self._plans.clear()
        self._rules = wanted

    def tick(
        self, role: Role, now: float, readings: Mapping[str, Reading], history: Mapping[str, SeriesRing]
    ) -> list[Decision]:
        """The decision of every rule that is for `role`, in the order of the rules.

        `readings` are those of this tick, by metric; `history` the rings of the same target, in which they may
        be or not. After a decision that fires, `capture_finished` must follow.
        """
        values = _finite(readings)
        gated = 0 < self.cpu_max <= values.get("cpu", 0.0)
        tick = _Tick(role.key, now, readings, history, values, gated)
        return [self._decide(run, tick) for run in self._plan(role)]

    def capture_finished(self, role: Role, rule: str, now: float) -> None:
        """The capture of the last firing has ended, well or not: the cooldown counts from `now`.

        Nothing happens where no capture is under way.
        """
        key = (role.key, rule)
        if self._capturing.pop(key, None) is None:
            return
        self._keep(limiting.finished(self._record(key), now))
        run = self._running.get(role.key, {}).get(rule)
        if run is not None:
            run.state = advance(run.state, "finished")

    def forget(self, role: Role) -> None:
        """Start the role afresh: its warm-up and hold times. Call it when its target ends or is another one.

        Limits and captures under way stay.
        """
        self._running.pop(role.key, None)
        self._plans.pop(role.key, None)

    def limits(self) -> dict[Key, LimitRecord]:
        """Every limit record, by (role key, rule name)."""
        return dict(self._limits)

    def load_limits(self, records: Iterable[LimitRecord]) -> None:
        """Take records back from the store. Those of rules that are not in force are left out."""
        for record in records:
            if record.rule in self._rules:
                self._keep(record, changed=False)

    def changed_limits(self) -> list[LimitRecord]:
        """The records that changed since this was last asked; they are to be stored."""
        changed = [self._limits[key] for key in sorted(self._changed) if key in self._limits]
        self._changed.clear()
        return changed

    def record(
        self,
        decision: Decision,
        readings: Mapping[str, Reading],
        history: Mapping[str, SeriesRing],
    ) -> DecisionRecord:
        """The decision with what it was made from. Ask right after the tick, with its arguments.

        Raises:
            KeyError: the rule of the decision is not in force.
        """
        rule = self._rules[decision.rule]
        past: tuple[float, ...] = ()
        values: dict[str, float] = {}
        if isinstance(rule.trigger, str):
            values = _finite(readings)
        elif uses_holmes(rule):
            ring = self._running[decision.role][rule.name].ring
            past = ring.values() if ring is not None else ()
        elif rule.trigger.diff is not None and decision.value is not None and decision.metric in history:
            reading = readings[decision.metric]
            past = tuple(earlier_values(history[decision.metric], reading.time, rule.baseline.window))
        return DecisionRecord(decision, rule.trigger, rule.baseline, past, values)

    def _plan(self, role: Role) -> list[Running]:
        """The rules that are for `role`, running; worked out once until the rules change."""
        plan = self._plans.get(role.key)
        if plan is None:
            running = self._running.setdefault(role.key, {})
            plan = [
                running.setdefault(name, Running.fresh(rule))
                for name, rule in self._rules.items()
                if matches(rule.match, role)
            ]
            self._plans[role.key] = plan
        return plan

    def _decide(self, run: Running, tick: _Tick) -> Decision:
        rule, now, key = run.rule, tick.now, (tick.role, run.rule.name)
        value = tick.values.get(rule.metric) if rule.metric is not None else None
        if value is not None:
            run.seen += 1
            if run.ring is not None:
                run.ring.push(int(value))
        judgement = self._judge(run, tick, value)
        self._release_lost_capture(key, run, now)
        rising = value if judgement.test in _RISING else None
        allowed = self._permission(key, now, rising)
        event, reason = self._event(run, tick, judgement, allowed)
        run.state = advance(run.state, event)
        fire = event == "fire"
        if fire:
            self._capturing[key] = now
            self._keep(limiting.fired(self._record(key), rule.limit, rule.cooldown, now, value))
        limit = self._limits.get(key)
        return Decision(
            time=now,
            rule=rule.name,
            role=tick.role,
            metric=rule.metric or "",
            value=value,
            baseline=judgement.baseline,
            bar=judgement.bar,
            state=run.state,
            fire=fire,
            reason=reason,
            test=judgement.test,
            matched=judgement.matched,
            rearmed=fire and allowed == "rearmed",
            light=reason in _SPARING and allowed == "free" and is_light(run, now, reason, judgement, value),
            since=run.since,
            cooldown_until=limit.cooldown_until if limit is not None else 0.0,
            detail=judgement.detail,
        )

    def _judge(self, run: Running, tick: _Tick, value: float | None) -> Judgement:
        rule = run.rule
        if isinstance(rule.trigger, str):
            expression = self._expressions[rule.name]
            if isinstance(expression, ExpressionFaultError):
                return Judgement(False, "error", detail=expression.message)
            return expression.judge(tick.values)
        metric = rule.metric or ""
        if value is None:
            failed = tick.readings.get(metric)
            error = failed.error if failed is not None else None
            return Judgement(False, "no_data", detail=error or f"no reading of {metric or 'any metric'}")
        if run.ring is not None:
            return judge_holmes(rule.trigger, value, run.ring.average())
        baseline = None
        if rule.trigger.diff is not None and metric in tick.history:
            past = earlier_values(tick.history[metric], tick.readings[metric].time, rule.baseline.window)
            baseline = baseline_of(rule.baseline, past)
        return judge(rule.trigger, value, baseline)

    def _event(
        self, run: Running, tick: _Tick, judgement: Judgement, allowed: limiting.Permission
    ) -> tuple[Event, Reason]:
        """What has happened and why; also keeps the time since which the condition is true."""
        rule, now = run.rule, tick.now
        if needs_warmup(rule) and run.seen < rule.warmup:
            run.since = None
            return "unready", "no_data" if judgement.test == "no_data" else "warmup"
        if not (judgement.matched and rule.enabled):
            run.since = None
        elif run.since is None or now < run.since:
            run.since = now
        overruled: Reason | None = "cpu_gate" if tick.gated else None
        if not rule.enabled:
            overruled = "disabled"
        if (tick.role, rule.name) in self._capturing:
            return "busy", overruled or "cooldown"
        if allowed in {"cooldown", "limit"}:
            return "blocked", overruled or ("limit" if allowed == "limit" else "cooldown")
        if overruled is not None or not judgement.matched:
            return "quiet", overruled or judgement.test
        return "fire" if run.has_held(now) else "holding", judgement.test

    def _permission(self, key: Key, now: float, rising: float | None) -> limiting.Permission:
        limit = self._rules[key[1]].limit
        record = self._limits.get(key)
        if record is None:
            return "limit" if limit.count == 0 else "free"
        settled = limiting.settled(record, now)
        if settled is not record:
            self._keep(settled)
        return limiting.permission(settled, limit, now, rising)

    def _release_lost_capture(self, key: Key, run: Running, now: float) -> None:
        started = self._capturing.get(key)
        if started is not None and not -run.rule.cooldown <= now - started <= CAPTURE_AT_MOST:
            del self._capturing[key]
            run.state = advance(run.state, "finished")

    def _record(self, key: Key) -> LimitRecord:
        return self._limits.get(key) or LimitRecord(role=key[0], rule=key[1])

    def _keep(self, record: LimitRecord, *, changed: bool = True) -> None:
        key = (record.role, record.rule)
        self._limits.pop(key, None)  # so that it becomes the newest of the dictionary
        self._limits[key] = record
        if changed:
            self._changed.add(key)
        if len(self._limits) > RECORDS_KEPT:
            oldest = next(iter(self._limits))
            del self._limits[oldest]
            self._changed.discard(oldest)


def _finite(readings: Mapping[str, Reading]) -> dict[str, float]:
    """The readings that are numbers; NaN and infinity are the fault of a probe and count as no reading."""
    return {
        name: reading.value
        for name, reading in readings.items()
        if reading.value is not None and math.isfinite(reading.value)
    }


def _compiled(source: str) -> Expression | ExpressionFaultError:
    """A fault is kept as data: the rule says at every tick that it cannot be judged, and why."""
    try:
        return Expression(source)
    except ExpressionFaultError as fault:
        return fault
