"""`sentinel-agent sidecar`: the entry point of the image: waits for targets, outlives them, takes up those that come.

It must never hold up or take down the pod that it lives in, and a container that ends again and again makes its pod not
ready. So what ends other verbs (a faulty configuration, a data directory that cannot be used) is told and waited out here.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import click

from sentinel_agent.cli.common import lenient_options
from sentinel_agent.cli.reporter import Reporter
from sentinel_agent.cli.session import agent_for, stop_on_signals
from sentinel_agent.clock import SystemClock
from sentinel_agent.core.event import Trouble
from sentinel_agent.errors import StoreError
from sentinel_agent.watchlist import WatchRequest

if TYPE_CHECKING:
    from sentinel_agent.cli.common import Invocation

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
            await agent_for(invocation, store, WatchRequest(everything=True), reporter).run(stop)
        except StoreError as error:
            what = f"nothing is watched, because nothing could be kept: {error.message}"
            if what != told:
                reporter(Trouble(SystemClock().wall(), what))
            told = what
            await _pause(stop)


async def _pause(stop: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stop.wait(), RETRY_SECONDS)
    except TimeoutError:
        return
