"""Encoded batches that wait for their backend, oldest first: on disk the older ones, in memory the newest.

Bytes are bounded in both places. What does not fit pushes out the oldest, and what was pushed out is known: how many
items, for which reason, from which stretch of time.
"""

from __future__ import annotations

import errno
from collections import deque
from threading import Lock
from typing import TYPE_CHECKING

from sentinel_agent.export.base import Loss

if TYPE_CHECKING:
    from sentinel_agent.export.spool import Batch, Spool

LOSSES_KEPT = 16
"""Stretches of loss that are told apart; older ones stay in the counts."""

_TOGETHER = 60.0
"""Losses for one reason are one stretch if they are no further apart than this many seconds."""


class Losses:
    """What was lost: counts by reason since the start, and the newest stretches. Safe on any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[str, int] = {}
        self._stretches: deque[Loss] = deque(maxlen=LOSSES_KEPT)

    def add(self, reason: str, items: int, first: float, last: float) -> None:
        """Count a loss of things that had happened between `first` and `last`."""
        with self._lock:
            self._counts[reason] = self._counts.get(reason, 0) + items
            for index, known in enumerate(self._stretches):
                near = known.since - _TOGETHER <= last and first <= known.until + _TOGETHER
                if known.reason == reason and near:
                    self._stretches[index] = Loss(
                        reason, known.items + items, min(known.since, first), max(known.until, last)
                    )
                    return
            self._stretches.append(Loss(reason, items, first, last))

    def known(self) -> tuple[dict[str, int], tuple[Loss, ...]]:
        """The counts, and the newest stretches in the order in which they began to be lost."""
        with self._lock:
            return dict(self._counts), tuple(self._stretches)


class Backlog:
    """First in, first out. Losses are counted in `losses`; trouble with the disk is `disk_error`, and never raised."""

    def __init__(self, memory_bytes: int, spool: Spool | None, losses: Losses) -> None:
        self.losses = losses
        self.disk_error = ""
        self._memory: deque[Batch] = deque()
        self._memory_bytes = memory_bytes
        self._held_bytes = self._held_items = 0
        self._spool: Spool | None = None
        self._head: Batch | None = None  # the spool's oldest, loaded
        if spool is not None:
            self.use(spool)

    def use(self, spool: Spool) -> None:
        """Keep on disk what memory has no room for. What the spool holds already comes first."""
        try:
            spool.open()
        except OSError as error:
            self.disk_error = f"nothing is spooled: {_words(error)}"
        else:
            self._spool = spool

    def __len__(self) -> int:
        return len(self._memory) + (len(self._spool) if self._spool else 0)

    @property
    def items(self) -> int:
        """How many things wait."""
        return self._held_items + (self._spool.items if self._spool else 0)

    @property
    def bytes(self) -> int:
        """Bytes in memory and on disk."""
        return self._held_bytes + self.spooled_bytes

    @property
    def spooled_bytes(self) -> int:
        """Bytes on disk."""
        return self._spool.bytes if self._spool else 0

    def put(self, batch: Batch) -> None:
        """Add the newest batch."""
        self._memory.append(batch)
        self._held_bytes += len(batch.body)
        self._held_items += batch.items
        while self._held_bytes > self._memory_bytes and (len(self._memory) > 1 or self._spool):
            self._shift()

    def head(self) -> Batch | None:
        """The oldest batch, which stays until `done` or `lose`; one that the disk has spoilt is lost on the way."""
        while self._spool is not None and (spooled := self._spool.head()) is not None:
            if self._head is not None:
                return self._head
            try:
                self._head = self._spool.load(spooled)
            except OSError as error:
                self.disk_error = _words(error)
            if self._head is not None:
                return self._head
            self.losses.add("spool_damaged", spooled.items, spooled.first, spooled.last)
            self._drop_spooled()
        return self._memory[0] if self._memory else None

    def done(self) -> None:
        """The head has been delivered."""
        if self._spool is not None and self._spool.head() is not None:
            self._drop_spooled()
        elif self._memory:
            self._pop()

    def lose(self, reason: str) -> None:
        """The head is given up."""
        head = self.head()
        if head is not None:
            self.losses.add(reason, head.items, head.first, head.last)
            self.done()

    def shelve(self) -> None:
        """Before the end: what is in memory goes to disk, what finds no room there is lost."""
        while self._memory:
            self._shift("stopped")

    def _shift(self, reason: str = "backlog_full") -> None:
        """Move the oldest batch in memory to disk, or lose it where there is no disk."""
        batch = self._pop()
        spool = self._spool
        if spool is None or len(batch.body) > spool.max_bytes:
            self.losses.add(reason, batch.items, batch.first, batch.last)
            return
        while not spool.fits(len(batch.body)):
            oldest = spool.head()
            assert oldest is not None
            self.losses.add("spool_full", oldest.items, oldest.first, oldest.last)
            self._drop_spooled()
        try:
            spool.put(batch)
        except OSError as error:
            self.disk_error = _words(error)
            self.losses.add("disk_error", batch.items, batch.first, batch.last)

    def _pop(self) -> Batch:
        batch = self._memory.popleft()
        self._held_bytes -= len(batch.body)
        self._held_items -= batch.items
        return batch

    def _drop_spooled(self) -> None:
        assert self._spool is not None
        self._head = None
        try:
            self._spool.drop()
        except OSError as error:
            self.disk_error = _words(error)


def _words(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "no space left on the disk"
    return f"{error.filename or 'the spool'}: {error.strerror or error}"
