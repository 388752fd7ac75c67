"""The hub: a thread of its own, faults that stay where they are, an end within its time, and no tick late."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from sentinel_agent.clock import SystemClock
from sentinel_agent.core.event import SettingsRefused, TargetGone
from sentinel_agent.errors import OperatorError
from sentinel_agent.export.base import ExporterOptions, SendError, Signal
from sentinel_agent.export.hub import Hub, try_out
from sentinel_agent.export.registry import Made
from sentinel_agent.export.setup import make_hub, set_up
from sentinel_agent.sampler import Sampler
from tests.agent.support import Gauge, series_of, until
from tests.export.support import NOW, TARGET, Scripted, group, readings, span

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


CLOCK = SystemClock()
SOON = ExporterOptions(interval=0.05, max_age=1e10)  # the spans of these tests are of 2023


def entry(name: str, backend: Scripted, options: ExporterOptions = SOON) -> Made:
    return Made(name, "scripted", options, backend, Scripted.signals)


async def test_what_is_offered_is_delivered_from_another_thread(tmp_path: Path) -> None:
    """Every signal goes to every exporter that wants it; events about settings do not leave the house."""
    threads: set[threading.Thread] = set()

    class Watched(Scripted):
        async def send(self, signal: Signal, body: bytes) -> str:
            threads.add(threading.current_thread())
            return await super().send(signal, body)

    one, two = Watched(), Watched()
    hub = Hub([entry("one", one), entry("two", two)], tmp_path, CLOCK)
    hub.start()
    hub.offer("spans", group())
    hub.offer("metrics", readings())
    hub.tell(TargetGone(NOW, TARGET, "ended"))
    hub.tell(SettingsRefused(NOW, "faults"))
    await until(lambda: len(one.taken) == len(two.taken) == 3)
    await hub.close()
    assert {signal for signal, _ in one.taken} == {"spans", "metrics", "events"}
    assert threads == {each for each in threads if each.name == "sentinel-export"}
    assert one.closed
    assert two.closed


async def test_a_stop_delivers_what_is_left(tmp_path: Path) -> None:
    """What was offered a moment before the end goes out; nothing is left on disk."""
    backend = Scripted()
    hub = Hub([entry("one", backend, ExporterOptions(interval=60, max_age=1e10))], tmp_path, CLOCK)
    hub.start()
    for number in range(1, 1001):
        hub.offer("spans", (span(number),))
    await hub.close()
    assert backend.ids() == list(range(1, 1001))
    assert not list(tmp_path.rglob("*.batch"))


async def test_a_stop_before_the_thread_has_begun(tmp_path: Path) -> None:
    """Started and stopped at once: it ends, and what was offered is delivered."""
    for _ in range(20):
        backend = Scripted()
        hub = Hub([entry("one", backend)], tmp_path, CLOCK)
        hub.offer("spans", (span(7),))
        hub.start()
        hub.stop()
        assert backend.ids() == [7]


async def test_a_backend_that_hangs_holds_a_stop_for_its_deadline_only(tmp_path: Path) -> None:
    """The other exporter is served meanwhile; what the hanging one still had is on disk for the next start."""

    class Hanging(Scripted):
        async def send(self, signal: Signal, body: bytes) -> str:
            self.attempts += 1
            await asyncio.sleep(3600)
            return "never"

    hanging, well = Hanging(), Scripted()
    hub = Hub([entry("hanging", hanging), entry("well", well)], tmp_path, CLOCK)
    hub.start()
    hub.offer("spans", (span(1),))
    await until(lambda: hanging.attempts)
    hub.offer("spans", (span(2),))
    begin = CLOCK.monotonic()
    await asyncio.to_thread(hub.stop, 0.5)
    assert CLOCK.monotonic() - begin < 0.5 + 5  # the machine may be busy
    assert well.ids() == [1, 2]
    again = Scripted()
    hub = Hub([entry("hanging", again)], tmp_path, CLOCK)
    hub.start()
    await until(lambda: again.ids() == [1, 2])
    await hub.close()


async def test_two_agents_do_not_share_a_spool(tmp_path: Path) -> None:
    """Each has a folder of its own below the data directory, so that neither delivers or removes the other's."""
    down = [Scripted(), Scripted()]
    for each in down:
        each.down = SendError("down")
    hubs = [Hub([entry("one", each)], tmp_path, CLOCK) for each in down]
    for number, hub in enumerate(hubs):
        hub.start()
        hub.offer("spans", (span(number + 1),))
    await until(lambda: all(each.attempts for each in down))
    for hub in hubs:
        await hub.close()
    assert sorted(path.parts[-4] for path in tmp_path.rglob("*.batch")) == ["0", "1"]
    alone = Scripted()
    hub = Hub([entry("one", alone)], tmp_path, CLOCK)
    hub.start()
    await until(lambda: sorted(alone.ids()) == [1, 2])  # what either left behind is found
    await hub.close()
    assert not list(tmp_path.rglob("*.batch"))


async def test_a_call_that_hangs_in_a_thread_holds_no_stop(tmp_path: Path) -> None:
    """A name server or a file system may hang where nothing can be cancelled; the exporters' thread ends all the same."""
    release = threading.Event()

    class Hanging(Scripted):
        async def send(self, signal: Signal, body: bytes) -> str:
            self.attempts += 1
            await asyncio.to_thread(release.wait, 60)
            return "never"

    hanging = Hanging()
    hub = Hub([entry("hanging", hanging)], tmp_path, CLOCK)
    hub.start()
    thread = hub._thread
    assert thread is not None
    hub.offer("spans", (span(1),))
    await until(lambda: hanging.attempts)
    try:
        await asyncio.to_thread(hub.stop, 0.2)
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()
    finally:
        release.set()
    assert [path.name for path in tmp_path.rglob("*.batch")]


def test_a_view_that_raises_ends_no_tick(caplog: pytest.LogCaptureFixture) -> None:
    """Its fault is said once; the other exporters get the item."""

    class Broken:
        Options = ExporterOptions
        signals: tuple[Signal, ...] = ("spans",)

        def observe(self, item: object) -> None:
            raise ZeroDivisionError("oops")

        def render(self, accept: str | None) -> tuple[str, bytes]:
            return "", b""

    backend = Scripted()
    view: Any = Broken()
    hub = Hub([Made("view", "view", SOON, view, ("spans",)), entry("one", backend)], None, CLOCK)
    for number in range(1, 4):
        hub.offer("spans", (span(number),))
    hub.start()
    hub.stop()
    assert backend.ids() == [1, 2, 3]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_an_exporter_of_which_nothing_is_wanted(tmp_path: Path) -> None:
    """`signals: []` means no thread and no queue."""
    hub = Hub([Made("none", "scripted", SOON, Scripted(), ())], tmp_path, CLOCK)
    hub.start()
    assert threading.active_count() == len(
        [each for each in threading.enumerate() if each.name != "sentinel-export"]
    )
    hub.stop()
    assert not hub.wants("spans")


def test_an_entry_that_cannot_be_used_is_shown_and_stops_nothing(tmp_path: Path) -> None:
    """A kind that is gone, an exporter whose package is missing, one that raises: each says why, the others work."""

    class Missing(Scripted):
        def __init__(self, *_: object) -> None:
            raise OperatorError("obstore is not installed", hint="pip install it")

    class Broken(Scripted):
        def __init__(self, *_: object) -> None:
            raise ZeroDivisionError("oops")

    class Good(Scripted):
        def __init__(self, *_: object) -> None:
            super().__init__()

    kinds: Any = {"missing": Missing, "broken": Broken, "good": Good}
    wanted = {name: ExporterOptions() for name in ("missing", "broken", "good", "unknown")}
    hub = make_hub(wanted, tmp_path, CLOCK, kinds)
    faults = {status.exporter: status.last_error for status in hub.statistics() if status.state == "refused"}
    assert faults == {
        "missing": "obstore is not installed; pip install it",
        "broken": "ZeroDivisionError: oops",
        "unknown": "no exporter of the kind 'unknown' is installed",
    }
    assert hub.wants("spans")
    assert hub.metrics_text is None


class Numbered(Scripted):
    """Keeps a list of itself, so that a test can tell how many were made."""

    made: ClassVar[list[Numbered]] = []

    def __init__(self, *_: object) -> None:
        super().__init__()
        self.made.append(self)


async def test_changed_settings_are_in_force_at_once(tmp_path: Path) -> None:
    """What is unchanged goes on, what is new begins, what is changed takes over the backlog on disk, what is gone ends."""
    Numbered.made.clear()
    kinds: Any = {"one": Numbered, "two": Numbered}
    hub = make_hub({"one": SOON}, tmp_path, CLOCK, kinds)
    hub.start()
    (first,) = Numbered.made
    first.down = SendError("down")
    hub.offer("spans", (span(1),))
    await until(lambda: first.attempts)

    await asyncio.to_thread(set_up, hub, {"one": SOON, "two": SOON}, CLOCK, kinds)
    first, second = Numbered.made
    hub.offer("spans", (span(2),))
    await until(lambda: second.ids() == [2])
    assert not first.closed

    changed = msgspec.structs.replace(SOON, batch=7)
    await asyncio.to_thread(set_up, hub, {"one": changed, "two": SOON}, CLOCK, kinds)
    first, second, third = Numbered.made
    hub.offer("spans", (span(3),))
    await until(lambda: third.ids() == [1, 2, 3] and second.ids() == [2, 3])
    assert first.closed
    assert not second.closed

    await asyncio.to_thread(set_up, hub, {}, CLOCK, kinds)
    assert not hub.wants("spans")
    await until(lambda: second.closed and third.closed)
    await hub.close()
    assert not list(tmp_path.rglob("*.batch"))
    assert len(Numbered.made) == 3


async def test_the_first_exporter_may_come_later_and_another_kind_takes_over_nothing(tmp_path: Path) -> None:
    """Without exporters there is no thread until there is one; batches of another kind stay where they are."""
    Numbered.made.clear()
    kinds: Any = {"one": Numbered, "two": Numbered}
    hub = make_hub({}, tmp_path, CLOCK, kinds)
    hub.start()
    assert hub._thread is None
    set_up(hub, {"out": msgspec.structs.replace(SOON, kind="one")}, CLOCK, kinds)
    (first,) = Numbered.made
    first.down = SendError("down")
    hub.offer("spans", (span(1),))
    await until(lambda: first.attempts)
    set_up(hub, {"out": msgspec.structs.replace(SOON, kind="two")}, CLOCK, kinds)
    hub.offer("spans", (span(2),))
    await until(lambda: Numbered.made[1].ids() == [2])
    await hub.close()
    (left,) = tmp_path.rglob("*.batch")
    assert left.parts[-3] == "out@one"


async def test_settings_that_change_while_the_agent_stops_begin_nothing(tmp_path: Path) -> None:
    """Whichever comes first: the stop ends all of it, none waits for a thread that has not begun, and none is left."""
    kinds: Any = {"one": Numbered}
    for _ in range(50):
        hub = make_hub({}, tmp_path, CLOCK, kinds)
        hub.start()
        changes = asyncio.create_task(asyncio.to_thread(set_up, hub, {"one": SOON}, CLOCK, kinds))
        await hub.close()
        await changes
        assert hub._thread is None
    Numbered.made.clear()


async def test_a_stop_does_not_wait_for_what_is_being_replaced(tmp_path: Path) -> None:
    """An exporter that hangs and was replaced a moment before the end costs no time of its own."""

    class Hanging(Scripted):
        def __init__(self, *_: object) -> None:
            super().__init__()

        async def send(self, signal: Signal, body: bytes) -> str:
            self.attempts += 1
            await asyncio.sleep(3600)
            return "never"

    kinds: Any = {"one": Hanging}
    hub = make_hub({"one": SOON}, tmp_path, CLOCK, kinds)
    hub.start()
    thread = hub._thread
    assert thread is not None
    hub.offer("spans", (span(1),))
    await until(lambda: any(line.status().waiting for line in hub.lines))
    set_up(hub, {"one": msgspec.structs.replace(SOON, batch=7)}, CLOCK, kinds)
    await asyncio.to_thread(hub.stop, 0.1)
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()
    assert len(list(tmp_path.rglob("*.batch"))) == 1


async def test_one_item_is_tried_out_and_the_answer_told() -> None:
    """`exporters test` gets the backend's words, whose fault it is, or that nothing is sent."""
    backend = Scripted()
    assert await try_out(backend, "spans", group(), 1) == (True, "taken")
    backend.answers = [SendError("401", "refused")]
    assert await try_out(backend, "spans", group(), 1) == (False, "refused: 401")
    backend.answers = [asyncio.get_running_loop().create_future()]
    assert await try_out(backend, "spans", group(), 0.05) == (False, "no answer within 0.05 s")
    backend.answers = [ZeroDivisionError("oops")]
    assert await try_out(backend, "spans", group(), 1) == (False, "ZeroDivisionError: oops")


async def test_no_tick_is_late_for_a_backend_that_accepts_and_never_answers(tmp_path: Path) -> None:
    """Two seconds at 200 spans and 20 ticks a second against a listening socket that nobody reads.

    Compared with the same agent without exporters, in turns, so that a busy machine counts on both sides.
    """

    class Stalled(Scripted):
        async def send(self, signal: Signal, body: bytes) -> str:
            self.attempts += 1
            _, writer = await asyncio.open_connection(*listener.getsockname())
            try:
                writer.write(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n" + body)
                await writer.drain()
                await asyncio.sleep(3600)
            finally:
                writer.close()
            return "never"

    async def lateness(hub: Hub) -> list[float]:
        """Of each tick, for one second."""
        late: list[float] = []
        ticker = Sampler(CLOCK, 0.05, lambda now, _series, _readings: hub.offer("metrics", readings(now)))
        ticker.add(series)

        async def after() -> None:
            late.append(ticker.statistics().last_late)
            for number in range(10):
                hub.offer("spans", group(number + 1))

        task = asyncio.create_task(ticker.run(after))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait([task])
        return late

    series = series_of(Gauge({"cpu": 1.0}))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stalled = Stalled()
        hub = Hub([entry("stalled", stalled)], tmp_path, CLOCK)
        nothing = Hub([], None, CLOCK)
        hub.start()
        without, beside = [], []
        for _ in range(3):
            without += await lateness(nothing)
            beside += await lateness(hub)
        begin = CLOCK.monotonic()
        await asyncio.to_thread(hub.stop, 0.3)
        assert CLOCK.monotonic() - begin < 0.3 + 5
    series.close()
    assert stalled.attempts
    assert len(beside) > 30
    # The median of three seconds is steady on a busy machine; the latest tick is compared with its twin's.
    assert sorted(beside)[len(beside) // 2] < 0.05
    assert max(beside) < max(0.05, 3 * max(without) + 0.05)
