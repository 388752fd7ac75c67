"""How a target ended: which kind of end that is, and in words."""

from __future__ import annotations

import os
import signal

import pytest

from sentinel_agent.core.ending import Ending, ending_of


@pytest.mark.parametrize(
    ("ending", "kind", "words"),
    [
        (Ending(0), "stopped", "ended with exit status 0"),
        (Ending(-15), "stopped", "killed by SIGTERM"),
        (Ending(143), "stopped", "ended with exit status 143"),
        (Ending(3), "nonzero", "ended with exit status 3"),
        (Ending(-11, core_dumped=True), "signal", "killed by SIGSEGV, core dumped"),
        (Ending(-9), "signal", "killed by SIGKILL"),
        (Ending(-40), "signal", "killed by signal 40"),
        (Ending(), "unknown", "ended, how is not known"),
        (
            Ending(-9, oom_kills=1),
            "oom",
            "killed by SIGKILL, by the kernel's OOM killer: the count of its kills in the cgroup rose just then",
        ),
        (
            Ending(None, oom_kills=2),
            "oom",
            "ended, perhaps by the kernel's OOM killer: the count of its kills in the cgroup rose just then",
        ),
        (Ending(1, oom_kills=1), "nonzero", "ended with exit status 1"),  # a sibling was the victim
    ],
)
def test_kinds_and_words(ending: Ending, kind: str, words: str) -> None:
    """An OOM kill is only claimed for SIGKILL or an unknown end; stopping a service is no death."""
    assert (ending.kind, ending.words) == (kind, words)


@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_a_wait_status_of_an_exit(status: int) -> None:
    """The kernel's own status word is read as the standard library reads it."""
    assert ending_of(status << 8).status == os.waitstatus_to_exitcode(status << 8) == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, 64])
def test_a_wait_status_of_a_signal(number: int) -> None:
    """The signal's number, with and without the bit that says that a core was dumped."""
    assert ending_of(number) == Ending(os.waitstatus_to_exitcode(number))
    assert ending_of(number | 0x80) == Ending(-number, core_dumped=True)
