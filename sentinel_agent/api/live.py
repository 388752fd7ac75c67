"""What the API needs of a running agent, said here because the agent is above. A store alone has none of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.capture.base import SeriesWindow
    from sentinel_agent.core.model import Incident, Target
    from sentinel_agent.core.rule import CaptureSpec
    from sentinel_agent.profile.record import ProfileRecord


class Live(Protocol):
    """A running agent. All methods are called on its own event loop."""

    def targets(self) -> Sequence[Target]:
        """The targets that are watched just now."""
        ...

    def series(self, pid: int, since: float) -> SeriesWindow | None:
        """The readings of a target since then (seconds since the epoch); None if it is not watched."""
        ...

    async def recorded(self, pid: int, since: float, until: float) -> ProfileRecord | None:
        """What the flight recorder holds of a target; None if it is not recorded."""
        ...

    @property
    def recorder_window(self) -> float:
        """How many seconds back stacks are kept."""
        ...

    @property
    def capture_kinds(self) -> frozenset[str]:
        """The captures that can be asked for."""
        ...

    async def capture(self, pid: int, specs: Sequence[CaptureSpec]) -> Incident | str:
        """Make an incident by hand. The reason in words where nothing was kept.

        Raises:
            NoSuchTargetError: the process is not watched.
        """
        ...
