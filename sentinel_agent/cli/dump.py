"""`sentinel-agent dump PID`: one incident now, by hand."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import TYPE_CHECKING

import click
import msgspec
from rich.text import Text

from sentinel_agent.capture.registry import load_captures
from sentinel_agent.capture.runner import CaptureRunner
from sentinel_agent.cli import output
from sentinel_agent.cli.common import common_options
from sentinel_agent.cli.options import DurationType
from sentinel_agent.cli.reporter import label, show_command
from sentinel_agent.clock import SystemClock
from sentinel_agent.core.budget import Budget
from sentinel_agent.core.event import IncidentLost
from sentinel_agent.core.rule import CaptureSpec
from sentinel_agent.errors import OperatorError, SentinelError
from sentinel_agent.probes.base import Moment
from sentinel_agent.probes.registry import load_registry
from sentinel_agent.recorder.deck import SPOOL_SECONDS, make_deck
from sentinel_agent.responder import DiskThread, Responder, manual_firing
from sentinel_agent.standing import running_agents
from sentinel_agent.store.status import read_all
from sentinel_agent.watchlist import series_of

if TYPE_CHECKING:
    from sentinel_agent.cli.common import Invocation
    from sentinel_agent.core.event import Event
    from sentinel_agent.core.model import Incident, Role, TargetId
    from sentinel_agent.sampler import TargetSeries
    from sentinel_agent.store.store import Store

_TICKS = 3
_TICK_SECONDS = 0.1
_DEFAULT = "stacks,profile,process"
_SPOOLED_SECONDS = SPOOL_SECONDS + 0.5
"""After this long an agent that watches the process has spooled its stacks up to now."""
_LOOK_BACK = 10.0
"""Seconds before now that count as the moment that was asked for."""


@click.command()
@click.argument("pid", metavar="PID", type=click.IntRange(min=1))
@click.option(
    "--capture", "kinds", default=_DEFAULT, show_default=True, metavar="KIND,...", help="What to capture."
)
@click.option("--duration", type=DurationType(), metavar="5s", help="How long a profile takes.")
@click.option("--pause", is_flag=True, help="Stop the target while its stacks are read, for exactness.")
@click.option("--any", "allow_non_python", is_flag=True, help="Also a process that is not Python.")
@click.option("--json", "as_json", is_flag=True, help="The incident document.")
@common_options
def dump(
    invocation: Invocation,
    pid: int,
    kinds: str,
    duration: float | None,
    pause: bool,
    allow_non_python: bool,
    as_json: bool,
) -> None:
    """Save one incident of a running process now: what a rule would capture, by hand.

    By default nothing is run in the process and it is not paused.
    """
    known = load_captures().captures
    wanted = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    unknown = [kind for kind in wanted if kind not in known]
    if unknown or not wanted:
        raise OperatorError(
            f"no capture {', '.join(map(repr, unknown)) or 'was named'}",
            hint=f"there are: {', '.join(sorted(known))}",
        )
    if duration is not None and not 0 < duration <= 60:
        raise OperatorError(
            f"a profile of {duration:g} s is not possible: expected more than 0 and at most 60 s"
        )
    roles = _roles(invocation)
    series = series_of(
        pid, invocation.loaded.settings, load_registry(), allow_non_python=allow_non_python, roles=roles
    )
    watched = series.target.id in roles
    specs = tuple(
        CaptureSpec(
            kind,
            duration=_SPOOLED_SECONDS if kind == "stacks" and watched and duration is None else duration,
            pause=pause and kind == "stacks",
        )
        for kind in wanted
    )
    try:
        incident = _with_progress(invocation, series, specs, quiet=as_json)
    finally:
        series.close()
    if as_json:
        output.print_json(incident)
    else:
        click.echo(f"saved incident {incident.id} of {label(incident.target)}")
        for report in incident.captures:
            if report.status != "ok":
                click.secho(f"  {report.kind} {report.status}: {output.clean(report.reason)}", fg="yellow")
        click.echo(f"  {show_command(invocation.data_dir, 'incidents', 'show', incident.id)}")
    if not any(report.status == "ok" and report.kind in wanted for report in incident.captures):
        raise SentinelError(
            "none of the captures that were asked for succeeded; only the readings were saved"
        )


def _roles(invocation: Invocation) -> dict[TargetId, Role]:
    """The roles of what agents of this data directory watch: under them lies what they have recorded."""
    agents = running_agents(invocation.data_dir, SystemClock().wall()).agents
    return {state.target.id: state.target.role for agent in agents for state in agent.targets}


def _with_progress(
    invocation: Invocation, series: TargetSeries, specs: tuple[CaptureSpec, ...], *, quiet: bool
) -> Incident:
    """Run it with a spinner on a terminal."""
    screen = output.console(stderr=True)
    if quiet or not screen.is_terminal:
        return asyncio.run(_dump(invocation, series, specs))
    names = ", ".join(spec.kind for spec in specs)
    with screen.status(Text(f"capturing {names} of {label(series.target)}")):
        return asyncio.run(_dump(invocation, series, specs))


async def _dump(invocation: Invocation, series: TargetSeries, specs: tuple[CaptureSpec, ...]) -> Incident:
    settings, clock = invocation.loaded.settings, SystemClock()
    lost: list[str] = []

    def tell(event: Event) -> None:
        if isinstance(event, IncidentLost):
            lost.append(event.why)

    for _ in range(_TICKS):
        series.read(Moment(wall=clock.wall(), monotonic=clock.monotonic()))
        await clock.sleep(_TICK_SECONDS)
    disk = DiskThread()
    try:
        responder = Responder(
            store=_store(invocation, clock.wall()),
            disk=disk,
            runner=CaptureRunner(load_captures(clock=clock), settings.capture, clock=clock),
            budget=Budget(
                concurrency=1, incidents_per_hour=1, bytes_per_hour=settings.capture.max_bytes_per_hour
            ),
            clock=clock,
            host=socket.gethostname(),
            interval=_TICK_SECONDS,
            window_before=settings.capture.window_before,
            tell=tell,
        )
        responder.deck = make_deck(settings, invocation.data_dir, clock, lambda _: 0.0, lambda _: None)
        now = clock.wall()
        firing = manual_firing(series, "asked for by hand", specs, now, since=now - _LOOK_BACK)
        ticking = asyncio.create_task(_tick(series, clock))
        try:
            incident = await responder.respond(firing, series)
        finally:
            ticking.cancel()
    finally:
        disk.close()
    if incident is None:
        raise SentinelError(f"nothing was saved: {lost[-1] if lost else 'unknown reason'}")
    return incident


async def _tick(series: TargetSeries, clock: SystemClock) -> None:
    """Go on reading during the captures: their guards judge by what is true at their moment."""
    while True:
        await clock.sleep(_TICK_SECONDS)
        series.read(Moment(wall=clock.wall(), monotonic=clock.monotonic()))


def _store(invocation: Invocation, now: float) -> Store:
    """Where an agent runs, retention is its business alone: it may have been given wider bounds than this call."""
    store = invocation.store()
    if any(status.alive for status in read_all(invocation.data_dir, now)):
        store.settings = msgspec.structs.replace(
            store.settings, max_incidents=sys.maxsize, max_age=float("inf"), max_bytes=sys.maxsize
        )
    return store.open()
