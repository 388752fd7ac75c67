"""`sentinel-agent rules check / test / list / explain`: validate, replay, and say why a rule is not firing."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from sentinel_agent.cli import output
from sentinel_agent.cli.common import common_options
from sentinel_agent.clock import SystemClock
from sentinel_agent.config.load import ConfigInputs, load
from sentinel_agent.core.explain import explain
from sentinel_agent.core.health import health
from sentinel_agent.core.limits import fires_within
from sentinel_agent.core.metrics import METRICS, unit_of
from sentinel_agent.core.replay import MAX_CHARACTERS, parse_series, replay
from sentinel_agent.errors import OperatorError
from sentinel_agent.standing import RuleView, rules_of_agent, running_agents
from sentinel_agent.store.limits import stored_limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sentinel_agent.cli.common import Invocation
    from sentinel_agent.core.replay import ReplayEntry
    from sentinel_agent.core.rule import Rule

_FILE = click.Path(path_type=Path)
_AT_REST = {"inactive": 1, "warmup": 2}
"""States that come after the others where rules are shown."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def rules() -> None:
    """Check, replay, list and explain rules."""


def _load_file(path: Path) -> tuple[Rule, ...]:
    """The rules of one file and nothing else."""
    inputs = ConfigInputs(rule_files=(path,), overrides={"rule_packs": []})
    return tuple(each.rule for each in load(inputs).rules)


@rules.command()
@click.argument("path", metavar="F", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def check(path: Path, as_json: bool) -> int:
    """Validate a rule file: every fault at once, and every rule that cannot fire.

    Ends with 0 if all is well, 1 if a rule cannot fire, 2 if the file has faults.
    """
    found = [(rule, health(rule, METRICS)) for rule in _load_file(path)]
    stuck = any(problem.severity == "cannot_fire" for _, problems in found for problem in problems)
    if as_json:
        output.print_json(
            [
                {
                    "rule": rule.name,
                    "can_fire": all(problem.severity != "cannot_fire" for problem in problems),
                    "problems": [problem._asdict() for problem in problems],
                }
                for rule, problems in found
            ]
        )
        return int(stuck)
    for rule, problems in found:
        for problem in problems:
            grave = problem.severity == "cannot_fire"
            click.secho(f"{rule.name}: ", nl=False, bold=True)
            text = output.clean(f"{'cannot fire: ' if grave else ''}{problem.text}")
            click.secho(text, fg="red" if grave else "yellow")
    sound = sum(not problems for _, problems in found)
    click.echo(f"{len(found)} rules, {sound} without remarks.")
    return int(stuck)


@rules.command()
@click.argument("path", metavar="F", type=_FILE)
@click.option(
    "--series",
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="CSV",
    help="Readings: a header `time,<metric>,...`, seconds, one row a tick; `-` is stdin.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document: an entry for each row and rule.")
def test(path: Path, series: Path, as_json: bool) -> None:
    """Replay a rule file over recorded readings: what would have fired, and why the rest did not."""
    loaded = _load_file(path)
    name = "stdin" if str(series) == "-" else str(series)
    text = sys.stdin.read(MAX_CHARACTERS + 1) if name == "stdin" else _text(series)
    entries = replay(loaded, parse_series(text, name))
    if as_json:
        click.echo(msgspec.json.encode(entries).decode())
        return
    _show_replay(loaded, entries)


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.read(MAX_CHARACTERS + 1)
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OperatorError(f"{path}: expected text in UTF-8; byte {error.start + 1} is not") from error


def _show_replay(loaded: Sequence[Rule], entries: Sequence[ReplayEntry]) -> None:
    fired = [entry for entry in entries if entry.fire]
    if fired:
        units = {rule.name: unit_of(rule.metric or "") for rule in loaded}
        output.print_table(
            ("TIME", "RULE", "VALUE", "BASELINE", "REASON"),
            [
                (
                    f"{entry.time:g}",
                    entry.rule,
                    output.show_value(entry.value, units[entry.rule]),
                    output.show_value(entry.baseline, units[entry.rule]),
                    entry.reason,
                )
                for entry in fired
            ],
            right=(0, 2, 3),
        )
        click.echo()
    for rule in loaded:
        own = [entry for entry in entries if entry.rule == rule.name]
        counts: dict[str, int] = {}
        for entry in own:
            if not entry.fire:
                counts[entry.reason] = counts.get(entry.reason, 0) + 1
        quiet = ", ".join(
            f"{reason} {count}" for reason, count in sorted(counts.items(), key=lambda item: -item[1])
        )
        count = sum(entry.fire for entry in own)
        click.echo(f"{rule.name}: fired {count} of {len(own)} rows" + (f"; else {quiet}" if quiet else ""))


def _views(invocation: Invocation) -> list[RuleView]:
    """Of every running agent of this data directory; without one, of the rules that are configured."""
    now = SystemClock().wall()
    found = running_agents(invocation.data_dir, now)
    for remark in found.remarks:
        click.secho(remark, fg="yellow", err=True)
    if found.agents:
        return [view for status in found.agents for view in rules_of_agent(status, now)]
    return list(_configured(invocation, now))


def _configured(invocation: Invocation, now: float) -> Iterator[RuleView]:
    stored = stored_limits(invocation.store()) if invocation.data_dir.is_dir() else []
    for each in invocation.loaded.rules:
        own = [record for record in stored if record.rule == each.rule.name]
        yield RuleView(
            rule=each.rule.name,
            state="no agent",
            explanation=explain(each.rule, None, None, METRICS, now),
            source=each.source,
            metric=each.rule.metric,
            fires=sum(fires_within(record, each.rule.limit, now) for record in own),
        )


@rules.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@common_options
def list_rules(invocation: Invocation, as_json: bool) -> None:
    """List the rules in force with their states, as the running agent sees them."""
    views = _views(invocation)
    if as_json:
        output.print_json(views)
        return
    if output.is_narrow():
        _print_by_target(views)
    else:
        _print_wide(views)
    if any(view.state == "no agent" for view in views):
        click.echo(f"\nNo agent runs in {invocation.data_dir}: these are the rules that are configured.")


def _print_by_target(views: Sequence[RuleView]) -> None:
    """For a narrow terminal: a target as a heading, under it its rules, those first that are not at rest."""
    targets = dict.fromkeys((view.target, view.pid) for view in views)
    for number, (target, pid) in enumerate(targets):
        if number:
            click.echo()
        output.say(output.clean(f"{target} (pid {pid})" if target else "On no target"), bold=True)
        own = [view for view in views if (view.target, view.pid) == (target, pid)]
        order = sorted(own, key=lambda view: _AT_REST.get(view.state, 0))
        output.print_table(
            ("RULE", "STATE", "FIRED", "WHY"),
            [(view.rule, _state(view), str(view.fires), view.explanation.now) for view in order],
            right=(2,),
        )


def _state(view: RuleView) -> str:
    return view.state if view.explanation.can_fire else "cannot fire"


def _print_wide(views: Sequence[RuleView]) -> None:
    output.print_table(
        ("RULE", "TARGET", "STATE", "VALUE", "USUAL", "FIRED", "WHY"),
        [
            (
                view.rule,
                f"{view.target} ({view.pid})" if view.target else "-",
                _state(view),
                output.show_value(view.value, unit_of(view.metric or "")),
                output.show_value(view.baseline, unit_of(view.metric or "")),
                str(view.fires),
                view.explanation.now,
            )
            for view in views
        ],
        right=(3, 4, 5),
    )


@rules.command("explain")
@click.argument("name", metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@common_options
def explain_rule(invocation: Invocation, name: str, as_json: bool) -> None:
    """Say why a rule is not firing now, what would make it fire, and what is wrong with it."""
    views = _views(invocation)
    own = [view for view in views if view.rule == name]
    if not own:
        close = difflib.get_close_matches(name, {view.rule for view in views}, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see: sentinel-agent rules list"
        raise OperatorError(f"there is no rule {name!r} in force", hint=hint)
    if as_json:
        output.print_json(own)
        return
    for number, view in enumerate(own):
        if number:
            click.echo()
        _print_explanation(view)


def _print_explanation(view: RuleView) -> None:
    words = view.explanation
    where = f" on {view.target} (pid {view.pid})" if view.target else ""
    click.secho(output.clean(f"{view.rule}{where}: {view.state}"), bold=True)
    output.say(f"  {output.clean(words.now)}", fg=None if words.can_fire else "red")
    if words.fires_when:
        output.say(output.clean(f"  fires when  {' or '.join(words.fires_when)}"))
    if words.provided:
        output.say(output.clean(f"  provided    {' and '.join(words.provided)}"))
    output.say(f"  fired       {view.fires} time{'' if view.fires == 1 else 's'} within its period")
    for problem in words.problems:
        if problem.severity == "warning":
            output.say(output.clean(f"  remark      {problem.text}"), fg="yellow")
    output.say(output.clean(f"  written in  {view.source}"))
