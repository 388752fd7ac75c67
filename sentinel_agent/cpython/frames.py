"""What a stack reading is, and what a walk must be able to do. The walks are in `walk_chunks` and `walk_objects`.

A stack is *whole* if its chain of frames, read in one gathering call, is closed and ends in the thread's root
frame. What is torn is kept as *partial*: the leaf's part, TORN, the root's part, each as read. Nothing is guessed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, Protocol

from sentinel_agent.cpython.code import TORN, Frame
from sentinel_agent.cpython.elf import UnsupportedTargetError

MAX_DEPTH = 2000
"""Most frames of a stack. A deeper one is partial: its leaf's part, then TORN."""
ATTEMPTS = 4
"""How often a torn stack is read again before it is given out as partial or failed."""

_FORGET = 50  # walks after which a deep chain no longer keeps the set large

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


class Recent:
    """What the last walks met outside a data stack, frames or pages: that is what the next call asks for.

    Every range of a gathering call costs time in which the target goes on, so as few are kept as the deepest recent chain
    needs, and `spare` more; never more than `most`. The least recently met go first.
    """

    def __init__(self, most: int, spare: int) -> None:
        self._met: dict[int, None] = {}
        self._most = most
        self._spare = spare
        self._deepest = 0.0

    def keys(self) -> list[int]:
        """What to ask for, the most recently met last."""
        return list(self._met)

    def meet(self, keys: list[int]) -> None:
        """Note what one walk met."""
        for key in keys:
            self._met.pop(key, None)
            self._met[key] = None
        count = len(keys)
        self._deepest = max(count, self._deepest - (self._deepest - count) / _FORGET)
        limit = min(self._deepest + self._spare, self._most)
        while len(self._met) > limit:
            del self._met[next(iter(self._met))]


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
    """A little-endian struct of the given fields: offset and `struct` letter each, in rising order of offset.

    Raises:
        UnsupportedTargetError: they are in another order or overlap; offsets may come from the target.
    """
    text, at = "<", 0
    for offset, letter in places:
        if offset < at:
            raise UnsupportedTargetError(
                f"the target's fields lie as no CPython has them: one at {offset}, expected from {at} on"
            )
        text += f"{offset - at}x{letter}"
        at = offset + struct.calcsize("<" + letter)
    return struct.Struct(text)
