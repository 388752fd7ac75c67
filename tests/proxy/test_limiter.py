"""The adaptive limiter against a plant: the level is what the routes' requests cost."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sentinel_agent.proxy.limiter import FLOOR, AdaptiveLimiter


@dataclass
class Traffic:
    """One route: requests a second that are wanted, what each costs of the level, and how long it takes."""

    demand: float
    cost: float
    seconds: float
    rate: float = 0.0


def run(limiter: AdaptiveLimiter, routes: dict[str, Traffic], seconds: int) -> list[float]:
    """Play so many seconds; the level at the end of each."""
    levels = []
    for _ in range(seconds):
        for number, each in routes.items():
            held = limiter.held.get(number)
            each.rate = each.demand
            if held is not None:
                each.rate = min(each.demand * min(1.0, held.base), max(1.0, held.base) / each.seconds)
        levels.append(sum(each.rate * each.cost for each in routes.values()))
        limiter.step(levels[-1], {number: each.rate * each.seconds for number, each in routes.items()})
    return levels


@pytest.mark.parametrize("threshold", [0.8, 0.1])
@pytest.mark.parametrize("cost", [0.0002, 0.002, 0.02])
def test_the_level_settles_at_the_threshold_and_the_innocent_pass(cost: float, threshold: float) -> None:
    """One route times five, for costs over two decades: within 5 % after 20 s, no swinging, the other untouched.

    It settles there and not far under it, whatever the threshold; after the step all is let go.
    """
    cost *= threshold / 0.8
    wanted = 0.3125 * threshold / cost
    routes = {"a": Traffic(wanted, cost, 8 / wanted), "b": Traffic(wanted, cost, 8 / wanted)}
    limiter = AdaptiveLimiter(threshold, 5)
    run(limiter, routes, 120)
    assert limiter.held == {}
    routes["a"].demand *= 5
    levels = run(limiter, routes, 60)
    assert "a" in limiter.held
    assert "b" not in limiter.held
    assert routes["b"].rate == wanted
    assert 0.8 * threshold <= min(levels[40:]) <= max(levels[20:]) <= threshold * 1.05
    assert max(levels[40:]) - min(levels[40:]) <= 0.125 * threshold
    routes["a"].demand /= 5
    run(limiter, routes, 15)
    assert limiter.held == {}


def test_it_begins_in_time_and_ends_when_the_load_does() -> None:
    """Held within `hold` and two seconds of the step, all forgotten 15 s after its end."""
    routes = {"a": Traffic(100, 0.0025, 0.05), "b": Traffic(100, 0.0025, 0.05)}
    limiter = AdaptiveLimiter(0.8, 5)
    run(limiter, routes, 120)
    routes["a"].demand = 500
    run(limiter, routes, 7)
    assert list(limiter.held) == ["a"]
    run(limiter, routes, 20)
    routes["a"].demand = 100
    run(limiter, routes, 15)
    assert limiter.held == {}


def test_where_nothing_rose_the_largest_is_held_and_then_the_next() -> None:
    """An overload from the start: one after the other, until the level is down."""
    routes = {"a": Traffic(100, 0.006, 0.3), "b": Traffic(100, 0.006, 0.2), "c": Traffic(1, 0.0001, 0.01)}
    limiter = AdaptiveLimiter(0.8, 2)
    limiter._usual.update({"a": 1e6, "b": 1e6, "c": 1e6})
    run(limiter, routes, 3)
    assert list(limiter.held) == ["a"]
    levels = run(limiter, routes, 60)
    assert "c" not in limiter.held
    assert max(levels[-20:]) <= 0.8 * 1.05


def test_a_route_of_quick_requests_is_held_too() -> None:
    """It never has one under way: of a baseline under 1, a share passes. The innocent one, which has more, is not blamed."""
    routes = {"a": Traffic(50, 0.004, 0.002), "b": Traffic(100, 0.001, 0.008)}
    limiter = AdaptiveLimiter(0.8, 5)
    run(limiter, routes, 120)
    routes["a"].demand = 250
    levels = run(limiter, routes, 60)
    assert list(limiter.held) == ["a"]
    assert limiter.held["a"].base < 1
    assert 0.8 * 0.8 <= min(levels[40:]) <= max(levels[20:]) <= 0.8 * 1.05
    routes["a"].demand = 50
    run(limiter, routes, 15)
    assert limiter.held == {}


def test_who_only_waits_for_the_others_is_not_blamed() -> None:
    """Both routes have five times as much under way, but only one is asked more often; nor is the other the next to be held."""
    limiter = AdaptiveLimiter(0.5, 2)
    for _ in range(10):
        limiter.step(0.1, {"a": 5.0, "b": 4.0}, {"a": 10.0, "b": 20.0})
    for _ in range(8):
        limiter.step(1.5, {"a": 25.0, "b": 20.0}, {"a": 50.0, "b": 20.0})
    assert list(limiter.held) == ["a"]


def test_a_probe_always_passes() -> None:
    """However large the excess, one request of twenty may be under way, one at a time."""
    limiter = AdaptiveLimiter(0.5, 1)
    for _ in range(100):
        limiter.step(1.5, {"a": 40.0})
    held = limiter.held["a"]
    assert held.base == FLOOR == 1 / 20
    assert held.allows(1, 0.04)
    assert not held.allows(1, 0.06)
    assert not held.allows(2, 0.0)


def test_a_short_spike_blames_nobody() -> None:
    """Fewer seconds than `hold` over the threshold."""
    limiter = AdaptiveLimiter(0.8, 5)
    for level in (0.1, 1.2, 1.2, 1.2, 0.1, 0.1, 0.1):
        limiter.step(level, {"a": 10.0})
    assert limiter.held == {}
