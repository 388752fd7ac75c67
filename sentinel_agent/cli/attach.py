"""`sentinel-agent attach PID... / --match REGEX`: watch running processes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from sentinel_agent.cli.common import common_options
from sentinel_agent.cli.options import DurationType, RegexType
from sentinel_agent.cli.reporter import Reporter
from sentinel_agent.cli.session import agent_for, watch
from sentinel_agent.core.units import format_duration
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.watchlist import WatchRequest

if TYPE_CHECKING:
    from sentinel_agent.cli.common import Invocation


@click.command()
@click.argument("pids", metavar="PID...", nargs=-1, type=click.IntRange(min=1))
@click.option(
    "--match",
    type=RegexType(),
    metavar="REGEX",
    help="Watch every Python process whose command line matches.",
)
@click.option(
    "--for", "for_seconds", type=DurationType(), metavar="30s", help="Stop by itself after this time."
)
@click.option(
    "--any", "allow_non_python", is_flag=True, help="Also take processes that are not Python (readings only)."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON event per line.")
@common_options
def attach(
    invocation: Invocation,
    pids: tuple[int, ...],
    match: str | None,
    for_seconds: float | None,
    allow_non_python: bool,
    as_json: bool,
) -> None:
    """Watch running processes and save an incident whenever a rule fires.

    Children are followed: the workers of a pre-fork server are targets of their own. Nothing is run in a target
    and it is never paused. Ends with Ctrl-C, when all PIDs have ended, or after `--for`.
    """
    settings = invocation.loaded.settings
    if not pids and not match and not settings.target.match:
        raise click.UsageError("Nothing to watch: give one or more PIDs, or --match REGEX.")
    reporter = Reporter(invocation.data_dir, as_json=as_json)
    request = WatchRequest(pids, match, allow_non_python)
    asyncio.run(_attach(invocation, request, reporter, for_seconds))


async def _attach(
    invocation: Invocation, request: WatchRequest, reporter: Reporter, for_seconds: float | None
) -> Any:
    agent = agent_for(invocation, invocation.store().open(), request, reporter)
    settings = invocation.loaded.settings
    enabled = sum(each.rule.enabled for each in invocation.loaded.rules)
    reporter.note(
        f"{enabled} rules, a reading every {format_duration(settings.sampler.interval)}; "
        f"incidents go to {invocation.data_dir}/incidents. Ctrl-C ends.",
        dim=True,
    )
    if agent.url:
        reporter.note(f"Look at it in a browser: {agent.url}", dim=True)
    await watch(agent, asyncio.Event(), for_seconds)
    if not agent.targets_seen and not (request.match or settings.target.match):
        raise NoSuchTargetError("none of the processes could be watched: see above, or they have just ended")
    if not agent.targets_seen and for_seconds is not None:
        raise NoSuchTargetError(
            f"no process matched {(request.match or settings.target.match)!r} within {format_duration(for_seconds)}",
            hint="look at the command lines with: ps -eo pid,args",
        )
    count = len(reporter.sealed)
    reporter.note(f"{count} incident{'s' if count != 1 else ''} saved.", dim=True)
