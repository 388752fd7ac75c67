"""`top` as text: fixed states in, lines out, at any size and whatever things are called."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from sentinel_agent.cli.keys import keys_of
from sentinel_agent.cli.top_source import Hot, HotLine, TopAgent, TopRule, TopTarget, TopView
from sentinel_agent.cli.top_view import SORTS, Choice, cell, frame, ordered, press, selected
from sentinel_agent.core.model import IncidentRow
from sentinel_agent.status import TaskLine, TasksSeen
from tests.cli.support import HOSTILE, UNSAFE

NOW = 1_700_000_000.0
NAMES = (
    "gateway/h/main",
    HOSTILE,
    "x" * 300,
    "שירות/h/w",
    "日本語" * 50 + "/h/main",
    "[red]a[/red]/h/worker-2",
    "",
)


def target(pid: int, name: str = "gateway/h/main", cpu: float = 10.0, **changes: object) -> TopTarget:
    facts: dict[str, object] = {
        "pid": pid,
        "target": name,
        "name": "python",
        "python": "3.12",
        "command": ("python", name),
        "agent_pid": 1,
        "age": 0.5,
        "readings": {"cpu": cpu, "rss": 1e8 - pid, "tasks": 3.0, "loop_stall": 0.0},
        "errors": {"fds": "refused"},
        "recent": {"cpu": (None, 5.0, 50.0), "rss": (1e8, 1e8, 1e8)},
        "tasks": None,
        "hot": None,
    }
    return TopTarget(**(facts | changes))  # type: ignore[arg-type]  # facts of mixed types


def view(*targets: TopTarget, **changes: object) -> TopView:
    facts: dict[str, object] = {
        "time": NOW,
        "agents": (TopAgent(1, 3600.0, 0.004),),
        "targets": targets,
        "rules": (),
        "incidents": (),
        "remarks": (),
    }
    return TopView(**(facts | changes))  # type: ignore[arg-type]  # facts of mixed types


def hostile_view(name: str) -> TopView:
    hot = Hot(15.0, 9, True, (HotLine(name, name, 3, 0.9, 1.0),), (f"{name} ({name}:3)", name))
    tasks = TasksSeen(NOW - 9, 500, 2, (TaskLine(500, name, f"{name} (a.py:3)", name, name),))
    row = IncidentRow("id", name, name, NOW - 60, 1.0, name, 7, "cpu", "percent", name, 5)
    return view(
        *(target(pid, name, tasks=tasks, hot=hot, command=(name, name)) for pid in range(1, 12)),
        rules=(TopRule(name, name, 7, "firing", name),),
        incidents=(row,),
        remarks=(name,),
    )


def text(*lines: object) -> str:
    return "\n".join(str(line) for line in lines)


def test_what_is_chosen_is_shown_with_all_that_is_known_of_it() -> None:
    """Readings in the table; course, hottest functions, task groups, rules and incidents below it."""
    hot = Hot(
        15.0,
        9,
        True,
        (HotLine("crunch", "/srv/app.py", 12, 0.81, 1.0),),
        ("crunch (/srv/app.py:12)", "main (/srv/app.py:9)"),
    )
    line = TaskLine(300, "handler", "sleep (asyncio/tasks.py:5)", "Future", "route=/pay")
    tasks = TasksSeen(NOW - 17, 303, 1, (line,))
    row = IncidentRow("id", "cpu-spike", "gateway", NOW - 60, 95.0, "diff", 7, "cpu", "percent", "CPU 95%", 5)
    shown = text(
        *frame(
            view(
                target(7, hot=hot, tasks=tasks),
                rules=(TopRule("rss-growth", "gateway", 7, "pending", "it must stay so for another 3s"),),
                incidents=(row,),
            ),
            Choice(),
            80,
            24,
        )
    )
    for words in (
        "1 target, agent 1 (0.4% of a core)",
        ">       7 gateway",
        "pid 7, Python 3.12: python gateway/h/main",
        "cpu" + " " * 29,
        "5% to 50% in 9s",
        " 81%  crunch (/srv/app.py:12)",
        "303 tasks, 17s ago",
        "300 x handler in sleep (asyncio/tasks.py:5), on Future, for route=/pay",
        "rss-growth (7) pending: it must stay so for another 3s",
        "cpu-spike (7): CPU 95%",
        "q quit",
    ):
        assert words in shown, (words, shown)


@pytest.mark.parametrize("size", [(80, 24), (160, 50), (120, 24), (20, 3), (500, 200), (80, None)])
@pytest.mark.parametrize("name", NAMES)
def test_no_name_breaks_a_line_at_any_size(name: str, size: tuple[int, int | None]) -> None:
    """Each line has at most the width, all lines the height, and nothing that a terminal obeys is in them."""
    width, height = size
    lines = frame(hostile_view(name), Choice(), width, height)
    if height is not None:
        assert len(lines) == max(height, 8)
    for line in lines:
        assert cell_len(line.plain) <= max(width, 40)
        assert "\n" not in line.plain
        assert not [char for char in UNSAFE if char in line.plain]
        assert all(
            span.style
            in ("", "bold", "dim", "bold yellow", "yellow", "reverse", "bold cyan", "bold red", "cyan")
            for span in line.spans
        )


@given(st.text(max_size=300), st.integers(0, 60), st.booleans())
def test_a_cell_has_its_width_whatever_is_in_it(words: str, width: int, right: bool) -> None:
    shown = cell(words, width, right=right)
    assert cell_len(shown.replace("\u200e", "")) == width
    assert all(char.isprintable() or char == "\u200e" for char in shown)


def test_text_that_runs_from_right_to_left_is_followed_by_a_mark() -> None:
    """U+200E after it: figures behind it stay where they are (Unicode Standard Annex 9)."""
    assert cell("שירות", 8) == "שירות\u200e   "
    assert cell("plain", 8) == "plain   "


def test_targets_are_sorted_and_the_choice_stays_with_its_target() -> None:
    """By CPU the second leads; `down` chooses the next in that order and goes round; `s` sorts by memory, the choice stays."""
    shown = view(target(1, "b/h/main", 10.0), target(2, "a/h/main", 90.0), target(3, "c/h/main", 50.0))
    assert [each.pid for each in ordered(shown, "cpu")] == [2, 3, 1]
    assert [each.pid for each in ordered(shown, "name")] == [2, 1, 3]
    choice = Choice()
    found = []
    for key in ("down", "down", "down", "k", "s"):
        choice = press(choice, key, shown)
        chosen = selected(shown, choice)
        assert chosen is not None
        found.append(chosen.pid)
    assert found == [3, 1, 2, 1, 1]
    assert choice.sort == SORTS[1]
    assert press(choice, "p", shown).paused
    assert press(choice, "q", shown).quit
    assert press(choice, "x", shown) == choice
    gone = selected(view(target(5)), choice)
    assert gone is not None
    assert gone.pid == 5
    assert press(choice, "down", view()) == choice


def test_the_chosen_target_is_in_sight_among_hundreds() -> None:
    many = view(*(target(pid, cpu=float(pid)) for pid in range(1, 301)))
    shown = text(*frame(many, Choice(pid=150), 80, 24))
    assert ">     150" in shown
    assert "more" in shown


def test_what_is_not_there_is_said_and_never_taken_for_none() -> None:
    """No agent, no target; an old status; a reading that failed; stacks that were not recorded; tasks not seen yet."""
    assert "No target is watched" in text(*frame(view(agents=()), Choice(), 80, 24))
    assert "no agent judges them" in text(*frame(view(agents=()), Choice(), 80, 24))
    old = msgspec.structs.replace(target(7), age=63.0)
    assert "as of 1m3s ago" in text(*frame(view(old), Choice(), 80, 24))
    failed = target(7, errors={"tasks": "torn"}, readings={"cpu": 1.0})
    other = target(8, readings={"cpu": 0.5, "tasks": 4.0})
    assert "     ?" in text(*frame(view(failed, other), Choice(), 80, 24))
    shown = text(*frame(view(target(7, hot=Hot(15.0, why_not="the recorder is off"))), Choice(), 80, 24))
    assert "the recorder is off" in shown
    assert "none was seen yet" in shown
    paused = text(*frame(view(target(7)), Choice(paused=True), 80, 24))
    assert "PAUSED" in paused


def test_keys_come_out_of_what_a_terminal_sends() -> None:
    """Both kinds of arrows, tab and its reverse; unknown sequences are nothing, and a flood is cut."""
    assert keys_of(b"q\x1b[A\x1b[B\x1bOB\t\x1b[Zsp") == [
        "q",
        "up",
        "down",
        "down",
        "tab",
        "back-tab",
        "s",
        "p",
    ]
    assert keys_of(b"\x1b[15~\x1b[1;5C\x1b") == []
    assert keys_of(b"\x03") == ["q"]
    assert len(keys_of(b"j" * 10_000)) == 64
    assert keys_of(b"\xff\xfe") == ["�", "�"]
