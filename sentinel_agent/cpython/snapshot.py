"""One gathering call for one thread of CPython 3.11 and later: its state, its data stack, and the pages other frames lie in.

Whole pages are read, because a page costs hardly more than a frame, and new coroutines come to lie where old ones did.
Everything is read twice in the one call, in turn: what is the same both times did not change between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.cpython.frames import MAX_DEPTH, Recent, StateFormat, fields
from sentinel_agent.cpython.memory import MAX_READ, Gathering

if TYPE_CHECKING:
    from sentinel_agent.cpython.layouts.model import Layout
    from sentinel_agent.cpython.memory import Buffer, Memory, Range

# enum _frameowner; 2 is a frame that is being taken apart. What lies on the C stack is said to be the interpreter's from 3.14 on.
THREAD, GENERATOR, C_STACK = 0, 1, 3
UNKNOWN = -1
_SLACK = 1024  # bytes over the last known top of the data stack that are read as well
_MAX_CHUNKS = 32
_MAX_PAGES = 60
_SPARE_PAGES = 12
_MAX_LEAF_PAGES = 2
_PAGE = 4096


class ChunkFormat:
    """What the walk needs of a layout, worked out once."""

    def __init__(self, layout: Layout) -> None:
        frame, thread, chunk, generator = layout.frame, layout.thread, layout.chunk, layout.generator
        # Only 3.11 marks a frame that C code called; later ones have a frame on the C stack there instead.
        self.marks_entry = layout.minor == 11
        entry = frame.is_entry if self.marks_entry else frame.owner - 1
        self.frame = fields(
            (frame.code, "Q"),
            (frame.previous, "Q"),
            (frame.instr, "Q"),
            (frame.stacktop, "i" if layout.minor <= 13 else "Q"),
            (entry, "B"),
            (frame.owner, "B"),
        )
        self.code_bits = ~frame.tag_bits
        # Up to 3.13 a frame's stack pointer is saved just while it calls another; later it stays as it was last saved.
        self.tells_calls = layout.minor <= 13
        # A generator's state lies before its frame.
        self.lead = generator.frame - generator.frame_state
        self.executing = generator.executing & 0xFF
        self.header = fields((chunk.previous, "Q"), (chunk.size, "Q"))
        self.data = chunk.data
        self.state = StateFormat(layout)
        self.chunk_at = self.state.index("datastack_chunk")
        self.top_at = self.state.index("datastack_top")
        self.base_at = self.state.index("base_frame")
        self.by_cframe = layout.minor <= 12
        self.leaf_at = self.state.index("cframe" if self.by_cframe else "current_frame")
        self.cframe_at = thread.cframe_current


class Plan:
    """What one call asks for, twice: the thread's state, pages that say where the leaf is, the chunks, the newest first, other pages.

    `chunks` are address, bytes, and where they begin in what the call gives; `pages` say that by number; both kinds are in rising
    order. All but the other pages are the first `core` bytes. The second time everything lies `half` further.
    """

    __slots__ = ("chunks", "core", "gathering", "half", "pages")

    def __init__(
        self, thread: int, state_size: int, leaf_pages: list[int], chunks: list[Range], pages: list[int]
    ) -> None:
        ranges = [(thread, state_size)]
        self.pages: dict[int, int] = {}
        at = self._add_pages(leaf_pages, ranges, state_size)
        self.chunks: list[tuple[int, int, int]] = []
        for address, size in chunks:
            self.chunks.append((address, size, at))
            ranges.append((address, size))
            at += size
        self.core = at
        self.half = self._add_pages(pages, ranges, at)
        self.gathering = Gathering(ranges * 2)

    def _add_pages(self, numbers: list[int], ranges: list[Range], at: int) -> int:
        """Ask for pages, which come to lie from `at` on, those that follow each other in one range; where they end."""
        for number in numbers:
            self.pages[number] = at
            address, size = ranges[-1]
            if address + size == number * _PAGE:
                ranges[-1] = (address, size + _PAGE)
            else:
                ranges.append((number * _PAGE, _PAGE))
            at += _PAGE
        return at


class Snapshot:
    """What one call read: `data`, in which everything lies as `plan` says.

    `leaf` and `leaf_after` are the thread's leaf frame before and after the data stack was read. `stable` is the address up to
    which the newest chunk was the same both times (the older ones were, all of them). `ground` is where the thread's
    first frame lies on them, 0 where that is not known; `top` and `top_after` are how far they were in use. `base` ends
    the chain of frames. `pages` are those that say where the leaf is, `read` where in `data` they
    say so and in how many bytes. `core` is what the plan calls so.
    """

    __slots__ = (
        "base",
        "core",
        "data",
        "ground",
        "leaf",
        "leaf_after",
        "pages",
        "plan",
        "read",
        "stable",
        "state",
        "top",
        "top_after",
    )

    def __init__(self, data: memoryview, plan: Plan, core: bytes, state: tuple[int, ...]) -> None:
        self.data = data
        self.core = core
        self.plan = plan
        self.state = state
        self.leaf = self.leaf_after = UNKNOWN
        self.top = self.top_after = self.ground = self.stable = self.base = 0
        self.pages: list[int] = []
        self.read: list[tuple[int, int]] = []

    def on_stack(self, address: int, size: int) -> int:
        """Where in `data` the `size` bytes at `address` are if they lie on a chunk; else UNKNOWN."""
        for low, length, at in self.plan.chunks:
            if low <= address <= low + length - size:
                return at + address - low
        return UNKNOWN

    def changed(self, end: int) -> bool:
        """Whether anything below `end` on the newest chunk was not the same both times."""
        if not self.plan.chunks:
            return False
        low, length, _ = self.plan.chunks[0]
        return self.stable < end <= low + length

    def in_pages(self, address: int, size: int) -> int:
        """Where in `data` the `size` bytes at `address` are if they lie on pages that were asked for; else UNKNOWN."""
        number, at = divmod(address, _PAGE)
        found = self.plan.pages.get(number, UNKNOWN)
        if found < 0 or (at + size > _PAGE and self.plan.pages.get(number + 1) != found + _PAGE):
            return UNKNOWN
        return found + at

    def word(self, at: int) -> int:
        """The word at a place in `data`; UNKNOWN at none."""
        return UNKNOWN if at < 0 else int.from_bytes(self.data[at : at + 8], "little")


def _same(one: bytes, other: bytes) -> int:
    """How many bytes are the same from the start."""
    if one == other:
        return len(one)
    same, different = 0, min(len(one), len(other))
    while different - same > 8:
        middle = (same + different) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            different = middle
    return same


class Gatherer:
    """Takes snapshots of the thread whose `PyThreadState` is at `thread`, and learns what to ask for."""

    def __init__(self, memory: Memory, buffer: Buffer, form: ChunkFormat, thread: int) -> None:
        self._memory = memory
        self._buffer = buffer
        self._form = form
        self._thread = thread
        self._chunks: list[Range] = []  # address and size, the newest first
        self._top = self._base = 0
        self._grounded = False  # the last of the chunks is the thread's first one
        self._recent = Recent(_MAX_PAGES, _SPARE_PAGES)
        self._leaf_pages: list[int] = []  # those of them that said last where the leaf is
        self._plan: Plan | None = None

    def plan(self) -> Plan:
        """What to ask for next; the same object until something else is to be asked for."""
        plan = self._plan
        if plan is None:
            chunks = [(address, self._used(address, size)) for address, size in self._chunks]
            recent, early = set(self._recent.keys()), set(self._leaf_pages)
            # What lies over the end of a page needs both side by side.
            for page in self._leaf_pages:
                for step in (-1, 1):
                    beside = page + step
                    while beside in recent:
                        early.add(beside)
                        beside += step
            plan = Plan(self._thread, self._form.state.size, sorted(early), chunks, sorted(recent - early))
            self._plan = plan
        return plan

    def take(self) -> Snapshot | None:
        """Read everything in one call; None if it is not of use, and what to ask for is then another."""
        data = self._memory.gather(self.plan().gathering, self._buffer)
        if data is not None:
            return self.see(data)
        self._lose()
        return None

    def see(self, data: memoryview) -> Snapshot | None:
        """What was read by the plan; None if the thread's chunks are others than those known, which is then noted."""
        form, plan = self._form, self.plan()
        half, unpack = plan.half, form.state.unpack
        state, state_after = unpack(data, 0), unpack(data, half)
        core, core_after = data[: plan.core].tobytes(), data[half : half + plan.core].tobytes()
        chunk, self._top = state[form.chunk_at], state[form.top_at]
        stable, older = 0, plan.core
        if plan.chunks:
            low, size, at = plan.chunks[0]
            older = at + size
            if chunk == low:
                stable = low + _same(core[at:older], core_after[at:older])
                if not self._fits(low, size):
                    self._plan = None
        if chunk != (plan.chunks[0][0] if plan.chunks else 0) or core[older:] != core_after[older:]:
            self._learn_chunks(chunk)
            return None
        snapshot = Snapshot(data, plan, core, state)
        snapshot.stable = stable
        snapshot.top, snapshot.top_after = self._top, state_after[form.top_at]
        if form.base_at >= 0:
            snapshot.base = self._base = state[form.base_at]
        # The first slot of the first chunk is left empty (`push_chunk`, Python/pystate.c).
        snapshot.ground = plan.chunks[-1][0] + form.data + 8 if plan.chunks and self._grounded else 0
        leaf, leaf_after = state[form.leaf_at], state_after[form.leaf_at]
        if form.by_cframe:
            pointer, pointer_after = leaf + form.cframe_at, leaf_after + form.cframe_at
            at = snapshot.in_pages(pointer, 8)
            at_after = at if pointer_after == pointer else snapshot.in_pages(pointer_after, 8)
            leaf = snapshot.word(at)
            leaf_after = snapshot.word(at_after + half if at_after >= 0 else UNKNOWN)
            self._meet_leaf_page(pointer // _PAGE)
            snapshot.pages.append(pointer // _PAGE)
            snapshot.read += [(place, 8) for place in (at, at_after) if place >= 0]
        snapshot.leaf, snapshot.leaf_after = leaf, leaf_after
        return snapshot

    def _lose(self) -> None:
        """Ask no more for what cannot be read any more."""
        numbers = list(self.plan().pages)
        found = self._memory.read_many([*((number * _PAGE, 1) for number in numbers), *self._chunks])
        for number, byte in zip(numbers, found, strict=False):
            if byte is None:
                self._recent.lose(number)
                self._leaf_pages = [page for page in self._leaf_pages if page != number]
        if None in found[len(numbers) :]:
            self._chunks = []
        self._plan = None

    def _meet_leaf_page(self, number: int) -> None:
        """Ask for a page first from now on; it is among the recent ones as well."""
        if number not in self._leaf_pages:
            self._leaf_pages = [*self._leaf_pages, number][-_MAX_LEAF_PAGES:]
            self._plan = None

    def meet(self, pages: list[int]) -> None:
        """Note pages that frames of the thread lie in."""
        if self._recent.meet(pages):
            self._plan = None

    def page_of(self, address: int) -> int:
        """The number of a page."""
        return address // _PAGE

    def _used(self, address: int, size: int) -> int:
        """How much of a chunk to read: an older one whole, the newest up to a little over its last known top."""
        used = (self._top - address) // _SLACK * _SLACK + 2 * _SLACK
        return min(size, used) if address < self._top <= address + size else size

    def _fits(self, address: int, asked: int) -> bool:
        """Whether what is asked for of the newest chunk still suits its top, neither short nor far too much."""
        over = asked - (self._top - address)
        return over <= 8 * _SLACK and (over >= _SLACK // 2 or (address, asked) == self._chunks[0])

    def _learn_chunks(self, address: int) -> None:
        """Follow the chunks from the newest one, and keep as many as may be read in one call."""
        self._chunks, self._grounded, self._plan = [], not address, None
        left = (MAX_READ - 2 * (_MAX_PAGES + 1) * _PAGE) // 2
        while address and len(self._chunks) < _MAX_CHUNKS:
            head = self._memory.read(address, self._form.header.size)
            if head is None:
                break
            previous, size = self._form.header.unpack(head)
            left -= size
            if size <= self._form.data or left < 0:
                break
            self._chunks.append((address, size))
            address = previous
            self._grounded = not previous

    def learn(self, address: int) -> bytes | None:
        """Follow frames that were not asked for, one by one, so that the next call asks for the pages they lie in.

        Returns the first as read, None if it is none.
        """
        form, first = self._form, None
        pages: dict[int, None] = {}
        for _ in range(MAX_DEPTH):
            if address in (0, self._base) or any(low <= address < low + size for low, size in self._chunks):
                break
            raw = self._memory.read(address - form.lead, form.lead + form.frame.size)
            if raw is None:
                break
            previous, owner = (form.frame.unpack_from(raw, form.lead)[i] for i in (1, 5))
            if owner not in (GENERATOR, C_STACK):
                break
            first = first or raw
            pages[(address - form.lead) // _PAGE] = pages[(address + form.frame.size - 1) // _PAGE] = None
            if len(pages) > _MAX_PAGES:
                break
            address = previous
        self.meet(list(pages))
        return first
