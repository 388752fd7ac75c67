"""Know at once, and for sure, that a target has ended.

A pidfd (pidfd_open(2)) becomes readable when the process exits, and keeps meaning that process when its number
is used again. The exit status is looked at, never taken away: whoever started the process reaps it.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from sentinel_agent.core.ending import Ending, ending_of
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.target.exit_status import exit_status, tells_later
from sentinel_agent.target.identity import identity_of
from sentinel_agent.target.procfs import ROOT, ProcDir, ProcFormatError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sentinel_agent.core.model import TargetId


STATUS_SECONDS = 0.5
"""How long the status of a stranger is waited for: the kernel tells it when its parent has reaped it."""
_STATUS_EVERY = 0.01


class ExitWatch:
    """Calls `on_stop(target)` once, when the target has ended, and `on_exit(target, ending)` when it is known how.

    Mostly both come at once, and the second within `STATUS_SECONDS`. Must be made in a running event loop. Where the
    kernel refuses a pidfd, `at_once` is False, `why_not` says why, and only `check`, called at each tick, notices.

    Raises:
        NoSuchTargetError: the target has ended already, or its pid belongs to another process.
    """

    def __init__(
        self,
        target: TargetId,
        on_exit: Callable[[TargetId, Ending], None],
        on_stop: Callable[[TargetId], None] = lambda _: None,
        *,
        root: Path = ROOT,
    ) -> None:
        self.target = target
        self.why_not: str | None = None
        self._on_exit = on_exit
        self._on_stop = on_stop
        self._root = root
        self._done = False
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.TimerHandle | None = None
        self._fd = -1
        try:
            self._fd = os.pidfd_open(target.pid)
        except ProcessLookupError:
            raise NoSuchTargetError(f"process {target.pid} has ended") from None
        except OSError as error:
            self.why_not = f"pidfd_open: {os.strerror(error.errno or 0)}"
        # Checked after opening: a process with this start time was there then, so the pidfd is its own.
        if not is_running(target, root):
            self.close()
            raise NoSuchTargetError(f"process {target.pid} has ended")
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._ended)

    @property
    def at_once(self) -> bool:
        """Whether the kernel tells of the exit by itself."""
        return self.why_not is None

    def check(self) -> bool:
        """Whether the target runs; tells `on_exit` if it does not and nobody has told yet."""
        if not self._done and not is_running(self.target, self._root):
            self._ended()
        return not self._done

    def close(self) -> None:
        """Stop watching; harmless when done twice."""
        self._done = True
        if self._waiting is not None:
            self._waiting.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ended(self) -> None:
        self._done = True
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
        self._on_stop(self.target)
        self._tell_how(self._loop.time() + STATUS_SECONDS)

    def _tell_how(self, until: float) -> None:
        status = exit_status(self._fd, self.target, self._root)
        if status is None and self._loop.time() < until and tells_later(self._fd):
            self._waiting = self._loop.call_later(_STATUS_EVERY, self._tell_how, until)
            return
        self.close()
        self._on_exit(self.target, Ending() if status is None else ending_of(status))


def is_running(target: TargetId, root: Path = ROOT) -> bool:
    """Whether the pid still belongs to the target and is no zombie. A namespace seen as 0 is not compared."""
    try:
        with ProcDir(target.pid, root) as proc:
            seen, stat = identity_of(proc), proc.stat()
    except (OSError, ProcFormatError):
        return False
    same_namespace = 0 in {seen.pid_namespace, target.pid_namespace} or (
        seen.pid_namespace == target.pid_namespace
    )
    return seen.start_time == target.start_time and same_namespace and not stat.ended
