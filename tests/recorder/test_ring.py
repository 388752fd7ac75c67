"""The ring gives back what was put in, within its age and its bytes."""

from __future__ import annotations

import gc
import tracemalloc
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.profile.record import CUT, MAX_DEPTH, MAX_NAME
from sentinel_agent.recorder.ring import MAX_BYTES, MIN_BYTES
from sentinel_agent.recorder.sample import ThreadSample
from sentinel_agent.recorder.segment import StoredSegment
from tests.recorder.support import PERIOD, STACK, START, make_ring, put_in, recorded, sample, tick

NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
PLACES = st.tuples(NAMES, NAMES, st.integers(0, 2**32 - 1))
SAMPLES = st.builds(
    ThreadSample,
    native_id=st.integers(0, 3),
    name=st.sampled_from(("MainThread", "worker", "")),
    on_cpu=st.sampled_from((None, True, False)),
    kind=st.sampled_from(("whole", "partial")),
    frames=st.lists(PLACES, max_size=6).map(tuple) | st.sampled_from((STACK, STACK[3:], STACK[:2])),
)
LOOKS = st.lists(st.lists(SAMPLES, max_size=4), max_size=40)


@given(LOOKS, st.lists(st.booleans(), min_size=40, max_size=40))
def test_what_was_put_in_comes_out(looks: list[list[ThreadSample]], taken: list[bool]) -> None:
    """Every sample with its time, thread, stack and flags, whether its run was taken in pieces or not."""
    ring = make_ring(spooled=True)
    ticks = [tick(number, look) for number, look in enumerate(looks)]
    spooled = []
    for one, take in zip(ticks, taken, strict=False):
        ring.put(one)
        spooled += ring.take() if take else []
    spooled += ring.take()
    assert recorded(ring.snapshot()) == put_in(ticks)
    whole = b"".join(batch.data for batch in spooled)
    assert recorded([whole] if whole else []) == put_in(ticks)
    assert [batch.first for batch in spooled] == [index == 0 for index in range(len(spooled))]


def test_a_change_of_state_alone_is_kept() -> None:
    """One thread in one stack that goes on and off the CPU and is torn now and then: each sample as it was."""
    ring = make_ring()
    states = [(on_cpu, partial) for on_cpu in (True, False, None, True) for partial in (False, True, True)]
    ticks = [tick(n, [sample(on_cpu=on, partial=torn)]) for n, (on, torn) in enumerate(states)]
    for one in ticks:
        ring.put(one)
    assert recorded(ring.snapshot()) == put_in(ticks)


def test_what_the_spool_is_given_holds_the_samples_of_every_segment() -> None:
    """Over several segments, appended by number, taken once a second."""
    ring = make_ring(spooled=True, max_age=8.0)
    ticks = [tick(n, [sample(STACK[n % 7 :]), sample(native_id=43)]) for n in range(190)]
    files: dict[int, bytes] = {}
    for n, one in enumerate(ticks):
        ring.put(one)
        for batch in ring.take() if n % 19 == 0 or n == 189 else []:
            assert batch.first == (batch.number not in files)
            files[batch.number] = files.get(batch.number, b"") + batch.data
    assert len(files) > 5
    assert recorded(files.values()) == put_in(ticks)


def test_the_oldest_go_by_age() -> None:
    """After 30 s of a ring of 8 s, all of the last 8 s and at most an eighth more are there; nothing counts as dropped."""
    ring = make_ring(max_age=8.0)
    ticks = [tick(n, [sample()]) for n in range(570)]
    for one in ticks:
        ring.put(one)
    held = recorded(ring.snapshot())
    assert ticks[-1].wall - 9.2 <= held[0][0] <= ticks[-1].wall - 7.9
    assert held == put_in(one for one in ticks if one.wall >= held[0][0])
    assert ring.statistics().oldest == held[0][0]
    assert ring.statistics().dropped == 0


def test_an_idle_process_of_fifty_threads_costs_almost_nothing() -> None:
    """Two minutes of it take less than 100 KiB, and every sample's time comes back."""
    ring = make_ring()
    threads = [sample(STACK, 100 + n, name=f"worker-{n}", on_cpu=False) for n in range(50)]
    ticks = [tick(n, threads) for n in range(2280)]
    for one in ticks:
        ring.put(one)
    assert ring.statistics().whole == 114_000
    assert ring.statistics().bytes < 200 * 1024
    assert sum(map(len, ring.snapshot())) < 128 * 1024
    assert len(recorded(ring.snapshot())) == 114_000


def deep(number: int) -> tuple[tuple[str, str, int], ...]:
    """A 500-frame recursion that differs from the others in its leaf, in its depth and on its way."""
    return (
        (f"leaf_{number}", "app/leaf.py", number),
        *(("recurse", "app/tree.py", 10 + (number >> bit) % 2) for bit in range(13)),
        *(("recurse", "app/tree.py", 10) for _ in range(480 + number % 7)),
        ("main", "app/main.py", 1),
    )


def test_a_tighter_bound_is_kept_from_the_next_look_on() -> None:
    """A ring that held five MiB holds one when more targets share the memory, the newest samples, and counts what left."""
    ring = make_ring(max_bytes=5 * MIN_BYTES, max_age=1e6)
    for number in range(3000):
        ring.put(tick(number, [sample(deep(number * 10 + n), n) for n in range(4)]))
    assert ring.statistics().bytes > 1.5 * MIN_BYTES
    ring.bound(1)
    ring.put(tick(3000, [sample()]))
    statistics = ring.statistics()
    assert statistics.bytes <= MIN_BYTES
    held = recorded(ring.snapshot())
    assert len(held) + statistics.dropped == statistics.whole
    assert max(seen[0] for seen in held) == tick(3000, []).wall


def test_bytes_win_over_age() -> None:
    """100,000 samples of 10,000 distinct stacks 500 deep: never over the bytes; what left for it is counted."""
    ring = make_ring(max_bytes=MIN_BYTES, max_age=1e6)
    stacks = [deep(number) for number in range(10_000)]
    for number in range(10_000):
        ring.put(tick(number, [sample(stacks[(number * 10 + n) % 10_000], n) for n in range(10)]))
        if number % 10 == 0:
            assert ring.statistics().bytes <= MIN_BYTES
    statistics = ring.statistics()
    segments = [StoredSegment(piece) for piece in ring.snapshot()]
    held = sum(count for segment in segments for *_, count in segment.runs())
    assert held + statistics.dropped == statistics.whole == 100_000
    assert held > 1000
    newest = segments[0]
    assert {newest.stack(node) for _, node, *_ in islice(newest.runs(), 500)} <= set(stacks)
    assert statistics.bytes > MIN_BYTES / 2


def test_the_bytes_counted_are_the_bytes_held() -> None:
    """tracemalloc sees, of stacks made on the spot, between a half and five quarters of what the ring says that it holds."""
    tracemalloc.start()
    try:
        ring = make_ring(max_age=1e6)
        before = tracemalloc.get_traced_memory()[0]
        for number in range(3000):
            frames = tuple((f"f{number % 1500}_{n}", f"file{n}", number) for n in range(20))
            ring.put(tick(number, [sample(frames)]))
            del frames
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    counted = ring.statistics().bytes
    assert counted / 2 <= held <= counted * 1.25


def test_dropped_segments_take_their_names_with_them() -> None:
    """A target that invents new names for ever holds a constant memory; its old names are nowhere any more."""
    ring = make_ring(max_bytes=MIN_BYTES, max_age=4.0)
    for number in range(4000):
        ring.put(tick(number, [sample(((f"made_up_{number:05}", "x.py", number),))]))
    assert b"made_up_03999" in b"".join(ring.snapshot())
    assert b"made_up_00100" not in b"".join(ring.snapshot())
    assert len(recorded(ring.snapshot())) < 6 * 19
    assert ring.statistics().bytes < 200 * 1024


def test_hostile_names_and_depths_are_bounded() -> None:
    """Endless names, lone surrogates, negative lines, ids over the top and bottomless stacks become what a record can hold."""
    ring = make_ring()
    place = ("n" * 100_000, "\udc80/\0", -5)
    ring.put(tick(0, [sample((place,), -1, name="\udcff"), sample((place, *STACK * 100), 2**70)]))
    first, second = sorted(recorded(ring.snapshot()), key=lambda entry: entry[1])
    assert first[1:3] == (0, "\\udcff")
    assert first[3] == (("n" * (MAX_NAME - 1) + "…", "\\udc80/\0", 0),)
    assert second[1] == 2**63 - 1
    assert len(second[3]) == MAX_DEPTH
    assert second[3][-1] == (CUT, "", 0)


def test_a_stack_too_large_for_a_segment_is_dropped_and_the_rest_stays() -> None:
    """1,000 names of 4,000 characters are dropped each time; the samples beside them and the segment stay."""
    ring = make_ring(max_bytes=MIN_BYTES)
    monster = tuple((f"{n}" * 1000, "x.py", n) for n in range(1000, 2000))
    ticks = [tick(n, [sample(), sample(monster, 43)]) for n in range(50)]
    for one in ticks:
        ring.put(one)
    assert ring.statistics().dropped == 50
    assert [entry[1] for entry in recorded(ring.snapshot())] == [42] * 50
    assert len(ring.snapshot()) == 1
    assert ring.statistics().bytes <= MIN_BYTES


def test_undone_names_leave_the_tables_sound() -> None:
    """After a stack was refused half way, later stacks get the numbers that it had, and come back right."""
    ring = make_ring(max_bytes=MIN_BYTES)
    ring.put(tick(0, [sample()]))
    ring.put(tick(1, [sample(tuple((f"{n}" * 1000, "y.py", n) for n in range(1000, 2000)))]))
    ring.put(tick(2, [sample((("after", "z.py", 1), ("wards", "z.py", 2)))]))
    assert [entry[3] for entry in recorded(ring.snapshot())] == [
        STACK,
        (("after", "z.py", 1), ("wards", "z.py", 2)),
    ]


def test_kinds_failures_and_lateness_are_counted() -> None:
    """Whole, partial and failed per thread sample, late per tick from half a period on."""
    ring = make_ring()
    ring.put(tick(0, [sample(), sample(native_id=43, partial=True)], failed=3, late=PERIOD / 4))
    ring.put(tick(1, [sample()], failed=1, late=PERIOD))
    statistics = ring.statistics()
    assert (statistics.whole, statistics.partial, statistics.failed, statistics.late) == (2, 1, 4, 1)
    assert statistics.oldest == START


def test_batches_that_nobody_takes_are_bounded_and_counted() -> None:
    """A spool that stalls costs four batches, no more."""
    ring = make_ring(spooled=True, max_age=8.0)
    for number in range(1900):
        ring.put(tick(number, [sample()]))
    untaken = ring.statistics().untaken
    assert untaken > 50
    assert len(ring.take()) == 5


@pytest.mark.parametrize("max_bytes", [0, MIN_BYTES - 1, MAX_BYTES + 1])
def test_bytes_out_of_bounds_are_refused(max_bytes: int) -> None:
    """A ring too small for any stack, or larger than can be stored, is not made."""
    with pytest.raises(ValueError, match="a ring has"):
        make_ring(max_bytes=max_bytes)


def test_a_snapshot_leaves_out_what_ended_before() -> None:
    """`since` spares the reading of older segments."""
    ring = make_ring(max_age=80.0)
    for number in range(760):
        ring.put(tick(number, [sample()]))
    assert len(ring.snapshot()) > len(ring.snapshot(START + 25)) > 1
    wanted = START + 25
    assert [e for e in recorded(ring.snapshot(wanted)) if e[0] >= wanted] == [
        e for e in recorded(ring.snapshot()) if e[0] >= wanted
    ]
