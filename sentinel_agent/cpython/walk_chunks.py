"""The stack walk of CPython 3.11 and later, whose frames lie on a data stack of the thread, in chunks.

Frames on the data stack are packed: each ends where its callee's starts (`_PyThreadState_PushFrame`, Python/pystate.c;
Objects/frame_layout.md). Generators and coroutines carry theirs in their own object on the heap, and 3.12 and later
link a frame on the C stack between a C caller and what it called.

What is read is not of one moment, and a frame that was left stays in memory as it was. So a chain is accepted only if

- it ends at the bottom of the data stack, and its data stack frames are packed from there without a gap;
- up to 3.13, a frame that called another without C code between says so: its stack pointer is saved for just that time
  (`_PyFrame_SetStackPointer`, Python/ceval.c), and it is not one that is being set up;
- all but the leaf frame are the same at two times, the leaf is of the same function for the same caller both times, and generators
  are executing: what lies on pages is read between the two readings of the data stack, so a leaf that was read before its caller may
  have been called from another line of it;
- where C code lies between two frames, and from 3.14 on above the first generator too, the thread's leaf is still above them
  afterwards: what is below it and the same both times was so at that moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.cpython.frames import (
    ATTEMPTS,
    FAILED,
    MAX_DEPTH,
    Patience,
    Places,
    Reading,
    partial,
    whole,
)
from sentinel_agent.cpython.snapshot import (
    C_STACK,
    GENERATOR,
    THREAD,
    UNKNOWN,
    ChunkFormat,
    Gatherer,
    Snapshot,
)

if TYPE_CHECKING:
    from sentinel_agent.cpython.code import Code, CodeCache, Frame
    from sentinel_agent.cpython.frames import Stack
    from sentinel_agent.cpython.memory import Buffer, Gathering, Memory
    from sentinel_agent.cpython.snapshot import Plan


_Seen = tuple[tuple[int, ...], "Frame | None", int, bool, bool]
"""A frame as read, its place if it is shown, where it ends on the data stack (0: it is no frame), whether it says that it has called
another one, whether it is never shown."""


class _Chain:
    """The frames followed from the leaf. Frames on the C stack and those being set up are no `places`."""

    __slots__ = (
        "boundary",
        "ends",
        "generator",
        "innermost",
        "lowest",
        "met",
        "missing",
        "pages",
        "places",
        "read",
        "steady",
        "via_c",
    )

    def __init__(self, snapshot: Snapshot) -> None:
        self.places = Places()
        self.pages = snapshot.pages
        self.read = snapshot.read  # where on pages something was read, and how much
        self.met: dict[int, int] = {}  # address of a frame -> how many are above it
        self.boundary = (
            0  # how many frames are above the first whose call only the thread's leaf can prove, 0 for none
        )
        self.generator = (
            False  # whether a generator is among the frames so far: executing, it proves the call of it
        )
        self.innermost = 0  # where the innermost frame on the data stack ends that is not the leaf
        self.lowest = 0  # the outermost frame on the data stack so far
        self.missing = 0
        self.steady = True  # whether the leaf was of the same function, for the same caller, both times
        self.via_c = False  # whether C code called the outermost frame so far
        self.ends = False


class ChunkWalk:
    """The walk of one thread, whose `PyThreadState` is at `thread`."""

    def __init__(
        self, memory: Memory, buffer: Buffer, codes: CodeCache, form: ChunkFormat, thread: int
    ) -> None:
        self._codes = codes
        self._form = form
        self._gatherer = Gatherer(memory, buffer, form, thread)
        self._patience = Patience()
        self._last: dict[int, Frame] = {}  # the last whole stack, by the frames' addresses
        self._seen: dict[int, _Seen] = {}  # by address, as last looked at
        self._reading = Reading(FAILED, None)  # the last whole one
        self._plan: Plan | None = None  # what it was read by
        self._core = b""  # of what was read
        self._evidence: list[
            tuple[int, bytes]
        ] = []  # all that it was made of, and where that lay; nothing if it will not come again

    def gathering(self) -> Gathering:
        """The thread's state, its data stack and the pages that its other frames lie in."""
        return self._gatherer.plan().gathering

    def forget(self) -> None:
        """Equal bytes may mean another stack from now on."""
        self._evidence = []
        self._seen.clear()

    def read(self, data: memoryview | None = None) -> Reading:
        """Read the stack; one gathering call where nothing changed much since the last reading, ATTEMPTS at most."""
        if data is not None and self._evidence and self._unchanged(data):
            return self._reading
        self._evidence = []
        state: tuple[int, ...] | None = None
        best = FAILED
        torn = False  # though nothing was learnt that would help
        for _ in range(ATTEMPTS):
            if torn and not self._patience.again():
                break
            snapshot = self._gatherer.take() if data is None else self._gatherer.see(data)
            data = None
            if snapshot is None:
                continue
            state = snapshot.state
            chain = self._follow(snapshot)
            self._gatherer.meet(chain.pages)
            found = chain.ends and self._rooted(chain, snapshot) and self._held(chain, snapshot)
            if torn:
                self._patience.note(found)
            if found:
                places = chain.places
                self._last = dict(zip(places.addresses, places.frames, strict=True))
                self._reading = Reading(whole(places), state)
                self._keep(snapshot, chain.read)
                return self._reading
            if chain.missing:
                raw = self._gatherer.learn(chain.missing)
                if raw and not chain.met:
                    self._accept_alone(
                        chain, snapshot.leaf, self._form.frame.unpack_from(raw, self._form.lead)
                    )
            best = self._torn(chain, snapshot)
            torn = self._gatherer.plan() is snapshot.plan
        return Reading(best, state)

    def _unchanged(self, data: memoryview) -> bool:
        """Whether everything that the last reading was made of is as it was: then so is the stack."""
        return self._plan is self._gatherer.plan() and all(
            data[at : at + len(was)].tobytes() == was for at, was in self._evidence
        )

    def _keep(self, snapshot: Snapshot, read: list[tuple[int, int]]) -> None:
        """Keep what a whole stack was made of, if it seems to stand still; `read` are the places on pages and their sizes."""
        plan, data = snapshot.plan, snapshot.data
        if self._plan is plan and self._core == snapshot.core:
            places = [(0, plan.core), *read]
            self._evidence = [
                (start, data[start : start + size].tobytes())
                for at, size in places
                for start in (at, at + plan.half)
            ]
        self._plan, self._core = plan, snapshot.core

    def _follow(self, snapshot: Snapshot) -> _Chain:
        """Follow the chain from the leaf, as far as it holds."""
        chain, address = _Chain(snapshot), snapshot.leaf
        if address == UNKNOWN:
            return chain
        data, unpack, size = snapshot.data, self._form.frame.unpack_from, self._form.frame.size
        low, length, stack = snapshot.plan.chunks[0] if snapshot.plan.chunks else (0, 0, 0)
        last, base = length - size, snapshot.base
        for _ in range(MAX_DEPTH):
            if not address or address == base:
                chain.ends = True
                break
            at, same = address - low, True
            if 0 <= at <= last:
                frame = unpack(data, stack + at)
                held = frame[5] == THREAD
                if not chain.met:
                    chain.steady = frame[:2] == unpack(data, stack + at + snapshot.plan.half)[:2]
            else:
                frame, held, same = self._elsewhere(chain, snapshot, address)
                if frame and frame[5] == C_STACK and same:
                    chain.via_c = True
                    address = frame[1]
                    continue
            if not held:
                if frame and not chain.met:
                    self._accept_alone(chain, address, frame)
                break
            if not self._accept(chain, snapshot, address, frame) or not same:
                break
            address = frame[1]
        return chain

    def _elsewhere(
        self, chain: _Chain, snapshot: Snapshot, address: int
    ) -> tuple[tuple[int, ...], bool, bool]:
        """A frame that is not on the newest chunk, whether it is in use there, whether it was the same both times."""
        form, data = self._form, snapshot.data
        size, lead = form.frame.size, form.lead
        at = snapshot.on_stack(address, size)
        if at >= 0:
            frame = form.frame.unpack_from(data, at)
            if not chain.met:
                chain.steady = frame[:2] == form.frame.unpack_from(data, at + snapshot.plan.half)[:2]
            return frame, frame[5] == THREAD, True
        size += lead
        at = snapshot.in_pages(address - lead, size)
        if at < 0:
            chain.missing = address
            return (), False, False
        chain.pages.append(self._gatherer.page_of(address))
        chain.read.append((at, size))
        after = at + snapshot.plan.half
        frame = form.frame.unpack_from(data, at + lead)
        same = data[at : at + size] == data[after : after + size] or (
            not chain.met and self._still_running(data, at, after)
        )
        held = frame[5] == GENERATOR and data[at] == form.executing and (same or not chain.met)
        return frame, held, same

    def _still_running(self, data: memoryview, before: int, after: int) -> bool:
        """Whether a generator that was the leaf is still executing, for the same caller."""
        unpack, lead = self._form.frame.unpack_from, self._form.lead
        return (
            data[before] == data[after] and unpack(data, before + lead)[:2] == unpack(data, after + lead)[:2]
        )

    def _accept(self, chain: _Chain, snapshot: Snapshot, address: int, frame: tuple[int, ...]) -> bool:
        """Add a frame to the chain, unless it cannot be what it seems."""
        seen = self._seen.get(address)
        if seen is None or seen[0] != frame:
            seen = self._look_at(address, frame)
        _, place, end, calls, hidden = seen
        met = chain.met
        if not end or address in met:
            return False
        depth = len(met)
        if depth and not (calls or chain.via_c):
            return False
        generator = frame[5] == GENERATOR
        if not generator:
            if chain.lowest and end != chain.lowest and not self._crosses(address, chain, snapshot):
                return False
            chain.lowest = address
            if depth and not chain.innermost:
                chain.innermost = end
        if place is not None:
            chain.places.frames.append(place)
            chain.places.addresses.append(address)
        elif depth and not hidden:
            return False
        if depth and not chain.boundary and (chain.via_c or not (chain.generator or self._form.tells_calls)):
            chain.boundary = depth
        chain.generator |= generator
        met[address] = depth
        chain.via_c = self._form.marks_entry and bool(frame[4])
        return True

    def _accept_alone(self, chain: _Chain, address: int, frame: tuple[int, ...]) -> None:
        """Add a leaf that does not run any more: it, or what has taken its place since, ran when the look was taken; its caller is not known."""
        _, place, end, _, hidden = self._look_at(address, frame)
        if place is not None and end and not hidden and place.lasti >= place.code.first_traceable:
            chain.places.add(place, address)
            chain.met[address] = 0

    def _look_at(self, address: int, frame: tuple[int, ...]) -> _Seen:
        """What a frame says by itself."""
        code_address, _, instr, stacktop, _, owner = frame
        code = self._codes.get(code_address & self._form.code_bits)
        lasti = instr - code.bytecode if code is not None else 0
        if code is None or not -2 <= lasti < code.bytecode_size:
            return frame, None, 0, False, False
        shown = owner == GENERATOR or lasti >= code.first_traceable
        place = code.at(max(lasti, -1)) if shown else None
        if len(self._seen) >= MAX_DEPTH:
            self._seen.clear()
        calls, hidden = _calls(code, lasti, stacktop), _never_shown(code)
        seen = frame, place, address + code.frame_size, calls, hidden
        self._seen[address] = seen
        return seen

    def _crosses(self, address: int, chain: _Chain, snapshot: Snapshot) -> bool:
        """Whether the callee was the first frame of a newer chunk: then its caller lies on an older one."""
        return any(
            chain.lowest == low + self._form.data and not low <= address < low + size
            for low, size, _ in snapshot.plan.chunks
        )

    def _rooted(self, chain: _Chain, snapshot: Snapshot) -> bool:
        """Whether a chain that ends reaches the bottom of the data stack."""
        if chain.lowest:
            return chain.lowest == snapshot.ground
        return not snapshot.plan.chunks or snapshot.top == snapshot.ground

    def _held(self, chain: _Chain, snapshot: Snapshot) -> bool:
        """Whether what C code called was still there after everything was read: frames that were left look as before."""
        after = snapshot.leaf_after
        if snapshot.changed(chain.innermost) or not (chain.steady or len(chain.met) == 1):
            return False
        if not chain.boundary or after == snapshot.leaf:
            return True
        if after in chain.met:
            return chain.met[after] < chain.boundary
        if snapshot.on_stack(after, 1) < 0:
            return False
        below = [address for address, depth in chain.met.items() if depth >= chain.boundary]
        return all(after > address for address in below if snapshot.on_stack(address, 1) >= 0)

    def _torn(self, chain: _Chain, snapshot: Snapshot) -> Stack:
        """What is sure of both ends: from the leaf on while no C code lies between, and from the root on."""
        leaf = Places()
        for frame, address in zip(chain.places.frames, chain.places.addresses, strict=True):
            depth = chain.met[address]
            if depth and (
                not chain.steady
                or depth >= chain.boundary > 0
                or snapshot.changed(address + frame.code.frame_size)
            ):
                break
            leaf.add(frame, address)
        taken = [address for address in leaf.addresses if snapshot.on_stack(address, 1) >= 0]
        return partial(leaf, self._from_root(min([snapshot.top, snapshot.top_after, *taken]), snapshot))

    def _from_root(self, end: int, snapshot: Snapshot) -> Places:
        """The frames from the bottom of the data stack up to `end` that call each other."""
        places = Places()
        if not snapshot.ground:
            return places
        low, length, stack = snapshot.plan.chunks[-1]
        address, caller, calls = snapshot.ground, 0, False
        size, end = self._form.frame.size, min(end, low + length)
        if len(snapshot.plan.chunks) == 1:
            end = min(end, snapshot.stable)
        while address + size <= end:
            code_address, previous, instr, stacktop, entry, owner = self._form.frame.unpack_from(
                snapshot.data, stack + address - low
            )
            code = self._codes.get(code_address & self._form.code_bits)
            if code is None or owner != THREAD or address + code.frame_size > end:
                break
            lasti = instr - code.bytecode
            if not code.first_traceable <= lasti < code.bytecode_size:
                break
            if caller:
                via_c = bool(entry) if self._form.marks_entry else previous != caller
                if self._beyond_c(previous, snapshot) != caller or not (via_c or calls):
                    break
                if via_c and not self._as_last(caller, places.frames[-1], address, code):
                    break
            places.add(code.at(lasti), address)
            caller, calls, address = address, _calls(code, lasti, stacktop), address + code.frame_size
        places.reverse()
        return places

    def _as_last(self, caller: int, place: Frame, address: int, code: Code) -> bool:
        """Whether a frame stands at the same call, and what it called there is the same, as in the last whole stack."""
        called = self._last.get(address)
        return called is not None and called.code is code and self._last.get(caller) is place

    def _beyond_c(self, address: int, snapshot: Snapshot) -> int:
        """The frame that called, where a frame on the C stack lies between."""
        at = snapshot.in_pages(address, self._form.frame.size)
        if at < 0:
            return address
        frame = self._form.frame.unpack_from(snapshot.data, at)
        return int(frame[1]) if frame[5] == C_STACK else address


def _calls(code: Code, lasti: int, stacktop: int) -> bool:
    """Whether a frame has called another one without C code between, and not left it yet.

    A frame that is being set up has a stack top already, but has not gone beyond its first instruction.
    """
    return stacktop >= 0 and (lasti > code.first_traceable or _never_shown(code))


def _never_shown(code: Code) -> bool:
    """Whether this is code of the interpreter itself that it hides (`_Py_InitCleanup`, Python/specialize.c)."""
    return code.first_traceable >= code.bytecode_size
