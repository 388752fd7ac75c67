"""The real agent beside a process whose functions and files have hostile names: Grafana's API, live and saved, and the page."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from tests import needs
from tests.e2e.support import attached, free_port, get, listening, started, until
from tests.profile.records import HOSTILE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

CPU = "process_cpu:cpu:nanoseconds:cpu:nanoseconds"
# A chain of functions, each with a hostile name in a file of that name; the last one is busy.
TARGET = """
import json, sys, types
names = json.loads(sys.stdin.readline())
def burn():
    while True:
        sum(range(1000))
def call(inner):
    return inner()
chain = burn
for name in names:
    code = call.__code__.replace(co_name=name, co_qualname=name, co_filename=name) if sys.version_info >= (3, 11) else call.__code__.replace(co_name=name, co_filename=name)
    chain = (lambda step, inner: lambda: step(inner))(types.FunctionType(code, globals()), chain)
print("ready", flush=True)
chain()
"""


def ask(port: int, method: str, **request: Any) -> Any:
    """A call as Drilldown makes it."""
    call = urllib.request.Request(
        f"http://127.0.0.1:{port}/querier.v1.QuerierService/{method}",
        json.dumps(request).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(call, timeout=30) as answer:
        return json.load(answer)


def names_of(reply: Any) -> set[str]:
    """The functions in a flame graph."""
    return {name.split(" (")[0] for name in reply.get("flamegraph", {"names": []})["names"]}


def capture(port: int, pid: int) -> str:
    """Have an incident made by hand; its id."""
    body = json.dumps({"pid": pid, "captures": ["stacks", "tasks", "process"]}).encode()
    call = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/v1/captures", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(call, timeout=30) as answer:
        where = answer.headers["Location"]

    def done() -> Any:
        job = json.loads(get(f"http://127.0.0.1:{port}{where}"))
        assert job["state"] in {"running", "done"}, job
        return job["incident"]

    incident: str = until(done, 60, "the capture")
    return incident


def shown(port: int, incident: str) -> tuple[str, list[str]]:
    """The words of the incident's page in Chromium, and what of it was executed or complained of."""
    trouble: list[str] = []
    with import_module("playwright.sync_api").sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=needs.program("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        for event in ("console", "pageerror", "dialog"):
            page.on(event, lambda found, event=event: trouble.append(f"{event}: {found}"))
        page.goto(f"http://127.0.0.1:{port}/#/incidents/{incident}")
        page.locator(".flame canvas").wait_for(timeout=60_000)
        words: str = page.locator("main").inner_text()
        browser.close()
    return words, trouble


@pytest.mark.timeout(240)
def test_hostile_names_of_a_real_process(tmp_path: Path) -> None:
    """Live ("last 15 minutes", no incident yet) and saved: every name arrives, as text; in the page nothing runs."""
    names = [name for name in HOSTILE if name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    port = free_port()
    with started((sys.executable, "-c", TARGET), **pipes) as target:
        assert target.stdin is not None
        assert target.stdout is not None
        target.stdin.write(json.dumps(names) + "\n")
        target.stdin.flush()
        assert target.stdout.readline() == "ready\n"
        with attached(
            str(target.pid), "--listen", f"127.0.0.1:{port}", data_dir=tmp_path, config="rules: []"
        ):
            until(lambda: listening(port), 30, "the agent's port")
            now = time.time() * 1000  # noqa: TID251 - real processes take real time
            last = {"start": round(now - 900_000), "end": round(now + 60_000)}
            query = {"profileTypeID": CPU, "labelSelector": f'{{pid="{target.pid}"}}', **last}
            until(
                lambda: "burn" in names_of(ask(port, "SelectMergeStacktraces", **query)), 60, "a flame graph"
            )
            assert ask(port, "LabelValues", name="dump_id", matchers=["{}"])["names"] == []
            incident = capture(port, target.pid)
            saved = query | {"labelSelector": f'{{dump_id="{incident}"}}'}
            for found in (
                names_of(ask(port, "SelectMergeStacktraces", **query)),
                names_of(ask(port, "SelectMergeStacktraces", **saved)),
            ):
                assert {"burn", "<script>alert(1)</script>", "\\x00", "a;b"} <= found
                assert any(name.startswith("\\u202e") for name in found)
                assert any(name.startswith("x" * 1000) for name in found)
                assert all(name.isprintable() for name in found)
            words, trouble = shown(port, incident)
    assert trouble == []
    assert "<script>alert(1)</script>" in words
    assert not {"\0", "\u202e", "\x1b"} & set(words)
