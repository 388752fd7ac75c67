"""Baselines and the judgement of one value."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.baseline import baseline_of, earlier_values, holmes_baseline
from sentinel_agent.core.ring import SeriesRing
from sentinel_agent.core.rule import Baseline, Trigger
from sentinel_agent.core.trigger import judge, judge_holmes

MEAN, MEDIAN = Baseline(), Baseline(kind="median")
figures = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))


@given(st.lists(figures, min_size=1, max_size=50))
def test_mean_and_median_agree_with_the_standard_library(values: list[float]) -> None:
    """Ground truth: `statistics`."""
    assert baseline_of(MEAN, values) == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert baseline_of(MEDIAN, values) == pytest.approx(statistics.median(values), abs=1e-6)


@given(figures, st.integers(1, 100))
def test_a_flat_series_has_exactly_its_level_as_baseline(level: float, count: int) -> None:
    """Without this, rounding could put the mean under the level, and the level would be a rise."""
    assert baseline_of(MEAN, [level] * count) == level
    assert baseline_of(MEDIAN, [level] * count) == level


def test_no_values_have_no_baseline() -> None:
    """Nothing is not zero; holmes' average of nothing is."""
    assert baseline_of(MEAN, []) is None
    assert holmes_baseline(()) == 0
    assert holmes_baseline((1, 2, 2)) == 1


@pytest.mark.parametrize("pushed", [True, False])
def test_the_current_reading_is_no_part_of_its_own_baseline(pushed: bool) -> None:
    """Whether it is in the ring yet or not; beyond the window nothing counts."""
    ring = SeriesRing(2400)
    for time, value in ((0, 99.0), (10, 1.0), (20, 3.0)):
        ring.push(time, value)
    if pushed:
        ring.push(30, 50.0)
    assert list(earlier_values(ring, 30, 20)) == [1.0, 3.0]
    assert list(earlier_values(SeriesRing(2400), 30, 20)) == []


@pytest.mark.parametrize(
    ("trigger", "value", "test"),
    [
        (Trigger(min=10, abs=5), 9.9, "below_min"),
        (Trigger(min=10, abs=5), 10, "above_abs"),
        (Trigger(max=20, abs=5), 20, "above_max"),
        (Trigger(max=20, abs=5), 19.9, "above_abs"),
        (Trigger(abs=70), 70, "no_match"),
        (Trigger(abs=70), 70.1, "above_abs"),
        (Trigger(diff=25), 124.9, "no_match"),
        (Trigger(diff=25), 125, "diff"),
        (Trigger(below=5), 5, "no_match"),
        (Trigger(below=5), 4.9, "below"),
        (Trigger(min=3, below=5), 2, "below_min"),
        (Trigger(), 1, "no_match"),
        (Trigger(abs=0), 0.5, "above_abs"),
    ],
)
def test_each_edge_of_the_threshold_tests(trigger: Trigger, value: float, test: str) -> None:
    """min and diff are inclusive, abs and below strict, max excludes; the first that matches decides."""
    judgement = judge(trigger, value, 100.0)
    assert judgement.test == test
    assert judgement.matched == (test in {"above_abs", "diff", "below"})


@given(st.floats(0, 1e9), st.floats(0, 100))
def test_no_level_is_a_rise_over_itself(level: float, diff: float) -> None:
    """V5's false alarms: a flat series fires in holmes (3 at diff 25; 0 at any), never here."""
    assert judge(Trigger(diff=diff), level, level).test == "no_match"


def test_without_a_baseline_diff_decides_nothing() -> None:
    """The first reading of a window has nothing to be compared with."""
    assert judge(Trigger(diff=1), 1e9, None).test == "no_match"


@pytest.mark.parametrize(
    ("trigger", "value", "test"),
    [
        (Trigger(min=10.9), 10.2, "no_match"),
        (Trigger(min=10.9), 9.9, "below_min"),
        (Trigger(max=0, abs=0), 0.9, "no_match"),
        (Trigger(max=0, abs=0), 1, "above_abs"),
        (Trigger(max=20, abs=5), 20.5, "above_max"),
        (Trigger(max=20, abs=5), 19.9, "above_abs"),
        (Trigger(diff=50.7), 14.9, "no_match"),
        (Trigger(diff=50.7), 15.0, "diff"),
        (Trigger(below=5), 4.5, "below"),
        (Trigger(below=5), 5, "no_match"),
    ],
)
def test_holmes_judges_integers(trigger: Trigger, value: float, test: str) -> None:
    """Every figure is truncated; `max: 0` is no guard; a key left out is no test."""
    assert judge_holmes(trigger, value, 10).test == test
