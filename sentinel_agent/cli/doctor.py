"""`sentinel-agent doctor [PID]`: what will and will not work here, each with the remedy."""

from __future__ import annotations

import dataclasses
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from sentinel_agent.cli import output
from sentinel_agent.cli.common import common_options
from sentinel_agent.core.units import format_size
from sentinel_agent.errors import StoreError
from sentinel_agent.store.files import Files
from sentinel_agent.target.doctor import Check, examine

if TYPE_CHECKING:
    from sentinel_agent.cli.common import Invocation

_SIGNS = {True: ("ok", "green"), False: ("no", "red"), None: ("--", "yellow")}


@click.command()
@click.argument("pid", metavar="[PID]", required=False, type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@common_options
def doctor(invocation: Invocation, pid: int | None, as_json: bool) -> int:
    """Look at rights, tools and the data directory, and at a process if a PID is given.

    Ends with 1 if something does not work.
    """
    checks = [*examine(pid), *_expressions(), _injection(invocation), _data_dir(invocation)]
    broken = any(check.ok is False for check in checks)
    if as_json:
        output.print_json([dataclasses.asdict(check) for check in checks])
        return int(broken)
    for check in checks:
        sign, colour = _SIGNS[check.ok]
        click.secho(f" {sign} ", fg=colour, bold=True, nl=False)
        width = output.columns()
        found = f"{check.name}: {output.clean(check.found)}"
        click.echo(found if width is None else output.wrapped(f"    {found}", width).lstrip())
        if check.remedy:
            output.say(f"      {output.clean(check.remedy)}", fg="yellow")
    return int(broken)


def _expressions() -> list[Check]:
    try:
        import cel_expr_python  # noqa: F401, PLC0415 - only to see whether the extra is there
    except ImportError:
        return [
            Check(
                "trigger expressions",
                None,
                "the extra `cel` is not installed; rules with a boolean expression cannot fire",
                "pip install 'sentinel-agent[cel]'",
            )
        ]
    return [Check("trigger expressions", True, "CEL is installed")]


def _injection(invocation: Invocation) -> Check:
    name = "code in targets"
    if not invocation.loaded.settings.capture.allow_injection:
        found = "not allowed: the captures tracemalloc, memray and gc are skipped, so no incident names the line that allocates"
        return Check(name, None, found, "set capture.allow_injection: true, or use --allow-injection")
    missing = {"hypno": "inject", "memray": "memray"}
    missing = {package: extra for package, extra in missing.items() if find_spec(package) is None}
    if missing:
        found = f"allowed; without {' and '.join(missing)}: hypno is for targets of CPython 3.8 to 3.13, memray for the capture of that name"
        return Check(name, None, found, f"pip install 'sentinel-agent[{','.join(missing.values())}]'")
    return Check(name, True, "allowed, and hypno and memray are installed")


def _data_dir(invocation: Invocation) -> Check:
    """Looked at without opening it for writing: that would clean up and apply retention, which is the agent's business."""
    name, settings, folder = "data directory", invocation.loaded.settings.store, invocation.data_dir
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            name, False, f"{existing} is no folder that this user may write to", "choose another --data-dir"
        )
    if existing != folder:
        return Check(name, True, f"{folder} is not there yet; it is made when it is needed")
    try:
        statistics = invocation.store().statistics()
        free = Files().free_bytes(folder)
    except (StoreError, OSError) as error:
        return Check(name, False, str(error), getattr(error, "hint", None) or "")
    found = (
        f"{folder}: {statistics.incidents} incidents, {format_size(statistics.bytes)} of at most "
        f"{format_size(settings.max_bytes)}; {format_size(free)} free on the disk"
    )
    if free < settings.min_free_bytes:
        return Check(
            name, False, found, f"store.min_free_bytes asks for {format_size(settings.min_free_bytes)}"
        )
    return Check(name, True, found)
