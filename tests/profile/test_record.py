"""The record keeps its promises whatever the target calls its functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings

from sentinel_agent.profile.record import (
    CUT,
    MAX_DEPTH,
    MAX_INTEGER,
    MAX_NAME,
    Frame,
    ProfileRecord,
    RecordBuilder,
    Sample,
    Thread,
    clean_name,
)
from tests.profile.records import integers, names

if TYPE_CHECKING:
    from collections.abc import Callable


def builder() -> RecordBuilder:
    return RecordBuilder(start=1000.0, period=0.01, source="test")


@settings(deadline=None)  # the machine may be busy
@given(names)
def test_a_clean_name_is_bounded_utf8_and_cleaning_it_again_changes_nothing(name: str) -> None:
    clean = clean_name(name)
    assert len(clean) <= MAX_NAME
    assert clean.encode("utf-8").decode("utf-8") == clean
    assert clean_name(clean) == clean


def test_a_sound_name_is_kept_as_it_is() -> None:
    assert clean_name("hot_spin") == "hot_spin"
    assert clean_name("größe") == "größe"


def test_a_lone_surrogate_is_written_out() -> None:
    assert clean_name("ok \udcff") == "ok \\udcff"


@settings(deadline=None)  # the machine may be busy
@given(names, names, integers)
def test_the_builder_accepts_any_name_and_number(name: str, file: str, number: int) -> None:
    """No hostile name, line or thread id raises."""
    made = builder()
    made.add(made.thread(number, name), [made.frame(name, file, number)])
    record = made.build()
    assert len(record.samples) == 1
    assert 0 <= record.frames[0].line <= MAX_INTEGER


def test_equal_frames_and_threads_are_kept_once() -> None:
    made = builder()
    assert made.frame("f", "a.py", 1) == made.frame("f", "a.py", 1) == 0
    assert made.frame("f", "a.py", 2) == 1
    assert made.thread(7, "x") == made.thread(7, "x") == 0


def test_a_stack_that_is_too_deep_keeps_its_leaf_part_and_says_so_at_the_root() -> None:
    made = builder()
    stack = [made.frame("f", "a.py", line) for line in range(MAX_DEPTH + 500)]
    made.add(made.thread(1), stack)
    (sample,) = made.build().samples
    assert len(sample.stack) == MAX_DEPTH
    assert sample.stack[:3] == (0, 1, 2)
    assert made.build().frames[sample.stack[-1]].function == CUT


def test_full_tables_cost_samples_and_not_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no longer fits is counted as lost."""
    for name in ("MAX_FRAMES", "MAX_THREADS", "MAX_SAMPLES"):
        monkeypatch.setattr(f"sentinel_agent.profile.record.{name}", 2)
    made = builder()
    for number in range(3):
        made.add(made.thread(number), [made.frame(f"f{number}")])
    made.add(0, [0])
    made.add(0, [0])
    record = made.build()
    assert (len(record.frames), len(record.threads), len(record.samples)) == (2, 2, 2 + 0)
    assert record.lost == 3


@pytest.mark.parametrize(
    ("offset", "weight", "count"),
    [(math.nan, 0, 1), (-1, 0, 1), (0, math.inf, 1), (0, 1e30, 1), (0, 0, 0), (0, 0, 2**64)],
)
def test_a_sample_with_an_unsound_time_or_count_is_lost(offset: float, weight: float, count: int) -> None:
    made = builder()
    made.add(made.thread(1), [made.frame("f")], offset=offset, weight=weight, count=count)
    assert (made.build().samples, made.build().lost) == ((), 1)


def test_a_sample_without_a_stack_is_lost() -> None:
    made = builder()
    made.add(made.thread(1), [])
    assert made.lost == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Frame("x" * (MAX_NAME + 1)),
        lambda: Frame("\ud800"),
        lambda: Frame("f", line=-1),
        lambda: Thread(-1),
        lambda: ProfileRecord((), (), (), start=math.nan, period=0),
        lambda: ProfileRecord((), (), (), start=0, period=0, lost=-1),
        lambda: ProfileRecord((), (Thread(1),), (Sample(0, 0, (0,), 0),), start=0, period=0),
        lambda: ProfileRecord((Frame("f"),), (), (Sample(0, 0, (0,), 0),), start=0, period=0),
        lambda: ProfileRecord((Frame("f"),), (Thread(1),), (Sample(0, 0, (-1,), 0),), start=0, period=0),
        lambda: ProfileRecord((Frame("f"),), (Thread(1),), (Sample(0, 0, (), 0),), start=0, period=0),
        lambda: ProfileRecord((Frame("f"),), (Thread(1),), (Sample(0, 0, (0,), -1),), start=0, period=0),
        lambda: ProfileRecord(
            (Frame("f"),), (Thread(1),), (Sample(0, 0, (0,), 0, None, 0),), start=0, period=0
        ),
    ],
)
def test_a_record_that_contradicts_itself_cannot_be_made(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        make()


def test_a_record_with_too_many_frames_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentinel_agent.profile.record.MAX_THREADS", 1)
    with pytest.raises(ValueError, match="at most 1 threads, found 2"):
        ProfileRecord((), (Thread(1), Thread(2)), (), start=0, period=0)
