"""`sentinel-agent tasks PID`: the asyncio tasks of a process, read from outside."""

from __future__ import annotations

import click

from sentinel_agent.capture.tasks import read_tasks
from sentinel_agent.cli import output, task_view
from sentinel_agent.cli.common import Invocation, common_options
from sentinel_agent.target.discover import resolve


@click.command()
@click.argument("pid", metavar="PID", type=click.IntRange(min=1))
@click.option("--tree", "as_tree", is_flag=True, help="The await chains merged into a tree.")
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
    document = read_tasks(target)
    click.echo(f"{document.count} tasks in {len(document.groups)} groups")
    for line in (
        task_view.tree(document) if as_tree else task_view.groups(document, None if everything else 10)
    ):
        click.echo(line)
