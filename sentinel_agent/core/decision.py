"""What a rule answered at one moment, and that answer as one line that can be judged again.

holmes writes such a line for every decision (its configuration, the previous values, the current one); so does
this, and `judge_record` gives the same answer from the line alone.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from sentinel_agent.core.baseline import baseline_of, holmes_baseline
from sentinel_agent.core.expression import Expression
from sentinel_agent.core.rule import Baseline, Trigger
from sentinel_agent.core.state import State
from sentinel_agent.core.trigger import Judgement, Test, judge, judge_holmes

Reason = Test | Literal["warmup", "cooldown", "limit", "cpu_gate", "disabled"]
"""Why it fires or does not. Exactly one for each decision."""


class Decision(msgspec.Struct, frozen=True):
    """The answer of one rule on one role at one tick.

    `role` is the role's key. `value`, `baseline` and `bar` (the least that `diff` fires at) are in the metric's
    unit. `test` is what the trigger itself said and `matched` whether it was met, also while a cooldown, a
    limit or the CPU gate overrules it (then `reason` names that). `since` is when the condition became true.
    `light` marks a firing that was refused to spare the target (`max`, CPU gate), at most one per cooldown:
    what costs it nothing, such as the window of readings, may still be saved.
    """

    time: float
    rule: str
    role: str
    metric: str
    value: float | None
    baseline: float | None
    bar: float | None
    state: State
    fire: bool
    reason: Reason
    test: Test
    matched: bool = False
    rearmed: bool = False
    light: bool = False
    since: float | None = None
    cooldown_until: float = 0.0
    detail: str = ""


class DecisionRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A decision with what it was made from: the trigger, the kind of baseline, the values.

    `history` are the values that the baseline is made of, oldest first: with `holmes` the ring, the current
    value the last of it; else the window, the current value left out. `values` are what an expression read.
    """

    decision: Decision
    trigger: Trigger | str
    baseline: Baseline
    history: tuple[float, ...] = ()
    values: dict[str, float] = {}


def to_line(record: DecisionRecord) -> str:
    """One line of JSON without a line end."""
    return msgspec.json.encode(record).decode()


def from_line(line: str) -> DecisionRecord:
    """The record in `line`.

    Raises:
        msgspec.MsgspecError: it is no such record.
    """
    return msgspec.json.decode(line, type=DecisionRecord)


def judge_record(record: DecisionRecord) -> Judgement:
    """Judge the recorded values again; equals the decision's `test`, `matched`, `baseline` and `bar`.

    A decision without a judgement (no reading) gives test `no_data`.

    Raises:
        ExpressionFaultError: the trigger is an expression that cannot be used here.
    """
    if isinstance(record.trigger, str):
        return Expression(record.trigger).judge(record.values)
    if record.decision.value is None:
        return Judgement(False, "no_data")
    if record.baseline.kind == "holmes":
        average = holmes_baseline(tuple(int(value) for value in record.history))
        return judge_holmes(record.trigger, record.decision.value, average)
    return judge(record.trigger, record.decision.value, baseline_of(record.baseline, record.history))
