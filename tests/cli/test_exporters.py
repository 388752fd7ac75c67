"""`exporters` and `exporters test`: what is listed with and without an agent, and what a backend's answer looks like."""

from __future__ import annotations

import http.server
import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.cli import exporters as module
from sentinel_agent.export.base import LineStatus, Loss
from sentinel_agent.status import AgentStatus
from sentinel_agent.store.status import Status
from tests.cli.support import HOSTILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

    from tests.cli.support import CommandLine


@contextmanager
def server(status: int) -> Iterator[tuple[str, list[bytes]]]:
    """An HTTP server that answers so; its URL and what it got."""
    got: list[bytes] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}", got
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "sentinel.yaml"
    path.write_text(f"exporters:\n{text}\n")
    return str(path)


def test_without_an_agent_it_lists_what_is_configured(sentinel: CommandLine, tmp_path: Path) -> None:
    """Each signal is a row; the page for Prometheus sends nothing and is none."""
    path = config(
        tmp_path, "  z: {kind: zipkin, url: 'http://127.0.0.1:1', signals: [spans]}\n  prometheus: {}"
    )
    (row,) = sentinel("exporters", "--json", "--config", path).document
    assert (row["exporter"], row["kind"], row["signal"], row["agent_pid"]) == ("z", "zipkin", "spans", None)
    assert "no agent" in sentinel("exporters", "--config", path).out


def test_with_an_agent_it_says_what_was_lost(sentinel: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """State, error and the stretch of time of each loss; whatever a backend said, it cannot reach the terminal raw."""
    line = LineStatus(
        "trace", "zipkin", "spans", "retrying", 5, 1, 2, 300, 200, {"spool_full": 7},
        (Loss("spool_full", 7, 1_700_000_000.0, 1_700_000_060.0),), last_error=HOSTILE,
    )  # fmt: skip
    document = msgspec.convert(
        {
            "pid": 7, "version": "1", "started": 0.0, "time": 0.0, "command": [], "targets": [], "rules": [],
            "states": [], "states_left_out": 0, "metrics": [], "capture_kinds": [], "reload_error": None, "ticks": 0,
            "missed_ticks": 0, "max_late": 0.0, "incidents_sealed": 0, "incidents_lost": 0, "last_lost": "",
            "cpu_ratio": 0.0, "troubles": {}, "exporters": [msgspec.to_builtins(line)],
        },
        AgentStatus,
    )  # fmt: skip
    monkeypatch.setattr(
        module, "read_all", lambda *_: [Status(msgspec.json.encode(document), True), Status(b"{}", True)]
    )
    done = sentinel("exporters")
    assert "retrying" in done.out
    assert "trace spans: 7 lost (spool_full), from 2023-11-1" in done.out
    assert "another version" in done.err
    (row,) = sentinel("exporters", "--json").document
    assert row["lost"] == {"spool_full": 7}
    assert row["agent_pid"] == 7


def test_a_test_sends_one_of_each_signal(sentinel: CommandLine, tmp_path: Path) -> None:
    """What was sent is marked as a test, and the server's words are shown; it ends with 0."""
    with server(202) as (url, got):
        path = config(tmp_path, f"  zipkin: {{url: '{url}'}}")
        answers = sentinel("exporters", "test", "zipkin", "--json", "--config", path).document
    assert [(each["signal"], each["taken"], each["answer"]) for each in answers] == [
        ("spans", True, "202 Accepted"),
        ("events", True, "202 Accepted"),
    ]
    assert all(json.loads(body)[0]["localEndpoint"]["serviceName"] == "sentinel-agent-test" for body in got)


def test_every_kind_can_be_tried(sentinel: CommandLine, tmp_path: Path) -> None:
    """Also those that send files of an incident; a refusal ends with 1 and says whose fault it is."""
    with server(401) as (url, _):
        path = config(
            tmp_path,
            f"  webhook: {{url: '{url}'}}\n  pyroscope: {{url: '{url}'}}\n  otlp: {{url: '{url}'}}\n"
            "  skywalking: {address: '127.0.0.1:1'}\n  prometheus: {}\n"
            f"  s3: {{url: 's3://b', endpoint: '{url}', access_key: a, secret_key: b}}",
        )
        for name in ("webhook", "pyroscope", "otlp"):
            assert (
                "refused: 401 Unauthorized"
                in sentinel("exporters", "test", name, "--config", path, check=1).out
            )
        assert (
            "Connection refused" in sentinel("exporters", "test", "skywalking", "--config", path, check=1).out
        )
        sentinel("exporters", "test", "s3", "--config", path, check=1)
    assert "series" in sentinel("exporters", "test", "prometheus", "--config", path).out


def test_what_cannot_be_tried(sentinel: CommandLine, tmp_path: Path) -> None:
    """A name that is not configured, one that cannot be made, and options in the wrong place: each with the remedy."""
    path = config(tmp_path, "  webhook: {url: 'http://127.0.0.1:1', secret: 'env:NOT_THERE'}")
    assert "known: webhook" in sentinel("exporters", "test", "other", "--config", path, check=2).err
    assert "NOT_THERE" in sentinel("exporters", "test", "webhook", "--config", path, check=2).err
    misplaced = sentinel("exporters", "--config", path, "test", "webhook", check=2, place=False)
    assert "options stand after the verb" in misplaced.err
    assert "No exporter sends anything" in sentinel("exporters").out
