"""The main job beside real proxies from PyPI: each is started first and by itself, the agent attaches, a spike is made.

The proxies are not ours and know nothing of the agent. Ground truth is what the spike's own code is called.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING

import pytest

from tests.e2e.support import (
    HERE,
    attached,
    free_port,
    get,
    interpreter,
    listed,
    listening,
    sentinel,
    started,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

pytestmark = pytest.mark.e2e

PROXY_FILES = HERE / "proxies"


@pytest.fixture
def upstream() -> Iterator[int]:
    """A real HTTP server behind the proxies."""
    port = free_port()
    command = (interpreter("gunicorn"), "-m", "http.server", "--bind", "127.0.0.1", str(port))
    with started(command, cwd=PROXY_FILES, stdout=DEVNULL, stderr=DEVNULL):
        until(lambda: listening(port), 10, "the upstream")
        yield port


@contextmanager
def asking(url: str, proxy: int | None = None) -> Iterator[list[bytes]]:
    """A request that runs in a thread meanwhile; its body is there when the context has ended."""
    answer: list[bytes] = []
    thread = threading.Thread(target=lambda: answer.append(get(url, proxy)))
    thread.start()
    try:
        yield answer
    finally:
        thread.join(30)


def assert_scene(data_dir: Path, sealed: dict[str, Any], function: str) -> None:
    """The incident was there soon after the detection, and every view of it names the hot function.

    On a quiet machine it is there within a second; the bound here is for a loaded one.
    """
    incident = sealed["incident"]
    assert incident["sealed_time"] - incident["time"] <= 3.0, incident
    row = next(row for row in listed(data_dir) if row["id"] == incident["id"])
    assert row["rule"] == "cpu-spike"
    assert row["value"] >= 20
    shown = sentinel("incidents", "show", incident["id"], "--data-dir", str(data_dir)).stdout
    head = "\n".join(shown.splitlines()[:3])
    assert f"hottest: {function}" in head, shown
    assert "cpu-spike: cpu " in head
    collapsed = sentinel(
        "incidents", "export", incident["id"], "--format", "collapsed", "-o", "-", "--data-dir", str(data_dir)
    ).stdout
    hot = sum(int(line.rsplit(" ", 1)[1]) for line in collapsed.splitlines() if function in line)
    total = sum(int(line.rsplit(" ", 1)[1]) for line in collapsed.splitlines())
    assert hot > 0.8 * total > 0, collapsed
    assert {report["kind"]: report["status"] for report in incident["captures"]} == {
        "stacks": "ok",
        "profile": "ok",
        "process": "ok",
        "series": "ok",
    }


def warmed_up(data_dir: Path, pid: int) -> bool:
    """Whether the rule has enough readings of this process, as `rules list` says."""
    views = json.loads(sentinel("rules", "list", "--json", "--data-dir", str(data_dir)).stdout)
    return any(view["pid"] == pid and view["state"] == "inactive" for view in views)


def is_worker(event: dict[str, Any]) -> bool:
    """Whether the target of an event is a child that was followed."""
    return bool(event["target"]["worker"] != "main")


def test_proxy_py_attached_by_pid(tmp_path: Path, upstream: int) -> None:
    """A spike in a worker of proxy.py, attached by the pid of its main process, is saved with its hot function."""
    port = free_port()
    command = (
        *(interpreter("proxypy"), "-m", "proxy", "--hostname", "127.0.0.1", "--port", str(port)),
        *("--num-workers", "1", "--num-acceptors", "1", "--plugins", "spike_proxypy.SpikePlugin"),
    )
    with started(command, cwd=PROXY_FILES, stdout=DEVNULL, stderr=DEVNULL) as proxy:
        until(lambda: listening(port), 15, "proxy.py")
        with attached(str(proxy.pid), data_dir=tmp_path) as agent:
            worker = agent.wait_for("target_appeared", is_worker)["target"]
            assert worker["parent_pid"] == proxy.pid
            assert get(f"http://127.0.0.1:{upstream}/", proxy=port)
            until(lambda: warmed_up(tmp_path, worker["pid"]), 20, "the warm-up")
            with asking(f"http://127.0.0.1:{upstream}/spike_asgi.py", proxy=port):
                sealed = agent.wait_for("incident_sealed")
            assert sealed["incident"]["target"] == worker
            assert_scene(tmp_path, sealed, "burn_in_proxypy")


def test_mitmproxy_attached_by_pid(tmp_path: Path, upstream: int) -> None:
    """A spike in mitmproxy is saved with its hot function."""
    port = free_port()
    command = (
        *(str(Path(interpreter("mitmproxy")).parent / "mitmdump"), "-q", "-s", "spike_mitmproxy.py"),
        *("--listen-host", "127.0.0.1", "--listen-port", str(port), "--set", f"confdir={tmp_path / 'mitm'}"),
    )
    with started(command, cwd=PROXY_FILES, stdout=DEVNULL, stderr=DEVNULL) as proxy:
        until(lambda: listening(port), 30, "mitmproxy")
        with attached(str(proxy.pid), data_dir=tmp_path) as agent:
            assert get(f"http://127.0.0.1:{upstream}/", proxy=port)
            until(lambda: warmed_up(tmp_path, proxy.pid), 20, "the warm-up")
            with asking(f"http://127.0.0.1:{upstream}/spike_asgi.py", proxy=port):
                sealed = agent.wait_for("incident_sealed")
            assert sealed["incident"]["target"]["service"] == "mitmdump"
            assert_scene(tmp_path, sealed, "burn_in_mitmproxy")


def test_gunicorn_with_uvicorn_workers_by_match(tmp_path: Path) -> None:
    """With --match, master and workers of gunicorn are targets of their own, and the incident is the busy worker's."""
    port = free_port()
    command = (
        *(interpreter("gunicorn"), "-m", "gunicorn", "-k", "uvicorn.workers.UvicornWorker", "-w", "2"),
        *("-b", f"127.0.0.1:{port}", "--no-control-socket", "spike_asgi:app"),
    )
    with started(command, cwd=PROXY_FILES, stdout=DEVNULL, stderr=DEVNULL) as master:
        until(lambda: listening(port), 15, "gunicorn")
        with attached("--match", rf"gunicorn .*127\.0\.0\.1:{port}", data_dir=tmp_path) as agent:
            workers = {agent.wait_for("target_appeared", is_worker)["target"]["pid"]}
            other = agent.wait_for(
                "target_appeared",
                lambda event: is_worker(event) and event["target"]["pid"] not in workers,
            )
            workers.add(other["target"]["pid"])
            assert master.pid not in workers
            for pid in workers:
                until(partial(warmed_up, tmp_path, pid), 20, "the warm-up")
            with asking(f"http://127.0.0.1:{port}/spike") as answer:
                sealed = agent.wait_for("incident_sealed")
            target = sealed["incident"]["target"]
            assert target["pid"] == int(answer[0])
            assert target["pid"] in workers
            assert target["service"] == "gunicorn"
            assert_scene(tmp_path, sealed, "burn_in_worker")
