"""Stalls of real event loops and pauses of real collectors: never overstated, and short of the truth by a look or two."""

from __future__ import annotations

import json
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.cpython.process import Interpreter, open_process
from sentinel_agent.probes.pulse import NOT_RECORDED, OPAQUE, Pulse, Stretches
from sentinel_agent.recorder.flight import KernelStates

if TYPE_CHECKING:
    from tests.cpython.conftest import StartTarget, Target

PROGRAM = str(Path(__file__).with_name("pulse_program.py"))
PERIOD = 0.02
FOREIGN_LOOP = """
import asyncio, selectors, threading, time
class Loop(asyncio.SelectorEventLoop):  # stands for a loop in C: asyncio's runner, and none of asyncio's loop
    def run_until_complete(self, future):
        print("{}", flush=True)
        time.sleep(60)
asyncio.set_event_loop_policy(type("Policy", (asyncio.DefaultEventLoopPolicy,), {"new_event_loop": lambda _: Loop()})())
asyncio.run(asyncio.sleep(0))
"""


class Watch:
    """Looks at a target as the flight recorder does; `gap` is the longest time between two looks."""

    def __init__(self, target: Target) -> None:
        self._process = target.process
        self.pulse = Pulse()
        self.interpreter: Interpreter = open_process(target.pid)
        self.gap = 0.0

    def during(self, words: str) -> Any:
        """Look from before the target is told something until it has answered; its answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin
        assert stdout
        told, last = False, _now()
        while not (told and select.select([stdout], [], [], PERIOD)[0]):
            now = _now()
            self.gap, last = max(self.gap, now - last), now
            self.pulse.see(self.interpreter, self.interpreter.sample(), now, clock=_now)
            if not told:
                stdin.write(f"{words}\n".encode())
                stdin.flush()
                told = True
        self.gap = max(self.gap, _now() - last)
        return json.loads(stdout.readline())


def _now() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)  # the clock of the target's own stamps


def test_a_blocked_loop_is_as_long_as_it_says_itself(python: Path, start_target: StartTarget) -> None:
    """Asleep or at work, in one callback: the stall is that long, less two looks at most, and never longer."""
    watch = Watch(start_target(python, PROGRAM))
    for words in ("block 0.3", "burn 0.3"):
        watch.gap = 0.0
        start, end = watch.during(words)
        stall = watch.pulse.stall()
        assert isinstance(stall, float)
        assert end - start - 2 * watch.gap <= stall <= end - start
        watch.during("idle 0.1")
        assert watch.pulse.stall() == 0.0


def test_a_busy_loop_is_no_stalled_one(python: Path, start_target: StartTarget) -> None:
    """A whole core in callbacks of a millisecond, over and over the same one: no stall longer than the longest of them."""
    watch = Watch(start_target(python, PROGRAM))
    for words in ("one 0.7", "many 0.7", "idle 0.3"):
        start, end = watch.during(words)
        stall = watch.pulse.stall()
        assert isinstance(stall, float)
        assert stall <= end - start


def test_the_collector_counts_as_the_target_does(python: Path, start_target: StartTarget) -> None:
    """At a quiet point what is read equals `gc.get_stats()`, generation by generation."""
    watch = Watch(start_target(python, PROGRAM))
    own = watch.during("stats")
    state = watch.interpreter.collector().read()
    assert not state.collecting
    assert [
        {"collections": one.collections, "collected": one.collected, "uncollectable": one.uncollectable}
        for one in state.generations
    ] == [{name: one[name] for name in ("collections", "collected", "uncollectable")} for one in own]


def test_a_long_collection_is_as_long_as_it_says_itself(python: Path, start_target: StartTarget) -> None:
    """One collection of 0.4 s is a pause of that length, less two looks at most, and that share of time; without one 0."""
    watch = Watch(start_target(python, PROGRAM))
    watch.during("idle 0.1")
    assert watch.pulse.pause() == watch.pulse.share() == 0.0
    watch.gap, began = 0.0, _now()
    start, end = watch.during("collect 0.4")
    pause = watch.pulse.pause()
    assert isinstance(pause, float)
    assert 0.4 - 2 * watch.gap <= pause <= end - start
    share = watch.pulse.share()
    assert isinstance(share, float)
    assert share / 100 * (_now() - began) == pytest.approx(end - start, abs=4 * watch.gap)


def test_of_a_loop_that_cannot_be_seen_only_sleep_is_proven(python: Path, start_target: StartTarget) -> None:
    """A loop that is none of asyncio's own gives a reason instead of a figure, until its thread sleeps from look to look."""
    if python.name == "python3.15":
        pytest.skip("3.15 has no event loop policies, with which the test makes such a loop")
    target = start_target(python, "-c", FOREIGN_LOOP)
    watch = Watch(target)
    states = KernelStates(target.pid)
    for number in range(3):
        watch.pulse.see(watch.interpreter, watch.interpreter.sample(), number * 0.1, lambda _: None)
    assert watch.pulse.stall() == OPAQUE
    deadline = _now() + 30
    while states.asleep(target.pid) is None or states.asleep(target.pid) != states.asleep(target.pid):
        assert _now() < deadline, "the target does not go to sleep"
    for number in range(3, 6):  # in seconds of our own making
        threads = watch.interpreter.sample()
        watch.pulse.see(watch.interpreter, threads, number * 0.1, lambda _: states.asleep(target.pid))
    assert watch.pulse.stall() == pytest.approx(0.2)
    watch.pulse.see(watch.interpreter, watch.interpreter.sample(), 0.6, lambda _: 10**12)  # it has run since
    assert watch.pulse.stall() == OPAQUE
    states.close()


def test_without_a_loop_and_without_a_recorder_there_is_no_figure(
    python: Path, start_target: StartTarget
) -> None:
    """A program without asyncio has no stall; where nobody looked, that is the reason."""
    watch = Watch(start_target(python, "-c", "print('{}', flush=True); input()"))
    assert watch.pulse.stall() == watch.pulse.pause() == watch.pulse.share() == NOT_RECORDED
    watch.pulse.see(watch.interpreter, watch.interpreter.sample(), _now())
    assert watch.pulse.stall() is None
    assert watch.pulse.stall() == NOT_RECORDED


def test_a_stretch_that_lasts_goes_on_over_the_ticks() -> None:
    """Each tick hears how long it is by then; another thing, or nothing, begins afresh."""
    stretches = Stretches()
    for now in (1.0, 1.1, 1.2):
        stretches.see(7, "a", now)
    assert stretches.take() == pytest.approx(0.2)
    stretches.see(7, "a", 1.5)
    assert stretches.take() == pytest.approx(0.5)
    stretches.see(7, "b", 1.6)
    assert stretches.take() == 0.0
    stretches.see(7, None, 1.7)
    stretches.see(7, "b", 1.8)
    assert stretches.take() == 0.0
    stretches.keep({8})
    stretches.see(7, "b", 1.9)
    assert stretches.take() == 0.0


def test_a_look_that_took_long_makes_no_stretch_longer() -> None:
    """What began during the first look counts from its end, and up to the begin of the last."""
    stretches = Stretches()
    stretches.see(7, "a", 1.0, 1.4)
    stretches.see(7, "a", 1.5, 1.9)
    assert stretches.take() == pytest.approx(0.1)
