"""How many objects of each type the garbage collector of a live CPython tracks, and how many bytes they take by themselves.

The collector keeps its objects in doubly linked lists, one per generation (Include/internal/pycore_gc.h, `PyGC_Head` before each
object). They are walked from outside, through blocks that are read at once and kept for a while, since neighbours in a list are
mostly neighbours in memory. The target goes on meanwhile, so a list changes under the walk: one that leads nowhere, or in a circle,
is left where that is found, which is counted; what was counted up to there stays.

Bytes are the object's own: `tp_basicsize`, its items, the collector's head, and the buffer of a list or set. Tables of dicts, and what is
not tracked (str, bytes, int, arrays), are not in them: counts tell more than bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sentinel_agent.cpython.memory import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.cpython.memory import Memory
    from sentinel_agent.cpython.objects import Objects

_BLOCK = 1 << 14
_BLOCKS = 256
"""So many blocks are kept: 4 MiB."""
_HEAD = 16  # bytes of `PyGC_Head`; the lowest bits of its pointers are flags
_GENERATION = 24  # bytes of `gc_generation`
_SPAN = 64  # bytes from the head on that are looked at
_REST_EVERY = 2000  # objects
_MAX_TYPES = 20_000
_MAX_ITEMS = 1 << 40
_NAMES = 512


@dataclass(frozen=True, slots=True)
class CensusLimits:
    """The most objects that are counted in one census."""

    objects: int = 3_000_000


@dataclass(frozen=True, slots=True)
class TypeCount:
    """Objects of the types of one name."""

    name: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Census:
    """What was counted, the most bytes first. `torn` is how many lists were left before their end, `cut` whether the limit was reached."""

    objects: int
    types: tuple[TypeCount, ...]
    torn: int
    cut: bool
    reads: int


@dataclass(slots=True)
class _Kind:
    """A type while it is counted. `extra` reads the size of a buffer of its own from the object."""

    basic: int
    item: int
    extra: str
    count: int = 0
    bytes: int = 0


class _Blocks:
    """Memory that was read in blocks; a block stays as it was when it was read, and the oldest makes room."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._known: dict[int, bytes | None] = {}
        self.reads = 0

    def span(self, address: int) -> tuple[bytes, int] | None:
        """Bytes with `_SPAN` of them from `address` on, and where in them that is; None if it cannot be read."""
        start = address & -_BLOCK
        at = address - start
        if at > _BLOCK - _SPAN:
            return self._direct(address)
        if start not in self._known:
            if len(self._known) >= _BLOCKS:
                del self._known[next(iter(self._known))]
            self.reads += 1
            self._known[start] = self._memory.read(start, _BLOCK)
        block = self._known[start]
        return (block, at) if block is not None else self._direct(address)

    def _direct(self, address: int) -> tuple[bytes, int] | None:
        self.reads += 1
        data = self._memory.read(address, _SPAN)
        return None if data is None else (data, 0)


@dataclass(slots=True)
class _Count:
    objects: Objects
    most: int
    rest: Callable[[], None]
    blocks: _Blocks
    kinds: dict[int, _Kind | None] = field(default_factory=dict)
    counted: int = 0
    torn: int = 0
    cut: bool = False


def take_census(objects: Objects, collector: int, limits: CensusLimits, rest: Callable[[], None]) -> Census:
    """Walk all lists of the collector at `collector`. `rest` is called now and then: it may sleep, or raise to end the walk.

    Raises:
        UnreadableError: not one of the lists can be read.
    """
    gc = objects.layout.gc
    heads = [collector + gc.generations + number * _GENERATION for number in range(3)]
    count = _Count(objects, limits.objects, rest, _Blocks(objects.memory))
    for head in (*heads, collector + gc.permanent):
        if not count.cut:
            _walk(count, head)
    if not count.counted and count.torn:
        raise UnreadableError("the lists of the garbage collector cannot be read")
    return Census(count.counted, _by_name(count), count.torn, count.cut, count.blocks.reads)


def _walk(count: _Count, head: int) -> None:
    """One list, from its head until it comes back there; Brent's algorithm finds a circle that does not."""
    layout = count.objects.layout.objects
    type_at, size_at = _HEAD + layout.ob_type, _HEAD + layout.ob_size
    words = struct.Struct("<Q")
    found = count.objects.memory.read(head, 8)
    at = words.unpack(found)[0] & ~3 if found else 0
    if not at:
        count.torn += 1
        return
    tortoise, steps, power = head, 0, 1
    while at != head:
        span = count.blocks.span(at)
        if span is None:
            count.torn += 1
            return
        if count.counted >= count.most:
            count.cut = True
            return
        data, offset = span
        (type_address,) = words.unpack_from(data, offset + type_at)
        if not _add(count, type_address, data, offset, size_at):
            count.torn += 1
            return
        at = words.unpack_from(data, offset)[0] & ~3
        count.counted += 1
        steps += 1
        if at == tortoise and at != head:
            count.torn += 1
            return
        if steps == power:
            tortoise, steps, power = at, 0, power * 2
        if count.counted % _REST_EVERY == 0:
            count.rest()


def _add(count: _Count, type_address: int, data: bytes, offset: int, size_at: int) -> bool:
    """Count one object; False if what it calls its type is none."""
    kinds = count.kinds
    if type_address not in kinds:
        if len(kinds) >= _MAX_TYPES:
            return False
        kinds[type_address] = _kind(count.objects, type_address)
    kind = kinds[type_address]
    if kind is None:
        return False
    kind.count += 1
    kind.bytes += kind.basic
    if kind.item or kind.extra:
        kind.bytes += _variable(count.objects, kind, data, offset, size_at)
    return True


def _variable(objects: Objects, kind: _Kind, data: bytes, offset: int, size_at: int) -> int:
    """Bytes of the items, within the object or in the buffer of its own."""
    layout = objects.layout
    if kind.extra == "list":
        (items,) = struct.unpack_from("<q", data, offset + _HEAD + layout.objects.list_item + 8)
        return 8 * items if 0 <= items < _MAX_ITEMS else 0
    if kind.extra == "set":
        (mask,) = struct.unpack_from("<q", data, offset + _HEAD + layout.set.mask)
        return 16 * (mask + 1) if 8 <= mask < _MAX_ITEMS else 0  # 8 entries are within the object
    (items,) = struct.unpack_from("<q", data, offset + size_at)
    return kind.item * abs(items) if abs(items) < _MAX_ITEMS else 0


def _kind(objects: Objects, address: int) -> _Kind | None:
    """What is used of a type; None if it is none, by its own type and its size."""
    try:
        basic = objects.basicsize(address)
        item = objects.word(address + objects.layout.objects.type_basicsize + 8)  # tp_itemsize follows
        name = objects.type_name(address)
    except UnreadableError:
        return None
    if not 16 <= basic < 1 << 24 or item >= 1 << 16:
        return None
    extra = {"list": "list", "set": "set", "frozenset": "set"}.get(name, "")
    if name == "type":  # its items are counted by its own rules
        item = 0
    return _Kind(basic + _HEAD, 0 if extra else item, extra)


def _by_name(count: _Count) -> tuple[TypeCount, ...]:
    """Types of one name are put together: a class that is made anew for each request is one kind of leak."""
    sums: dict[str, list[int]] = {}
    for address, kind in count.kinds.items():
        if kind is None or not kind.count:
            continue
        try:
            name = count.objects.type_name(address)
        except UnreadableError:
            name = "<unreadable>"
        entry = sums.setdefault(name[:_NAMES], [0, 0])
        entry[0] += kind.count
        entry[1] += kind.bytes
    order = sorted(sums.items(), key=lambda item: (-item[1][1], item[0]))
    return tuple(TypeCount(name, number, size) for name, (number, size) in order)
