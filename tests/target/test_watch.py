"""Appeared and gone: the decision by itself, scans of a fake /proc, and a real pre-fork server."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.model import TargetId
from sentinel_agent.target.criteria import Criteria
from sentinel_agent.target.discover import Process, resolve
from sentinel_agent.target.identity import SlotTable
from sentinel_agent.target.procfs import CLOCK_TICKS
from sentinel_agent.target.watch import Changes, Found, TargetWatcher, decide
from tests.target.fakeproc import FakeProc, line, running, tell, wait_ended

if TYPE_CHECKING:
    from pathlib import Path

_IDS = st.builds(TargetId, st.integers(1, 9), st.integers(1, 9), st.just(1))


def _found(identity: TargetId, parent: TargetId | None = None) -> Found:
    return Found(Process(identity, "x", (), 1, None), parent)


@given(st.sets(_IDS), st.sets(_IDS), st.integers(0, 20))
def test_the_decision(watched: set[TargetId], there: set[TargetId], room: int) -> None:
    """Gone is what was watched and is not there; never more are taken than there is room; none is taken twice."""
    changes = decide(watched, [_found(identity) for identity in there], room)
    appeared = [found.process.id for found in changes.appeared]
    assert set(changes.gone) == watched - there
    assert set(appeared) <= there - watched
    assert len(appeared) == len(set(appeared))
    assert len(appeared) == min(len(there - watched), max(0, room - len(watched & there)))
    assert changes.left_out == len(there - watched) - len(appeared)


def test_parents_come_before_children() -> None:
    """So that a child's role can be found from its parent's, whatever the order of pids."""
    parent, child = TargetId(9, 50, 1), TargetId(3, 40, 1)
    changes = decide((), [_found(child, parent), _found(parent)], 9)
    assert [found.process.id for found in changes.appeared] == [parent, child]


def _pids(changes: Changes) -> tuple[list[int], list[int]]:
    return [found.process.id.pid for found in changes.appeared], [identity.pid for identity in changes.gone]


def _seconds(start_ticks: int) -> float:
    return start_ticks / CLOCK_TICKS


def test_matches_come_and_go_and_a_reused_pid_is_another_target(tmp_path: Path) -> None:
    """The same number with another start time is gone and appeared in one scan."""
    fake = FakeProc(tmp_path)
    fake.add(10, start=100)
    watcher = TargetWatcher(tmp_path, criteria=Criteria(command=re.compile("gateway")), own_pid=1)
    assert _pids(watcher.scan(60.0)) == ([10], [])
    assert _pids(watcher.scan(61.0)) == ([], [])
    fake.remove(10)
    fake.add(10, start=6150)
    assert _pids(watcher.scan(62.0)) == ([10], [10])
    fake.remove(10)
    assert _pids(watcher.scan(63.0)) == ([], [10])


def test_a_process_that_becomes_the_program_by_exec_is_found(tmp_path: Path) -> None:
    """Young processes are read again, settled ones only every 30 s."""
    fake = FakeProc(tmp_path)
    start = 6000
    fake.add(10, start=start, command=b"bash\0", exe="/bin/bash")
    watcher = TargetWatcher(tmp_path, criteria=Criteria(command=re.compile("gateway")), own_pid=1)
    assert _pids(watcher.scan(_seconds(start) + 1)) == ([], [])
    fake.remove(10)
    fake.add(10, start=start)
    assert _pids(watcher.scan(_seconds(start) + 2)) == ([10], [])
    fake.add(11, start=start, command=b"bash\0", exe="/bin/bash")
    assert _pids(watcher.scan(_seconds(start) + 10)) == ([], [])
    fake.remove(11)
    fake.add(11, start=start)
    assert _pids(watcher.scan(_seconds(start) + 11)) == ([], [])
    assert _pids(watcher.scan(_seconds(start) + 41)) == ([11], [])


def test_children_are_followed_but_not_helpers_nor_forks_in_the_making(tmp_path: Path) -> None:
    """A Python child becomes a target once it is 0.3 s old; a shell never does; with following off none does."""
    fake = FakeProc(tmp_path)
    fake.add(10, start=100)
    fake.add(11, parent=10, start=6000, command=b"worker")
    fake.add(12, parent=10, start=200, exe="/bin/sh")
    fake.children(10, 11, 12)
    roots = [resolve(10, tmp_path)]
    watcher = TargetWatcher(tmp_path, roots=roots, own_pid=1)
    assert _pids(watcher.scan(60.1)) == ([10], [])
    changes = watcher.scan(60.4)
    assert _pids(changes) == ([11], [])
    assert changes.appeared[0].parent == roots[0].id
    alone = TargetWatcher(tmp_path, roots=roots, own_pid=1, follow_children=False)
    assert _pids(alone.scan(60.4)) == ([10], [])


def test_a_match_that_is_the_child_of_a_match_is_a_child(tmp_path: Path) -> None:
    """Workers carry their master's command line; they are still workers. The bound on targets is said."""
    fake = FakeProc(tmp_path)
    fake.add(30, parent=1, start=100)
    fake.add(20, parent=30, start=150)
    fake.add(25, parent=20, start=160)
    watcher = TargetWatcher(
        tmp_path, criteria=Criteria(command=re.compile("gateway")), own_pid=1, max_targets=2
    )
    changes = watcher.scan(60.0)
    master, worker = changes.appeared
    assert (master.process.id.pid, master.parent) == (30, None)
    assert (worker.process.id.pid, worker.parent) == (20, master.process.id)
    assert changes.left_out == 1


def test_a_match_that_may_not_be_looked_at_is_named(tmp_path: Path) -> None:
    """It is no target, but not passed over in silence either; tried here with a user who may not read exe."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    mark = f"mark-{os.getpid()}"
    code = (
        "import os, re, sys, time\n"
        "from sentinel_agent.target.criteria import Criteria\n"
        "from sentinel_agent.target.watch import TargetWatcher\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "watcher = TargetWatcher(criteria=Criteria(command=re.compile(sys.argv[1])), own_pid=os.getpid())\n"
        "time.sleep(0.4); print(watcher.scan(time.clock_gettime(time.CLOCK_BOOTTIME)).refused)\n"
    )
    with running("print('up', flush=True); input()", mark) as child:
        line(child)
        # The pattern is spelled so that the looking process does not match it itself.
        with running(code, f"mark-[{mark[5]}]{mark[6:]}$") as other:
            assert line(other) == f"({child.pid},)"


def test_a_real_pre_fork_server_whose_worker_is_replaced() -> None:
    """Master and two workers are found; one is killed; its successor takes its slot."""
    code = (
        "import os, sys\n"
        "def work():\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        import signal; signal.pause()\n"
        "    return pid\n"
        "workers = [work(), work()]\n"
        "try:\n"
        "    print(*workers, flush=True)\n"
        "    input(); os.kill(workers[0], 9); os.waitpid(workers[0], 0); workers[0] = work()\n"
        "    print(*workers, flush=True); input()\n"
        "finally:\n"
        "    for pid in workers: os.kill(pid, 9); os.waitpid(pid, 0)\n"
    )
    slots = SlotTable("edge", "host")
    roles: dict[int, str] = {}

    def scan(ahead: float) -> None:
        changes = watcher.scan(time.clock_gettime(time.CLOCK_BOOTTIME) + ahead)
        for identity in changes.gone:
            slots.release(identity)
            roles.pop(identity.pid)
        for found in changes.appeared:
            role = slots.assign(found.process.id, found.process.command, found.parent)
            roles[found.process.id.pid] = role.worker

    with running(code) as master:
        first, second = map(int, line(master).split())
        watcher = TargetWatcher(roots=[resolve(master.pid)])
        scan(ahead=1.0)
        before = {master.pid: "main", first: "worker-1", second: "worker-2"}
        if roles[first] == "worker-2":  # forked within one clock tick: the pids decide, and they may wrap
            before = {master.pid: "main", first: "worker-2", second: "worker-1"}
        assert roles == before
        tell(master)
        third = int(line(master).split()[0])
        scan(ahead=1.0)
        assert roles == {master.pid: "main", second: before[second], third: before[first]}
        tell(master)
        wait_ended(master.pid)
        scan(ahead=1.0)
        assert roles == {}
