"""Histograms and token buckets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.proxy.bucket import TokenBucket
from sentinel_agent.proxy.stats import BUCKETS, bucket, bucket_of, quantile, upper_bound


@given(st.integers(0, 2**33 - 1))
def test_a_bucket_holds_its_durations(microseconds: int) -> None:
    """Its bound is over the duration, and by no more than a quarter."""
    index = bucket(microseconds)
    assert 0 <= index < BUCKETS
    assert microseconds / 1e6 < upper_bound(index)
    assert upper_bound(index) <= max(1, microseconds * 1.25 + 1) / 1e6 + 1e-12


def test_looking_a_bucket_up_is_computing_it() -> None:
    """Every duration in the table, the first ones beyond it, and clocks that went backwards."""
    for microseconds in (*range(70_000), -5):
        assert bucket_of((microseconds + 0.5) / 1e6) == bucket(int(microseconds + 0.5))


def test_durations_beyond_any_are_in_the_last_bucket() -> None:
    """And below none: a clock that was set back."""
    assert bucket(2**60) == BUCKETS - 1
    assert bucket(-5) == 0


@given(st.lists(st.integers(0, 10_000_000), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_quantile_is_within_a_quarter(durations: list[int], share: float) -> None:
    """Of the exact one, from above."""
    counts = [0] * BUCKETS
    for each in durations:
        counts[bucket(each)] += 1
    exact = sorted(durations)[max(0, -(-len(durations) * share // 1).__int__() - 1)]
    found = quantile(counts, share)
    assert found is not None
    assert exact / 1e6 <= found <= (exact * 1.25 + 1) / 1e6 + 1e-12


def test_nothing_has_no_quantile() -> None:
    """Rather than zero."""
    assert quantile([0] * BUCKETS, 0.99) is None


@given(st.floats(0.5, 1000), st.integers(1, 50), st.lists(st.floats(0, 0.5), max_size=200))
def test_a_bucket_never_gives_more_than_its_rate_and_burst(
    rate: float, burst: int, steps: list[float]
) -> None:
    """Over any stretch from the start."""
    tokens = TokenBucket(rate, burst, 0.0)
    now, taken = 0.0, 0
    for step in steps:
        now += step
        taken += tokens.take(now)
        assert taken <= burst + now * rate + 1e-6


def test_a_refusal_says_how_long() -> None:
    """The wait is enough, and not more than needed."""
    tokens = TokenBucket(2.0, 1, 0.0)
    assert tokens.take(0.0)
    assert not tokens.take(0.1)
    wait = tokens.wait()
    assert not tokens.take(0.1 + wait - 0.01)
    assert tokens.take(0.1 + wait + 0.001)
