"""The facts of an incident out of its folder.

Every file is read by itself and bounded: one that cannot be read is missing, with the reason, and hides none of the
others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from sentinel_agent.capture.base import SeriesWindow
from sentinel_agent.capture.heap import HeapDocument
from sentinel_agent.capture.memray import MemrayDocument
from sentinel_agent.capture.stacks import Stacks
from sentinel_agent.capture.task_groups import TasksDocument
from sentinel_agent.capture.tracemalloc import TracemallocDocument
from sentinel_agent.errors import SentinelError, StoreError
from sentinel_agent.findings.base import EarlierIncident, Facts, Findings, ProcessFacts
from sentinel_agent.findings.judge import judge
from sentinel_agent.findings.requests import RequestsDocument
from sentinel_agent.profile import pprof, speedscope
from sentinel_agent.store.folder import UnreadableError as DamagedIncidentError
from sentinel_agent.store.index import IncidentFilter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sentinel_agent.capture.base import Recording
    from sentinel_agent.core.model import Incident
    from sentinel_agent.profile.record import ProfileRecord
    from sentinel_agent.store.store import Store

_T = TypeVar("_T")

FILE_NAME = "findings.json"
UNREADABLE = (ValueError, RecursionError, SentinelError)
"""What reading an artifact may raise: it was cut, changed, or removed."""
_MAX_READ = 64 * 1024**2
_MAX_TIMELINE = 8 * 1024**2
_MAX_FINDINGS = 1024**2
_EARLIER = 20
OF_THE_SPIKE = ("stacks.during.pb.gz", "profile.pb.gz", "profile.speedscope.json")
BEST_FIRST = (*OF_THE_SPIKE, "stacks.cpu.pb.gz", "stacks.pb.gz")


def load_record(
    folder: Path, incident: Incident, best_first: tuple[str, ...] = BEST_FIRST
) -> ProfileRecord | None:
    """The profile of the incident that tells most: what was on a CPU during the spike before all that was recorded."""
    for name in best_first:
        if has(incident, name):
            content = read_artifact(folder / name)
            return pprof.decode(content) if name.endswith(".pb.gz") else speedscope.decode(content)
    return None


def has(incident: Incident, name: str) -> bool:
    """Whether the incident has an artifact of this name."""
    return any(artifact.name == name for artifact in incident.artifacts)


def load_document(folder: Path, name: str, form: type[_T]) -> _T:
    """An artifact that is a JSON document; raises `UNREADABLE`."""
    return msgspec.json.decode(read_artifact(folder / name), type=form)


def read_artifact(path: Path, limit: int = _MAX_READ) -> bytes:
    """The first `limit` bytes of a file.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def read_findings(folder: Path, incident: Incident) -> Findings:
    """The findings as they were stored, or made now from what is there where none were stored or they are damaged."""
    if has(incident, FILE_NAME):
        try:
            return load_document(folder, FILE_NAME, Findings)
        except UNREADABLE:
            pass
    return judge(load_facts(folder, incident))


def write_findings(folder: Path, incident: Incident, store: Store, recorded: Recording | None = None) -> str:
    """Judge an incident that is about to be sealed; the name of the file that was written into its folder.

    `recorded` is the recording that its stacks were made from, where it is still at hand.

    Raises:
        OSError: it cannot be written.
    """
    facts = replace(load_facts(folder, incident, recorded), earlier=_earlier(store, incident))
    (folder / FILE_NAME).write_bytes(msgspec.json.encode(judge(facts)))
    return FILE_NAME


def load_facts(folder: Path, incident: Incident, recorded: Recording | None = None) -> Facts:
    """What is in the folder; never raises for a damaged file. `recorded`: as in `write_findings`."""
    missing: dict[str, str] = {}

    def part(name: str, kind: str, artifact: str, load: Callable[[], Any]) -> Any:
        if not has(incident, artifact):
            missing[name] = _why_not(incident, kind, artifact)
            return None
        try:
            return load()
        except UNREADABLE as error:
            missing[name] = f"{artifact} cannot be read: {error}"
            return None

    def document(name: str, kind: str, form: type[_T]) -> _T | None:
        artifact = f"{kind}.json"
        found: _T | None = part(name, kind, artifact, lambda: load_document(folder, artifact, form))
        return found

    def timeline() -> ProfileRecord:
        content = read_artifact(folder / "stacks.speedscope.json", _MAX_TIMELINE + 1)
        if len(content) > _MAX_TIMELINE:
            raise StoreError(f"it is larger than {_MAX_TIMELINE} bytes")
        return speedscope.decode(content)

    def spike() -> ProfileRecord | None:
        name = next((each for each in OF_THE_SPIKE if has(incident, each)), OF_THE_SPIKE[0])
        found: ProfileRecord | None = part(
            "during", "stacks", name, lambda: load_record(folder, incident, (name,))
        )
        return found

    return Facts(
        incident=incident,
        series=document("series", "series", SeriesWindow),
        during=recorded.during if recorded and recorded.during.samples else spike(),
        timeline=recorded.wall
        if recorded
        else part("timeline", "stacks", "stacks.speedscope.json", timeline),
        stacks=document("stacks", "stacks", Stacks),
        tasks=document("tasks", "tasks", TasksDocument),
        process=document("process", "process", ProcessFacts),
        heap=document("heap", "heap", HeapDocument),
        allocations=document("allocations", "tracemalloc", TracemallocDocument),
        requests=document("requests", "requests", RequestsDocument),
        memray=document("memray", "memray", MemrayDocument),
        gc=document("gc", "gc", HeapDocument),
        missing=missing,
    )


def _why_not(incident: Incident, kind: str, artifact: str) -> str:
    reports = [report for report in incident.captures if report.kind == kind]
    if not reports:
        return f"{kind} was not captured"
    if reports[0].status != "ok":
        return f"{kind} {reports[0].status}: {reports[0].reason}"
    return f"{kind} has no {artifact}"


def _earlier(store: Store, incident: Incident) -> tuple[EarlierIncident, ...] | None:
    """The last incidents of the same rule and role, with what was found in each; None where the store fails."""
    wanted = IncidentFilter(rule=incident.rule, target=incident.target.role.key, limit=_EARLIER)
    found = []
    try:
        for row in store.list(wanted):
            if row.id == incident.id:
                continue
            found.append(EarlierIncident(row.time, _subject(store, row.id)))
    except (DamagedIncidentError, SentinelError):
        return None
    return tuple(found)


def _subject(store: Store, incident_id: str) -> str:
    try:
        path = store.artifact(incident_id, FILE_NAME)
        known = msgspec.json.decode(read_artifact(path, _MAX_FINDINGS), type=Findings)
    except UNREADABLE:
        return ""
    return next((each.subject for each in known.findings if each.subject), "")
