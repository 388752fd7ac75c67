"""`sentinel-agent run -- CMD`: start a command and watch it and its children."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import click

from sentinel_agent.cli.common import common_options
from sentinel_agent.cli.reporter import Reporter
from sentinel_agent.cli.session import agent_for
from sentinel_agent.errors import NoSuchTargetError, OperatorError
from sentinel_agent.watchlist import WatchRequest

if TYPE_CHECKING:
    from sentinel_agent.cli.common import Invocation

_PASSED_ON = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--json", "as_json", is_flag=True, help="One JSON event per line, on stderr.")
@common_options
def run(invocation: Invocation, command: tuple[str, ...], as_json: bool) -> int:
    """Start a command, watch it and its children, and end with its exit status (128 + N if signal N killed it).

    Signals are passed on. Stdout is the command's alone; what the agent says goes to stderr.
    """
    reporter = Reporter(invocation.data_dir, as_json=as_json, to_stderr=True)
    return asyncio.run(_run(invocation, command, reporter))


async def _run(invocation: Invocation, command: tuple[str, ...], reporter: Reporter) -> int:
    store = (
        invocation.store().open()
    )  # what is wrong with the data directory is said before the command starts
    try:
        child = subprocess.Popen(command)  # noqa: ASYNC220 - its end is seen through a pidfd, nothing waits here
    except OSError as error:
        raise OperatorError(
            f"{command[0]} cannot be started: {error.strerror}", hint="give the command after `--`"
        ) from error
    _pass_signals_on(child)
    try:
        agent = agent_for(invocation, store, WatchRequest((child.pid,), allow_non_python=True), reporter)
        if agent.url:
            reporter.note(f"Look at it in a browser: {agent.url}", dim=True)
        await agent.run(asyncio.Event())
    except NoSuchTargetError:  # it ended before it could be looked at
        pass
    except BaseException:
        child.terminate()
        await asyncio.to_thread(child.wait)
        raise
    status = await asyncio.to_thread(child.wait)
    return status if status >= 0 else 128 - status


def _pass_signals_on(child: subprocess.Popen[bytes]) -> None:
    """Every signal that ends or steers a service goes to the child; when it ends, so do we.

    Ctrl-C at a terminal reaches the child by itself, being of the same process group; it must not come twice.
    """
    loop = asyncio.get_running_loop()
    for number in _PASSED_ON:
        loop.add_signal_handler(number, child.send_signal, number)
    if sys.stdin.isatty():
        loop.add_signal_handler(signal.SIGINT, lambda: None)
    else:
        loop.add_signal_handler(signal.SIGINT, child.send_signal, signal.SIGINT)
