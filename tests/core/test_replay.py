"""Replaying a series, and reading it from CSV."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core import replay as replay_module
from sentinel_agent.core.replay import parse_series, replay
from sentinel_agent.core.rule import Match, Rule
from sentinel_agent.errors import ConfigError
from tests.core.support import threshold


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_series(text, "s.csv")
    return [str(fault) for fault in caught.value.faults]


def test_an_entry_for_each_row_and_rule_with_exactly_these_keys() -> None:
    """The contract of `rules test`: keys, states and reasons of the firing row and of those after it."""
    rules = [
        threshold("a", abs=50, cooldown=2.0, match=Match(service="nobody")),
        threshold("b", metric="rss", abs=1, enabled=False),
    ]
    entries = replay(rules, parse_series("time,cpu,rss\n0,60,1\n1,70,\n2,80,3\n"))
    shown = msgspec.to_builtins(entries)
    assert [list(entry) for entry in shown] == [
        ["time", "rule", "value", "baseline", "state", "fire", "reason"]
    ] * 6
    assert [tuple(entry.values()) for entry in shown if entry["rule"] == "a"] == [
        (0.0, "a", 60.0, None, "firing", True, "above_abs"),
        (1.0, "a", 70.0, None, "cooling", False, "cooldown"),
        (2.0, "a", 80.0, None, "firing", True, "above_abs"),
    ]
    assert [(entry["value"], entry["reason"]) for entry in shown if entry["rule"] == "b"] == [
        (1.0, "disabled"),
        (None, "disabled"),
        (3.0, "disabled"),
    ]


def test_a_replay_of_no_rows_is_empty() -> None:
    """Nor of no rules."""
    assert replay([threshold(abs=1)], []) == []
    assert replay([], [(0.0, {"cpu": 1.0})]) == []


def test_a_replay_has_baselines_from_the_rows_before() -> None:
    """A mean over the window of 60 s, the current value left out."""
    rows = [(float(time), {"cpu": 10.0 + time}) for time in range(4)]
    assert [entry.baseline for entry in replay([threshold(diff=900, warmup=1)], rows)] == [None, 10, 10.5, 11]


def test_two_rules_of_one_name_cannot_be_replayed() -> None:
    """As in the engine."""
    rule = Rule(name="x", trigger="cpu > 1")
    with pytest.raises(ValueError, match="same name"):
        replay([rule, rule], [])


def test_what_a_series_may_look_like() -> None:
    """A byte order mark, Windows line ends, quotes, blanks, empty lines, exponents, empty cells."""
    text = '\ufefftime , cpu,"rss"\r\n0, 1.5,\r\n\r\n0.5,-2e3,"7."\n ,,\n1,,.5'
    assert parse_series(text) == [
        (0.0, {"cpu": 1.5}),
        (0.5, {"cpu": -2000.0, "rss": 7.0}),
        (1.0, {"rss": 0.5}),
    ]
    assert parse_series("time,cpu\n") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "s.csv: the series is empty"),
        ("\n\n", "s.csv: the series is empty"),
        ("zeit,cpu\n0,1", "s.csv:1: the first column is 'zeit'"),
        ("time\n0", "s.csv:1: no metric"),
        ("time,CPU\n", "s.csv:1: 'CPU' is no metric name"),
        ("time," + "x" * 99, "is no metric name"),
        ("time,cpu,cpu\n", "s.csv:1: 'cpu' is there twice"),
        ("time" + ",a" * 300, "301 columns"),
        ("time,cpu\n0,1,2", "s.csv:2: 3 cells: expected 2"),
        ("time,cpu\n0", "s.csv:2: 1 cells: expected 2"),
        ("time,cpu\n\nx,1", "s.csv:3: time 'x' is no number"),
        ("time,cpu\n,1", "s.csv:2: time '' is no number"),
        ("time,cpu\n0,nan", "s.csv:2: cpu 'nan' is no number"),
        ("time,cpu\n0,1_0", "cpu '1_0' is no number"),
        ("time,cpu\n0,1e999", "cpu '1e999' is no number"),
        ("time,cpu\n0," + "9" * 200, "9...' is no number"),
        ("time,cpu\n0,\u0663", "is no number"),
        ("time,cpu\n5,1\n4,1", "s.csv:3: time goes back from 5 to 4"),
        ('time,cpu\n0,"1', "s.csv:2: is no CSV"),
        ('time,cpu\n0,"1"2', "s.csv:2: is no CSV"),
    ],
)
def test_a_fault_has_its_line(text: str, words: str) -> None:
    """What was found, what was expected, and where."""
    (fault,) = faults(text)
    assert words in fault


def test_every_fault_is_reported_at_once_up_to_fifty() -> None:
    """Three rows, four faults; a thousand bad rows, fifty."""
    assert len(faults("time,cpu,rss\na,b,1\n0,1\n1,1,c\n")) == 4
    assert len(faults("time,cpu\n" + "x,1\n" * 1000)) == 50
    assert len(faults("zeit,CPU,a,a\n0,1")) == 3


def test_size_and_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said in a fault, never cut in silence."""
    monkeypatch.setattr(replay_module, "MAX_ROWS", 2)
    assert "s.csv:4: more than 2 rows" in faults("time,cpu\n0,1\n1,1\n2,1\n3,1")[0]
    monkeypatch.setattr(replay_module, "MAX_CHARACTERS", 10)
    assert "at most 10 are read" in faults("time,cpu\n0,1\n")[0]


@given(st.text(st.sampled_from('time,cpu\n\r"0123456789.eE-+ \0é\ufeff'), max_size=80))
def test_no_text_gives_anything_but_rows_or_a_fault(text: str) -> None:
    """Also behind a good header."""
    for whole in (text, f"time,cpu\n{text}"):
        try:
            rows = parse_series(whole)
        except ConfigError:
            continue
        assert [time for time, _ in rows] == sorted(time for time, _ in rows)
