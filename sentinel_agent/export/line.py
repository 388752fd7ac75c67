"""One signal of one exporter: from the queue into batches, from the backlog to the backend, with patience.

The agent's thread only calls `offer`. Everything else runs on the exporters' loop: one task packs, one delivers. How a
line goes from one state to the next is `NEXT`, and how long it then waits is `delay`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from threading import Lock
from typing import TYPE_CHECKING, Literal

from sentinel_agent.core.redact import redact_text
from sentinel_agent.export.backlog import Backlog, Losses
from sentinel_agent.export.base import LineState, LineStatus, SendError, moment, weight
from sentinel_agent.export.spool import Batch, Spool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sentinel_agent.clock import Clock
    from sentinel_agent.export.base import Exporter, ExporterOptions, Item, Signal

log = logging.getLogger(__name__)

FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
REFUSED_DELAY = 120.0
"""A backend that refuses is asked again this seldom: somebody has to change something first."""
LONGEST_RETRY_AFTER = 600.0
"""What a backend asks for is honoured up to here, so that one wrong header does not silence it for a day."""
_MAX_WORDS = 300

Outcome = Literal["delivered", "passing", "rejected", "refused"]

NEXT: dict[Outcome, LineState] = {
    "delivered": "delivering",
    "rejected": "delivering",  # the batch was at fault, not the line
    "passing": "retrying",
    "refused": "refused",
}
"""The state that an attempt leads to, from whatever state; a line that has tried nothing yet is `idle`."""


def delay(outcome: Outcome, failures: int, chance: float, retry_after: float | None = None) -> float:
    """Seconds until the next attempt after `failures` (1 and up) in a row; `chance` is a random number from 0 to 1.

    Exponential backoff with equal jitter: half of the wait is fixed, half is random, so that many agents whose
    backend comes back do not all come at once.
    """
    if outcome in {"delivered", "rejected"}:
        return 0.0
    if outcome == "refused":
        longest = REFUSED_DELAY
    else:
        longest = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 10))
    own = longest * (0.5 + 0.5 * chance)
    return max(own, min(retry_after or 0.0, LONGEST_RETRY_AFTER))


class Line:
    """A bounded queue, a bounded backlog, and one exporter at the end. Make it where it runs, or before its loop does."""

    def __init__(
        self,
        name: str,
        signal: Signal,
        exporter: Exporter,
        options: ExporterOptions,
        *,
        clock: Clock,
        chance: Callable[[], float],
        spool: Spool | None = None,
    ) -> None:
        self.name = name
        self.signal = signal
        self._exporter = exporter
        self._options = options
        self._clock = clock
        self._chance = chance
        self._lock = Lock()
        self._queue: deque[Item] = deque()
        self._queued = 0
        self._wake: Callable[[], object] | None = None
        self._items = asyncio.Event()
        self._batches = asyncio.Event()
        self._losses = Losses()
        self._backlog = Backlog(options.memory_bytes, spool, self._losses)
        self._state: LineState = "idle"
        self._failures = 0
        self._sent = 0
        self._down_since: float | None = None
        self._last_success: float | None = None
        self._last_answer = self._last_error = ""
        self._last_error_time: float | None = None
        self._next_try: float | None = None
        self._retry_after: float | None = None

    # -- the agent's side ------------------------------------------------------------------------------------

    def offer(self, item: Item) -> None:
        """Take an item; safe on any thread, never waits. If the queue is full its oldest item is lost and counted."""
        size = weight(item)
        if not size:
            return
        with self._lock:
            first = not self._queue
            self._queue.append(item)
            self._queued += size
            while self._queued > self._options.queue:
                old = self._queue.popleft()
                self._queued -= weight(old)
                self._losses.add("queue_full", weight(old), moment(old), moment(old))
            wake = self._wake if first else None
        if wake is not None:
            wake()

    def status(self) -> LineStatus:
        """As it is now; safe on any thread."""
        backlog = self._backlog
        lost, losses = self._losses.known()
        return LineStatus(
            exporter=self.name,
            kind=self._options.kind or self.name,
            signal=self.signal,
            state=self._state,
            sent=self._sent,
            queued=self._queued,
            waiting=backlog.items,
            waiting_bytes=backlog.bytes,
            spooled_bytes=backlog.spooled_bytes,
            lost=lost,
            losses=losses,
            last_success=self._last_success,
            last_answer=self._last_answer,
            last_error=self._last_error or backlog.disk_error,
            last_error_time=self._last_error_time,
            next_try=self._next_try,
        )

    # -- the exporters' thread -------------------------------------------------------------------------------

    def use_disk(self, folder: Path | None) -> None:
        """Spool below `folder`, and take up what is there. None: memory only."""
        if folder is not None and self._options.spool_bytes:
            kind = (
                self._options.kind or self.name
            )  # another kind's batches are nothing that this one could send
            place = self.name if kind == self.name else f"{self.name}@{kind}"
            self._backlog.use(Spool(folder / place / self.signal, self._options.spool_bytes))

    async def run(self) -> None:
        """Pack and deliver until cancelled."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._wake = lambda: _set_on(loop, self._items)
            waiting = bool(self._queue)
        if waiting:
            self._items.set()
        if len(self._backlog):
            self._batches.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pack_for_ever())
                group.create_task(self._deliver_for_ever())
        finally:
            with self._lock:
                self._wake = None

    async def drain(self) -> None:
        """Pack what is queued and deliver until nothing is left or the backend fails. The caller bounds the time."""
        self._pack()
        while self._backlog.head() is not None:
            if await self._attempt() not in {"delivered", "rejected"}:
                return

    def shelve(self) -> None:
        """At the very end: what was not delivered goes to disk, or is counted as lost."""
        self._pack()
        self._backlog.shelve()

    async def _pack_for_ever(self) -> None:
        while True:
            await self._items.wait()
            self._items.clear()
            if self._queued < self._options.batch:
                await self._clock.sleep(self._options.interval)
            while self._pack_one():  # noqa: ASYNC110 - it waits for nothing, it gives the other lines their turn
                await asyncio.sleep(0)

    def _pack(self) -> None:
        while self._pack_one():
            pass

    def _pack_one(self) -> bool:
        """Encode one batch; whether there was anything to encode."""
        items = self._take()
        if not items:
            return False
        count = sum(map(weight, items))
        first, last = min(map(moment, items)), max(map(moment, items))
        try:
            body = self._exporter.encode(self.signal, items)
        except Exception as error:  # noqa: BLE001 - a stranger's encoder may raise anything
            self._note_error(
                f"{type(error).__name__}: {error}", f"{count} {self.signal} could not be encoded"
            )
            self._losses.add("not_encoded", count, first, last)
            return True
        if body is not None:
            self._backlog.put(Batch(body, count, first, last))
            self._batches.set()
        return True

    def _take(self) -> list[Item]:
        taken: list[Item] = []
        with self._lock:
            room = self._options.batch
            while self._queue and (not taken or weight(self._queue[0]) <= room):
                item = self._queue.popleft()
                room -= weight(item)
                self._queued -= weight(item)
                taken.append(item)
        return taken

    async def _deliver_for_ever(self) -> None:
        while True:
            await self._batches.wait()
            self._batches.clear()
            while self._backlog.head() is not None:
                outcome = await self._attempt()
                wait = delay(outcome, self._failures, self._chance(), self._retry_after)
                if wait > 0:
                    self._next_try = self._clock.wall() + wait
                    await self._clock.sleep(wait)
                    self._next_try = None

    async def _attempt(self) -> Outcome:
        """Send the oldest batch once."""
        self._drop_expired()
        batch = self._backlog.head()
        if batch is None:
            return "delivered"
        self._retry_after = None
        try:
            async with asyncio.timeout(self._options.timeout):
                answer = await self._exporter.send(self.signal, batch.body)
        except SendError as error:
            self._retry_after = error.retry_after
            return self._failed(batch, error.blame, error.message, error.lost)
        except TimeoutError:
            return self._failed(batch, "passing", f"no answer within {self._options.timeout:g} s")
        except Exception as error:  # noqa: BLE001 - whatever a stranger's exporter raises, the line goes on
            log.debug("exporter %s", self.name, exc_info=error)
            return self._failed(batch, "passing", f"{type(error).__name__}: {error}")
        self._delivered(answer)
        if self._is_head(batch):
            self._sent += batch.items
            self._backlog.done()
        return "delivered"

    def _is_head(self, batch: Batch) -> bool:
        """Whether a batch that was being sent is still there: it may have been pushed out, and counted as lost."""
        head = self._backlog.head()
        return head is not None and head.body == batch.body

    def _drop_expired(self) -> None:
        bar = self._clock.wall() - self._options.max_age
        while (batch := self._backlog.head()) is not None and batch.last < bar:
            self._backlog.lose("expired")

    def _delivered(self, answer: str) -> None:
        now = self._clock.wall()
        if self._down_since is not None:
            log.info(
                "exporter %s takes %s again after %.0f s; lost since the start: %s",
                self.name,
                self.signal,
                now - self._down_since,
                ", ".join(f"{count} ({reason})" for reason, count in self._losses.known()[0].items())
                or "nothing",
            )
        self._down_since = None
        self._state, self._failures = NEXT["delivered"], 0
        self._last_success, self._last_answer = now, answer[:_MAX_WORDS]

    def _failed(self, batch: Batch, outcome: Outcome, why: str, lost: int | None = None) -> Outcome:
        before, self._state = self._state, NEXT[outcome]
        if outcome == "rejected":
            count = batch.items if lost is None else max(0, min(lost, batch.items))
            if self._is_head(batch):
                self._losses.add("rejected", count, batch.first, batch.last)
                self._sent += batch.items - count
                self._backlog.done()
            self._note_error(why, f"{count} {self.signal} were rejected")
            return outcome
        self._failures += 1
        if self._down_since is None:
            self._down_since = self._clock.wall()
        self._note_error(why, f"{self.signal} are not taken", loud=before != self._state)
        return outcome

    def _note_error(self, why: str, what: str, *, loud: bool | None = None) -> None:
        """Keep an error for the status, and log it; by itself one that is repeated is not logged aloud again."""
        words = redact_text(why[:_MAX_WORDS])
        aloud = words != self._last_error if loud is None else loud
        log.log(logging.WARNING if aloud else logging.DEBUG, "exporter %s: %s: %s", self.name, what, words)
        self._last_error, self._last_error_time = words, self._clock.wall()


def _set_on(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has just ended, and with it everybody who waited
        loop.call_soon_threadsafe(event.set)
