"""Who holds the memory of a process, by the shapes of its mappings: malloc's heap and arenas, thread stacks, everything else without a file.

Format: proc(5), `/proc/PID/maps`, and `/proc/PID/smaps`, which adds how much of each is resident. glibc's main arena is the kernel's `[heap]`;
each further one is a range of 64 MiB at a multiple of that size, of which the end is not accessible yet (malloc/arena.c, `HEAP_MAX_SIZE`);
a thread's stack lies above a small guard that nobody may touch (nptl/allocatestack.c). pymalloc's arenas and large blocks are mappings
without a shape of their own. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KINDS = ("main_heap", "malloc_arenas", "thread_stacks", "anonymous", "shared", "files")
_HEAD = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,16}) (\S{4}) [0-9a-f]+ \S+ (\d+)\s*(.*)")
_ARENA = 64 * 1024**2
_LARGEST_GUARD = 64 * 1024
_MAX_MAPPINGS = 100_000


@dataclass(slots=True)
class Mapping:
    """One range of address space; `resident` in bytes, 0 where it was not told."""

    start: int
    end: int
    access: str
    name: str
    inode: int
    resident: int = 0

    @property
    def size(self) -> int:
        """Bytes of address space."""
        return max(0, self.end - self.start)


@dataclass(slots=True)
class Total:
    """Mappings of one kind: how many, how much address space, how much of it is resident. Bytes."""

    count: int = 0
    bytes: int = 0
    resident_bytes: int = 0


def parse(lines: Iterable[str]) -> Iterator[Mapping]:
    """The mappings of `maps` or `smaps`, in the order of their addresses; lines that are neither are passed over."""
    last: Mapping | None = None
    found = 0
    for line in lines:
        head = _HEAD.fullmatch(line)
        if head:
            if last is not None:
                yield last
            found += 1
            if found > _MAX_MAPPINGS:
                return
            start, end, access, inode, name = head.groups()
            last = Mapping(int(start, 16), int(end, 16), access, name, int(inode[:20]))
        elif last is not None and line.startswith("Rss:"):
            words = line.split()
            last.resident = int(words[1][:15]) * 1024 if len(words) == 3 and words[1].isdecimal() else 0
    if last is not None:
        yield last


def totals(mappings: Iterable[Mapping]) -> dict[str, Total]:
    """By kind, all of `KINDS`; what may not be accessed at all is counted with nothing."""
    known = [*mappings]
    sums = {kind: Total() for kind in KINDS}
    for number, each in enumerate(known):
        if each.access.startswith("---"):
            continue
        below = known[number - 1] if number and known[number - 1].end == each.start else None
        above = known[number + 1] if number + 1 < len(known) and known[number + 1].start == each.end else None
        total = sums[_kind(each, below, above)]
        total.count += 1
        total.bytes += each.size
        total.resident_bytes += each.resident
    return sums


def _kind(each: Mapping, below: Mapping | None, above: Mapping | None) -> str:
    if each.name.startswith("[heap"):
        return "main_heap"
    if each.access.endswith("s"):
        return "shared"
    if each.inode or each.name.startswith(("/", "[v")):  # [vdso], [vvar], [vsyscall]
        return "files"
    if each.start % _ARENA == 0 and each.size <= _ARENA:
        rest = above.end if above is not None and above.access.startswith("---") else each.end
        if rest == each.start + _ARENA:
            return "malloc_arenas"
    guarded = below is not None and below.access.startswith("---") and below.size <= _LARGEST_GUARD
    return "thread_stacks" if guarded or each.name.startswith("[stack") else "anonymous"
