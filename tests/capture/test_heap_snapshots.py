"""The census of healthy times: when it is taken, what it may cost, and how an incident is compared with it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import pytest

from sentinel_agent.capture import heap_snapshots as module
from sentinel_agent.capture.heap import HeapCapture, HeapCensus, HeapDocument, TypeTotal
from sentinel_agent.capture.heap_snapshots import PERIOD, WARM_UP, HeapSnapshots, look_at
from sentinel_agent.capture.task_snapshots import Watched
from sentinel_agent.clock import SystemClock
from sentinel_agent.core.model import TargetId
from sentinel_agent.core.rule import CaptureSpec
from sentinel_agent.errors import TargetError
from sentinel_agent.findings.base import Finding
from sentinel_agent.findings.judge import CHECKS
from tests.capture.targets import plan_for, started, target_of
from tests.findings.facts import facts

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.clock import Clock
    from sentinel_agent.testing import FakeClock

TARGET = TargetId(7, 70, 700)


@dataclass
class Made:
    """A target that is watched and counted: what a count gives, what it costs, and when each was made."""

    clock: FakeClock
    healthy: bool = True
    answer: HeapCensus | Exception = field(
        default_factory=lambda: HeapCensus(1.0, 5, (TypeTotal("a", 5, 50),), 0, False)
    )
    cost: float = 0.01
    counted: list[float] = field(default_factory=list)

    def watched(self) -> list[Watched]:
        return [Watched(TARGET, None, self.healthy)]

    def look(self, _: TargetId, clock: Clock) -> tuple[HeapCensus, float]:
        self.counted.append(clock.monotonic())
        if isinstance(self.answer, Exception):
            raise self.answer
        return msgspec.structs.replace(self.answer, time=clock.wall()), self.cost

    def snapshots(self, overhead: float = 0.01) -> HeapSnapshots:
        return HeapSnapshots(self.clock, overhead, self.watched, self.look)


async def rounds(made: Made, snapshots: HeapSnapshots, seconds: float, step: float = 30.0) -> None:
    for _ in range(round(seconds / step)):
        await snapshots.round()
        made.clock.advance(step)


async def test_a_healthy_target_is_counted_now_and_then_and_the_oldest_kept_is_compared_with(
    fake_clock: FakeClock,
) -> None:
    """Not while it starts, not while a rule is about to fire, and each ten minutes; three are kept."""
    made = Made(fake_clock)
    snapshots = made.snapshots()
    began = fake_clock.monotonic()
    assert snapshots.before(TARGET) == "its objects were not counted before"
    await rounds(made, snapshots, WARM_UP)
    assert made.counted == []
    made.healthy = False
    await rounds(made, snapshots, PERIOD)
    assert made.counted == []
    made.healthy = True
    await rounds(made, snapshots, 4.5 * PERIOD)
    assert len(made.counted) == 5
    assert made.counted[0] - began == pytest.approx(WARM_UP + PERIOD)
    assert {round(b - a) for a, b in zip(made.counted, made.counted[1:], strict=False)} == {PERIOD}
    kept = snapshots.before(TARGET)
    assert isinstance(kept, HeapCensus)
    assert fake_clock.wall() - kept.time == pytest.approx(2.5 * PERIOD)


async def test_counts_move_apart_until_they_keep_to_their_share(fake_clock: FakeClock) -> None:
    """A count of three seconds, where all of the agent may cost one percent of a core: one in 50 minutes."""
    made = Made(fake_clock, cost=3.0)
    await rounds(made, made.snapshots(0.01), 2 * 3000 + WARM_UP)
    assert len(made.counted) == 2
    assert made.counted[1] - made.counted[0] == pytest.approx(3000)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (TargetError("it may not be read"), "could not be counted before: it may not be read"),
        (HeapCensus(1.0, 9, (), 0, True), "more than 500000 objects"),
        (HeapCensus(1.0, 9, (), 2, False), "changed under the walk"),
    ],
)
async def test_what_cannot_be_counted_is_no_baseline_and_says_why(
    answer: HeapCensus | Exception, words: str, fake_clock: FakeClock
) -> None:
    """A count that is not whole would show growth that is none."""
    made = Made(fake_clock, answer=answer)
    snapshots = made.snapshots()
    await rounds(made, snapshots, WARM_UP + 60)
    why = snapshots.before(TARGET)
    assert isinstance(why, str)
    assert words in why


def test_only_the_most_frequent_types_are_kept_and_the_rest_is_bounded() -> None:
    """Of 400 types 300; of each other one there were at most as many as of the largest left out."""
    census = HeapCensus(1.0, 9, tuple(TypeTotal(f"t{n}", n, 1) for n in range(400)), 0, False)
    kept = module._largest(census)
    assert (len(kept.types), kept.left_out) == (300, 99)


GROWS = """
import sys
class Session: pass
kept = [[] for _ in range(3000)]
print("ready", flush=True)
sys.stdin.readline()
kept += [Session() for _ in range(5000)]
print("grown", flush=True)
sys.stdin.readline()
"""


async def test_what_leaked_long_before_the_trigger_is_named(tmp_path: Path) -> None:
    """A live process that grew and grows no more: the pair shows nothing, the census from before names the type."""
    with started(sys.executable, "-c", GROWS) as process:
        census, cost = look_at(target_of(process.pid).id, SystemClock())
        assert cost > 0
        assert process.stdin
        assert process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "grown\n"
        spec = CaptureSpec("heap", duration=0.2)
        plan = plan_for(target_of(process.pid), tmp_path, spec, heap_before=lambda: module._largest(census))
        await HeapCapture().capture(plan)
    document = msgspec.json.decode((tmp_path / "heap.json").read_bytes(), type=HeapDocument)
    assert not any(each.name == "Session" for each in document.growth)
    assert [each.count for each in document.since_baseline if each.name == "Session"] == [5000]
    answer = CHECKS["object_growth"](facts("rss", heap=document))
    assert isinstance(answer, Finding)
    assert answer.text.startswith("5000 more objects of type Session than ")
    assert answer.text.endswith(" ago, when all was well")
