"""Open file descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.probes.base import Moment, Subject, collect

if TYPE_CHECKING:
    from sentinel_agent.core.model import Reading

MAX_LISTED = 16384


class FdsProbe:
    """`fds`: how many descriptors are open.

    Since Linux 6.2 the size of the directory /proc/PID/fd is their number (commit f1f1f2569901). This is checked
    once against a listing; if it does not hold, each tick lists, and counts no further than 16384.
    """

    metrics = ("fds",)

    def __init__(self, subject: Subject) -> None:
        self._proc = subject.proc
        self._by_size: bool | None = None

    def read(self, now: Moment) -> list[Reading]:
        """The number of open descriptors at this moment."""
        return collect(self.metrics, now, self._measure)

    def _measure(self) -> dict[str, float]:
        size = self._proc.info("fd").st_size
        if self._by_size and size:
            return {"fds": size}
        if self._proc.stat().ended:
            raise ProcessLookupError
        listed = len(self._proc.names("fd", MAX_LISTED))
        # Unequal when the target opened or closed one in between: asked again at the next tick. Older kernels say 0.
        self._by_size = True if size == listed > 0 else (False if size == 0 < listed else None)
        return {"fds": listed}
