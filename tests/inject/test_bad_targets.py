"""Targets in a bad state, with every capture asked for and allowed: no crash, no hang, a reason for what was not done, the light evidence saved."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.capture.base import Series, SeriesWindow
from sentinel_agent.capture.registry import load_captures
from sentinel_agent.capture.runner import CaptureRunner
from sentinel_agent.config.settings import CaptureSettings
from sentinel_agent.core.rule import CaptureSpec
from tests.capture.targets import target_of
from tests.inject.targets import IDLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sentinel_agent.core.model import CaptureReport

LIGHT = ("process", "series")
KINDS = ("process", "stacks", "tasks", "heap", "gc", "tracemalloc")
SLOW = 100.0  # seconds: each capture ends by itself long before
STATES = {"asleep": "S", "runs": "R", "stopped": "T", "uninterruptible": "D"}


@dataclass(frozen=True)
class Row:
    """A bad state: the program that is in it, what is expected of each capture, and its state in `/proc` before and after."""

    program: str
    expected: dict[str, str]
    state: str = "asleep"
    rss_limit: float = 20.0
    after: Callable[[subprocess.Popen[bytes]], None] = field(default=lambda _: None)


def _once_it_runs(code: str) -> str:
    """The idle service, with `code` run in it before it says `ready`."""
    return IDLE.format(before="").replace("    print(", f"    exec({code!r})\n    print(")


def _expected(words: str, *kinds: str) -> dict[str, str]:
    return dict.fromkeys(kinds or ("gc", "tracemalloc"), words)


FIFO = "/tmp/sentinel-agent-test-{pid}.fifo"
# A child that opens a pipe before it becomes another program: until then its parent is in vfork(2)'s sleep, with the GIL.
VFORK = """
import os
path = "/tmp/sentinel-agent-test-%d.fifo" % os.getpid()
os.mkfifo(path)
print("ready", flush=True)
os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, path, os.O_RDONLY, 0)])
"""
HOSTILE = (
    "class Bad:\n    def __getattr__(self, name): raise SystemExit\n"
    "for name in ('time', 'gc', 'posix', '_tracemalloc', '_collections', 'itertools', 'asyncio', 'memray'): sys.modules[name] = Bad()"
)
TRACED = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
assert libc.ptrace(0x4206, int(sys.argv[1]), None, None) == 0  # PTRACE_SEIZE: the target goes on
print("ready", flush=True)
sys.stdin.read()
"""
ROWS = {
    "uninterruptible": Row(VFORK, _expected("uninterruptible sleep"), "uninterruptible"),
    "stopped": Row(
        IDLE.format(before=""),
        _expected("is stopped"),
        "stopped",
        after=lambda process: process.send_signal(signal.SIGSTOP),
    ),
    "holds the GIL": Row(
        "print('ready', flush=True); sum(range(10**13))", _expected("no safe moment"), "runs"
    ),
    "no descriptor left": Row(
        _once_it_runs("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))"), {}
    ),
    "at 95% of its limit": Row(IDLE.format(before=""), _expected("rss_limit is 95"), rss_limit=95.0),
    "hostile sys.modules": Row(_once_it_runs(HOSTILE), {}),
    "empty sys.modules": Row(_once_it_runs("sys.modules = {}"), {}),
    "tracemalloc is on": Row(IDLE.format(before="tracemalloc.start(5)"), {}),
}


async def _reports(pid: int, folder: Path, rss_limit: float) -> dict[str, CaptureReport]:
    now = time.time()  # noqa: TID251 - the readings' guard asks how old they are
    values = {"rss_limit": rss_limit, "cpu": 5.0}
    readings = {name: Series("percent", [now], [value]) for name, value in values.items()}
    window = SeriesWindow(now - 1, now, 1.0, readings)
    runner = CaptureRunner(
        load_captures(), CaptureSettings(allow_injection=True, max_pause=1.0, concurrency=4)
    )
    specs = [CaptureSpec(kind, duration=0.3) for kind in KINDS]
    folder.mkdir(parents=True)
    done = await runner.run(target_of(pid), specs, folder=folder, trigger_time=now, series=lambda: window)
    return {report.kind: report for report in done.reports}


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _comes_to(pid: int, state: str) -> bool:
    """Whether it is seen in the state within some seconds; one that waits now and then runs for a moment."""
    end = time.monotonic() + 10  # noqa: TID251 - a real process
    while time.monotonic() < end:  # noqa: TID251 - as above
        if _state(pid) == state:
            return True
        time.sleep(0.01)
    return False


@contextlib.contextmanager
def _in_state(row: Row) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", row.program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        row.after(process)
        assert _comes_to(process.pid, STATES[row.state])
        yield process
    finally:
        process.kill()
        fifo = Path(FIFO.format(pid=process.pid))
        if fifo.exists():  # the child that waits for it goes on, and ends
            with contextlib.suppress(OSError):
                os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
            fifo.unlink()
        process.communicate()


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
async def test_a_bad_state_costs_no_evidence_that_can_be_had(row: Row, tmp_path: Path) -> None:
    """What cannot be done says why, the light files are there, and the target is afterwards as it was."""
    with _in_state(row) as process:
        reports = await asyncio.wait_for(_reports(process.pid, tmp_path / "incident", row.rss_limit), SLOW)
        assert _comes_to(process.pid, STATES[row.state])
        assert process.poll() is None
    assert {kind: reports[kind].status for kind in LIGHT} == dict.fromkeys(LIGHT, "ok")
    assert (tmp_path / "incident" / "process.json").stat().st_size > 500
    assert [report.kind for report in reports.values() if report.status == "timeout"] == []
    assert [report.kind for report in reports.values() if report.status != "ok" and not report.reason] == []
    for kind, words in row.expected.items():
        assert reports[kind].status in ("failed", "skipped")
        assert words in reports[kind].reason
    read_only = [reports[kind].status for kind in ("stacks", "heap")]
    assert read_only == ["ok", "ok"], reports


async def test_a_debugger_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    """Nothing is run in the target, by the reason's pid; all that only reads is saved."""
    with _in_state(Row(IDLE.format(before=""), {})) as process:
        with subprocess.Popen(
            [sys.executable, "-c", TRACED, str(process.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as tracer:
            assert tracer.stdout
            assert tracer.stdout.readline() == b"ready\n"
            reports = await _reports(process.pid, tmp_path / "incident", 20.0)
            for kind in ("gc", "tracemalloc"):
                assert f"process {tracer.pid} traces the target" in reports[kind].reason
            assert {reports[kind].status for kind in ("process", "series", "stacks", "tasks", "heap")} == {
                "ok"
            }
            assert tracer.stdin
            tracer.stdin.close()
        assert _comes_to(process.pid, "S")


async def test_two_agents_at_once_each_save_what_they_can(tmp_path: Path) -> None:
    """Both take everything of one target at one time; each report has a result or a reason, and the target goes on."""
    with _in_state(Row(IDLE.format(before=""), {})) as process:
        both = await asyncio.gather(
            *(_reports(process.pid, tmp_path / name, 20.0) for name in ("one", "two"))
        )
        for reports in both:
            assert {reports[kind].status for kind in ("process", "series", "stacks", "tasks", "heap")} == {
                "ok"
            }
            assert all(report.status == "ok" or report.reason for report in reports.values())
        again = await _reports(process.pid, tmp_path / "three", 20.0)
        assert {report.status for report in again.values()} == {"ok"}


@pytest.mark.e2e
def test_without_the_right_to_ptrace_the_light_evidence_is_saved_with_the_remedy(tmp_path: Path) -> None:
    """In a container whose seccomp profile refuses the reading calls: what `/proc` says is there, each other capture names the capability."""
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip(f"the numbers of the system calls of {platform.machine()} are not known here")
    with _in_state(Row(IDLE.format(before=""), {})) as process:
        done = subprocess.run(
            [
                *(sys.executable, str(Path(__file__).with_name("without_ptrace.py")), sys.executable),
                *("-m", "sentinel_agent", "dump", str(process.pid), "--capture", ",".join(KINDS)),
                *("--allow-injection", "--json", "--data-dir", str(tmp_path)),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert process.poll() is None
    incident = json.loads(done.stdout)
    reports = {each["kind"]: each for each in incident["captures"]}
    assert {reports.pop(kind)["status"] for kind in LIGHT} == {"ok"}
    assert all("CAP_SYS_PTRACE" in each["reason"] for each in reports.values())
    assert {each["name"] for each in incident["artifacts"]} == {
        "process.json",
        "series.json",
        "findings.json",
    }
