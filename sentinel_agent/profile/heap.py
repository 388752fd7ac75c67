"""A heap profile as pprof: which lines hold memory, and which allocated it while it was watched.

Sample types as Go's heap profile has them (github.com/google/pprof, proto/profile.proto; runtime/pprof): `alloc_objects`,
`alloc_space`, `inuse_objects`, `inuse_space`, the last being the default. Tracemalloc does not count what was freed again: `alloc`
is what was allocated while it was watched and is still held.
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.profile.protobuf import block, integer, packed

if TYPE_CHECKING:
    from collections.abc import Sequence

_NANO = 1_000_000_000
_TYPES = (
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
)


class HeapLine(msgspec.Struct, frozen=True):
    """One line of a traceback; `function` is empty where it is not known, as it is to tracemalloc."""

    file: str
    line: int
    function: str = ""


class HeapSite(msgspec.Struct, frozen=True):
    """Blocks with one traceback, innermost line first: what it allocated meanwhile, and all that it holds."""

    bytes: int
    blocks: int
    held_bytes: int
    held_blocks: int
    lines: tuple[HeapLine, ...]


def encode(sites: Sequence[HeapSite], *, start: float, seconds: float, source: str) -> bytes:
    """The gzipped profile; `start` in seconds since the epoch. The same sites give the same bytes."""
    strings: dict[str, int] = {"": 0}

    def text(word: str) -> int:
        return strings.setdefault(word, len(strings))

    types = [integer(1, text(name)) + integer(2, text(unit)) for name, unit in _TYPES]
    numbers: dict[HeapLine, int] = {}
    samples = []
    for site in sites:
        where = [numbers.setdefault(line, len(numbers) + 1) for line in site.lines]
        values = [site.blocks, site.bytes, site.held_blocks, site.held_bytes]
        samples.append(block(2, packed(1, where) + packed(2, values)))
    mapping = b"".join([integer(1, 1), integer(7, 1), integer(8, 1), integer(9, 1)])
    parts = [*(block(1, each) for each in types), *samples, block(3, mapping)]
    for line, number in numbers.items():
        parts.append(
            block(
                4, integer(1, number) + integer(2, 1) + block(4, integer(1, number) + integer(2, line.line))
            )
        )
    for line, number in numbers.items():
        name = text(line.function or f"{line.file}:{line.line}")
        parts.append(block(5, integer(1, number) + integer(2, name) + integer(4, text(line.file))))
    parts += [
        integer(9, round(start * _NANO)),
        integer(10, round(seconds * _NANO)),
        packed(13, [text(source)]),
        integer(14, text("inuse_space")),
    ]
    parts += [block(6, word.encode("utf-8")) for word in strings]
    return gzip.compress(b"".join(parts), mtime=0)
