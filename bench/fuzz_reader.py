"""Replay spoilt images of real targets through the reader: `nice python bench/fuzz_reader.py [IMAGES] [PYTHON...]`.

Of each interpreter one target is recorded that stands still in a callback of its event loop, with tasks that wait and a second
thread. Then IMAGES copies with random damage (flipped bits, cut and missing pages, wild and circular pointers, sizes out of all
measure) are read, stacks and tasks, by two processes. They come in blocks of BLOCK: the first is attached to as if it
were a new target; the others come under a reader that is attached to the sound image, as a target that changes under it.

Prints per interpreter how many images were read, how many were refused (some reading ended in an error of the reader's
own), the slowest image and the most reading calls of one. Anything else, another exception, more than MOST_CALLS calls or
SECONDS for one image, ends the run with the number of the block that made it.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sentinel_agent.cpython.memory import ImageMemory
from sentinel_agent.cpython.process import Interpreter
from sentinel_agent.errors import TargetError
from tests.cpython.conftest import MINORS, python_of
from tests.cpython.images import Image, record, spoil, try_reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.cpython.memory import Range
    from tests.cpython.images import Pages

BLOCK, MOST_CALLS, SECONDS, PROCESSES = 20, 20_000, 20, 2
PROGRAM = """
import asyncio, sys, threading
async def rest(depth):
    if depth:
        return await rest(depth - 1)
    await asyncio.sleep(3600)
def stand(_):
    print(flush=True)
    threading.Event().wait()
async def main():
    tasks = [asyncio.ensure_future(rest(n)) for n in range(3)]
    await asyncio.sleep(0)
    sorted([1], key=stand)
threading.Thread(target=threading.Event().wait, daemon=True).start()
asyncio.run(main())
"""


class Result(NamedTuple):
    """Of one block: images, refused ones, the longest in seconds, the most calls."""

    images: int
    refused: int
    slowest: float
    most_calls: int


class Changing(ImageMemory):
    """An image that becomes another one under its reader."""

    def __init__(self, pages: Pages) -> None:
        super().__init__(pages)
        self.words: set[int] = set()
        self.watching = False

    def become(self, pages: Pages) -> None:
        """The same addresses, other content."""
        self._pages = dict(pages)
        self._starts = sorted(pages)
        self.calls = 0

    def read_many(self, ranges: Sequence[Range]) -> list[bytes | None]:
        if self.calls > MOST_CALLS:
            raise AssertionError(f"more than {MOST_CALLS} calls")
        if self.watching:
            for address, size in ranges:
                self.words.update(range(address & ~7, address + min(size, 4096), 8))
        return super().read_many(ranges)


def recorded(python: str) -> Image:
    """The image of a target that stands still."""
    target = subprocess.Popen([python, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert target.stdout
        target.stdout.readline()
        time.sleep(0.2)
        image = record(target.pid)
    finally:
        target.kill()
        target.communicate()
    return image


def often_read(image: Image) -> Image:
    """The same image, to be spoilt in the words that an attached reader reads anew each time."""
    memory = Changing(image.pages)
    reader = Interpreter(memory, image.layout, image.location.runtime)
    refused(reader)
    memory.watching = True
    refused(reader)
    words = sorted(word for word in memory.words if word // 4096 * 4096 in image.pages)
    return dataclasses.replace(image, words=tuple(words))


def refused(reader: Interpreter) -> bool:
    """Read stacks and tasks; whether one of them was refused."""
    answer = False
    for read in (reader.stacks, reader.task_count, lambda: reader.tasks(100)):
        try:
            read()
        except TargetError:
            answer = True
    return answer


def block(image: Image, hot: Image, number: int) -> Result:
    """Read the images of block `number`."""
    chance = random.Random(number)
    signal.alarm(SECONDS * BLOCK)
    began = time.perf_counter()
    was_refused, most_calls = try_reading(image, spoil(image, chance))
    count, slowest = int(was_refused), time.perf_counter() - began
    memory = Changing(image.pages)
    reader = Interpreter(memory, image.layout, image.location.runtime)
    for _ in range(BLOCK - 1):
        memory.become(spoil(hot, chance))
        began = time.perf_counter()
        count += refused(reader)
        slowest = max(slowest, time.perf_counter() - began)
        most_calls = max(most_calls, memory.calls)
    signal.alarm(0)
    assert slowest < SECONDS, f"{slowest:.1f} s for one image"
    return Result(BLOCK, count, slowest, most_calls)


_image: list[Image] = []


def _begin(image: Image) -> None:
    _image[:] = [image, often_read(image)]


def _block(number: int) -> Result:
    try:
        return block(_image[0], _image[1], number)
    except BaseException as error:
        raise RuntimeError(f"block {number}: {type(error).__name__}: {error}") from error


def main(images: int, pythons: list[str]) -> None:
    """Read them all and print."""
    total = 0
    for python in pythons:
        image = recorded(python)
        blocks = -(-images // (len(pythons) * BLOCK))
        began = time.perf_counter()
        with multiprocessing.Pool(PROCESSES, _begin, (image,)) as pool:
            results = list(pool.imap_unordered(_block, range(blocks), chunksize=8))
        count = sum(result.images for result in results)
        total += count
        print(
            f"{python}: {count} images of {len(image.pages)} pages in {time.perf_counter() - began:.0f} s, "
            f"{sum(result.refused for result in results)} refused, "
            f"slowest {max(result.slowest for result in results) * 1000:.0f} ms, "
            f"at most {max(result.most_calls for result in results)} calls",
            flush=True,
        )
    print(f"{total} images in all: no exception but the reader's own, no image over its caps")


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 10_000,
        sys.argv[2:] or [str(python_of(minor)) for minor in MINORS],
    )
