"""`sentinel-agent stacks PID`: what every thread of a process is doing, read from outside."""

from __future__ import annotations

import asyncio

import click

from sentinel_agent.capture.stacks import Stacks, StacksCapture, look
from sentinel_agent.cli import output
from sentinel_agent.cli.common import Invocation, common_options
from sentinel_agent.core.model import Role
from sentinel_agent.cpython.elf import UnsupportedTargetError
from sentinel_agent.target.discover import Process, resolve

_DEEPEST = 60


@click.command()
@click.argument("pid", metavar="PID", type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@common_options
def stacks(invocation: Invocation, pid: int, as_json: bool) -> None:
    """Show the stacks of all threads of a process, innermost frame first.

    Nothing is run in the process and it is not paused. A stack that changed while it was read is shown with a
    `<torn>` frame where the break is.
    """
    process = resolve(pid)
    try:
        found, _ = look(process.target(Role("", ""), ()))
    except UnsupportedTargetError as error:
        click.secho(f"{error.message}; asking py-spy instead", fg="yellow", err=True)
        found = _by_py_spy(process)
    if as_json:
        output.print_json(found)
        return
    for thread in found.threads:
        gil = {True: ", holds the GIL", False: "", None: ""}[thread.gil]
        click.secho(
            output.clean(f'Thread {thread.native_id} "{thread.name}": {thread.state}{gil}'), bold=True
        )
        for frame in thread.frames[:_DEEPEST]:
            output.say(
                output.clean(f"    {frame.function} ({output.short_path(frame.file)}:{frame.line})", 400)
            )
        if len(thread.frames) > _DEEPEST:
            click.echo(f"    ... {len(thread.frames) - _DEEPEST} more frames")


def _by_py_spy(process: Process) -> Stacks:
    target = process.target(Role("", ""), ())
    return asyncio.run(StacksCapture().read(target))[0]
