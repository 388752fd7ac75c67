"""Recorded images of real targets, and ways to spoil them."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel_agent.cpython.elf import Location, locate
from sentinel_agent.cpython.memory import ImageMemory, ProcessMemory, RecordingMemory
from sentinel_agent.cpython.process import Interpreter, choose_layout
from sentinel_agent.errors import TargetError

if TYPE_CHECKING:
    from sentinel_agent.cpython.layouts.model import Layout

_PAGE = 4096
Pages = dict[int, bytes]


@dataclass(frozen=True)
class Image:
    """The pages that a full reading of one target touched, and where its interpreter is."""

    layout: Layout
    location: Location
    pages: Pages


def record(pid: int) -> Image:
    """Read everything there is to read in a target, and keep what was touched."""
    location = locate(Path("/proc", str(pid)))
    memory = RecordingMemory(ProcessMemory(pid))
    layout = choose_layout(memory, location)
    read_all(Interpreter(memory, layout, location.runtime))
    return Image(layout, location, memory.image())


def read_all(reader: Interpreter) -> tuple[int, int]:
    """Use the whole reader; how many frames and tasks it showed."""
    frames = sum(len(view.frames) for view in reader.stacks())
    reader.sample()
    reader.task_count()
    dump = reader.tasks(1000)
    return frames, sum(len(task.frames) for task in dump.tasks) + sum(frame.line or 0 for t in dump.tasks for frame in t.frames)


def spoil(image: Image, chance: random.Random) -> Pages:
    """A copy of the pages with a few of them damaged."""
    pages = dict(image.pages)
    starts = list(pages)
    for _ in range(chance.randint(1, 12)):
        start = chance.choice(starts)
        if start not in pages:
            continue
        way = chance.randrange(6)
        if way == 0:
            del pages[start]
        elif way == 1:
            pages[start] = pages[start][: chance.randrange(_PAGE)]
        else:
            pages[start] = _damaged(pages[start], start, way, starts, chance)
    return pages


def _damaged(page: bytes, start: int, way: int, starts: list[int], chance: random.Random) -> bytes:
    data = bytearray(page.ljust(_PAGE, b"\0"))
    at = chance.randrange(_PAGE // 8) * 8
    if way == 2:  # a flipped bit
        data[at + chance.randrange(8)] ^= 1 << chance.randrange(8)
    elif way == 3:  # a pointer elsewhere
        data[at : at + 8] = struct.pack("<Q", chance.choice(starts) + chance.randrange(_PAGE // 8) * 8)
    elif way == 4:  # pointers to themselves or to each other: loops
        for place in range(at, min(at + 64, _PAGE), 8):
            data[place : place + 8] = struct.pack("<Q", start + chance.choice((at, place)))
    else:  # sizes out of all measure, negative ones, and noise
        value = chance.choice((0, 1, (1 << 64) - 1, 1 << 63, 1 << 40, chance.getrandbits(64)))
        data[at : at + 8] = struct.pack("<Q", value)
    return bytes(data)


def try_reading(image: Image, pages: Pages) -> tuple[bool, int]:
    """Read a spoilt image: whether the reader refused it with an error of its own, and in how many calls."""
    memory = ImageMemory(pages)
    try:
        layout = choose_layout(memory, image.location)
        read_all(Interpreter(memory, layout, image.location.runtime))
    except TargetError:
        return True, memory.calls
    return False, memory.calls
