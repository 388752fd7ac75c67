"""Balancers against their statistics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest

from sentinel_agent.proxy.balance import Maglev, PeakEwma, ewma, make_balancer

KINDS = ("round_robin", "least_request", "maglev", "peak_ewma")


@dataclass
class Server:
    address: str
    weight: int = 1
    active: int = 0
    usable: bool = True
    latency: float = 0.01
    success: float = 1.0
    since: float = -1000.0


def servers(*weights: int) -> list[Server]:
    return [Server(f"10.0.0.{n}:80", weight) for n, weight in enumerate(weights)]


def picks(kind: str, hosts: list[Server], count: int = 12_000, seed: int = 1) -> Counter[str]:
    """How often each host is chosen, by keys that are all different."""
    balancer = make_balancer(kind, hosts, Random(seed))
    found: Counter[str] = Counter()
    for number in range(count):
        host = balancer.pick(b"%d" % number, 0.0)
        assert host is not None
        found[host.address] += 1
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_equal_hosts_get_equal_shares(kind: str) -> None:
    """Within 10 % of a quarter each, over 12,000 choices (more than six standard deviations)."""
    for count in picks(kind, servers(1, 1, 1, 1)).values():
        assert 2700 <= count <= 3300


def test_round_robin_is_exact() -> None:
    """Every host once before any host twice."""
    balancer = make_balancer("round_robin", servers(1, 1, 1), Random(3))
    one = [balancer.pick(b"", 0.0) for _ in range(3)]
    assert len({host.address for host in one if host}) == 3


@pytest.mark.parametrize("kind", ["round_robin", "least_request", "maglev"])
def test_weights_are_shares(kind: str) -> None:
    """1:2:5 within 5 % of the whole."""
    hosts = servers(1, 2, 5)
    found = picks(kind, hosts, 16_000)
    for host in hosts:
        assert found[host.address] / 16_000 == pytest.approx(host.weight / 8, abs=0.05)


def test_turns_by_weight_are_spread_evenly() -> None:
    """EDF: a host of weight 5 beside one of weight 1 never gets more than six turns in a row."""
    balancer = make_balancer("round_robin", servers(1, 5), Random(1))
    run = longest = 0
    for _ in range(600):
        host = balancer.pick(b"", 0.0)
        assert host is not None
        run = run + 1 if host.weight == 5 else 0
        longest = max(longest, run)
    assert longest <= 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2, 3, 50)])
def test_what_is_not_usable_is_never_chosen(kind: str, weights: tuple[int, ...]) -> None:
    """And where nothing is usable, nothing is chosen."""
    hosts = servers(*weights)
    hosts[1].usable = hosts[3].usable = False
    assert set(picks(kind, hosts, 400)) <= {"10.0.0.0:80", "10.0.0.2:80"}
    for host in hosts:
        host.usable = False
    assert make_balancer(kind, hosts, Random(1)).pick(b"", 0.0) is None


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 1, 2)])
def test_least_request_avoids_the_busy(weights: tuple[int, ...]) -> None:
    """A host with ten requests under way gets fewer than either idle one."""
    hosts = servers(*weights)
    hosts[0].active = 10
    found = picks("least_request", hosts, 3000)
    assert found["10.0.0.0:80"] < min(found["10.0.0.1:80"], found["10.0.0.2:80"])


def test_maglev_keeps_keys_together_and_moves_few() -> None:
    """The same key, the same host; one host of ten gone, and fewer than twice its share of the keys move."""
    hosts = servers(*[1] * 10)
    before = Maglev(hosts)
    after = Maglev([host for host in hosts if host.address != "10.0.0.4:80"])
    moved = 0
    for number in range(5000):
        key = b"user-%d" % number
        one, two = before.pick(key, 0.0), after.pick(key, 0.0)
        assert one is not None
        assert two is not None
        assert before.pick(key, 0.0) is one
        moved += one.address != two.address
    assert 0.05 * 5000 < moved < 0.2 * 5000


def test_maglev_takes_the_next_where_its_host_is_down() -> None:
    """MOSN's rule; the other keys stay."""
    hosts = servers(1, 1, 1)
    table = Maglev(hosts)
    keys = [b"%d" % number for number in range(300)]
    before = {key: table.pick(key, 0.0) for key in keys}
    hosts[1].usable = False
    for key in keys:
        now = table.pick(key, 0.0)
        assert now is (hosts[2] if before[key] is hosts[1] else before[key])


def test_peak_ewma_prefers_the_fast_and_the_sound() -> None:
    """By latency, by success, by load."""
    for change in ({"latency": 0.1}, {"success": 0.1}, {"active": 9}):
        hosts = servers(1, 1)
        for name, value in change.items():
            setattr(hosts[0], name, value)
        assert set(picks("peak_ewma", hosts, 50)) == {"10.0.0.1:80"}


def test_a_new_host_comes_in_slowly() -> None:
    """In slow start it is chosen only where the others are much worse."""
    hosts = servers(1, 1)
    hosts[0].since = 100.0
    balancer = PeakEwma(hosts, Random(1), slow_start=10.0)
    assert balancer.pick(b"", 101.0) is hosts[1]
    hosts[1].latency = 0.011
    assert balancer.pick(b"", 111.0) is hosts[0]


def test_a_peak_counts_at_once_and_is_forgotten_slowly() -> None:
    """Peak EWMA: up at once, down by e in ten seconds."""
    assert ewma(0.01, 0.5, 0.001) == 0.5
    assert ewma(0.5, 0.0, 10.0) == pytest.approx(0.5 / 2.71828, rel=1e-4)
