"""What is usual: the figure that `diff` compares a value with.

Ours (`mean`, `median`) leave the current value out, so that a spike does not raise the bar it must pass;
holmes' average contains it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from sentinel_agent.core.ring import SeriesRing
    from sentinel_agent.core.rule import Baseline


def earlier_values(history: SeriesRing, time: float, window: float) -> array[float]:
    """The readings of the `window` seconds before the one taken at `time`, itself left out.

    It makes no difference whether that one has been pushed into `history` already.
    """
    values = history.window(time - window)
    if values and history.newest_time == time:
        values.pop()
    return values


def baseline_of(baseline: Baseline, values: Sequence[float]) -> float | None:
    """Mean or median of `values`, as `baseline.kind` says; None of nothing."""
    if not values:
        return None
    return _median(values) if baseline.kind == "median" else _mean(values)


def _mean(values: Sequence[float]) -> float:
    first = values[0]
    # A flat series must have exactly its level as mean; the sum's rounding could put it one bit lower.
    if first == values[-1] and values.count(first) == len(values):
        return first
    return sum(values) / len(values)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    low, high = ordered[middle - 1], ordered[middle]
    return low + (high - low) / 2


def holmes_baseline(values: Sequence[int]) -> int:
    """The integer floor of the mean of `values`, the current one among them; 0 of nothing."""
    return sum(values) // len(values) if values else 0
