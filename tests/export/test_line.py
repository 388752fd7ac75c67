"""One line: batches, patience, and an exact account of what was lost. Time passes as the test says."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.export.base import ExporterOptions, SendError
from sentinel_agent.export.line import LONGEST_DELAY, LONGEST_RETRY_AFTER, REFUSED_DELAY, Line, delay
from sentinel_agent.export.spool import Spool
from tests.agent.support import HeldClock, settle
from tests.export.support import NOW, Scripted, readings, span

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def line(backend: Scripted, clock: HeldClock, spool: Spool | None = None, **options: Any) -> Line:
    return Line(
        "test", "spans", backend, ExporterOptions(**options), clock=clock, chance=lambda: 1.0, spool=spool
    )


@asynccontextmanager
async def running(made: Line) -> AsyncIterator[Line]:
    task = asyncio.create_task(made.run())
    await settle()
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_items_of_an_interval_are_one_batch() -> None:
    """What is offered within an interval goes out together, in the order in which it came."""
    backend, clock = Scripted(), HeldClock()
    async with running(line(backend, clock)) as made:
        for number in range(1, 4):
            made.offer((span(number),))
        await clock.let_pass(1.0)
        await settle()
    assert backend.ids() == [1, 2, 3]
    assert len(backend.taken) == 1
    assert made.status().state == "delivering"
    assert made.status().sent == 3
    assert made.status().last_answer == "taken"


async def test_a_passing_fault_is_retried_with_the_same_batch_in_order() -> None:
    """A backend that is away for a while gets every batch, oldest first, and nothing is lost."""
    backend, clock = Scripted(), HeldClock()
    backend.down = SendError("503")
    async with running(line(backend, clock)) as made:
        for number in range(1, 8):
            made.offer((span(number, at=clock.wall()),))
            await clock.let_pass(2.0)
        assert made.status().state == "retrying"
        assert made.status().last_error == "503"
        assert made.status().next_try is not None
        backend.down = None
        await clock.let_pass(70.0)
        await settle()
    assert backend.ids() == list(range(1, 8))
    assert made.status().lost == {}
    assert made.status().state == "delivering"


async def test_a_batch_that_is_rejected_is_given_up_and_the_next_goes_out() -> None:
    """400 is about this batch: it is counted as lost with its stretch of time, and the line goes on at once."""
    backend, clock = Scripted(), HeldClock()
    backend.answers = [SendError("400 Bad Request", "rejected")]
    async with running(line(backend, clock, batch=1)) as made:
        made.offer((span(1, at=NOW + 1),))
        made.offer((span(2, at=NOW + 2),))
        await clock.let_pass(1.0)
        await settle()
    assert backend.ids() == [2]
    assert made.status().lost == {"rejected": 1}
    (loss,) = made.status().losses
    assert (loss.since, loss.until) == (NOW + 1, NOW + 1)


async def test_a_backend_that_refuses_is_asked_seldom() -> None:
    """401 or a missing handler: one attempt in two minutes, not one a second, until max_age drops what waits."""
    backend, clock = Scripted(), HeldClock()
    backend.down = SendError("401 Unauthorized", "refused")
    async with running(line(backend, clock, max_age=300)) as made:
        made.offer((span(at=clock.wall()),))
        await clock.let_pass(250.0)
        assert made.status().state == "refused"
        assert backend.attempts == 3
        await clock.let_pass(300.0)
        await settle()
    assert made.status().lost == {"expired": 1}
    assert backend.attempts == 3


async def test_what_a_backend_asks_for_is_honoured() -> None:
    """After `Retry-After: 30` there is no attempt for 30 s."""
    backend, clock = Scripted(), HeldClock()
    backend.answers = [SendError("429", retry_after=30.0)]
    async with running(line(backend, clock)) as made:
        made.offer((span(at=clock.wall()),))
        await clock.let_pass(30.0)
        await settle()
        assert backend.attempts == 1
        await clock.let_pass(2.0)
        await settle()
    assert backend.attempts == 2


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_delays_grow_to_a_bound_and_never_vanish(chance: float) -> None:
    """Backoff doubles from half a second at least to a minute at most; a wrong Retry-After cannot silence a line for a day."""
    waits = [delay("passing", failures, chance) for failures in range(1, 2000)]
    assert waits == sorted(waits)
    assert waits[0] >= 0.5
    assert waits[-1] <= LONGEST_DELAY
    assert REFUSED_DELAY / 2 <= delay("refused", 1, chance) <= REFUSED_DELAY
    assert delay("passing", 1, chance, 86400.0) == LONGEST_RETRY_AFTER
    assert delay("delivered", 0, chance) == delay("rejected", 1, chance) == 0.0


async def test_a_backend_that_never_answers_is_given_its_time(tmp_path: Path) -> None:
    """A request is ended after `timeout`; the batch stays and the line says why."""
    backend, clock = Scripted(), HeldClock()
    backend.answers = [asyncio.get_running_loop().create_future()]
    async with running(line(backend, clock, timeout=0.1)) as made:
        made.offer((span(at=clock.wall()),))
        await clock.let_pass(1.0)
        async with asyncio.timeout(10):
            while not made.status().last_error:
                await asyncio.sleep(0.01)
    assert made.status().last_error == "no answer within 0.1 s"
    assert made.status().waiting == 1


async def test_an_encoder_that_raises_costs_its_items_and_no_more() -> None:
    """The items are counted as not encoded; the next ones are encoded again."""
    backend, clock = Scripted(), HeldClock()
    encode, faults = backend.encode, [ValueError("odd")]

    def fragile(*arguments: Any) -> bytes | None:
        if faults:
            raise faults.pop()
        return encode(*arguments)

    backend.encode = fragile  # type: ignore[method-assign,assignment]  # a saboteur
    async with running(line(backend, clock, batch=1)) as made:
        made.offer((span(1),))
        made.offer((span(2),))
        await clock.let_pass(1.0)
        await settle()
    assert backend.ids() == [2]
    assert made.status().lost == {"not_encoded": 1}


def test_a_full_queue_loses_its_oldest_and_counts_each_thing() -> None:
    """A request's spans and a tick's readings are counted one by one, not as queue entries."""
    made = line(Scripted(), HeldClock(), queue=10)
    for number in range(8):
        made.offer((span(number + 1), span(number + 100)))
    assert made.status().queued == 10
    assert made.status().lost == {"queue_full": 6}
    made.offer(readings(cpu=1.0, rss=2.0, tasks=3.0))
    assert made.status().lost == {"queue_full": 10}
    made.offer(())
    assert made.status().queued == 9


async def test_what_a_stop_cannot_deliver_is_on_disk_and_goes_out_first_next_time(tmp_path: Path) -> None:
    """A restart during an outage loses nothing: the spool is taken up, oldest first, before anything new."""
    backend, clock = Scripted(), HeldClock()
    backend.down = SendError("refused")
    first = line(backend, clock, Spool(tmp_path / "spool", 2**20), batch=1)
    for number in range(1, 4):
        first.offer((span(number, at=clock.wall()),))
    await first.drain()
    first.shelve()
    assert first.status().lost == {}
    assert first.status().waiting == 3
    backend.down = None
    async with running(line(backend, clock, Spool(tmp_path / "spool", 2**20), batch=1)) as second:
        second.offer((span(4, at=clock.wall()),))
        await clock.let_pass(1.0)
        await settle()
    assert backend.ids() == [1, 2, 3, 4]
    assert list((tmp_path / "spool").iterdir()) == []


async def test_without_a_spool_a_stop_counts_what_it_leaves() -> None:
    """Nothing disappears in silence: the reason is `stopped`."""
    backend = Scripted()
    backend.down = SendError("refused")
    made = line(backend, HeldClock())
    made.offer((span(1), span(2)))
    await made.drain()
    made.shelve()
    assert made.status().lost == {"stopped": 2}
    assert made.status().waiting == 0


async def test_a_batch_that_is_taken_but_for_some_loses_those() -> None:
    """OTLP's partial success: what was rejected is counted, the rest was delivered."""
    backend, clock = Scripted(), HeldClock()
    backend.answers = [SendError("2 rejected", "rejected", lost=2)]
    async with running(line(backend, clock)) as made:
        for number in range(1, 6):
            made.offer((span(number),))
        await clock.let_pass(1.0)
        await settle()
    assert made.status().lost == {"rejected": 2}
    assert made.status().sent == 3
    assert made.status().waiting == 0


async def test_an_error_that_is_repeated_is_logged_once_and_has_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A backend that rejects every batch does not fill the log; credentials in its words are taken out."""
    backend, clock = Scripted(), HeldClock()
    backend.answers = [SendError("400: https://user:hunter2@host/x", "rejected") for _ in range(5)]
    async with running(line(backend, clock, batch=1)) as made:
        for number in range(1, 6):
            made.offer((span(number),))
        await clock.let_pass(1.0)
        await settle()
    assert made.status().lost == {"rejected": 5}
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert "hunter2" not in made.status().last_error + caplog.text
