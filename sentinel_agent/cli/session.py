"""One stretch of watching from the command line: the agent, the signals that end it, the time it may take."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from sentinel_agent.agent import Agent
from sentinel_agent.clock import SystemClock
from sentinel_agent.config.watch import Reloader

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.cli.common import Invocation
    from sentinel_agent.core.event import Event
    from sentinel_agent.store.store import Store
    from sentinel_agent.tap.hub import TapHub
    from sentinel_agent.watchlist import WatchRequest


def agent_for(
    invocation: Invocation,
    store: Store,
    request: WatchRequest,
    tell: Callable[[Event], None],
    tap: TapHub | None = None,
) -> Agent:
    """The agent on an open store; what is wrong with the targets is raised here."""
    return Agent(request, Reloader(invocation.inputs, invocation.loaded), store, SystemClock(), tell, tap)


def stop_on_signals(stop: asyncio.Event, signals: tuple[signal.Signals, ...]) -> None:
    """Set `stop` at the first of the signals; a second one ends the program at once, as if it had no handler."""
    loop = asyncio.get_running_loop()

    def first(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, first, number)


async def watch(agent: Agent, stop: asyncio.Event, for_seconds: float | None) -> None:
    """Watch until a signal, the end of the targets, or `for_seconds`."""
    stop_on_signals(stop, (signal.SIGINT, signal.SIGTERM))
    if for_seconds is not None:
        asyncio.get_running_loop().call_later(for_seconds, stop.set)
    await agent.run(stop)
