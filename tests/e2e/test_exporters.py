"""The real agent sends to servers: to one that takes everything, one that is not there, and one that never answers."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tests.e2e.support import SPIKE, attached, free_port, get, listening, sentinel, started, until
from tests.e2e.test_proxy import proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

BURNS = "import time\ntime.sleep(9)\nend = time.monotonic() + 6\nwhile time.monotonic() < end: pass\ntime.sleep(60)\n"


class Catcher:
    """Everything that was posted, by path."""

    def __init__(self) -> None:
        self.got: dict[str, list[bytes]] = {}
        self.port = 0


@contextmanager
def catching() -> Iterator[Catcher]:
    """A server that takes everything."""
    catcher = Catcher()

    class Take(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            catcher.got.setdefault(self.path, []).append(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Take)
    server.daemon_threads = True
    catcher.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield catcher
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def states(data_dir: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What `exporters --json` says, by exporter and signal."""
    rows = json.loads(sentinel("exporters", "--json", "--data-dir", str(data_dir)).stdout)
    return {(row["exporter"], row["signal"]): row for row in rows}


def test_one_takes_everything_one_is_away_one_never_answers(tmp_path: Path) -> None:
    """Readings and the incident reach the one that works; the others delay no tick and no stop, and nothing is lost quietly."""
    with (
        catching() as catcher,
        socket.create_server(("127.0.0.1", 0)) as silent,
        socket.create_server(("127.0.0.1", 0)) as away,
    ):
        gone = away.getsockname()[1]
        away.close()
        url = f"http://127.0.0.1:{catcher.port}"
        port = free_port()
        config = (
            SPIKE
            + f"""
exporters:
  otlp: {{url: "{url}"}}
  zipkin: {{url: "{url}"}}
  hook: {{kind: webhook, url: "{url}/hook"}}
  away: {{kind: otlp, url: "http://127.0.0.1:{gone}"}}
  silent: {{kind: otlp, url: "http://127.0.0.1:{silent.getsockname()[1]}"}}
"""
        )
        with (
            started((sys.executable, "-c", BURNS)) as target,
            attached(
                str(target.pid), "--listen", f"127.0.0.1:{port}", data_dir=tmp_path, config=config
            ) as agent,
        ):
            sealed = agent.wait_for("incident_sealed", seconds=60)
            incident = sealed["incident"]["id"]
            until(
                lambda: {"/v1/metrics", "/v1/logs", "/hook", "/api/v2/spans"} <= catcher.got.keys(),
                30,
                "every signal",
            )
            assert json.loads(catcher.got["/hook"][0])["data"]["id"] == incident
            assert incident in catcher.got["/api/v2/spans"][0].decode()
            names = {
                metric.name
                for body in catcher.got["/v1/metrics"]
                for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
                for scope in resource.scope_metrics
                for metric in scope.metrics
            }
            assert {"sentinel.cpu.usage", "process.memory.usage", "sentinel.agent.cpu_ratio"} <= names
            found = until(
                lambda: (now := states(tmp_path))["away", "metrics"]["state"] == "retrying" and now,
                30,
                "a retry",
            )
            assert found["otlp", "metrics"]["state"] == "delivering"
            assert found["otlp", "metrics"]["lost"] == {}
            assert "Connection refused" in found["away", "metrics"]["last_error"]
            page = get(f"http://127.0.0.1:{port}/metrics").decode()
            assert re.search(r"^sentinel_target_up\{.*\} 1.0$", page, re.MULTILINE)
            assert re.search(r'^sentinel_incidents_total\{rule="cpu-spike",.*\} 1.0$', page, re.MULTILINE)
            # Until now only the machine may have delayed a tick; a request that hangs for 10 s would show as such.
            status = json.loads(next((tmp_path / "status").glob("*.json")).read_text())
            assert status["max_late"] < 2.0
            assert status["missed_ticks"] <= 1
            begin = time.monotonic()  # noqa: TID251 - a real process takes real time
            os.kill(agent.process.pid, signal.SIGTERM)
            assert agent.process.wait(30) == 0
            assert time.monotonic() - begin < 15  # noqa: TID251 - as above; 2 s and a busy machine
    left = {path.parts[-3] for path in (tmp_path / "export").rglob("*.batch")}
    assert left == {"away@otlp", "silent@otlp"}  # on disk for the next start


def test_requests_through_the_proxy_leave_as_spans_and_are_all_counted(tmp_path: Path) -> None:
    """A caller's sampled trace is continued to Zipkin; every request, sampled or not, is on the page and in OTLP."""
    with catching() as catcher:
        url = f"http://127.0.0.1:{catcher.port}"
        settings, listen = tmp_path / "agent.yaml", free_port()
        settings.write_text(f'exporters: {{zipkin: {{url: "{url}"}}, otlp: {{url: "{url}"}}}}\n')
        options = ("--workers", "1", "--agent-config", str(settings), "--listen", f"127.0.0.1:{listen}")
        with proxy(tmp_path, *options) as running:
            page = f"http://127.0.0.1:{listen}/metrics"
            until(lambda: listening(listen) and b"sentinel_target_up" in get(page), 30, "the agent's page")
            trace = f"{0xFEED:032x}"
            until(lambda: counted(get(page).decode()), 30, "the first counts")
            before = counted(get(page).decode())
            for number in range(20):
                request = urllib.request.Request(f"{running.url}/orders?number={number}")
                if number == 7:
                    request.add_header("traceparent", f"00-{trace}-{0xBEEF:016x}-01")
                urllib.request.urlopen(request, timeout=30).close()
                time.sleep(0.01)
            until(lambda: counted(get(page).decode()) >= before + 20, 30, "every request")
            spans = until(lambda: of_trace(catcher, trace), 30, "the trace")
            assert {(span["kind"], span["name"]) for span in spans} == {
                ("SERVER", "get everything"),
                ("CLIENT", "get back"),
            }
            server = next(span for span in spans if span["kind"] == "SERVER")
            assert server["parentId"] == f"{0xBEEF:016x}"
            assert server["tags"]["url.path"] == "/orders"
            until(
                lambda: b"http.server.request.duration" in b"".join(catcher.got.get("/v1/metrics", [])),
                30,
                "OTLP",
            )


def counted(page: str) -> float:
    """Requests of the route, by the page."""
    return sum(
        map(
            float,
            re.findall(r'^sentinel_proxy_requests_total\{.*route="everything".*\} (.+)$', page, re.MULTILINE),
        )
    )


def of_trace(catcher: Catcher, trace: str) -> list[dict[str, Any]]:
    """Zipkin's spans of a trace."""
    return [
        span
        for body in catcher.got.get("/api/v2/spans", [])
        for span in json.loads(body)
        if span["traceId"] == trace.removeprefix("0" * 16)
    ]
