"""A real Prometheus scrapes the page; promtool has no remarks."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sentinel_agent.clock import SystemClock
from sentinel_agent.core.event import IncidentSealed
from sentinel_agent.export.base import AgentReading
from sentinel_exporters.prometheus import Options, PrometheusExporter
from tests.export.support import NOW, group, readings
from tests.exporters.support import context, free_port, incident
from tests.needs import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


CLOCK = SystemClock()


def filled(now: float) -> PrometheusExporter:
    view = PrometheusExporter(Options(), context())
    view.observe(readings(now, cpu=42.0, rss=5e7, tasks=17.0, loop_stall=0.2))
    view.observe(group(0xABC, at=now))
    view.observe(IncidentSealed(now, incident(time=now), "folder"))
    view.observe(
        AgentReading(
            now, {"cpu_ratio": 0.01, "samples_whole": 3.0}, (("cpu-spike", "gateway/host-1/main", "firing"),)
        )
    )
    return view


@contextmanager
def page_server(view: PrometheusExporter) -> Iterator[int]:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content_type, body = view.render(self.headers.get("Accept"))
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n"
        f"- {{job_name: sentinel, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}\n"
    )
    port = free_port()
    server = subprocess.Popen(
        [
            program("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
            "--log.level=error",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def ask(url: str, path: str, **query: Any) -> Any:
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        return json.load(answer)["data"]


def ask_until_there(url: str, path: str, **query: Any) -> Any:
    """Ask for up to a minute: the server starts, scrapes, and has it."""
    end = CLOCK.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            found = ask(url, path, **query)
            if found and (path != "query" or found["result"]):
                return found
        assert CLOCK.monotonic() < end, f"{path} {query}: nothing within a minute"
        time.sleep(0.2)


def test_promtool_has_no_remarks() -> None:
    """Names, types, units and help are as Prometheus wants them."""
    promtool = program("promtool")
    text = filled(NOW).render(None)[1]
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, "", "")


def test_a_real_prometheus_has_values_and_exemplars(tmp_path: Path) -> None:
    """It negotiates OpenMetrics, stores the readings, and gives the trace and the incident back as exemplars."""
    program("prometheus")
    now = CLOCK.wall()
    with page_server(filled(now)) as target, prometheus(tmp_path, target) as url:
        up = ask_until_there(url, "query", query="sentinel_target_up")
        (series,) = up["result"]
        assert series["metric"]["target"] == "gateway/host-1/main"
        assert series["metric"]["service"] == "gateway"
        for query, value in (
            ("sentinel_target_cpu_ratio", 0.42),
            ("sentinel_target_rss_bytes", 5e7),
            ("sentinel_incidents_total", 1),
            ("sentinel_http_server_request_duration_seconds_count", 1),
            ('sentinel_rule_state{state="firing"}', 1),
        ):
            (series,) = ask(url, "query", query=query)["result"]
            assert float(series["value"][1]) == value
        window = {"start": now - 600, "end": now + 600}
        found = ask_until_there(
            url, "query_exemplars", query="sentinel_http_server_request_duration_seconds_bucket", **window
        )
        assert found[0]["exemplars"][0]["labels"] == {"trace_id": f"{0xABC:032x}"}
        (linked,) = ask(url, "query_exemplars", query="sentinel_incidents_total", **window)
        assert linked["exemplars"][0]["labels"] == {"incident_id": incident().id}
    shutil.rmtree(tmp_path / "tsdb", ignore_errors=True)
