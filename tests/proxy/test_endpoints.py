"""Names that become servers, under a clock that is told: what answers change, and what lies and silence do not."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.proxy.config import Endpoint
from sentinel_agent.proxy.endpoints import MAX_ADDRESSES, MAX_TTL, Answer, DnsEndpoints, Family, split_address


def names(
    *addresses: str, logical: bool = False, family: Family = "auto", rate: float = 5.0, now: float = 0.0
) -> DnsEndpoints:
    spec = [Endpoint(address, weight=2, metadata={"zone": "a"}) for address in addresses]
    return DnsEndpoints(spec, logical=logical, family=family, rate=rate, random=Random(1), now=now)


def called(found: DnsEndpoints) -> list[str]:
    return [place.address for place in found.places()]


def test_every_address_of_a_name_is_a_server() -> None:
    """Strict DNS: with the name's port, weight and labels, none twice; addresses that were written stay."""
    found = names("a.test:80", "b.test:81", "10.9.9.9:82", "[::1]:83")
    assert found.due(0.0) == ["a.test", "b.test"]
    assert called(found) == ["10.9.9.9:82", "[::1]:83"]
    assert found.learned("a.test", Answer(("10.0.0.1", "10.0.0.2", "10.0.0.1")), 0.0)
    assert found.learned("b.test", Answer(("fd00::1",)), 0.0)
    assert called(found) == ["10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:81", "10.9.9.9:82", "[::1]:83"]
    place = found.places()[0]
    assert (place.host, place.port, place.weight, place.metadata, place.name) == (
        *("10.0.0.1", 80, 2, {"zone": "a"}),
        "a.test",
    )


def test_a_logical_name_is_one_server_at_the_newest_first_address() -> None:
    """What is behind the first address does not matter; the server keeps the name it is called by."""
    found = names("a.test:80", logical=True)
    assert found.learned("a.test", Answer(("10.0.0.1", "10.0.0.2")), 0.0)
    assert not found.learned("a.test", Answer(("10.0.0.1", "10.0.0.3")), 5.0)
    assert found.learned("a.test", Answer(("10.0.0.3", "10.0.0.1")), 10.0)
    (place,) = found.places()
    assert (place.address, place.host) == ("a.test:80", "10.0.0.3")


def test_the_order_of_an_answer_is_no_change() -> None:
    """Name servers rotate their records."""
    found = names("a.test:80")
    found.learned("a.test", Answer(("10.0.0.1", "10.0.0.2")), 0.0)
    assert not found.learned("a.test", Answer(("10.0.0.2", "10.0.0.1")), 5.0)
    assert found.statistics.update_no_change == 1


@pytest.mark.parametrize("logical", [False, True])
@pytest.mark.parametrize("answer", [(), ("fd00::1",), ("no address", "10.0.0.999"), None])
def test_what_is_no_answer_changes_nothing(answer: tuple[str, ...] | None, logical: bool) -> None:
    """Nothing, the wrong family, nonsense, and silence: the servers stay, the failure is counted."""
    found = names("a.test:80", logical=logical, family="v4_only")
    found.learned("a.test", Answer(("10.0.0.1",)), 0.0)
    before = found.places()
    if answer is None:
        found.failed("a.test", 6.0)
    else:
        assert not found.learned("a.test", Answer(answer), 6.0)
    assert found.places() == before
    counts = found.statistics
    assert (counts.update_attempt, counts.update_success, counts.update_failure) == (2, 1, 1)


def test_a_flood_of_addresses_is_cut_and_counted() -> None:
    """A name with ten thousand records has 256 servers."""
    found = names("a.test:80")
    many = tuple(f"10.1.{n // 250}.{n % 250}" for n in range(10_000))
    assert found.learned("a.test", Answer(many), 0.0)
    assert len(found.places()) == MAX_ADDRESSES
    assert found.statistics.ignored_addresses == 10_000 - MAX_ADDRESSES


@pytest.mark.parametrize(
    ("ttl", "least", "most"),
    [(None, 5.0, 5.5), (30.0, 30.0, 33.0), (0.0, 1.0, 1.1), (10**9, MAX_TTL, MAX_TTL * 1.1)],
)
def test_a_name_is_asked_for_again_when_its_time_is_over(
    ttl: float | None, least: float, most: float
) -> None:
    """The TTL within bounds, else the configured rate; a little later, so that not all ask at once."""
    found = names("a.test:80", now=100.0)
    found.learned("a.test", Answer(("10.0.0.1",), ttl), 100.0)
    assert 100 + least <= found.next_due <= 100 + most
    assert found.due(found.next_due - 0.001) == []
    assert found.due(found.next_due) == ["a.test"]


def test_failures_are_asked_about_ever_later_but_within_a_minute() -> None:
    """And the first success ends that."""
    found, now = names("a.test:80"), 0.0
    waits = []
    for _ in range(8):
        found.failed("a.test", now)
        waits.append(found.next_due - now)
        now = found.next_due
    assert waits[0] < 6
    assert waits[1] > waits[0]
    assert max(waits) <= 66
    found.learned("a.test", Answer(("10.0.0.1",)), now)
    assert found.next_due - now < 6


@given(
    st.lists(
        st.one_of(st.none(), st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "::1", "x", ""]), max_size=4)),
        max_size=20,
    ),
    st.booleans(),
)
def test_once_there_were_servers_there_always_are(answers: list[list[str] | None], logical: bool) -> None:
    """Whatever name servers say or do not say."""
    found, now, had = names("a.test:80", logical=logical), 0.0, False
    for answer in answers:
        if answer is None:
            found.failed("a.test", now)
        else:
            found.learned("a.test", Answer(tuple(answer)), now)
        had = had or bool(found.places())
        assert bool(found.places()) == had
        assert found.next_due > now
        now = found.next_due
    assert all(split_address(each.address)[1] == 80 for each in found.places())
