"""What all verbs have in common, and those that need no incident: help, JSON, exit codes, colour, bad input."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from sentinel_agent.cli import cli
from sentinel_agent.cli.output import clean, console, print_table, to_json
from sentinel_agent.cli.reporter import Reporter
from sentinel_agent.core.event import IncidentSealed, TargetAppeared, Trouble
from sentinel_agent.core.model import Role, TargetId
from sentinel_agent.store.store import Store
from sentinel_agent.testing import FakeClock, make_target
from tests.agent.support import sleeper
from tests.cli.support import HOSTILE, UNSAFE, stored
from tests.store.helpers import SETTINGS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.support import CommandLine

EXIT_CODES = {"attach": 3, "dump": 3, "doctor": 1, "stacks": 3, "tasks": 3}


def _verbs() -> list[tuple[str, ...]]:
    """Every verb and verb of a verb that there is."""
    import click  # noqa: PLC0415 - only here

    context = click.Context(cli)
    found: list[tuple[str, ...]] = [()]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, sub) for sub in command.list_commands(context)]
    return found


VERBS = _verbs()


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_has_help(words: tuple[str, ...], sentinel: CommandLine) -> None:
    done = sentinel(*words, "--help", place=False)
    assert done.out.startswith("Usage: sentinel-agent")
    assert done.err == ""


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_refuses_an_unknown_option(words: tuple[str, ...], sentinel: CommandLine) -> None:
    done = sentinel(*words, "--no-such-option", check=None, place=False)
    assert done.code == 2
    assert done.out == ""


@pytest.mark.parametrize("verb", EXIT_CODES)
def test_a_pid_that_is_not_there_has_its_exit_code(verb: str, sentinel: CommandLine) -> None:
    with sleeper() as process:
        pass
    place = verb not in {"stacks", "tasks"}  # they have no use for a data directory
    done = sentinel(verb, str(process.pid), check=EXIT_CODES[verb], place=place)
    assert f"no process {process.pid}" in done.out + done.err
    for nonsense in ("0", "-1", "abc", "99999999999999999999"):
        assert sentinel(verb, "--", nonsense, check=None, place=False).code in {1, 2, 3}


def test_the_settings_are_printed_with_their_sources_and_without_secrets(
    sentinel: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "sentinel.yaml"
    file.write_text("sampler: {interval: 2s}\n")
    done = sentinel("config", "print", "--config", str(file), "--json")
    assert isinstance(done.document, dict)
    assert f"{file}:1" in done.out
    assert "interval" in sentinel("config", "print", "--config", str(file)).out


def test_the_schema_is_one_and_accepts_what_is_valid(sentinel: CommandLine) -> None:
    schema = sentinel("config", "schema", place=False).document
    validator = jsonschema.Draft202012Validator
    validator.check_schema(schema)
    validator(schema).validate({"sampler": {"interval": "2s"}})
    assert list(validator(schema).iter_errors({"sampler": {"intreval": "2s"}}))


def test_ten_faults_of_a_configuration_are_reported_at_once(sentinel: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "sentinel.yaml"
    file.write_text(
        "sampler: {interval: never, histroy: 1m, ring_bytes: 1}\n"
        "store: {max_age: -1, max_bytes: lots}\n"
        "capture: {concurrency: 0, timeout: 0s, redact: maybe}\n"
        "log: {level: loud}\nnonsense: 1\n"
    )
    done = sentinel("config", "print", "--config", str(file), check=2)
    assert done.err.startswith("Error: 10 faults")
    for path in (
        "sampler.interval",
        "sampler.histroy",
        "store.max_age",
        "capture.redact",
        "log.level",
        "nonsense",
    ):
        assert f": {path}: " in done.err
    assert done.out == ""


def test_the_doctor_answers_in_one_document(sentinel: CommandLine) -> None:
    with sleeper(HOSTILE.replace("\0", "")) as process:
        done = sentinel("doctor", str(process.pid), "--json", check=None)
        checks = done.document
        assert all({"name", "ok", "found", "remedy"} <= check.keys() for check in checks)
        assert all(check["remedy"] for check in checks if check["ok"] is False)
        assert done.code == int(any(check["ok"] is False for check in checks))
        sentinel("doctor", str(process.pid), check=None)


def test_completion_is_a_script_for_each_shell(sentinel: CommandLine) -> None:
    for shell in ("bash", "zsh", "fish"):
        script = sentinel("completion", shell, place=False).out
        assert "_SENTINEL_AGENT_COMPLETE" in script
    sentinel("completion", "tcsh", check=2, place=False)


def test_attach_says_one_json_event_per_line(sentinel: CommandLine) -> None:
    """Of a process with a hostile command line; nothing else is on stdout."""
    with sleeper(HOSTILE.replace("\0", ""), "--token", "hunter2") as process:
        done = sentinel("attach", str(process.pid), "--for", "300ms", "--json")
        plain = sentinel("attach", str(process.pid), "--for", "300ms")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert events[0]["type"] == "target_appeared"
    assert events[0]["target"]["pid"] == process.pid
    assert "hunter2" not in done.out
    assert "watching" in plain.out


def test_run_ends_with_the_status_of_its_command_and_says_events_on_stderr(
    sentinel: CommandLine, data: Path
) -> None:
    words = ("--", sys.executable, "-c", "import time; time.sleep(0.4); raise SystemExit(7)")
    done = sentinel("run", "--json", "--data-dir", str(data), *words, check=7, place=False)
    assert [json.loads(line)["type"] for line in done.err.splitlines()] == [
        "target_appeared",
        "target_gone",
        "incident_opened",  # a status of 7 is a death
        "incident_sealed",
    ]
    assert done.out == ""


def test_a_dump_is_the_incident_document(sentinel: CommandLine) -> None:
    with sleeper(HOSTILE.replace("\0", "")) as process:
        done = sentinel("dump", str(process.pid), "--capture", "process", "--json")
        assert done.document["target"]["pid"] == process.pid
        assert done.document["rule"] == "manual"
        unknown = sentinel("dump", str(process.pid), "--capture", "process,nonsense\x1b[0m", check=2)
        assert "no capture 'nonsense" in unknown.err
        assert "at most 60 s" in sentinel("dump", str(process.pid), "--duration", "2h", check=2).err
    shown = sentinel("incidents", "show", done.document["id"]).out
    assert "asked for by hand" in shown


def test_a_pipe_gets_no_colour_and_no_command_line_is_read_as_markup(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every kind of event about a hostile target, as a person and as a program reads it."""
    incident_id = stored(data)
    incident = Store(data, SETTINGS, FakeClock()).read(incident_id)
    target = make_target(
        TargetId(1, 1), Role("shop", HOSTILE), name=HOSTILE, command=(HOSTILE,), python=HOSTILE
    )
    for as_json in (False, True):
        reporter = Reporter(data, as_json=as_json)
        for event in (
            TargetAppeared(1.0, target),
            IncidentSealed(2.0, incident, str(data)),
            Trouble(3.0, HOSTILE),
        ):
            reporter(event)
        out = capsys.readouterr().out
        assert not [char for char in UNSAFE if char in out]
        assert "[red]markup[/red]" in out
        if as_json:
            lines = [json.loads(line) for line in out.splitlines()]
            assert lines[2] == {"type": "trouble", "time": 3.0, "what": HOSTILE}


def test_a_sealed_incident_with_a_damaged_profile_is_still_told(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    incident_id = stored(data)
    incident = Store(data, SETTINGS, FakeClock()).read(incident_id)
    (data / "incidents" / incident_id / "profile.pb.gz").write_bytes(b"\x1f\x8b")
    Reporter(data)(IncidentSealed(2.0, incident, str(data)))
    assert incident_id in capsys.readouterr().out


def test_json_escapes_what_has_no_glyph_and_reads_back_the_same() -> None:
    """Nothing that a terminal obeys, also beyond the basic plane; letters of other scripts stay as they are."""
    document: dict[str, Any] = {"text": HOSTILE + "größer 名 \U000e0041 \x7f", "more": [1.5, None]}
    line = to_json(document)
    assert json.loads(line) == document
    assert "größer 名" in line
    assert "\\udb40\\udc41" in line
    assert all(char.isprintable() for char in line)


def test_a_terminal_gets_colour_and_neither_gets_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pseudo-terminal of the kernel's: the heading is bold there, and only there."""
    ours, theirs = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert console().is_terminal
        print_table(("NAME",), [("[red]plain\x1b[31m",)])
        terminal.flush()
        shown = screen.read(1000)
    assert b"\x1b[1m" in shown
    assert b"[red]plain" in shown
    assert b"\x1b[31m" not in shown


def test_cleaning_bounds_and_marks_what_it_takes_away() -> None:
    assert clean("a\x1bb\u202ec\nd\te") == "a�b�c\nd\te"
    assert clean("x" * 100_000, 10) == "x" * 10 + "…"


def test_what_a_terminal_cannot_show_is_escaped(
    sentinel: CommandLine, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A terminal that knows ASCII only gets bars and names escaped, not a traceback."""
    incident_id = stored(data)
    out = (tmp_path / "out").open("w", encoding="ascii")
    with out:
        monkeypatch.setattr(sys, "stdout", out)
        sentinel("incidents", "show", incident_id)
    assert "\\u2588" in (tmp_path / "out").read_text("ascii")
