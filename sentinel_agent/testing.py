"""What tests need and plug-ins' own tests may use: a clock that obeys, and targets that are made up."""

from __future__ import annotations

import asyncio

from sentinel_agent.core.model import Role, Target, TargetId


class FakeClock:
    """A clock that moves only when told; a sleep moves it and lets other tasks run."""

    def __init__(self, wall: float = 1_700_000_000.0) -> None:
        self._wall = wall
        self._monotonic = 1000.0

    def wall(self) -> float:
        """Seconds since the epoch, as they were set."""
        return self._wall

    def monotonic(self) -> float:
        """Seconds that only `advance` and `sleep` move."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self._wall += seconds
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an operator or NTP may; the other clock goes on."""
        self._wall += seconds

    async def sleep(self, seconds: float) -> None:
        """Time passes at once."""
        self.advance(max(0.0, seconds))
        await asyncio.sleep(0)


def make_target(
    identity: TargetId,
    role: Role = Role("service", "host"),  # noqa: B008 - frozen
    *,
    name: str = "python",
    command: tuple[str, ...] = ("python", "service.py"),
    parent_pid: int | None = None,
    python: str | None = None,
) -> Target:
    """A target with this identity; nothing needs to run."""
    return Target(
        pid=identity.pid,
        start_time=identity.start_time,
        pid_namespace=identity.pid_namespace,
        service=role.service,
        instance=role.instance,
        worker=role.worker,
        name=name,
        command=command,
        parent_pid=parent_pid,
        python=python,
    )
