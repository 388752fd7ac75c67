"""speedscope: one `sampled` profile per thread, with its timeline.

Format: speedscope.app, file-format-schema.json (types in src/lib/file-format-spec.ts). Stacks are written root
first. A stretch without a sample is an empty stack, so that the threads' timelines stay side by side. A record
without weights (one look at the stacks) has the unit `none` and is weighed by counts. What the format has no
place for is in the extra key `sentinel`, which other readers skip: start, period, losses, `since` (when the trigger's
condition became true, seconds since the epoch) and per profile `states`, one letter a sample: `r` on a CPU, `w`
waiting, `-` not known.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from sentinel_agent.errors import PeerError
from sentinel_agent.profile.names import thread_label
from sentinel_agent.profile.record import (
    MAX_SAMPLES,
    MAX_THREADS,
    ProfileRecord,
    RecordBuilder,
    Sample,
    Thread,
)

SCHEMA = "https://www.speedscope.app/file-format-schema.json"
MAX_BYTES = 64 * 1024**2

_NANO = 1_000_000_000
_SMALLEST_GAP = 1000  # nanoseconds; less is rounding of floats
_SCALES = {"seconds": 1.0, "milliseconds": 1e-3, "microseconds": 1e-6, "nanoseconds": 1e-9, "none": 0.0}
_LETTERS = {True: "r", False: "w", None: "-"}
_STATES = {letter: state for state, letter in _LETTERS.items()}
_THREAD = re.compile(r'Thread (0x[0-9A-F]{1,15}|\d{1,19})(?: "(.*)")?', re.DOTALL)


def encode(record: ProfileRecord, *, since: float | None = None) -> bytes:
    """The same record and moment give the same bytes."""
    by_thread: dict[int, list[Sample]] = {}
    for sample in record.samples:
        by_thread.setdefault(sample.thread, []).append(sample)
    timed = record.seconds > 0
    threads = sorted(by_thread)
    encoded = [_encode_thread(record.threads[thread], by_thread[thread], timed=timed) for thread in threads]
    on_cpu = bool(record.samples) and all(sample.on_cpu for sample in record.samples)
    document = {
        "$schema": SCHEMA,
        "exporter": "sentinel-agent",
        "name": record.source,
        "activeProfileIndex": 0 if by_thread else None,
        "profiles": [profile for profile, _ in encoded],
        "shared": {
            "frames": [
                {"name": frame.function}
                | ({"file": frame.file} if frame.file else {})
                | ({"line": frame.line} if frame.line else {})
                for frame in record.frames
            ]
        },
        "sentinel": {
            "start": record.start,
            "period": record.period,
            "source": record.source,
            "lost": record.lost,
            "on_cpu": on_cpu or None,
            "since": since,
            "states": [states for _, states in encoded],
        },
    }
    if not by_thread:
        del document["activeProfileIndex"]
    return msgspec.json.encode(document)


class Timeline(NamedTuple):
    """A record, and when the trigger's condition became true (seconds since the epoch), if the file says it."""

    record: ProfileRecord
    since: float | None


def decode(data: bytes, *, on_cpu: bool | None = None, max_bytes: int = MAX_BYTES) -> ProfileRecord:
    """The record of a speedscope file of ours or of py-spy; `on_cpu` is what holds where the file does not say.

    Where py-spy knows a thread only by its `pthread_t`, that address is its `native_id`.

    Raises:
        PeerError: `data` is no such file, or is larger than `max_bytes`.
    """
    return decode_timeline(data, on_cpu=on_cpu, max_bytes=max_bytes).record


def decode_timeline(data: bytes, *, on_cpu: bool | None = None, max_bytes: int = MAX_BYTES) -> Timeline:
    """As `decode`, with what an incident's timeline says of its trigger."""
    file = read(data, max_bytes=max_bytes)
    try:
        return Timeline(_decode_file(file, on_cpu), file.sentinel.since if file.sentinel else None)
    except ValueError as error:
        raise PeerError(f"not a speedscope file: {error}") from error


def read(data: bytes, *, max_bytes: int = MAX_BYTES) -> File:
    """The file as it stands, its types checked but not its indexes: for those who fold it and keep none of it.

    Raises:
        PeerError: as `decode`.
    """
    if len(data) > max_bytes:
        raise PeerError(f"not a speedscope file: it is larger than {max_bytes} bytes")
    # Two bytes of JSON can become a list of 56: refuse before anything is built.
    if data.count(b"[") > MAX_SAMPLES + MAX_THREADS:
        raise PeerError(f"not a speedscope file: it has more than {MAX_SAMPLES} samples")
    try:
        return msgspec.json.decode(data, type=File)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError(f"not a speedscope file: {error}") from error


def _encode_thread(thread: Thread, samples: list[Sample], *, timed: bool) -> tuple[dict[str, Any], str]:
    """The thread's profile, and the state of each of its samples."""
    stacks: list[list[int]] = []
    weights: list[int] = []
    states: list[str] = []
    now = 0
    for sample in sorted(samples, key=lambda item: item.offset):
        gap = round(sample.offset * _NANO) - now
        if timed and gap >= _SMALLEST_GAP:
            stacks.append([])
            weights.append(gap)
            states.append(_LETTERS[None])
            now += gap
        stacks.append(list(reversed(sample.stack)))
        weights.append(round(sample.weight * _NANO) if timed else sample.count)
        states.append(_LETTERS[sample.on_cpu])
        now += weights[-1]
    profile = {
        "type": "sampled",
        "name": thread_label(thread),
        "unit": "nanoseconds" if timed else "none",
        "startValue": 0,
        "endValue": now,
        "samples": stacks,
        "weights": weights,
    }
    return profile, "".join(states)


Index = Annotated[int, Meta(ge=0)]
Weight = Annotated[float, Meta(ge=0)]


class _Frame(msgspec.Struct):
    name: str
    file: str | None = None
    line: int | None = None


class _Shared(msgspec.Struct):
    frames: list[_Frame]


class _Profile(msgspec.Struct, rename="camel"):
    type: Literal["sampled"]
    name: str
    unit: Literal["seconds", "milliseconds", "microseconds", "nanoseconds", "none"]
    start_value: float
    samples: list[list[Index]]
    weights: list[Weight]


class _Ours(msgspec.Struct):
    start: float = 0.0
    period: float = 0.0
    source: str = ""
    lost: Index = 0
    on_cpu: bool | None = None
    since: float | None = None
    states: list[str] = []


class File(msgspec.Struct):
    """What is used of a file; `sentinel` is there if it is ours."""

    profiles: list[_Profile]
    shared: _Shared
    exporter: str | None = None
    sentinel: _Ours | None = None


def _decode_file(file: File, on_cpu: bool | None) -> ProfileRecord:
    ours = file.sentinel or _Ours(source=file.exporter or "", on_cpu=on_cpu)
    builder = RecordBuilder(start=ours.start, period=ours.period, source=ours.source, lost=ours.lost)
    frames = [builder.frame(frame.name, frame.file or "", frame.line or 0) for frame in file.shared.frames]
    for number, profile in enumerate(file.profiles):
        known = ours.states[number] if number < len(ours.states) else ""
        states = [_STATES.get(letter) for letter in known] if len(known) == len(profile.samples) else None
        _decode_thread(
            profile, file.shared.frames, frames, builder, states or [ours.on_cpu] * len(profile.samples)
        )
    return builder.build()


def _decode_thread(
    profile: _Profile,
    names: list[_Frame],
    frames: list[int | None],
    builder: RecordBuilder,
    states: list[bool | None],
) -> None:
    if len(profile.samples) != len(profile.weights):
        raise ValueError(f"{len(profile.samples)} samples have {len(profile.weights)} weights")
    found = _THREAD.fullmatch(profile.name)
    number, name = (found[1], found[2] or "") if found else ("0", profile.name)
    thread = builder.thread(int(number, 0), name)
    # py-spy --threads puts the thread's name at the root as if it were a frame.
    mark = f"thread ({number}): {name}"
    scale = _SCALES[profile.unit]
    at = profile.start_value
    for stack, weight, on_cpu in zip(profile.samples, profile.weights, states, strict=True):
        if any(index >= len(frames) for index in stack):
            raise ValueError(f"a sample names a frame that is not among the {len(frames)} of the file")
        if stack and names[stack[0]].name == mark and not names[stack[0]].file:
            del stack[0]
        if stack:
            builder.add(
                thread,
                [frames[index] for index in reversed(stack)],
                offset=at * scale,
                weight=weight * scale,
                on_cpu=on_cpu,
                count=1 if scale else max(1, int(weight)),
            )
        at += weight
