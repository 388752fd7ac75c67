"""The watchlist names roles, follows children, says once what it may not watch, and closes what has ended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sentinel_agent import watchlist as module
from sentinel_agent.config.settings import Settings, TargetSettings
from sentinel_agent.core.event import TargetAppeared, TargetGone, Trouble
from sentinel_agent.errors import NoSuchTargetError
from sentinel_agent.probes.registry import Registry, build_probes
from sentinel_agent.sampler import Sampler
from sentinel_agent.target.watch import Changes
from sentinel_agent.watchlist import Watchlist, WatchRequest
from tests.agent.support import Gauge, sleeper, until

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from sentinel_agent.core.event import Event
    from sentinel_agent.testing import FakeClock


class Books:
    """A watchlist with what it told and the sampler that it feeds."""

    def __init__(self, clock: FakeClock, request: WatchRequest, **target: object) -> None:
        self.events: list[Event] = []
        self.sampler = Sampler(clock, 1.0, lambda *_: None)
        settings = Settings(target=TargetSettings(service="shop", instance="here", **target))  # type: ignore[arg-type]  # settings of mixed types
        registry = Registry({"gauge": Gauge({"cpu": 1.0})})
        self.list = Watchlist(request, settings, self.sampler, registry, clock, self.events.append)

    def told(self, kind: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def roles(self) -> dict[int, str]:
        return {pid: series.target.role.key for pid, series in self.sampler.targets.items()}


async def test_a_process_is_taken_up_once_with_its_role_and_has_a_first_reading(
    fake_clock: FakeClock,
) -> None:
    with sleeper() as process:
        books = Books(fake_clock, WatchRequest((process.pid,)))
        await books.list.scan()
        await books.list.scan()
        assert books.roles() == {process.pid: "shop/here/main"}
        (event,) = books.told(TargetAppeared)
        assert isinstance(event, TargetAppeared)
        assert event.target.pid == process.pid
        assert books.sampler.targets[process.pid].latest["cpu"].value == 1.0
        assert (books.list.seen, books.list.finished) == (1, False)
        books.list.close()


async def test_the_end_of_a_target_closes_what_is_held_for_it_and_gives_its_slot_back(
    fake_clock: FakeClock,
) -> None:
    """Its exit is seen without a scan; the past stays readable; what is started next has the same role."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with sleeper() as process:
        books = Books(fake_clock, WatchRequest((process.pid,)))
        await books.list.scan()
        series = books.sampler.targets[process.pid]
        process.kill()
        await until(lambda: books.told(TargetGone))
    assert books.sampler.targets == {}
    assert books.list.finished
    (gone,) = books.told(TargetGone)
    assert isinstance(gone, TargetGone)
    assert gone.how == "killed by SIGKILL"
    assert series.window(0.0, 1e12)["cpu"]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_children_are_targets_with_a_slot_of_their_own(fake_clock: FakeClock) -> None:
    """The master is `main`, its children are `worker-1` and `worker-2`; without `children` only it is watched."""
    with sleeper(children=2) as process:
        books = Books(fake_clock, WatchRequest((process.pid,)))

        async def all_three() -> None:
            while len(books.roles()) < 3:  # a child counts once it is old enough to be what it will be
                await books.list.scan()

        await all_three()
        assert sorted(books.roles().values()) == [
            "shop/here/main",
            "shop/here/worker-1",
            "shop/here/worker-2",
        ]
        books.list.close()
        alone = Books(fake_clock, WatchRequest((process.pid,)), children=False)
        await alone.list.scan()
        assert alone.roles() == {process.pid: "shop/here/main"}
        alone.list.close()


async def test_what_matches_and_has_no_room_or_may_not_be_read_is_said_once(
    fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = Books(fake_clock, WatchRequest(match="nothing-like-this"), max_targets=2)
    found = Changes((), (), left_out=3, refused=(4711, 4712))
    monkeypatch.setattr(books.list._watcher, "scan", lambda _: found)
    for _ in range(3):
        await books.list.scan()
    told = [event.what for event in books.told(Trouble) if isinstance(event, Trouble)]
    assert told == [
        "3 more processes match, but target.max_targets is 2",
        "process 4711 may match, but this user may not look into it; see `doctor 4711`",
        "process 4712 may match, but this user may not look into it; see `doctor 4712`",
    ]
    assert not books.list.finished  # a pattern may match what is started later


async def test_a_process_that_ends_before_it_is_taken_up_leaves_nothing_to_wait_for(
    fake_clock: FakeClock,
) -> None:
    """It was there when it was named, and nobody must wait for it for ever."""
    with sleeper() as process:
        books = Books(fake_clock, WatchRequest((process.pid,)))
        assert not books.list.finished
        process.kill()
        process.wait()
    await books.list.scan()
    assert (books.list.seen, books.list.finished, books.events) == (0, True, [])


async def test_a_process_that_ends_while_it_is_taken_up_gives_its_slot_back(
    fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step between being found and being watched."""
    for name, fault in (("ExitWatch", NoSuchTargetError("gone")), ("build_probes", ProcessLookupError())):
        with sleeper() as process, monkeypatch.context() as patch:
            books = Books(fake_clock, WatchRequest((process.pid,)))
            patch.setattr(module, name, _raising(fault))
            await books.list.scan()
            assert (books.roles(), books.list.finished) == ({}, True)
            assert books.list._slots.assign(books.list._watcher._watched.popitem()[0], ()).worker == "main"


async def test_a_process_that_may_not_be_looked_at_is_said_and_the_rest_is_watched(
    fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sleeper() as one, sleeper() as two:
        books = Books(fake_clock, WatchRequest((one.pid, two.pid)))
        real = build_probes

        def refusing(target: object, *args: object, **keys: object) -> object:
            if getattr(target, "pid", 0) == one.pid:
                raise PermissionError(13, "Permission denied", "/proc/1/exe")
            return real(target, *args, **keys)  # type: ignore[arg-type]  # passed on as it came

        monkeypatch.setattr(module, "build_probes", refusing)
        await books.list.scan()
        assert list(books.roles()) == [two.pid]
        (trouble,) = books.told(Trouble)
        assert isinstance(trouble, Trouble)
        assert f"process {one.pid} cannot be watched" in trouble.what
        books.list.close()


async def test_the_command_line_of_a_target_has_no_secrets_and_no_control_characters_are_lost_silently(
    fake_clock: FakeClock,
) -> None:
    with sleeper("--password", "hunter2", "\x1b[31mred") as process:
        books = Books(fake_clock, WatchRequest((process.pid,)))
        await books.list.scan()
        command = books.sampler.targets[process.pid].target.command
        assert "hunter2" not in " ".join(command)
        assert command[-1] == "\x1b[31mred"  # kept as it is: whoever shows it makes it safe
        books.list.close()


def _raising(error: Exception) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail
