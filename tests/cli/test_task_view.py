"""Tasks as text: groups, where they come from, and the tree of who awaits whom. Fixed documents in, lines out."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.capture.stacks import StackFrame
from sentinel_agent.capture.task_groups import (
    ComparedWith,
    Growth,
    Origin,
    TaskEntry,
    TaskGroup,
    TasksDocument,
)
from sentinel_agent.cli.task_view import groups, origins, tree
from tests.cli.support import HOSTILE, UNSAFE

LEAK = StackFrame("leak", "/srv/app.py", 12)
SLEEP = StackFrame("sleep", "/usr/lib/python3.11/asyncio/tasks.py", 639)


def task(number: int, *awaited_by: int, name: str = "", coroutine: str = "leak") -> TaskEntry:
    frames = (StackFrame(coroutine, "/srv/app.py", 12),)
    return TaskEntry(name or f"Task-{number}", "waiting", coroutine, frames, "Future", number, awaited_by)


def document(*tasks: TaskEntry, count: int = 0) -> TasksDocument:
    return TasksDocument(count or len(tasks), (), tasks)


def test_growth_is_said_with_the_group_and_what_it_is_compared_with() -> None:
    """`was 2` beside the count; files of the standard library lose their folder, the service's own do not."""
    group = TaskGroup(500, "leak", {"waiting": 500}, (LEAK, SLEEP), "Future", ("a", "b"), LEAK, 2)
    lines = list(
        groups(
            TasksDocument(
                503,
                (group,),
                (),
                compared_with=ComparedWith(1_700_000_000.0, 5, every=3),
                grown=(Growth("leak", LEAK, 2, 500),),
            ),
            10,
        )
    )
    assert lines[0].endswith(
        "when all was well: 5 tasks then, of which each 3th was read: counts are estimates"
    )
    assert lines[1] == "500 x leak, was 2  (500 waiting)"
    assert lines[2:5] == [
        "    leak (/srv/app.py:12)",
        "    sleep (asyncio/tasks.py:639)",
        "    waiting on Future",
    ]


def test_what_tasks_are_for_is_said_of_groups_and_in_the_tree() -> None:
    """The values that most tasks have, with how many where it is not all; in the tree only what all of a branch have in common."""
    labels = {"route": {"/pay": 38, "/cart": 2}, "tenant": {"a": 40}, "trace_id": {"4bf9": 1, "77ac": 1}}
    group = TaskGroup(40, "leak", {"waiting": 40}, (LEAK,), None, ("a",), context=labels)
    assert "    for route=/pay (38 of 40), /cart (2 of 40); tenant=a; trace_id=4bf9, 77ac, ..." in list(
        groups(TasksDocument(40, (group,), ()), 10)
    )
    same = [msgspec.structs.replace(task(number), context={"route": "/pay"}) for number in (1, 2)]
    assert any(
        line.endswith("2 x leak (/srv/app.py:12), waiting on Future, for route=/pay")
        for line in tree(document(*same))
    )
    other = [*same, task(3)]
    assert not any("for route" in line for line in tree(document(*other)))


def test_where_tasks_come_from_is_said_as_far_as_it_is_known_and_no_further() -> None:
    known, unknown = Origin(3, "leak", LEAK, SLEEP), Origin(2, "leak", LEAK, None)
    lines = list(origins(TasksDocument(6, (), (), origins=(known, unknown, Origin(1, "x", None, None)))))
    assert lines[1:] == [
        "    3 x leak: awaited by sleep (asyncio/tasks.py:639)",
        "    2 x leak: awaited by nobody that is known; written in /srv/app.py:12",
        "    1 x x: not known",
    ]


def test_the_tree_goes_by_who_awaits_whom_not_by_names() -> None:
    """Two parents of one name have their own children; alike children of alike parents are one branch."""
    lines = list(
        tree(
            document(
                task(1, name="same", coroutine="a"),
                task(2, name="same", coroutine="b"),
                task(3, 2, coroutine="c"),
                task(4, 2, coroutine="c"),
                task(5, 99, coroutine="d"),  # its awaiter is not among the tasks
            )
        )
    )
    assert lines == [
        "5 tasks",
        "├─ same: a (/srv/app.py:12), waiting on Future",
        "├─ same: b (/srv/app.py:12), waiting on Future",
        "│  └─ 2 x c (/srv/app.py:12), waiting on Future",
        "└─ Task-5: d (/srv/app.py:12), waiting on Future",
    ]


def test_a_circle_is_cut_and_every_task_of_it_is_shown_once() -> None:
    """1 awaits 2 awaits 3 awaits 1, and 4 hangs off it; 5 awaits itself."""
    lines = list(tree(document(task(1, 3), task(2, 1), task(3, 2), task(4, 1), task(5, 5))))
    assert sum(line.count("leak (") for line in lines) + sum("2 x" in line for line in lines) == 5


def test_deep_and_wide_trees_are_bounded() -> None:
    """A chain of 5,000 and 5,000 different ones at the root: a few hundred lines, and what is left out is said."""
    chain = [task(number, number - 1) for number in range(1, 5001)]
    assert len(list(tree(document(*chain)))) < 50
    wide = list(tree(document(*(task(number, coroutine=f"c{number}") for number in range(1, 5001)))))
    assert len(wide) < 300
    assert "left out" in wide[-1]


@given(
    st.lists(
        st.builds(
            TaskEntry,
            name=st.just(HOSTILE),
            state=st.sampled_from(["waiting", HOSTILE]),
            coroutine=st.sampled_from(["a", HOSTILE, HOSTILE * 100]),
            frames=st.lists(
                st.builds(StackFrame, st.just(HOSTILE), st.just(HOSTILE), st.just(1)), max_size=6
            ).map(tuple),
            waiting_on=st.sampled_from([None, HOSTILE]),
            awaited_by=st.lists(st.integers(1, 12), max_size=3).map(tuple),
        ),
        max_size=10,
    )
)
def test_whoever_awaits_whom_and_whatever_they_are_called_the_tree_ends_and_is_safe(
    tasks: list[TaskEntry],
) -> None:
    """Every task stands in it exactly once, and no line is long or has a character that a terminal obeys."""
    numbered = tuple(msgspec.structs.replace(each, id=number) for number, each in enumerate(tasks, 1))
    lines = list(tree(TasksDocument(len(numbered), (), numbered)))
    shown = 0
    for line in lines[1:]:
        head = line.split("─ ", 1)[1]
        count, _, rest = head.partition(" x ")
        shown += int(count) if rest and count.isdecimal() else 1
    assert shown == len(numbered)
    for line in lines:
        assert not [char for char in UNSAFE if char in line]
        assert len(line) <= 201
