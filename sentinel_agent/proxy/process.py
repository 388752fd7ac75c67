"""A worker process: takes over a configuration and its listeners' sockets, serves until it is told to stop.

Started by the supervisor as `python -m sentinel_agent.proxy.process --control FD`: what to serve comes over that socket, at
the start and whenever it changes. When the supervisor goes away without a word (its end closes), the worker drains and
ends: a supervisor that is started anew must find the addresses free. Without a supervisor, `--config` and `--listen` say
once what to serve.
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
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from sentinel_agent.errors import OperatorError, SentinelError
from sentinel_agent.proxy import control
from sentinel_agent.proxy.config import load_proxy, parse_proxy
from sentinel_agent.proxy.control import Configure, Drain, Ready, Refused
from sentinel_agent.proxy.questions import answer_questions
from sentinel_agent.proxy.reload import reload
from sentinel_agent.proxy.tap import Tap
from sentinel_agent.proxy.worker import Worker

if TYPE_CHECKING:
    from sentinel_agent.proxy.config import ProxyConfig

log = logging.getLogger(__name__)

READY = b"ready\n"
FIRST = 1
"""The number of the first configuration."""
FIRST_SECONDS = 20.0
Sockets = dict[str, socket.socket]


class Serving:
    """A worker and what it is told: other configurations, and to leave."""

    def __init__(
        self, worker: Worker, channel: socket.socket | None, questions: socket.socket | None
    ) -> None:
        self._worker = worker
        self._channel = channel
        self._questions = questions
        self._stop = asyncio.Event()
        self._work = asyncio.Lock()
        self._leave: float | None = None

    async def run(self, ready: int | None) -> None:
        """Serve until SIGTERM, SIGINT, word of the supervisor or its end; then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        await self._worker.start()
        if self._questions is not None:
            self._worker.spawn(answer_questions(self._questions, self._worker), "questions")
        settle()
        channel = self._channel
        if channel is not None:
            channel.setblocking(False)
            loop.add_reader(channel, self._hear, channel)
            control.send(channel, Ready(FIRST))
        if ready is not None:
            os.write(ready, READY)
            os.close(ready)
        await self._stop.wait()
        if channel is not None:
            loop.remove_reader(channel)
        if self._leave is not None:
            await self._worker.stop(self._leave, leave_idle=True)
        else:
            await self._worker.stop(self._worker.config.drain)

    def _hear(self, channel: socket.socket) -> None:
        try:
            letter = control.receive(channel)
        except BlockingIOError:
            return
        except (EOFError, OSError, ValueError):
            self._stop.set()
            return
        match letter.message:
            case Configure():
                self._worker.spawn(self._reload(channel, letter), "reload")
            case Drain(seconds):
                self._leave = seconds
                self._stop.set()
            case _:
                letter.close()

    async def _reload(self, channel: socket.socket, letter: control.Letter) -> None:
        async with self._work:
            sockets: Sockets = {}
            number = letter.message.number if isinstance(letter.message, Configure) else 0
            answer: Ready | Refused = Ready(number)
            try:
                config, sockets = opened(letter)
                await reload(self._worker, config, sockets)
            except (SentinelError, OSError) as error:
                for sock in sockets.values():
                    sock.close()
                answer = Refused(error.message if isinstance(error, SentinelError) else str(error), number)
            settle()
            with suppress(OSError):
                control.send(channel, answer)


async def serve(
    config: ProxyConfig, sockets: Sockets, channel: socket.socket | None, options: argparse.Namespace
) -> None:
    """Make a worker and let it serve.

    Raises:
        SentinelError, OSError: it cannot be made.
    """
    worker = Worker(config, sockets, tap=Tap(options.tap) if options.tap is not None else None)
    questions = None if options.questions is None else socket.socket(fileno=options.questions)
    await Serving(worker, channel, questions).run(options.ready)


def settle() -> None:
    """What the configuration made lives for long: it need not be looked at by every collection of garbage."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def opened(letter: control.Letter) -> tuple[ProxyConfig, Sockets]:
    """What a `Configure` hands over.

    Raises:
        OperatorError: it is of no use.
    """
    message = letter.message
    try:
        if not isinstance(message, Configure) or message.version != control.VERSION:
            raise OperatorError("the supervisor speaks another version: stop it and start it anew")
        if len(letter.descriptors) != 1 + len(message.listeners):
            raise OperatorError("the supervisor handed over too few sockets")
        text, *descriptors = letter.descriptors
        config = parse_proxy(message.name, control.text_of(text))
        letter.descriptors = [text]
        names = [name for name, _ in message.listeners]
        return config, {
            name: socket.socket(fileno=descriptor)
            for name, descriptor in zip(names, descriptors, strict=True)
        }
    finally:
        letter.close()


def main() -> None:
    """Run a worker; exit status 2 if it cannot be set up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control", type=int, help="the supervisor's socket")
    parser.add_argument("--config", type=Path, help="without a supervisor: what to serve")
    parser.add_argument("--listen", action="append", default=[], metavar="NAME=FD")
    parser.add_argument("--ready", type=int)
    parser.add_argument("--questions", type=int, help="the supervisor's other socket")
    parser.add_argument("--tap", type=Path, help="the agent's socket")
    parser.add_argument("--name", default="", help="shown in the list of processes")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s worker %(process)d %(message)s")
    channel = socket.socket(fileno=options.control) if options.control is not None else None
    try:
        config, sockets = _first(channel, options)
        uvloop.run(serve(config, sockets, channel, options))
    except (SentinelError, OSError) as error:
        message = error.message if isinstance(error, SentinelError) else str(error)
        if channel is not None:
            with suppress(OSError):
                control.send(channel, Refused(message, FIRST))
        else:
            sys.stderr.write(f"{message}\n")
        sys.exit(error.exit_code if isinstance(error, SentinelError) else 1)


def _first(channel: socket.socket | None, options: argparse.Namespace) -> tuple[ProxyConfig, Sockets]:
    if channel is not None:
        channel.settimeout(FIRST_SECONDS)
        try:
            return opened(control.receive(channel))
        except (EOFError, ValueError):
            raise SentinelError("the supervisor is gone") from None
    sockets = {}
    for entry in options.listen:
        name, _, descriptor = entry.rpartition("=")
        sockets[name] = socket.socket(fileno=int(descriptor))
    return load_proxy(options.config).config, sockets


if __name__ == "__main__":
    main()
