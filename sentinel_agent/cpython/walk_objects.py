"""The stack walk of CPython 3.8 to 3.10, whose frames are objects on the heap, linked by `f_back`.

Frame objects are reused (each code keeps one, and there is a free list), so the frames of the last walks are where most of
the next walk's frames will be: one call asks for all of them. A frame that ended or was suspended has lost its `f_back`,
but also its mark of executing (Objects/frameobject.c, Python/ceval.c); so a chain in which every frame executes and that ends,
ends in the thread's root frame. All but the leaf must be the same at two times, or a frame that was left and used again
could stand for the caller that it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.cpython.frames import (
    ATTEMPTS,
    FAILED,
    Patience,
    Places,
    Reading,
    Recent,
    StateFormat,
    fields,
    partial,
    whole,
)
from sentinel_agent.cpython.memory import MAX_RANGES, Gathering

if TYPE_CHECKING:
    from sentinel_agent.cpython.code import CodeCache, Frame
    from sentinel_agent.cpython.layouts.model import Layout
    from sentinel_agent.cpython.memory import Buffer, Memory

# f_executing of 3.8 and 3.9; f_state of 3.10, where a frame that handles an exception is unwinding (3) and may call.
_EXECUTING = {8: (1,), 9: (1,), 10: (0, 3)}
_SPARE_FRAMES = 32

_Snapshot = tuple[memoryview, dict[int, int], int]
"""What was read, where in it the frame of each address lies, and by how much further it lies the second time."""


class ObjectFormat:
    """What the walk needs of a layout, worked out once."""

    def __init__(self, layout: Layout) -> None:
        frame = layout.frame
        self.frame = fields((frame.previous, "Q"), (frame.code, "Q"), (frame.instr, "i"), (frame.state, "b"))
        self.size = self.frame.size
        self.executing = _EXECUTING[layout.minor]
        self.unit = 2 if layout.minor == 10 else 1
        self.state = StateFormat(layout)
        self.leaf_at = self.state.index("frame")


class ObjectWalk:
    """The walk of one thread, whose `PyThreadState` is at `thread`."""

    def __init__(
        self, memory: Memory, buffer: Buffer, codes: CodeCache, form: ObjectFormat, thread: int
    ) -> None:
        self._memory = memory
        self._buffer = buffer
        self._codes = codes
        self._form = form
        self._thread = thread
        self._patience = Patience()
        self._recent = Recent(MAX_RANGES - 1, _SPARE_FRAMES)
        self._asked: dict[int, int] = {}  # address of each frame that is asked for, and where it comes to lie
        self._half = 0
        self._twice = True
        self._gathering: Gathering | None = None
        self._last: list[int] = []  # the last whole chain, root first
        self._data: bytes | None = None  # what the last reading was made of, if it was whole
        self._reading = Reading(FAILED, None)

    def gathering(self) -> Gathering:
        """The thread's state and the frames met lately, twice if one call may read as much."""
        if self._gathering is None:
            size, state_size = self._form.size, self._form.state.size
            keys = self._recent.keys()
            self._asked = {key: state_size + number * size for number, key in enumerate(keys)}
            ranges = [(self._thread, state_size), *((key, size) for key in keys)]
            self._half = state_size + len(keys) * size
            self._twice = 2 * len(ranges) <= MAX_RANGES
            self._gathering = Gathering(ranges * 2 if self._twice else ranges)
        return self._gathering

    def forget(self) -> None:
        """Equal bytes may mean another stack from now on."""
        self._data = None

    def read(self, data: memoryview | None = None) -> Reading:
        """Read the stack; up to ATTEMPTS gathering calls, one where all frames have been met lately."""
        if data is not None and self._data is not None and data.tobytes() == self._data:
            return self._reading
        self._data = None
        state: tuple[int, ...] | None = None
        best = FAILED
        torn = False  # though nothing was learnt that would help
        for attempt in range(ATTEMPTS):
            if torn and not self._patience.again():
                break
            if data is None or attempt:
                data = self._memory.gather(self.gathering(), self._buffer)
            if data is not None and not self._twice:
                data = self._again(data)
            if data is None:
                self._lose()
                continue
            asked = self._asked
            snapshot = data, asked, self._half
            state = self._form.state.unpack(data, 0)
            chain, places, stopped = self._follow(state[self._form.leaf_at], snapshot)
            self._meet(chain)
            if torn:
                self._patience.note(not stopped)
            if not stopped:
                self._last = chain[::-1]
                self._data = data[: 2 * self._half].tobytes() if self._gathering and self._twice else None
                self._reading = Reading(whole(places), state)
                return self._reading
            if stopped not in asked:
                self._learn(chain, stopped)
            best = partial(places, self._from_root(snapshot, set(chain)))
            torn = self._gathering is not None
        return Reading(best, state)

    def _again(self, data: memoryview) -> memoryview | None:
        """`data`, which is all that one call may read, followed by the same read anew."""
        first = data[: self._half].tobytes()
        second = self._memory.gather(self.gathering(), self._buffer)
        return None if second is None else memoryview(first + second[: self._half].tobytes())

    def _meet(self, frames: list[int]) -> None:
        if self._recent.meet(frames):
            self._gathering = None

    def _lose(self) -> None:
        """Ask no more for frames that cannot be read any more."""
        asked = list(self._asked)
        for address, found in zip(asked, self._memory.read_many([(a, 1) for a in asked]), strict=True):
            if found is None:
                self._recent.lose(address)
        self._gathering = None

    def _follow(self, address: int, snapshot: _Snapshot) -> tuple[list[int], Places, int]:
        """Addresses and places from the leaf on, and the frame that the chain could not go on with (0: it ends)."""
        chain: list[int] = []
        places = Places()
        met: set[int] = set()
        while address:
            found = self._frame(address, snapshot, leaf=not chain)
            if found is None or address in met:
                return chain, places, address
            met.add(address)
            chain.append(address)
            places.add(found[1], address)
            address = found[0]
        return chain, places, 0

    def _frame(self, address: int, snapshot: _Snapshot, *, leaf: bool = False) -> tuple[int, Frame] | None:
        """Caller's address and place of an executing frame; None if it is no such thing, or not the same both times.

        A leaf may have gone on in its code.
        """
        data, asked, half = snapshot
        at = asked.get(address)
        if at is None:
            return None
        frame, after = self._form.frame.unpack_from(data, at), self._form.frame.unpack_from(data, at + half)
        previous, code_address, lasti, state = frame
        if frame != after and not (leaf and frame[:2] == after[:2] and after[3] in self._form.executing):
            return None
        code = self._codes.get(code_address)
        lasti *= self._form.unit
        if code is None or state not in self._form.executing or not -2 <= lasti < code.bytecode_size:
            return None
        return previous, code.at(lasti if lasti >= 0 else -1)

    def _learn(self, chain: list[int], address: int) -> None:
        """Follow frames that were not asked for, one by one, so that the next call asks for them."""
        found = list(chain)
        known = set(chain)
        while address and address not in known and len(found) < MAX_RANGES - 1:
            data = self._memory.read(address, self._form.size)
            if data is None:
                break
            previous, code_address, _, _ = self._form.frame.unpack(data)
            if self._codes.get(code_address) is None:
                break
            found.append(address)
            known.add(address)
            address = previous
        self._meet(found)

    def _from_root(self, snapshot: _Snapshot, taken: set[int]) -> Places:
        """The frames of the last whole chain, from its root on, that still call each other; innermost first."""
        caller = 0
        places = Places()
        for address in self._last:
            found = None if address in taken else self._frame(address, snapshot)
            if found is None or found[0] != caller:
                break
            places.add(found[1], address)
            caller = address
        places.reverse()
        return places
