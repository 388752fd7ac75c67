"""What the admin side may know of a supervisor and do to it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sentinel_agent import __version__
from sentinel_agent.config.files import fingerprint
from sentinel_agent.errors import PeerError
from sentinel_agent.proxy.admin_views import WorkerAnswer, config_dump, server_info

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sentinel_agent.clock import Clock
    from sentinel_agent.proxy.admin_views import State
    from sentinel_agent.proxy.children import Served, WorkerProcess
    from sentinel_agent.proxy.questions import Question

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Reloads:
    """What became of changes of the configuration: `fault` is why the last one was refused, empty if it was not."""

    taken: int = 0
    refused: int = 0
    fault: str = ""
    time: float = 0.0


class Supervised(Protocol):
    """What is asked of a supervisor."""

    served: Served
    reloads: Reloads

    @property
    def state(self) -> State: ...
    def workers(self) -> list[WorkerProcess]: ...
    async def drain_listeners(self) -> None: ...


class Administration:
    """Answers for a supervisor, on the socket at `path`."""

    def __init__(self, path: Path, supervisor: Supervised, clock: Clock) -> None:
        self._path = path
        self._supervisor = supervisor
        self._clock = clock
        self._started = clock.monotonic()

    async def run(self) -> None:
        """Until cancelled. Whatever goes wrong here, the proxy serves on."""
        from sentinel_agent.proxy.admin import serve  # noqa: PLC0415 - aiohttp, which nothing else here needs

        try:
            await serve(self._path, self)
        except Exception:
            log.exception("internal fault: the admin side has ended")

    @property
    def state(self) -> State:
        """Where in its life the proxy is."""
        return self._supervisor.state

    def info(self, workers: Sequence[WorkerAnswer]) -> dict[str, Any]:
        """Who it is, and how it is."""
        served = self._supervisor.served
        return server_info(
            version=__version__,
            state=self.state,
            uptime=self._clock.monotonic() - self._started,
            service=served.config.service,
            config=served.name,
            fingerprint=fingerprint(served.content),
            workers=workers,
            reloads=asdict(self._supervisor.reloads),
        )

    def config_dump(self) -> dict[str, Any]:
        """The configuration in force."""
        served = self._supervisor.served
        return config_dump(served.config, fingerprint(served.content))

    def listeners(self) -> list[tuple[str, str]]:
        """Names and addresses."""
        return [(each.name, each.address) for each in self._supervisor.served.bound]

    async def ask(self, question: Question) -> list[WorkerAnswer]:
        """Ask every worker at once; none is waited for longer than a few seconds."""
        return list(await asyncio.gather(*(_ask(each, question) for each in self._supervisor.workers())))

    async def drain_listeners(self) -> list[WorkerAnswer]:
        """No listener accepts any more; what is open may come to its end."""
        await self._supervisor.drain_listeners()
        return await self.ask("drain_listeners")


async def _ask(worker: WorkerProcess, question: Question) -> WorkerAnswer:
    try:
        return WorkerAnswer(worker.slot, worker.pid, await worker.line.ask(question))
    except PeerError as error:
        return WorkerAnswer(worker.slot, worker.pid, None, error.message)
