"""Rates: within the budget, fair, nobody starves, steady, never round."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.recorder.rate import LADDER, RAISE_ABOVE, Load, Rate, RateSettings, level, plan, smoothed

COSTS = st.floats(1e-6, 0.05)
CORES = st.floats(0, 4)
LOADS = st.dictionaries(st.integers(0, 40), st.builds(Load, COSTS, CORES), min_size=1, max_size=12)
BUDGETS = st.floats(1e-4, 1.0)
RATES = st.builds(Rate, st.sampled_from(("idle", "base", "raised")), st.sampled_from(LADDER))
PREVIOUS = st.dictionaries(st.integers(0, 40), RATES, max_size=12)


def cost(loads: dict[int, Load], rates: dict[int, Rate]) -> float:
    return sum(loads[key].cost * rate.rate for key, rate in rates.items())


@given(LOADS, BUDGETS, PREVIOUS)
def test_the_cost_is_within_the_budget(
    loads: dict[int, Load], budget: float, previous: dict[int, Rate]
) -> None:
    """Whatever went before, unless every target that could be slower is at the least rate already."""
    settings = RateSettings(budget=budget)
    rates = plan(loads, settings, previous)
    at_least = {key: Rate("idle", settings.least) for key in loads}
    assert cost(loads, rates) <= max(budget, cost(loads, at_least)) * (1 + 1e-9)


@given(LOADS, BUDGETS, PREVIOUS)
def test_nobody_starves_and_nobody_is_above_the_ladder(
    loads: dict[int, Load], budget: float, previous: dict[int, Rate]
) -> None:
    """Everyone has a rate, at least the least one, and it is a step of the ladder."""
    rates = plan(loads, RateSettings(budget=budget), previous)
    assert rates.keys() == loads.keys()
    assert {rate.rate for rate in rates.values()} <= set(LADDER)


@given(LOADS, BUDGETS, st.floats(1, 10))
def test_more_budget_slows_nobody(loads: dict[int, Load], budget: float, factor: float) -> None:
    """Monotone in the budget."""
    small, large = plan(loads, RateSettings(budget=budget)), plan(loads, RateSettings(budget=budget * factor))
    assert all(large[key].rate >= small[key].rate for key in loads)


@given(LOADS, BUDGETS, st.floats(1, 10))
def test_a_target_that_costs_more_is_not_sampled_more(
    loads: dict[int, Load], budget: float, factor: float
) -> None:
    """Monotone in a target's own cost."""
    key = min(loads)
    dearer = {**loads, key: Load(loads[key].cost * factor, loads[key].cores)}
    settings = RateSettings(budget=budget)
    assert plan(dearer, settings)[key].rate <= plan(loads, settings)[key].rate


@given(COSTS, BUDGETS, st.lists(CORES, min_size=2, max_size=10))
def test_equal_cost_is_served_by_activity(per_sample: float, budget: float, cores: list[float]) -> None:
    """Among targets of one cost, a busier one is never sampled less often, and equal ones equally."""
    loads = {n: Load(per_sample, used) for n, used in enumerate(cores)}
    rates = plan(loads, RateSettings(budget=budget))
    for one, load in loads.items():
        for other, other_load in loads.items():
            if load.cores >= other_load.cores:
                assert rates[one].rate >= rates[other].rate


@given(LOADS, BUDGETS)
def test_a_plan_that_is_followed_stays(loads: dict[int, Load], budget: float) -> None:
    """With the same loads the second plan and all later ones are the first."""
    settings = RateSettings(budget=budget)
    first = plan(loads, settings)
    assert plan(loads, settings, first) == first


def test_defaults_of_one_target() -> None:
    """At 100 us a sample: 9.7 Hz idle, 19 Hz at work, raised to 97 Hz while it burns, all within 1% of a core."""
    rates = [plan({1: Load(1e-4, cores)}, RateSettings())[1] for cores in (0.0, 0.2, 1.0)]
    assert rates == [Rate("idle", 9.7), Rate("base", 19.0), Rate("raised", 97.0)]


def test_one_busy_target_among_many_gets_what_the_idle_leave() -> None:
    """32 idle targets at 20 us take what they want, the busy one the rest of the budget."""
    loads = {n: Load(2e-5, 0.0) for n in range(32)} | {99: Load(1e-4, 1.0)}
    rates = plan(loads, RateSettings())
    assert {rates[n].rate for n in range(32)} == {9.7}
    assert rates[99].rate == 31.0


def test_a_cost_that_wavers_does_not_make_a_rate_flutter() -> None:
    """Over costs that stay within a few percent the rate changes at most once, downwards."""
    settings, held = RateSettings(), None
    seen = []
    for turn in range(100):
        loads = {1: Load(0.01 / 43 * (1.02 if turn % 2 else 0.98), 1.0)}
        held = plan(loads, settings, held)
        seen.append(held[1].rate)
    assert seen[0] == 43.0
    assert set(seen[1:]) == {31.0}
    assert plan({1: Load(0.01 / 43 / RAISE_ABOVE / 1.01, 1.0)}, settings, held)[1].rate == 43.0


@pytest.mark.parametrize(
    ("previous", "cores", "expected"),
    [
        (None, 0.01, "idle"),
        ("idle", 0.04, "idle"),
        ("base", 0.04, "base"),
        ("idle", 0.06, "base"),
        ("base", 0.4, "base"),
        ("raised", 0.4, "raised"),
        ("base", 0.6, "raised"),
        ("idle", 3.0, "raised"),
        ("raised", 0.0, "idle"),
    ],
)
def test_a_level_is_left_later_than_entered(previous: object, cores: float, expected: str) -> None:
    """Between the marks the level stays what it was."""
    assert level(previous, cores) == expected  # type: ignore[arg-type]  # the table above holds levels


@pytest.mark.parametrize(
    ("previous", "cores", "usual", "expected"),
    [
        ("base", 1.0, 0.1, "raised"),
        ("base", 1.0, 0.9, "base"),
        ("raised", 1.0, 0.85, "raised"),
        ("raised", 1.0, 0.95, "base"),
        (None, 1.0, 1.0, "base"),
    ],
)
def test_what_a_target_always_does_raises_no_rate(
    previous: object, cores: float, usual: float, expected: str
) -> None:
    """Only what is new is looked at more often, and a level is left later than entered here too."""
    assert level(previous, cores, usual) == expected  # type: ignore[arg-type]  # the table above holds levels


def test_the_calm_budget_holds_until_a_target_does_something_new() -> None:
    """Of two busy targets both keep to the calm budget; one that begins to burn brings the whole budget into force."""
    settings = RateSettings(budget=0.01, calm=0.004)
    steady, new = Load(4e-4, 0.9, usual=0.9), Load(4e-4, 0.9, usual=0.0)
    calm, raised = plan({1: steady, 2: steady}, settings), plan({1: steady, 2: new}, settings)
    assert sum(4e-4 * rate.rate for rate in calm.values()) <= 0.004
    assert 0.004 < sum(4e-4 * rate.rate for rate in raised.values()) <= 0.01


def test_no_rate_is_round() -> None:
    """No step goes into a hundred milliseconds, a second or a minute's parts that timers like: 1, 2, 5, 10, 20, 25, 50, 100 Hz."""
    for rung in LADDER:
        for timer in (1, 2, 5, 10, 20, 25, 50, 100):
            assert abs(rung / timer - 1) > 0.02, f"{rung} Hz against {timer} Hz"


def test_costs_are_smoothed() -> None:
    """The first value stands for itself; later ones count a tenth."""
    assert smoothed(None, 5.0) == 5.0
    assert smoothed(5.0, 15.0) == pytest.approx(6.0)
