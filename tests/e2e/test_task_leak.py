"""A leak of tasks beside a larger, steady crowd: the real agent, a real service, and what a person reads first."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.capture.targets import started

if TYPE_CHECKING:
    from pathlib import Path

SERVICE = """
import asyncio, sys
async def keep_alive(): await asyncio.sleep(3600)
async def audit_log(event): await event.wait()
async def main():
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    tasks = [asyncio.create_task(keep_alive()) for _ in range(3000)]
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    tasks += [asyncio.create_task(audit_log(event)) for _ in range(500)]
    await asyncio.sleep(3600)
asyncio.run(main())
"""
RULE = """
rules:
  - {name: leak, metric: tasks, trigger: {min: 100, diff: 10}, baseline: {kind: median, window: 60s}, warmup: 8, capture: [tasks]}
"""


@pytest.mark.e2e
def test_the_first_line_of_the_incident_names_the_leak_and_its_growth(tmp_path: Path) -> None:
    """3,000 tasks of one kind from the start, then 500 of another: its coroutine, line, what it waits on, and that there were none."""
    (tmp_path / "rules.yaml").write_text(RULE)
    words = [sys.executable, "-m", "sentinel_agent", "attach", "--json", "--listen", "off", "--for", "60s"]
    words += ["--data-dir", str(tmp_path), "--rules", str(tmp_path / "rules.yaml")]
    with started(sys.executable, "-c", SERVICE) as service:
        agent = subprocess.Popen([*words, str(service.pid)], stdout=subprocess.PIPE, text=True)
        try:
            assert agent.stdout is not None
            status = tmp_path / "status"
            while b'"keep_alive"' not in b"".join(file.read_bytes() for file in status.glob("[0-9]*.json")):
                assert agent.poll() is None
                time.sleep(0.1)
            time.sleep(8)  # the rule warms up
            assert service.stdin is not None
            service.stdin.write("\n")
            service.stdin.flush()
            incident = next(
                event["incident"]
                for event in map(json.loads, agent.stdout)
                if event["type"] == "incident_sealed"
            )
        finally:
            agent.terminate()
            agent.communicate(timeout=20)
    document = json.loads((tmp_path / "incidents" / incident["id"] / "tasks.json").read_bytes())
    first = document["groups"][0]
    assert (first["coroutine"], first["count"], first["was"]) == ("audit_log", 500, 0)
    assert document["compared_with"]["count"] == document["count"] - 500
    shown = subprocess.run(
        [*words[:3], "incidents", "show", incident["id"], "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    answer = shown.stdout.splitlines()[1]
    assert "500 of 3" in answer
    assert ", 0 before, are audit_log (<string>:4), waiting in Event.wait on Future" in answer
