"""Views count what a reader by hand would count."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from sentinel_agent.profile.record import ProfileRecord, RecordBuilder
from sentinel_agent.profile.views import hottest, merged, of_route, routes, select
from tests.profile.records import records


def example(weight: float = 0.25) -> ProfileRecord:
    """Thread 1: hot (line 5, 6, 6) under main; thread 2: recursive rec -> rec once."""
    made = RecordBuilder(start=0, period=weight)
    main, five, six = (
        made.frame("main", "a.py", 1),
        made.frame("hot", "a.py", 5),
        made.frame("hot", "a.py", 6),
    )
    rec = made.frame("rec", "b.py", 9)
    one, two = made.thread(1, "one"), made.thread(2, "two")
    for at, leaf in enumerate((five, six, six)):
        made.add(one, [leaf, main], offset=at * weight, weight=weight, on_cpu=True)
    made.add(two, [rec, rec], offset=0.0, weight=weight, on_cpu=True)
    return made.build()


@pytest.mark.parametrize("weight", [0.25, 0.0])
def test_hottest_gives_self_and_total_shares_and_the_hottest_line(weight: float) -> None:
    """By weight, or by count where the record has no weights; recursion is counted once."""
    hot, rec, main = hottest(example(weight))
    assert (hot.function, hot.file, hot.line, hot.self_share, hot.total_share) == (
        "hot",
        "a.py",
        6,
        0.75,
        0.75,
    )
    assert (rec.function, rec.self_share, rec.total_share) == ("rec", 0.25, 0.25)
    assert (main.function, main.line, main.self_share, main.total_share) == ("main", 0, 0.0, 0.75)


def test_hottest_gives_at_most_n() -> None:
    assert len(hottest(example(), 1)) == 1


def test_hottest_of_nothing_is_nothing() -> None:
    assert hottest(RecordBuilder(start=0, period=0).build()) == ()


def test_select_takes_a_slice_of_time_half_open_and_one_thread() -> None:
    record = example()
    assert [s.offset for s in select(record, since=0.25, until=0.5).samples] == [0.25]
    assert {s.thread for s in select(record, native_id=2).samples} == {1}
    assert select(record, native_id=99).samples == ()


def test_merged_sums_equal_stacks_of_a_thread() -> None:
    by_count = sorted(sample.count for sample in merged(example()).samples)
    assert by_count == [1, 1, 2]
    assert max(sample.weight for sample in merged(example()).samples) == 0.5


@settings(deadline=None)  # the machine may be busy
@given(records())
def test_merging_loses_no_count_and_no_time_and_can_be_repeated(record: ProfileRecord) -> None:
    once = merged(record)
    assert sum(s.count for s in once.samples) == sum(s.count for s in record.samples)
    assert once.seconds == pytest.approx(record.seconds)
    assert merged(once) == once
    assert len({(s.thread, s.stack, s.on_cpu) for s in once.samples}) == len(once.samples)


@settings(deadline=None)  # the machine may be busy
@given(records())
def test_self_shares_sum_to_one(record: ProfileRecord) -> None:
    shares = sum(hot.self_share for hot in hottest(record, 1000))
    assert shares == pytest.approx(1.0 if record.samples else 0.0)


def test_a_record_is_narrowed_down_to_a_route() -> None:
    """By the frame that the proxy leaves below what runs for a route; a function of that name elsewhere is none."""
    made = RecordBuilder(start=0, period=1)
    here = made.frame("route api", "/x/sentinel_agent/proxy/routeframe.py", 9)
    other = made.frame("route api v2", "/x/sentinel_agent/proxy/routeframe.py", 9)
    fake = made.frame("route api", "shop.py", 1)
    hot, thread = made.frame("hot", "a.py", 1), made.thread(1, "one")
    for stack in ([hot, here], [hot, other], [hot, fake], [hot], [hot, here, fake]):
        made.add(thread, stack, offset=0.0, weight=1.0, on_cpu=True)
    record = made.build()
    assert routes(record) == ["api", "api v2"]
    assert [sample.stack for sample in of_route(record, "api").samples] == [(hot, here), (hot, here, fake)]
    assert of_route(record, "none").samples == ()
