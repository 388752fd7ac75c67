"""What a stack reading is, and what a walk must be able to do. The walks are in `walk_chunks` and `walk_objects`.

A stack is *whole* if its chain of frames, read in one gathering call, is closed and ends in the thread's root
frame. What is torn is kept as *partial*: the leaf's part, TORN, the root's part, each as read. Nothing is guessed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, Protocol

from sentinel_agent.cpython.code import TORN, Frame

MAX_DEPTH = 2000
"""Most frames of a stack. A deeper one is partial: its leaf's part, then TORN."""
ATTEMPTS = 3
"""How often a torn stack is read again before it is given out as partial or failed."""

Kind = Literal["whole", "partial", "failed"]


@dataclass(frozen=True, slots=True)
class Stack:
    """One thread's frames at one moment, innermost first. A failed one has no frames; a whole one may have none either.

    `addresses` are those of the frames in the target, one for one, 0 for TORN.
    """

    kind: Kind
    frames: tuple[Frame, ...]
    addresses: tuple[int, ...]


FAILED = Stack("failed", (), ())


@dataclass(frozen=True, slots=True)
class Reading:
    """What a walk read of one thread: the stack and the thread's own state as raw bytes, None where it could not be read."""

    stack: Stack
    state: bytes | None


class Walk(Protocol):
    """Reads the stack of one thread again and again; remembers what helps to do it in one call."""

    def read(self) -> Reading:
        """Read the stack. Raises nothing but the errors of the memory."""
        ...


class RecentFrames:
    """Addresses of the frames that the last walks met outside a data stack: those that the next call asks for.

    Every range of a gathering call costs a microsecond or two, so the set is kept as small as the deepest recent
    chain allows: frames not met for `KEEP` walks go, and the least recently met go when there are too many.
    """

    KEEP = 50
    SPARE = 32

    def __init__(self, most: int) -> None:
        self._met: dict[int, int] = {}
        self._most = most
        self._deepest = 0.0
        self._walk = 0

    def addresses(self) -> list[int]:
        """The addresses to ask for, the most recently met last."""
        return list(self._met)

    def meet(self, chain: list[int]) -> None:
        """Note the frames of one walk."""
        self._walk += 1
        for address in chain:
            self._met.pop(address, None)
            self._met[address] = self._walk
        self._deepest = max(len(chain), self._deepest - (self._deepest - len(chain)) / self.KEEP)
        limit = min(self._deepest + self.SPARE, self._most)
        while self._met:
            oldest = next(iter(self._met))
            if len(self._met) <= limit and self._walk - self._met[oldest] <= self.KEEP:
                break
            del self._met[oldest]


class Places:
    """A run of frames, innermost first, each with its address."""

    __slots__ = ("addresses", "frames")

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.addresses: list[int] = []

    def add(self, frame: Frame, address: int) -> None:
        """Append the caller of the frames so far."""
        self.frames.append(frame)
        self.addresses.append(address)

    def reverse(self) -> None:
        """Turn a run that was read from the root."""
        self.frames.reverse()
        self.addresses.reverse()


def whole(places: Places) -> Stack:
    """A stack that was read from end to end."""
    return Stack("whole", tuple(places.frames), tuple(places.addresses))


def partial(leaf: Places, root: Places) -> Stack:
    """The two ends of a torn stack; failed if there is nothing of either."""
    if not leaf.frames and not root.frames:
        return FAILED
    return Stack("partial", (*leaf.frames, TORN, *root.frames), (*leaf.addresses, 0, *root.addresses))


def fields(*places: tuple[int, str]) -> struct.Struct:
    """A little-endian struct of the given fields: offset and `struct` letter each, in rising order of offset."""
    text, at = "<", 0
    for offset, letter in places:
        text += f"{offset - at}x{letter}"
        at = offset + struct.calcsize("<" + letter)
    return struct.Struct(text)
