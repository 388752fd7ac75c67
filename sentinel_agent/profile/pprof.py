"""pprof: a gzipped protobuf `perftools.profiles.Profile`.

Layout and field numbers: github.com/google/pprof, proto/profile.proto.
A pprof has no timeline: equal stacks of one thread are merged, and a decoded sample begins at offset 0.

Sample types are `samples/count` and `cpu/nanoseconds`, or `wall/nanoseconds` where some samples were waiting or
it is not known; then the label `state` says `running` or `waiting`. The labels `thread` and `thread_id` say whose
stack it is. Comments: the record's source, then `lost samples: N`.
"""

from __future__ import annotations

import gzip
import re
import zlib
from typing import TYPE_CHECKING, NamedTuple

from sentinel_agent.errors import PeerError
from sentinel_agent.profile.protobuf import block, fields, integer, packed
from sentinel_agent.profile.record import MAX_DEPTH, ProfileRecord, RecordBuilder
from sentinel_agent.profile.views import merged

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_BYTES = 64 * 1024**2
"""Most that a packed profile may unpack to."""

_NANO = 1_000_000_000
_LOST = re.compile(r"lost samples: (\d{1,18})")
_STATES = {True: "running", False: "waiting"}


def encode(record: ProfileRecord) -> bytes:
    """The same record gives the same bytes."""
    return gzip.compress(_encode_profile(merged(record), record.end), mtime=0)


def decode(data: bytes, *, max_bytes: int = MAX_BYTES) -> ProfileRecord:
    """The record of a pprof, gzipped or not.

    Raises:
        PeerError: `data` is no pprof, or unpacks to more than `max_bytes`.
    """
    try:
        return _decode_profile(memoryview(_unpack(data, max_bytes)))
    except (IndexError, ValueError, zlib.error) as error:
        raise PeerError(f"not a pprof profile: {error}") from error


# --- encoding


class _Strings:
    """The string table: index 0 is the empty string."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {"": 0}

    def __call__(self, text: str) -> int:
        return self._index.setdefault(text, len(self._index))

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)


def _encode_profile(record: ProfileRecord, duration: float) -> bytes:
    text = _Strings()
    on_cpu = bool(record.samples) and all(sample.on_cpu for sample in record.samples)
    kind = "cpu" if on_cpu else "wall"
    count_type = integer(1, text("samples")) + integer(2, text("count"))
    time_type = integer(1, text(kind)) + integer(2, text("nanoseconds"))
    # One mapping that claims all symbols, or pprof goes looking for a binary.
    mapping = b"".join([integer(1, 1), integer(7, 1), integer(8, 1), integer(9, 1)])
    parts = [block(1, count_type), block(1, time_type)]
    parts += _encode_samples(record, text, with_state=not on_cpu)
    parts.append(block(3, mapping))
    parts += _encode_frames(record, text)
    parts += [
        integer(9, round(record.start * _NANO)),
        integer(10, round(duration * _NANO)),
        block(11, time_type),
        integer(12, round(record.period * _NANO)),
        packed(13, [text(record.source), text(f"lost samples: {record.lost}")]),
        integer(14, text(kind if record.seconds > 0 else "samples")),
    ]
    parts += [block(6, string.encode("utf-8")) for string in text]
    return b"".join(parts)


def _encode_samples(record: ProfileRecord, text: _Strings, *, with_state: bool) -> Iterator[bytes]:
    labels = [
        _label(text("thread"), string=text(thread.name)) + _label(text("thread_id"), number=thread.native_id)
        for thread in record.threads
    ]
    for sample in record.samples:
        body = packed(1, [index + 1 for index in sample.stack])
        body += packed(2, [sample.count, round(sample.weight * _NANO)])
        body += labels[sample.thread]
        if with_state and sample.on_cpu is not None:
            body += _label(text("state"), string=text(_STATES[sample.on_cpu]))
        yield block(2, body)


def _encode_frames(record: ProfileRecord, text: _Strings) -> Iterator[bytes]:
    functions: dict[tuple[str, str], int] = {}
    for number, frame in enumerate(record.frames, start=1):
        function = functions.setdefault((frame.function, frame.file), len(functions) + 1)
        line = integer(1, function) + integer(2, frame.line)
        yield block(4, integer(1, number) + integer(2, 1) + block(4, line))
    for (name, file), number in functions.items():
        # Without a system name: pprof would take `<module>` out of a name that equals it, as a C++ template's.
        yield block(5, integer(1, number) + integer(2, text(name)) + integer(4, text(file)))


def _label(key: int, *, string: int = 0, number: int = 0) -> bytes:
    return block(3, integer(1, key) + integer(2, string) + integer(3, number))


# --- decoding


class _Table(tuple[str, ...]):
    """The string table read back; an index that is not in it is a fault, a negative one too."""

    __slots__ = ()

    def text(self, index: int) -> str:
        if index < 0:
            raise IndexError(f"string {index} is not in its table")
        return self[index]


def _unpack(data: bytes, max_bytes: int) -> bytes:
    if data[:2] != b"\x1f\x8b":
        plain, whole = data[: max_bytes + 1], True
    else:
        stream = zlib.decompressobj(wbits=31)
        plain = stream.decompress(data, max_bytes + 1)
        whole = stream.eof
    if len(plain) > max_bytes:
        raise ValueError(f"it unpacks to more than {max_bytes} bytes")
    if not whole:
        raise ValueError("it ends in the middle")
    return plain


def _check_length(items: Sequence[object]) -> None:
    """A few bytes must not become a long list: no stack, location or sample of ours comes near this."""
    if len(items) > 64 * MAX_DEPTH:
        raise ValueError(f"a list has more than {64 * MAX_DEPTH} entries")


def _decode_profile(data: memoryview) -> ProfileRecord:
    tables: dict[int, list[memoryview]] = {number: [] for number in (1, 2, 4, 5, 6)}
    numbers = {9: 0, 12: 0}
    comments: list[int] = []
    for field in fields(data):
        if field.number in tables:
            tables[field.number].append(field.body)
        elif field.number in numbers:
            numbers[field.number] = field.value
        elif field.number == 13:
            comments += field.numbers()
    strings = _Table(bytes(body).decode("utf-8", "replace") for body in tables[6])
    if not strings or strings[0]:
        raise ValueError("its string table does not begin with the empty string")
    notes = [strings.text(index) for index in comments[:2]]
    lost = _LOST.fullmatch(notes[1]) if len(notes) > 1 else None
    builder = RecordBuilder(
        start=max(numbers[9], 0) / _NANO,
        period=max(numbers[12], 0) / _NANO,
        source=notes[0] if notes else "",
        lost=int(lost[1]) if lost else 0,
    )
    locations = _decode_frames(tables[4], tables[5], strings, builder)
    _decode_samples(tables[2], tables[1], strings, locations, builder)
    return builder.build()


def _plain(body: memoryview) -> dict[int, int]:
    return {field.number: field.value for field in fields(body) if not field.body}


def _decode_frames(
    locations: list[memoryview], functions: list[memoryview], strings: _Table, builder: RecordBuilder
) -> dict[int, list[int | None]]:
    """Location id -> frame indexes, innermost first (a location with inlined calls has several)."""
    names: dict[int, tuple[str, str]] = {}
    for body in functions:
        plain = _plain(body)
        names[plain.get(1, 0)] = (strings.text(plain.get(2, 0)), strings.text(plain.get(4, 0)))
    found: dict[int, list[int | None]] = {}
    for body in locations:
        number = 0
        frames: list[int | None] = []
        for field in fields(body):
            if field.number == 1:
                number = field.value
            elif field.number == 4:
                line = _plain(field.body)
                name, file = names.get(line.get(1, 0), ("", ""))
                frames.append(builder.frame(name, file, line.get(2, 0)))
                _check_length(frames)
        found[number] = frames
    return found


class _RawSample(NamedTuple):
    """A sample before its meaning is looked up."""

    stack: list[int | None]
    values: list[int]
    labels: dict[str, tuple[str, int]]


def _decode_samples(
    samples: list[memoryview],
    types: list[memoryview],
    strings: _Table,
    locations: dict[int, list[int | None]],
    builder: RecordBuilder,
) -> None:
    kinds = [(strings.text(plain.get(1, 0)), strings.text(plain.get(2, 0))) for plain in map(_plain, types)]
    count_at = next((at for at, (_, unit) in enumerate(kinds) if unit == "count"), None)
    time_at = next((at for at, (_, unit) in enumerate(kinds) if unit == "nanoseconds"), None)
    on_cpu = True if ("cpu", "nanoseconds") in kinds else None
    nothing = ("", 0)
    for body in samples:
        sample = _read_sample(body, strings, locations)
        name, native_id = sample.labels.get("thread", nothing)[0], sample.labels.get("thread_id", nothing)[1]
        state = sample.labels.get("state", nothing)[0]
        builder.add(
            builder.thread(native_id, name),
            sample.stack,
            weight=sample.values[time_at] / _NANO if time_at is not None else 0.0,
            count=sample.values[count_at] if count_at is not None else 1,
            on_cpu=on_cpu if not state else state == _STATES[True],
        )


def _read_sample(body: memoryview, strings: _Table, locations: dict[int, list[int | None]]) -> _RawSample:
    sample = _RawSample([], [], {})
    for field in fields(body):
        if field.number == 1:
            for number in field.numbers():
                sample.stack.extend(locations.get(number, [None]))
                _check_length(sample.stack)
        elif field.number == 2:
            sample.values.extend(field.numbers())
        elif field.number == 3:
            label = _plain(field.body)
            sample.labels[strings.text(label.get(1, 0))] = (
                strings.text(label.get(2, 0)),
                label.get(3, 0),
            )
    return sample
