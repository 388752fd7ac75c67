"""The end of a target is seen at once, with its status, and is never mixed up with another process."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.core.ending import Ending
from sentinel_agent.core.model import TargetId
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.target.identity import identify
from sentinel_agent.target.liveness import ExitWatch, is_running
from tests.target.fakeproc import FakeProc, line, running, tell

if TYPE_CHECKING:
    from pathlib import Path


STRANGER = (
    "import subprocess, sys\n"
    "grandchild = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=subprocess.PIPE)\n"
    "print(grandchild.pid, flush=True); input(); grandchild.stdin.write(b'\\n'); grandchild.stdin.flush()\n"
    "sys.argv[2] == 'reap' and grandchild.wait(); input(); grandchild.wait()"
)
KERNEL = tuple(int(part) for part in os.uname().release.split(".")[:2])


class Ends:
    """Remembers what was told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[TargetId, Ending]] = asyncio.Queue()

    def __call__(self, target: TargetId, ending: Ending) -> None:
        self.told.put_nowait((target, ending))

    async def next(self) -> tuple[TargetId, Ending]:
        return await asyncio.wait_for(self.told.get(), 10)


@pytest.mark.parametrize(("end", "status"), [("raise SystemExit(7)", 7), ("os.kill(os.getpid(), 9)", -9)])
async def test_the_exit_of_a_child_is_told_with_its_status(end: str, status: int) -> None:
    """Exit code or minus the signal; the child is left for its owner to reap."""
    ends = Ends()
    stopped: list[TargetId] = []
    with running(f"import os; input(); {end}") as child:
        watch = ExitWatch(identify(child.pid), ends, stopped.append)
        assert watch.at_once
        assert watch.check()
        tell(child)
        assert await ends.next() == (watch.target, Ending(status))
        assert stopped == [watch.target]
        assert not watch.check()
        assert child.wait() == status
        assert ends.told.empty()


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("os.kill(os.getpid(), 9)", -9),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
    ],
)
@pytest.mark.parametrize("parent", ["reap", "leave"])
async def test_the_exit_of_a_stranger_is_told_with_its_status(end: str, status: int, parent: str) -> None:
    """A grandchild is no child of ours: its end is seen at once, and how it ended whether it is reaped or not."""
    if parent == "reap" and KERNEL < (6, 15):
        pytest.skip("Linux 6.15 is the first that tells the status of a stranger who is reaped")
    ends = Ends()
    stopped: list[TargetId] = []
    code = f"import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); input(); {end}"
    with running(STRANGER, code, parent) as child:
        watch = ExitWatch(identify(int(line(child))), ends, stopped.append)
        tell(child)
        told, ending = await ends.next()
        assert (told, ending.status) == (watch.target, status)
        assert stopped == [told]


async def test_a_kernel_that_tells_nothing_leaves_how_it_ended_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reaped before anyone could look, on a kernel without PIDFD_GET_INFO: ended, and nothing is made up."""

    def refused(*_: object) -> int:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    monkeypatch.setattr(fcntl, "ioctl", refused)
    monkeypatch.setattr("sentinel_agent.target.exit_status._of_zombie", lambda *_: None)
    ends = Ends()
    with running(STRANGER, "input()", "reap") as child:
        watch = ExitWatch(identify(int(line(child))), ends)
        tell(child)
        assert await ends.next() == (watch.target, Ending())


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
        assert (await ends.next(), ends.told.empty()) == ((watch.target, Ending(-9)), True)


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
