"""pprof, checked with Google's protobuf runtime and the field numbers of google/pprof's profile.proto."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections import Counter
from contextlib import suppress
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel_agent.errors import PeerError
from sentinel_agent.profile import pprof
from sentinel_agent.profile.record import ProfileRecord, RecordBuilder
from sentinel_agent.profile.views import merged
from tests.profile.records import records

# github.com/google/pprof, proto/profile.proto: message -> "field number type", a * marks a repeated one.
_PROTO = {
    "ValueType": "type 1 int64, unit 2 int64",
    "Label": "key 1 int64, str 2 int64, num 3 int64, num_unit 4 int64",
    "Sample": "location_id 1 uint64*, value 2 int64*, label 3 Label*",
    "Mapping": "id 1 uint64, memory_start 2 uint64, memory_limit 3 uint64, file_offset 4 uint64, filename 5 int64, "
    "build_id 6 int64, has_functions 7 bool, has_filenames 8 bool, has_line_numbers 9 bool, has_inline_frames 10 bool",
    "Line": "function_id 1 uint64, line 2 int64",
    "Location": "id 1 uint64, mapping_id 2 uint64, address 3 uint64, line 4 Line*, is_folded 5 bool",
    "Function": "id 1 uint64, name 2 int64, system_name 3 int64, filename 4 int64, start_line 5 int64",
    "Profile": "sample_type 1 ValueType*, sample 2 Sample*, mapping 3 Mapping*, location 4 Location*, "
    "function 5 Function*, string_table 6 string*, drop_frames 7 int64, keep_frames 8 int64, time_nanos 9 int64, "
    "duration_nanos 10 int64, period_type 11 ValueType, period 12 int64, comment 13 int64*, default_sample_type 14 int64",
}


def _profile_class() -> Any:
    descriptors = import_module("google.protobuf.descriptor_pb2")
    file = descriptors.FileDescriptorProto(name="profile.proto", package="p", syntax="proto3")
    kinds = descriptors.FieldDescriptorProto
    scalars = {
        "int64": kinds.TYPE_INT64,
        "uint64": kinds.TYPE_UINT64,
        "bool": kinds.TYPE_BOOL,
        "string": kinds.TYPE_STRING,
    }
    for message, fields in _PROTO.items():
        made = file.message_type.add(name=message)
        for field in fields.split(", "):
            name, number, kind = field.split()
            repeated, kind = kind.endswith("*"), kind.rstrip("*")
            entry = made.field.add(name=name, number=int(number))
            entry.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            entry.type = scalars.get(kind, kinds.TYPE_MESSAGE)
            if kind not in scalars:
                entry.type_name = f".p.{kind}"
    pool = import_module("google.protobuf.descriptor_pool").DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("p.Profile")
    return import_module("google.protobuf.message_factory").GetMessageClass(found)


Profile = _profile_class()


def read(data: bytes) -> Any:
    profile = Profile()
    profile.ParseFromString(gzip.decompress(data))
    return profile


def stacks_of(record: ProfileRecord) -> Counter[Any]:
    """(thread, frames leaf first) -> (count, nanoseconds) of a record, by hand."""
    found: Counter[Any] = Counter()
    for sample in merged(record).samples:
        thread = record.threads[sample.thread]
        frames = tuple((f.function, f.file, f.line) for f in (record.frames[i] for i in sample.stack))
        key = (thread.native_id, thread.name, frames)
        found[key, "count"] += sample.count
        found[key, "ns"] += round(sample.weight * 1e9)
    return found


@settings(deadline=None)  # the machine may be busy
@given(records())
def test_another_reader_finds_every_stack_with_its_thread_count_and_time(record: ProfileRecord) -> None:
    profile = read(pprof.encode(record))
    text = profile.string_table
    assert text[0] == ""
    assert len(set(text)) == len(text)
    functions = {f.id: (text[f.name], text[f.filename]) for f in profile.function}
    locations = {
        place.id: (*functions[place.line[0].function_id], place.line[0].line) for place in profile.location
    }
    types = [(text[kind.type], text[kind.unit]) for kind in profile.sample_type]
    assert types[0] == ("samples", "count")
    assert types[1] in {("cpu", "nanoseconds"), ("wall", "nanoseconds")}
    found: Counter[Any] = Counter()
    for sample in profile.sample:
        labels = {text[label.key]: (text[label.str], label.num) for label in sample.label}
        frames = tuple(locations[number] for number in sample.location_id)
        key = (labels["thread_id"][1], labels["thread"][0], frames)
        found[key, "count"] += sample.value[0]
        found[key, "ns"] += sample.value[1]
    assert found == stacks_of(record)
    assert profile.time_nanos == round(record.start * 1e9)
    assert profile.period == round(record.period * 1e9)
    assert [text[index] for index in profile.comment] == [record.source, f"lost samples: {record.lost}"]


@settings(deadline=None)  # the machine may be busy
@given(records())
def test_reading_back_gives_the_merged_record(record: ProfileRecord) -> None:
    """All but the timeline survives: stacks, threads, states, counts, times, source and losses."""
    back = pprof.decode(pprof.encode(record))
    assert stacks_of(back) == stacks_of(record)
    assert (back.source, back.lost) == (record.source, record.lost)
    assert back.start == pytest.approx(record.start)
    assert back.period == pytest.approx(record.period, abs=1e-9)
    assert Counter(s.on_cpu for s in merged(back).samples) == Counter(
        s.on_cpu for s in merged(record).samples
    )


@settings(deadline=None)  # the machine may be busy
@given(records())
def test_the_same_record_gives_the_same_bytes(record: ProfileRecord) -> None:
    assert pprof.encode(record) == pprof.encode(record)


def test_the_time_is_the_default_unless_there_is_none() -> None:
    """A dump has no weights: a viewer must show its counts."""
    for weight, expected in ((0.01, "cpu"), (0.0, "samples")):
        made = RecordBuilder(start=0, period=0)
        made.add(made.thread(1), [made.frame("f")], weight=weight, on_cpu=True)
        profile = read(pprof.encode(made.build()))
        assert profile.string_table[profile.default_sample_type] == expected


def test_a_foreign_profile_is_read() -> None:
    """Unpacked numbers, inlined lines and unknown fields, as other writers make them, are understood."""
    profile = Profile(string_table=["", "samples", "count", "wall", "nanoseconds", "outer", "inner", "x.py"])
    profile.sample_type.add(type=1, unit=2)
    profile.sample_type.add(type=3, unit=4)
    profile.function.add(id=10, name=5, filename=7)
    profile.function.add(id=11, name=6, filename=7)
    place = profile.location.add(id=77)
    place.line.add(function_id=11, line=3)
    place.line.add(function_id=10, line=2)
    unpacked = bytes([1 << 3 | 0, 77, 2 << 3 | 0, 4, 2 << 3 | 0, 50])  # location 77, values 4 and 50
    data = profile.SerializeToString() + bytes([2 << 3 | 2, len(unpacked)]) + unpacked
    data += bytes([0xC0, 0x0C, 1])  # an unknown varint field, number 200
    record = pprof.decode(data)
    (sample,) = record.samples
    assert [record.frames[index].function for index in sample.stack] == ["inner", "outer"]
    assert (sample.count, sample.weight, sample.on_cpu) == (4, 50e-9, None)


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=300))
def test_garbage_is_refused_by_one_error_and_no_other(data: bytes) -> None:
    for attempt in (data, gzip.compress(data), b"\x1f\x8b" + data):
        with suppress(PeerError):
            pprof.decode(attempt)


def test_what_is_no_profile_is_called_so() -> None:
    with pytest.raises(PeerError, match="not a pprof profile: its string table"):
        pprof.decode(b"")


@settings(deadline=None)  # the machine may be busy
@given(records(), st.data())
def test_a_damaged_profile_is_read_or_refused(record: ProfileRecord, data: st.DataObject) -> None:
    """Flipping any byte of the plain message raises nothing but PeerError."""
    plain = bytearray(gzip.decompress(pprof.encode(record)))
    at = data.draw(st.integers(0, len(plain) - 1))
    plain[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(PeerError):
        pprof.decode(bytes(plain))


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(PeerError, match="unpacks to more than 1000 bytes"):
        pprof.decode(bomb, max_bytes=1000)


def test_a_cut_file_is_refused() -> None:
    packed = pprof.encode(RecordBuilder(start=0, period=0).build())
    with pytest.raises(PeerError, match="ends in the middle"):
        pprof.decode(packed[:-9])


def test_a_stack_that_multiplies_is_refused() -> None:
    """A location of many inlined lines, named many times by one sample, must not become gigabytes."""
    profile = Profile(string_table=[""])
    place = profile.location.add(id=1)
    for _ in range(60_000):
        place.line.add(line=1)
    profile.sample.add(location_id=[1] * 60_000)
    with pytest.raises(PeerError, match="a list has more than"):
        pprof.decode(zlib.compress(profile.SerializeToString(), wbits=31))


@pytest.mark.parametrize("index", [99, -1])
def test_a_string_outside_the_table_is_refused(index: int) -> None:
    profile = Profile(string_table=[""])
    profile.function.add(id=1, name=index)
    with pytest.raises(PeerError):
        pprof.decode(profile.SerializeToString())


def test_the_duration_is_that_of_the_whole_record_and_names_in_angle_brackets_survive() -> None:
    """Merging must not shorten the profile; a system name would make pprof take `<module>` for a template."""
    made = RecordBuilder(start=0, period=0.5)
    for at in range(4):
        made.add(made.thread(1), [made.frame("<module>", "a.py", 1)], offset=at / 2, weight=0.5)
    profile = read(pprof.encode(made.build()))
    assert profile.duration_nanos == 2_000_000_000
    assert profile.string_table[profile.function[0].name] == "<module>"
    assert profile.function[0].system_name == 0
