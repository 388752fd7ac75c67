"""`top` as lines of text: what is known and what is chosen go in, lines of one width come out. Pure.

Everything shown may come from a hostile target: `cell` is the only way in. It takes away what a terminal obeys, counts
columns rather than characters, and keeps text that runs from right to left from turning the rest of its line around.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from sentinel_agent.cli.output import clean, short_path, show_time, show_value, sparkline
from sentinel_agent.core.metrics import unit_of
from sentinel_agent.core.units import format_duration
from sentinel_agent.status import RECENT_STEP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.cli.top_source import Hot, TopTarget, TopView

SORTS = ("cpu", "rss", "tasks", "threads", "fds", "name")
_LEFT_TO_RIGHT = "\u200e"
_BARS = 24
_WIDE = 120
"""From this width on there are two columns below the table, and the course of the CPU in it."""
_LEAST_WIDTH, _LEAST_HEIGHT = 40, 8
_STALE = 5.0
_YOUNG = 60.0
"""Seconds; what a younger agent costs is mostly its start."""
_STATE_STYLE = {"firing": "bold red", "pending": "yellow", "cooling": "cyan"}

# heading, metric, width; a metric that no target publishes has no column
_COLUMNS = (
    ("CPU", "cpu", 6),
    ("/LIM", "cpu_limit", 6),
    ("RSS", "rss", 9),
    ("/LIM", "rss_limit", 6),
    ("TASKS", "tasks", 6),
    ("THR", "threads", 4),
    ("FDS", "fds", 5),
    ("STALL", "loop_stall", 6),
)


@dataclass(frozen=True, slots=True)
class Choice:
    """What the person at the terminal has chosen. `pid` is the target shown below the table, None for the first."""

    pid: int | None = None
    sort: str = "cpu"
    paused: bool = False
    quit: bool = False


def press(choice: Choice, key: str, view: TopView) -> Choice:
    """What a key changes."""
    match key:
        case "q":
            return replace(choice, quit=True)
        case "p":
            return replace(choice, paused=not choice.paused)
        case "s":
            return replace(choice, sort=SORTS[(SORTS.index(choice.sort) + 1) % len(SORTS)])
        case "down" | "j" | "tab":
            return _moved(choice, view, 1)
        case "up" | "k" | "back-tab":
            return _moved(choice, view, -1)
    return choice


def _moved(choice: Choice, view: TopView, step: int) -> Choice:
    order = [target.pid for target in ordered(view, choice.sort)]
    if not order:
        return choice
    chosen = selected(view, choice)
    at = order.index(chosen.pid) if chosen else 0
    return replace(choice, pid=order[(at + step) % len(order)])


def ordered(view: TopView, sort: str) -> list[TopTarget]:
    """The targets, most first; by name the first in the alphabet."""
    by_name = sorted(view.targets, key=lambda target: (target.target, target.pid))
    if sort == "name":
        return by_name
    return sorted(by_name, key=lambda target: -target.readings.get(sort, -1.0))


def selected(view: TopView, choice: Choice) -> TopTarget | None:
    """The target that is shown below the table: the chosen one, or the first while it is not there."""
    order = ordered(view, choice.sort)
    return next((target for target in order if target.pid == choice.pid), order[0] if order else None)


def frame(view: TopView, choice: Choice, width: int, height: int | None) -> list[Text]:
    """The screen: at most `height` lines, each `width` columns at most. None for as many as it takes."""
    width = max(width, _LEAST_WIDTH)
    room = 10_000 if height is None else max(height, _LEAST_HEIGHT)
    chosen = selected(view, choice)
    head = _head(view, choice, width)
    foot = [] if height is None else [_keys(width)]
    remarks = [_line(remark, width, "yellow") for remark in view.remarks[:2]]
    table = _table(view, choice, chosen, width, max(2, (room - len(head) - len(foot)) // 3))
    used = len(head) + len(remarks) + len(table) + len(foot)
    below = _below(view, chosen, width, room - used)
    lines = [*head, *remarks, *table, *below][: room - len(foot)]
    if foot:
        lines += [Text("")] * (room - len(foot) - len(lines))
    return [*lines, *foot]


def _head(view: TopView, choice: Choice, width: int) -> list[Text]:
    agents = ", ".join(
        f"agent {agent.pid}" + (f" ({agent.cores:.1%} of a core)" if agent.age > _YOUNG else "")
        for agent in view.agents[:3]
    )
    count = len(view.targets)
    words = f"sentinel-agent top  {show_time(view.time)[11:19]}  {count} target{'s' if count != 1 else ''}, {agents or 'no agent'}"
    state = f"PAUSED  by {choice.sort}" if choice.paused else f"by {choice.sort}"
    left = cell(words, max(0, width - len(state) - 1))
    return [Text.assemble((left, "bold"), " ", (state, "bold yellow" if choice.paused else "dim"))]


def _keys(width: int) -> Text:
    return _line("q quit  up/down or tab choose  s sort  p pause", width, "dim")


def _table(view: TopView, choice: Choice, chosen: TopTarget | None, width: int, room: int) -> list[Text]:
    if not view.targets:
        return [_line("No target is watched just now.", width, "yellow")]
    order = ordered(view, choice.sort)
    columns = [each for each in _COLUMNS if any(each[1] in target.readings for target in order)]
    bars = _BARS if width >= _WIDE else 0
    fixed = 2 + 8 + sum(each[2] + 1 for each in columns) + (bars + 1 if bars else 0)
    while columns and width - fixed < 10:  # a narrow terminal loses the last columns first
        fixed -= columns.pop()[2] + 1
    name = max(4, width - fixed)
    heading = "  " + cell("PID", 7, right=True) + " " + cell("TARGET", name)
    heading += "".join(" " + cell(title, size, right=True) for title, _, size in columns)
    heading += " " + cell("CPU, LAST MINUTES", bars) if bars else ""
    lines = [_line(heading, width, "bold")]
    at = next((number for number, target in enumerate(order) if target is chosen), 0)
    shown = max(1, room - 1)
    first = max(0, min(at - shown // 2, len(order) - shown))
    for target in order[first : first + shown]:
        mark = "> " if target is chosen else "  "
        row = mark + cell(str(target.pid), 7, right=True) + " " + cell(_label(target), name)
        row += "".join(" " + cell(_reading(target, metric), size, right=True) for _, metric, size in columns)
        row += " " + cell(_bars(target, "cpu", bars), bars) if bars else ""
        style = "reverse" if target is chosen else "dim" if target.age > _STALE else ""
        lines.append(_line(row, width, style, cleaned=True))
    left = len(order) - len(lines) + 1
    if left > 0:
        lines[-1 if len(lines) > 2 else 0 :] = [lines[-1], _line(f"  ... {left} more", width, "dim")]
    return lines


def _label(target: TopTarget) -> str:
    service, _, rest = target.target.partition("/")
    worker = rest.rpartition("/")[2]
    return service if worker in ("", "main") else f"{service} {worker}"


def _reading(target: TopTarget, metric: str) -> str:
    value = target.readings.get(metric)
    if value is None:
        return "?" if metric in target.errors else "-"
    if metric == "loop_stall":
        return "-" if value <= 0 else f"{value:.2f}s" if value < 100 else f"{value:.0f}s"
    return show_value(value, unit_of(metric)).replace(" ", "")


def _bars(target: TopTarget, metric: str, width: int) -> str:
    """The newest values at the right, from 0 up, CPU to a core at least; a gap where there was no reading."""
    values = target.recent.get(metric, ())[-width:] if width else ()
    known = [value for value in values if value is not None]
    if not known:
        return ""
    most = max(*known, 100.0) if metric == "cpu" else max(known)
    drawn = iter(sparkline(known, len(known), low=0.0, high=most))
    return "".join(" " if value is None else next(drawn) for value in values).rjust(width)


def _below(view: TopView, chosen: TopTarget | None, width: int, room: int) -> list[Text]:
    """The chosen target in detail, the rules that are not at rest, the last incidents."""
    if room < 3:
        return []
    rules = _Section("Rules not at rest", _rules(view, width))
    incidents = _Section("Last incidents", _incidents(view, width))
    if chosen is None:
        return _stacked([rules, incidents], room, width)
    detail = _detail(chosen, width)
    left = room - len(detail)
    if left < 3:
        return detail[:room]
    if width < _WIDE:
        parts = [_Section(*_hot(chosen.hot, width)), _Section(*_tasks(view, chosen, width)), rules, incidents]
        return [*detail, *_stacked(parts, left, width)]
    half = (width - 3) // 2
    one = [_Section(*_hot(chosen.hot, half)), _Section("Rules not at rest", _rules(view, half))]
    two = [_Section(*_tasks(view, chosen, half)), _Section("Last incidents", _incidents(view, half))]
    return [*detail, *_beside(_stacked(one, left, half), _stacked(two, left, half), half)]


@dataclass(frozen=True, slots=True)
class _Section:
    heading: str
    lines: list[Text]


def _stacked(sections: Sequence[_Section], room: int, width: int) -> list[Text]:
    """Each section with its heading; what there is of room is shared, so that none is crowded out."""
    wants = [len(section.lines) + 1 for section in sections]
    given = [0] * len(sections)
    while room > 0 and any(want > have for want, have in zip(wants, given, strict=True)):
        for number, want in enumerate(wants):
            if room > 0 and want > given[number]:
                given[number] += 1
                room -= 1
    lines = []
    for section, count in zip(sections, given, strict=True):
        if count < 2:
            continue
        lines += [_line(section.heading, width, "bold"), *section.lines[: count - 1]]
    return lines


def _beside(left: list[Text], right: list[Text], half: int) -> list[Text]:
    blank = Text(" " * half)
    lines = []
    for number in range(max(len(left), len(right))):
        one = left[number] if number < len(left) else blank
        padded = Text.assemble(one, " " * max(0, half - cell_len(one.plain)))
        two = right[number] if number < len(right) else Text("")
        lines.append(Text.assemble(padded, " | ", two))
    return lines


def _detail(target: TopTarget, width: int) -> list[Text]:
    """Who it is, and the course of its readings."""
    python = f", Python {target.python}" if target.python else ""
    stale = f", as of {format_duration(target.age)} ago" if target.age > _STALE else ""
    command = " ".join(target.command)
    lines = [_line(f"pid {target.pid}{python}{stale}: {command}", width, "bold cyan")]
    for metric in ("cpu", "rss", "tasks", "loop_stall"):
        known = [value for value in target.recent.get(metric, ()) if value is not None]
        if not known or (metric == "loop_stall" and not max(known)):
            continue
        unit = unit_of(metric)
        bars = min(60, max(10, width - 50))
        minutes = format_duration(RECENT_STEP * len(target.recent[metric]))
        spread = f"{show_value(min(known), unit)} to {show_value(max(known), unit)} in {minutes}"
        lines.append(_line(f"{metric:>10} {_bars(target, metric, bars)}  {spread}", width))
    return lines


def _hot(hot: Hot | None, width: int) -> tuple[str, list[Text]]:
    if hot is None or hot.why_not or not hot.functions:
        return "Hottest functions", [_line(f"  {hot.why_not if hot else 'not looked at yet'}", width, "dim")]
    seconds = format_duration(hot.seconds)
    heading = (
        f"Hottest on the CPU, last {seconds} ({hot.samples} samples)"
        if hot.on_cpu
        else f"On no CPU in the last {seconds}; threads wait in"
    )
    lines = [
        _line(f" {each.self_share:4.0%}  {_place(each.function, each.file, each.line)}", width)
        for each in hot.functions
        if each.self_share >= 0.005
    ]
    if hot.on_cpu and len(hot.stack) > 1:
        lines.append(_line("  the most frequent stack, innermost first:", width, "dim"))
        lines += [_line(f"    {_short(place)}", width, "dim") for place in hot.stack]
    return heading, lines


def _tasks(view: TopView, target: TopTarget, width: int) -> tuple[str, list[Text]]:
    seen = target.tasks
    if seen is None or not seen.groups:
        words = "none was seen yet" if target.readings.get("tasks") else "it has none"
        return "asyncio tasks", [_line(f"  {words}", width, "dim")]
    about = "about " if seen.every > 1 else ""
    heading = f"{about}{seen.count} tasks, {format_duration(round(max(0.0, view.time - seen.time)))} ago"
    lines = []
    for group in seen.groups:
        on = f", on {group.waiting_on}" if group.waiting_on else ""
        at = f" in {_short(group.place)}" if group.place else ""
        what = f", for {group.context}" if group.context else ""
        lines.append(_line(f" {about}{group.count} x {group.coroutine}{at}{on}{what}", width))
    return heading, lines


def _rules(view: TopView, width: int) -> list[Text]:
    if not view.rules:
        return [_line("  none" if view.agents else "  no agent judges them", width, "dim")]
    order = sorted(view.rules, key=lambda rule: (rule.state != "firing", rule.state != "pending", rule.rule))
    return [
        _line(f" {rule.rule} ({rule.pid}) {rule.state}: {rule.why}", width, _STATE_STYLE.get(rule.state, ""))
        for rule in order
    ]


def _incidents(view: TopView, width: int) -> list[Text]:
    if not view.incidents:
        return [_line("  none", width, "dim")]
    return [
        _line(f" {_when(row.time, view.time)}  {row.rule} ({row.pid}): {row.summary}", width)
        for row in view.incidents
    ]


def _when(time: float, now: float) -> str:
    words = show_time(time)
    return words[11:19] if words[:10] == show_time(now)[:10] else words[:10]


def _place(function: str, file: str, line: int) -> str:
    where = f" ({short_path(file)}:{line})" if line else f" ({short_path(file)})" if file else ""
    return f"{function}{where}"


def _short(place: str) -> str:
    """`function (file:line)` with the file as a person knows it."""
    function, bracket, file = place.rpartition(" (")
    return f"{function} ({short_path(file)}" if bracket else place


def _line(text: str, width: int, style: str = "", *, cleaned: bool = False) -> Text:
    return Text((text if cleaned else cell(text, width)).rstrip(), style=style, no_wrap=True)


def cell(text: str, width: int, *, right: bool = False) -> str:
    """`text` in exactly `width` columns, safe to show: cut with an ellipsis, or filled up with spaces."""
    safe = clean(text, 4 * width + 100).replace("\n", " ").replace("\t", " ")
    turned = any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in safe)
    if cell_len(safe) > width:
        safe = set_cell_size(safe, max(0, width - 1)) + ("…" if width else "")
    fill = " " * (width - cell_len(safe))
    marked = safe + _LEFT_TO_RIGHT if turned else safe
    return fill + marked if right else marked + fill
