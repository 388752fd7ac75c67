"""Guards of captures: when a step is skipped, and that doubt is a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.expression import ExpressionFaultError
from sentinel_agent.core.guard import Guard, skip_reason


@pytest.mark.parametrize(
    ("source", "skips"),
    [
        ("rss_limit > 85", False),
        ("rss_limit >= 85", True),
        ("rss_limit<85", False),
        ("rss_limit <= 85.0", True),
        ("rss_limit > 90 || cpu_limit > 95", True),
        ("rss_limit > 90 || cpu_limit > 99", False),
        ("rss_limit > 80.0 && cpu_limit > 95.0", True),
        ("(rss_limit > 80.0) && cpu_limit > 99.0", False),
    ],
)
def test_a_guard_skips_when_its_condition_holds(source: str, skips: bool) -> None:
    """Comparisons are judged here, the rest by CEL; both say what they saw."""
    reason = skip_reason(source, {"rss_limit": 85.0, "cpu_limit": 97.0})
    assert (reason is not None) == skips
    if reason:
        assert source in reason
        assert "rss_limit is 85%" in reason


def test_a_reading_that_is_missing_is_a_reason() -> None:
    """Even where the other half would say no: in doubt nothing is done."""
    reason = skip_reason("rss_limit > 90 || cpu_limit > 99", {"cpu_limit": 1.0})
    assert reason is not None
    assert "rss_limit is not known" in reason


def test_a_guard_that_cannot_be_used_is_a_reason() -> None:
    """It says what is wrong with it; one that fails while it is judged too."""
    with pytest.raises(ExpressionFaultError):
        Guard("rss_limit >")
    assert "cannot be used" in (skip_reason("rss_limit >", {}) or "")
    assert "cannot be judged" in (skip_reason("[1.0, 2.0][int(rss_limit)] > 1.0", {"rss_limit": 9.0}) or "")


@given(value=st.floats(0, 1e9), bound=st.floats(0, 1e9))
def test_our_comparisons_are_those_of_cel(value: float, bound: float) -> None:
    """The same answer, whether the comparison is judged here or, in parentheses, by CEL."""
    for sign in (">", ">=", "<", "<="):
        ours = skip_reason(f"cpu {sign} {bound:f}", {"cpu": value})
        theirs = skip_reason(f"(cpu {sign} {bound:f})", {"cpu": value})
        assert (ours is None) == (theirs is None)
