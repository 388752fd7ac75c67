"""An incident as a person reads it: the answer first, then the evidence, then where the files are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.capture.base import SeriesWindow
from sentinel_agent.capture.stacks import Stacks, to_record
from sentinel_agent.capture.tasks import TasksDocument
from sentinel_agent.cli import task_view
from sentinel_agent.cli.output import clean, show_time, show_value, sparkline
from sentinel_agent.core.units import format_duration, format_size
from sentinel_agent.errors import SentinelError, StoreError
from sentinel_agent.profile import pprof, speedscope
from sentinel_agent.profile.text import format_hottest, format_stacks
from sentinel_agent.profile.views import hottest
from sentinel_agent.tap.capture import RequestsDocument, in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sentinel_agent.core.model import Incident
    from sentinel_agent.profile.record import ProfileRecord

_UNREADABLE = (ValueError, RecursionError, SentinelError)
_MAX_READ = 64 * 1024**2
_OF_THE_SPIKE = ("stacks.during.pb.gz", "profile.pb.gz", "profile.speedscope.json")
_BEST_FIRST = (*_OF_THE_SPIKE, "stacks.cpu.pb.gz", "stacks.pb.gz")
_HEAD_SECONDS = 120


def load_record(
    folder: Path, incident: Incident, best_first: tuple[str, ...] = _BEST_FIRST
) -> ProfileRecord | None:
    """The profile of the incident that tells most: what was on a CPU during the spike before all that was recorded."""
    for name in best_first:
        if _has(incident, name):
            content = _read(folder / name)
            return pprof.decode(content) if name.endswith(".pb.gz") else speedscope.decode(content)
    return None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_READ)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def headline(folder: Path, incident: Incident) -> str:
    """The one line that answers first: the hottest function, what the tasks wait for, or whom connections are with."""
    try:
        if incident.metric == "fds":
            peers = _peers(msgspec.json.decode(_read(folder / "process.json"), type=_Snapshot), 1)
            return f"most connections: {peers[0]}" if peers else ""
        if incident.metric == "tasks":
            return task_view.headline(_tasks_document(folder))
        record = load_record(folder, incident, _OF_THE_SPIKE)
    except _UNREADABLE:
        return ""
    hot = hottest(record, 1) if record and record.seconds > 0 else ()
    if not hot:
        return ""
    place = f" ({hot[0].file}:{hot[0].line})" if hot[0].file else ""
    return f"hottest: {clean(hot[0].function, 200)}{clean(place, 300)}, {hot[0].self_share:.0%} of the CPU samples"


def requested(incident: Incident, folder: Path) -> list[str]:
    """What stands out among the requests through the embedded proxy; nothing where there is none."""
    if not _has(incident, "requests.json"):
        return []
    try:
        document = msgspec.json.decode(_read(folder / "requests.json"), type=RequestsDocument)
    except _UNREADABLE:
        return []
    return [clean(line, 300) for line in in_words(document)]


def describe(incident: Incident, folder: Path, *, stacks: bool) -> Iterator[tuple[str, str]]:
    """(heading, text) of each part of `incidents show`, in the order of its use; text may have several lines."""
    yield "", _answer(incident, folder)
    evidence: tuple[tuple[str, Callable[[], str]], ...] = (
        ("Before and during", lambda: _course(incident, folder)),
        ("Where the CPU went", lambda: _hottest(incident, folder)),
        ("What was requested", lambda: "\n".join(requested(incident, folder))),
        ("What the tasks wait for", lambda: _tasks(incident, folder, None if stacks else 3)),
        ("What the threads were doing", lambda: _threads(incident, folder, None if stacks else 3)),
        ("The process", lambda: _process(incident, folder)),
    )
    for heading, part in evidence:
        try:
            text = part()
        except _UNREADABLE as error:  # a file that was cut or changed hides none of the others
            text = clean(f"cannot be read: {error}", 500)
        if text:
            yield heading, text
    yield "Captures", "\n".join(_captures(incident))
    yield "Files", "\n".join(_files(incident, folder))


def _tasks_document(folder: Path) -> TasksDocument:
    return msgspec.json.decode(_read(folder / "tasks.json"), type=TasksDocument)


def _tasks(incident: Incident, folder: Path, most: int | None) -> str:
    if not _has(incident, "tasks.json"):
        return ""
    document = _tasks_document(folder)
    return "\n".join([f"{document.count} tasks", *task_view.groups(document, most)])


def _has(incident: Incident, name: str) -> bool:
    return any(artifact.name == name for artifact in incident.artifacts)


def _answer(incident: Incident, folder: Path) -> str:
    target = incident.target
    python = f", Python {target.python}" if target.python else ""
    lines = [
        f"{incident.rule}: {incident.summary}",
        headline(folder, incident),
        "",
        f"when     {show_time(incident.time)}, sealed {format_duration(incident.sealed_time - incident.time)} later",
        f"target   {target.role.key}, pid {target.id.pid} ({target.name}{python}) on {incident.host}",
        f"command  {' '.join(target.command)[:300]}",
        f"reason   {incident.reason}, with {_thresholds(incident)}",
        f"paused   the target: {_pause(incident)}",
    ]
    return clean("\n".join(line for number, line in enumerate(lines) if line or number == 2), 4000)


def _thresholds(incident: Incident) -> str:
    words = [f"{name} {value}" for name, value in incident.thresholds.items() if value is not None]
    if incident.baseline is not None:
        words.append(f"baseline {show_value(incident.baseline, incident.unit)}")
    return ", ".join(words) or "no threshold"


def _pause(incident: Incident) -> str:
    return f"at most {incident.longest_pause_us} us" if incident.longest_pause_us else "not at all"


def _course(incident: Incident, folder: Path) -> str:
    """The readings that matter as bars: the rule's metric first, then CPU, memory and whatever moved most."""
    if not _has(incident, "series.json"):
        return ""
    window = msgspec.json.decode(_read(folder / "series.json"), type=SeriesWindow)
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
    record, words = load_record(folder, incident, _OF_THE_SPIKE), ""
    if record is None:
        record = load_record(folder, incident, ("stacks.cpu.pb.gz",))
        words = "nothing was seen on a CPU when it fired; over all that is recorded:\n"
    if record is None or record.seconds == 0:
        return ""
    return words + format_hottest(record, 10).rstrip()


def _threads(incident: Incident, folder: Path, most: int | None) -> str:
    if not _has(incident, "stacks.json"):
        return ""
    found = msgspec.json.decode(_read(folder / "stacks.json"), type=Stacks)
    return format_stacks(to_record(found, start=incident.time), most).rstrip()


class _Socket(msgspec.Struct, frozen=True):
    protocol: str = ""
    remote: str = ""
    state: str = ""


class _File(msgspec.Struct, frozen=True):
    kind: str = ""
    socket: _Socket | None = None


class _Files(msgspec.Struct, frozen=True):
    looked_at: int = 0
    by_kind: dict[str, int] = {}
    listed: tuple[_File, ...] = ()


class _Snapshot(msgspec.Struct, frozen=True):
    """What is shown of `process.json`; every part may be missing."""

    memory: dict[str, int] = {}
    files: _Files = _Files()


def _process(incident: Incident, folder: Path) -> str:
    """Memory and descriptors in figures, connections grouped by whom they are with."""
    if not _has(incident, "process.json"):
        return ""
    found = msgspec.json.decode(_read(folder / "process.json"), type=_Snapshot)
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
    lines += [f"         {line}" for line in _peers(found, 3)]
    return "\n".join(lines)


def _peers(found: _Snapshot, most: int) -> list[str]:
    """With whom the process has the most connections, and in which state they are."""
    counts = Counter(
        (file.socket.state, file.socket.remote)
        for file in found.files.listed
        if file.socket is not None and file.socket.remote and file.socket.state != "listen"
    )
    return [
        clean(f"{count} {state} with {remote}", 300) for (state, remote), count in counts.most_common(most)
    ]


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
