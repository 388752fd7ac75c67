"""The pack `default`: each rule fires on its trouble, when it should, and none of them on a healthy proxy."""

from __future__ import annotations

import itertools
import random
from importlib import resources
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from sentinel_agent.config.load import ConfigInputs, load
from sentinel_agent.core.health import health
from sentinel_agent.core.metrics import METRICS
from sentinel_agent.core.replay import parse_series, replay
from sentinel_agent.core.rule import Rule, Trigger

if TYPE_CHECKING:
    from collections.abc import Callable

PACK = resources.files("sentinel_rules")
MIB = 1024**2
KINDS = ("stacks", "profile", "process", "series", "tasks", "heap", "tracemalloc")


def pack() -> dict[str, Rule]:
    return {item.rule.name: item.rule for item in load(ConfigInputs()).rules}


def fires(rule: Rule, text: str) -> list[float]:
    return [entry.time for entry in replay([rule], parse_series(text)) if entry.fire]


def shown(rule: Rule, seconds: int, value: Callable[[int], float]) -> list[float]:
    assert rule.metric
    return fires(rule, "".join([f"time,{rule.metric}\n", *(f"{t},{value(t)}\n" for t in range(seconds))]))


# When the trouble of each series begins, by how the series was made, plus the rule's hold.
FIRST_FIRE = {
    "cpu-spike": 90,
    "cpu-saturated": 30 + 10,
    "cpu-near-limit": 45 + 10,
    "throttled": 60 + 10,
    "rss-growth": 309 + 10,  # 200 MB + 9 s of 7 MB are the first value over 260 MB
    "rss-near-limit": 101 + 5,  # 60.5 percent
    "memory-limit-hit": 77,
    "oom-kill": 80,
    "fd-growth": 219 + 30,  # 400 + 19 * 13 is the first over 640
    "task-growth": 100 + 5,
    "loop-stall": 75,
    "gc-pause": 66,
    "gc-thrash": 50 + 10,
    "thread-growth": 100 + 5,
}


def test_every_rule_has_a_series() -> None:
    """No rule without a test, and no test without a rule."""
    assert set(pack()) == set(FIRST_FIRE)


@pytest.mark.parametrize("name", FIRST_FIRE)
def test_fires_on_its_trouble(name: str) -> None:
    """The rule fires for the first time when its condition has held, and then not again at once."""
    times = fires(pack()[name], PACK.joinpath("tests", f"{name}.csv").read_text())
    assert times[0] == FIRST_FIRE[name]
    assert len(times) <= 3


def healthy(life: range) -> str:
    """The life of one process of a healthy gateway, within an hour at the steepest part of the day.

    Traffic and connections double over the hour; every minute a job takes a fifth of a core for 2 s; every 10
    minutes a burst of clients stays for 20 s; once the machine is so busy that the container is throttled for 4 s.
    """
    chance = random.Random(1)
    lines = [
        "time,cpu,cpu_limit,rss,rss_limit,threads,fds,tasks,throttled,memory_events,oom_kills,loop_stall,gc_pause,gc_collections_gen2"
    ]
    for t in life:
        age = t - life.start
        day = 1 + t / 3600
        cpu = chance.gauss(22 * day, 3) + (20 if t % 60 < 2 else 0)
        if age < 3:
            cpu = 100  # imports
        warm = 1 - 2.718 ** (-age / 20)
        rss = (60 + 120 * warm + 30 * (day - 1) + chance.gauss(0, 2)) * MIB
        burst = 250 if t % 600 < 20 else 0
        fds = 40 + warm * (150 * day + burst) + chance.gauss(0, 8)
        threads = 8 + round(16 * warm) + chance.randint(0, 8)
        throttled = 40 if 1800 <= t < 1804 else chance.choice((0, 0, 0, 5))
        pauses = f"{chance.choice((0, 0, 0, 0.06)):.2f},{chance.choice((0, 0, 0.05)):.2f},{chance.choice((0, 0, 1))}"
        cells = (cpu, cpu / 2, rss, rss / (512 * MIB) * 100, threads, fds, fds, throttled)
        lines.append(f"{t}," + ",".join(f"{max(0.0, cell):.2f}" for cell in cells) + f",0,0,{pauses}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("life", [range(1200), range(1205, 2500), range(2505, 3600)], ids=str)
def test_quiet_on_a_healthy_gateway(life: range) -> None:
    """A daily ramp, noise, periodic jobs, bursts of clients and the start of a process fire nothing."""
    entries = replay(list(pack().values()), parse_series(healthy(life)))
    assert [(entry.time, entry.rule, entry.value, entry.baseline) for entry in entries if entry.fire] == []
    judged = {entry.rule for entry in entries if entry.reason in ("no_match", "below_min")}
    assert judged == set(pack())  # each was judged, none was merely waiting


def test_a_spike_of_one_second_is_enough() -> None:
    """The default rule fires within the one reading that a spike of a second fills, and not for half a core."""
    assert shown(pack()["cpu-spike"], 120, lambda t: 95 if t == 60 else 10) == [60]


NEAR_MISSES: dict[str, Callable[[int], float]] = {
    "cpu-spike": lambda t: 10 if t < 60 else 45,  # fourfold, but far from a whole core
    "cpu-saturated": lambda t: 100 if t % 12 < 9 else 40,  # bursts of 9 s
    "cpu-near-limit": lambda t: 84.9,
    "throttled": lambda t: 60 if t % 30 < 9 else 0,
    "rss-growth": lambda t: (150 + t * 0.1) * MIB,  # 6 MiB a minute: the limit's rule is for that
    "rss-near-limit": lambda t: 40 if t < 30 else 86,  # too late to capture without harm
    "memory-limit-hit": lambda t: 0,
    "oom-kill": lambda t: 0,
    "fd-growth": lambda t: 20 if t < 200 else 250,  # twelvefold, but few
    "loop-stall": lambda t: 0.4 if t % 5 else 0.0,  # slow handlers, none of them a stop
    "gc-pause": lambda t: 0.2 if t % 30 == 0 else 0.0,
    "gc-thrash": lambda t: 30 if t % 12 < 9 else 0,  # a batch of 9 s
    "task-growth": lambda t: 20 if t < 100 else 400,  # a twentyfold burst that a gateway lives with
    "thread-growth": lambda t: 5 if t < 100 else 32,  # an executor that fills up
}


@pytest.mark.parametrize("name", FIRST_FIRE)
def test_near_miss(name: str) -> None:
    """Just short of the trouble the rule stays quiet."""
    assert shown(pack()[name], 600, NEAR_MISSES[name]) == []


def test_rss_near_limit_fires_again_only_when_worse_and_never_over_the_guard() -> None:
    """A memory level that stays is one incident; growth by 15 percent is another; over 85 percent is none."""
    rule = pack()["rss-near-limit"]
    assert len(shown(rule, 3600, lambda t: 65)) == 1
    times = shown(rule, 300, lambda t: min(99, 50 + t * 0.2))
    levels = [50 + t * 0.2 for t in times]
    assert len(levels) == 3
    assert all(60 < level < 85 for level in levels)
    assert all(later >= earlier * 1.15 for earlier, later in itertools.pairwise(levels))


@pytest.mark.parametrize("name", FIRST_FIRE)
def test_rules_are_sound(name: str) -> None:
    """Each rule says what it is for, watches a metric that is read in this build, and has a bounded count."""
    rule = pack()[name]
    assert health(rule, METRICS, capture_kinds=KINDS) == []
    assert rule.description
    assert rule.metric
    assert rule.metric in METRICS
    assert rule.limit.count is not None
    assert rule.cooldown >= 60
    assert isinstance(rule.trigger, Trigger)
    if rule.trigger.diff is not None:
        assert rule.trigger.min is not None


def test_no_two_rules_are_alike() -> None:
    """The rules differ in more than their name."""
    plain: list[dict[str, Any]] = [msgspec.to_builtins(rule) for rule in pack().values()]
    bodies = [
        str([(key, value) for key, value in rule.items() if key in ("metric", "trigger")]) for rule in plain
    ]
    assert len(set(bodies)) == len(bodies)
