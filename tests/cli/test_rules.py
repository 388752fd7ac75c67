"""`rules`: every fault at once, what cannot fire, what would have fired, and why a rule is not firing."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.status import StatusWriter
from tests.agent.test_status import status_of_fleet

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.testing import FakeClock
    from tests.cli.support import CommandLine

GOOD = "rules:\n  - {name: spike, metric: cpu, trigger: {abs: 90}, cooldown: 3s}\n"
SERIES = "time,cpu\n" + "".join(f"{second},{95 if second > 2 else 5}\n" for second in range(6))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rules.yaml"


def test_a_good_file_has_no_remarks(sentinel: CommandLine, path: Path) -> None:
    path.write_text(GOOD)
    assert "1 rules, 1 without remarks." in sentinel("rules", "check", str(path), place=False).out
    found = sentinel("rules", "check", str(path), "--json", place=False).document
    assert found == [{"rule": "spike", "can_fire": True, "problems": []}]


def test_every_fault_is_reported_at_once_with_its_place(sentinel: CommandLine, path: Path) -> None:
    """Line and path of each; the exit code is that of a bad configuration, with `--json` too."""
    path.write_text(
        "rules:\n"
        "  - {name: Bad Name, metric: cpu, trigger: {abs: 90}}\n"
        "  - {name: two, metric: cpu, trigger: {sba: 90}}\n"
        "  - {name: three, metric: cpu, trigger: {abs: 90}, cooldown: soon}\n"
        "  - {name: three, metric: cpu, trigger: {abs: 90}}\n"
        "  - {name: five, metric: cpu}\n"
    )
    for words in ((), ("--json",)):
        done = sentinel("rules", "check", str(path), *words, check=2, place=False)
        assert done.out == ""
        assert done.err.startswith("Error: 5 faults")
        for place in (
            "rules.yaml:2: rules[0].name",
            "rules.yaml:3: rules[1].trigger.sba",
            "rules.yaml:4: rules[2].cooldown",
            "rules.yaml:5: rules[3].name",
            "rules.yaml:6: rules[4].trigger",
        ):
            assert place in done.err


@pytest.mark.parametrize(
    "rule",
    [
        "{name: r, metric: no_such_metric, trigger: {abs: 90}}",
        "{name: r, metric: cpu, trigger: {abs: 90}, enabled: false}",
        "{name: r, metric: cpu, trigger: {min: 50, max: 40, abs: 10}}",
        "{name: r, metric: cpu, trigger: {abs: 90}, limit: {count: 0}}",
        "{name: r, metric: cpu, trigger: {}}",
    ],
)
def test_a_rule_that_cannot_fire_is_said_with_an_exit_code_of_its_own(
    rule: str, sentinel: CommandLine, path: Path
) -> None:
    path.write_text(f"rules: [{rule}]\n")
    assert "r: cannot fire: " in sentinel("rules", "check", str(path), check=1, place=False).out
    (found,) = sentinel("rules", "check", str(path), "--json", check=1, place=False).document
    assert not found["can_fire"]
    assert found["problems"]


def test_what_is_no_rule_file_is_refused_in_words(sentinel: CommandLine, tmp_path: Path) -> None:
    """A directory, nothing, binary, 100 MB, a name that is not there, a pipe without a writer."""
    import os  # noqa: PLC0415 - for the pipe only

    binary, large, pipe = tmp_path / "binary", tmp_path / "large", tmp_path / "pipe"
    binary.write_bytes(bytes(range(256)) * 10)
    with large.open("wb") as file:
        file.truncate(100 * 1024**2)
    os.mkfifo(pipe)
    for path, words in (
        (tmp_path, "expected a file, found a directory"),
        (binary, "UTF-8"),
        (large, "expected at most 1048576 bytes"),
        (tmp_path / "missing", "No such file"),
        (pipe, "found a named pipe"),
    ):
        done = sentinel("rules", "check", str(path), check=2, place=False)
        assert str(path) in done.err
        assert words in done.err


def test_an_empty_file_has_no_rules(sentinel: CommandLine, path: Path) -> None:
    """It is no fault: a file in which everything is commented out is one."""
    path.write_text("")
    done = sentinel("rules", "check", str(path), check=None, place=False)
    assert done.code in {0, 2}
    assert "0 rules" in done.out or "empty" in done.err


def test_a_hostile_rule_file_writes_nothing_raw_to_a_terminal(sentinel: CommandLine, path: Path) -> None:
    path.write_text(
        'rules:\n  - {name: "a\\e[31m", "key\\u202e": 1, metric: "\\u009bm", trigger: "\\e]0;x\\a"}\n'
    )
    assert "rules[0]" in sentinel("rules", "check", str(path), check=2, place=False).err


def test_a_replay_has_an_entry_for_each_row_and_rule(
    sentinel: CommandLine, path: Path, tmp_path: Path
) -> None:
    path.write_text(GOOD)
    series = tmp_path / "series.csv"
    series.write_text(SERIES)
    words = ("rules", "test", str(path), "--series", str(series))
    entries = sentinel(*words, "--json", place=False).document
    assert [entry["time"] for entry in entries] == [0, 1, 2, 3, 4, 5]
    assert entries[0].keys() >= {"time", "rule", "value", "baseline", "state", "fire", "reason"}
    assert [entry["fire"] for entry in entries] == [False, False, False, True, False, False]
    assert "spike: fired 1 of 6 rows" in sentinel(*words, place=False).out


def test_a_series_may_come_from_stdin(
    sentinel: CommandLine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(GOOD)
    monkeypatch.setattr(sys, "stdin", io.StringIO(SERIES))
    found = sentinel("rules", "test", str(path), "--series", "-", "--json", place=False)
    assert len(found.document) == 6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the series is empty"),
        (b"when,cpu\n0,1\n", "expected `time`"),
        (b"time,cpu\n0,1\nsoon,2\n1,many\n0,1\n", "csv:3"),
        (b"time,cpu\n0,\xff\n", "expected text in UTF-8"),
        (b"time,cpu\n5,1\n4,1\n", "time goes back"),
        (b'time,cpu\n0,"1\n', "is no CSV"),
        (b"time,cpu\n0,1,2\n", "expected 2"),
        (b"time,cpu\n\x00\x1b[31m,1\n", "no number of seconds"),
    ],
)
def test_a_bad_series_is_refused_with_the_line(
    content: bytes, words: str, sentinel: CommandLine, path: Path, tmp_path: Path
) -> None:
    path.write_text(GOOD)
    series = tmp_path / "series.csv"
    series.write_bytes(content)
    done = sentinel("rules", "test", str(path), "--series", str(series), check=2, place=False)
    assert words in done.err
    missing = sentinel("rules", "test", str(path), "--series", str(tmp_path), check=2, place=False)
    assert "cannot be read" in missing.err


def test_without_an_agent_the_configured_rules_are_listed_and_said_to_be_that(
    sentinel: CommandLine, path: Path, data: Path
) -> None:
    path.write_text(GOOD)
    views = sentinel("rules", "list", "--rules", str(path), "--json").document
    (own,) = [view for view in views if view["rule"] == "spike"]
    assert own["state"] == "no agent"
    text = sentinel("rules", "list", "--rules", str(path)).out
    assert f"No agent runs in {data}" in text


def test_an_unknown_rule_is_refused_with_one_that_is_like_it(sentinel: CommandLine, path: Path) -> None:
    path.write_text(GOOD)
    done = sentinel("rules", "explain", "spkie", "--rules", str(path), check=2)
    assert "there is no rule 'spkie'" in done.err
    assert "did you mean spike?" in done.err
    assert "rules list" in sentinel("rules", "explain", "\x1b[31m", "--rules", str(path), check=2).err


def test_an_explanation_says_why_not_and_what_would_do(sentinel: CommandLine, path: Path) -> None:
    path.write_text(GOOD.replace("cooldown: 3s", "enabled: false"))
    text = sentinel("rules", "explain", "spike", "--rules", str(path)).out
    assert "cannot fire" in text
    assert "rules.yaml:2" in text
    (found,) = sentinel("rules", "explain", "spike", "--rules", str(path), "--json").document
    assert not found["explanation"]["can_fire"]


def test_a_status_of_another_version_is_said_and_no_obstacle(sentinel: CommandLine, data: Path) -> None:
    """Whoever wrote it: this process, which lives, with a document that this version does not know."""
    from sentinel_agent.store.owner import this_process  # noqa: PLC0415 - only here
    from sentinel_agent.store.status import publish  # noqa: PLC0415 - as above

    owner = this_process()
    data.mkdir()
    for document in (b"{}", b"\xff", b"[" * 100_000, json.dumps({"pid": "\x1b"}).encode()):
        publish(data, owner.pid, owner.start_time, document)
        done = sentinel("rules", "list", "--json")
        assert "another version" in done.err
        assert isinstance(done.document, list)


def test_states_for_which_a_status_had_no_room_are_counted(
    sentinel: CommandLine, data: Path, fake_clock: FakeClock
) -> None:
    """A hundred rules on 64 targets: those that are shown are shown, the rest is no secret."""
    StatusWriter(data, fake_clock, frozenset()).publish(status_of_fleet(data, fake_clock, 100, 64))
    done = sentinel("rules", "list", "--json")
    assert len(done.document) == 1500
    assert "4900 rules on targets are not shown" in done.err
