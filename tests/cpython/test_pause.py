"""A pause stops every thread, is as long as it says, and leaves no trace in the process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.capture.stacks import look
from sentinel_agent.core.model import Role
from sentinel_agent.cpython.pause import Pause, PauseTooLongError, in_own_thread
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.target.identity import identify
from sentinel_agent.testing import make_target
from tests.cpython.test_pulse import _now as now
from tests.target.fakeproc import line, running, tell

if TYPE_CHECKING:
    from collections.abc import Callable

BUSY = """
import signal, threading
came = []
signal.signal(signal.SIGUSR1, lambda *_: came.append(1))
def spin():
    while True:
        sum(range(100))
for _ in range(5):
    threading.Thread(target=spin, daemon=True).start()
print("up", flush=True)
while True:
    input()
    print(len(came), flush=True)
"""


def cpu_ticks(pid: int) -> int:
    """What all threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def paused(pid: int, most: float, work: Callable[[], None]) -> float:
    def whole() -> float:
        with Pause(pid, most, now, Path(f"/proc/{pid}")) as pause:
            work()
        return pause.seconds

    return in_own_thread(whole)


def test_nothing_runs_in_a_pause_and_everything_after_it() -> None:
    """Five spinning threads use no CPU meanwhile; the time that is told is what passed; then they go on, untraced."""
    with running(BUSY) as child:
        line(child)
        used: list[int] = []

        def wait() -> None:
            used.append(cpu_ticks(child.pid))
            time.sleep(0.3)
            used.append(cpu_ticks(child.pid))

        began = now()
        seconds = paused(child.pid, 5.0, wait)
        assert 0.3 <= seconds <= now() - began
        assert used[0] == used[1]
        tell(child)
        assert line(child) == "0"
        assert "TracerPid:\t0\n" in Path(f"/proc/{child.pid}/status").read_text()
        time.sleep(0.3)
        assert cpu_ticks(child.pid) > used[1]


def test_a_signal_that_comes_in_a_pause_comes_through() -> None:
    """Sent to the stopped process once: its handler runs once, after the pause."""
    with running(BUSY) as child:
        line(child)
        for expected in range(1, 6):
            paused(child.pid, 5.0, lambda: os.kill(child.pid, signal.SIGUSR1))
            tell(child)
            assert line(child) == str(expected)


def test_signals_in_quick_succession_while_it_is_stopped_again_and_again() -> None:
    """Pauses that begin while a signal is being delivered lose none of them."""
    with running(BUSY) as child:
        line(child)
        for expected in range(1, 21):
            os.kill(child.pid, signal.SIGUSR1)
            paused(child.pid, 5.0, lambda: None)
            tell(child)
            assert line(child) == str(expected)


def test_a_pause_that_would_be_too_long_ends_at_once_and_says_how_long_it_was() -> None:
    """With no time at all the look is given up, the process runs on, and the pause that there was is told."""
    with running(BUSY) as child:
        line(child)
        target = make_target(identify(child.pid), Role("shop", "here"))
        with pytest.raises(PauseTooLongError) as caught:
            look(target, 1e-9)
        assert 0 < caught.value.seconds < 5
        before = cpu_ticks(child.pid)
        time.sleep(0.3)
        assert cpu_ticks(child.pid) > before
        tell(child)
        assert line(child) == "0"


def test_a_paused_look_sees_every_stack_from_end_to_end() -> None:
    """Threads that never stand still are whole in each of twenty looks, and each pause is told."""
    with running(BUSY) as child:
        line(child)
        target = make_target(identify(child.pid), Role("shop", "here"))
        for _ in range(20):
            stacks, seconds = look(target, 5.0)
            assert 0 < seconds < 5
            assert len(stacks.threads) == 6
            assert "running" in {thread.state for thread in stacks.threads}
            for thread in stacks.threads:
                functions = [frame.function for frame in thread.frames]
                assert "<torn>" not in functions
                assert functions[-1] in ("<module>", "Thread._bootstrap", "_bootstrap")


def test_a_process_that_has_ended_is_no_pause() -> None:
    """The reason is that it has ended."""
    with running("") as child:
        child.wait()
        with pytest.raises(NoSuchTargetError):
            paused(child.pid, 1.0, lambda: None)


def test_the_status_of_a_child_that_ends_in_a_pause_is_left_for_its_parent() -> None:
    """A kill in a pause ends the process; whoever started it still learns how."""
    with running(BUSY) as child:
        line(child)
        paused(child.pid, 5.0, lambda: os.kill(child.pid, signal.SIGKILL))
        assert child.wait(10) == -signal.SIGKILL
