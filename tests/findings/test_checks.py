"""Each check: what it concludes from facts, and that facts which are missing are not known rather than fine."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.capture.injected import Injection
from sentinel_agent.capture.stacks import StackFrame, Stacks, ThreadStack
from sentinel_agent.capture.task_groups import ComparedWith, Growth, TaskGroup, TasksDocument
from sentinel_agent.capture.tracemalloc import TracemallocDocument
from sentinel_agent.findings.base import (
    EarlierIncident,
    Facts,
    Finding,
    Findings,
    MappingTotal,
    NotKnown,
    OpenFile,
    OpenFiles,
    ProcessFacts,
    Socket,
)
from sentinel_agent.findings.judge import CHECKS, judge
from sentinel_agent.profile.heap import HeapLine, HeapSite
from tests.findings.facts import LOOP, facts, readings, timeline

HANDLER = ("handler", "app.py", 12)
SLEEPS = ((HANDLER, ("_run", "/usr/lib/python3.11/asyncio/events.py", 80)), False)
WORKS = ((HANDLER, ("_run", "/usr/lib/python3.11/asyncio/events.py", 80)), True)
WAITS = (LOOP, False)


def found(check: str, given_facts: Facts) -> Finding:
    """The finding of one check, which must be one."""
    answer = CHECKS[check](given_facts)
    assert isinstance(answer, Finding), answer
    return answer


def test_without_facts_nothing_is_said_to_be_fine() -> None:
    """No finding, no check that looked in vain: every one that applies says that it is not known, and why."""
    answer = judge(facts("fds"))
    assert answer.findings == ()
    assert {each.check for each in answer.not_known} == {*CHECKS, "seen_before"} - {
        "death",
        "held_loop",
        "busier_route",
    }
    assert all(each.why for each in answer.not_known)
    assert answer.headline == ""


def test_a_loop_that_sleeps_in_a_callback_is_blocked_for_as_long_as_the_stretch() -> None:
    """Forty samples of 50 ms in `handler`, asleep: 2 s, at its line; waiting in the selector before and after is none."""
    answer = found(
        "blocked_loop", facts("loop_stall", timeline=timeline(*[WAITS] * 9, *[SLEEPS] * 40, WAITS))
    )
    assert "blocked for 2s by a call that blocks: handler (app.py:12)" in answer.text
    assert answer.score >= 90
    assert answer.subject == "handler (app.py:12)"


def test_work_in_a_callback_blocks_only_if_the_readings_say_that_it_was_one_call() -> None:
    """The same callback on a CPU in every sample is a busy service; with a `loop_stall` of 1.5 s it is one callback."""
    busy = timeline(*[WORKS] * 40)
    assert CHECKS["blocked_loop"](facts(timeline=busy)) is None
    answer = found("blocked_loop", facts(timeline=busy, series=readings(loop_stall=[0.0, 1.5])))
    assert "blocked for 1.5s by work on the CPU: handler (app.py:12)" in answer.text


def test_a_library_at_the_leaf_is_named_behind_the_programs_own_line() -> None:
    """The user wants the line of theirs; the library's is where it waits."""
    inside = ("recv_into", "/usr/lib/python3.11/socket.py", 706)
    answer = found("blocked_loop", facts(timeline=timeline(*[((inside, *SLEEPS[0]), False)] * 10)))
    assert "handler (app.py:12), waiting in recv_into (/usr/lib/python3.11/socket.py:706)" in answer.text


@pytest.mark.parametrize(
    "samples", [[WAITS] * 100, [SLEEPS] * 3, [SLEEPS, WAITS] * 50], ids=["idle", "short", "often"]
)
def test_a_loop_that_goes_on_is_not_blocked(
    samples: list[tuple[tuple[tuple[str, str, int], ...], bool]],
) -> None:
    """Waiting for events, three samples in a row, or many short stays are no block."""
    assert CHECKS["blocked_loop"](facts(timeline=timeline(*samples))) is None


def test_a_thread_without_a_loop_may_sleep() -> None:
    """Only threads whose root is an event loop can block one."""
    record = timeline(*[SLEEPS] * 40)
    frames = tuple(msgspec.structs.replace(frame, file="other.py") for frame in record.frames)
    assert CHECKS["blocked_loop"](facts(timeline=msgspec.structs.replace(record, frames=frames))) is None


def test_a_leak_is_named_before_a_larger_crowd_with_how_it_was_before() -> None:
    """500 where 2 were, beside 3,000 steady ones: the first line names the coroutine, its line, what it waits on, and the growth."""
    frames = (StackFrame("leak", "app.py", 4), StackFrame("Event.wait", "locks.py", 20))
    crowd = TaskGroup(3000, "steady", {}, (), None, (), was=3000)
    document = TasksDocument(
        3500,
        (TaskGroup(500, "leak", {"waiting": 500}, frames, "Future", (), was=2), crowd),
        (),
        compared_with=ComparedWith(5.0, 3002),
        grown=(Growth("leak", frames[0], 2, 500),),
    )
    answer = found("tasks", facts("tasks", tasks=document))
    assert answer.text == "500 of 3500 tasks, 2 before, are leak (app.py:4), waiting in Event.wait on Future"
    assert "there were 3002 tasks when all was well" in answer.evidence
    unknown = msgspec.structs.replace(document, compared_with=None, grown=(), not_compared="it was asleep")
    assert "not compared with before: it was asleep" in found("tasks", facts("tasks", tasks=unknown)).evidence


def test_the_coroutine_of_most_tasks_is_named_with_its_share_and_what_it_waits_on() -> None:
    """280 of 300 tasks are 93%."""
    frames = (StackFrame("handler", "app.py", 4), StackFrame("backend", "app.py", 3))
    group = TaskGroup(280, "handler", {"waiting": 280}, frames, "Future", ("Task-1",))
    document = TasksDocument(300, (group,), ())
    answer = found("tasks", facts("tasks", tasks=document))
    assert answer.text == "280 of 300 tasks (93%) are handler (app.py:4), waiting in backend on Future"
    assert answer.score > found("tasks", facts("cpu", tasks=document)).score
    few = msgspec.structs.replace(document, count=1000)
    assert CHECKS["tasks"](facts("cpu", tasks=few)) is None


def test_the_hottest_function_is_the_headline_of_a_spike() -> None:
    """Three of four samples are in it."""
    other = (("other", "app.py", 5),)
    record = timeline(WORKS, WORKS, WORKS, (other, True))
    answer = judge(facts("cpu", during=record))
    assert answer.headline == "hottest: handler (app.py:12), 75% of the CPU samples"


def test_growth_of_memory_is_from_the_lowest_reading_and_says_what_is_not_known() -> None:
    """400 MiB over the window; without a memory capture the line is not known. A tenth of little is no growth."""
    mib = 1024.0**2
    answer = found(
        "memory_growth",
        facts("rss", incident={"baseline": None}, series=readings(rss=[200 * mib, 300 * mib, 600 * mib])),
    )
    assert "grew by 400.0 MiB, from 200.0 MiB to 600.0 MiB" in answer.text
    assert any("not known" in line for line in answer.evidence)
    assert CHECKS["memory_growth"](facts("cpu", series=readings(rss=[200 * mib, 201 * mib]))) is None


def test_growth_says_when_the_limit_is_reached() -> None:
    """From 400 to 600 MiB in two seconds, at 60% of a limit of 1000 MiB: four seconds are left. Far from the limit nothing is said."""
    mib = 1024.0**2
    rss = [500 * mib, 400 * mib, 500 * mib, 600 * mib]
    near = found("memory_growth", facts("rss", series=readings(rss=rss, rss_limit=[60.0] * 4)))
    assert "it is at 60% of the memory limit; if it goes on like this it gets there in 4s" in near.evidence
    slow = readings(rss=[400 * mib, 600 * mib], rss_limit=[0.001] * 2)
    assert not any("limit" in line for line in found("memory_growth", facts("rss", series=slow)).evidence)


def test_growth_names_what_ran_while_the_readings_rose() -> None:
    """Two of three rises came while `fill` was on a CPU; what only waited, or ran while nothing grew, is not blamed."""
    mib = 1024.0**2
    library = ("dumps", "/usr/lib/python3.11/json/__init__.py", 183)
    fill, other = (library, ("fill", "cache.py", 7)), (("other", "app.py", 5),)
    samples = [(other, True)] * 20 + [(fill, True)] * 40 + [(other, True)] * 20 + [(fill, False)] * 20
    rose = readings(rss=[100 * mib, 101 * mib, 200 * mib, 300 * mib, 340 * mib, 340 * mib])
    facts_of = {"series": rose, "timeline": timeline(*samples), "incident": {"baseline": None}}
    answer = found("memory_growth", facts("rss", **facts_of))
    assert answer.text.endswith("most of it while fill (cache.py:7) ran")
    assert answer.evidence[0].startswith("199.0 MiB came while it was on a CPU, by 2s of stacks")
    assert answer.subject == "fill (cache.py)"
    flat = facts_of | {"timeline": timeline(*[(fill, False)] * 100)}
    assert found("memory_growth", facts("rss", **flat)).subject == "resident memory"


def test_malloc_is_named_where_its_arenas_hold_most() -> None:
    """300 of 500 MiB in 32 arenas; without the mappings it is not known, and a little is nothing."""
    mib = 1024**2
    held = {"malloc_arenas": MappingTotal(32, 300 * mib), "anonymous": MappingTotal(9, 200 * mib)}
    answer = found("malloc_arenas", facts("rss", process=ProcessFacts(mappings=held)))
    assert answer.text.startswith("300.0 MiB of 500.0 MiB resident lie in 32 arenas of malloc")
    assert answer.evidence == (
        "resident: 300.0 MiB in malloc's other arenas, 200.0 MiB in Python's arenas and large blocks",
    )
    assert isinstance(CHECKS["malloc_arenas"](facts("rss", process=ProcessFacts())), NotKnown)
    little = held | {"malloc_arenas": MappingTotal(32, 30 * mib)}
    assert CHECKS["malloc_arenas"](facts("rss", process=ProcessFacts(mappings=little))) is None


def test_of_what_grew_the_line_and_its_part_are_told() -> None:
    """Resident memory grew by 400 MiB while it was traced, 380 of it at one line; a library at the leaf is passed over."""
    mib = 1024**2
    lines = (HeapLine("/usr/lib/python3.11/json/decoder.py", 353), HeapLine("cache.py", 41))
    document = TracemallocDocument(
        seconds=3.0,
        ended_by="time",
        was_on=False,
        frames=2,
        traces=1,
        grown_bytes=390 * mib,
        tracebacks=2,
        overhead_bytes=0,
        holds_us={},
        lines=(),
        sites=(
            HeapSite(380 * mib, 1, 380 * mib, 1, lines),
            HeapSite(10 * mib, 1, 10 * mib, 1, (HeapLine("app.py", 3),)),
        ),
        injection=Injection("hypno", "", 0, ()),
        resident_grown_bytes=400 * mib,
    )
    answer = found("allocations", facts("rss", allocations=document))
    assert answer.text == "resident memory grew by 400.0 MiB within 3s, 380.0 MiB of it at cache.py:41"
    assert answer.subject == "cache.py:41"
    series = readings(rss=[100.0 * mib, 600.0 * mib])
    both = judge(facts("rss", allocations=document, series=series, incident={"baseline": None}))
    assert both.headline == answer.text


def test_throttling_and_collections_are_judged_by_the_last_readings() -> None:
    """What was long before the trigger explains nothing."""
    calm = [0.0] * 20
    assert CHECKS["throttling"](facts(series=readings(throttled=[80.0, *calm]))) is None
    assert "80%" in found("throttling", facts(series=readings(throttled=[*calm, 80.0]))).text
    assert CHECKS["gc_storm"](facts(series=readings(gc_pause=[0.5, *calm]))) is None
    storm = readings(gc_pause=[*calm, 0.5], gc_collections_gen2=[6.0] * 21)
    assert "6.0 full collections a second, one took 500ms" in found("gc_storm", facts(series=storm)).text


def _worker(number: int, *above: StackFrame) -> ThreadStack:
    idle = StackFrame("_worker", "/usr/lib/python3.11/concurrent/futures/thread.py", 81)
    return ThreadStack(number, f"ThreadPoolExecutor-0_{number}", "waiting", None, (*above, idle))


def test_a_pool_is_exhausted_when_no_thread_of_it_is_idle() -> None:
    """Three workers in one line; with an idle one beside them there is nothing to say."""
    busy = StackFrame("query", "db.py", 7)
    full = [_worker(number, busy) for number in range(3)]
    answer = found("thread_pool", facts(stacks=Stacks(tuple(full))))
    assert "all 3 threads of ThreadPoolExecutor-0 are busy, 3 of them in query (db.py:7)" in answer.text
    assert CHECKS["thread_pool"](facts(stacks=Stacks((*full, _worker(3))))) is None


def test_connections_are_grouped_by_whom_they_are_with() -> None:
    """Listening sockets are left out."""
    with_db = OpenFile("tcp", Socket("tcp", "10.0.0.1:5432", "close_wait"))
    listed = (with_db, with_db, OpenFile("tcp", Socket("tcp", "0.0.0.0:0", "listen")), OpenFile("file"))
    answer = found("connections", facts("fds", process=ProcessFacts(files=OpenFiles(4, {}, listed))))
    assert answer.text == "most connections: 2 close_wait with 10.0.0.1:5432"


def test_a_death_comes_before_everything() -> None:
    """What killed the process is the headline, whatever else is found."""
    died = {"rule": "target-died", "reason": "oom", "summary": "killed by SIGKILL; last seen with rss 1 GiB"}
    answer = judge(facts("", incident=died, during=timeline(*[WORKS] * 9)))
    assert answer.headline == "the process is dead: killed by SIGKILL"
    assert answer.findings[0].evidence == ("last seen with rss 1 GiB",)


def test_what_was_seen_before_at_the_same_place_is_told_from_what_was_seen_elsewhere() -> None:
    """Of three earlier incidents two name the same function, the older of them a day ago."""
    now = facts("cpu", during=timeline(*[WORKS] * 9))
    time = now.incident.time
    earlier = tuple(
        EarlierIncident(time - seconds, subject)
        for seconds, subject in ((60, "handler (app.py)"), (3600, "other"), (86400, "handler (app.py)"))
    )
    same = judge(facts("cpu", during=now.during, earlier=earlier))
    (said,) = [each.text for each in same.findings if each.check == "seen_before"]
    assert said.startswith("identical incident seen 2 times before since ")
    assert said.endswith(" UTC: handler (app.py)")
    others = judge(facts("cpu", during=now.during, earlier=earlier[1:2]))
    assert any("fired once before" in each.text for each in others.findings)
    assert "seen_before" in judge(facts("cpu", earlier=())).nothing_found


def test_a_check_that_fails_is_not_known_and_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is named; the others go on."""
    checks = {"bad": lambda _: 1 / 0, **CHECKS}
    monkeypatch.setattr("sentinel_agent.findings.judge.CHECKS", checks)
    answer = judge(facts("cpu", during=timeline(*[WORKS] * 9)))
    assert answer.headline.startswith("hottest: handler")
    assert NotKnown(
        "bad", "the check failed, which is a fault of ours: ZeroDivisionError: division by zero"
    ) in (answer.not_known)


@given(
    names=st.lists(st.tuples(st.text(max_size=600), st.text(max_size=600)), min_size=1, max_size=8),
    values=st.lists(st.floats(0, 1e18), min_size=1, max_size=30),
    metric=st.sampled_from(["cpu", "rss", "tasks", "fds", "loop_stall", "gc_pause", "x"]),
)
def test_whatever_a_target_calls_its_functions_the_document_is_bounded_and_can_be_written(
    names: list[tuple[str, str]], values: list[float], metric: str
) -> None:
    """Every score is 0 to 100, every line is one line of a bounded length, no check fails, and JSON holds it."""
    samples = [(((function, file, 1),), asleep) for function, file in names for asleep in (True, False) * 5]
    frames = tuple(StackFrame(function, file, 1) for function, file in names)
    answer = judge(
        facts(
            metric,
            series=readings(rss=values, throttled=values, gc_pause=values, loop_stall=values),
            timeline=timeline(*samples),
            during=timeline(*samples),
            stacks=Stacks((ThreadStack(1, "pool_1", "waiting", None, frames),)),
            tasks=TasksDocument(5, (TaskGroup(5, names[0][0], {}, frames, names[0][1], ()),), ()),
            earlier=(),
        )
    )
    assert not any("fault of ours" in each.why for each in answer.not_known)
    for each in answer.findings:
        assert 0 <= each.score <= 100
        for line in (each.text, *each.evidence, each.next_step, each.subject):
            assert len(line) <= 400
            assert "\n" not in line
    assert [each.score for each in answer.findings] == sorted(
        (each.score for each in answer.findings), reverse=True
    )
    assert msgspec.json.decode(msgspec.json.encode(answer), type=Findings) == answer
