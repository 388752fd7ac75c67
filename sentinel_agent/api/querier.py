"""What Grafana's Pyroscope data source asks, answered from sealed incidents and from the live flight recorder.

An incident keeps a copy of what the recorder held, and two incidents of one target may hold the same minutes. No
moment of a target is counted twice: the recorder's own stacks come first, then the incidents from the newest on, each with what
is not covered yet. Times in seconds since the epoch inside, in milliseconds in messages.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sentinel_agent.api.replies import DEFAULT_NODES, encoded, encoded_difference, encoded_pprof, widest
from sentinel_agent.api.selector import Selector, parse
from sentinel_agent.profile.digest import Digest, Interval, counted, digest, gaps
from sentinel_agent.profile.flamegraph import Folded, below, difference, flame_graph
from sentinel_agent.profile.names import ROUTE_FILE, ROUTE_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sentinel_agent.api.incidents import IncidentProfiles, Kind
    from sentinel_agent.core.model import IncidentRow, Target
    from sentinel_agent.profile.record import ProfileRecord

MERGED_AT_MOST = 2000
"""Incidents, the newest, that one answer is made of."""
_MAX_POINTS = 11_000  # of one series, as Prometheus has it
_NAMES_AT_MOST = 1000
_AT_A_STRETCH = 4  # incidents, of half a millisecond each
_REACH = 3660.0
"""Seconds before its trigger that an incident's stacks may begin: the longest recorder window, and a minute."""
_TAIL = 60.0
_FAR = 1e11


@dataclass(frozen=True, slots=True)
class ProfileType:
    """A kind of profile; `kind` is what is read of an incident, None for the list of incidents itself."""

    id: str
    kind: Kind | None
    recorded: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """The pseudo labels that say the same in parts."""
        name, sample, unit, period, period_unit = self.id.split(":")
        return {
            "__profile_type__": self.id,
            "__name__": name,
            "__type__": sample,
            "__unit__": unit,
            "__period_type__": period,
            "__period_unit__": period_unit,
        }


TYPES = {
    found.id: found
    for found in (
        ProfileType("process_cpu:cpu:nanoseconds:cpu:nanoseconds", "cpu", recorded=True),
        ProfileType("wall:wall:nanoseconds:wall:nanoseconds", "wall", recorded=True),
        ProfileType("threads:thread:count:thread:count", "threads"),
        ProfileType("asyncio:task:count:task:count", "tasks"),
        ProfileType("memory:inuse_space:bytes:space:bytes", "inuse_space"),
        ProfileType("memory:inuse_objects:count:space:bytes", "inuse_objects"),
        ProfileType("memory:alloc_space:bytes:space:bytes", "alloc_space"),
        ProfileType("memory:alloc_objects:count:space:bytes", "alloc_objects"),
        ProfileType("incident:dumps:count:incident:count", None),
    )
}
_ROUTE_END = f" ({ROUTE_FILE})"
_PHASES = ("before", "during")
_OWN_LABELS = (
    *("service_name", "instance", "worker", "pid", "source"),
    *("dump_id", "rule", "reason", "metric", "summary", "phase", "route"),
)


@dataclass(frozen=True, slots=True)
class Query:
    """Which stacks are asked for. `ids` names profiles, empty for all; `routes` are the tests of the label `route`.

    That label belongs to stacks, not to profiles: `selector` has the tests of all others.
    """

    type: ProfileType
    selector: Selector
    start: float
    end: float
    ids: frozenset[str] = frozenset()
    routes: Selector = field(default_factory=Selector)


@dataclass(frozen=True, slots=True)
class LiveRecord:
    """What the recorder holds of a target in a query's time."""

    target: Target
    record: ProfileRecord


@dataclass(frozen=True, slots=True)
class _Piece:
    """A digest that belongs to a query, with the labels of who it is of; `before` and `during` say which part counts."""

    labels: dict[str, str]
    digest: Digest
    time: float
    before: bool
    during: bool


def query_of(request: Mapping[str, Any]) -> Query:
    """The query in a request for stacks or series.

    Raises:
        ValueError: its selector cannot be understood, or the profile type is unknown.
    """
    selector, routes = parse(request["label_selector"]).split("route")
    wanted = request["profile_typeID"] or selector.prefix
    known = TYPES.get(wanted.removesuffix(":delta"))
    if known is None:
        raise ValueError(f"unknown profile type {wanted[:100]!r}; there are: {', '.join(TYPES)}")
    start, end = times_of(request)
    ids = frozenset(request.get("profile_id_selector") or ())
    return Query(known, selector, start, end, ids, routes)


def times_of(request: Mapping[str, Any]) -> tuple[float, float]:
    """Start and end; a request that names none means everything."""
    start, end = request["start"] / 1000, request["end"] / 1000
    return (start, end) if end > 0 else (0.0, _FAR)


def profile_id(incident_id: str) -> str:
    """The UUID by which an incident is known as a profile (RFC 4122, version 5)."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, incident_id))


def labels_of(row: IncidentRow) -> dict[str, str]:
    """The labels of an incident."""
    service, _, rest = row.target.partition("/")
    instance, _, worker = rest.rpartition("/")
    return {
        "service_name": service or "unknown",
        "instance": instance,
        "worker": worker,
        "pid": str(row.pid),
        "source": "incident",
        "dump_id": row.id,
        "rule": row.rule,
        "reason": row.reason,
        "metric": row.metric,
        "summary": row.summary,
    }


def live_labels(target: Target) -> dict[str, str]:
    """The labels of what is recorded just now."""
    return {
        "service_name": target.service,
        "instance": target.instance,
        "worker": target.worker,
        "pid": str(target.pid),
        "source": "recorder",
    }


class Querier:
    """Answers from one store, and from what the caller brings of the live recorder. Blocks; for one worker thread."""

    def __init__(self, profiles: IncidentProfiles, now: Callable[[], float]) -> None:
        self._profiles = profiles
        self._now = now  # seconds since the epoch

    # -- stacks ----------------------------------------------------------------------------------------------

    def stacks(self, query: Query, live: Sequence[LiveRecord]) -> Folded:
        """All stacks of a query, merged."""
        self._profiles.trim()
        sums: dict[int, int] = {}
        for piece in self._pieces(query, live):
            if piece.before:
                piece.digest.before.add_to(sums)
            if piece.during:
                piece.digest.during.add_to(sums)
        stacks = self._profiles.table.stacks()
        return {
            stacks[number]: cost
            for number, cost in sums.items()
            if not query.routes.matchers or query.routes.matches({"route": _route(stacks[number])})
        }

    def flame_graph(self, request: Mapping[str, Any], live: Sequence[LiveRecord]) -> dict[str, Any]:
        """SelectMergeStacktraces, SelectMergeSpanProfile."""
        stacks = self._selected(request, live)
        graph = flame_graph(stacks, request["max_nodes"] or DEFAULT_NODES)
        return {"flamegraph": encoded(graph)} if graph else {}

    def difference(
        self, request: Mapping[str, Any], left: Sequence[LiveRecord], right: Sequence[LiveRecord]
    ) -> dict[str, Any]:
        """Diff."""
        sides = request["left"], request["right"]
        most = max(side["max_nodes"] for side in sides) or DEFAULT_NODES
        graph = difference(self._selected(sides[0], left), self._selected(sides[1], right), most)
        return {"flamegraph": encoded_difference(graph)} if graph else {}

    def pprof(self, request: Mapping[str, Any], live: Sequence[LiveRecord]) -> dict[str, Any]:
        """SelectMergeProfile: a perftools.profiles.Profile."""
        query = query_of(request)
        seconds = max(0.0, min(query.end, self._now()) - query.start)
        return encoded_pprof(
            self._selected(request, live), query.type.id.split(":")[1:], query.start, seconds
        )

    def _selected(self, request: Mapping[str, Any], live: Sequence[LiveRecord]) -> Folded:
        stacks = self.stacks(query_of(request), live)
        selector = request.get("stack_trace_selector") or {}
        site = [each["name"] for each in selector.get("call_site", ())]
        return below(stacks, site) if site else stacks

    # -- series ----------------------------------------------------------------------------------------------

    def series(self, request: Mapping[str, Any], live: Sequence[LiveRecord]) -> dict[str, Any]:
        """SelectSeries: a point at start + k x step stands for what lies in the step that ends there.

        Of the list of incidents every incident is a point of its own, at its own time, where series are grouped by dump.
        """
        query = query_of(request)
        step = max(request["step"], 1.0, (min(query.end, self._now()) - query.start) / _MAX_POINTS)
        exact = query.type.kind is None and "dump_id" in request["group_by"]
        sums: dict[tuple[tuple[str, str], ...], dict[int, float]] = {}
        for labels, moment, value in self._points(query, live):
            group = tuple((name, labels[name]) for name in sorted(set(request["group_by"])) if name in labels)
            at = moment if exact else query.start + -(-(moment - query.start) // step) * step
            points = sums.setdefault(group, {})
            stamp = round(at * 1000)
            points[stamp] = points.get(stamp, 0.0) + value
        found = widest(sums, request["limit"])
        return {
            "series": [
                {
                    "labels": [{"name": name, "value": value} for name, value in group],
                    "points": [{"value": value, "timestamp": at} for at, value in sorted(points.items())],
                }
                for group, points in found
            ]
        }

    def _points(
        self, query: Query, live: Sequence[LiveRecord]
    ) -> Iterator[tuple[dict[str, str], float, float]]:
        if query.type.kind is None:
            for row, labels in self._rows(query, query.start, query.end):
                if query.selector.matches(labels | query.type.labels) and _named(query, row):
                    yield labels, row.time, 1.0
            return
        for piece in self._pieces(query, live):
            for second, value in piece.digest.seconds.items():
                during = second >= int(piece.digest.since)
                if (piece.during if during else piece.before) and query.start <= second < query.end:
                    phase = {"phase": "during" if during else "before"} if "dump_id" in piece.labels else {}
                    yield piece.labels | phase, float(second), float(value)

    # -- labels ----------------------------------------------------------------------------------------------

    def label_names(self) -> list[str]:
        """All labels there are; the pseudo labels too."""
        return sorted([*_OWN_LABELS, *next(iter(TYPES.values())).labels])

    def label_sets(
        self, selectors: Sequence[str], start: float, end: float, targets: Sequence[Target]
    ) -> Iterator[dict[str, str]]:
        """The labels of every profile in a time that passes one of the selectors, profile types and phases included."""
        parsed = [_typed(parse(text).split("route")[0]) for text in selectors] or [Selector()]
        for base, types in self._profiles_in(start, end, targets):
            for kind in types:
                phases = _PHASES if kind.recorded and "dump_id" in base else (None,)
                for phase in phases:
                    labels = base | kind.labels | ({"phase": phase} if phase else {})
                    if any(selector.matches(labels) for selector in parsed):
                        yield labels

    def label_values(self, name: str, sets: Iterator[dict[str, str]]) -> list[str]:
        """The distinct values of a label, dumps newest first, others by name; routes of the profiles that were looked at."""
        if name == "route":
            return sorted({_route(stack) for stack in self._profiles.table.stacks()} - {""})
        found: dict[str, None] = {}
        for labels in sets:
            if name in labels:
                found[labels[name]] = None
            if len(found) >= _NAMES_AT_MOST:
                break
        return list(found) if name == "dump_id" else sorted(found)

    def stats(self, targets: Sequence[Target]) -> dict[str, Any]:
        """GetProfileStats. Data count as there even where nothing has fired yet, or the Drilldown app shows how to install an agent."""
        newest = self._profiles.rows(None, None, 1)
        end = self._now() if targets else newest[0].time if newest else 0.0
        return {
            "data_ingested": True,
            "oldest_profile_time": 0,
            "newest_profile_time": round(end * 1000),
        }

    # -- where the data are ----------------------------------------------------------------------------------

    def _profiles_in(
        self, start: float, end: float, targets: Sequence[Target]
    ) -> Iterator[tuple[dict[str, str], list[ProfileType]]]:
        for target in targets:
            yield live_labels(target), [kind for kind in TYPES.values() if kind.recorded]
        for row in self._profiles.rows(start, end + _REACH, MERGED_AT_MOST):
            kinds = self._profiles.kinds(row)
            yield labels_of(row), [each for each in TYPES.values() if each.kind is None or each.kind in kinds]

    def _rows(self, query: Query, start: float, end: float) -> Iterator[tuple[IncidentRow, dict[str, str]]]:
        for row in self._profiles.rows(start, end, MERGED_AT_MOST):
            yield row, labels_of(row)

    def _pieces(self, query: Query, live: Sequence[LiveRecord]) -> Iterator[_Piece]:
        kind = query.type.kind
        if kind is None:
            yield from self._counted(query)
            return
        covered: dict[str, list[Interval]] = {}
        for each in live if query.type.recorded else ():
            labels = live_labels(each.target)
            if query.selector.matches(labels | query.type.labels) and not query.ids and each.record.samples:
                begin = each.record.start
                covered.setdefault(each.target.role.key, []).append((begin, begin + each.record.end))
                found = digest(each.record, "cpu" if kind == "cpu" else "wall", self._profiles.table)
                yield _Piece(labels, found, begin, before=False, during=True)
        reach, tail = (_REACH, _TAIL) if query.type.recorded else (0.0, 0.0)
        for number, (row, labels) in enumerate(self._rows(query, query.start - tail, query.end + reach)):
            if number % _AT_A_STRETCH == 0:
                time.sleep(0)  # the agent's own ticks come first
            if not _named(query, row):
                continue
            passes = self._phases(query, labels)
            found_in = self._digest(query, row, covered) if any(passes) else None
            if found_in is not None:
                yield _Piece(labels, found_in, row.time, before=passes[0], during=passes[1])

    def _phases(self, query: Query, labels: dict[str, str]) -> tuple[bool, bool]:
        every = labels | query.type.labels
        if not query.type.recorded:
            return False, query.selector.matches(every)
        before, during = (query.selector.matches(every | {"phase": phase}) for phase in _PHASES)
        return before, during

    def _digest(self, query: Query, row: IncidentRow, covered: dict[str, list[Interval]]) -> Digest | None:
        """What of an incident's stacks lies in the query's time and was not counted yet."""
        kind = query.type.kind
        assert kind is not None
        if not query.type.recorded:
            return self._profiles.digest(row, kind)
        span = self._profiles.span(row, kind)
        if span is None:
            return None
        taken = covered.setdefault(row.target, [])
        own = (max(span[0], query.start), min(span[1], query.end))
        free = gaps(own, taken) if own[0] < own[1] else []
        if not free:
            return None
        taken.append(own)
        return self._profiles.digest(row, kind, None if free == [span] else free)

    def _counted(self, query: Query) -> Iterator[_Piece]:
        """The list of incidents as stacks: service, rule, reason."""
        for row, labels in self._rows(query, query.start, query.end):
            if query.selector.matches(labels | query.type.labels) and _named(query, row):
                stack = (labels["service_name"], row.rule, row.summary)
                one = counted({stack: 1}, row.time, self._profiles.table)
                yield _Piece(labels, one, row.time, before=False, during=True)


def _route(stack: tuple[str, ...]) -> str:
    """The route of the embedded proxy for which a stack ran; empty where it is none."""
    for label in stack:
        if label.startswith(ROUTE_PREFIX) and label.endswith(_ROUTE_END):
            return label[len(ROUTE_PREFIX) : -len(_ROUTE_END)]
    return ""


def _named(query: Query, row: IncidentRow) -> bool:
    return not query.ids or row.id in query.ids or profile_id(row.id) in query.ids


def _typed(selector: Selector) -> Selector:
    """A name before the brace is a profile type."""
    if not selector.prefix:
        return selector
    label = "__profile_type__" if ":" in selector.prefix else "__name__"
    test = parse(f'{{{label}="{selector.prefix}"}}').matchers
    return replace(selector, matchers=(*selector.matchers, *test), prefix="")
