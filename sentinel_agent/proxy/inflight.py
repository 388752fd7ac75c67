"""The requests under way, in memory that the agent maps too: readable while the event loop is blocked, and after death.

An anonymous file (memfd_create(2)) of fixed slots. The worker writes a slot when a request is routed and clears its
first byte when it is over. The agent gets the descriptor once; it never asks the worker for anything. A slot that
changes while it is read is read again, and left out if it keeps changing.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Final

import msgspec

SLOTS: Final = 1024
SLOT_BYTES: Final = 256
SIZE: Final = SLOTS * SLOT_BYTES
# State (0: free), start (seconds since the epoch), trace id (high, low), route, bytes of text.
_HEAD = struct.Struct("<B7xdQQIH")
_TEXT = SLOT_BYTES - _HEAD.size
_TRIES = 3
_UNDER_WAY, _ON_LOOP = 1, 2


class InFlight(msgspec.Struct, frozen=True):
    """A request under way. `route` is its number in the worker's list of routes; `line` the request line's begin.

    `on_loop` is whether a filter's hook runs for it at this moment: if the event loop is blocked, this one blocks it.
    """

    start: float
    route: int
    trace: str
    line: str
    on_loop: bool = False


class InFlightTable:
    """The worker's side. A request too many is counted in `left_out`."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("sentinel-inflight", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, SIZE)
        self._memory = mmap.mmap(self.descriptor, SIZE)
        self._free = list(range(SLOTS - 1, -1, -1))
        self.left_out = 0

    def enter(self, start: float, route: int, trace: int, line: bytes) -> int:
        """A request is under way; its slot, or -1 where all are taken."""
        if not self._free:
            self.left_out += 1
            return -1
        slot = self._free.pop()
        text = line[:_TEXT]
        data = _HEAD.pack(_UNDER_WAY, start, trace >> 64, trace & 0xFFFFFFFFFFFFFFFF, route, len(text)) + text
        at = slot * SLOT_BYTES
        self._memory[at : at + len(data)] = data
        return slot

    def hold_loop(self, slot: int, *, holds: bool) -> None:
        """A filter's hook begins or ends."""
        self._memory[slot * SLOT_BYTES] = _ON_LOOP if holds else _UNDER_WAY

    def leave(self, slot: int) -> None:
        """It is over."""
        self._memory[slot * SLOT_BYTES] = 0
        self._free.append(slot)

    def close(self) -> None:
        """Give the memory back; a reader that has mapped it keeps its own."""
        self._memory.close()
        os.close(self.descriptor)


class InFlightView:
    """The agent's side."""

    def __init__(self, descriptor: int) -> None:
        """Map the table.

        Raises:
            OSError, ValueError: the descriptor is not of a table of this size.
        """
        if os.fstat(descriptor).st_size != SIZE:
            raise ValueError("the descriptor is not that of an in-flight table")
        self._memory = mmap.mmap(descriptor, SIZE, prot=mmap.PROT_READ)

    def count(self) -> int:
        """How many requests are under way."""
        return SLOTS - self._memory[0:SIZE:SLOT_BYTES].count(0)

    def read(self) -> list[InFlight]:
        """The requests under way, the oldest first."""
        memory = self._memory
        found = []
        for slot in range(SLOTS):
            at = slot * SLOT_BYTES
            for _ in range(_TRIES):
                data = memory[at : at + SLOT_BYTES]
                if data[0] == 0:
                    break
                if data == memory[at : at + SLOT_BYTES]:
                    found.append(_decode(data))
                    break
        return sorted((each for each in found if each is not None), key=lambda each: each.start)

    def close(self) -> None:
        """Unmap it."""
        self._memory.close()


def _decode(data: bytes) -> InFlight | None:
    state, start, high, low, route, length = _HEAD.unpack_from(data)
    if length > _TEXT or not 0 < start < 1e11:
        return None
    line = data[_HEAD.size : _HEAD.size + length].partition(b"\r")[0].decode("ascii", "replace")
    trace = f"{high << 64 | low:032x}" if high or low else ""
    return InFlight(start, route, trace, line.removesuffix(" HTTP/1.1"), state == _ON_LOOP)
