"""The command line: one file per verb, each imported only when it is called, so that `--help` answers at once."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from typing import Any, TextIO

import click

from sentinel_agent import __version__
from sentinel_agent.errors import SentinelError

# verb -> (module, one line for `--help`); a verb's command object has the verb's name in its module.
_VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "The tour: a real service is spoilt, the agent catches it."),
    "attach": ("attach", "Watch running processes."),
    "proxy": ("proxy", "The embedded proxy, with the agent beside it."),
    "run": ("run", "Start a command and watch it."),
    "sidecar": ("sidecar", "Watch the neighbours in a pod or on a node; the image's entry point."),
    "dump": ("dump", "One incident now, by hand."),
    "stacks": ("stacks", "What every thread of a process is doing."),
    "tasks": ("tasks", "The asyncio tasks of a process, grouped."),
    "serve": ("serve", "The web page over a data directory, with no agent."),
    "top": ("top", "The targets live in the terminal."),
    "incidents": ("incidents", "List, show, export and delete incidents."),
    "rules": ("rules", "Check, replay, list and explain rules."),
    "exporters": ("exporters", "What leaves the house: state, losses, and a test."),
    "doctor": ("doctor", "What works here, what does not, and the remedy."),
    "config": ("config", "The merged settings and their JSON Schema."),
    "completion": ("completion", "Shell completion for bash, zsh or fish."),
}


_LONGEST = 100_000  # characters of a message: a hundred faults of a configuration fit


class _NobodyReadsError(Exception):
    """The reader of our output has left, for example `| head`; click would make an exit status of 1 of it."""


class _LazyGroup(click.Group):
    """A group that knows its verbs by name and imports one only when it is asked for."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _NobodyReadsError from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"sentinel_agent.cli.{_VERBS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, line) for verb, (_, line) in _VERBS.items()])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sentinel-agent")
def cli() -> None:
    """The black box of a Python proxy: watches it from outside and saves the scene when something spikes.

    Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 no such target or incident, 4 not permitted.
    """


def main(argv: list[str] | None = None) -> None:
    """Run the command line and leave with its documented exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character gets it escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        result: Any = cli.main(args=argv, prog_name="sentinel-agent", standalone_mode=False)
    except SentinelError as error:
        _complain(error.message, error.hint)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        _complain("interrupted", None)
        sys.exit(130)
    except _NobodyReadsError:
        _silence(sys.stdout)
        sys.exit(0)
    sys.exit(result if isinstance(result, int) else 0)


def _silence(stream: TextIO) -> None:
    """Let what is still buffered go nowhere, else Python complains of the closed pipe at its own end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(message: str, hint: str | None) -> None:
    from sentinel_agent.cli.output import clean  # noqa: PLC0415 - `--help` needs none of it

    click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(clean(message, _LONGEST), err=True)
    if hint:
        click.secho("  Try: ", fg="yellow", nl=False, err=True)
        click.echo(clean(hint, _LONGEST), err=True)
