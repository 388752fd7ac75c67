"""Clusters against real servers: names that change and lie, health that comes and goes, colours over two hops."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from aiohttp import web

from sentinel_agent.errors import PeerError
from sentinel_agent.proxy.resolver import NameServerResolver, SystemResolver
from tests.proxy.support import GET, OK, PATIENCE, Proxy, answering, parse_text, serving, status_of, upstream
from tests.proxy.test_real_programs import nginx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


class NameServer(asyncio.DatagramProtocol):
    """Answers with `records` (name -> addresses) and the TTL `ttl`; with None it is silent."""

    def __init__(self) -> None:
        self.records: dict[str, list[str] | None] = {}
        self.aliases: dict[str, str] = {}
        self.ttl = 1
        self.asked = 0
        self.port = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, address: Any) -> None:
        query = dns.message.from_wire(data)
        self.asked += 1
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if name in self.aliases:
            there = self.aliases[name] + "."
            answer.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", "CNAME", there))
        else:
            found = self.records.get(name, [])
            if found is None:
                return
            if name not in self.records:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            kind = {1: "A", 28: "AAAA"}[int(question.rdtype)]
            wanted = [each for each in found if (":" in each) == (kind == "AAAA")]
            if wanted:
                answer.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", kind, *wanted))
        self._transport.sendto(answer.to_wire(), address)


@asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    try:
        yield protocol
    finally:
        transport.close()
        await asyncio.sleep(0)


async def until(fact: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not fact():
            await asyncio.sleep(0.02)


def config(tmp_path: Path, cluster: str, route: str = "cluster: back") -> Any:
    return parse_text(f"""
listeners:
  - {{name: web, address: "127.0.0.1:0", routes: [{{name: all, {route}}}]}}
clusters:
  - {{name: back, {cluster}}}
access_log: {{path: {tmp_path / "access.log"}}}
""")


@asynccontextmanager
async def running(tmp_path: Path, cluster: str, route: str = "cluster: back") -> AsyncIterator[Proxy]:
    (tmp_path / "access.log").touch()
    async with serving(config(tmp_path, cluster, route), tmp_path / "access.log") as found:
        yield found


async def test_name_servers_are_asked_with_their_ttl(tmp_path: Path) -> None:
    """Both families, the shortest TTL of a chain; NXDOMAIN, a loop of aliases and silence are each an error in words."""
    async with name_server() as dns_server:
        dns_server.records = {"a.test": ["127.0.0.1", "127.0.0.2", "::1"], "mute.test": None, "bare.test": []}
        dns_server.aliases = {"loop.test": "pool.test", "pool.test": "loop.test"}
        dns_server.ttl = 77
        resolver = NameServerResolver((f"127.0.0.1:{dns_server.port}",), ("A", "AAAA"))
        resolver._resolver.lifetime = 0.5
        answer = await resolver.look_up("a.test")
        assert (set(answer.addresses), answer.ttl) == ({"127.0.0.1", "127.0.0.2", "::1"}, 77)
        for name in ("nobody.test", "loop.test", "mute.test", "bare.test", "x" * 300, "..", "\udcff"):
            with pytest.raises(PeerError, match=re.escape(name[:20])):
                await resolver.look_up(name)


async def test_the_system_knows_itself() -> None:
    """getaddrinfo finds localhost; what it cannot find or cannot even encode is an error in words."""
    resolver = SystemResolver()
    answer = await resolver.look_up("localhost")
    assert {"127.0.0.1", "::1"} & set(answer.addresses)
    assert answer.ttl is None
    for name in ("nobody.invalid", "x" * 300, ".."):
        with pytest.raises(PeerError, match=re.escape(name[:20])):
            await resolver.look_up(name)
    await resolver.close()


async def test_a_name_that_moves_takes_the_requests_with_it(tmp_path: Path) -> None:
    """Strict DNS by TTL: new addresses are used, pools of old ones drained; a name server that lies changes nothing."""
    who: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            who.append(writer.get_extra_info("sockname")[0].encode())
            writer.write(OK)

    server = await asyncio.start_server(script, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    other = await asyncio.start_server(script, "127.0.0.2", port)
    async with server, other, name_server() as dns_server:
        dns_server.records = {"back.test": ["127.0.0.1"]}
        cluster = (
            f'load_balancer: maglev, type: strict_dns, respect_dns_ttl: true, dns_refresh_rate: 300ms, dns_lookup_family: v4_only, dns_resolvers: ["127.0.0.1:{dns_server.port}"], '
            f'endpoints: [{{address: "back.test:{port}"}}]'
        )
        async with running(tmp_path, cluster) as found:
            pool = found.worker.clusters["back"]
            assert status_of(await found.ask(GET)) == 200
            (old,) = pool.servers
            assert len(old.idle) == 1
            dns_server.records = {"back.test": ["127.0.0.2"]}
            await until(lambda: [each.host for each in pool.servers] == ["127.0.0.2"])
            await until(lambda: not old.idle and pool.connections == 0)
            assert status_of(await found.ask(GET)) == 200
            assert who == [b"127.0.0.1", b"127.0.0.2"]
            assert pool.names is not None
            counts = pool.names.statistics
            lies: list[dict[str, list[str] | None]] = [{}, {"back.test": ["::1"]}, {"back.test": []}]
            for lie in lies:
                failures = counts.update_failure
                dns_server.records = lie
                while counts.update_failure == failures:
                    await asyncio.sleep(0.02)
                assert status_of(await found.ask(GET)) == 200
            assert [each.host for each in pool.servers] == ["127.0.0.2"]


async def test_a_request_under_way_outlives_its_server(tmp_path: Path) -> None:
    """The name moved while it was answered: it is answered in full, then its connection is closed."""
    release = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await release.wait()
        writer.write(OK)
        await reader.read()

    async with (
        upstream(script) as port,
        running(tmp_path, f'endpoints: [{{address: "127.0.0.1:{port}"}}]') as found,
    ):
        pool = found.worker.clusters["back"]
        asking = asyncio.create_task(found.ask(GET))
        await until(lambda: pool.servers[0].active == 1)
        pool.replace([], found.worker.now())
        assert status_of(await found.ask(GET)) == 503
        release.set()
        assert status_of(await asking) == 200
        await until(lambda: pool.connections == 0)


async def test_logical_dns_goes_to_the_newest_address(tmp_path: Path) -> None:
    """By the system's resolver; one server, called by its name."""
    async with upstream(answering(OK)) as port:
        cluster = (
            f'type: logical_dns, dns_lookup_family: v4_only, endpoints: [{{address: "localhost:{port}"}}]'
        )
        async with running(tmp_path, cluster) as found:
            assert status_of(await found.ask(GET)) == 200
            (server,) = found.worker.clusters["back"].servers
            assert (server.address, server.host) == (f"localhost:{port}", "127.0.0.1")


async def test_a_name_that_is_never_found_is_a_503(tmp_path: Path) -> None:
    """The worker starts all the same, and says UH."""
    async with name_server() as dns_server:
        cluster = f'type: strict_dns, dns_resolvers: ["127.0.0.1:{dns_server.port}"], endpoints: [{{address: "nobody.test:80"}}]'
        async with running(tmp_path, cluster) as found:
            assert status_of(await found.ask(GET)) == 503
            assert (await found.log())[0]["flags"] == "UH"


@asynccontextmanager
async def moody() -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """An aiohttp server whose health and answers can be set."""
    mood: dict[str, Any] = {"health": 200, "status": 200, "served": 0}

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/healthz":
            return web.Response(status=mood["health"])
        mood["served"] += 1
        return web.Response(status=mood["status"])

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1], mood
    finally:
        await runner.cleanup()


def two(one: int, other: int) -> str:
    return f'endpoints: [{{address: "127.0.0.1:{one}"}}, {{address: "127.0.0.1:{other}"}}]'


async def test_a_sick_server_gets_nothing_until_it_is_well(tmp_path: Path) -> None:
    """Checks over HTTP of an aiohttp server and of nginx: 503 and it is out, 200 and it is in again."""
    async with moody() as (port, mood), nginx(tmp_path) as other:
        check = "health_check: {http_health_check: {path: /healthz, expected_statuses: [200, 404]}, interval: 100ms, interval_jitter: 0s, timeout: 5s}"
        async with running(tmp_path, f"{two(port, other)}, {check}") as found:
            sick, well = found.worker.clusters["back"].servers
            await until(lambda: found.worker.clusters["back"].statistics.health_check_attempt >= 4)
            mood["health"] = 503
            await until(lambda: not sick.usable)
            before = mood["served"]
            for _ in range(6):
                await found.ask(GET)
            assert mood["served"] == before
            assert well.usable
            mood["health"] = 200
            await until(lambda: sick.usable)
            for _ in range(4):
                await found.ask(GET)
            assert mood["served"] > before
            assert found.worker.clusters["back"].statistics.health_check_failure >= 2


@pytest.mark.parametrize("how", ["tcp_health_check: {}", "http_health_check: {path: /}"])
async def test_a_server_that_is_not_there_is_out(tmp_path: Path, how: str) -> None:
    """Refused connections, by a check of TCP and of HTTP; when both are gone it is panic, and requests are tried on all."""
    async with upstream(answering(OK)) as gone:
        pass
    async with upstream(answering(OK)) as port:
        check = f"health_check: {{{how}, interval: 100ms, interval_jitter: 0s, timeout: 5s, unhealthy_threshold: 1}}"
        async with running(tmp_path, f"{two(port, gone)}, {check}") as found:
            pool = found.worker.clusters["back"]
            await until(lambda: not pool.servers[1].usable)
            for _ in range(4):
                assert status_of(await found.ask(GET)) == 200
            assert not pool.panic
    async with running(tmp_path, f"{two(gone, gone)}, {check}") as found:
        pool = found.worker.clusters["back"]
        await until(lambda: pool.panic)
        assert status_of(await found.ask(GET)) == 503
        assert (await found.log(5))[-1]["flags"] == "UF"


HOSTILE = [
    b"",
    b"garbage\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    b"HTTP/1.1 204 No\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
]


async def test_no_answer_of_a_check_is_trusted(tmp_path: Path) -> None:
    """Half a head, a head without end, another status, silence, noise: each is a failure, none an accident."""
    left = list(HOSTILE)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(left.pop() if left else b"")
        await writer.drain()
        if len(left) % 2:
            await reader.read()

    async with upstream(script) as port:
        check = "health_check: {http_health_check: {path: /}, interval: 100ms, interval_jitter: 0s, timeout: 300ms}"
        async with running(tmp_path, f'endpoints: [{{address: "127.0.0.1:{port}"}}], {check}') as found:
            counts = found.worker.clusters["back"].statistics
            await until(lambda: counts.health_check_failure > len(HOSTILE))
            assert counts.health_check_failure == counts.health_check_attempt


async def test_a_server_that_fails_is_ejected_and_let_back(tmp_path: Path) -> None:
    """Real requests, real windows: 500 from one of two, out, its time over, in again."""
    async with moody() as (port, mood), moody() as (other, _):
        rule = "outlier_detection: {interval: 500ms, request_volume: 3, base_ejection_time: 1s}"
        async with running(tmp_path, f"{two(port, other)}, {rule}") as found:
            bad, _ = found.worker.clusters["back"].servers
            mood["status"] = 500
            async with asyncio.timeout(PATIENCE):
                while bad.usable:
                    await found.ask(GET)
            mood["status"] = 200
            statuses = {status_of(await found.ask(GET)) for _ in range(4)}
            assert statuses == {200}
            await until(lambda: bad.usable)
            assert found.worker.clusters["back"].statistics.ejections_total == 1


async def named(heads: list[bytes], name: bytes) -> Callable[..., Any]:
    """A server that says its name, and remembers what it was asked."""
    return answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name), heads=heads)


@pytest.mark.parametrize(
    ("coloring", "line"), [("baggage: color", b"baggage: color=gray"), ("header: x-color", b"x-color: gray")]
)
async def test_a_mark_stays_over_two_hops(tmp_path: Path, coloring: str, line: bytes) -> None:
    """The first proxy marks half of its requests; the second sends exactly these to the gray servers, by their mark."""
    seen: dict[str, list[bytes]] = {"blue": [], "gray": []}
    async with (
        upstream(await named(seen["blue"], b"blue")) as blue,
        upstream(await named(seen["gray"], b"gray")) as gray,
    ):
        second = f"""
listeners:
  - name: web
    address: 127.0.0.1:0
    routes:
      - name: all
        clusters:
          - {{name: back, metadata_match: {{group: blue}}}}
          - {{name: back, weight: 0, metadata_match: {{group: gray}}, mark: gray}}
clusters:
  - name: back
    lb_subset_config: {{fallback_policy: no_fallback}}
    endpoints:
      - {{address: "127.0.0.1:{blue}", metadata: {{group: blue}}}}
      - {{address: "127.0.0.1:{gray}", metadata: {{group: gray, zone: a}}}}
coloring: {{{coloring}}}
access_log: {{path: {tmp_path / "2.log"}}}
"""
        async with serving(parse_text(second), tmp_path / "2.log") as last:
            first = f"""
listeners:
  - name: web
    address: 127.0.0.1:0
    routes: [{{name: all, clusters: [{{name: next}}, {{name: next, mark: gray}}]}}]
clusters:
  - {{name: next, endpoints: [{{address: "127.0.0.1:{last.port}"}}]}}
coloring: {{{coloring}}}
access_log: {{path: {tmp_path / "1.log"}}}
"""
            async with serving(parse_text(first), tmp_path / "1.log") as entry:
                for _ in range(40):
                    await entry.ask(GET)
                marked = await entry.ask(GET[:-2] + line + b"\r\nbaggage: user=7;p\r\n\r\n")
            stats = last.worker.http[0].routes[0].all_stats["back"]
            assert stats.requests == 41
    assert marked.endswith(b"gray")
    assert all(line in head for head in seen["gray"])
    assert not any(line in head for head in seen["blue"])
    assert seen["gray"][-1].count(line) == 1
    assert min(len(seen["gray"]), len(seen["blue"])) >= 5
    assert b"user=7;p" in seen["gray"][-1]
    assert (
        seen["gray"][-1].lower().count(b"\r\n" + line.partition(b":")[0]) == (1 if b"gray" in line else 0)
        or coloring
    )


@pytest.mark.parametrize(
    ("policy", "status"),
    [("no_fallback", 503), ("any_endpoint", 200), ("default_subset, default_subset: {group: blue}", 200)],
)
async def test_a_colour_without_servers_falls_back(tmp_path: Path, policy: str, status: int) -> None:
    """Its only server is ejected: as the policy says, 503 or another colour's answer; never a failed request otherwise."""
    async with upstream(await named([], b"blue")) as blue, upstream(await named([], b"gray")) as gray:
        cluster = (
            f"lb_subset_config: {{fallback_policy: {policy}}}, endpoints: ["
            f'{{address: "127.0.0.1:{blue}", metadata: {{group: blue}}}}, '
            f'{{address: "127.0.0.1:{gray}", metadata: {{group: gray}}}}]'
        )
        async with running(tmp_path, cluster, "cluster: back, metadata_match: {group: gray}") as found:
            pool = found.worker.clusters["back"]
            for _ in range(3):
                assert (await found.ask(GET)).endswith(b"gray")
            pool.servers[1].record.until = found.worker.now() + 100
            pool.judge(found.worker.now())
            answer = await found.ask(GET)
            assert status_of(answer) == status
            assert answer.endswith(b"blue") == (status == 200)
            assert pool.subset({"group": "gray"}).fallbacks == (status == 200)
