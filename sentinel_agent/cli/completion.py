"""`sentinel-agent completion SHELL`: the script that the shell sources."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script, for example `source <(sentinel-agent completion bash)`."""
    from sentinel_agent.cli import cli  # noqa: PLC0415 - the group imports this verb, not the other way round

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "sentinel-agent", "_SENTINEL_AGENT_COMPLETE").source())
