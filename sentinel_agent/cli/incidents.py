"""`sentinel-agent incidents list / show / export / delete`: the store."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from click.shell_completion import CompletionItem

from sentinel_agent.cli import output
from sentinel_agent.cli.common import common_options
from sentinel_agent.cli.options import TimeType
from sentinel_agent.cli.reporter import show_command
from sentinel_agent.cli.scene import describe
from sentinel_agent.core.units import format_size
from sentinel_agent.errors import NoSuchIncidentError, OperatorError, SentinelError
from sentinel_agent.findings.load import load_record, read_findings
from sentinel_agent.store.archive import pack
from sentinel_agent.store.index import IncidentFilter
from sentinel_agent.store.store import default_data_dir

if TYPE_CHECKING:
    from collections.abc import Callable

    from click import Context, Parameter

    from sentinel_agent.cli.common import Invocation
    from sentinel_agent.core.model import Incident
    from sentinel_agent.profile.record import ProfileRecord

_FORMATS = ("pprof", "speedscope", "collapsed", "svg", "zip")
_SUFFIX = {
    "pprof": "pb.gz",
    "speedscope": "speedscope.json",
    "collapsed": "collapsed.txt",
    "svg": "svg",
    "zip": "zip",
}


def _complete_id(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
    """The ids that begin like this, newest first, each with its rule."""
    named = ctx.params.get("data_dir") or os.environ.get("SENTINEL_DATA_DIR")
    data_dir = Path(named) if named else default_data_dir(os.environ, Path.home())
    try:
        folders = sorted((entry.name for entry in (data_dir / "incidents").iterdir()), reverse=True)
    except OSError:
        return []
    return [CompletionItem(name) for name in folders if name.startswith(incomplete) and name[0] != "."][:50]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def incidents() -> None:
    """List, show, export and delete incidents."""


@incidents.command("list")
@click.option("--rule", help="Only incidents of this rule.")
@click.option("--target", help="Only of this target: service, service/instance or service/instance/worker.")
@click.option(
    "--since", type=TimeType(), help="Only since then: 2h, 2026-11-23, 2026-11-23T04:15 or Unix seconds."
)
@click.option("--until", type=TimeType(), help="Only until then.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many of the newest.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@common_options
def list_incidents(
    invocation: Invocation,
    rule: str | None,
    target: str | None,
    since: float | None,
    until: float | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List what was saved, newest first."""
    store = invocation.store()
    rows = store.list(IncidentFilter(rule, target, since, until, limit))
    if as_json:
        output.print_json(rows)
        return
    if rows and output.is_narrow():
        for row in rows:
            when = f"{output.show_time(row.time)[:19]}  {row.rule} on {row.target} ({row.pid})"
            output.say(output.clean(f"{row.id}  {when}"), bold=True)
            output.say(output.clean(f"    {row.summary}"))
    elif rows:
        output.print_table(
            ("ID", "WHEN", "RULE", "TARGET", "VALUE", "WHY"),
            [
                (
                    row.id,
                    output.show_time(row.time)[:19],
                    row.rule,
                    f"{row.target} ({row.pid})",
                    output.show_value(row.value, row.unit),
                    row.summary,
                )
                for row in rows
            ],
            right=(4,),
        )
    if rows:
        click.echo(f"\nTo read one: {show_command(invocation.data_dir, 'incidents', 'show', rows[0].id)}")
    else:
        click.echo(
            f"No incidents in {invocation.data_dir}. Why a rule does not fire: sentinel-agent rules list"
        )
    for broken in store.unreadable():
        click.secho(f"Not readable: {broken.id}: {output.clean(broken.reason)}", fg="yellow", err=True)


@incidents.command()
@click.argument("incident_id", metavar="ID", shell_complete=_complete_id)
@click.option("--stacks", is_flag=True, help="All thread stacks, not only the most frequent.")
@click.option("--json", "as_json", is_flag=True, help="The incident document, with what was found.")
@common_options
def show(invocation: Invocation, incident_id: str, stacks: bool, as_json: bool) -> None:
    """Show one incident: what happened, where the time went, what was captured. The start of an ID is enough."""
    store = invocation.store()
    incident = store.read(incident_id)
    if as_json:
        findings = msgspec.to_builtins(read_findings(store.path(incident.id), incident))
        output.print_json(msgspec.to_builtins(incident) | findings)
        return
    screen = output.console()
    for heading, text in describe(incident, store.path(incident.id), stacks=stacks):
        if heading:
            screen.print()
            screen.print(heading, style="bold")
        width = output.columns()
        screen.print(text if width is None else output.wrapped(text, width), soft_wrap=True)
    screen.print()
    screen.print(
        f"To share it: {show_command(invocation.data_dir, 'incidents', 'export', incident.id, '--format', 'zip')}",
        style="dim",
        soft_wrap=True,
    )


@incidents.command()
@click.argument("incident_id", metavar="ID", shell_complete=_complete_id)
@click.option("--format", "form", type=click.Choice(_FORMATS), default="pprof", show_default=True)
@click.option("--route", metavar="NAME", help="Only what ran for this route of the embedded proxy.")
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=Path),
    metavar="F",
    help="File to write; `-` is stdout. Default: ID and the format's suffix, here.",
)
@common_options
def export(
    invocation: Invocation, incident_id: str, form: str, route: str | None, target: Path | None
) -> None:
    """Write an incident's profile in an open format, or the whole incident as a zip."""
    store = invocation.store()
    incident = store.read(incident_id)
    folder = store.path(incident.id)
    path = target or Path(f"{incident.id}.{_SUFFIX[form]}")
    if form == "zip":
        if route is not None:
            raise OperatorError(
                "a zip is the whole incident", hint="leave out --route, or choose another format"
            )
        content = _zipped(folder)
    else:
        record = load_record(folder, incident)
        if record is None:
            raise NoSuchIncidentError(
                f"incident {incident.id} has no profile: {_captures_in_words(incident)}",
                hint="export it whole with --format zip",
            )
        content = _encoder(form)(record if route is None else _of_route(record, route))
    if str(path) == "-":
        sys.stdout.buffer.write(content)
        return
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OperatorError(
            f"{path} cannot be written: {error.strerror}", hint="name another file with -o"
        ) from error
    click.echo(f"{path} ({format_size(len(content))})", err=True)


def _of_route(record: ProfileRecord, route: str) -> ProfileRecord:
    from sentinel_agent.profile.views import of_route, routes  # noqa: PLC0415 - only where it is asked for

    known = routes(record)
    if route not in known:
        raise NoSuchIncidentError(
            f"nothing in the profile ran for a route {route!r}",
            hint=f"routes in it: {', '.join(known)}" if known else "no filter of any route ran in it",
        )
    return of_route(record, route)


def _encoder(form: str) -> Callable[[ProfileRecord], bytes]:
    from sentinel_agent.profile import collapsed, pprof, speedscope, svg  # noqa: PLC0415 - only one is needed

    return {
        "pprof": pprof.encode,
        "speedscope": speedscope.encode,
        "collapsed": collapsed.encode,
        "svg": svg.encode,
    }[form]


def _zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    pack(folder, buffer)
    return buffer.getvalue()


def _captures_in_words(incident: Incident) -> str:
    return (
        ", ".join(f"{report.kind} {report.status}" for report in incident.captures) or "nothing was captured"
    )


@incidents.command()
@click.argument("incident_ids", metavar="ID...", nargs=-1, required=True, shell_complete=_complete_id)
@common_options
def delete(invocation: Invocation, incident_ids: tuple[str, ...]) -> None:
    """Delete incidents; whole IDs are asked for. The limits of the rules stay used."""
    store = invocation.store()
    missing: SentinelError | None = None
    for incident_id in incident_ids:
        try:
            store.delete(incident_id)
            click.echo(f"deleted {incident_id}", err=True)
        except NoSuchIncidentError as error:
            missing = error
            click.secho(error.message, fg="red", err=True)
    if missing is not None:
        raise missing
