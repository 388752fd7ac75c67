"""The running agent as the API sees it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.responder import manual_firing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.capture.base import SeriesWindow
    from sentinel_agent.clock import Clock
    from sentinel_agent.core.model import Incident, Target
    from sentinel_agent.core.rule import CaptureSpec
    from sentinel_agent.profile.record import ProfileRecord
    from sentinel_agent.recorder.deck import FlightDeck
    from sentinel_agent.responder import Responder
    from sentinel_agent.sampler import Sampler


class RunningAgent:
    """`api.live.Live` over the agent's parts."""

    def __init__(
        self,
        sampler: Sampler,
        responder: Responder,
        deck: FlightDeck | None,
        capture_kinds: frozenset[str],
        clock: Clock,
        under_way: set[asyncio.Task[None]],
    ) -> None:
        """`under_way` has the tasks that make incidents, which a stop gives some time."""
        self.capture_kinds = capture_kinds
        self._sampler = sampler
        self._responder = responder
        self._deck = deck
        self._clock = clock
        self._under_way = under_way

    @property
    def recorder_window(self) -> float:
        """How many seconds back stacks are kept."""
        return self._deck.settings.window if self._deck else 0.0

    def targets(self) -> Sequence[Target]:
        """The targets that are watched just now."""
        return tuple(series.target for series in self._sampler.targets.values())

    def series(self, pid: int, since: float) -> SeriesWindow | None:
        """The readings of a target since then; None if it is not watched."""
        found = self._sampler.targets.get(pid)
        if found is None:
            return None
        return self._responder.window(found, since + self._responder.window_before)

    async def recorded(self, pid: int, since: float, until: float) -> ProfileRecord | None:
        """What the flight recorder holds of a target; None if it is not recorded."""
        series = self._sampler.targets.get(pid)
        if series is None or self._deck is None:
            return None
        ring = self._deck.ring(series.target.id)
        if ring is None:
            return None
        return (await self._deck.window(series.target, ring, since, until)).record

    async def capture(self, pid: int, specs: Sequence[CaptureSpec]) -> Incident | str:
        """Make an incident by hand; see `api.live.Live.capture`."""
        series = self._sampler.targets.get(pid)
        if series is None:
            raise NoSuchTargetError(f"process {pid} is not watched")
        firing = manual_firing(series, "asked for over HTTP", specs, self._clock.wall())
        before = self._responder.statistics.lost
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            incident = await self._responder.respond(firing, series)
        finally:
            self._under_way.discard(task)
        if incident is not None:
            return incident
        return (
            self._responder.statistics.last_lost
            if self._responder.statistics.lost > before
            else "it was lost"
        )
