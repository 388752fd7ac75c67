"""The admin side of the embedded proxy as operators use it: curl on the socket, `proxy status`, `proxy drain`."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.support import SENTINEL, free_port, get, listening, sentinel, started, until
from tests.needs import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e


@contextmanager
def proxy(data: Path, front: int, back: int, dead: int) -> Iterator[subprocess.Popen[str]]:
    """Two workers before one server that is there and one that is not, without the agent."""
    config = data.parent / "proxy.yaml"
    config.write_text(f"""
listeners:
  - name: web
    address: 127.0.0.1:{front}
    routes:
      - {{name: all, cluster: back, request_headers: {{set: {{Authorization: "Bearer s3cr3t"}}}}}}
clusters:
  - name: back
    health_check: {{tcp_health_check: {{}}, interval: 200ms, interval_jitter: 0s, unhealthy_threshold: 1}}
    endpoints: [{{address: "127.0.0.1:{back}"}}, {{address: "127.0.0.1:{dead}", metadata: {{zone: b}}}}]
service: gateway
drain: 2s
""")
    command = (*SENTINEL, "proxy", "--config", str(config), "--data-dir", str(data), "--no-agent")
    with (
        started(
            (sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(back)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=data.parent,
        ),
        started(
            (*command, "--workers", "2"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as process,
    ):
        until(lambda: listening(back) and listening(front), 30, "the proxy")
        yield process


def curl(path: Path, target: str, *options: str) -> str:
    """What curl prints; the socket is named by a short path, as curl has no more than unix(7)."""
    command = (program("curl"), "-sS", "--max-time", "20", "--unix-socket", path.name, *options)
    done = subprocess.run(
        (*command, f"http://localhost{target}"), cwd=path.parent, capture_output=True, text=True, check=True
    )
    return done.stdout


def status(data: Path) -> dict[str, Any]:
    """`proxy status --json`."""
    found = json.loads(sentinel("proxy", "status", "--json", "--data-dir", str(data)).stdout)
    assert isinstance(found, dict)
    return found


def test_a_running_proxy_tells_and_drains(tmp_path: Path) -> None:
    """Life, health of every server, counters of both workers together, no secret; drained, it accepts nothing new."""
    data, front = tmp_path / ("d" * 100), free_port()
    socket = data / "proxy" / "admin.sock"
    with proxy(data, front, free_port(), free_port()) as process:
        until(lambda: status(data)["health"] == "degraded", 30, "the checks")
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        for _ in range(6):
            get(f"http://127.0.0.1:{front}/")
        found = status(data)
        assert found["stats"]["cluster.back.upstream_rq_total"] == 6
        assert found["stats"]["http.web.downstream_rq_2xx"] == 6
        (cluster,) = found["clusters"]
        assert [host["healthy"] for host in cluster["host_statuses"]] == [True, False]
        shown = sentinel("proxy", "status", "--data-dir", str(data)).stdout.splitlines()
        assert shown[0].startswith("Degraded: 1 of 2 servers out: 127.0.0.1:")
        assert any("fails its health checks" in line for line in shown)

        info = json.loads(curl(socket, "/server_info"))
        assert (info["state"], info["node"]["cluster"], len(info["workers"])) == ("LIVE", "gateway", 2)
        assert "::health_flags::/failed_active_hc\n" in curl(socket, "/clusters")
        assert curl(socket, "/ready") == "LIVE\n"
        assert f"web::127.0.0.1:{front}\n" in curl(socket, "/listeners")
        assert "cluster.back.membership_healthy: 1\n" in curl(socket, "/stats")
        dump = curl(socket, "/config_dump")
        assert "s3cr3t" not in dump
        assert json.loads(dump)["configs"][0]["config"]["clusters"][0]["name"] == "back"
        assert "405" in curl(socket, "/drain_listeners", "-i").splitlines()[0]
        assert listening(front)

        assert "accept nothing new" in sentinel("proxy", "drain", "--data-dir", str(data)).stdout
        assert not listening(front)
        assert status(data)["health"] == "draining"
        assert curl(socket, "/ready", "-o", "/dev/null", "-w", "%{http_code}") == "503"
        assert process.poll() is None
        process.terminate()
        assert process.wait(30) == 0
    assert not socket.exists()


def test_where_no_proxy_is_the_remedy_is(tmp_path: Path) -> None:
    """A failure of the other side, with what to give."""
    done = sentinel("proxy", "status", "--data-dir", str(tmp_path), check=1)
    assert f"no proxy answers at {tmp_path}/proxy/admin.sock" in done.stderr
    assert "--admin PATH" in done.stderr
    done = sentinel("proxy", "--workers", "1", "status", check=2)
    assert "options stand after the verb" in done.stderr
    assert "missing option '--config'" in sentinel("proxy", check=2).stderr
