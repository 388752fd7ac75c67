"""The census against what the target itself counts, and against lists that change or lie."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.cpython.census import CensusLimits, take_census
from sentinel_agent.cpython.memory import UnreadableError
from sentinel_agent.cpython.process import Interpreter, open_process

if TYPE_CHECKING:
    from pathlib import Path

KEEPS = """
import gc, json, sys
from collections import Counter
class Session:
    def __init__(self): self.items = [1] * 10
kept = [Session() for _ in range(5000)]
kept_sets = [set(range(100)) for _ in range(300)]
gc.collect(); gc.disable()
counts = Counter(type(item).__name__ for item in gc.get_objects())
if "freeze" in sys.argv: gc.freeze()
print(json.dumps({name: counts[name] for name in ("Session", "set", "list")}), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("frozen", [(), ("freeze",)], ids=["plain", "frozen"])
def test_every_tracked_object_is_counted_once(
    python: Path, start_target: object, frozen: tuple[str, ...]
) -> None:
    """The counts are those of `gc.get_objects()`, what was frozen included; bytes have the buffers of lists and sets."""
    target = start_target(python, "-c", KEEPS, *frozen)  # type: ignore[operator]  # the fixture of this room
    census = open_process(target.pid).census(CensusLimits())
    counted = {each.name: each.count for each in census.types}
    for name, count in target.truth.items():
        assert counted[name] == pytest.approx(count, abs=5)
    assert (census.torn, census.cut) == (0, False)
    sizes = {each.name: each.bytes for each in census.types}
    assert sizes["list"] > 5000 * 80
    assert sizes["set"] > 300 * 16 * 128
    assert census.reads < census.objects / 3


CHANGES = """
import gc, sys
class Session: pass
kept = [Session() for _ in range(20000)]
print("ready", flush=True)
while True:
    kept = [Session() for _ in range(20000)]
    gc.collect()
"""


def test_a_list_that_changes_under_the_walk_ends_it_and_never_the_target_or_us() -> None:
    """Thirty walks over lists that are rebuilt all the time: each is bounded, and says whether it was torn."""
    process = subprocess.Popen([sys.executable, "-c", CHANGES], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        process.stdout.readline()
        interpreter = open_process(process.pid)
        for _ in range(30):
            try:
                census = interpreter.census(CensusLimits(200_000))
            except UnreadableError:
                continue
            assert census.objects <= 200_000
            assert sum(each.count for each in census.types) == census.objects
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_the_limit_cuts_the_walk() -> None:
    """More objects than may be counted: so many are, and the census says that there are more."""
    interpreter, process = _own_target()
    try:
        census = interpreter.census(CensusLimits(100))
    finally:
        process.kill()
        process.communicate()
    assert census.objects == 100
    assert census.cut


class _Circle:
    """Memory in which every word points to one place: a list without an end."""

    calls = 0

    def __init__(self, real: object, head: int) -> None:
        self._real, self._head = real, head

    def read(self, address: int, size: int) -> bytes | None:
        if address == self._head:
            return (0x7000_0000_1000).to_bytes(8, "little")
        if 0x7000_0000_0000 <= address < 0x7000_0001_0000:
            return (0x7000_0000_1000).to_bytes(8, "little") * (size // 8)
        return self._real.read(address, size)  # type: ignore[attr-defined, no-any-return]  # a Memory

    def read_many(self, ranges: list[tuple[int, int]]) -> list[bytes | None]:
        return [self.read(*each) for each in ranges]


def test_a_list_that_goes_in_a_circle_is_left() -> None:
    """A hostile target cannot keep the walk busy for ever."""
    interpreter, process = _own_target()
    try:
        objects = interpreter._objects
        collector = interpreter.collector().address
        objects.memory = _Circle(objects.memory, collector + interpreter.layout.gc.generations)  # type: ignore[assignment]
        census = take_census(objects, collector, CensusLimits(), lambda: None)
    finally:
        process.kill()
        process.communicate()
    assert census.torn == 1


def _own_target() -> tuple[Interpreter, subprocess.Popen[bytes]]:
    code = "print('ready', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return open_process(process.pid), process
