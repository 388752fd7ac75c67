"""A heap profile, read back with Google's protobuf runtime."""

from __future__ import annotations

from sentinel_agent.profile import heap
from sentinel_agent.profile.heap import HeapLine, HeapSite
from tests.profile.test_pprof import read

SITES = (
    HeapSite(1000, 2, 5000, 7, (HeapLine("app.py", 3), HeapLine("app.py", 9))),
    HeapSite(10, 1, 10, 1, (HeapLine("läb.py", 9), HeapLine("app.py", 9))),
)


def test_a_heap_profile_has_the_four_sample_types_of_go_and_what_is_held_is_the_default() -> None:
    """Every value, line and name is where a reader of pprof looks for it."""
    packed = heap.encode(SITES, start=1.5, seconds=5.0, source="tracemalloc")
    assert packed == heap.encode(SITES, start=1.5, seconds=5.0, source="tracemalloc")
    profile = read(packed)
    words = profile.string_table
    assert words[0] == ""
    types = [(words[each.type], words[each.unit]) for each in profile.sample_type]
    assert types == [
        ("alloc_objects", "count"),
        ("alloc_space", "bytes"),
        ("inuse_objects", "count"),
        ("inuse_space", "bytes"),
    ]
    assert words[profile.default_sample_type] == "inuse_space"
    assert (profile.time_nanos, profile.duration_nanos) == (1_500_000_000, 5_000_000_000)
    lines = {each.id: each.line[0].line for each in profile.location}
    names = {each.id: words[each.name] for each in profile.function}
    files = {each.id: words[each.filename] for each in profile.function}
    functions = {each.id: each.line[0].function_id for each in profile.location}
    found = [
        (
            list(each.value),
            [(files[functions[at]], lines[at], names[functions[at]]) for at in each.location_id],
        )
        for each in profile.sample
    ]
    assert found == [
        ([2, 1000, 7, 5000], [("app.py", 3, "app.py:3"), ("app.py", 9, "app.py:9")]),
        ([1, 10, 1, 10], [("läb.py", 9, "läb.py:9"), ("app.py", 9, "app.py:9")]),
    ]
