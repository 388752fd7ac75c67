"""The access log: one JSON object a line, written by a thread, so that a slow disk never holds up a request."""

from __future__ import annotations

import os
import queue
import threading
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.proxy.exchange import Exchange
    from sentinel_agent.proxy.records import RequestRecord

_ENCODER = msgspec.json.Encoder()
_AT_ONCE = 32
"""Records made and encoded in one go: enough to be cheap, few enough that no request waits for it."""


class AccessLog:
    """Encodes records, and holds the lines until `flush` hands them to the thread; at most `most`, more are dropped."""

    def __init__(self, path: str, most: int, record_of: Callable[[Exchange, float], RequestRecord]) -> None:
        """Open the file for appending; `-` is standard output. `record_of` makes the record of what `add_later` took.

        Raises:
            OSError: it cannot be opened.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.dup(1) if path == "-" else os.open(path, flags, 0o640)
        self._most = most
        self._record_of = record_of
        self._records: list[RequestRecord | tuple[Exchange, float]] = []
        self._lines = bytearray()
        self._held = 0
        self._queue: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self._under_way = 0
        self.written = 0
        self.dropped = 0
        self.failed = 0
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        self._thread.start()

    def add_later(self, exchange: Exchange, seconds: float) -> None:
        """As `add`, for a request that is over. Its record is made among others, by code that is then warm: half as dear."""
        self._add((exchange, seconds))

    def add(self, record: RequestRecord) -> None:
        """Keep a record for the next flush."""
        self._add(record)

    def _add(self, record: RequestRecord | tuple[Exchange, float]) -> None:
        if self._held + self._under_way >= self._most:
            self.dropped += 1
            return
        self._held += 1
        self._records.append(record)
        if len(self._records) >= _AT_ONCE:
            self._encode()

    def _encode(self) -> None:
        make = self._record_of
        records = [make(*each) if type(each) is tuple else each for each in self._records]
        self._lines += _ENCODER.encode_lines(records)
        self._records.clear()

    def flush(self) -> None:
        """Hand what is held to the thread."""
        if self._held:
            self._encode()
            self._under_way += self._held
            self._queue.put((self._held, bytes(self._lines)))
            self._held = 0
            self._lines.clear()

    def _write(self) -> None:
        while (piece := self._queue.get()) is not None:
            count, lines = piece
            data = memoryview(lines)
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
                self.written += count
            except OSError:
                self.failed += count
            self._under_way -= count

    def close(self, patience: float = 2.0) -> None:
        """Write what is held and end; a disk that does not answer for `patience` seconds is left behind."""
        self.flush()
        self._queue.put(None)
        self._thread.join(patience)
        if not self._thread.is_alive():
            os.close(self._descriptor)
