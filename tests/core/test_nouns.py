"""Units, nouns, rules and the metric catalogue."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.event import Event, TargetGone
from sentinel_agent.core.metrics import METRICS, unit_of
from sentinel_agent.core.model import Reading, Role, Target, TargetId
from sentinel_agent.core.rule import CaptureSpec, Rule, RuleFile, Trigger
from sentinel_agent.core.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("1m30s", 90),
        (" 2h ", 7200),
        ("1d", 86400),
        ("1w", 604800),
        ("1.5s", 1.5),
    ],
)
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    """A bare number is seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "5x", "-5s", "1m 30s", "1e3", "5s!", "nan"])
def test_what_is_no_duration(text: str) -> None:
    """The message shows what is expected."""
    with pytest.raises(ValueError, match="expected for example 500ms"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5", 5),
        ("5B", 5),
        ("64MiB", 64 * 2**20),
        ("1G", 10**9),
        ("1.5 KiB", 1536),
        ("2k", 2000),
        ("1GiB", 2**30),
        ("3M", 3 * 10**6),
    ],
)
def test_sizes_as_people_write_them(text: str, count: int) -> None:
    """Binary and decimal units are told apart."""
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "5mb", "-1", "1 2"])
def test_what_is_no_size(text: str) -> None:
    """The message shows what is expected."""
    with pytest.raises(ValueError, match="expected for example 512KiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "250ms"),
        (4.2, "4.2s"),
        (5, "5s"),
        (90, "1m30s"),
        (7200, "2h"),
        (86400 * 3, "3d"),
        (90061, "1d1h"),
        (-5, "-5s"),
    ],
)
def test_durations_are_shown_short(seconds: float, text: str) -> None:
    """Two parts at most."""
    assert format_duration(seconds) == text


@given(st.integers(60, 10**7))
def test_a_shown_duration_is_off_by_less_than_its_smallest_part(seconds: int) -> None:
    """Read back, it is the same but for the parts that were left out."""
    assert 0 <= seconds - parse_duration(format_duration(seconds)) < max(3600, seconds / 24)


@pytest.mark.parametrize(
    ("count", "text"),
    [(512, "512 B"), (1536, "1.5 KiB"), (64 * 2**20, "64.0 MiB"), (2**40, "1024.0 GiB"), (-2048, "-2.0 KiB")],
)
def test_sizes_are_shown_in_binary_units(count: float, text: str) -> None:
    """GiB is the largest."""
    assert format_size(count) == text


def test_a_reading_has_either_a_value_or_an_error() -> None:
    """Both or neither is refused."""
    assert Reading("cpu", 0, None, "gone").value is None
    for value, error in ((None, None), (1.0, "gone")):
        with pytest.raises(ValueError, match="either a value or an error"):
            Reading("cpu", 0, value, error)


def test_the_key_of_a_role() -> None:
    """service/instance/worker."""
    assert Role("gateway", "host-1", "worker-2").key == "gateway/host-1/worker-2"


def test_captures_and_thresholds_of_a_rule_written_out() -> None:
    """Short forms become specs; only the tests that are given are thresholds."""
    rule = Rule(
        name="a", trigger=Trigger(abs=5.0, min=1.0), capture=("stacks", CaptureSpec("profile", duration=2.0))
    )
    assert rule.captures() == (CaptureSpec("stacks"), CaptureSpec("profile", duration=2.0))
    assert rule.thresholds() == {"min": 1.0, "abs": 5.0}
    assert Rule(name="a", trigger="cpu > 1").thresholds() == {"expression": "cpu > 1"}


def test_a_rule_file_survives_writing_and_reading() -> None:
    """Both kinds of trigger."""
    rules = RuleFile(
        (Rule(name="a", trigger="cpu > 1"), Rule(name="b", trigger=Trigger(below=1.0), metric="fds"))
    )
    assert msgspec.json.decode(msgspec.json.encode(rules), type=RuleFile) == rules


def test_the_catalogue_of_metrics() -> None:
    """Names fit what a rule may name; the unit of a stranger's metric is empty."""
    assert all(name == metric.name and metric.description for name, metric in METRICS.items())
    for name in METRICS:
        msgspec.convert({"name": "x", "metric": name, "trigger": {"abs": 1}}, Rule)
    assert unit_of("rss") == "bytes"
    assert unit_of("queue_depth") == ""


def target() -> Target:
    return Target(
        pid=1,
        start_time=2,
        pid_namespace=3,
        service="gateway",
        instance="host-1",
        worker="main",
        name="python",
        command=("python",),
    )


def test_a_target_knows_its_identity_and_its_role() -> None:
    """The parts, put together."""
    assert target().id == TargetId(1, 2, 3)
    assert target().role == Role("gateway", "host-1")


def test_an_event_says_its_kind() -> None:
    """Written as JSON it can be read back as the same event."""
    event = TargetGone(time=1.0, target=target(), how="ended")
    assert msgspec.json.decode(msgspec.json.encode(event), type=Event) == event
