"""The budget over all rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.budget import HOUR, Budget, BudgetStatistics


def test_each_bound_refuses_in_words() -> None:
    """Concurrency first, then incidents, then bytes; the setting is named."""
    budget = Budget(concurrency=1, incidents_per_hour=2, bytes_per_hour=1000)
    assert budget.admit(0) is None
    assert budget.admit(0) == "1 incidents are under way already"
    budget.finished(1, 999)
    assert budget.admit(2) is None
    budget.finished(3, 0)
    assert budget.admit(4) == "2 incidents in the last hour (capture.max_incidents_per_hour 2)"
    assert budget.admit(HOUR) is None
    budget.finished(HOUR, 1)
    assert budget.statistics(HOUR) == BudgetStatistics(running=0, incidents=2, bytes=1000, refused=2)


def test_bytes_of_the_last_hour_count() -> None:
    """At the bound it is refused, an hour after the bytes it is not."""
    budget = Budget(concurrency=2, incidents_per_hour=9, bytes_per_hour=1024)
    budget.admit(0)
    budget.finished(10, 2048)
    assert budget.admit(20) == "2.0 KiB captured in the last hour (capture.max_bytes_per_hour 1.0 KiB)"
    assert budget.admit(10 + HOUR) is None


def test_an_end_without_a_beginning_is_a_fault_of_the_program() -> None:
    """Else the count of those under way would go below zero."""
    with pytest.raises(ValueError, match="no admitted incident"):
        Budget(concurrency=1, incidents_per_hour=1, bytes_per_hour=1).finished(0, 0)


@given(st.lists(st.tuples(st.floats(0, 900), st.booleans(), st.integers(0, 50)), max_size=80))
def test_no_hour_sees_more_than_its_bounds(steps: list[tuple[float, bool, int]]) -> None:
    """Any order of beginnings and ends: never more at once, in an hour, or begun beyond the bytes."""
    budget = Budget(concurrency=2, incidents_per_hour=5, bytes_per_hour=100)
    now, running = 0.0, 0
    admitted: list[float] = []
    sizes: list[tuple[float, int]] = []
    for wait, begin, size in steps:
        now += wait
        if begin:
            if budget.admit(now) is None:
                running += 1
                admitted.append(now)
                assert sum(s for time, s in sizes if now - time < HOUR) < 100
        elif running:
            running -= 1
            budget.finished(now, size)
            sizes.append((now, size))
        assert running <= 2
        assert sum(1 for time in admitted if now - time < HOUR) <= 5
        assert budget.statistics(now).bytes == sum(s for time, s in sizes if now - time < HOUR)


def test_other_bounds_are_in_force_at_once_and_forget_nothing() -> None:
    """After a reload the last hour still counts: a lower bound refuses at once, a higher one admits again."""
    budget = Budget(concurrency=9, incidents_per_hour=3, bytes_per_hour=1000)
    for now in range(3):
        assert budget.admit(now) is None
        budget.finished(now, 100)
    assert "3 incidents in the last hour" in (budget.admit(4) or "")
    budget.rebound(incidents_per_hour=5, bytes_per_hour=1000)
    assert budget.admit(5) is None
    budget.finished(5, 100)
    budget.rebound(incidents_per_hour=2, bytes_per_hour=1000)
    assert "incidents in the last hour" in (budget.admit(6) or "")
    budget.rebound(incidents_per_hour=9, bytes_per_hour=150)
    assert "captured in the last hour" in (budget.admit(7) or "")
