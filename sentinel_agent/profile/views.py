"""Ways to look at a record: a part of it, equal stacks merged, the functions that cost most."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import msgspec

from sentinel_agent.profile.names import route_of
from sentinel_agent.profile.record import MAX_INTEGER, MAX_SECONDS, ProfileRecord, Sample


@dataclass(frozen=True, slots=True)
class Hot:
    """One function's cost. `line` is its line that was seen most as a leaf (0: never a leaf); shares are 0 to 1."""

    function: str
    file: str
    line: int
    self_share: float
    total_share: float


def select(
    record: ProfileRecord,
    *,
    since: float = 0.0,
    until: float = float("inf"),
    native_id: int | None = None,
) -> ProfileRecord:
    """The samples that begin in [since, until) seconds after the start, of one thread if `native_id` is given."""
    samples = tuple(
        sample
        for sample in record.samples
        if since <= sample.offset < until
        and (native_id is None or record.threads[sample.thread].native_id == native_id)
    )
    return msgspec.structs.replace(record, samples=samples)


def routes(record: ProfileRecord) -> list[str]:
    """The routes of the embedded proxy for which something ran, by name."""
    found = {route_of(frame.function, frame.file) for frame in record.frames}
    return sorted(route for route in found if route is not None)


def of_route(record: ProfileRecord, route: str) -> ProfileRecord:
    """The samples of what ran for a route of the embedded proxy."""
    frames = {
        number for number, frame in enumerate(record.frames) if route_of(frame.function, frame.file) == route
    }
    samples = tuple(sample for sample in record.samples if not frames.isdisjoint(sample.stack))
    return msgspec.structs.replace(record, samples=samples)


def on_cpu_only(record: ProfileRecord) -> ProfileRecord:
    """The samples that are known to have been on a CPU."""
    return msgspec.structs.replace(
        record, samples=tuple(sample for sample in record.samples if sample.on_cpu)
    )


def merged(record: ProfileRecord) -> ProfileRecord:
    """Equal stacks of one thread in one state as one sample: weights and counts summed, the first one's offset."""
    groups: dict[tuple[int, tuple[int, ...], bool | None], list[Sample]] = defaultdict(list)
    for sample in record.samples:
        groups[sample.thread, sample.stack, sample.on_cpu].append(sample)
    samples = tuple(
        Sample(
            offset=min(sample.offset for sample in group),
            thread=thread,
            stack=stack,
            weight=min(sum(sample.weight for sample in group), MAX_SECONDS),
            on_cpu=on_cpu,
            count=min(sum(sample.count for sample in group), MAX_INTEGER),
        )
        for (thread, stack, on_cpu), group in groups.items()
    )
    return msgspec.structs.replace(record, samples=samples)


def hottest(record: ProfileRecord, n: int = 10) -> tuple[Hot, ...]:
    """The `n` functions with the highest self time, then total time; recursion counts once per sample.

    A record without weights (one look at the stacks) is counted by samples.
    """
    timed = record.seconds > 0
    own: defaultdict[tuple[str, str], float] = defaultdict(float)
    total: defaultdict[tuple[str, str], float] = defaultdict(float)
    lines: defaultdict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    names = [(frame.function, frame.file) for frame in record.frames]
    for sample in merged(record).samples:
        cost = sample.weight if timed else sample.count
        leaf = sample.stack[0]
        own[names[leaf]] += cost
        for name in {names[index] for index in sample.stack}:
            total[name] += cost
        lines[names[leaf]][record.frames[leaf].line] += sample.count
    whole = sum(own.values()) or 1.0
    order = sorted(total, key=lambda name: (-own.get(name, 0.0), -total[name], name))
    return tuple(
        Hot(
            function=name[0],
            file=name[1],
            line=lines[name].most_common(1)[0][0] if name in lines else 0,
            self_share=own.get(name, 0.0) / whole,
            total_share=total[name] / whole,
        )
        for name in order[:n]
    )
