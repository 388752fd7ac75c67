"""A window is a profile of what was recorded in it: right weights, gaps left open, both views, how much is covered."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.profile.record import Thread
from sentinel_agent.recorder.sample import Place, Tick
from sentinel_agent.recorder.window import MERGED, SOURCE, STANDS, Window, window
from tests.recorder.support import PERIOD, STACK, START, make_ring, sample, tick

BURN: tuple[Place, ...] = (("burn", "app/hot.py", 7), ("main", "app/main.py", 1))


def of(
    ticks: list[Tick], since: float = START, until: float = START + 100, view: str = "wall", run: int = 1
) -> Window:
    ring = make_ring(run)
    for one in ticks:
        ring.put(one)
    return window(ring.snapshot(), since, until, view=view)  # type: ignore[arg-type]  # the tests name both


def test_a_sample_stands_for_the_time_to_the_next_of_its_thread() -> None:
    """Three samples of alternating stacks: two whole periods, and a period for the last one."""
    made = of([tick(0, [sample(STACK)]), tick(1, [sample(BURN)]), tick(2, [sample(STACK)])])
    assert [one.offset for one in made.record.samples] == pytest.approx([0, PERIOD, 2 * PERIOD], abs=1e-6)
    assert [one.weight for one in made.record.samples] == pytest.approx([PERIOD] * 3)
    frames = made.record.frames
    assert (
        tuple((f.function, f.file, f.line) for f in (frames[i] for i in made.record.samples[1].stack)) == BURN
    )
    assert made.record.threads == (Thread(42, "MainThread"),)
    assert (made.record.source, made.record.start, made.record.period) == (SOURCE, START, PERIOD)


def test_a_gap_stays_a_gap() -> None:
    """After ten missed ticks a sample stands for STANDS, no more, and equal stacks on both sides are not merged."""
    made = of([tick(0, [sample()]), tick(1, [sample()]), tick(12, [sample()])], until=START + 13 * PERIOD)
    assert [one.weight for one in made.record.samples] == [
        pytest.approx(PERIOD + STANDS),
        pytest.approx(PERIOD),
    ]
    assert [one.count for one in made.record.samples] == [2, 1]
    assert made.coverage == pytest.approx((2 * PERIOD + STANDS) / (13 * PERIOD))


def test_time_on_a_cpu_before_a_look_belongs_to_what_was_found_there() -> None:
    """Of the period between an idle look and a busy one the burst gets what the kernel says it ran, the rest stays idle."""
    ticks = [
        tick(0, [sample(STACK, on_cpu=False), sample(STACK, 43, on_cpu=False)]),
        tick(1, [sample(BURN), sample(STACK, 43, on_cpu=False)], lead=0.6 * PERIOD),
        tick(2, [sample(BURN), sample(STACK, 43, on_cpu=False)]),
    ]
    made = of(ticks, until=START + 3 * PERIOD)
    main, other = (
        [
            (s.offset, s.weight)
            for s in made.record.samples
            if made.record.threads[s.thread].native_id == number
        ]
        for number in (42, 43)
    )
    assert [offset for offset, _ in main] == pytest.approx([0, 0.4 * PERIOD], abs=1e-6)
    assert [weight for _, weight in main] == pytest.approx([0.4 * PERIOD, 2.6 * PERIOD])
    assert [weight for _, weight in other] == [pytest.approx(3 * PERIOD)]
    assert made.coverage == pytest.approx(1)
    late = of(ticks, since=START + PERIOD / 2, until=START + 3 * PERIOD)
    assert late.record.samples[0].offset == pytest.approx(0, abs=1e-6)


def test_equal_samples_are_merged_up_to_a_second() -> None:
    """Ten seconds of an idle thread are eleven samples at most, with all of the time and every count."""
    made = of([tick(n, [sample(on_cpu=False)]) for n in range(190)], until=START + 10)
    assert len(made.record.samples) <= 11
    assert max(one.weight for one in made.record.samples) <= MERGED
    assert sum(one.count for one in made.record.samples) == 190
    assert made.record.seconds == pytest.approx(10)
    assert made.coverage == pytest.approx(1)


def test_the_window_is_cut_at_both_ends() -> None:
    """Samples taken before it are not in it, and the last one ends where it ends."""
    ticks = [tick(n, [sample((("f", "x.py", n),))]) for n in range(19)]
    made = of(ticks, START + 4.5 * PERIOD, START + 9.5 * PERIOD)
    assert [frame.line for frame in made.record.frames] == [5, 6, 7, 8, 9]
    assert made.record.samples[0].offset == pytest.approx(PERIOD / 2, abs=1e-6)
    assert made.record.samples[-1].weight == pytest.approx(PERIOD / 2, abs=1e-6)
    assert made.coverage == pytest.approx(0.9)


def test_the_cpu_view_holds_what_was_on_cpu() -> None:
    """A thread that burns 4 of 19 ticks beside one that waits and one of which nothing is known."""
    ticks = [
        tick(
            n,
            [
                sample(BURN if n < 4 else STACK, on_cpu=n < 4),
                sample(native_id=43, on_cpu=False),
                sample(native_id=44, on_cpu=None),
            ],
        )
        for n in range(19)
    ]
    cpu, wall = of(ticks, until=START + 1, view="cpu"), of(ticks, until=START + 1)
    assert cpu.record.seconds == pytest.approx(4 * PERIOD)
    assert {frame.function for frame in cpu.record.frames} == {"burn", "main"}
    assert cpu.coverage == pytest.approx(4 / 19)
    assert wall.record.seconds == pytest.approx(3)
    assert wall.coverage == pytest.approx(1)
    assert {one.on_cpu for one in wall.record.samples} == {True, False, None}


@pytest.mark.parametrize("length", [0.3, 1.2, 5.0])
@given(phase=st.floats(0, 1))
def test_a_burst_is_covered_but_for_one_period(length: float, phase: float) -> None:
    """In an otherwise idle process, wherever the burst begins between two ticks."""
    begin = START + 1 + phase * PERIOD
    ticks = [
        tick(
            n,
            [
                sample(BURN, on_cpu=True)
                if begin <= START + n * PERIOD < begin + length
                else sample(on_cpu=False)
            ],
        )
        for n in range(140)
    ]
    made = of(ticks, begin, begin + length, "cpu")
    assert made.coverage * length >= length - PERIOD - 1e-6
    assert made.coverage <= 1 + 1e-9


def test_a_rate_that_changes_keeps_its_weights() -> None:
    """A second at 19 Hz, then one at 97 Hz: two seconds, no gap, and the period that most samples were planned with."""
    fast = [Tick(START + 1 + n / 97, 5001 + n / 97, 1 / 97, [sample(BURN)]) for n in range(97)]
    made = of([tick(n, [sample()]) for n in range(19)] + fast, until=START + 2)
    assert made.record.seconds == pytest.approx(2)
    assert made.record.period == 1 / 97


def test_a_clock_that_jumps_does_not_change_weights() -> None:
    """The wall clock is set back by half a second amid the window: weights follow the clock that never jumps."""
    ticks = [tick(n, [sample((("f", "x.py", n),))]) for n in range(38)]
    jumped = [
        one if n < 19 else msgspec.structs.replace(one, wall=one.wall - 0.5) for n, one in enumerate(ticks)
    ]
    made = of(jumped)
    assert made.record.seconds == pytest.approx(2)
    assert {round(one.weight, 9) for one in made.record.samples} == {round(PERIOD, 9)}


def test_the_window_before_a_restart_is_there() -> None:
    """Segments of two runs: both sides, with the time in between not covered and no sample across it."""
    old, new = make_ring(1), make_ring(2)
    for n in range(19):
        old.put(tick(n, [sample(BURN)]))
        new.put(tick(57 + n, [sample(BURN)]))
    made = window([*new.snapshot(), *old.snapshot()], START, START + 4)
    assert made.record.seconds == pytest.approx(2)
    assert made.coverage == pytest.approx(0.5)


def test_a_segment_that_is_there_twice_counts_once() -> None:
    """The ring and the spool hold the same."""
    ring = make_ring()
    for n in range(19):
        ring.put(tick(n, [sample()]))
    once, twice = (window(ring.snapshot() * times, START, START + 1) for times in (1, 2))
    assert once == twice


def test_failures_are_lost_samples_and_refused_segments_are_counted() -> None:
    """Three failed readings inside the window, two before it, and a file that is none."""
    ring = make_ring()
    for n, failed in enumerate((2, 0, 3)):
        ring.put(tick(n, [sample()], failed=failed))
    made = window([b"what is this", *ring.snapshot()], START + PERIOD / 2, START + 1)
    assert made.record.lost == 3
    assert made.damaged == 1


def test_a_thread_without_frames_ends_the_sample_before_and_is_none_itself() -> None:
    """An empty stack is whole, and no sample of a profile."""
    made = of([tick(0, [sample(STACK)]), tick(1, [sample(())]), tick(2, [sample(())])])
    assert [one.weight for one in made.record.samples] == [pytest.approx(PERIOD)]
    assert made.record.lost == 0


def test_a_thread_that_is_there_twice_in_a_tick_does_no_harm() -> None:
    """Two samples of one thread at one moment, known and not known to be on CPU."""
    made = of([tick(n, [sample(on_cpu=None), sample(on_cpu=True)]) for n in range(3)])
    assert made.record.seconds == pytest.approx(3 * PERIOD)


@pytest.mark.parametrize("bound", ["MAX_READ", "MAX_PLACES"])
def test_where_there_is_too_much_the_newest_stays(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds on samples and frames: the newest segments are whole, every other sample counts as lost."""
    ring = make_ring(max_age=16.0)
    for n in range(190):
        ring.put(tick(n, [sample(((f"leaf_{n}", "x.py", n), ("main", "x.py", 1)))]))
    monkeypatch.setattr(f"sentinel_agent.recorder.window.{bound}", 100)
    made = window(ring.snapshot(), START, START + 10).record
    assert 50 <= len(made.samples) <= 100
    assert len(made.samples) + made.lost == 190
    assert made.frames[made.samples[-1].stack[0]].function == "leaf_189"
    whole_segments = [one.offset for one in made.samples if one.offset >= 10 - 2]
    assert len(whole_segments) == 38


def test_nothing_recorded_is_an_empty_record() -> None:
    """No piece, no sample, no coverage."""
    made = window([], START, START + 1)
    assert (made.record.samples, made.coverage, made.damaged) == ((), 0.0, 0)


@pytest.mark.parametrize(
    ("since", "until"), [(2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (0.0, math.inf), (math.nan, 1.0)]
)
def test_a_window_without_bounds_is_refused(since: float, until: float) -> None:
    """The caller's mistake, said so."""
    with pytest.raises(ValueError, match="a start before its end"):
        window([], since, until)
