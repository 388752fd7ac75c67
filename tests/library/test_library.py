"""`sentinel_agent.start()` from inside a service: it watches, and whatever happens to it, the service is none the worse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import sentinel_agent
from sentinel_agent import library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLEEPER = ["/bin/sh", "-c", "exec sleep 60"]


def until(true: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds  # noqa: TID251 - real processes are waited for
    while not true():
        assert time.monotonic() < end, "it did not happen in time"  # noqa: TID251 - as above
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Each test begins and ends without a watcher."""
    library._current = None
    yield
    if library._current is not None:
        library._current.stop()
        library._current = None
    until(lambda: not any(thread.name.startswith("sentinel-agent-") for thread in _threads()))


def _threads() -> list[Any]:
    import threading  # noqa: PLC0415

    return threading.enumerate()


def test_importing_the_package_loads_nothing() -> None:
    """No module but its own, and `__future__`."""
    code = "import sys; before = set(sys.modules); import sentinel_agent; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(eval(done.stdout)) <= {"sentinel_agent", "__future__"}


def test_start_and_stop_are_idempotent() -> None:
    """A second start gives the first one's watcher; a second stop does nothing; after a stop it starts anew."""
    watcher = sentinel_agent.start(command=SLEEPER, rules=[])
    assert watcher.running
    assert sentinel_agent.start(command=["/nowhere"]) is watcher
    folder = Path(watcher._folder)
    assert folder.is_dir()
    watcher.stop()
    watcher.stop()
    assert not watcher.running
    assert not psutil.pid_exists(watcher.pid or 0)
    assert not folder.exists()
    assert sentinel_agent.start(command=SLEEPER) is not watcher


def test_a_service_starts_without_the_agents_program() -> None:
    """Nothing is raised; the error says what is missing."""
    watcher = sentinel_agent.start(command=["/nowhere/sentinel-agent"])
    assert not watcher.running
    assert "No such file" in watcher.error
    watcher.set_rules([{"name": "x"}])
    assert watcher.dump(wait=True) is None
    watcher.stop()


def test_an_agent_that_fails_at_once_is_told_with_its_words() -> None:
    """What it wrote last and its status are the error; a broken rule of the caller is one such case."""
    watcher = sentinel_agent.start(command=["/bin/sh", "-c", "echo broken >&2; exit 3"])
    until(lambda: not watcher.running)
    until(lambda: "broken" in watcher.error)
    assert "status 3" in watcher.error


def test_rules_that_cannot_be_written_cost_nothing() -> None:
    """They are left out."""
    bad: Any = [{"name": object()}]
    watcher = sentinel_agent.start(command=SLEEPER, rules=bad)
    assert watcher.running
    watcher.set_rules(bad)


def test_killing_the_agent_leaves_no_zombie_and_it_can_be_started_again() -> None:
    """`kill -9`: its exit status is taken, `error` says how it ended."""
    watcher = sentinel_agent.start(command=SLEEPER)
    assert watcher.pid
    os.kill(watcher.pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(watcher.pid or 0))
    until(lambda: "-9" in watcher.error)
    assert sentinel_agent.start(command=SLEEPER).running


def test_a_thousand_starts_and_stops_leak_nothing() -> None:
    """No descriptor, child, thread or folder is left."""
    me = psutil.Process()
    sentinel_agent.start(command=SLEEPER).stop()
    before = me.num_fds()
    for _ in range(1000):
        sentinel_agent.start(command=["/bin/sh", "-c", "exec sleep 60"]).stop()
    until(lambda: me.num_fds() <= before)
    assert not me.children()


FORKS = """
import os, sys, sentinel_agent
watcher = sentinel_agent.start(command=["/bin/sh", "-c", "exec sleep 60"])
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        again = sentinel_agent.start(command=["/bin/sh", "-c", "exec sleep 60"])
        again.stop()
        os._exit(0 if again.pid == watcher.pid and again.running else 7)
    children.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children], watcher.running)
watcher.stop()
print(watcher.running)
"""


def test_forked_workers_share_the_watcher_of_their_parent_and_cannot_end_it() -> None:
    """Four workers: each gets the one that runs, and its stop does nothing."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n")[:2] == ["[0, 0, 0, 0] True", "False"]
    assert done.stderr == ""


SERVICE = """
import asyncio, sys, sentinel_agent
async def main():
    watcher = sentinel_agent.start(service="shop", instance="blue", data_dir=sys.argv[1], rules=[
        {"name": "any-task", "metric": "tasks", "trigger": {"abs": 20}, "capture": ["tasks"]},
    ])
    print(watcher.pid, flush=True)
    tasks = [asyncio.create_task(asyncio.sleep(60)) for _ in range(30)]
    loop = asyncio.get_running_loop()
    line = await loop.run_in_executor(None, sys.stdin.readline)
    print(await asyncio.to_thread(watcher.dump, "tasks", wait=True), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    while watcher.running: await asyncio.sleep(0.01)  # its exit status is just being taken
    print("killed" if "-9" in watcher.error else watcher.error, flush=True)
    watcher = sentinel_agent.start(service="shop", data_dir=sys.argv[1])
    print(watcher.pid, flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    watcher.stop()
    print("served on", watcher.error, flush=True)
    for task in tasks: task.cancel()
asyncio.run(main())
"""


@pytest.mark.e2e
def test_a_service_is_watched_by_the_real_agent_and_dumps_itself(tmp_path: Path) -> None:
    """Its rule fires on it, `dump` gives an incident; after `kill -9` of the agent it serves on, knows, and may start another."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin
        assert process.stdout
        agent = int(process.stdout.readline())
        assert psutil.Process(agent).ppid() == process.pid
        until(lambda: any((tmp_path / "incidents").glob("2*/tasks.json")), 60)
        process.stdin.write("dump\n")
        process.stdin.flush()
        incident = process.stdout.readline().strip()
        assert (tmp_path / "incidents" / incident / "tasks.json").exists()
        saved = json.loads((tmp_path / "incidents" / incident / "incident.json").read_bytes())
        assert (saved["target"]["service"], saved["target"]["instance"]) == ("shop", "blue")
        os.kill(agent, signal.SIGKILL)
        until(lambda: not psutil.pid_exists(agent))  # no zombie either
        process.stdin.write("killed?\n")
        process.stdin.flush()
        assert process.stdout.readline() == "killed\n"
        agent = int(process.stdout.readline())
        assert psutil.Process(agent).ppid() == process.pid
        process.stdin.write("stop\n")
        process.stdin.flush()
        assert process.stdout.readline() == "served on \n"
        assert process.wait(20) == 0
        until(lambda: not psutil.pid_exists(agent))
    finally:
        process.kill()
        process.communicate()
