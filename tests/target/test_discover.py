"""Finding processes: what can be watched, what is refused and why, and who is never meant by a pattern."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import psutil
import pytest

from sentinel_agent.core.model import Role
from sentinel_agent.errors import NoSuchTargetError, NotPermittedError, TargetError
from sentinel_agent.target.criteria import Criteria
from sentinel_agent.target.discover import Process, ancestors, children, pids, resolve
from sentinel_agent.target.procfs import ROOT, ProcDir
from sentinel_agent.target.watch import TargetWatcher
from tests.target.fakeproc import FakeProc, executable, line, running, started, tell, wait_ended

LONG_AFTER_BOOT = 1e9


def find(pattern: re.Pattern[str], root: Path = ROOT, *, own_pid: int | None = None) -> list[Process]:
    """What a first scan by the pattern takes up."""
    watcher = TargetWatcher(root, criteria=Criteria(command=pattern), follow_children=False, own_pid=own_pid)
    return [found.process for found in watcher.scan(LONG_AFTER_BOOT).appeared]


if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534


def test_a_real_python_resolves() -> None:
    """Name, command line, parent and version of a child are what psutil and we know of it."""
    with running("print('up', flush=True); input()", "--flag") as child:
        line(child)
        process = resolve(child.pid)
        assert process.name == psutil.Process(child.pid).name()
        assert process.command[-1] == "--flag"
        assert process.parent_pid == os.getpid()
        assert process.python
        assert process.python.version == "{}.{}".format(*sys.version_info)
        target = process.target(Role("a", "b"), ("redacted",))
        assert (target.id.pid, target.command, target.parent_pid) == (child.pid, ("redacted",), os.getpid())


def test_what_cannot_be_watched_is_refused_in_words(tmp_path: Path) -> None:
    """Not there, zombie, kernel thread, thread and not Python each have their own sentence."""
    fake = FakeProc(tmp_path)
    fake.add(2, name=b"kthreadd", flags=0x208040, command=b"", parent=0)
    fake.add(3, state=b"Z", parent=9)
    fake.add(4, exe="/usr/bin/sleep", name=b"sleep")
    fake.add(5, thread_group=4)
    for pid, words in {
        1: "no process 1",
        2: "thread of the kernel",
        3: "zombie: it has ended and waits for process 9",
        5: "thread of process 4",
    }.items():
        with pytest.raises(NoSuchTargetError, match=words):
            resolve(pid, tmp_path)
    with pytest.raises(TargetError, match="not Python") as refused:
        resolve(4, tmp_path)
    assert refused.value.exit_code == 1
    assert resolve(4, tmp_path, allow_non_python=True).python is None


def test_a_process_that_ends_while_it_is_read_is_not_there(tmp_path: Path) -> None:
    """Its stat was still good, its program is gone already: said as `no such process`, by pid and by pattern."""
    folder = FakeProc(tmp_path).add(7)
    (folder / "exe").unlink()
    with pytest.raises(NoSuchTargetError, match="no process 7"):
        resolve(7, tmp_path)
    assert find(re.compile("gateway"), tmp_path, own_pid=1) == []


def test_a_command_line_that_is_hidden_is_no_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidepid nobody can say whether it matches; it is not claimed that it does."""
    FakeProc(tmp_path).add(7)

    def hidden(self: ProcDir) -> tuple[str, ...]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ProcDir, "command", hidden)
    assert find(re.compile("gateway"), tmp_path, own_pid=1) == []


def test_a_real_zombie_is_refused() -> None:
    """A child that ended and is not reaped cannot be watched."""
    with running("") as child:
        wait_ended(child.pid)
        with pytest.raises(NoSuchTargetError, match="zombie"):
            resolve(child.pid)
    with pytest.raises(NoSuchTargetError, match="there is no process"):
        resolve(child.pid)


def test_a_real_thread_is_refused() -> None:
    """The id of a thread is no pid; the hint names its process."""
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        assert thread.native_id
        with pytest.raises(NoSuchTargetError, match=f"thread of process {os.getpid()}"):
            resolve(thread.native_id)
    finally:
        release.set()
        thread.join()


def test_a_process_of_another_user_is_not_permitted() -> None:
    """Looked at by a user who may not: the error says so and the hint names the ways out."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    code = (
        "import os, re, sys\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "try: print('read', discover.resolve(int(sys.argv[1])))\n"
        "except errors.NotPermittedError as e: print(e.exit_code, e.message, '|', e.hint)\n"
        "meant = criteria.Criteria(command=re.compile('mark-of-mine'))\n"
        "print(watch.TargetWatcher(criteria=meant).scan(1e9).refused)\n"
    )
    code = (
        "from sentinel_agent import errors\nfrom sentinel_agent.target import criteria, discover, watch\n"
        + code
    )
    with running("print('up', flush=True); input()", "mark-of-mine") as child:
        line(child)
        seen = subprocess.run(
            [sys.executable, "-c", code, str(child.pid)], capture_output=True, text=True, check=True
        )
    by_pid, by_pattern = seen.stdout.splitlines()
    assert by_pid.startswith(f"4 process {child.pid} is there, but this user may not look into it | ")
    assert by_pattern == f"({child.pid},)"
    assert "CAP_SYS_PTRACE" in by_pid


def test_a_pattern_finds_real_processes_and_never_ourselves() -> None:
    """Of two processes with the mark, ours is left out as a child of the agent when the agent is this process."""
    mark = f"mark-{os.getpid()}"
    with running("print('up', flush=True); input()", mark) as child:
        line(child)
        assert find(re.compile(mark)) == []
        assert [process.id.pid for process in find(re.compile(mark), own_pid=child.pid)] == []
        helper = "import subprocess, sys; sys.stdin.readline()"
        with running(helper) as other_agent:
            assert [p.id.pid for p in find(re.compile(mark), own_pid=other_agent.pid)] == [child.pid]


def test_who_is_never_meant_by_a_pattern(tmp_path: Path) -> None:
    """The agent, the sudo above it, py-spy below it, a second agent, a shell, the dead and the kernel are left out."""
    fake = FakeProc(tmp_path)
    fake.add(10, parent=1)
    fake.add(20, name=b"sudo", parent=1, command=b"sudo\0python\0gateway.py\0")
    fake.add(21, parent=20, command=b"python\0-m\0sentinel_agent\0attach\0--match\0gateway.py\0")
    fake.add(22, parent=21, command=b"python\0helper\0gateway.py\0")
    fake.add(30, parent=1, command=b"python\0/usr/bin/sentinel-agent\0--match\0gateway.py\0")
    fake.add(31, parent=1, exe="/bin/sh", command=b"sh\0-c\0python gateway.py\0")
    fake.add(32, parent=1, state=b"Z", command=b"")
    fake.add(33, parent=1, command=b"python\0other.py\0")
    (tmp_path / "proc/33/stat").write_bytes(b"garbage")
    (tmp_path / "proc/version").touch()
    assert [process.id.pid for process in find(re.compile(r"gateway\.py"), tmp_path, own_pid=21)] == [10]


def test_orphans_of_an_agent_that_is_pid_1_are_found(tmp_path: Path) -> None:
    """In a container the agent may be init: what it inherited is not its own."""
    fake = FakeProc(tmp_path)
    fake.add(1, parent=0, command=b"sentinel-agent\0")
    fake.add(10, parent=1)
    assert [p.id.pid for p in find(re.compile("gateway"), tmp_path, own_pid=1)] == [10]


def test_only_the_first_4096_characters_are_matched(tmp_path: Path) -> None:
    """A pattern never meets more of a command line than that."""
    fake = FakeProc(tmp_path)
    fake.add(10, command=b"python\0" + b"x" * 100_000 + b"needle")
    assert find(re.compile("needle"), tmp_path, own_pid=1) == []
    assert [p.id.pid for p in find(re.compile("x{4000}"), tmp_path, own_pid=1)] == [10]


def test_children_of_a_real_tree_are_those_that_psutil_finds() -> None:
    """Children and grandchildren, also those started by another thread."""
    code = (
        "import subprocess, sys, threading\n"
        "run = lambda: made.append(subprocess.Popen([sys.executable, '-c', inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE))\n"
        'inner = \'import subprocess, sys; p = subprocess.Popen(["sleep", "60"]); print(1, flush=True); input(); p.kill(); p.wait()\'\n'
        "made = []; thread = threading.Thread(target=lambda: (run(), input())); thread.start()\n"
        "while not made: pass\n"
        "run(); [p.stdout.readline() for p in made]; print('up', flush=True); thread.join()\n"
        "for p in made: p.communicate(b'\\n')\n"
        "print('down', flush=True)"
    )
    with running(code) as child:
        assert line(child) == "up"
        found = children(child.pid)
        assert sorted(found) == sorted(p.pid for p in psutil.Process(child.pid).children(recursive=True))
        assert len(found) == 4
        assert children(child.pid, limit=3) == found[:3]
        assert os.getpid() in ancestors(found[-1])
        tell(child)
        assert line(child) == "down"


def test_children_without_the_kernels_list(tmp_path: Path) -> None:
    """A kernel without /proc/PID/task/TID/children: everyone's parent is asked; loops end."""
    fake = FakeProc(tmp_path)
    for pid, parent in {5: 1, 6: 5, 7: 6, 8: 1, 1: 7}.items():
        (fake.add(pid, parent=parent) / f"task/{pid}/children").unlink()
    assert children(5, tmp_path) == [6, 7, 1, 8]
    assert list(ancestors(7, tmp_path))[:3] == [6, 5, 1]
    assert pids(tmp_path) == [1, 5, 6, 7, 8]


def test_a_program_that_is_not_python_is_refused_for_real() -> None:
    """`sleep` runs no Python; asked for explicitly it can be watched all the same."""
    sleep = shutil.which("sleep")
    assert sleep
    with started([sleep, "60"]) as child:
        while executable(child.pid) == executable(os.getpid()):
            pass
        with pytest.raises(TargetError, match="not Python"):
            resolve(child.pid)
        assert resolve(child.pid, allow_non_python=True).name == "sleep"


def test_a_pid_that_cannot_be_one_is_not_there() -> None:
    """Zero, negative and huge numbers are no process."""
    for pid in (0, -1, 2**22 + 1, 2**40, 10**30):
        with pytest.raises(NoSuchTargetError):
            resolve(pid)
    assert issubclass(NotPermittedError, TargetError)
