"""How a target ended: the facts, what kind of end that is, and the same in words."""

from __future__ import annotations

import signal
from typing import Literal

import msgspec

EndingKind = Literal["stopped", "oom", "signal", "nonzero", "unknown"]

# What operators and supervisors end a service with; a shell tells it as 128 and the number (POSIX, "Exit Status").
_STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_STOPPED = frozenset({0, *(-number for number in _STOPS), *(128 + number for number in _STOPS)})


class Ending(msgspec.Struct, frozen=True):
    """What is known of the end of a process.

    `status` is the exit code, or minus the number of the signal that ended it; None where nobody tells.
    `oom_kills` is how many processes of its cgroup the kernel killed for memory just before.
    """

    status: int | None = None
    core_dumped: bool = False
    oom_kills: int = 0

    @property
    def kind(self) -> EndingKind:
        """`stopped` is a normal end: exit code 0, or a signal that asks a service to stop."""
        if self.oom_kills and self.status in {None, -signal.SIGKILL}:
            return "oom"
        if self.status is None:
            return "unknown"
        if self.status in _STOPPED:
            return "stopped"
        return "signal" if self.status < 0 else "nonzero"

    @property
    def words(self) -> str:
        """As it follows the name of the target: `gateway (pid 4711) killed by SIGKILL`."""
        if self.status is None:
            how = "ended" if self.kind == "oom" else "ended, how is not known"
        elif self.status < 0:
            how = f"killed by {_signal_name(-self.status)}"
        else:
            how = f"ended with exit status {self.status}"
        if self.core_dumped:
            how += ", core dumped"
        if self.kind == "oom":
            sure = "" if self.status is not None else "perhaps "
            how += f", {sure}by the kernel's OOM killer: the count of its kills in the cgroup rose just then"
        return how


def ending_of(wait_status: int) -> Ending:
    """From a status as waitpid(2) gives it, which is also what `/proc/PID/stat` and pidfds show."""
    number = wait_status & 0x7F
    if number:
        return Ending(-number, bool(wait_status & 0x80))
    return Ending(wait_status >> 8 & 0xFF)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
