"""`sentinel-agent config print / schema`: the merged settings with the source of each, and what can be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sentinel_agent.cli import output
from sentinel_agent.cli.common import common_options
from sentinel_agent.config.render import to_document, to_yaml
from sentinel_agent.config.schema import json_schema

if TYPE_CHECKING:
    from sentinel_agent.cli.common import Invocation


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def config() -> None:
    """The merged settings and their JSON Schema."""


@config.command("print")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@common_options
def print_config(invocation: Invocation, as_json: bool) -> None:
    """Print settings and rules in force, behind each where it comes from; secrets are hidden."""
    if as_json:
        output.print_json(to_document(invocation.loaded))
    else:
        click.echo(to_yaml(invocation.loaded), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON Schema of a configuration file, for editors and checkers."""
    output.print_json(json_schema())
