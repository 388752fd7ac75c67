"""The garbage collector of a live CPython: what it has done so far, and whether it is collecting just now.

What is read is what `gc.get_stats()` gives (Modules/gcmodule.c; Python/gc.c from 3.13 on), of the main interpreter. 3.15 keeps the
last few collections of each generation in a ring; the newest entry has the sums.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sentinel_agent.cpython.memory import UnreadableError, must_read

if TYPE_CHECKING:
    from sentinel_agent.cpython.layouts.model import Layout
    from sentinel_agent.cpython.memory import Memory

GENERATIONS = 3
_MOST = 1 << 48


@dataclass(frozen=True, slots=True)
class Generation:
    """Sums since the start of the process: collections, objects that they freed, objects that they could not."""

    collections: int
    collected: int
    uncollectable: int


@dataclass(frozen=True, slots=True)
class CollectorState:
    """One look; `generations` are the youngest first."""

    collecting: bool
    generations: tuple[Generation, ...]

    @property
    def collections(self) -> int:
        """Collections of any generation that have ended."""
        return sum(generation.collections for generation in self.generations)


class Collector:
    """The collector whose `_gc_runtime_state` is at `address`."""

    def __init__(self, memory: Memory, layout: Layout, address: int) -> None:
        self._memory = memory
        self._gc = layout.gc
        self._at = address

    @property
    def address(self) -> int:
        """Where it is."""
        return self._at

    def idle(self) -> bool:
        """Whether it is surely not collecting: the cheapest of looks."""
        return self._memory.read(self._at + self._gc.collecting, 4) == bytes(4)

    def read(self) -> CollectorState:
        """One look; a single reading call (three from 3.15 on). The flag is read last.

        So a collection that is under way has the count that it will have until it ends, or an older one.

        Raises:
            UnreadableError: it cannot be read, or is not what a collector has.
        """
        gc = self._gc
        if gc.old >= 0:
            (pointer,) = self._read((gc.stats, 8))
            items = self._newest(int.from_bytes(pointer, "little"))
            (collecting,) = self._read((gc.collecting, 4))
        else:
            stats, collecting = self._read((gc.stats, GENERATIONS * gc.stats_size), (gc.collecting, 4))
            items = [stats[number * gc.stats_size :] for number in range(GENERATIONS)]
        flag = int.from_bytes(collecting, "little")
        generations = tuple(self._generation(item) for item in items)
        if flag > 1:
            raise UnreadableError(f"the garbage collector's flag reads {flag}: 0 or 1 was expected")
        return CollectorState(bool(flag), generations)

    def _read(self, *fields: tuple[int, int]) -> list[bytes]:
        found = self._memory.read_many([(self._at + offset, size) for offset, size in fields])
        if None in found:
            raise UnreadableError("the state of the garbage collector cannot be read")
        return [data for data in found if data is not None]

    def _newest(self, address: int) -> list[bytes]:
        """The newest entry of each ring."""
        gc = self._gc
        data = must_read(self._memory, address, gc.old + 2 * gc.old_size)
        rings = [(0, gc.young_index)] + [
            (start, start + gc.old_index) for start in (gc.old, gc.old + gc.old_size)
        ]
        items = []
        for start, index in rings:
            if not 0 <= data[index] < (index - start) // gc.stats_size:
                raise UnreadableError(f"a ring of the garbage collector is at {data[index]}")
            items.append(data[start + data[index] * gc.stats_size :])
        return items

    def _generation(self, item: bytes) -> Generation:
        gc = self._gc
        counts = [
            struct.unpack_from("<q", item, at)[0] for at in (gc.collections, gc.collected, gc.uncollectable)
        ]
        if not all(0 <= count < _MOST for count in counts):
            raise UnreadableError(f"the garbage collector's counts read {counts}")
        return Generation(*counts)
