"""From a firing to a sealed incident, or to nothing at all and a reason."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.capture.runner import CaptureRunner
from sentinel_agent.config.settings import CaptureSettings
from sentinel_agent.core.budget import Budget
from sentinel_agent.core.event import IncidentLost, IncidentOpened, IncidentSealed
from sentinel_agent.core.rule import CaptureSpec
from sentinel_agent.errors import StoreError
from sentinel_agent.findings.load import read_findings
from sentinel_agent.probes.base import Moment
from sentinel_agent.responder import DiskThread, Firing, Responder
from sentinel_agent.store.store import Store
from tests.agent.support import Gauge, Made, captures, series_of, until
from tests.store.helpers import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sentinel_agent.core.event import Event
    from sentinel_agent.sampler import TargetSeries
    from sentinel_agent.testing import FakeClock


class Scene:
    """A responder on a real store, with what it told."""

    def __init__(self, folder: Path, clock: FakeClock, *made: Made, incidents_per_hour: int = 10) -> None:
        self.clock = clock
        self.events: list[Event] = []
        self.disk = DiskThread()
        self.store = Store(folder, SETTINGS, clock).open()
        self.gauge = Gauge({"cpu": 95.0, "rss": 5.0})
        self.series: TargetSeries = series_of(self.gauge)
        self.responder = Responder(
            store=self.store,
            disk=self.disk,
            runner=CaptureRunner(captures(*made), CaptureSettings(), clock=clock),
            budget=Budget(concurrency=4, incidents_per_hour=incidents_per_hour, bytes_per_hour=10**6),
            clock=clock,
            host="here",
            interval=1.0,
            window_before=5.0,
            tell=self.events.append,
        )

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(1.0)
            self.series.read(Moment(wall=self.clock.wall(), monotonic=self.clock.monotonic()))

    def firing(self, *kinds: str, **changes: Any) -> Firing:
        facts: dict[str, Any] = {
            "rule": "spike",
            "reason": "above_abs",
            "summary": "cpu 95%: above 90%",
            "metric": "cpu",
            "value": 95.0,
            "baseline": None,
            "thresholds": {"abs": 90.0},
            "time": self.clock.wall(),
            "captures": tuple(CaptureSpec(kind) for kind in kinds),
            "cooldown": 60.0,
        }
        return Firing(**(facts | changes))

    def told(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    def lost(self) -> str:
        (event,) = [event for event in self.events if isinstance(event, IncidentLost)]
        return event.why

    def left(self) -> list[str]:
        """Everything in the incidents folder, temporary names too."""
        return [path.name for path in (self.store.data_dir / "incidents").iterdir()]

    def close(self) -> None:
        self.series.close()
        self.disk.close()


@pytest.fixture
def scenes(tmp_path: Path, fake_clock: FakeClock) -> Iterator[Any]:
    """Makes scenes and closes them."""
    made: list[Scene] = []

    def make(*captures: Made, **keys: Any) -> Scene:
        made.append(Scene(tmp_path, fake_clock, *captures, **keys))
        return made[-1]

    yield make
    for scene in made:
        scene.close()


async def test_a_firing_becomes_an_incident_that_says_what_was_seen(scenes: Any) -> None:
    """Opened and sealed are told in this order; value, thresholds, time and the end of the cooldown are in it."""
    scene = scenes(Made())
    scene.tick(3)
    incident = await scene.responder.respond(scene.firing("stacks"), scene.series)
    assert scene.told() == ["IncidentOpened", "IncidentSealed"]
    opened, sealed = scene.events
    assert isinstance(opened, IncidentOpened)
    assert isinstance(sealed, IncidentSealed)
    assert opened.id == incident.id == sealed.incident.id
    assert scene.store.read(incident.id) == incident
    assert (incident.value, incident.thresholds, incident.unit) == (95.0, {"abs": 90.0}, "percent")
    assert incident.cooldown_until == incident.sealed_time + 60.0
    assert [artifact.name for artifact in incident.artifacts] == [
        "stacks.txt",
        "series.json",
        "findings.json",
    ]
    assert scene.responder.statistics.sealed == 1


async def test_the_window_covers_what_it_says(scenes: Any) -> None:
    """Of ten readings, one a second, the five seconds before the trigger are kept; the window begins at the first."""
    scene = scenes(Made())
    scene.tick(10)
    incident = await scene.responder.respond(scene.firing("stacks"), scene.series)
    document = json.loads((scene.store.path(incident.id) / "series.json").read_bytes())
    times = document["metrics"]["cpu"]["times"]
    assert times == [incident.time - seconds for seconds in (5, 4, 3, 2, 1, 0)]
    assert (incident.window.start, incident.window.end) == (times[0], incident.time)
    assert (document["start"], document["end"]) == (times[0], incident.time)


async def test_readings_that_come_during_the_captures_are_in_the_window(scenes: Any) -> None:
    """The series is taken last, so that it shows the end of a long profile too."""
    made = Made()
    scene = scenes(made)
    scene.tick(2)

    async def two_ticks() -> None:
        scene.tick(2)

    made.doing = two_ticks  # type: ignore[assignment]  # anything that can be awaited
    incident = await scene.responder.respond(scene.firing("stacks"), scene.series)
    document = json.loads((scene.store.path(incident.id) / "series.json").read_bytes())
    assert document["metrics"]["cpu"]["times"][-1] == incident.time + 2
    assert incident.window.end == incident.time + 2


async def test_what_could_not_be_read_is_named_in_the_window(scenes: Any) -> None:
    scene = scenes(Made())
    scene.tick()
    scene.gauge.values["rss"] = PermissionError(13, "Permission denied", "/proc/1/smaps")
    scene.tick()
    found = scene.responder.window(scene.series, scene.clock.wall())
    assert "PermissionError" in found.errors["rss"]


async def test_a_target_without_a_reading_has_a_window_of_no_length(scenes: Any) -> None:
    scene = scenes(Made())
    now = scene.clock.wall()
    found = scene.responder.window(scene.series, now)
    assert (found.start, found.end) == (now, now)


async def test_spared_keeps_the_readings_only_and_every_other_capture_says_why(scenes: Any) -> None:
    made = Made()
    scene = scenes(made)
    scene.tick()
    incident = await scene.responder.respond(
        scene.firing("stacks", "profile", spared="cpu_gate"), scene.series
    )
    assert made.plans == []
    assert [(report.kind, report.status, report.reason) for report in incident.captures] == [
        ("stacks", "skipped", "cpu_gate"),
        ("profile", "skipped", "cpu_gate"),
        ("series", "ok", ""),
    ]
    assert [artifact.name for artifact in incident.artifacts] == ["series.json", "findings.json"]


async def test_a_budget_that_is_used_up_is_told_and_counted_and_nothing_is_written(scenes: Any) -> None:
    scene = scenes(Made(), incidents_per_hour=1)
    assert await scene.responder.respond(scene.firing(), scene.series)
    assert await scene.responder.respond(scene.firing(), scene.series) is None
    assert scene.lost() == (
        "the budget is used up: 1 incidents in the last hour (capture.max_incidents_per_hour 1)"
    )
    assert (scene.responder.statistics.sealed, scene.responder.statistics.lost) == (1, 1)
    assert scene.responder.statistics.last_lost == scene.lost()
    assert len(scene.left()) == 1


@pytest.mark.parametrize("step", ["begin", "seal"])
async def test_a_store_that_fails_leaves_nothing_half_and_is_told(
    step: str, scenes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next incident finds the budget free again."""
    scene = scenes(Made())
    with monkeypatch.context() as patch:
        patch.setattr(scene.store, step, _raising(StoreError("the disk is full")))
        assert await scene.responder.respond(scene.firing("stacks"), scene.series) is None
    assert scene.lost() == "the disk is full"
    assert scene.left() == []
    assert scene.responder.budget.statistics(scene.clock.monotonic()).running == 0
    assert await scene.responder.respond(scene.firing("stacks"), scene.series) is not None


async def test_cancelled_in_the_middle_of_a_capture_it_discards_the_incident_whole(scenes: Any) -> None:
    """Nothing is left in the folder, the loss is told, and the budget is free again."""
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    scene = scenes(Made(doing=hang))  # type: ignore[arg-type]  # anything that can be awaited
    task = asyncio.create_task(scene.responder.respond(scene.firing("stacks"), scene.series))
    await begun.wait()
    assert scene.left()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.left() == []
    assert scene.lost() == "it was ended before its captures were"
    assert scene.responder.budget.statistics(scene.clock.monotonic()).running == 0


async def test_cancelled_while_its_folder_is_made_it_leaves_no_folder(
    scenes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk is just making the folder, which cannot be stopped: the folder goes again, and so does its lock."""
    scene = scenes(Made())
    held = _Held(scene.store.begin)
    monkeypatch.setattr(scene.store, "begin", held)
    task = asyncio.create_task(scene.responder.respond(scene.firing("stacks"), scene.series))
    await until(held.begun.is_set)
    task.cancel()
    held.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.left() == []
    assert not held.answers[0].open
    assert scene.told() == ["IncidentLost"]


async def test_cancelled_while_it_is_sealed_the_incident_is_saved_and_told(
    scenes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk and what is told are never two things."""
    scene = scenes(Made())
    held = _Held(scene.store.seal)
    monkeypatch.setattr(scene.store, "seal", held)
    task = asyncio.create_task(scene.responder.respond(scene.firing("stacks"), scene.series))
    await until(held.begun.is_set)
    task.cancel()
    held.release.set()
    incident = await task
    assert scene.left() == [incident.id]
    assert scene.told() == ["IncidentOpened", "IncidentSealed"]
    assert scene.responder.statistics.sealed == 1


class _Held:
    """A call to the disk that begins, and ends when it may."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.begun = threading.Event()
        self.release = threading.Event()
        self.answers: list[Any] = []

    def __call__(self, *arguments: Any) -> Any:
        self.begun.set()
        assert self.release.wait(10)
        self.answers.append(self._call(*arguments))
        return self.answers[-1]


def _raising(error: Exception) -> Any:
    def fail(*_: object) -> None:
        raise error

    return fail


async def test_what_was_found_is_sealed_with_the_incident_and_the_next_one_knows_it(scenes: Any) -> None:
    """`findings.json` is an artifact; a second incident of the rule on the role says that there was one before."""
    scene = scenes(Made())
    scene.tick(3)
    first = await scene.responder.respond(scene.firing("stacks"), scene.series)
    scene.tick(1)
    second = await scene.responder.respond(scene.firing("stacks"), scene.series)
    before = read_findings(scene.store.path(first.id), first)
    after = read_findings(scene.store.path(second.id), second)
    assert "seen_before" in before.nothing_found
    assert [each.text for each in after.findings] == [
        "rule spike fired once before on this role in the last 1s, for other or unknown reasons"
    ]
    assert {each.check: each.why for each in after.not_known}["tasks"] == "tasks was not captured"


async def test_findings_that_cannot_be_written_cost_no_incident(scenes: Any, monkeypatch: Any) -> None:
    """The incident is sealed without them."""

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sentinel_agent.responder.write_findings", full)
    scene = scenes(Made())
    scene.tick(3)
    incident = await scene.responder.respond(scene.firing("stacks"), scene.series)
    assert [artifact.name for artifact in incident.artifacts] == ["stacks.txt", "series.json"]
