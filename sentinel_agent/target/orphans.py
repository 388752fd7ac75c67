"""As pid 1 of a container the agent inherits the orphans of all others, and each that ends stays a zombie until it takes notice.

What the agent started itself is waited for by who started it, within moments; only a child that has been a zombie for
`GRACE` seconds is one that nobody waits for. wait(2), pid_namespaces(7) ("The namespace init process").
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sentinel_agent.target.discover import direct_children, glance
from sentinel_agent.target.procfs import ROOT

if TYPE_CHECKING:
    from pathlib import Path

GRACE = 5.0


class Orphans:
    """The zombies among the children of this process."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._seen: dict[int, float] = {}

    def reap(self, now: float) -> int:
        """Take notice of those that were zombies at a call `GRACE` seconds before, too. How many; `now` on the monotonic clock."""
        ended = [
            pid
            for pid in direct_children(os.getpid(), self._root)
            if (stat := glance(pid, self._root)) and stat.ended
        ]
        self._seen = {pid: self._seen.get(pid, now) for pid in ended}
        return sum(_taken(pid) for pid, since in self._seen.items() if now - since >= GRACE)


def _taken(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # somebody has waited for it after all
        return False
