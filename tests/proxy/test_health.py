"""Checks, ejection and panic under a clock that is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.proxy.config_upstream import HealthCheck, OutlierDetection
from sentinel_agent.proxy.health import ActiveHealth, Record, end_window, judge, let_back, next_check

if TYPE_CHECKING:
    from collections.abc import Sequence

CHECK = HealthCheck(unhealthy_threshold=3, healthy_threshold=2, interval=10.0, interval_jitter=2.0)
RULE = OutlierDetection(
    interval=10.0,
    request_volume=10,
    exception_rate_multiple=1.5,
    failure_percentage_threshold=20.0,
    base_ejection_time=30.0,
    max_ejection_time=100.0,
    max_ejection_percent=40,
)


@dataclass
class Server:
    record: Record = field(default_factory=Record)
    well: bool = True
    usable: bool = True

    @property
    def fit(self) -> bool:
        return self.well and not self.record.ejected


def test_the_first_check_decides_alone() -> None:
    """So that a server that is down from the start gets nothing, and one that is up waits for nothing."""
    for good in (True, False):
        health = ActiveHealth()
        assert health.checked(good, CHECK) == (not good)
        assert health.healthy == good


def test_thresholds_are_in_a_row() -> None:
    """Three failures in a row and it is out, two successes in a row and it is in; anything between begins anew."""
    health = ActiveHealth()
    outcomes = [True, False, False, True, False, False, False, True, False, True, True]
    seen = []
    for good in outcomes:
        health.checked(good, CHECK)
        seen.append(health.healthy)
    assert seen == [True] * 6 + [False] * 4 + [True]


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_verdict_changes_only_after_its_threshold(outcomes: list[bool]) -> None:
    """Against the definition, written the slow way."""
    health = ActiveHealth()
    verdict: bool | None = None
    for index, good in enumerate(outcomes):
        changed = health.checked(good, CHECK)
        before = verdict
        needed = CHECK.healthy_threshold if good else CHECK.unhealthy_threshold
        last = outcomes[max(0, index + 1 - needed) : index + 1]
        if verdict is None or (good != verdict and len(last) == needed and set(last) == {good}):
            verdict = good
        assert health.healthy == verdict
        assert changed == (verdict != (before is not False))


def test_checks_are_spread() -> None:
    """The first within a second, each later one after the interval and some of the jitter."""
    random = Random(5)
    firsts = [next_check(CHECK, random, first=True) for _ in range(200)]
    later = [next_check(CHECK, random) for _ in range(200)]
    assert 0 <= min(firsts) < 0.1
    assert 0.9 < max(firsts) <= 1
    assert 10 <= min(later) < 10.2
    assert 11.8 < max(later) <= 12


def window(records: Sequence[Record], *outcomes: tuple[int, int]) -> None:
    """Requests and failures of each server, until the window ends."""
    for record, (calls, failures) in zip(records, outcomes, strict=True):
        if not record.ejected:
            record.calls, record.failures = calls, failures


def test_who_fails_more_often_than_the_others_is_out() -> None:
    """MOSN's measure: 90 % of one server over 19 % of the cluster is 4.7 times the mean; 2 % of another is none."""
    records = [Record() for _ in range(5)]
    window(records, (100, 90), (100, 2), (100, 1), (100, 0), (100, 0))
    assert end_window(records, RULE, 10.0)
    assert [each.ejected for each in records] == [True, False, False, False, False]
    assert all((each.calls, each.failures) == (0, 0) for each in records)


@pytest.mark.parametrize(
    "outcomes",
    [
        ((100, 50), (100, 50), (100, 50)),  # all fail alike: it is not one of them
        ((9, 9), (100, 0), (100, 0)),  # too few requests
        ((100, 10), (100, 0), (100, 0)),  # much over the mean, but a tenth is below the threshold
        ((0, 0), (0, 0), (0, 0)),
        ((100, 0), (100, 0), (100, 0)),
    ],
)
def test_who_is_not_out(outcomes: tuple[tuple[int, int], ...]) -> None:
    """None of these is reason enough."""
    records = [Record() for _ in outcomes]
    window(records, *outcomes)
    assert not end_window(records, RULE, 10.0)
    assert not any(each.ejected for each in records)


def test_a_share_of_the_servers_at_most_is_out_the_worst_first() -> None:
    """Two of five at 40 percent; one of two in any case; never the only one."""
    records = [Record() for _ in range(5)]
    window(records, (100, 70), (100, 80), (100, 90), (1000, 0), (1000, 0))
    end_window(records, RULE, 10.0)
    assert [each.ejected for each in records] == [False, True, True, False, False]
    pair = [Record(), Record()]
    window(pair, (100, 90), (100, 10))
    end_window(pair, RULE, 10.0)
    assert [each.ejected for each in pair] == [True, False]
    alone = [Record()]
    window(alone, (100, 100))
    end_window(alone, RULE, 10.0)
    assert not alone[0].ejected


def test_the_time_out_grows_and_is_forgotten() -> None:
    """30 s, 60 s, 90 s, then 100 s for good; with every window in order one step less."""
    records = [Record() for _ in range(5)]
    bad, now, times = records[0], 0.0, []
    for _ in range(5):
        window(records, (100, 100), *[(100, 0)] * 4)
        end_window(records, RULE, now)
        assert bad.until is not None
        times.append(bad.until - now)
        assert not let_back(records, bad.until - 0.001)
        now = bad.until
        assert let_back(records, now)
        assert not bad.ejected
    assert times == [30, 60, 90, 100, 100]
    for _ in range(4):
        window(records, *[(100, 0)] * 5)
        end_window(records, RULE, now)
    window(records, (100, 100), *[(100, 0)] * 4)
    end_window(records, RULE, now)
    assert bad.until == now + 60


def test_one_of_five_that_fails_is_out_within_two_windows() -> None:
    """As the reference asks, with requests that go round and answers of a seeded random: none of the sound ones is."""
    random = Random(3)
    servers = [Server() for _ in range(5)]
    records = [server.record for server in servers]
    out_at = None
    for number in range(2000):
        fit = [server for server in servers if server.fit]
        server = fit[number % len(fit)]
        failed = server is servers[2] or random.random() < 0.01
        server.record.calls += 1
        server.record.failures += failed
        if number % 100 == 99:
            now = 10.0 * (number // 100 + 1)
            end_window(records, RULE, now)
            if out_at is None and servers[2].record.ejected:
                out_at = now
            assert not any(each.record.ejected for each in servers if each is not servers[2])
    assert out_at is not None
    assert out_at <= 20


@given(st.lists(st.booleans(), max_size=30), st.floats(0, 100))
def test_panic_uses_all_or_only_the_fit(well: list[bool], percent: float) -> None:
    """With fewer than `percent` of them fit all are used, else exactly the fit ones; never nobody while anyone is fit."""
    servers = [Server(well=each) for each in well]
    panic = judge(servers, percent)
    assert panic == (100 * sum(well) < percent * len(well) and not all(well))
    assert [server.usable for server in servers] == [True if panic else each for each in well]
