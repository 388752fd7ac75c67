"""Ten minutes without a backend, under a clock that obeys: 200 spans and one tick a second."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.export.base import ExporterOptions, SendError, Signal
from sentinel_agent.export.line import Line
from sentinel_agent.export.spool import Spool
from tests.agent.support import HeldClock, settle
from tests.export.support import Scripted, readings, span

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 600
RATE = 200


@pytest.mark.parametrize("spool_bytes", [0, 2 * 1024**2, 512 * 1024**2])
async def test_ten_minutes_without_a_backend(tmp_path: Path, spool_bytes: int) -> None:
    """Memory and disk stay within their bounds; after it everything is delivered or counted, the newest whole, in order."""
    backend, clock = Scripted(), HeldClock()
    backend.down = SendError("connection refused")
    options = ExporterOptions(memory_bytes=512 * 1024, spool_bytes=spool_bytes)
    rng = random.Random(5)

    def line(signal: Signal) -> Line:
        spool = Spool(tmp_path / signal, spool_bytes) if spool_bytes else None
        return Line("test", signal, backend, options, clock=clock, chance=rng.random, spool=spool)

    spans, metrics = line("spans"), line("metrics")
    tasks = [asyncio.create_task(each.run()) for each in (spans, metrics)]
    await settle()
    number = most = 0
    for _ in range(SECONDS):
        for _ in range(RATE):
            number += 1
            spans.offer((span(number, at=clock.wall()),))
        metrics.offer(readings(clock.wall()))
        await clock.let_pass(1.0)
        status = spans.status()
        most = max(most, status.waiting_bytes - status.spooled_bytes)
        assert status.spooled_bytes <= spool_bytes
    backend.down = None
    await clock.let_pass(120.0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    ids = backend.ids()
    status = spans.status()
    assert most <= 512 * 1024 + 512 * 1024  # the bound, and the batch that is just being encoded
    assert ids == sorted(ids)
    assert ids[-1] == number == SECONDS * RATE
    assert len(ids) == len(set(ids)) == status.sent
    assert len(ids) + sum(status.lost.values()) == number
    if spool_bytes > 100 * 1024**2:
        assert status.lost == {}
    else:
        lost = number - len(ids)
        assert ids == list(range(lost + 1, number + 1))  # what was lost is one stretch, the oldest
        (stretch,) = status.losses
        assert stretch.items == lost
        first = clock.wall() - 120.0 - SECONDS
        assert stretch.since == pytest.approx(first, abs=0.01)
        assert stretch.until == pytest.approx(first + (lost - 1) // RATE, abs=0.01)
    assert metrics.status().lost == {}  # spans cannot push readings out
    assert metrics.status().sent == SECONDS * 3
