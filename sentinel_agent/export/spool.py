"""Batches on disk while a backend is down: one file each, whose name says everything but the body.

`<order>-<items>-<first>-<last>-<crc>.batch`: order of making, items in it, the stretch of time they are from in
milliseconds since the epoch, CRC-32 of the body. So a listing tells exactly what is there, also after a crash; a torn
file shows by its checksum. Nothing is fsynced: a power cut may lose what a backend should have had, never an incident.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILES = 20_000
_LATEST = 10**15 - 1
_NAME = re.compile(r"(\d{1,16})-(\d{1,9})-(\d{1,15})-(\d{1,15})-([0-9a-f]{8})\.batch")


class Batch(NamedTuple):
    """One encoded request: how many items it holds, and the stretch of time they are from (seconds since the epoch)."""

    body: bytes
    items: int
    first: float
    last: float


class Spooled(NamedTuple):
    """A batch on disk; its size in bytes."""

    name: str
    items: int
    first: float
    last: float
    size: int


class Spool:
    """A folder of batches, oldest first. Every method but the constructor may raise OSError.

    One thread uses it, in one process: `hub` holds the data directory's lock for it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self.max_bytes = max_bytes
        self.bytes = 0
        self.items = 0
        self._held: deque[Spooled] = deque()
        self._order = 0

    def __len__(self) -> int:
        return len(self._held)

    def open(self) -> None:
        """Make the folder and take up what an earlier run has left."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found: list[tuple[int, Spooled]] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                matched = _NAME.fullmatch(entry.name)
                if matched is None or not entry.is_file(follow_symlinks=False):
                    if entry.name.endswith(".part"):
                        (self._folder / entry.name).unlink(missing_ok=True)
                    continue
                order, items, first, last = map(int, matched.groups()[:4])
                size = entry.stat(follow_symlinks=False).st_size
                found.append((order, Spooled(entry.name, items, first / 1000, last / 1000, size)))
        for order, spooled in sorted(found):
            self._order = order + 1
            self._add(spooled)

    def fits(self, size: int) -> bool:
        """Whether a batch of this size can be kept without removing another."""
        return self.bytes + size <= self.max_bytes and len(self._held) < MAX_FILES

    def put(self, batch: Batch) -> None:
        """Keep a batch, as the newest."""
        first, last = (min(max(0, int(each * 1000)), _LATEST) for each in (batch.first, batch.last))
        name = f"{self._order:016d}-{batch.items}-{first}-{last}-{crc32(batch.body):08x}.batch"
        part = self._folder / f"{self._order:016d}.part"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have removed it
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(batch.body)
            part.rename(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        self._order += 1
        self._add(Spooled(name, batch.items, batch.first, batch.last, len(batch.body)))

    def head(self) -> Spooled | None:
        """The oldest batch, without its body."""
        return self._held[0] if self._held else None

    def load(self, spooled: Spooled) -> Batch | None:
        """A batch with its body, None if the file is damaged or gone."""
        matched = _NAME.fullmatch(spooled.name)
        assert matched is not None
        try:
            fd = os.open(self._folder / spooled.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            body = file.read(spooled.size + 1)
        if len(body) != spooled.size or crc32(body) != int(matched[5], 16):
            return None
        return Batch(body, spooled.items, spooled.first, spooled.last)

    def drop(self) -> None:
        """Remove the oldest batch."""
        spooled = self._held.popleft()
        self.bytes -= spooled.size
        self.items -= spooled.items
        (self._folder / spooled.name).unlink(missing_ok=True)

    def _add(self, spooled: Spooled) -> None:
        self._held.append(spooled)
        self.bytes += spooled.size
        self.items += spooled.items
