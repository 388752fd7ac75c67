"""`sentinel-agent serve`: the web page and the HTTP API over a data directory, with no agent."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import click

from sentinel_agent.cli.common import common_options
from sentinel_agent.cli.session import http_server, stop_on_signals
from sentinel_agent.errors import OperatorError

if TYPE_CHECKING:
    from sentinel_agent.api.server import HttpServer
    from sentinel_agent.cli.common import Invocation


@click.command()
@common_options
def serve(invocation: Invocation) -> None:
    """Show a data directory in the browser and to Grafana, without watching anything; for one that was copied here, say."""
    if not invocation.data_dir.is_dir():
        raise OperatorError(
            f"there is no data directory {invocation.data_dir}", hint="name it with --data-dir"
        )
    server = http_server(invocation, invocation.store())
    if server is None:
        raise OperatorError("--listen off leaves nothing to serve", hint="leave it out")
    click.echo(f"{invocation.data_dir} is shown at {server.address.url}  Ctrl-C ends.")
    asyncio.run(_serve(server))


async def _serve(server: HttpServer) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop, (signal.SIGINT, signal.SIGTERM))
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.run())
        await stop.wait()
        serving.cancel()
