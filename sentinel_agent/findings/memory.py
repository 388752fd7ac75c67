"""Findings about memory: what grew, and how hard the garbage collector works."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from sentinel_agent.core.units import format_duration, format_size
from sentinel_agent.findings.base import Facts, Finding, MappingTotal, NotKnown, finding, is_library, place
from sentinel_agent.findings.loop import callback_frames

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sentinel_agent.capture.base import Series
    from sentinel_agent.capture.heap import TypeTotal
    from sentinel_agent.profile.heap import HeapLine, HeapSite
    from sentinel_agent.profile.record import ProfileRecord

# What nearly every object has one of: named only where nothing else grew.
_BUILT_IN = frozenset(
    {"dict", "list", "tuple", "set", "cell", "function", "builtin_function_or_method", "method", "coroutine"}
)
_MEMORY = ("rss", "rss_limit", "memory_events", "oom_kills")
_LEAST_GROWTH = 16 * 1024**2
_LEAST_SHARE = 0.1
_STORM = 3.0  # full collections a second
_LONG_PAUSE = 0.1  # seconds
_LAST = 10  # readings
_LEAST_ALLOCATED = 1024**2
_LEAST_OBJECTS = 1000
_LEAST_SAMPLES = 5
_SOON = 86400.0  # seconds to the memory limit that are worth telling
_NEAR = 5.0  # percent of the limit; under it the limit is mostly the machine's own memory
_LEAST_ARENAS = 64 * 1024**2
_MOST_OF = 0.4
_WORTH_TELLING = 1024**2
_HOLDERS = {
    "main_heap": "in malloc's main heap",
    "malloc_arenas": "in malloc's other arenas",
    "thread_stacks": "in stacks",
    "anonymous": "in Python's arenas and large blocks",
    "shared": "shared",
    "files": "of files",
}
_SAME = (
    0.8  # resident memory that grew by less than this share of what was allocated was there before, and free
)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What an allocation tracer saw: bytes that were allocated within `seconds` and are still held, by place."""

    by: str
    seconds: float
    grown_bytes: int
    sites: Sequence[HeapSite]
    places: int
    resident_bytes: int = 0
    was_on: bool = False


def allocations(facts: Facts) -> Finding | NotKnown | None:
    """The line of the program's own code that allocated most of what grew while it was traced."""
    seen = _traced(facts)
    if seen is None:
        return facts.not_known("allocations", "allocations")
    if seen.grown_bytes < _LEAST_ALLOCATED or not seen.sites:
        return None
    sizes: Counter[HeapLine] = Counter()
    for site in seen.sites:
        sizes[_own_line(site)] += site.bytes
    line, size = sizes.most_common(1)[0]
    where = _name(line)
    share = size / seen.grown_bytes
    largest = next(site for site in seen.sites if _own_line(site) == line)
    calls = " < ".join(_name(each) for each in largest.lines[:4])
    within = format_duration(seen.seconds)
    text = f"memory grows at {where}: {format_size(size)} more within {within}, {share:.0%} of what {seen.by} saw grow"
    if seen.resident_bytes >= _SAME * size:
        text = f"resident memory grew by {format_size(seen.resident_bytes)} within {within}, {format_size(size)} of it at {where}"
    return finding(
        "allocations",
        (60 if facts.about(*_MEMORY) else 35) + 38 * share,
        text,
        f"allocated by {calls}",
        f"{format_size(seen.grown_bytes)} grew in {seen.places} places, {share:.0%} of it there"
        + ("; memory outside Python's allocators is not seen" if seen.by == "tracemalloc" else ""),
        "tracemalloc was on already, by somebody else" if seen.was_on else "",
        next_step="see who keeps what this line makes: a cache or list without a bound, a task that never ends",
        subject=where,
    )


def _traced(facts: Facts) -> _Seen | None:
    """Tracemalloc's view, else memray's."""
    if (own := facts.allocations) is not None:
        return _Seen(
            "tracemalloc",
            own.seconds,
            own.grown_bytes,
            own.sites,
            own.tracebacks,
            own.resident_grown_bytes,
            own.was_on,
        )
    if (other := facts.memray) is not None:
        return _Seen("memray", other.seconds, other.leaked_bytes, other.leaks, len(other.leaks))
    return None


def object_growth(facts: Facts) -> Finding | NotKnown | None:
    """The type of which there are most more: than when all was well where that is known, else than at the trigger."""
    heap = facts.heap or facts.gc
    if heap is None:
        return facts.not_known("object_growth", "heap")
    pair, since = _most_more(heap.growth), _most_more(heap.since_baseline)
    most = since or pair
    if most is None or most.count < max(_LEAST_OBJECTS, _LEAST_SHARE * heap.before.objects / 10):
        return None
    held = "after a full collection" if heap.full_collection else "though no full collection was seen"
    within, growth, before = f"within {format_duration(heap.seconds)}, {held}", heap.growth, heap.before
    if since and heap.baseline:
        ago = format_duration(heap.after.time - heap.baseline.time)
        within, growth, before = f"than {ago} ago, when all was well", heap.since_baseline, heap.baseline
    others = [
        f"{each.count} more {each.name}, {format_size(each.bytes)}" for each in growth[:4] if each != most
    ]
    return finding(
        "object_growth",
        (65 if facts.about(*_MEMORY) else 30) + (10 if heap.full_collection or since else 0),
        f"{most.count} more objects of type {most.name} {within}",
        f"there are {heap.after.objects} tracked objects, {before.objects} before",
        *others,
        f"not compared with before: {heap.not_compared}" if heap.not_compared else "",
        "str, bytes, numbers and arrays are not tracked by the collector, so they are not counted",
        next_step="see who keeps them: a cache, a registry, a task that never ends; `tracemalloc` names the line",
        subject=most.name,
    )


def _most_more(growth: Sequence[TypeTotal]) -> TypeTotal | None:
    """The type with most objects more; what nearly every object has one of only where nothing else grew."""
    ours = [each for each in growth if each.name not in _BUILT_IN] or growth
    return max(ours, key=lambda each: each.count, default=None)


def _name(line: HeapLine) -> str:
    """`file:line`, with the function where it is known; memray knows no line of the innermost one on 3.9."""
    return place(line.function, line.file, line.line) if line.function else f"{line.file}:{line.line}"


def _own_line(site: HeapSite) -> HeapLine:
    """The innermost line of the program's own code, or of all code where none is its own."""
    return next((line for line in site.lines if not is_library(line.file)), site.lines[0])


def malloc_arenas(facts: Facts) -> Finding | NotKnown | None:
    """Most of what is resident lies in the arenas that glibc's malloc makes for threads."""
    if facts.process is None or not facts.process.mappings:
        return facts.not_known("malloc_arenas", "process")
    held = facts.process.mappings
    arenas = held.get("malloc_arenas", MappingTotal())
    whole = sum(each.resident_bytes for each in held.values())
    if arenas.resident_bytes < max(_LEAST_ARENAS, _MOST_OF * whole):
        return None
    return finding(
        "malloc_arenas",
        (55 if facts.about(*_MEMORY) else 25) + 20 * arenas.resident_bytes / whole,
        f"{format_size(arenas.resident_bytes)} of {format_size(whole)} resident lie in {arenas.count} arenas of malloc: "
        "memory of C code, or freed and not given back",
        *_held(facts),
        next_step="start it with MALLOC_ARENA_MAX=2, or with jemalloc, and compare; `memray` shows what C code allocates",
        subject="malloc's arenas",
    )


def _held(facts: Facts) -> tuple[str, ...]:
    """One line: who holds what is resident, the most first; none where that is not known."""
    held = facts.process.mappings if facts.process else {}
    parts = sorted(held.items(), key=lambda item: -item[1].resident_bytes)
    words = [
        f"{format_size(each.resident_bytes)} {_HOLDERS[kind]}"
        for kind, each in parts
        if kind in _HOLDERS and each.resident_bytes >= _WORTH_TELLING
    ]
    return (f"resident: {', '.join(words)}",) if words else ()


def growth(facts: Facts) -> Finding | NotKnown | None:
    """Resident memory grew within the window, or over the rule's baseline."""
    series = facts.readings("rss")
    if series is None:
        return facts.no_readings("memory_growth", "rss")
    now = series.values[-1]
    before = min(series.values)
    if facts.about("rss") and facts.incident.baseline is not None:
        before = min(before, facts.incident.baseline)
    grown = now - before
    about = facts.about(*_MEMORY) or facts.incident.reason == "oom"
    if grown < _LEAST_GROWTH or grown < _LEAST_SHARE * before:
        return None
    limit = facts.readings("rss_limit")
    ran = _ran_meanwhile(facts, series, grown)
    while_ran = f", most of it while {place(*ran.place)} ran" if ran else ""
    traced = _traced(facts) is not None
    return finding(
        "memory_growth",
        (60 if about else 30) + min(20, 20 * grown / max(before, 1)),
        f"resident memory grew by {format_size(grown)}, from {format_size(before)} to {format_size(now)}{while_ran}",
        f"{format_size(ran.bytes)} came while it was on a CPU, by {format_duration(ran.seconds)} of stacks; that it allocated them is likely, not known"
        if ran
        else "",
        _until_the_limit(series, limit.values[-1]) if limit else "",
        *_held(facts),
        "" if traced else f"which line allocates is not known: {facts.missing.get('allocations', '')}",
        next_step="see which line allocates, among the findings"
        if traced
        else "let the rule capture `tracemalloc` (it needs capture.allow_injection) to learn which line allocates",
        subject=place(ran.place[0], ran.place[1], 0) if ran else "resident memory",
    )


def _until_the_limit(series: Series, percent: float) -> str:
    """How near it is, and when it gets there if it goes on as it did since the lowest reading; empty where it is far away."""
    if percent < _NEAR:
        return ""
    now = series.values[-1]
    lowest = min(range(len(series.values)), key=lambda at: (series.values[at], -at))
    seconds = series.times[-1] - series.times[lowest]
    grown = now - series.values[lowest]
    words = f"it is at {percent:.0f}% of the memory limit"
    if percent >= 100 or seconds <= 0 or grown <= 0:
        return words
    left = (now * 100 / percent - now) * seconds / grown
    return (
        f"{words}; if it goes on like this it gets there in {format_duration(left)}"
        if left < _SOON
        else words
    )


_Place = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class _Ran:
    """Where the program was while most of the growth came: function, file and line; bytes, and seconds of stacks that say so."""

    place: _Place
    bytes: float
    seconds: float


def _ran_meanwhile(facts: Facts, series: Series, grown: float) -> _Ran | None:
    """The place of the program's own code that was on a CPU when the readings rose, if one stands out.

    Each rise between two readings is shared among the stacks in between, by time. None where these are too few to say.
    """
    timeline = facts.timeline
    if timeline is None:
        return None
    rises = [*_rises(series)]
    ends = [until for _, until, _ in rises]
    shares: list[defaultdict[_Place, float]] = [defaultdict(float) for _ in rises]
    for began, ended, where in _busy(timeline):
        for number in range(bisect_right(ends, began), len(rises)):
            since, until, _ = rises[number]
            if since >= ended:
                break
            shares[number][where] += min(ended, until) - max(began, since)
    sizes: defaultdict[_Place, float] = defaultdict(float)
    seconds: defaultdict[_Place, float] = defaultdict(float)
    for (_, _, rise), share in zip(rises, shares, strict=True):
        whole = sum(share.values())
        for where, part in share.items():
            sizes[where] += rise * part / whole
            seconds[where] += part
    if not sizes:
        return None
    where, size = max(sizes.items(), key=lambda item: item[1])
    enough = size >= _MOST_OF * grown and seconds[where] >= _LEAST_SAMPLES * timeline.period
    return _Ran(where, size, seconds[where]) if enough else None


def _busy(timeline: ProfileRecord) -> Iterator[tuple[float, float, _Place]]:
    """(from, until, place) of each stack on a CPU with code of the program above the event loop's; the place is its innermost such line."""
    for sample in timeline.samples:
        if sample.on_cpu is False:
            continue
        frames = [timeline.frames[index] for index in sample.stack]
        above = callback_frames(frames)
        own = next(
            (frame for frame in (frames if above is None else above) if not is_library(frame.file)), None
        )
        if own is not None:
            began = timeline.start + sample.offset
            yield began, began + sample.weight, (own.function, own.file, own.line)


def _rises(series: Series) -> Iterator[tuple[float, float, float]]:
    """(from, until, by how much) of every rise from one reading to the next."""
    readings = zip(series.times, series.values, strict=True)
    for (since, before), (until, after) in pairwise(readings):
        if after > before:
            yield since, until, after - before


def gc_storm(facts: Facts) -> Finding | NotKnown | None:
    """Full collections follow each other, or one holds everything up."""
    full, pause = facts.readings("gc_collections_gen2"), facts.readings("gc_pause")
    if full is None and pause is None:
        return facts.no_readings("gc_storm", "gc_pause")
    rate = 0.0
    if full and facts.series:
        last = full.values[-_LAST:]
        rate = sum(last) / (len(last) * facts.series.interval)
    longest = max(pause.values[-_LAST:]) if pause else 0.0
    if rate < _STORM and longest < _LONG_PAUSE:
        return None
    words = []
    if rate >= _STORM:
        words.append(f"{rate:.1f} full collections a second")
    if longest >= _LONG_PAUSE:
        words.append(f"one took {format_duration(longest)} at least")
    return finding(
        "gc_storm",
        (60 if facts.about("gc_pause", "gc_collections_gen2") else 40) + min(20, rate + 20 * longest),
        f"the garbage collector holds everything up: {', '.join(words)}",
        next_step="call gc.freeze() after start-up, raise gc.set_threshold, or look for code that calls gc.collect()",
        subject="the garbage collector",
    )
