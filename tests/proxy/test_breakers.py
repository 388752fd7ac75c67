"""Circuit breakers and the budget of retries against their numbers; balancers under load, by their statistics."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.proxy.balance import PeakEwma
from sentinel_agent.proxy.cluster import ClusterPool, Server
from sentinel_agent.proxy.config import CircuitBreaker, Cluster, Endpoint, HashKey
from sentinel_agent.proxy.endpoints import Place
from sentinel_agent.proxy.wire.faults import Limits
from sentinel_agent.proxy.wire.head import REQUEST_FIELDS, fields_pattern, parse_request
from tests.proxy.support import GET, OK, PATIENCE, proxy, read_head, status_of, upstream

if TYPE_CHECKING:
    from pathlib import Path


class Gate:
    """A server that answers nobody until it is opened; `most` connections were open at once."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.count = self.most = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        self.most = max(self.most, self.count)
        try:
            while True:
                await read_head(reader)
                await self.open.wait()
                writer.write(OK)
        finally:
            self.count -= 1


@pytest.mark.parametrize("cap", ["connections", "requests"])
async def test_no_more_than_the_cap_however_many_come_at_once(tmp_path: Path, cap: str) -> None:
    """Fifty clients before a cap of ten: ten are served, forty are told UO at once, and every one is counted."""
    gate = Gate()
    async with (
        upstream(gate) as port,
        proxy(tmp_path, port, cluster=f"circuit_breaker: {{{cap}: 10}}") as running,
    ):
        asking = [asyncio.create_task(running.ask(GET)) for _ in range(50)]
        async with asyncio.timeout(PATIENCE):
            while sum(task.done() for task in asking) < 40 or gate.count < 10:
                await asyncio.sleep(0.01)
        gate.open.set()
        statuses = Counter(status_of(answer) for answer in await asyncio.gather(*asking))
        assert statuses == {200: 10, 503: 40}
        assert gate.most == 10
        flags = Counter(line.get("flags", "") for line in await running.log(50))
        assert flags == {"": 10, "UO": 40}
        counts = running.worker.clusters["back"].statistics
        refused = counts.upstream_cx_overflow if cap == "connections" else counts.upstream_rq_overflow
        assert refused == 40
        # What was refused left nothing behind: the breaker is closed again.
        assert status_of(await running.ask(GET)) == 200


async def test_no_more_wait_for_a_connection_than_may(tmp_path: Path) -> None:
    """Connections that do not come about: three wait, the rest is told at once; then all of it is given back."""
    hang = asyncio.Event()

    async def dial(*_: Any) -> asyncio.Transport:
        await hang.wait()
        raise ConnectionRefusedError(111, "refused")

    async with proxy(
        tmp_path, 1, cluster="circuit_breaker: {pending: 3}", route="retry: {attempts: 0}"
    ) as running:
        running.worker.dial = dial  # type: ignore[method-assign,assignment]  # a network that swallows
        asking = [asyncio.create_task(running.ask(GET)) for _ in range(10)]
        async with asyncio.timeout(PATIENCE):
            while sum(task.done() for task in asking) < 7:
                await asyncio.sleep(0.01)
        pool = running.worker.clusters["back"]
        assert (pool.pending, pool.statistics.upstream_rq_pending_overflow) == (3, 7)
        hang.set()
        await asyncio.gather(*asking)
        assert (pool.pending, pool.active, pool.connections) == (0, 0, 0)
        assert Counter(line["flags"] for line in await running.log(10)) == {"UO": 7, "UF": 3}


def pool_of(**keys: Any) -> ClusterPool:
    endpoints = tuple(Endpoint(f"10.0.0.{number}:80") for number in range(1, 6))
    return ClusterPool(Cluster("back", endpoints, **keys), Random(1), 0.0)


@given(
    st.floats(0, 1),
    st.integers(0, 20),
    st.integers(0, 200),
    st.lists(st.booleans(), min_size=1, max_size=100),
)
def test_retries_never_exceed_their_budget(ratio: float, always: int, active: int, steps: list[bool]) -> None:
    """Whatever comes and goes, no more tries again are under way than the share of the requests, or the floor."""
    pool = pool_of(circuit_breaker=CircuitBreaker(retry_ratio=ratio, retries_at_least=always))
    pool.active = active
    refused = 0
    for begins in steps:
        if not begins:
            pool.retries = max(0, pool.retries - 1)
        elif pool.may_retry():
            pool.retries += 1
            assert pool.retries <= max(always, ratio * active) + 1
        else:
            refused += 1
            assert pool.retries >= max(always, ratio * active)
    assert pool.statistics.upstream_rq_retry_overflow == refused


async def test_a_failing_server_gets_the_budget_and_no_storm(tmp_path: Path) -> None:
    """A hundred requests at once, all answered 503, each with three tries allowed: a fifth more than came, not four times."""
    served = 0
    together = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        while True:
            await read_head(reader)
            served += 1
            if served == 100:
                together.set()
            await together.wait()
            writer.write(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")

    async with (
        upstream(script) as port,
        proxy(
            tmp_path,
            port,
            route="retry: {attempts: 3, on: [5xx]}",
            cluster="circuit_breaker: {retry_ratio: 0.2, retries_at_least: 0}",
        ) as running,
    ):
        await asyncio.gather(*(running.ask(GET) for _ in range(100)))
        counts = running.worker.clusters["back"].statistics
        assert served == 100 + counts.upstream_rq_retry
        assert 3 <= counts.upstream_rq_retry <= 60  # three tries of each of at most 20 at once
        assert counts.upstream_rq_retry_overflow >= 80


@pytest.mark.parametrize(
    ("key", "head"),
    [
        (HashKey(header="X-User"), "x-user: u%d\r\nCookie: sid=%d"),
        (HashKey(cookie="sid"), "X-User: x\r\nCookie: a=b; sid=u%d; c=%d"),
        (HashKey(), "X-User: %d\r\nCookie: sid=%d"),
    ],
)
def test_a_key_stays_with_its_server_and_keys_are_spread(key: HashKey, head: str) -> None:
    """By header, cookie or client address, over 3,000 keys: each always the same, shares within six deviations of a fifth."""
    pool = pool_of(load_balancer="maglev", hash=key)
    pattern = fields_pattern(dict.fromkeys(REQUEST_FIELDS))
    limits = Limits(65536, 8192, 100)
    found: Counter[str] = Counter()
    for number in range(3000):
        picked = set()
        for noise in range(2):
            source = key == HashKey()
            lines = head % ((noise, noise) if source else (number, noise))
            raw = f"GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\n".encode()
            client = f"10.1.{number // 250}.{number % 250}" if source else f"10.9.9.{noise}"
            server = pool.pick(pool.key(parse_request(raw, limits, pattern), client), 0.0)
            assert server is not None
            picked.add(server.address)
        assert len(picked) == 1
        found[picked.pop()] += 1
    assert len(found) == 5
    for count in found.values():
        assert abs(count - 600) < 6 * 22


def simulate(latencies: list[float], seconds: float, since: float, rate: int = 1000) -> list[Counter[int]]:
    """Picks by second over servers with these latencies, of which the last is new at `since`; on a clock that is told."""
    servers = [Server(Place(f"10.0.0.{n}:80", "", 80), 1, -1000.0) for n in range(len(latencies))]
    servers[-1].since = since
    for server, latency in zip(servers[:-1], latencies, strict=False):
        server.latency = latency
    balancer = PeakEwma(servers, Random(4), slow_start=10.0)
    ends: list[tuple[float, int]] = []
    found: list[Counter[int]] = []
    for number in range(int(seconds * rate)):
        now = number / rate
        while ends and ends[0][0] <= now:
            end, index = heapq.heappop(ends)
            servers[index].active -= 1
            servers[index].measure(latencies[index], False, end)
        picked = balancer.pick(b"", now)
        assert picked is not None
        index = servers.index(picked)
        picked.active += 1
        heapq.heappush(ends, (now + latencies[index], index))
        if len(found) <= now:
            found.append(Counter())
        found[-1][index] += 1
    return found


def test_a_slow_server_gets_what_it_can_bear() -> None:
    """Peak EWMA over four servers, one ten times as slow: it gets under a tenth, the others alike."""
    total = sum(simulate([0.01, 0.01, 0.01, 0.1], 10, -1000.0), Counter[int]())
    assert total[3] < 0.1 * 10_000
    assert max(total[n] for n in range(3)) < 1.2 * min(total[n] for n in range(3))


def test_a_new_server_comes_to_its_share_over_the_window() -> None:
    """Slow start of ten seconds: little in the first second, more in the fifth, its quarter after the tenth."""
    seconds = simulate([0.02, 0.02, 0.02, 0.02], 13, 0.0)
    shares = [each[3] / each.total() for each in seconds]
    assert shares[0] < 0.1
    assert shares[0] < shares[4] < 0.25
    assert shares[12] == pytest.approx(0.25, abs=0.05)


def test_a_server_that_was_never_measured_gets_one_request_to_find_out() -> None:
    """It has no latency yet, which must not be taken for the best one: a flood would hit a server that is just starting."""
    servers = [Server(Place(f"10.0.0.{n}:80", "", 80), 1, 0.0) for n in range(2)]
    servers[0].latency = 0.5
    balancer = PeakEwma(servers, Random(1))
    assert balancer.pick(b"", 0.0) is servers[1]
    servers[1].active = 1
    for _ in range(50):
        servers[0].active += 1
        assert balancer.pick(b"", 0.0) is servers[0]
