"""Tells a person, or a program (`--json`: one event per line), what the agent does while it runs."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sentinel_agent.cli.output import clean, show_time, to_json
from sentinel_agent.cli.scene import requested
from sentinel_agent.core.event import (
    IncidentLost,
    IncidentOpened,
    IncidentSealed,
    LimitReached,
    SettingsRefused,
    SettingsReloaded,
    TargetAppeared,
    TargetGone,
    Trouble,
)
from sentinel_agent.findings.load import read_findings
from sentinel_agent.store.store import default_data_dir

if TYPE_CHECKING:
    from sentinel_agent.core.event import Event
    from sentinel_agent.core.model import Incident, Target


class Reporter:
    """Prints events. For `run`, whose stdout is the command's, everything goes to stderr."""

    def __init__(self, data_dir: Path, *, as_json: bool = False, to_stderr: bool = False) -> None:
        self._data_dir = data_dir
        self._as_json = as_json
        self._to_stderr = to_stderr
        self.sealed: list[Incident] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, IncidentSealed):
            self.sealed.append(event.incident)
        if self._as_json:
            click.echo(to_json(event), err=self._to_stderr)
        else:
            self._say(event)

    def note(self, text: str, **style: Any) -> None:
        """A line that is no event, in a style of `click.style`; silent with `--json`."""
        if not self._as_json:
            self._print(text, **style)

    def _say(self, event: Event) -> None:
        match event:
            case TargetAppeared():
                python = f"Python {event.target.python}" if event.target.python else "no Python found"
                self._line(event.time, "watching", f"{label(event.target)}, {python}", fg="green")
            case TargetGone():
                self._line(event.time, "gone", f"{label(event.target)} {event.how}", fg="yellow")
                if event.note:
                    self._detail(event.note)
            case IncidentOpened():
                self._line(event.time, "firing", f"{event.rule}: {event.summary}", fg="red", bold=True)
            case IncidentSealed():
                self._sealed(event.incident, event.time)
            case IncidentLost():
                self._line(
                    event.time,
                    "lost",
                    f"{event.rule} on {label(event.target)}: {event.why}",
                    fg="red",
                    bold=True,
                )
            case LimitReached():
                self._line(
                    event.time,
                    "limit",
                    f"{event.rule} on {label(event.target)}: its condition is met, but its limit is used up",
                    fg="yellow",
                )
            case SettingsReloaded():
                self._line(
                    event.time,
                    "reloaded",
                    ", ".join(event.changes) or "nothing that matters changed",
                    fg="green",
                )
            case SettingsRefused():
                self._line(
                    event.time,
                    "refused",
                    f"the changed settings stay out; {event.faults}",
                    fg="red",
                    bold=True,
                )
            case Trouble():
                self._line(event.time, "trouble", event.what, fg="yellow")

    def _sealed(self, incident: Incident, time: float) -> None:
        self._line(
            time, "saved", f"{incident.rule} on {label(incident.target)} as incident {incident.id}", bold=True
        )
        folder = self._data_dir / "incidents" / incident.id
        answer = read_findings(folder, incident).headline
        if answer:
            self._detail(answer)
        for line in requested(incident, folder)[:1]:
            self._detail(line)
        for report in incident.captures:
            if report.status != "ok":
                self._detail(f"{report.kind} {report.status}: {report.reason}")
        self._detail(show_command(self._data_dir, "incidents", "show", incident.id))

    def _line(self, time: float, word: str, text: str, **style: Any) -> None:
        stamp = click.style(show_time(time)[11:19], dim=True)
        self._print(f"{stamp} {click.style(f'{word:>9}', **style)} {clean(text)}")

    def _detail(self, text: str) -> None:
        self._print(f"{'':19}{clean(text)}", dim=True)

    def _print(self, text: str, **style: Any) -> None:
        """Click takes the colour away where the stream is no terminal; https://no-color.org asks for more."""
        colour = False if os.environ.get("NO_COLOR") else None
        click.secho(text, err=self._to_stderr, color=colour, **style)


def label(target: Target) -> str:
    """`gateway worker-1 (pid 4711)`."""
    worker = "" if target.role.worker == "main" else f" {target.role.worker}"
    return f"{target.role.service}{worker} (pid {target.id.pid})"


def show_command(data_dir: Path, *words: str) -> str:
    """The command line that shows something of this data directory, ready to be pasted."""
    usual = data_dir == default_data_dir(os.environ, Path.home())
    return shlex.join([_program(), *words, *(() if usual else ("--data-dir", str(data_dir)))])


def _program() -> str:
    """How this program is called from here: by its name if that is on PATH, else by its path."""
    beside = Path(sys.executable).parent / "sentinel-agent"
    if shutil.which("sentinel-agent") or not beside.exists():
        return "sentinel-agent"
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)
