"""How text is fitted to a terminal: broken at words, under its label, and nothing that one may want to copy is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.cli import output
from sentinel_agent.cli.output import short_path, short_paths, sparkline, wrapped
from tests.cli.support import stored

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.cli.support import CommandLine


def test_a_line_is_broken_at_words_and_its_rest_stands_under_what_follows_the_label() -> None:
    text = "reason   " + "word " * 10 + "\n    item " + "word " * 10 + "\nshort"
    assert wrapped(text, 40).split("\n") == [
        "reason   word word word word word word",
        "         word word word word",
        "    item word word word word word word",
        "        word word word word",
        "short",
    ]


def test_a_path_longer_than_the_line_stays_whole() -> None:
    path = "/" + "folder-with-hyphens/" * 6
    assert path in wrapped(f"Files in {path} are kept", 40)


@given(st.text(alphabet="ab -/\n", max_size=400), st.integers(40, 100))
def test_wrapping_loses_no_word(text: str, width: int) -> None:
    assert wrapped(text, width).split() == text.split()


def test_files_of_libraries_lose_their_folder_and_those_of_the_service_do_not() -> None:
    assert short_path("/usr/lib/python3.11/asyncio/tasks.py") == "asyncio/tasks.py"
    assert short_path("/srv/.venv/lib/python3.13t/site-packages/aiohttp/web.py") == "aiohttp/web.py"
    assert short_path("/srv/app/handlers.py") == "/srv/app/handlers.py"
    assert (
        short_paths("at f (/usr/lib/python3.11/asyncio/tasks.py:5), then g (/srv/app.py:6)")
        == "at f (asyncio/tasks.py:5), then g (/srv/app.py:6)"
    )


def test_bars_stand_between_given_bounds() -> None:
    """5 of 100 is a low bar, where between 4 and 5 it would be the highest; what is out of bounds is at the edge."""
    assert sparkline([4.0, 5.0]) == "▁█"
    assert sparkline([4.0, 5.0, 200.0], low=0.0, high=100.0) == "▁▁█"


def test_on_a_narrow_terminal_an_incident_takes_two_lines_and_its_id_is_whole(
    sentinel: CommandLine, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table would break the id, which one wants to copy."""
    incident = stored(data, summary="CPU 95%: twice as much as usual")
    monkeypatch.setattr(output, "columns", lambda: 80)
    lines = sentinel("incidents", "list").out.splitlines()
    assert lines[0].startswith(f"{incident}  ")
    assert "    CPU 95%: twice as much as usual" in lines
    assert max(len(line) for line in sentinel("incidents", "show", incident).out.splitlines()[:8]) <= 80


def test_on_a_narrow_terminal_rules_stand_under_their_target(
    sentinel: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "columns", lambda: 80)
    lines = sentinel("rules", "list").out.splitlines()
    assert lines[0] == "On no target"
    assert lines[1].split() == ["RULE", "STATE", "FIRED", "WHY"]
    assert any(line.startswith("cpu-spike") for line in lines)
