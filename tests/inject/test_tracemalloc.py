"""The tracemalloc capture on live services: what it finds, what it leaves behind, and when it is refused."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from sentinel_agent.capture.tracemalloc import TracemallocCapture, TracemallocDocument
from sentinel_agent.core.rule import CaptureSpec
from sentinel_agent.errors import NotAllowedError, TargetError
from sentinel_agent.findings.judge import judge
from tests.capture.targets import plan_for, target_of
from tests.cpython.conftest import MINORS, packages_of, python_of, within
from tests.findings.facts import facts
from tests.inject.targets import IDLE, plan_of, running

if TYPE_CHECKING:
    import subprocess

SERVICE = Path(__file__).with_name("leaking_service.py")
LEAK_LINE = 19
MIB = 1024**2


def plan(pid: int, folder: Path, seconds: float = 1.5, rss_limit: float = 20.0, **changes: Any) -> Any:
    return plan_of("tracemalloc", pid, folder, seconds, rss_limit, **changes)


def document_in(folder: Path) -> TracemallocDocument:
    return msgspec.json.decode((folder / "tracemalloc.json").read_bytes(), type=TracemallocDocument)


def counters(process: subprocess.Popen[str]) -> tuple[int, int]:
    """The next line of the service: it goes on serving."""
    assert process.stdout
    requests, kept = process.stdout.readline().split()
    return int(requests), int(kept)


@pytest.mark.parametrize("minor", MINORS)
async def test_the_top_finding_names_the_leaking_line_and_its_size(minor: int, tmp_path: Path) -> None:
    """A service that keeps 24 MiB while it is traced: the first finding has its line, the size is right within 15%."""
    python = python_of(minor)
    with running(str(python), within(python, SERVICE), "24") as process:
        result = await TracemallocCapture().capture(plan(process.pid, tmp_path, 2.5))
        document = document_in(tmp_path)
        before = counters(process)
        while counters(process)[0] < before[0] + 100:
            pass
        state = Path(f"/proc/{process.pid}/stat").read_text().split()[2]
    assert state in "RS"
    top = judge(facts("rss", allocations=document)).findings[0]
    assert top.subject.endswith(f"leaking_service.py:{LEAK_LINE}")
    assert top.subject in top.text
    told = re.search(r"([\d.]+) MiB (?:more|of it)", top.text)
    assert told
    assert float(told[1]) == pytest.approx(24, rel=0.15)
    grown = next(line.bytes for line in document.lines if line.line == LEAK_LINE)
    assert grown == pytest.approx(24 * MIB, rel=0.15)
    assert (document.was_on, document.ended_by) == (False, "time")
    assert result.gil_hold_us > 0
    assert result.gil_hold_us == max(document.holds_us.values())
    assert document.injection.way == ("remote_exec" if minor >= 14 else "hypno")
    assert (result.pause_us > 0) == (minor < 14)


async def test_a_service_on_uvloop_is_traced_too(tmp_path: Path) -> None:
    """Its loop waits in libuv, in the same system call."""
    python = python_of(11)
    environment = os.environ | {"PYTHONPATH": packages_of(python)}
    with running(str(python), str(SERVICE), "8", "uvloop", env=environment) as process:
        await TracemallocCapture().capture(plan(process.pid, tmp_path))
        assert document_in(tmp_path).lines[0].line == LEAK_LINE
        counters(process)


async def test_tracing_that_was_on_stays_on(tmp_path: Path) -> None:
    """It is somebody else's: it is neither started nor stopped, and the document says so."""
    with running(sys.executable, "-c", IDLE.format(before="tracemalloc.start(3)")) as process:
        result = await TracemallocCapture().capture(plan(process.pid, tmp_path, 0.3))
        first = document_in(tmp_path)
        await TracemallocCapture().capture(plan(process.pid, tmp_path, 0.3))
        assert first.was_on
        assert document_in(tmp_path).was_on
        assert "stays on" in result.note


MANY = """
import asyncio, tracemalloc
kept = []
async def main():
    print("ready", flush=True)
    while True:
        if tracemalloc.is_tracing():
            kept.extend([object() for _ in range(2000)])
        await asyncio.sleep(0.001)
asyncio.run(main())
"""


async def test_it_ends_early_rather_than_hold_the_gil_for_longer_than_the_cap(tmp_path: Path) -> None:
    """A service that makes a million objects a second: with a cap of 20 ms the tracing of 10 s is over in a moment."""
    with running(sys.executable, "-c", MANY) as process:
        result = await TracemallocCapture().capture(
            plan(process.pid, tmp_path, 10.0, max_pause=0.02, deadline=30.0)
        )
        assert document_in(tmp_path).ended_by == "hold"
        assert document_in(tmp_path).seconds < 5
        assert "ended early" in result.note


async def test_without_permission_nothing_is_run(tmp_path: Path) -> None:
    """The remedy is named."""
    with running(sys.executable, "-c", IDLE.format(before="")) as process:
        with pytest.raises(NotAllowedError) as caught:
            await TracemallocCapture().capture(plan(process.pid, tmp_path, allow_injection=False))
        assert "allow_injection" in (caught.value.hint or "")


async def test_near_the_memory_limit_nothing_is_run(tmp_path: Path) -> None:
    """At 92% tracing could be what kills the target; where it is not known how near it is, neither."""
    with running(sys.executable, "-c", IDLE.format(before="")) as process:
        with pytest.raises(TargetError, match="92% of its memory limit"):
            await TracemallocCapture().capture(plan(process.pid, tmp_path, rss_limit=92.0))
        bare = plan_for(target_of(process.pid), tmp_path, CaptureSpec("tracemalloc"), allow_injection=True)
        with pytest.raises(TargetError, match="not known"):
            await TracemallocCapture().capture(bare)


FORKING = """
import os, sys, time, tracemalloc
print("ready", flush=True)
while not tracemalloc.is_tracing():
    time.sleep(0.005)
pid = os.fork()
if pid == 0:
    os.write(1, b"%d\\n" % tracemalloc.is_tracing())
    os._exit(0)
os.waitpid(pid, 0)
while True:
    time.sleep(0.01)
"""


async def test_a_child_that_is_forked_meanwhile_is_not_traced_for_ever(tmp_path: Path) -> None:
    """Nobody would stop it in the child: it stops when it is born."""
    with running(sys.executable, "-c", FORKING) as process:
        await TracemallocCapture().capture(plan(process.pid, tmp_path, 1.0))
        assert process.stdout
        assert process.stdout.readline() == "0\n"
