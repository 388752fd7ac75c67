"""`top` beside real processes and a real agent: one frame, one document, and the screen of a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from fcntl import ioctl
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.clock import SystemClock
from sentinel_agent.profile import speedscope
from sentinel_agent.store.status import read_all
from tests.capture.targets import started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.support import CommandLine

CLOCK = SystemClock()
SERVICE = """
import asyncio
def crunch():
    for number in range(100_000):
        number * number
async def backend(): await asyncio.sleep(3600)
async def handler(): await backend()
async def main():
    keep = [asyncio.create_task(handler()) for _ in range(50)]
    print("ready", flush=True)
    while True:
        crunch()
        await asyncio.sleep(0.005)
asyncio.run(main())
"""


@contextmanager
def agent(data: Path, pid: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real agent beside the process; it has published its status when this yields."""
    words = ["attach", str(pid), "--data-dir", str(data), "--listen", "off", "--json"]
    process = subprocess.Popen([sys.executable, "-m", "sentinel_agent", *words], stdout=subprocess.DEVNULL)
    try:
        until(
            lambda: any(b'"handler"' in each.document for each in read_all(data, CLOCK.wall()) if each.alive)
        )
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = CLOCK.monotonic() + seconds
    while not condition():
        assert CLOCK.monotonic() < end, "it did not come"
        time.sleep(0.1)


@pytest.mark.e2e
def test_a_running_agents_targets_are_shown_without_a_second_reader(sentinel: CommandLine) -> None:
    """Its readings, stacks and task groups come out of its files; the document has them, the frame says them in words."""
    with started(sys.executable, "-c", SERVICE) as process, agent(sentinel.data, process.pid):
        until(lambda: (sentinel("top", "--json").document["targets"][0]["hot"] or {}).get("functions"))
        document = sentinel("top", "--json").document
        frame = sentinel("top", "--once").out
        only = sentinel("top", str(process.pid), "--json").document
    (target,) = document["targets"]
    assert target["pid"] == process.pid
    assert target["agent_pid"] != os.getpid()
    assert target["readings"]["tasks"] == 51
    assert target["tasks"]["groups"][0]["count"] == 50
    assert target["recent"]["cpu"]
    assert "crunch" in {each["function"] for each in target["hot"]["functions"]}
    assert "50 x handler in sleep" in frame
    assert [each["pid"] for each in only["targets"]] == [process.pid]


@pytest.mark.e2e
def test_by_itself_it_watches_and_leaves_nothing(sentinel: CommandLine) -> None:
    """No agent runs: the process is watched by an agent of its own, whose files go with it (the leak guard looks)."""
    with started(sys.executable, "-c", SERVICE) as process:
        document = sentinel("top", str(process.pid), "--json").document
    assert document["targets"][0]["readings"]["tasks"] == 51
    assert document["incidents"] == []
    assert not sentinel.data.exists() or not list(sentinel.data.glob("incidents/*"))


def test_without_an_agent_and_a_pid_it_says_what_to_do(sentinel: CommandLine) -> None:
    done = sentinel("top", check=3)
    assert "no agent runs" in done.err
    assert "sentinel-agent top PID" in done.err


@pytest.mark.e2e
def test_a_dump_by_hand_has_what_the_agent_recorded_before(sentinel: CommandLine) -> None:
    """The agent watches for 5 s; a dump of another process then holds more than 3 s of stacks from before it was asked for."""
    with started(sys.executable, "-c", SERVICE) as process, agent(sentinel.data, process.pid):
        time.sleep(5)
        began = CLOCK.wall()
        incident = sentinel("dump", str(process.pid), "--capture", "stacks,tasks", "--json").document
    folder = sentinel.data / "incidents" / incident["id"]
    record, _ = speedscope.decode_timeline((folder / "stacks.speedscope.json").read_bytes())
    before = [sample for sample in record.samples if record.start + sample.offset < began]
    assert sum(sample.weight for sample in before) > 3
    assert "crunch" in {record.frames[index].function for sample in before for index in sample.stack}
    assert {report["kind"]: report["status"] for report in incident["captures"]}["tasks"] == "ok"
    assert (
        sentinel("incidents", "show", incident["id"]).out.count("50 x handler") == 2
    )  # the group, where it comes from


@pytest.mark.e2e
def test_on_a_terminal_it_draws_answers_keys_and_leaves_the_terminal_as_it_was(sentinel: CommandLine) -> None:
    """80 by 24 on a real pseudo-terminal: a frame, `p` pauses, a new size is drawn, `q` ends with 0, the modes are restored."""
    with started(sys.executable, "-c", SERVICE) as process, agent(sentinel.data, process.pid):
        ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        before = termios.tcgetattr(theirs)
        words = [sys.executable, "-m", "sentinel_agent", "top", "--data-dir", str(sentinel.data)]
        top = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=os.environ | {"TERM": "xterm"}
        )
        try:
            assert b"sentinel-agent top" in read_until(ours, b"q quit")
            os.write(ours, b"p")
            read_until(ours, b"PAUSED")
            ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
            top.send_signal(signal.SIGWINCH)
            read_until(ours, b"LAST MINUTES")
            os.write(ours, b"q")
            read_until(ours, b"\x1b[?1049l")
            assert top.wait(20) == 0
            assert termios.tcgetattr(theirs) == before
        finally:
            top.kill()
            top.communicate()
            os.close(ours)
            os.close(theirs)


def read_until(descriptor: int, words: bytes, seconds: float = 30.0) -> bytes:
    found, end = b"", CLOCK.monotonic() + seconds
    while words not in found:
        ready, _, _ = select.select([descriptor], [], [], 1.0)
        assert CLOCK.monotonic() < end, found[-2000:]
        if ready:
            found += os.read(descriptor, 65536)
    return found
