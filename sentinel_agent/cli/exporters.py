"""`sentinel-agent exporters` and `exporters test NAME`: what leaves the house, what was lost, what a backend answers."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from click.core import ParameterSource

from sentinel_agent import __version__
from sentinel_agent.cli import output
from sentinel_agent.cli.common import common_options
from sentinel_agent.clock import SystemClock
from sentinel_agent.errors import OperatorError
from sentinel_agent.export.base import ExporterContext, LineStatus
from sentinel_agent.export.hub import try_out
from sentinel_agent.export.registry import as_exporter, as_view, installed, make
from sentinel_agent.export.specimen import specimens
from sentinel_agent.profile import pprof
from sentinel_agent.profile.record import RecordBuilder
from sentinel_agent.status import AgentStatus
from sentinel_agent.store.status import read_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click import Context

    from sentinel_agent.cli.common import Invocation
    from sentinel_agent.export.registry import Made

_COLOURS = {"delivering": "green", "retrying": "yellow", "refused": "red"}


class _Row(msgspec.Struct, frozen=True):
    """One signal of one exporter, of a running agent or as configured."""

    agent_pid: int | None
    status: LineStatus


class _Answer(msgspec.Struct, frozen=True):
    """What came of sending one item."""

    exporter: str
    signal: str
    taken: bool
    answer: str


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@common_options
@click.pass_context
def exporters(ctx: Context, invocation: Invocation, as_json: bool) -> None:
    """List exporters: state, last answer, what waits and what was lost."""
    if ctx.invoked_subcommand is not None:
        given = [name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if given:
            raise click.UsageError(f"options stand after the verb: exporters {ctx.invoked_subcommand} ...")
        return
    rows = list(_rows(invocation))
    if as_json:
        output.print_json([{"agent_pid": row.agent_pid, **msgspec.to_builtins(row.status)} for row in rows])
        return
    if not rows:
        click.echo("No exporter sends anything. docs/exporters.md shows how to configure one.")
        return
    _print_rows(rows)


def _rows(invocation: Invocation) -> Iterator[_Row]:
    """Of every running agent of this data directory; without one, what is configured."""
    now = SystemClock().wall()
    running = False
    for status in read_all(invocation.data_dir, now):
        if not status.alive:
            continue
        running = True
        try:
            found = msgspec.json.decode(status.document, type=AgentStatus)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            click.secho("An agent of another version runs here; it is not shown.", fg="yellow", err=True)
            continue
        yield from (_Row(found.pid, line) for line in found.exporters)
    if running:
        return
    for name, options in invocation.loaded.settings.exporters.items():
        kind = options.kind or name
        factory = installed()[kind]
        for signal in factory.signals if hasattr(factory, "send") else ():
            if options.signals is not None and signal not in options.signals:
                continue
            yield _Row(None, LineStatus(name, kind, signal, "idle", 0, 0, 0, 0, 0, {}, ()))


def _print_rows(rows: list[_Row]) -> None:
    output.print_table(
        ("EXPORTER", "SIGNAL", "STATE", "SENT", "WAITING", "ON DISK", "LOST", "LAST SUCCESS"),
        [
            (
                row.status.exporter,
                row.status.signal or "-",
                row.status.state if row.agent_pid else "no agent",
                str(row.status.sent),
                str(row.status.queued + row.status.waiting),
                output.show_value(row.status.spooled_bytes, "bytes"),
                str(sum(row.status.lost.values())),
                output.show_time(row.status.last_success) if row.status.last_success else "-",
            )
            for row in rows
        ],
        right=(3, 4, 5, 6),
    )
    for row in rows:
        line = row.status
        if line.last_error and line.state != "delivering":
            click.secho(output.clean(f"{_label(line)}: {line.last_error}"), fg=_COLOURS.get(line.state))
        for loss in line.losses:
            since, until = (output.show_time(each) for each in (loss.since, loss.until))
            words = f"{_label(line)}: {loss.items} lost ({loss.reason}), from {since} to {until}"
            click.secho(output.clean(words), fg="yellow")


def _label(line: LineStatus) -> str:
    return f"{line.exporter} {line.signal}".rstrip()


@exporters.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@common_options
def test(invocation: Invocation, name: str, as_json: bool) -> int:
    """Send one item of each signal and print what the server answered.

    NAME is an entry of the `exporters` section. The items are of the service `sentinel-agent-test`. Ends with 1 if one
    was not taken.
    """
    entries = invocation.loaded.settings.exporters
    if name not in entries:
        known = ", ".join(entries) or "none is configured"
        raise OperatorError(f"there is no exporter {name!r}", hint=f"known: {known}")
    context = ExporterContext(name, SystemClock(), __version__, socket.gethostname())
    made = make(name, entries[name], context, installed())
    if made.exporter is None:
        raise OperatorError(f"exporter {name} cannot be made: {made.fault}")
    answers = asyncio.run(_try(made, context))
    if as_json:
        output.print_json(answers)
    else:
        for each in answers:
            click.secho(f"{each.signal:>9} ", nl=False, bold=True)
            click.secho(output.clean(each.answer), fg="green" if each.taken else "red")
    return int(not all(each.taken for each in answers))


async def _try(made: Made, context: ExporterContext) -> list[_Answer]:
    view = as_view(made)
    if view is not None:
        content_type, page = await asyncio.to_thread(view.render, None)
        series = sum(1 for line in page.splitlines() if line and not line.startswith(b"#"))
        return [
            _Answer(
                made.name,
                "metrics",
                True,
                f"{series} series as {content_type}; it is asked, it sends nothing",
            )
        ]
    exporter = as_exporter(made)
    assert exporter is not None
    answers = []
    with tempfile.TemporaryDirectory(prefix="sentinel-") as folder:
        items = specimens(context.clock.wall(), context.host, __version__, Path(folder), _profile())
        for signal in made.signals:
            taken, words = await try_out(exporter, signal, items[signal], made.options.timeout)
            answers.append(_Answer(made.name, signal, taken, words))
        await exporter.close()
    return answers


def _profile() -> bytes:
    """A pprof with one stack."""
    builder = RecordBuilder(start=0.0, period=0.01, source="test")
    builder.add(builder.thread(1, "main"), [builder.frame("exporter_test", "test.py", 1)], weight=0.01)
    return pprof.encode(builder.build())
