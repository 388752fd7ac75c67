"""`sentinel-agent tasks PID`: the asyncio tasks of a process, read from outside."""

from __future__ import annotations

import click

from sentinel_agent.capture.tasks import read_tasks
from sentinel_agent.cli import output, task_view
from sentinel_agent.cli.common import Invocation, common_options
from sentinel_agent.target.discover import resolve

_IN_TREE = 100_000


@click.command()
@click.argument("pid", metavar="PID", type=click.IntRange(min=1))
@click.option("--tree", "as_tree", is_flag=True, help="Every task under the one that awaits it.")
@click.option("--all", "everything", is_flag=True, help="Every group, not only the ten largest.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document with every task.")
@common_options
def tasks(invocation: Invocation, pid: int, as_tree: bool, everything: bool, as_json: bool) -> None:
    """Show the asyncio tasks of a process: how many, where they wait, grouped by await chain.

    Nothing is run in the process and it is not paused.
    """
    target = resolve(pid).id
    if as_json:
        output.print_json(read_tasks(target, listed=None))
        return
    document = read_tasks(target, listed=_IN_TREE if as_tree else 0)
    if not document.count:
        click.echo("No asyncio task is there: none is unfinished, or the process does not use asyncio.")
        return
    if as_tree:
        lines = task_view.tree(document)
    else:
        click.echo(f"{document.count} tasks in {len(document.groups)} groups")
        lines = task_view.groups(document, None if everything else 10)
    for line in lines if as_tree else (*lines, *task_view.origins(document)):
        output.say(line)
