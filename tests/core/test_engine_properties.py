"""What must hold of the engine whatever happens: a state machine drives it."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sentinel_agent.core.engine import RuleEngine
from sentinel_agent.core.limits import LimitRecord
from sentinel_agent.core.model import Reading
from sentinel_agent.core.replay import Row, replay
from sentinel_agent.core.ring import SeriesRing
from sentinel_agent.core.rule import Baseline, Limit, Rule, Trigger
from tests.core.support import ROLE

tests = st.one_of(st.none(), st.integers(0, 100).map(float))
rules = st.builds(
    Rule,
    name=st.just("spike"),
    metric=st.just("cpu"),
    trigger=st.builds(Trigger, min=tests, max=tests, abs=tests, diff=tests, below=tests)
    | st.just("cpu > 50 || threads > 5"),
    baseline=st.builds(
        Baseline, kind=st.sampled_from(["mean", "median", "holmes"]), window=st.sampled_from([5.0, 30.0])
    ),
    warmup=st.integers(1, 5),
    hold=st.sampled_from([0.0, 0.0, 2.0]),
    cooldown=st.sampled_from([0.0, 3.0, 20.0]),
    limit=st.builds(
        Limit,
        count=st.none() | st.integers(0, 3),
        per=st.sampled_from([5.0, 60.0]),
        rearm_above=st.sampled_from([None, 1.2, 2.0]),
    ),
)
values = st.none() | st.integers(0, 120).map(float)


class EngineMachine(RuleBasedStateMachine):
    """Ticks, ends of captures, restarts of role and agent, reloads; the clock only goes on."""

    @initialize(first=rules)
    def start(self, first: Rule) -> None:
        self.rule = first
        self.engine = RuleEngine([first])
        self.ring = SeriesRing(24 * 64)
        self.now = 0.0
        self.stored: dict[tuple[str, str], LimitRecord] = {}
        self.fires: list[tuple[float, float | None]] = []
        self.capturing = False
        self.cooling_until = 0.0
        self.rows: list[Row] = []
        self.plain = True  # nothing but ticks with instantaneous captures so far
        self.live: list[tuple[str, bool, str]] = []

    @rule(
        step=st.sampled_from([0.5, 1.0, 1.0, 4.0, 30.0]), value=values, threads=values, instant=st.booleans()
    )
    def tick(self, step: float, value: float | None, threads: float | None, instant: bool) -> None:
        self.now += step
        given = {name: v for name, v in (("cpu", value), ("threads", threads)) if v is not None}
        readings = {name: Reading(name, self.now, v) for name, v in given.items()}
        if value is not None:
            self.ring.push(self.now, value)
        (decision,) = self.engine.tick(ROLE, self.now, readings, {"cpu": self.ring})
        self.rows.append((self.now, given))
        self.live.append((decision.state, decision.fire, decision.reason))
        if decision.fire:
            self.check_fire(value, decision.rearmed)
            if instant:
                self.finish()
            else:
                self.plain = False

    def check_fire(self, value: float | None, rearmed: bool) -> None:
        limit = self.rule.limit
        recent = [(time, v) for time, v in self.fires if self.now - time < limit.per]
        assert not self.capturing, "a second capture beside the first"
        if self.now < self.cooling_until:
            assert rearmed, "fired in the cooldown"
            assert limit.rearm_above is not None
            assert value is not None
            assert value >= limit.rearm_above * max(v for _, v in recent if v is not None)
        assert limit.count is None or len(recent) < limit.count, "more than count in a window"
        self.fires.append((self.now, value))
        self.capturing = True
        self.length = self.rule.cooldown

    @rule(wait=st.sampled_from([0.0, 1.0]))
    def finish(self, wait: float = 0.0) -> None:
        if wait:
            self.now += wait
            self.plain = False
        self.engine.capture_finished(ROLE, "spike", self.now)
        if self.capturing:
            self.cooling_until = self.now + self.length
        self.capturing = False

    @rule()
    def target_restarts(self) -> None:
        self.engine.forget(ROLE)
        self.plain = False

    @rule(changed=rules)
    def reload(self, changed: Rule) -> None:
        # The limits of the machine's own account are those of one rule; so a reload changes all but these.
        self.rule = msgspec.structs.replace(changed, limit=self.rule.limit)
        self.engine.replace([self.rule])
        self.plain = False

    @rule()
    def agent_restarts(self) -> None:
        if self.capturing:
            self.finish()
        self.persist()
        self.engine = RuleEngine([self.rule])
        self.engine.load_limits(
            msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=LimitRecord)
            for record in self.stored.values()
        )
        self.plain = False

    @invariant()
    def persist(self) -> None:
        """What was handed out as changed is always all there is."""
        for record in self.engine.changed_limits():
            self.stored[record.role, record.rule] = record
        assert self.engine.limits() == {key: self.stored[key] for key in self.engine.limits()}

    @invariant()
    def a_replay_gives_the_same(self) -> None:
        """The rows of a live run without interruptions, replayed, have the same answers."""
        if self.plain:
            again = replay([self.rule], self.rows)
            assert [(entry.state, entry.fire, entry.reason) for entry in again] == self.live


EngineMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestEngine = EngineMachine.TestCase
