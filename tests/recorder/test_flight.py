"""A live target is recorded: against what it says of itself, and through its end."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.config.settings import RecorderSettings
from sentinel_agent.core.model import Role, TargetId
from sentinel_agent.probes.live import LiveReader
from sentinel_agent.recorder.deck import CLOSED_SECONDS, FlightDeck
from sentinel_agent.recorder.flight import Flight, KernelStates
from sentinel_agent.recorder.ring import Ring
from sentinel_agent.recorder.sample import Tick
from sentinel_agent.recorder.spool import Spool
from sentinel_agent.recorder.window import window
from sentinel_agent.target.identity import identify
from sentinel_agent.testing import FakeClock, make_target
from tests.target.fakeproc import line, running, tell

if TYPE_CHECKING:
    from pathlib import Path

ROLE = Role("shop", "here")
PROGRAM = """
import threading, sys
def rest(): threading.Event().wait()
def spin():
    while True:
        for i in range(1000): i * i
threading.Thread(target=rest, name="resting", daemon=True).start()
print(*(t.native_id for t in threading.enumerate()), flush=True)
spin()
"""

WAITS_TWICE = """
import sys
def first(): sys.stdin.readline()
def second(): sys.stdin.readline()
print(flush=True)
first()
print(flush=True)
second()
"""


def opened(pid: int) -> LiveReader:
    """A reader of the process, open."""
    reader = LiveReader(identify(pid))
    reader.open()
    assert reader.interpreter is not None, reader.why_not
    return reader


def wait_spinning(reader: LiveReader) -> None:
    """Until the main thread is where the test wants it; a real process, so real time."""
    deadline = time.monotonic() + 10  # noqa: TID251 - as above
    while time.monotonic() < deadline:  # noqa: TID251 - as above
        assert reader.interpreter is not None
        if any(frame.function == "spin" for t in reader.interpreter.sample() for frame in t.stack.frames):
            return
    raise AssertionError("the program did not get to work")


def test_stacks_names_and_states_are_those_of_the_target() -> None:
    """The busy thread is on a CPU in `spin`, the resting one is not and rests in `rest`; native ids are its own."""
    with running(PROGRAM) as child:
        native_ids = [int(word) for word in line(child).split()]
        reader = opened(child.pid)
        wait_spinning(reader)
        flight = Flight(child.pid, reader, Ring(ROLE, identify(child.pid), 1))
        for look in range(50):
            assert flight.sample(1000.0 + look * 0.05, look * 0.05, 0.05)
        assert flight.cost > 0
        flight.close()
    record = window(flight.ring.snapshot(), 1000.0, 1010.0).record
    assert sorted(thread.native_id for thread in record.threads) == sorted(native_ids)
    assert {thread.name for thread in record.threads} == {"MainThread", "resting"}
    for sample in record.samples:
        functions = {record.frames[index].function for index in sample.stack}
        name = record.threads[sample.thread].name
        assert ("spin" in functions) == (name == "MainThread")
        assert ("rest" in functions) == (name == "resting")
        if name == "resting":
            assert sample.on_cpu is False
    on_cpu = sum(sample.weight for sample in record.samples if sample.on_cpu)
    main = sum(s.weight for s in record.samples if record.threads[s.thread].name == "MainThread")
    assert on_cpu >= 0.9 * main  # runnable is on CPU; between two states it may be seen otherwise


def test_the_end_of_the_target_ends_the_recording_and_leaves_the_ring() -> None:
    """A look at a process that is gone is none, raises nothing, and what was seen before stays."""
    with running(PROGRAM) as child:
        line(child)
        reader = opened(child.pid)
        flight = Flight(child.pid, reader, Ring(ROLE, identify(child.pid), 1))
        assert flight.sample(1000.0, 0.0, 0.05)
        child.kill()
        child.wait()
        flight.sample(1000.05, 0.05, 0.05)
        reader.close()
        assert not flight.sample(1000.1, 0.1, 0.05)
        flight.close()
    assert flight.ring.statistics().whole >= 2


def test_a_reader_that_is_not_open_is_no_look() -> None:
    """Nothing is put into the ring, and nothing is counted as failed."""
    flight = Flight(1, LiveReader(TargetId(1, 1)), Ring(ROLE, TargetId(1, 1), 1))
    assert not flight.sample(1000.0, 0.0, 0.05)
    assert flight.ring.statistics().failed == 0


def test_kernel_states_of_threads_that_are_gone_are_not_known() -> None:
    """No thread, no state; descriptors of threads that ended are given back."""
    states = KernelStates(1 << 22)
    assert states.on_cpu(None) is None
    assert states.on_cpu(12345) is None
    states.close()


def test_a_target_that_stands_still_is_not_read_again_and_one_that_ran_is() -> None:
    """While it waits its memory is read no more and every look shows it there; after it has run it is read anew."""
    with running(WAITS_TWICE) as child:
        line(child)
        reader = opened(child.pid)
        flight = Flight(child.pid, reader, Ring(ROLE, identify(child.pid), 1))
        first = looks_until_still(flight, reader)
        tell(child)
        line(child)
        second = looks_until_still(flight, reader)
        flight.close()
    record = window(flight.ring.snapshot(), 1000.0, 2000.0).record
    assert record.samples[0].stack != record.samples[-1].stack
    shown = [record.frames[sample.stack[0]].function for sample in (record.samples[0], record.samples[-1])]
    assert shown == ["first", "second"]
    assert sum(sample.count for sample in record.samples) == first + second


def looks_until_still(flight: Flight, reader: LiveReader) -> int:
    """How many looks it takes until three in a row need no reading call; they are 50 ms of the recording apart."""
    assert reader.interpreter is not None
    deadline = time.monotonic() + 30  # noqa: TID251 - a real process, so real time
    looks = still = 0
    while still < 3:
        assert time.monotonic() < deadline, "it is read again and again"  # noqa: TID251 - as above
        before, at = reader.interpreter.memory.calls, flight.ring.statistics().whole
        assert flight.sample(1000.0 + at * 0.05, at * 0.05, 0.05)
        still = still + 1 if reader.interpreter.memory.calls == before else 0
        looks += 1
    return looks


async def test_the_deck_looks_at_its_rate_and_a_new_agent_reads_what_an_old_one_spooled(
    tmp_path: Path,
) -> None:
    """About 19 looks a second; what was spooled is in the window of a deck that never saw the target."""
    clock = FakeClock()
    spool = Spool(tmp_path, min_free_bytes=0)
    deck = FlightDeck(clock, RecorderSettings(), 1.0, lambda _: 0.0, spool)
    with running(PROGRAM) as child:
        line(child)
        reader = opened(child.pid)
        wait_spinning(reader)
        target = make_target(identify(child.pid), ROLE)
        deck.add(target, reader)
        started = clock.monotonic()
        await run_for(deck, clock, 10.0)
        ring = deck.ring(target.id)
        assert ring is not None
        looks = ring.statistics().whole / 2
        assert looks / (clock.monotonic() - started) == pytest.approx(19.0, rel=0.1)

        async def write(to: Spool, batches: object, now: float) -> None:
            for batch in batches:  # type: ignore[attr-defined]  # the batches of the ring
                assert to.write(batch, now)

        await deck.spool(write)
        deck.remove(child.pid)
        assert (
            deck.ring(target.id) is ring
        )  # the last stacks of a process are what one asks for after its end
        await run_for(deck, clock, 31.0)
        assert deck.ring(target.id) is None
    other = FlightDeck(clock, RecorderSettings(), 1.0, lambda _: 0.0, Spool(tmp_path, min_free_bytes=0))
    seen = await other.window(target, None, clock.wall() - 50, clock.wall())
    names = {seen.record.frames[index].function for sample in seen.record.samples for index in sample.stack}
    assert {"spin", "rest"} <= names
    successor = make_target(TargetId(child.pid, target.start_time + 1), ROLE)
    nothing = await other.window(successor, None, clock.wall() - 50, clock.wall())
    assert nothing.record.samples == ()  # who fills the role after it is another process


async def test_only_so_many_rings_of_ended_targets_are_held_and_each_is_still_spooled(tmp_path: Path) -> None:
    """A crash loop takes bounded memory; the last look at a target goes to the disk although it has ended."""
    clock = FakeClock()
    deck = FlightDeck(clock, RecorderSettings(), 1.0, lambda _: 0.0, Spool(tmp_path, min_free_bytes=0))
    for pid in range(1, 20):
        target = make_target(TargetId(pid, pid), ROLE)
        deck.add(target, LiveReader(target.id))
        ring = deck.ring(target.id)
        assert ring is not None
        ring.put(Tick(clock.wall(), clock.monotonic(), 0.05, ()))
        deck.remove(pid)
    held = [pid for pid in range(1, 20) if deck.ring(TargetId(pid, pid))]
    assert held == list(range(20 - len(held), 20))
    assert len(held) <= 8
    written: list[object] = []

    async def write(_: Spool, batches: object, __: float) -> None:
        written.extend(batches)  # type: ignore[arg-type]  # the batches of the rings

    await deck.spool(write)
    await deck.spool(write)
    assert len(written) == len(held)


async def test_a_target_that_cannot_be_read_is_tried_now_and_then() -> None:
    """The deck does not spin on a reader that is not open."""
    clock = FakeClock()
    deck = FlightDeck(clock, RecorderSettings(), 0.01, lambda _: 0.0, None)
    deck.add(make_target(TargetId(1, 1), ROLE), LiveReader(TargetId(1, 1)))
    sleeps = 0
    real = clock.sleep

    async def counted(seconds: float) -> None:
        nonlocal sleeps
        sleeps += 1
        await real(seconds)

    clock.sleep = counted  # type: ignore[method-assign]  # counts the loop's rounds
    await run_for(deck, clock, 10.0)
    assert sleeps <= 10.0 / CLOSED_SECONDS + 2


async def run_for(deck: FlightDeck, clock: FakeClock, seconds: float) -> None:
    """Let the deck's loop run for so long of the fake time."""
    end = clock.monotonic() + seconds
    task = asyncio.create_task(deck.run())
    while clock.monotonic() < end:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_fault_of_ours_ends_one_recording_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unforeseen error while one target is read leaves the others recorded and the loop alive."""
    clock = FakeClock()
    told: list[str] = []
    deck = FlightDeck(clock, RecorderSettings(), 1.0, lambda _: 0.0, None, told.append)
    with running(PROGRAM) as child:
        line(child)
        deck.add(make_target(identify(child.pid), ROLE), opened(child.pid))
        deck.add(make_target(TargetId(1, 1), ROLE), LiveReader(TargetId(1, 1)))
        real = Flight.sample

        def faulty(flight: Flight, *arguments: float) -> bool:
            if flight is not deck._seats[child.pid].flight:
                raise KeyError("a fault of ours")
            return real(flight, *arguments)

        monkeypatch.setattr(Flight, "sample", faulty)
        await run_for(deck, clock, 3.0)
        assert list(deck._seats) == [child.pid]
        ring = deck.ring(identify(child.pid))
        assert ring is not None
        assert ring.statistics().whole > 20
        deck.remove(child.pid)
    assert len(told) == 1
    assert "process 1 are not recorded any more" in told[0]
