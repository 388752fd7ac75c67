"""speedscope, checked against the rules of its file format (src/lib/file-format-spec.ts) written out here."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel_agent.errors import PeerError
from sentinel_agent.profile import speedscope
from sentinel_agent.profile.record import ProfileRecord, RecordBuilder
from tests.profile.records import records

UNITS = {"none", "nanoseconds", "microseconds", "milliseconds", "seconds", "bytes"}
PY_SPY = {
    "$schema": "https://www.speedscope.app/file-format-schema.json",
    "profiles": [
        {
            "type": "sampled",
            "name": 'Thread 7782 "busy-one"',
            "unit": "seconds",
            "startValue": 0.0,
            "endValue": 0.02,
            "samples": [[2, 1, 0], [2, 1, 0]],
            "weights": [0.01, 0.01],
        }
    ],
    "shared": {
        "frames": [
            {"name": "hot", "file": "/t.py", "line": 5, "col": None},
            {"name": "Thread.run", "file": "/threading.py", "line": 982, "col": None},
            {"name": "thread (7782): busy-one", "file": "", "line": 0, "col": None},
        ]
    },
    "activeProfileIndex": None,
    "exporter": "py-spy@0.4.3",
    "name": "py-spy profile",
}


def check_format(document: Any) -> None:
    """Every rule that the published types state for a file of sampled profiles."""
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert isinstance(document.get("name", ""), str)
    frames = document["shared"]["frames"]
    for frame in frames:
        assert isinstance(frame["name"], str)
        assert isinstance(frame.get("file", ""), str)
        assert isinstance(frame.get("line", 0), int)
        assert frame.keys() <= {"name", "file", "line", "col"}
    profiles = document["profiles"]
    if "activeProfileIndex" in document:
        assert 0 <= document["activeProfileIndex"] < len(profiles)
    for profile in profiles:
        assert profile.keys() == {"type", "name", "unit", "startValue", "endValue", "samples", "weights"}
        assert profile["type"] == "sampled"
        assert isinstance(profile["name"], str)
        assert profile["unit"] in UNITS
        assert profile["endValue"] >= profile["startValue"]
        assert len(profile["samples"]) == len(profile["weights"])
        assert all(weight >= 0 for weight in profile["weights"])
        assert profile["startValue"] + sum(profile["weights"]) == profile["endValue"]
        assert all(0 <= index < len(frames) for stack in profile["samples"] for index in stack)


@settings(deadline=None)  # the machine may be busy
@given(records())
def test_the_file_keeps_every_rule_of_the_format(record: ProfileRecord) -> None:
    document = json.loads(speedscope.encode(record))
    check_format(document)
    assert len(document["profiles"]) == len({sample.thread for sample in record.samples})


def test_the_timeline_of_each_thread_is_kept_with_its_gaps() -> None:
    """Samples stand at their offsets, root first, and an empty stack fills the time between."""
    made = RecordBuilder(start=0, period=0.5)
    leaf, root = made.frame("leaf", "a.py", 2), made.frame("root", "a.py", 1)
    made.add(made.thread(5, "late"), [leaf, root], offset=1.0, weight=0.5)
    made.add(made.thread(5, "late"), [root], offset=2.0, weight=0.5)
    (profile,) = json.loads(speedscope.encode(made.build()))["profiles"]
    assert profile["samples"] == [[], [root, leaf], [], [root]]
    assert [weight / 1e9 for weight in profile["weights"]] == [1.0, 0.5, 0.5, 0.5]


def content(record: ProfileRecord, *, timed: bool) -> list[Any]:
    return sorted(
        (
            (record.threads[s.thread].native_id, record.threads[s.thread].name),
            round(s.offset * 1e9) if timed else 0,
            tuple((record.frames[i].function, record.frames[i].file, record.frames[i].line) for i in s.stack),
            round(s.weight * 1e9),
            s.on_cpu,
        )
        for s in record.samples
    )


@settings(deadline=None)  # the machine may be busy
@given(records(uniform_state=True))
def test_reading_back_gives_the_record(record: ProfileRecord) -> None:
    """Stacks, threads, times to the nanosecond, and the state where it is one for all."""
    timed = record.seconds > 0
    back = speedscope.decode(speedscope.encode(record))
    assert content(back, timed=timed) == content(record, timed=timed)
    assert (back.start, back.period, back.source, back.lost) == (
        record.start,
        record.period,
        record.source,
        record.lost,
    )


def test_what_py_spy_writes_is_read() -> None:
    """The thread's name at the root is taken off the stack and put on the thread."""
    record = speedscope.decode(json.dumps(PY_SPY).encode(), on_cpu=True)
    (thread,) = record.threads
    assert (thread.native_id, thread.name) == (7782, "busy-one")
    assert [record.frames[i].function for i in record.samples[0].stack] == ["hot", "Thread.run"]
    assert [s.offset for s in record.samples] == [0.0, 0.01]
    assert all(s.on_cpu for s in record.samples)
    assert record.source == "py-spy@0.4.3"


def test_a_frame_that_only_looks_like_the_threads_name_is_kept() -> None:
    document = json.loads(json.dumps(PY_SPY))
    document["shared"]["frames"][2] = {"name": "thread (7782): busy-one", "file": "/x.py", "line": 1}
    assert len(speedscope.decode(json.dumps(document).encode()).samples[0].stack) == 3


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("profiles", 0, "type"), "evented", "evented"),
        (("profiles", 0, "unit"), "bytes", "bytes"),
        (("profiles", 0, "weights"), [0.01], "2 samples have 1 weights"),
        (("profiles", 0, "weights"), [-1, 0.01], ">= 0"),
        (("profiles", 0, "samples"), [[3], [0]], "not among the 3"),
        (("profiles", 0, "samples"), [[-1], [0]], ">= 0"),
        (("shared",), {}, "frames"),
        (("sentinel",), {"start": 1e300}, "start is between"),
    ],
)
def test_a_file_that_breaks_the_format_is_refused_with_the_place(
    path: tuple[Any, ...], value: Any, words: str
) -> None:
    document: Any = json.loads(json.dumps(PY_SPY))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(PeerError, match="not a speedscope file") as caught:
        speedscope.decode(json.dumps(document).encode())
    assert words in caught.value.message


@settings(deadline=None)  # the machine may be busy
@given(st.one_of(st.binary(max_size=200), st.just(b"[" * 100_000), st.just(b'{"profiles":' * 10_000)))
def test_garbage_is_refused_by_one_error_and_no_other(data: bytes) -> None:
    with pytest.raises(PeerError, match="not a speedscope file"):
        speedscope.decode(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)  # the machine may be busy
@given(st.data())
def test_a_file_with_any_other_value_in_any_place_is_read_or_refused(data: st.DataObject) -> None:
    document: Any = json.loads(json.dumps(PY_SPY))
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(json_values)
        break
    with contextlib.suppress(PeerError):
        speedscope.decode(msgspec.json.encode(document))


def test_a_file_of_empty_lists_is_refused_before_it_is_built() -> None:
    """Each `[],` would become a list of 56 bytes."""
    with pytest.raises(PeerError, match="more than"):
        speedscope.decode(b"[" + b"[]," * 600_000 + b"[]]")


def test_a_file_over_the_limit_is_refused() -> None:
    with pytest.raises(PeerError, match="larger than 10 bytes"):
        speedscope.decode(b" " * 11, max_bytes=10)


@given(records())
def test_the_state_of_every_sample_comes_back(record: ProfileRecord) -> None:
    """Running, waiting or not known: the timeline keeps it, so that the CPU view can be made of any slice."""
    states = sorted(str(sample.on_cpu) for sample in record.samples)
    again = speedscope.decode(speedscope.encode(record, since=5.0))
    assert sorted(str(sample.on_cpu) for sample in again.samples) == states
