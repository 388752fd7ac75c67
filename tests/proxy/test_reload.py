"""Another configuration in a running worker: all of it or nothing, and no connection or request is lost."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.errors import OperatorError
from sentinel_agent.proxy.numbers import RouteNumbers
from sentinel_agent.proxy.reload import reload
from tests.proxy.support import (
    GET,
    OK,
    PATIENCE,
    answering,
    bound,
    copy,
    parse_text,
    read_head,
    serving,
    status_of,
    upstream,
)
from tests.proxy.test_tls import Authority, authority, root

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

    from tests.proxy.support import Proxy

__all__ = ["authority", "root"]
ON_UVLOOP = True
KEEP = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def answer(word: bytes) -> bytes:
    """An answer that says who gave it."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(word), word)


def text(port: int, log: Path, *, route: str = "", listener: str = "", more: str = "", back: str = "") -> str:
    """A configuration with one listener, one route and one cluster."""
    return f"""
listeners:
  - {{name: web, address: "127.0.0.1:0", routes: [{{name: all, cluster: back, {route}}}], {listener}}}
{more}
clusters:
  - {{name: back, endpoints: [{{address: "127.0.0.1:{port}"}}], {back}}}
access_log: {{path: {log}}}
"""


async def change(running: Proxy, words: str, extra: Mapping[str, socket.socket] | None = None) -> None:
    """Give the worker another configuration, with copies of the sockets, as the supervisor does."""
    config = parse_text(words)
    given = dict(running.sockets) | dict(extra or {})
    sockets = {each.name: copy(given[each.name]) for each in config.listeners}
    try:
        await reload(running.worker, config, sockets)
    except (OperatorError, OSError):
        for sock in sockets.values():
            sock.close()
        raise


async def test_a_connection_lives_through_a_reload(tmp_path: Path) -> None:
    """Its next request goes where the new configuration says, with the new edits; counts go on."""
    log = tmp_path / "access.log"
    heads: list[bytes] = []
    async with (
        upstream(answering(answer(b"one"))) as one,
        upstream(answering(answer(b"two"), heads=heads)) as two,
        serving(parse_text(text(one, log)), log, copied=True) as running,
        running.connection() as (reader, writer),
    ):
        for _ in range(3):
            writer.write(KEEP)
            assert (await reader.readuntil(b"one")).startswith(b"HTTP/1.1 200")
        await change(running, text(two, log, route="request_headers: {set: {x-new: yes}}"))
        for _ in range(3):
            writer.write(KEEP)
            assert (await reader.readuntil(b"two")).startswith(b"HTTP/1.1 200")
        assert b"x-new: yes\r\n" in heads[0]
        (route,) = running.worker.http[0].routes
        assert (route.all_stats["back"].requests, route.stats.inflight, route.number) == (6, 0, 0)
        assert await running.log(6)


async def test_header_lines_are_judged_anew(tmp_path: Path) -> None:
    """A client repeats its lines; a route that reads one of them is met all the same."""
    log = tmp_path / "access.log"
    request = b"GET / HTTP/1.1\r\nHost: h\r\nx-ring: canary\r\n\r\n"
    match = "match: {headers: [{name: x-ring, exact: stable}]}"
    async with (
        upstream(answering(OK)) as port,
        serving(parse_text(text(port, log)), log, copied=True) as running,
        running.connection() as (reader, writer),
    ):
        for _ in range(3):
            writer.write(request)
            assert status_of(await read_head(reader)) == 200
            await reader.readexactly(2)
        await change(running, text(port, log, route=match))
        writer.write(request)
        assert status_of(await read_head(reader)) == 404


async def test_a_request_under_way_ends_where_it_began(tmp_path: Path) -> None:
    """Its cluster is gone meanwhile, and its connection is not kept."""
    log = tmp_path / "access.log"
    go = asyncio.Event()
    ended = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await go.wait()
        writer.write(answer(b"old"))
        await reader.read(-1)
        ended.set()

    async with (
        upstream(slow) as one,
        upstream(answering(answer(b"new"))) as two,
        serving(parse_text(text(one, log)), log, copied=True) as running,
        running.connection() as (reader, writer),
    ):
        writer.write(KEEP)
        while not running.worker.exchanges:
            await asyncio.sleep(0.01)
        await change(running, text(two, log, back="load_balancer: least_request"))
        assert (await running.ask(GET)).endswith(b"new")
        go.set()
        assert (await reader.readuntil(b"old")).startswith(b"HTTP/1.1 200")
        await asyncio.wait_for(ended.wait(), 10)
        writer.write(KEEP)
        await reader.readuntil(b"new")


async def test_a_cluster_that_stays_keeps_its_connections(tmp_path: Path) -> None:
    """One that changes loses the idle ones at once."""
    log = tmp_path / "access.log"
    async with (
        upstream(answering(OK)) as port,
        serving(parse_text(text(port, log)), log, copied=True) as running,
    ):
        assert status_of(await running.ask(GET)) == 200
        pool = running.worker.clusters["back"]
        await change(running, text(port, log, route="timeout: 3s"))
        assert running.worker.clusters["back"] is pool
        assert pool.connections == 1
        await change(running, text(port, log, back="max_idle: 7"))
        await asyncio.sleep(0.05)
        assert pool.connections == 0


async def test_nothing_changes_where_something_is_wrong(tmp_path: Path) -> None:
    """A filter that nobody has, a certificate that is not there, a log that cannot be opened."""
    log = tmp_path / "access.log"
    good = text(1, log)
    async with (
        upstream(answering(answer(b"one"))) as one,
        serving(parse_text(text(one, log)), log, copied=True) as running,
    ):
        before = running.worker.config
        for words in (
            text(1, log, route="filters: [{name: nobody-has-it}]"),
            text(1, log, listener="tls: {certificates: [{cert: none.pem, key: none.key}]}"),
            good.replace(str(log), str(tmp_path / "no" / "folder")),
        ):
            with pytest.raises((OperatorError, OSError)):
                await change(running, words)
            assert running.worker.config is before
            assert (await running.ask(GET)).endswith(b"one")


async def test_listeners_come_and_go(tmp_path: Path) -> None:
    """A new one accepts; a connection of one that goes may have one more request, and is told that it is the last."""
    log = tmp_path / "access.log"
    second = "  - {name: more, address: '127.0.0.1:0', routes: [{name: all, response: {status: 201}}]}"
    sock = bound()
    port = sock.getsockname()[1]
    async with (
        upstream(answering(OK)) as back,
        serving(parse_text(text(back, log)), log, copied=True) as running,
    ):
        await change(running, text(back, log, more=second), {"more": sock})
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(KEEP)
        head = await read_head(reader)
        assert status_of(head) == 201
        assert b"Connection" not in head
        await change(running, text(back, log))
        sock.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        writer.write(KEEP)
        last = await asyncio.wait_for(reader.read(-1), 10)
        assert b"Connection: close" in last
        writer.close()
        assert status_of(await running.ask(GET)) == 200


async def test_what_does_not_leave_is_ended(tmp_path: Path) -> None:
    """After the drain time, an idle connection of a listener that is gone."""
    log = tmp_path / "access.log"
    second = "  - {name: more, address: '127.0.0.1:0', protocol: tcp, cluster: back}"
    third = "  - {name: third, address: '127.0.0.1:0', routes: [{name: all, cluster: back}]}"
    socks = {"more": bound(), "third": bound()}
    async with upstream(answering(OK)) as back:
        words = f"drain: 200ms\n{text(back, log)}"
        async with serving(parse_text(words), log, copied=True) as running:
            await change(running, f"drain: 200ms\n{text(back, log, more=second + chr(10) + third)}", socks)
            connections = [
                await asyncio.open_connection(*sock.getsockname())
                for sock in socks.values()
                for _ in range(2)
            ]
            for reader, writer in connections:
                writer.write(KEEP)
                assert status_of(await read_head(reader)) == 200
            await change(running, words)
            for reader, writer in connections:
                await asyncio.wait_for(reader.read(-1), 10)
                writer.close()
    for sock in socks.values():
        sock.close()


async def test_certificates_change_under_a_connection(tmp_path: Path, authority: Authority) -> None:
    """It goes on; the next one gets the new certificate. Then TLS ends, and begins again, on the same port."""
    log = tmp_path / "access.log"
    context = authority.trusting()
    context.check_hostname = False

    async def connect(running: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Any]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", running.port, ssl=context, server_hostname="x.example"
        )
        return reader, writer, writer.get_extra_info("peercert")["subjectAltName"][0][1]

    tls = f"tls: {{certificates: [{authority.issue('web', 'old.example')}]}}"
    async with upstream(answering(OK)) as back:
        secure = text(back, log, listener=tls)
        async with serving(parse_text(secure), log, copied=True) as running:
            reader, writer, name = await connect(running)
            assert name == "old.example"
            authority.issue("web", "new.example")
            await change(running, secure)
            writer.write(KEEP)
            assert status_of(await read_head(reader)) == 200
            writer.close()
            _, writer, name = await connect(running)
            assert name == "new.example"
            writer.close()
            await change(running, text(back, log))
            assert status_of(await running.ask(GET)) == 200
            await change(running, secure)
            _, writer, name = await connect(running)
            writer.close()
            (tmp_path / "web.key").write_text("half a key")
            with pytest.raises(OperatorError):
                await change(running, secure)
            _, writer, name = await connect(running)
            writer.close()


async def test_clients_of_a_link_switch_one_by_one(tmp_path: Path, authority: Authority) -> None:
    """The upstream speaks both; our cluster goes from plaintext to TLS and back while requests go on: none fails."""
    log, other = tmp_path / "access.log", tmp_path / "other.log"
    pair = authority.issue("back", "back.example")
    async with upstream(answering(OK)) as last:
        both = text(last, other, listener=f"tls: {{certificates: [{pair}], allow_plaintext: true}}")
        async with serving(parse_text(both), other, copied=True) as server:
            plain = text(server.port, log)
            secure = text(server.port, log, back=f"tls: {{ca: {authority.path}, sni: back.example}}")
            async with serving(parse_text(plain), log, copied=True) as running:
                done = asyncio.Event()

                async def ask() -> list[int]:
                    found = []
                    while not done.is_set():
                        found.append(status_of(await running.ask(GET)))
                    return found

                clients = [asyncio.create_task(ask()) for _ in range(4)]
                for words in (secure, plain, secure):
                    await asyncio.sleep(0.2)
                    await change(running, words)
                await asyncio.sleep(0.2)
                done.set()
                statuses = [status for each in clients for status in await each]
                assert set(statuses) == {200}
                pool = running.worker.clusters["back"]
                assert pool.tls is not None
                assert pool.connections >= 1


def test_a_number_never_means_two_routes() -> None:
    """Those that stay keep theirs, those with requests under way too, the others' are given out again."""

    def listener(*names: str, inflight: int = 0) -> Any:
        routes = [
            SimpleNamespace(listener="web", name=name, number=0, stats=SimpleNamespace(inflight=inflight))
            for name in names
        ]
        return SimpleNamespace(routes=routes)

    numbers = RouteNumbers()
    numbers.assign([listener("a", "b", "c")])
    assert numbers.names == ["a", "b", "c"]
    numbers.assign([listener("c", "d", "e", "f", inflight=1)])
    assert numbers.names == ["d", "e", "c", "f"]
    numbers.assign([listener("f", "g")])
    assert numbers.names == ["d", "e", "c", "f", "g"]


async def test_the_duties_of_clusters_change_with_them(tmp_path: Path) -> None:
    """Checks of a cluster that is gone end; a new one's names are looked up before a request comes; the same one's go on."""
    log = tmp_path / "access.log"
    check = "health_check: {tcp_health_check: {}, interval: 100ms}"
    more = "type: strict_dns, dns_lookup_family: v4_only, load_balancer: peak_ewma"
    async with (
        upstream(answering(answer(b"one"))) as one,
        serving(parse_text(text(one, log, back=check)), log, copied=True) as running,
    ):
        before = running.worker.clusters["back"]
        await change(running, text(one, log, route="timeout: 3s", back=check))
        assert running.worker.clusters["back"] is before
        async with asyncio.timeout(PATIENCE):
            while not before.statistics.health_check_attempt:
                await asyncio.sleep(0.02)
        named = text(one, log, back=more).replace(f'"127.0.0.1:{one}"', f'"localhost:{one}"')
        await change(running, named)
        after = running.worker.clusters["back"]
        assert [server.host for server in after.servers] == ["127.0.0.1"]
        async with running.connection() as (reader, writer):
            writer.write(KEEP)
            assert (await reader.readuntil(b"one")).startswith(b"HTTP/1.1 200")
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert "look up back" in names
        assert not any(name.startswith("check back") for name in names)
