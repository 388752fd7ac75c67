"""Does one value meet a trigger? The tests in holmes' order, and the name of the one that decided.

Source of the order and of the integer arithmetic: mosn/holmes at efb1a77, `matchRule` (its documents say
otherwise in places; the code counts).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from sentinel_agent.core.rule import Trigger

Test = Literal[
    "below_min", "above_max", "above_abs", "diff", "below", "expression", "no_match", "no_data", "error"
]
"""What decided: the first test that matched, or that none did, or why there was no judging."""


class Judgement(NamedTuple):
    """The answer for one value. `baseline` and `bar` (what `diff` needs at least) are in the metric's unit."""

    matched: bool
    test: Test
    baseline: float | None = None
    bar: float | None = None
    detail: str = ""


def judge(trigger: Trigger, value: float, baseline: float | None) -> Judgement:
    """Ours: in floats, and never `diff` without a rise over the baseline.

    Without the last condition a level near zero, where the bar and the baseline are the same figure, would
    fire for ever.
    """
    bar = None
    if trigger.diff is not None and baseline is not None:
        bar = baseline * (1 + trigger.diff / 100)
    if trigger.min is not None and value < trigger.min:
        return Judgement(False, "below_min", baseline, bar)
    if trigger.max is not None and value >= trigger.max:
        return Judgement(False, "above_max", baseline, bar)
    if trigger.abs is not None and value > trigger.abs:
        return Judgement(True, "above_abs", baseline, bar)
    if bar is not None and baseline is not None and value >= bar and value > baseline:
        return Judgement(True, "diff", baseline, bar)
    if trigger.below is not None and value < trigger.below:
        return Judgement(True, "below", baseline, bar)
    return Judgement(False, "no_match", baseline, bar)


def judge_holmes(trigger: Trigger, value: float, average: int) -> Judgement:
    """As holmes does: every figure truncated to an integer, `max: 0` is no guard.

    `average` is that of the ring, the current value included. `below` is ours; it comes last.
    """
    current = int(value)
    bar = None if trigger.diff is None else average * (100 + int(trigger.diff)) // 100
    if trigger.min is not None and current < int(trigger.min):
        return Judgement(False, "below_min", average, bar)
    if trigger.max is not None and int(trigger.max) != 0 and current >= int(trigger.max):
        return Judgement(False, "above_max", average, bar)
    if trigger.abs is not None and current > int(trigger.abs):
        return Judgement(True, "above_abs", average, bar)
    if bar is not None and current >= bar:
        return Judgement(True, "diff", average, bar)
    if trigger.below is not None and current < int(trigger.below):
        return Judgement(True, "below", average, bar)
    return Judgement(False, "no_match", average, bar)
