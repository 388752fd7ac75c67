"""`sentinel-agent top`: the targets live in the terminal.

From a running agent, whose files are read; or, for processes that no agent of the data directory watches, from an agent of
its own without rules, whose files lie in a temporary folder and go with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from sentinel_agent.cli import output
from sentinel_agent.cli.common import common_options
from sentinel_agent.cli.options import DurationType, RegexType
from sentinel_agent.clock import SystemClock
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.standing import running_agents
from sentinel_agent.watchlist import WatchRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sentinel_agent.agent import Agent
    from sentinel_agent.cli.common import Invocation
    from sentinel_agent.cli.top_source import TopSource, TopView
    from sentinel_agent.cli.top_view import Choice

_OWN_SECONDS = 4.0
"""How long an agent of our own watches before a single frame: its status comes every second, its spool every two."""
_PIPE_WIDTH = 120
_HOT_IN_JSON = 16
"""Targets whose hottest functions are in the JSON document; each costs some 10 ms."""


@click.command()
@click.argument("pids", metavar="[PID...]", nargs=-1, type=click.IntRange(min=1))
@click.option(
    "--match", type=RegexType(), metavar="REGEX", help="Every Python process whose command line matches."
)
@click.option("--once", is_flag=True, help="Print one frame and end; without a terminal this is the default.")
@click.option(
    "--interval",
    type=DurationType(),
    default=1.0,
    metavar="1s",
    help="Time between two looks.  [default: 1s]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@common_options
def top(
    invocation: Invocation,
    pids: tuple[int, ...],
    match: str | None,
    once: bool,
    interval: float,
    as_json: bool,
) -> None:
    """Show the targets live: readings, hottest functions, task groups, rules, incidents.

    Without PID and --match, and for PIDs that an agent of the data directory watches already, it shows what that agent knows.
    Other processes it watches by itself while it runs; then no rule is judged and nothing is saved. Nothing is run in a
    process and it is not paused.
    """
    once = once or as_json or not sys.stdout.isatty()
    interval = min(max(interval, 0.2), 60.0)
    asyncio.run(_top(invocation, WatchRequest(pids, match), interval, once=once, as_json=as_json))


async def _top(
    invocation: Invocation, request: WatchRequest, interval: float, *, once: bool, as_json: bool
) -> None:
    clock = SystemClock()
    agents = running_agents(invocation.data_dir, clock.wall()).agents
    watched = {state.target.pid for agent in agents for state in agent.targets}
    if request.match is None and watched.issuperset(request.pids):
        if not agents:
            raise NoSuchTargetError(
                f"no agent runs on {invocation.data_dir}",
                hint="name processes: sentinel-agent top PID, or start one: sentinel-agent attach PID",
            )
        await _show(_source(invocation, request.pids), interval, once=once, as_json=as_json)
        return
    with tempfile.TemporaryDirectory(prefix="sentinel-top-", ignore_cleanup_errors=True) as folder:
        async with _own_agent(invocation, request, Path(folder)) as own:
            if once:
                await clock.sleep(_OWN_SECONDS)
            await _show(_source(own, ()), interval, once=once, as_json=as_json)


def _source(invocation: Invocation, only: tuple[int, ...]) -> TopSource:
    from sentinel_agent.cli.top_source import TopSource  # noqa: PLC0415 - not for `--help`

    return TopSource(invocation.data_dir, invocation.loaded.settings, invocation.store(), only)


@contextlib.asynccontextmanager
async def _own_agent(
    invocation: Invocation, request: WatchRequest, folder: Path
) -> AsyncIterator[Invocation]:
    """An agent that only watches, while the block runs.

    Raises:
        TargetError: a process cannot be watched.
    """
    from sentinel_agent.cli.session import agent_for  # noqa: PLC0415 - imports the whole agent

    settings = msgspec.structs.replace(
        invocation.loaded.settings,
        listen="off",
        exporters={},
        postmortem=msgspec.structs.replace(invocation.loaded.settings.postmortem, enabled=False),
    )
    loaded = replace(invocation.loaded, settings=settings, rules=(), files={})
    own = replace(invocation, loaded=loaded, data_dir=folder)
    agent = agent_for(own, own.store().open(), request, lambda _: None)
    stop = asyncio.Event()
    running = asyncio.create_task(agent.run(stop))
    try:
        await _first_target(agent, running)
        yield own
    finally:
        stop.set()
        await running


async def _first_target(agent: Agent, running: asyncio.Task[None]) -> None:
    for _ in range(100):
        if agent.targets_seen or running.done():
            break
        await asyncio.sleep(0.05)
    if not agent.targets_seen:
        raise NoSuchTargetError(
            "no process was found to watch", hint="look at the command lines with: ps -eo pid,args"
        )


async def _show(source: TopSource, interval: float, *, once: bool, as_json: bool) -> None:
    now = SystemClock().wall()
    if as_json:
        view = source.look(now)
        output.print_json(source.with_hottest(view, [target.pid for target in view.targets[:_HOT_IN_JSON]]))
    elif once:
        await _one_frame(source, now)
    else:
        await _live(source, interval)


async def _one_frame(source: TopSource, now: float) -> None:
    from sentinel_agent.cli.top_view import Choice, frame  # noqa: PLC0415 - imports rich

    view = await _look(source, now, Choice())
    screen = output.console()
    width = screen.width if sys.stdout.isatty() else _PIPE_WIDTH
    for line in frame(view, Choice(), width, None):
        screen.print(line, soft_wrap=True)


async def _look(source: TopSource, now: float, choice: Choice) -> TopView:
    """What is shown; the hottest functions belong to the target that is chosen."""
    from sentinel_agent.cli.top_view import selected  # noqa: PLC0415 - imports rich

    def both() -> TopView:
        view = source.look(now)
        chosen = selected(view, choice)
        return source.with_hottest(view, [chosen.pid] if chosen else ())

    return await asyncio.to_thread(both)


async def _live(source: TopSource, interval: float) -> None:
    """Draw until `q`, Ctrl-C or a signal; a key and a new size are answered at once."""
    from rich.console import Group  # noqa: PLC0415 - heavy
    from rich.live import Live  # noqa: PLC0415 - as above

    from sentinel_agent.cli.keys import pressed  # noqa: PLC0415 - needs a terminal's modules
    from sentinel_agent.cli.session import stop_on_signals  # noqa: PLC0415 - imports the whole agent
    from sentinel_agent.cli.top_view import Choice, frame, press  # noqa: PLC0415 - imports rich

    clock, screen, choice = SystemClock(), output.console(), Choice()
    stop, resized = asyncio.Event(), asyncio.Event()
    stop_on_signals(stop, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, resized.set)
    view = await _look(source, clock.wall(), choice)
    due = clock.monotonic() + interval
    with (
        Live(console=screen, screen=True, auto_refresh=False) as live,
        pressed(sys.stdin.fileno()) as keys,
    ):
        while not (choice.quit or stop.is_set()):
            live.update(Group(*frame(view, choice, screen.width, screen.height)), refresh=True)
            key = await _next(keys, stop, resized, max(0.0, due - clock.monotonic()))
            before = choice
            while key is not None:
                choice = press(choice, key, view)
                key = None if keys.empty() else keys.get_nowait()
            if clock.monotonic() >= due or choice.pid != before.pid or choice.sort != before.sort:
                due = clock.monotonic() + interval
                if not choice.paused:
                    view = await _look(source, clock.wall(), choice)


async def _next(
    keys: asyncio.Queue[str], stop: asyncio.Event, resized: asyncio.Event, seconds: float
) -> str | None:
    """The next key, or None when it is time to draw again for another reason."""
    key = asyncio.ensure_future(keys.get())
    others = [asyncio.ensure_future(each.wait()) for each in (stop, resized)]
    try:
        await asyncio.wait((key, *others), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return key.result() if key.done() else None
    finally:
        resized.clear()
        for waiting in (key, *others):
            waiting.cancel()
