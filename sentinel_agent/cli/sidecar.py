"""`sentinel-agent sidecar`: the entry point of the image: waits for targets, outlives them, takes up those that come.

It must never hold up or take down the pod that it lives in, and a container that ends again and again makes its pod not
ready. So what ends other verbs (a faulty configuration, a data directory or an address that cannot be used) is told, and the rest goes on.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import click
import msgspec

from sentinel_agent.cli.common import lenient_options
from sentinel_agent.cli.reporter import Reporter
from sentinel_agent.cli.session import agent_for, stop_on_signals
from sentinel_agent.clock import SystemClock
from sentinel_agent.core.event import Trouble
from sentinel_agent.errors import OperatorError, StoreError
from sentinel_agent.watchlist import WatchRequest

if TYPE_CHECKING:
    from sentinel_agent.agent import Agent
    from sentinel_agent.cli.common import Invocation
    from sentinel_agent.store.store import Store

RETRY_SECONDS = 10.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON event per line.")
@lenient_options
def sidecar(invocation: Invocation, as_json: bool) -> None:
    """Watch the neighbours: every Python process in the same pod or on the node, or those that `target.*` describes.

    Waits for them, outlives them and takes up the ones that come. Each is told from the others by its service, its pod
    and its worker slot, so that limits outlive restarts. It does not end for a faulty configuration or data directory:
    it says what is wrong and waits until it is mended. SIGTERM ends it in order, incidents under way sealed or
    discarded whole.
    """
    asyncio.run(_sidecar(invocation, Reporter(invocation.data_dir, as_json=as_json)))


async def _sidecar(invocation: Invocation, reporter: Reporter) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop, (signal.SIGINT, signal.SIGTERM))
    reporter.note(f"waiting for targets; incidents go to {invocation.data_dir}/incidents", dim=True)
    told = None
    while not stop.is_set():
        try:
            store = await asyncio.to_thread(invocation.store().open)
            await _agent(invocation, store, reporter).run(stop)
        except StoreError as error:
            what = f"nothing is watched, because nothing could be kept: {error.message}"
            if what != told:
                reporter(Trouble(SystemClock().wall(), what))
            told = what
            await _pause(stop)


def _agent(invocation: Invocation, store: Store, reporter: Reporter) -> Agent:
    """The agent; where its address cannot be had or lacks a token, one that does not listen."""
    request = WatchRequest(everything=True)
    try:
        return agent_for(invocation, store, request, reporter)
    except OperatorError as error:
        what = f"the web page and the HTTP API are off: {error.message}"
        reporter(Trouble(SystemClock().wall(), f"{what}; {error.hint}" if error.hint else what))
    settings = msgspec.structs.replace(invocation.loaded.settings, listen="off")
    silent = replace(invocation, loaded=replace(invocation.loaded, settings=settings))
    return agent_for(silent, store, request, reporter)


async def _pause(stop: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stop.wait(), RETRY_SECONDS)
    except TimeoutError:
        return
