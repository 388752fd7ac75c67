"""Plug-ins: found by entry point, made and read like our own, and never able to stop us."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import msgspec
import pytest

from sentinel_agent.core.model import Reading
from sentinel_agent.probes.base import Moment, Subject
from sentinel_agent.probes.registry import (
    BUILT_IN,
    GROUP,
    MAX_READINGS,
    ProbeFault,
    build_probes,
    load_registry,
)
from tests.probes.subjects import target_of

NOW = Moment(5.0, 1.0)


def _plugin(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, f"{__name__}:{value}", GROUP)


@dataclass
class Good:
    """A stranger's probe that does what it should."""

    subject: Subject
    metrics: tuple[str, ...] = ("queue",)

    def read(self, now: Moment) -> list[Reading]:
        return [Reading("queue", now.wall, float(self.subject.target.id.pid))]


class Raising(Good):
    def read(self, now: Moment) -> list[Reading]:
        raise RuntimeError("no queue today")


class Answering(Good):
    """Answers what the class attribute says."""

    answer: Any = None

    def read(self, now: Moment) -> list[Reading]:
        found: list[Reading] = type(self).answer
        return found


class Taking(Good):
    def __init__(self, subject: Subject) -> None:
        super().__init__(subject, ("queue", "cpu"))


class Misnamed(Good):
    def __init__(self, subject: Subject) -> None:
        super().__init__(subject, ("Queue {}",))


def unmakeable(subject: Subject) -> Good:
    raise KeyError("settings")


def _read(plugin: EntryPoint) -> tuple[list[Reading], dict[ProbeFault, int]]:
    registry = load_registry([plugin])
    with build_probes(target_of(os.getpid()), registry) as probes:
        readings = [r for p in probes.probes[len(BUILT_IN) :] for _ in range(2) for r in p.read(NOW)]
    return readings, dict(registry.faults)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points name modules; this one must be found under its name."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Good.__module__])


def test_a_good_plugin_is_read_like_our_own() -> None:
    """It is given the subject and its readings come through."""
    readings, faults = _read(_plugin("queue", "Good"))
    assert readings == [Reading("queue", 5.0, float(os.getpid()))] * 2
    assert faults == {}


def test_a_plugin_that_raises_when_read_is_an_error_reading_and_counted() -> None:
    """Two ticks, two error readings, one fault counted twice."""
    readings, faults = _read(_plugin("queue", "Raising"))
    assert readings == [Reading("queue", 5.0, None, "RuntimeError: no queue today")] * 2
    assert faults == {ProbeFault("queue", "read", "RuntimeError: no queue today"): 2}


@pytest.mark.parametrize(
    ("plugin", "stage", "words"),
    [
        (_plugin("queue", "missing"), "load", "AttributeError"),
        (EntryPoint("queue", "no_such_module_at_all", GROUP), "load", "ModuleNotFoundError"),
        (_plugin("cpu", "Good"), "load", "already"),
        (_plugin("queue", "unmakeable"), "make", "KeyError"),
        (_plugin("queue", "Taking"), "make", "the metric cpu is published by another probe"),
        (_plugin("queue", "Misnamed"), "make", "is no metric name"),
    ],
)
def test_a_plugin_that_cannot_be_had_is_shown(plugin: EntryPoint, stage: str, words: str) -> None:
    """At import, at construction, or by a name that is taken: counted, and all our own probes are there."""
    readings, faults = _read(plugin)
    assert readings == []
    ((fault, count),) = faults.items()
    assert (fault.probe, fault.stage, count) == (plugin.name, stage, 1)
    assert words in fault.message


@pytest.mark.parametrize(
    "answer",
    [None, 7, ["text"], [Reading("other", 1.0, 1.0)], [Reading("queue", 1.0, "7")], [object()]],  # type: ignore[arg-type]
)
def test_nonsense_from_a_plugin_is_an_error(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no reading of its own metrics is refused, or made a number."""
    monkeypatch.setattr(Answering, "answer", answer)
    readings, _ = _read(_plugin("queue", "Answering"))
    for reading in readings:
        assert reading.metric == "queue"
        assert reading.error or isinstance(reading.value, float)


@pytest.mark.parametrize(
    ("said", "kept"), [(7.5, 7.5), (-3.0, 0.0), (float("inf"), 0.0), (float("nan"), 0.0)]
)
def test_how_late_a_value_is_may_be_said(said: float, kept: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that gives what it read at an earlier tick says so; nonsense leaves the lateness of the tick."""
    monkeypatch.setattr(Answering, "answer", [Reading("queue", 1.0, 2.0, late=said)])
    readings, _ = _read(_plugin("queue", "Answering"))
    assert [reading.late for reading in readings] == [kept, kept]


def test_infinite_values_and_endless_answers_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not-a-number is an error; of a long answer only the first 64 are taken."""
    monkeypatch.setattr(Answering, "answer", [Reading("queue", 1.0, float("nan"))] * 1000)
    readings, _ = _read(_plugin("queue", "Answering"))
    assert len(readings) == 2 * MAX_READINGS
    assert all(reading.error == "measured nan, which is no number" for reading in readings)


def test_a_process_that_is_not_the_target_has_no_probes() -> None:
    """The pid is there with another start time: refused before anything is read."""
    target = target_of(os.getpid())
    other = msgspec.structs.replace(target, start_time=target.start_time + 1)
    with pytest.raises(ProcessLookupError):
        build_probes(other, load_registry([]))


def test_installed_entry_points_are_asked() -> None:
    """Without a list of its own the registry asks what is installed."""
    assert set(BUILT_IN) <= set(load_registry().factories)
