"""Tells a person, or a program (`--json`: one event per line), what the agent does while it runs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click
from rich.text import Text

from sentinel_agent.cli.output import clean, console, show_time, to_json
from sentinel_agent.cli.scene import headline
from sentinel_agent.core.event import (
    IncidentLost,
    IncidentOpened,
    IncidentSealed,
    SettingsRefused,
    SettingsReloaded,
    TargetAppeared,
    TargetGone,
    Trouble,
)

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.core.event import Event
    from sentinel_agent.core.model import Incident, Target


class Reporter:
    """Prints events. For `run`, whose stdout is the command's, everything goes to stderr."""

    def __init__(self, data_dir: Path, *, as_json: bool = False, to_stderr: bool = False) -> None:
        self._data_dir = data_dir
        self._as_json = as_json
        self._to_stderr = to_stderr
        self._console = console(stderr=to_stderr)
        self.sealed: list[Incident] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, IncidentSealed):
            self.sealed.append(event.incident)
        if self._as_json:
            click.echo(to_json(event), err=self._to_stderr)
        else:
            self._say(event)

    def note(self, text: str, style: str = "") -> None:
        """A line that is no event; silent with `--json`."""
        if not self._as_json:
            self._console.print(Text(text, style=style))

    def _say(self, event: Event) -> None:
        match event:
            case TargetAppeared():
                python = f"Python {event.target.python}" if event.target.python else "no Python found"
                self._line(event.time, "watching", f"{label(event.target)}, {python}", "green")
            case TargetGone():
                self._line(event.time, "gone", f"{label(event.target)} {event.how}", "yellow")
            case IncidentOpened():
                self._line(event.time, "firing", f"{event.rule}: {event.summary}", "bold red")
            case IncidentSealed():
                self._sealed(event.incident, event.time)
            case IncidentLost():
                self._line(
                    event.time, "lost", f"{event.rule} on {label(event.target)}: {event.why}", "bold red"
                )
            case SettingsReloaded():
                self._line(
                    event.time,
                    "reloaded",
                    ", ".join(event.changes) or "nothing that matters changed",
                    "green",
                )
            case SettingsRefused():
                self._line(
                    event.time, "refused", f"the changed settings stay out; {event.faults}", "bold red"
                )
            case Trouble():
                self._line(event.time, "trouble", event.what, "yellow")

    def _sealed(self, incident: Incident, time: float) -> None:
        self._line(
            time, "saved", f"{incident.rule} on {label(incident.target)} as incident {incident.id}", "bold"
        )
        answer = headline(self._data_dir / "incidents" / incident.id, incident)
        if answer:
            self._detail(answer)
        for report in incident.captures:
            if report.status != "ok":
                self._detail(f"{report.kind} {report.status}: {report.reason}")
        self._detail(show_command(self._data_dir, "incidents", "show", incident.id))

    def _line(self, time: float, word: str, text: str, style: str) -> None:
        stamp = Text(show_time(time)[11:19], style="dim")
        self._console.print(stamp, Text(f"{word:>9}", style=style), Text(clean(text)))

    def _detail(self, text: str) -> None:
        self._console.print(Text(f"{'':19}{clean(text)}", style="dim"))


def label(target: Target) -> str:
    """`gateway worker-1 (pid 4711)`."""
    worker = "" if target.role.worker == "main" else f" {target.role.worker}"
    return f"{target.role.service}{worker} (pid {target.id.pid})"


def show_command(data_dir: Path, *words: str) -> str:
    """The command line that shows something of this data directory, ready to be pasted."""
    return shlex.join(["sentinel-agent", *words, "--data-dir", str(data_dir)])
