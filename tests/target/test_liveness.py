"""The end of a target is seen at once, with its status, and is never mixed up with another process."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.core.model import TargetId
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.target.identity import identify
from sentinel_agent.target.liveness import ExitWatch, is_running
from tests.target.fakeproc import FakeProc, line, running, tell

if TYPE_CHECKING:
    from pathlib import Path


class Ends:
    """Remembers what was told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[TargetId, int | None]] = asyncio.Queue()

    def __call__(self, target: TargetId, status: int | None) -> None:
        self.told.put_nowait((target, status))

    async def next(self) -> tuple[TargetId, int | None]:
        return await asyncio.wait_for(self.told.get(), 10)


@pytest.mark.parametrize(("end", "status"), [("raise SystemExit(7)", 7), ("os.kill(os.getpid(), 9)", -9)])
async def test_the_exit_of_a_child_is_told_with_its_status(end: str, status: int) -> None:
    """Exit code or minus the signal; the child is left for its owner to reap."""
    ends = Ends()
    with running(f"import os; input(); {end}") as child:
        watch = ExitWatch(identify(child.pid), ends)
        assert watch.at_once
        assert watch.check()
        tell(child)
        assert await ends.next() == (watch.target, status)
        assert not watch.check()
        assert child.wait() == status
        assert ends.told.empty()


async def test_the_exit_of_a_stranger_is_told_without_a_status() -> None:
    """A grandchild is no child of ours: its end is seen, its status is its parent's."""
    ends = Ends()
    code = (
        "import subprocess, sys\n"
        "grandchild = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "print(grandchild.pid, flush=True); input(); grandchild.communicate(b'\\n')\n"
        "print(grandchild.returncode, flush=True); input()"
    )
    with running(code) as child:
        watch = ExitWatch(identify(int(line(child))), ends)
        tell(child)
        assert await ends.next() == (watch.target, None)
        assert line(child) == "0"


async def test_without_pidfd_the_tick_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox that refuses pidfd_open leaves the check at each tick, and says why."""

    def refused(pid: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", refused)
    ends = Ends()
    with running("input()") as child:
        watch = ExitWatch(identify(child.pid), ends)
        assert not watch.at_once
        assert watch.why_not == "pidfd_open: Operation not permitted"
        assert watch.check()
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not watch.check()
        assert not watch.check()
        assert (await ends.next(), ends.told.empty()) == ((watch.target, None), True)


async def test_a_reused_pid_is_not_watched() -> None:
    """The pid is there, but started at another time: it is not the target."""
    with running("input()") as child:
        real = identify(child.pid)
        with pytest.raises(NoSuchTargetError):
            ExitWatch(TargetId(real.pid, real.start_time - 1, real.pid_namespace), Ends())
    with pytest.raises(NoSuchTargetError):
        ExitWatch(real, Ends())


async def test_a_closed_watch_tells_nothing() -> None:
    """After close the exit is nobody's business, and no descriptor is left."""
    ends = Ends()
    with running("input()") as child:
        watch = ExitWatch(identify(child.pid), ends)
        watch.close()
        watch.close()
        tell(child)
        child.wait()
        await asyncio.sleep(0)
        assert ends.told.empty()


def test_running_means_the_same_process_and_no_zombie(tmp_path: Path) -> None:
    """Zombie, other start time, other namespace and garbage are all `not running`."""
    fake = FakeProc(tmp_path)
    folder = fake.add(7, start=100)
    target = identify(7, tmp_path)
    assert is_running(target, tmp_path)
    assert is_running(TargetId(7, 100, 0), tmp_path)
    assert not is_running(TargetId(7, 100, target.pid_namespace + 1), tmp_path)
    assert not is_running(TargetId(7, 99, 0), tmp_path)
    (folder / "stat").write_bytes(b"garbage")
    assert not is_running(target, tmp_path)
    fake.remove(7)
    fake.add(7, start=100, state=b"Z")
    assert not is_running(target, tmp_path)
