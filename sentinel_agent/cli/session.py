"""One stretch of watching from the command line: the agent, the signals that end it, the time it may take."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from sentinel_agent.agent import Agent
from sentinel_agent.api.guard import Guard, parse_address
from sentinel_agent.api.server import AddressInUseError, HttpServer
from sentinel_agent.clock import SystemClock
from sentinel_agent.config.load import DEFAULT
from sentinel_agent.config.watch import Reloader
from sentinel_agent.core.event import Trouble

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
    """The agent on an open store, listening; what is wrong with the targets or the address is raised here.

    The usual address may belong to another agent already: that is told, and this one goes on without. One that was
    asked for must be had.
    """
    clock = SystemClock()
    reloader = Reloader(invocation.inputs, invocation.loaded)
    reloader.last_error = invocation.fault
    try:
        http = http_server(invocation, store)
    except AddressInUseError as error:
        if invocation.loaded.sources["listen"] != DEFAULT:
            raise
        tell(Trouble(clock.wall(), f"the web page and the HTTP API are off: {error.message}; {error.hint}"))
        http = None
    try:
        agent = Agent(request, reloader, store, clock, tell, http, tap)
    except BaseException:
        if http is not None:
            http.close()
        raise
    return agent


def http_server(invocation: Invocation, store: Store) -> HttpServer | None:
    """What listens, as the settings say; None for `off`.

    Raises:
        OperatorError: the address cannot be had, or needs a token.
    """
    settings = invocation.loaded.settings
    address = parse_address(settings.listen)
    if address is None:
        return None
    guard = Guard(address, settings.api.read_tokens, settings.api.capture_tokens)
    return HttpServer(guard, store, SystemClock(), settings.api)


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
