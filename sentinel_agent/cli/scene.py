"""An incident as a person reads it: the answer first, then the evidence, then where the files are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.capture.base import SeriesWindow
from sentinel_agent.capture.stacks import Stacks, to_record
from sentinel_agent.capture.task_groups import TasksDocument
from sentinel_agent.cli import task_view
from sentinel_agent.cli.output import clean, short_paths, show_time, show_value, sparkline
from sentinel_agent.core.units import format_duration, format_size
from sentinel_agent.findings.base import ProcessFacts, is_library
from sentinel_agent.findings.load import (
    OF_THE_SPIKE,
    UNREADABLE,
    has,
    load_document,
    load_record,
    read_findings,
)
from sentinel_agent.findings.process import peers
from sentinel_agent.findings.requests import RequestsDocument, in_words
from sentinel_agent.profile.text import format_hottest, format_stacks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sentinel_agent.core.model import Incident
    from sentinel_agent.findings.base import Findings

_HEAD_SECONDS = 120
_FINDINGS_SHOWN = 5
_REQUESTED_FIRST = 2  # lines about requests that stand right below the first finding


def requested(incident: Incident, folder: Path) -> list[str]:
    """What stands out among the requests through the embedded proxy; nothing where there is none."""
    if not has(incident, "requests.json"):
        return []
    try:
        document = load_document(folder, "requests.json", RequestsDocument)
    except UNREADABLE:
        return []
    return [clean(line, 300) for line in in_words(document)]


def describe(incident: Incident, folder: Path, *, stacks: bool) -> Iterator[tuple[str, str]]:
    """(heading, text) of each part of `incidents show`, in the order of its use; text may have several lines."""
    findings = read_findings(folder, incident)
    asked = requested(incident, folder)
    yield "", _answer(incident, findings, asked[:_REQUESTED_FIRST])
    evidence: tuple[tuple[str, Callable[[], str]], ...] = (
        ("What was found", lambda: short_paths("\n".join(_findings(findings)))),
        ("Before and during", lambda: _course(incident, folder)),
        ("Where the CPU went", lambda: _hottest(incident, folder)),
        ("What was requested", lambda: "\n".join(asked)),
        ("What the tasks wait for", lambda: _tasks(incident, folder, None if stacks else 3)),
        ("What the threads were doing", lambda: _threads(incident, folder, None if stacks else 3)),
        ("The process", lambda: _process(incident, folder)),
    )
    for heading, part in evidence:
        try:
            text = part()
        except UNREADABLE as error:  # a file that was cut or changed hides none of the others
            text = clean(f"cannot be read: {error}", 500)
        if text:
            yield heading, text
    yield "Captures", "\n".join(_captures(incident))
    yield "Files", "\n".join(_files(incident, folder))


def _findings(findings: Findings) -> Iterator[str]:
    """Each conclusion with its score, evidence and next step; then what is not known."""
    for found in findings.findings[:_FINDINGS_SHOWN]:
        yield clean(f"{found.score:>3}  {found.text}")
        for line in found.evidence:
            yield clean(f"     {line}")
        yield clean(f"     next: {found.next_step}")
    if findings.not_known:
        names = ", ".join(each.check.replace("_", " ") for each in findings.not_known)
        yield clean(f"not known: {names} (--json says why)")


def _tasks(incident: Incident, folder: Path, most: int | None) -> str:
    if not has(incident, "tasks.json"):
        return ""
    document = load_document(folder, "tasks.json", TasksDocument)
    lines = [*task_view.groups(document, most), *task_view.origins(document, most)]
    return "\n".join([f"{document.count} tasks", *lines])


def _answer(incident: Incident, findings: Findings, asked: list[str]) -> str:
    target = incident.target
    python = f", Python {target.python}" if target.python else ""
    lines = [
        f"{incident.rule}: {incident.summary}",
        "\n".join([short_paths(findings.headline), *asked]).strip(),
        "",
        f"when     {show_time(incident.time)}, sealed {format_duration(incident.sealed_time - incident.time)} later",
        f"target   {target.role.key}, pid {target.id.pid} ({target.name}{python}) on {incident.host}",
        f"command  {' '.join(target.command)[:300]}",
        f"reason   {incident.reason}, with {_thresholds(incident)}",
        f"paused   the target: {_pause(incident)}",
    ]
    return clean("\n".join(line for number, line in enumerate(lines) if line or number == 2), 4000)


def _thresholds(incident: Incident) -> str:
    words = [
        f"{name} {_threshold(name, value, incident.unit)}"
        for name, value in incident.thresholds.items()
        if value is not None
    ]
    if incident.baseline is not None:
        words.append(f"baseline {show_value(incident.baseline, incident.unit)}")
    return ", ".join(words) or "no threshold"


def _threshold(name: str, value: float | str, unit: str) -> str:
    """A threshold in the unit of its metric; `diff` is percent over the baseline."""
    if isinstance(value, str):
        return value
    return f"{value:g}%" if name == "diff" else show_value(value, unit)


def _pause(incident: Incident) -> str:
    return f"at most {incident.longest_pause_us} us" if incident.longest_pause_us else "not at all"


def _course(incident: Incident, folder: Path) -> str:
    """The readings that matter as bars: the rule's metric first, then CPU, memory and whatever moved most."""
    if not has(incident, "series.json"):
        return ""
    window = load_document(folder, "series.json", SeriesWindow)
    names = [
        name
        for name in dict.fromkeys((incident.metric, "cpu", "rss", "tasks", "threads", "fds"))
        if name in window.metrics
    ]
    lines = []
    for name in names:
        series = window.metrics[name]
        first = next((i for i, time in enumerate(series.times) if time >= incident.time - _HEAD_SECONDS), 0)
        values = series.values[first:]
        if not values:
            continue
        low, high = show_value(min(values), series.unit), show_value(max(values), series.unit)
        lines.append(f"{name:>10} {sparkline(values)}  {low} to {high}")
    if lines:
        seconds = window.end - max(window.start, incident.time - _HEAD_SECONDS)
        lines.append(
            f"{'':>10} {format_duration(seconds)} up to {show_time(window.end)[11:23]}, a reading every {format_duration(window.interval)}"
        )
    return "\n".join(lines)


def _hottest(incident: Incident, folder: Path) -> str:
    record, words = load_record(folder, incident, OF_THE_SPIKE), ""
    if record is None:
        record = load_record(folder, incident, ("stacks.cpu.pb.gz",))
        words = "nothing was seen on a CPU when it fired; over all that is recorded:\n"
    if record is None or record.seconds == 0:
        return ""
    return short_paths(words + format_hottest(record, 10, lambda file: not is_library(file)).rstrip())


def _threads(incident: Incident, folder: Path, most: int | None) -> str:
    if not has(incident, "stacks.json"):
        return ""
    found = load_document(folder, "stacks.json", Stacks)
    return short_paths(format_stacks(to_record(found, start=incident.time), most).rstrip())


def _process(incident: Incident, folder: Path) -> str:
    """Memory and descriptors in figures, connections grouped by whom they are with."""
    if not has(incident, "process.json"):
        return ""
    found = load_document(folder, "process.json", ProcessFacts)
    lines = []
    if found.memory:
        resident, private = found.memory.get("rss", 0), found.memory.get("anonymous", 0)
        lines.append(
            f"memory   {format_size(resident)} resident, of which {format_size(private)} is its own data"
        )
    if found.files.looked_at:
        kinds = sorted(found.files.by_kind.items(), key=lambda item: -item[1])
        words = ", ".join(f"{count} {kind}" for kind, count in kinds[:6])
        lines.append(clean(f"files    {found.files.looked_at} open: {words}"))
    lines += [clean(f"         {line}", 300) for line in peers(found, 3)]
    return "\n".join(lines)


def _captures(incident: Incident) -> Iterator[str]:
    for report in incident.captures:
        words = [f"{report.kind:<10} {report.status}"]
        if report.seconds:
            words.append(f"in {format_duration(report.seconds)}")
        if report.lost_samples:
            words.append(f"({report.lost_samples} samples lost)")
        if report.reason:
            words.append(f"- {clean(report.reason, 500)}")
        yield " ".join(words)


def _files(incident: Incident, folder: Path) -> Iterator[str]:
    yield str(folder)
    for artifact in incident.artifacts:
        yield f"  {artifact.name:<26} {format_size(artifact.bytes):>10}  {artifact.format}"
