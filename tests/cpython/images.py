"""Recorded images of real targets, and ways to spoil them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel_agent.cpython.elf import Location, locate
from sentinel_agent.cpython.memory import ImageMemory, ProcessMemory, RecordingMemory
from sentinel_agent.cpython.process import Interpreter, choose_layout
from sentinel_agent.errors import TargetError

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from sentinel_agent.cpython.layouts.model import Layout
    from sentinel_agent.cpython.memory import Range

_PAGE = 4096
Pages = dict[int, bytes]


@dataclass(frozen=True)
class Image:
    """The pages that a full reading of one target touched, and where its interpreter is."""

    layout: Layout
    location: Location
    pages: Pages
    words: tuple[int, ...]  # addresses of the words that were read


class _Watched(ImageMemory):
    """Notes which words are read."""

    def __init__(self, pages: Pages) -> None:
        super().__init__(pages)
        self.words: dict[int, None] = {}

    def read_many(self, ranges: Sequence[Range]) -> list[bytes | None]:
        for address, size in ranges:
            self.words.update(dict.fromkeys(range(address & ~7, address + min(size, _PAGE), 8)))
        return super().read_many(ranges)


def record(pid: int) -> Image:
    """Read everything there is to read in a target, and keep what was touched."""
    location = locate(Path("/proc", str(pid)))
    memory = RecordingMemory(ProcessMemory(pid))
    layout = choose_layout(memory, location)
    read_all(Interpreter(memory, layout, location.runtime))
    watched = _Watched(memory.image())
    read_all(Interpreter(watched, layout, location.runtime))
    pages = memory.image()
    return Image(
        layout, location, pages, tuple(word for word in watched.words if word // _PAGE * _PAGE in pages)
    )


def read_all(reader: Interpreter) -> tuple[int, int]:
    """Use the whole reader; how many frames and tasks it showed."""
    frames = sum(len(view.frames) for view in reader.stacks())
    reader.sample()
    reader.task_count()
    dump = reader.tasks(1000)
    return frames, sum(len(task.frames) for task in dump.tasks) + sum(
        frame.line or 0 for t in dump.tasks for frame in t.frames
    )


def spoil(image: Image, chance: random.Random) -> Pages:
    """A copy of the pages with a few of them damaged."""
    pages = dict(image.pages)
    for _ in range(chance.randint(1, 12)):
        word = chance.choice(image.words)
        start, at = word // _PAGE * _PAGE, word % _PAGE
        if start not in pages:
            continue
        way = chance.randrange(30)
        if way == 0:
            del pages[start]
        elif way == 1:
            pages[start] = pages[start][:at]
        else:
            data = bytearray(pages[start].ljust(_PAGE, b"\0"))
            for place, value in _damage(way, word, bytes(data[at : at + 8]), image.words, chance):
                if place + 8 <= start + _PAGE:
                    data[place - start : place - start + 8] = struct.pack("<Q", value)
            pages[start] = bytes(data)
    return pages


def _damage(
    way: int, word: int, old: bytes, words: tuple[int, ...], chance: random.Random
) -> list[tuple[int, int]]:
    """Addresses and values of the words to be written."""
    if way % 4 == 0:  # a flipped bit
        return [(word, int.from_bytes(old, "little") ^ 1 << chance.randrange(64))]
    if way % 4 == 1:  # a pointer to something else that is read
        return [(word, chance.choice(words))]
    if way % 4 == 2:  # pointers to themselves or into each other: loops
        return [(place, chance.choice((word, place))) for place in range(word, word + 64, 8)]
    # Sizes out of all measure, negative ones, and noise.
    return [
        (
            word,
            chance.choice(
                (0, 1, 255, 1 << 20, 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1, chance.getrandbits(64))
            ),
        )
    ]


def try_reading(image: Image, pages: Pages) -> tuple[bool, int]:
    """Read a spoilt image: whether the reader refused it with an error of its own, and in how many calls."""
    memory = ImageMemory(pages)
    try:
        layout = choose_layout(memory, image.location)
        read_all(Interpreter(memory, layout, image.location.runtime))
    except TargetError:
        return True, memory.calls
    return False, memory.calls
