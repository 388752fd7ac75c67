"""`sentinel-agent demo`: the tour. A real service is spoilt three times; the agent catches each."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.resources
import importlib.util
import os
import signal
import sys
from typing import TYPE_CHECKING

import click

from sentinel_agent.cli.common import Invocation, common_options, invoke
from sentinel_agent.cli.reporter import Reporter, show_command
from sentinel_agent.cli.session import agent_for, stop_on_signals
from sentinel_agent.clock import SystemClock
from sentinel_agent.core.event import IncidentSealed
from sentinel_agent.errors import OperatorError, SentinelError
from sentinel_agent.tap.hub import TapHub
from sentinel_agent.watchlist import WatchRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import ClientSession

    from sentinel_agent.core.event import Event
    from sentinel_agent.demo.tour import Fault, Service

_INTERVAL = "250ms"
_WARMUP_SECONDS = 4.0
_SETTLE_SECONDS = 2.0  # so that one fault's requests are not taken for the next one's
_PATIENCE_SECONDS = 60.0


@click.command()
@click.option("--once", is_flag=True, help="End when all three incidents are saved, as without a terminal.")
@common_options
def demo(invocation: Invocation, once: bool) -> None:
    """The tour: the embedded proxy with traffic, and an agent beside it.

    A CPU spike, a task leak and a memory growth are made in the proxy; each incident is printed as it is saved, with
    its route and the command that shows it. On a terminal everything then runs on until Ctrl-C.
    """
    missing = [name for name in ("httptools", "uvloop") if importlib.util.find_spec(name) is None]
    if missing:
        raise OperatorError(
            f"the demo needs {', '.join(missing)}, not installed here",
            hint="pip install 'sentinel-agent[proxy]'",
        )
    rules = importlib.resources.files("sentinel_agent.demo") / "rules.yaml"
    with importlib.resources.as_file(rules) as path:
        own = {
            "rule_packs": [],
            "sampler.interval": _INTERVAL,
            "capture.allow_injection": True,  # the proxy is the tour's own
            "target.service": "gateway",
            # A role of its own, so that the limits used up by one tour do not silence the next.
            "target.instance": f"demo-{os.getpid()}",
        }
        inputs = dataclasses.replace(
            invocation.inputs,
            rule_files=(path, *invocation.inputs.rule_files),
            overrides={**own, **invocation.inputs.overrides},
        )
        tour = _Tour(invoke(inputs), once=once or not sys.stdout.isatty())
        asyncio.run(tour.run())


class _Tour:
    """One tour: what was saved so far, by rule."""

    def __init__(self, invocation: Invocation, *, once: bool) -> None:
        self._invocation = invocation
        self._once = once
        self._reporter = Reporter(invocation.data_dir)
        self._saved: dict[str, asyncio.Event] = {}
        self._url: str | None = None

    async def run(self) -> None:
        """Play it.

        Raises:
            SentinelError: an incident that had to come did not.
        """
        from sentinel_agent.demo.tour import (  # noqa: PLC0415 - imports aiohttp, which is heavy
            FAULTS,
            running_service,
            traffic,
        )

        self._saved = {fault.rule: asyncio.Event() for fault in FAULTS}
        stop = asyncio.Event()
        stop_on_signals(stop, (signal.SIGINT, signal.SIGTERM))
        self._reporter.note(
            "Starting an upstream and the embedded proxy in front of it, with traffic.", bold=True
        )
        async with running_service() as service, traffic(service) as client:
            tap = TapHub(service.tap, SystemClock())
            request = WatchRequest((service.pid,))
            agent = agent_for(self._invocation, self._invocation.store().open(), request, self._tell, tap)
            self._url = agent.url
            watching = asyncio.create_task(agent.run(stop))
            playing = asyncio.create_task(self._play(FAULTS, client, service, stop))
            try:
                await asyncio.wait((watching, playing), return_when=asyncio.FIRST_COMPLETED)
            finally:
                playing.cancel()
                stop.set()
                await asyncio.wait((watching, playing))
        watching.result()
        if not playing.cancelled():
            playing.result()

    def _tell(self, event: Event) -> None:
        self._reporter(event)
        if isinstance(event, IncidentSealed) and event.incident.rule in self._saved:
            self._saved[event.incident.rule].set()

    async def _play(
        self, faults: Sequence[Fault], client: ClientSession, service: Service, stop: asyncio.Event
    ) -> None:
        self._reporter.note(f"Watching it for {_WARMUP_SECONDS:.0f} s, to know what is usual.", bold=True)
        await asyncio.sleep(_WARMUP_SECONDS)
        for number, fault in enumerate(faults, 1):
            self._reporter.note(f"\nFault {number} of {len(faults)}: {fault.words}.", bold=True)
            if number > 1:
                await asyncio.sleep(_SETTLE_SECONDS)
            await self._make(fault, client, service)
        self._where_to_look()
        if not self._once:
            self._reporter.note("\nThe proxy and the agent keep running. Ctrl-C ends.", bold=True)
            await stop.wait()

    async def _make(self, fault: Fault, client: ClientSession, service: Service) -> None:
        cause = asyncio.create_task(fault.cause(client, service.base))
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._saved[fault.rule].wait()
                await cause
        except TimeoutError:
            raise SentinelError(
                f"no incident of rule {fault.rule} came within {_PATIENCE_SECONDS:.0f} s",
                hint=show_command(self._invocation.data_dir, "doctor", str(service.pid)),
            ) from None
        finally:
            cause.cancel()

    def _where_to_look(self) -> None:
        data_dir = self._invocation.data_dir
        newest = self._reporter.sealed[-1].id
        self._reporter.note("\nAll three are saved. Where to look:", bold=True)
        for words in (("list",), ("show", newest), ("export", newest, "--format", "svg")):
            self._reporter.note(f"  {show_command(data_dir, 'incidents', *words)}")
        self._reporter.note(f"  the files themselves: {data_dir}/incidents")
        if self._url and not self._once:
            self._reporter.note(f"  in a browser, with flame graphs: {self._url}", bold=True)
        elif self._url:
            self._reporter.note(f"  in a browser: {show_command(data_dir, 'serve')}")
