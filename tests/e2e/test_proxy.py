"""The embedded proxy as users run it: supervisor, workers and agent as processes, real clients and servers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.e2e.support import SENTINEL, free_port, get, listed, listening, sentinel, started, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

UPSTREAM = """
import asyncio, sys
from aiohttp import web
async def slow(request):
    await asyncio.sleep(float(request.query.get("s", "0")))
    return web.Response(text="slow")
async def echo(request):
    return web.Response(body=await request.read())
app = web.Application(client_max_size=1 << 30)
app.router.add_route("*", "/slow", slow)
app.router.add_route("*", "/{path:.*}", echo)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""
RULES = """
rules:
  - name: pile-up
    metric: inflight
    trigger: {abs: 3}
    warmup: 1
    cooldown: 10m
    capture: [requests, series]
"""


class Running:
    """A proxy with its processes."""

    def __init__(self, process: subprocess.Popen[str], port: int, data_dir: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.data_dir = data_dir

    def children(self, word: str) -> list[psutil.Process]:
        """Live children with this in their command lines."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE and word in " ".join(child.cmdline()):
                    found.append(child)
        return found


@contextmanager
def proxy(tmp_path: Path, *options: str) -> Iterator[Running]:
    """`sentinel-agent proxy` in front of an aiohttp server."""
    back, front = free_port(), free_port()
    config = tmp_path / "proxy.yaml"
    config.write_text(f"""
listeners:
  - {{name: web, address: "127.0.0.1:{front}", routes: [{{name: everything, cluster: back}}]}}
clusters:
  - {{name: back, endpoints: [{{address: "127.0.0.1:{back}"}}]}}
drain: 5s
""")
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    data_dir = tmp_path / "data"
    command = (
        *SENTINEL,
        "proxy",
        "--config",
        str(config),
        "--data-dir",
        str(data_dir),
        "--rules",
        str(rules),
        *options,
    )
    with (
        started((sys.executable, "-c", UPSTREAM, str(back))),
        started(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process,
    ):
        until(lambda: listening(back), 30, "the upstream")
        running = Running(process, front, data_dir)
        until(lambda: answers(running), 30, "the proxy")
        yield running


def answers(running: Running) -> bool:
    """Whether a request is served."""
    with suppress(OSError):
        return get(running.url + "/ping") == b""
    return False


def test_workers_and_agent_outlive_each_other(tmp_path: Path) -> None:
    """kill -9 of a worker, of the agent: requests are served on, both come back, a stop ends all in order."""
    with proxy(tmp_path, "--workers", "2") as running:
        until(lambda: len(running.children("proxy.process")) == 2, 30, "two workers")
        (agent,) = until(lambda: running.children("--beside"), 30, "the agent")
        worker = running.children("proxy.process")[0]
        failures = 0
        stop = threading.Event()
        served: list[int] = []

        def traffic() -> None:
            nonlocal failures
            while not stop.is_set():
                try:
                    get(running.url + "/x", seconds=10)
                    served.append(1)
                except OSError:
                    failures += 1

        thread = threading.Thread(target=traffic)
        thread.start()
        try:
            until(lambda: len(served) > 20, 30, "traffic")
            agent.send_signal(signal.SIGKILL)
            until(
                lambda: [child for child in running.children("--beside") if child != agent], 30, "a new agent"
            )
            assert failures == 0
            worker.send_signal(signal.SIGKILL)
            until(
                lambda: len([c for c in running.children("proxy.process") if c != worker]) == 2,
                30,
                "a new worker",
            )
            assert failures <= 1  # what was in flight there
            before = len(served)
            until(lambda: len(served) > before + 20, 30, "traffic after the kill")
        finally:
            stop.set()
            thread.join()
        children = [child.pid for child in psutil.Process(running.process.pid).children()]
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0
        assert not any(psutil.pid_exists(pid) for pid in children)


def test_an_incident_names_the_requests_under_way(tmp_path: Path) -> None:
    """A rule on `inflight` fires; the incident holds the requests with route, trace and age."""
    with proxy(tmp_path, "--workers", "1") as running:
        clients = [threading.Thread(target=get, args=(running.url + f"/slow?s=8&n={n}",)) for n in range(5)]
        for client in clients:
            client.start()
        (row,) = until(
            lambda: [r for r in listed(running.data_dir) if r["rule"] == "pile-up"], 40, "the incident"
        )
        document = json.loads((running.data_dir / "incidents" / row["id"] / "requests.json").read_text())
        for client in clients:
            client.join()
    assert document["in_flight_count"] == 5
    for each in document["in_flight"]:
        assert re.fullmatch(r"GET /slow\?s=8&n=\d", each["request"])
        assert each["route"] == "everything"
        assert re.fullmatch(r"[0-9a-f]{32}", each["trace"])
    assert row["reason"] == "above_abs"


def test_workers_end_with_their_supervisor(tmp_path: Path) -> None:
    """kill -9 of the supervisor: workers and agent drain and end, so that the address is free again."""
    with proxy(tmp_path, "--workers", "1") as running:
        until(lambda: running.children("--beside"), 30, "the agent")
        children = psutil.Process(running.process.pid).children()
        os.kill(running.process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=20)
        assert alive == []
        assert not listening(running.port)
    for folder in Path(os.environ.get("TMPDIR", "/tmp")).glob("sentinel-proxy-*"):
        for entry in folder.iterdir():
            entry.unlink()
        folder.rmdir()


def test_a_fault_in_the_configuration_is_told_before_anything_starts(tmp_path: Path) -> None:
    """Exit status 2, the file and the line; a port in use is named; --check says that all is well."""
    config = tmp_path / "proxy.yaml"
    config.write_text("listeners:\n  - {name: web, address: nowhere, routes: []}\n")
    refused = sentinel("proxy", "--config", str(config), check=2)
    assert f"{config}:2: listeners[0].address" in refused.stderr
    with started(
        (sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port := free_port())),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ):
        until(lambda: listening(port), 20, "something on the port")
        config.write_text(
            f'listeners: [{{name: web, address: "127.0.0.1:{port}", routes: [{{name: r, response: {{status: 200}}}}]}}]'
        )
        refused = sentinel("proxy", "--config", str(config), "--no-agent", check=2)
        assert f"web: 127.0.0.1:{port}: Address already in use" in refused.stderr
        assert "sound" in sentinel("proxy", "--config", str(config), "--check").stderr


def test_bodies_of_any_size_come_back_whole(tmp_path: Path) -> None:
    """Through aiohttp, by a client of the standard library."""
    with proxy(tmp_path, "--workers", "1", "--no-agent") as running:
        for size in (0, 1, 65_536, 5_000_000):
            data = os.urandom(size)
            request = urllib.request.Request(running.url + "/echo", data=data, method="PUT")
            with urllib.request.urlopen(request, timeout=60) as response:
                assert response.read() == data
