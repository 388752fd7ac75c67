"""What a stack reading is, and what a walk must be able to do. The walks are in `walk_chunks` and `walk_objects`.

A stack is *whole* if its chain of frames, read in one gathering call, is closed and ends in the thread's root
frame. What is torn is kept as *partial*: the leaf's part, TORN, the root's part, each as read. Nothing is guessed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from sentinel_agent.cpython.code import TORN, Frame
from sentinel_agent.cpython.elf import UnsupportedTargetError

if TYPE_CHECKING:
    from sentinel_agent.cpython.layouts.model import Layout
    from sentinel_agent.cpython.memory import Gathering

MAX_DEPTH = 2000
"""Most frames of a stack. A deeper one is partial: its leaf's part, then TORN."""
ATTEMPTS = 4
"""How often a torn stack is read again before it is given out as partial or failed."""

_STATE_WORDS = (
    "next",
    "interp",
    "id",
    "thread_id",
    "native_thread_id",
    "frame",
    "cframe",
    "current_frame",
    "datastack_chunk",
    "datastack_top",
    "base_frame",
)
_WORTH_IT = 1 / 3
_REMEMBERED = 12  # looks
_TRIED_EVERY = 16
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


class StateFormat:
    """The words of a `PyThreadState` that are of use, and where in the tuple that `unpack` makes each of them is."""

    def __init__(self, layout: Layout) -> None:
        """Work it out.

        Raises:
            UnsupportedTargetError: the target says that two of them are at the same place.
        """
        thread = layout.thread
        offsets = {name: offset for name in _STATE_WORDS if (offset := getattr(thread, name)) >= 0}
        words = sorted(offsets.values())
        self.size = thread.size
        self.unpack = fields(*((offset, "Q") for offset in words)).unpack_from
        self._index = {name: words.index(offset) for name, offset in offsets.items()}
        self.next, self.interp, self.id, self.thread_id = (
            self._index[name] for name in ("next", "interp", "id", "thread_id")
        )

    def index(self, name: str) -> int:
        """Where the word `name` is; -1 if this CPython has none."""
        return self._index.get(name, -1)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a walk read of one thread: the stack and the thread's state as `StateFormat` has it, None where it could not be read."""

    stack: Stack
    state: tuple[int, ...] | None


class Walk(Protocol):
    """Reads the stack of one thread again and again; remembers what helps to do it in one call.

    This is the seam at which a native walk can take the place of those here.
    """

    def gathering(self) -> Gathering:
        """What the next reading needs, so that it can be gathered together with that of other threads."""
        ...

    def read(self, data: memoryview | None = None) -> Reading:
        """Read the stack: from `data`, which is of `gathering()`, as far as that will do.

        Equal bytes give the same `Reading` object, as a rule. Raises nothing but the errors of the memory.
        """
        ...

    def forget(self) -> None:
        """Some code of the target is not what it was: equal bytes may mean another stack."""
        ...


class Recent:
    """What the last walks met outside a data stack, frames or pages: that is what the next call asks for.

    Every range of a gathering call costs time in which the target goes on, so as few are kept as the deepest recent chain
    needs, and `spare` more; never more than `most`. The least recently met go first.
    """

    def __init__(self, most: int, spare: int) -> None:
        self._met: dict[int, None] = {}
        self._newest: list[int] = []
        self._most = most
        self._spare = spare
        self._deepest = 0.0

    def keys(self) -> list[int]:
        """What to ask for, the most recently met last."""
        return list(self._met)

    def meet(self, keys: list[int]) -> bool:
        """Note what one walk met; whether there is now more or less to ask for."""
        count = len(keys)
        if keys == self._newest and count == self._deepest:
            return False
        self._newest = keys
        before = len(self._met)
        for key in keys:
            self._met.pop(key, None)
            self._met[key] = None
        changed = len(self._met) > before
        self._deepest = max(count, self._deepest - (self._deepest - count) / _FORGET)
        limit = min(self._deepest + self._spare, self._most)
        while len(self._met) > limit:
            del self._met[next(iter(self._met))]
            changed = True
        return changed

    def lose(self, key: int) -> None:
        """Ask for it no more."""
        self._met.pop(key, None)
        self._newest = []


class Patience:
    """Whether a torn stack is worth reading again: only as long as that has made some of them whole.

    Of a target that never stands still for as long as a look takes, another look is as torn as the first, costs as much, and shows
    what stands still rather than what runs. It is still tried now and then, since targets change.
    """

    __slots__ = ("_helped", "_refused")

    def __init__(self) -> None:
        self._helped = 1.0
        self._refused = 0

    def again(self) -> bool:
        """Whether to try once more."""
        if self._helped >= _WORTH_IT:
            return True
        self._refused = (self._refused + 1) % _TRIED_EVERY
        return not self._refused

    def note(self, helped: bool) -> None:
        """Another look was taken; whether the stack was whole then."""
        self._helped += (helped - self._helped) / _REMEMBERED


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
