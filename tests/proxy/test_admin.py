"""The admin side: the workers' answers put together, the line to them, the socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from sentinel_agent.cli.proxy_admin import judge
from sentinel_agent.errors import PeerError
from sentinel_agent.proxy import admin_views as views
from sentinel_agent.proxy import questions
from sentinel_agent.proxy.admin import serve
from sentinel_agent.proxy.admin_views import WorkerAnswer
from sentinel_agent.proxy.questions import WorkerLine, answer_questions
from sentinel_agent.proxy.snapshot import ClusterFacts, HostFacts, ListenerFacts, WorkerFacts, snapshot
from sentinel_agent.proxy.sockets import reachable
from sentinel_agent.proxy.stats import BUCKETS, RouteCounts
from tests.proxy.support import GET, OK, PATIENCE, answering, parse_text, proxy, status_of, upstream

if TYPE_CHECKING:
    from pathlib import Path


def host(address: str, *flags: str, active: int = 0) -> HostFacts:
    name, _, port = address.rpartition(":")
    usable = not flags
    return HostFacts(address, name, int(port), 1, {"zone": "a"}, usable, flags, active, 1, 0.01, 1.0, 0.0)


def worker(slot: int, *hosts: HostFacts, requests: int = 0, panic: bool = False) -> WorkerAnswer:
    latency = [0] * BUCKETS
    latency[40] = requests
    counts = RouteCounts(
        *("web", "all", "back", requests, 1, 0, 0, 10, 20),
        [0, 0, requests - 1, 0, 0, 1],
        {"UT": 1},
        latency,
        latency,
    )
    nowhere = RouteCounts(
        "web", "all", "", 2, 0, 0, 3, 0, 0, [0, 0, 0, 0, 2, 0], {"RL": 2}, [], [], {"rate_limit": 2}
    )
    facts = WorkerFacts(
        slot + 100,
        False,
        (ListenerFacts("web", "http", 4, 1, 2, {"DPE": 3}), ListenerFacts("raw", "tcp", 5, 0, 0, {})),
        (ClusterFacts("back", "static", panic, 1, 2, 0, 0, hosts, {"upstream_rq_retry": 7}),),
        (nowhere, counts),
        6,
    )
    return WorkerAnswer(slot, slot + 100, facts)


SILENT = WorkerAnswer(2, 102, None, "it does not answer within 3 s")


def test_a_server_is_as_its_worst_worker_sees_it() -> None:
    """Flags of any worker count; how many would use it is told."""
    sick = host("10.0.0.2:80", "failed_active_hc")
    ejected = host("10.0.0.2:80", "failed_outlier_check")
    (cluster,) = views.clusters_of([worker(0, host("10.0.0.1:80"), sick), worker(1, ejected), SILENT])
    well, bad = cluster.servers
    assert (well.health, well.usable, well.workers) == ("healthy", 1, 1)
    assert (bad.health, bad.usable, bad.workers) == ("/failed_active_hc//failed_outlier_check", 0, 2)
    assert (cluster.gauges["membership_total"], cluster.gauges["membership_healthy"]) == (2, 1)
    text = views.clusters_text([cluster])
    assert "back::10.0.0.2:80::health_flags::/failed_active_hc//failed_outlier_check\n" in text
    document = views.clusters_json([cluster])
    status = document["cluster_statuses"][0]["host_statuses"][1]
    assert status["health_status"]["failed_active_health_check"]
    assert status["health_status"]["failed_outlier_check"]
    assert status["address"]["socket_address"] == {"address": "10.0.0.2", "port_value": 80}


def test_counters_are_sums_over_workers_routes_and_clusters() -> None:
    """By listener, by route and by cluster; what was sent nowhere is of no cluster; a silent worker is counted as such."""
    one, two = worker(0, host("10.0.0.1:80"), requests=10), worker(1, host("10.0.0.1:80"), requests=30)
    found = views.stats([one, two, SILENT])
    assert found["http.web.downstream_rq_total"] == 44
    assert found["http.web.downstream_rq_4xx"] == 4
    assert found["http.web.route.all.rq_total"] == 44
    assert found["http.web.route.all.rq_active"] == 6
    assert found["http.web.route.all.rq_flag.RL"] == 4
    assert found["http.web.route.all.rq_event.rate_limit"] == 4
    assert found["cluster.back.upstream_rq_total"] == 40
    assert found["cluster.back.upstream_rq_2xx"] == 38
    assert found["cluster.back.upstream_rq_retry"] == 14
    assert found["http.web.downstream_cx_active"] == 8
    assert found["tcp.raw.downstream_cx_active"] == 10
    assert (found["server.workers"], found["server.workers_silent"]) == (3, 1)
    assert found["http.web.route.all.rq_time_p50_ms"] > 0
    assert views.stats_text(found).splitlines() == sorted(views.stats_text(found).splitlines())


def judged(state: str, *workers: WorkerAnswer) -> tuple[str, str]:
    info = views.server_info(
        version="1",
        state=cast(Any, state),
        uptime=5.0,
        service="s",
        config="f",
        fingerprint="p",
        workers=workers,
        reloads={"taken": 0, "refused": 0, "fault": "", "time": 0.0},
    )
    clusters = views.clusters_json(views.clusters_of(workers))["cluster_statuses"]
    return judge(json.loads(msgspec.json.encode(info)), json.loads(msgspec.json.encode(clusters)))


def test_health_in_words() -> None:
    """The worst fact is named first, with how many more there are."""
    well, sick = host("10.0.0.1:80"), host("10.0.0.2:80", "failed_active_hc")
    assert judged("LIVE", worker(0, well)) == ("healthy", "1 worker, 1 server in 1 cluster, all fit")
    assert judged("LIVE", worker(0, well, sick)) == ("degraded", "1 of 2 servers out: 10.0.0.2:80 of back")
    assert judged("LIVE", worker(0, sick)) == ("unhealthy", "no server of cluster back is fit")
    assert judged("LIVE", worker(0, well), SILENT) == ("degraded", "worker 2 does not answer")
    assert judged("LIVE", SILENT) == ("unhealthy", "no worker answers")
    assert judged("DRAINING", worker(0, well))[0] == "draining"
    assert judged("INITIALIZING")[0] == "starting"


def test_the_dump_keeps_no_secret() -> None:
    """Headers that carry one, tokens in any text, passwords of filters; all else is there, defaults too."""
    config = parse_text("""
listeners:
  - name: web
    address: 127.0.0.1:80
    routes:
      - name: all
        cluster: back
        request_headers: {set: {X-Api-Key: hunter2, X-Plain: words, X-Url: "http://u:hunter2@h/"}}
clusters: [{name: back, endpoints: [{address: "10.0.0.1:80"}]}]
""")
    text = json.dumps(views.config_dump(config, "abc"))
    assert "hunter2" not in text
    assert "words" in text
    assert '"connect_timeout": 2.0' in text


async def test_a_worker_answers_and_drains(tmp_path: Path) -> None:
    """Over the line: what it is; drained, it accepts nothing new, and what is open ends with its next answer."""
    ours, theirs = socket.socketpair()
    async with upstream(answering(OK)) as port, proxy(tmp_path, port) as running:
        running.worker.spawn(answer_questions(theirs, running.worker), "answers")
        line = WorkerLine(ours)
        async with running.connection() as (reader, writer):
            facts = await line.ask("snapshot")
            assert facts.pid == os.getpid()
            assert not facts.draining
            assert (facts.listeners[0].connections, facts.clusters[0].name) == (1, "back")
            assert (await line.ask("drain_listeners")).draining
            with pytest.raises(ConnectionRefusedError):
                await running.ask(GET)
            writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            answer = await reader.read(-1)
            assert status_of(answer) == 200
            assert b"Connection: close" in answer
        assert (await line.ask("snapshot")).routes == snapshot(running.worker).routes
    with pytest.raises(PeerError, match="it is gone"):
        await line.ask("snapshot")
    line.close()


async def test_a_worker_that_is_stuck_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """And when it answers late, that is not taken for the answer to the next question."""
    monkeypatch.setattr(questions, "ANSWER_SECONDS", 0.2)
    ours, theirs = socket.socketpair()
    line = WorkerLine(ours)
    first = msgspec.msgpack.encode(worker(1).facts)
    second = msgspec.msgpack.encode(worker(2).facts)
    theirs.sendall(questions._framed(1, first)[:20])
    with pytest.raises(PeerError, match="does not answer"):
        await line.ask("snapshot")
    theirs.sendall(questions._framed(1, first)[20:] + questions._framed(2, second))
    monkeypatch.setattr(questions, "ANSWER_SECONDS", PATIENCE)
    assert (await line.ask("snapshot")).pid == 102
    theirs.sendall(b"\xff" * 8)
    with pytest.raises(PeerError, match="it is gone"):
        await line.ask("snapshot")
    line.close()
    theirs.close()
    await asyncio.sleep(0)


class Proxy:
    """Something to administrate."""

    state = "LIVE"

    def info(self, workers: Any) -> dict[str, Any]:
        return {"workers": len(workers)}

    async def ask(self, question: str) -> list[WorkerAnswer]:
        return [worker(0), SILENT]

    async def drain_listeners(self) -> list[WorkerAnswer]:
        return [SILENT]


async def ask(path: Path, request: str) -> bytes:
    with reachable(path) as name:
        reader, writer = await asyncio.open_unix_connection(name)
    writer.write(f"{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    try:
        async with asyncio.timeout(PATIENCE):
            return await reader.read(-1)
    finally:
        writer.close()


async def until_there(path: Path) -> int:
    async with asyncio.timeout(PATIENCE):
        while not path.exists():
            await asyncio.sleep(0.02)
    return path.stat().st_ino


async def test_the_socket_is_its_owners_and_the_next_one_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0600, at any length of path; what a dead proxy left is replaced, a living one's is not, until it goes."""
    monkeypatch.setattr("sentinel_agent.proxy.admin.RETRY_SECONDS", 0.05)
    path = tmp_path / ("x" * 120) / "admin.sock"
    path.parent.mkdir()
    with reachable(path) as name, socket.socket(socket.AF_UNIX) as stale:
        stale.bind(name)
    before = path.stat().st_ino
    old = asyncio.create_task(serve(path, cast(Any, Proxy())))
    async with asyncio.timeout(PATIENCE):
        while path.stat().st_ino == before:
            await asyncio.sleep(0.02)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b'"workers": 2' in await ask(path, "GET /server_info")
    assert b" 500 " in await ask(path, "POST /drain_listeners")
    assert b" 404 " in await ask(path, "GET /quitquitquit")
    owner = path.stat().st_ino
    new = asyncio.create_task(serve(path, cast(Any, Proxy())))
    await asyncio.sleep(0.2)
    assert path.stat().st_ino == owner
    old.cancel()
    await asyncio.gather(old, return_exceptions=True)
    await until_there(path)
    assert b"LIVE\n" in await ask(path, "GET /ready")
    new.cancel()
    await asyncio.gather(new, return_exceptions=True)
    assert not path.exists()
