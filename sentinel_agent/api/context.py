"""What every handler needs, in one place of the app."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from sentinel_agent.api.captures import Jobs
from sentinel_agent.api.incidents import IncidentProfiles
from sentinel_agent.api.peers import Peers
from sentinel_agent.api.querier import Querier
from sentinel_agent.api.work import Workers
from sentinel_agent.config.settings import ApiSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.api.guard import Guard
    from sentinel_agent.api.live import Live
    from sentinel_agent.clock import Clock
    from sentinel_agent.store.store import Store

    Metrics = Callable[[str | None], tuple[str, bytes]]
    """`Accept` of a request -> content type and body; must not block."""


@dataclass(slots=True)
class Context:
    """The store, the running agent (None: only the store is shown), and what answers are made with."""

    store: Store
    clock: Clock
    guard: Guard
    live: Live | None = None
    metrics: Metrics | None = None
    api: ApiSettings = field(default_factory=ApiSettings)
    workers: Workers = field(default_factory=Workers)
    peers: Peers = field(init=False)
    jobs: Jobs | None = field(init=False)
    querier: Querier = field(init=False)

    def __post_init__(self) -> None:
        self.peers = Peers(self.api, self.clock)
        self.jobs = Jobs(self.live) if self.live else None
        self.querier = Querier(IncidentProfiles(self.store), self.clock.wall)


CONTEXT: web.AppKey[Context] = web.AppKey("context", Context)
