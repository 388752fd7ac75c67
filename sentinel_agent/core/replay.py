"""Rules over a recorded series: what they would have answered, row by row (`rules test F --series CSV`)."""

from __future__ import annotations

import csv
import io
import math
import re
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.core.decision import Reason
from sentinel_agent.core.engine import RuleEngine
from sentinel_agent.core.model import Reading, Role
from sentinel_agent.core.ring import READING_BYTES, SeriesRing
from sentinel_agent.core.rule import Match
from sentinel_agent.core.state import State
from sentinel_agent.errors import ConfigError, Fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sentinel_agent.core.rule import Rule

MAX_CHARACTERS = 64 * 1024**2
MAX_ROWS = 1_000_000
MAX_COLUMNS = 256
MAX_FAULTS = 50
MAX_READINGS = (
    65_536  # in one ring: more than the longest baseline window, an hour, has at 20 readings a second
)

Row = tuple[float, dict[str, float]]
"""Seconds, and the value of each metric that has one at that time."""

_METRIC = re.compile(r"[a-z][a-z0-9_]{0,63}")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


class ReplayEntry(msgspec.Struct, frozen=True):
    """The answer of one rule to one row. `value` and `baseline` are in the metric's unit."""

    time: float
    rule: str
    value: float | None
    baseline: float | None
    state: State
    fire: bool
    reason: Reason


def replay(rules: Iterable[Rule], rows: Sequence[Row]) -> list[ReplayEntry]:
    """One entry per row and rule, in this order; `match` is not looked at.

    A capture takes no time: it is finished in the row that fires. Limits start empty.

    Raises:
        ValueError: two rules have one name.
    """
    role = Role("replay", "replay")
    engine = RuleEngine(msgspec.structs.replace(rule, match=Match()) for rule in rules)
    history: dict[str, SeriesRing] = {}
    capacity = READING_BYTES * min(max(1, len(rows)), MAX_READINGS)
    entries = []
    for time, values in rows:
        for metric, value in values.items():
            if metric not in history:
                history[metric] = SeriesRing(capacity)
            history[metric].push(time, value)
        readings = {metric: Reading(metric, time, value) for metric, value in values.items()}
        for decision in engine.tick(role, time, readings, history):
            if decision.fire:
                engine.capture_finished(role, decision.rule, time)
            entries.append(
                ReplayEntry(
                    time=time,
                    rule=decision.rule,
                    value=decision.value,
                    baseline=decision.baseline,
                    state=decision.state,
                    fire=decision.fire,
                    reason=decision.reason,
                )
            )
    return entries


def parse_series(text: str, where: str = "series") -> list[Row]:
    """The rows of a CSV with the header `time,<metric>,...`.

    Times are seconds that never go back; an empty cell is no reading. `where` is what the text is called in faults.

    Raises:
        ConfigError: with every fault and its line, the first 50 of them.
    """
    if len(text) > MAX_CHARACTERS:
        message = f"the series has {len(text)} characters; at most {MAX_CHARACTERS} are read"
        raise ConfigError([Fault(where, "", message)])
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    faults: list[Fault] = []
    rows: list[Row] = []
    names: list[str] | None = None
    try:
        for cells in reader:
            place = f"{where}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names, problems = _header(cells)
                if problems:  # the rows would only repeat it
                    raise ConfigError([Fault(place, "", problem) for problem in problems])
                continue
            if len(rows) == MAX_ROWS:
                faults.append(Fault(place, "", f"more than {MAX_ROWS} rows"))
                break
            row, problems = _row(names, cells, rows[-1][0] if rows else -math.inf)
            faults += [Fault(place, "", problem) for problem in problems]
            if len(faults) >= MAX_FAULTS:
                break
            if row is not None:
                rows.append(row)
    except csv.Error as fault:
        faults.append(Fault(f"{where}:{reader.line_num}", "", f"is no CSV: {fault}"))
    if names is None and not faults:
        faults.append(Fault(where, "", "the series is empty: expected a header `time,<metric>,...`"))
    if faults:
        raise ConfigError(
            faults[:MAX_FAULTS], hint="expected for example:\ntime,cpu,rss\n0,12.5,50000000\n1,,50000000"
        )
    return rows


def _header(cells: list[str]) -> tuple[list[str], list[str]]:
    """The metrics' names and what is wrong with the header."""
    names = [cell.strip() for cell in cells]
    problems = []
    if names[0] != "time":
        problems.append(f"the first column is {_shown(names[0])}: expected `time`")
    if len(names) < 2:
        problems.append("no metric: expected a header `time,<metric>,...`")
    if len(names) > MAX_COLUMNS:
        return names, [*problems, f"{len(names)} columns; at most {MAX_COLUMNS} are read"]
    problems += [
        f"{_shown(name)} is no metric name: expected lower-case letters, digits and _"
        for name in names[1:]
        if not _METRIC.fullmatch(name)
    ]
    problems += [f"{_shown(name)} is there twice" for name in sorted(set(names)) if names.count(name) > 1]
    return names[1:], problems


def _row(names: list[str], cells: list[str], after: float) -> tuple[Row | None, list[str]]:
    """The row, if it is whole, and what is wrong with it. Its time must not be before `after`."""
    if len(cells) != len(names) + 1:
        return None, [f"{len(cells)} cells: expected {len(names) + 1}, as in the header"]
    problems = []
    time = _number(cells[0])
    if time is None:
        problems.append(f"time {_shown(cells[0])} is no number of seconds")
    elif time < after:
        problems.append(f"time goes back from {after:g} to {time:g}: expected rows in order of time")
    values = {}
    for name, cell in zip(names, cells[1:], strict=True):
        if not cell.strip():
            continue
        value = _number(cell)
        if value is None:
            problems.append(
                f"{name} {_shown(cell)} is no number: expected a figure, or nothing for no reading"
            )
        else:
            values[name] = value
    if time is None or problems:
        return None, problems
    return (time, values), []


def _number(cell: str) -> float | None:
    text = cell.strip()
    if len(text) > 100 or not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= 40 else f"{cell[:37]}...")
