"""A worker process: reads the configuration, takes over the listening sockets, serves until it is told to stop.

Started by the supervisor as `python -m sentinel_agent.proxy.process`, which hands the sockets down as descriptors. When
the supervisor goes away without a word (its end of `--lifeline` closes), the worker drains and ends: a supervisor that
is started anew must find the addresses free.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from sentinel_agent.errors import SentinelError
from sentinel_agent.proxy.config import load_proxy
from sentinel_agent.proxy.tap import Tap
from sentinel_agent.proxy.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sentinel_agent.proxy.config import ProxyConfig

READY = b"ready\n"


async def serve(
    config: ProxyConfig,
    sockets: Mapping[str, socket.socket],
    *,
    tap: Path | None,
    lifeline: int | None,
    ready: int | None,
) -> None:
    """Serve until SIGTERM, SIGINT or the end of the lifeline, then drain."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    worker = Worker(config, sockets, tap=Tap(tap) if tap is not None else None)
    await worker.start()
    # What the configuration made lives as long as the process: it need not be looked at by every collection.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    if lifeline is not None:
        loop.add_reader(lifeline, stop.set)
    if ready is not None:
        os.write(ready, READY)
        os.close(ready)
    await stop.wait()
    if lifeline is not None:
        loop.remove_reader(lifeline)
    await worker.stop(config.drain)


def main() -> None:
    """Run a worker; exit status 2 if it cannot be set up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--listen", action="append", default=[], metavar="NAME=FD")
    parser.add_argument("--tap", type=Path, help="the agent's socket")
    parser.add_argument("--lifeline", type=int)
    parser.add_argument("--ready", type=int)
    parser.add_argument("--name", default="", help="shown in the list of processes")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s worker %(process)d %(message)s")
    try:
        config = load_proxy(options.config).config
        sockets = {}
        for entry in options.listen:
            name, _, descriptor = entry.rpartition("=")
            sockets[name] = socket.socket(fileno=int(descriptor))
        uvloop.run(serve(config, sockets, tap=options.tap, lifeline=options.lifeline, ready=options.ready))
    except SentinelError as error:
        sys.stderr.write(f"{error.message}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
