"""One gathering call for one thread of CPython 3.11 and later: its state, its data stack, and the pages other frames lie in.

Whole pages are read, because a page costs hardly more than a frame, and new coroutines come to lie where old ones did.
Everything is read twice in the one call, in turn: what is the same both times did not change between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.cpython.frames import MAX_DEPTH, Recent, fields
from sentinel_agent.cpython.memory import MAX_READ

if TYPE_CHECKING:
    from sentinel_agent.cpython.layouts.model import Layout
    from sentinel_agent.cpython.memory import Memory

# enum _frameowner; 2 is a frame that is being taken apart. What lies on the C stack is said to be the interpreter's from 3.14 on.
THREAD, GENERATOR, C_STACK = 0, 1, 3
UNKNOWN = -1
_SLACK = 1024  # bytes over the last known top of the data stack that are read as well
_MAX_CHUNKS = 32
_MAX_PAGES = 60
_SPARE_PAGES = 12
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
        self.state_size = thread.size
        self.chunk_at = thread.datastack_chunk
        self.top_at = thread.datastack_top
        self.base_at = thread.base_frame
        self.by_cframe = layout.minor <= 12
        self.leaf_at = thread.cframe if self.by_cframe else thread.current_frame
        self.cframe_at = thread.cframe_current


class Snapshot:
    """What one call read. `leaf` and `leaf_after` are the thread's leaf frame before and after the data stack was read.

    `spans` are the chunks, the newest first: address and bytes; `stable` is the address up to which the newest one was the same
    both times (the older ones were, all of them). `ground` is where the thread's first frame lies on them, 0 where
    that is not known; `top` and `top_after` are how far they were in use. `base` ends the chain of frames.
    """

    __slots__ = (
        "_after",
        "_before",
        "base",
        "ground",
        "leaf",
        "leaf_after",
        "spans",
        "stable",
        "state",
        "top",
        "top_after",
    )

    def __init__(self, state: bytes, before: dict[int, bytes], after: dict[int, bytes]) -> None:
        self.state = state
        self._before = before
        self._after = after
        self.leaf = self.leaf_after = UNKNOWN
        self.top = self.top_after = self.ground = self.stable = self.base = 0
        self.spans: list[tuple[int, bytes]] = []

    def on_stack(self, address: int, size: int) -> tuple[bytes, int] | None:
        """The chunk in which `size` bytes at `address` lie, and where in it."""
        for low, data in self.spans:
            if low <= address <= low + len(data) - size:
                return data, address - low
        return None

    def changed(self, end: int) -> bool:
        """Whether anything below `end` on the newest chunk was not the same both times."""
        if not self.spans:
            return False
        low, data = self.spans[0]
        return self.stable < end <= low + len(data)

    def in_pages(self, address: int, size: int) -> tuple[bytes, bytes] | None:
        """The bytes at `address` both times; None for pages that were not asked for."""
        before = _cut(self._before, address, size)
        after = _cut(self._after, address, size)
        return None if before is None or after is None else (before, after)

    def word_before(self, address: int) -> int:
        """A word in the pages as it was before the data stack was read; UNKNOWN where it was not asked for."""
        found = _cut(self._before, address, 8)
        return UNKNOWN if found is None else int.from_bytes(found, "little")

    def word_after(self, address: int) -> int:
        """The same, after the data stack was read."""
        found = _cut(self._after, address, 8)
        return UNKNOWN if found is None else int.from_bytes(found, "little")


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


def _cut(pages: dict[int, bytes], address: int, size: int) -> bytes | None:
    number, at = divmod(address, _PAGE)
    page = pages.get(number)
    if page is None or at + size <= _PAGE:
        return None if page is None else page[at : at + size]
    following = pages.get(number + 1)
    return None if following is None else page[at:] + following[: at + size - _PAGE]


class Gatherer:
    """Takes snapshots of the thread whose `PyThreadState` is at `thread`, and learns what to ask for."""

    def __init__(self, memory: Memory, form: ChunkFormat, thread: int) -> None:
        self._memory = memory
        self._form = form
        self._thread = thread
        self._chunks: list[tuple[int, int]] = []  # address and size, the newest first
        self._top = self._base = 0
        self._grounded = False  # the last of the chunks is the thread's first one
        self._recent = Recent(_MAX_PAGES, _SPARE_PAGES)

    def take(self) -> Snapshot | None:
        """Read everything in one call; None if the thread's chunks are others than those known, which is then noted."""
        form = self._form
        numbers = self._recent.keys()
        numbers.reverse()
        count = len(numbers)
        # The state first, then what becomes untrue soonest.
        again = [(self._thread, form.state_size), *((number * _PAGE, _PAGE) for number in numbers)]
        chunks = [(address, self._used(address, size)) for address, size in self._chunks]
        got = self._memory.read_many([*again, *chunks, *again, *chunks])
        half = len(got) // 2
        state, state_after = got[0], got[half]
        if state is None or state_after is None:
            return None
        data, data_after = got[count + 1 : half], got[half + count + 1 :]
        chunk, self._top = (
            int.from_bytes(state[at : at + 8], "little") for at in (form.chunk_at, form.top_at)
        )
        if (self._chunks[0][0] if self._chunks else 0) != chunk or None in data or data[1:] != data_after[1:]:
            self._learn_chunks(chunk)
            return None
        snapshot = Snapshot(
            state, _pages(numbers, got[1 : count + 1]), _pages(numbers, got[half + 1 : half + count + 1])
        )
        snapshot.spans = [
            (address, found or b"") for (address, _), found in zip(self._chunks, data, strict=True)
        ]
        snapshot.top = self._top
        snapshot.top_after = int.from_bytes(state_after[form.top_at : form.top_at + 8], "little")
        if form.base_at >= 0:
            snapshot.base = self._base = int.from_bytes(state[form.base_at : form.base_at + 8], "little")
        if snapshot.spans:
            low, newest = snapshot.spans[0]
            snapshot.stable = low + _same(newest, data_after[0] or b"")
        # The first slot of the first chunk is left empty (`push_chunk`, Python/pystate.c).
        snapshot.ground = snapshot.spans[-1][0] + form.data + 8 if snapshot.spans and self._grounded else 0
        self._find_leaf(snapshot, state_after)
        return snapshot

    def _find_leaf(self, snapshot: Snapshot, state_after: bytes) -> None:
        at = self._form.leaf_at
        snapshot.leaf = int.from_bytes(snapshot.state[at : at + 8], "little")
        snapshot.leaf_after = int.from_bytes(state_after[at : at + 8], "little")
        if self._form.by_cframe:
            pointer = snapshot.leaf + self._form.cframe_at
            pointer_after = snapshot.leaf_after + self._form.cframe_at
            self.meet([pointer // _PAGE])
            snapshot.leaf = snapshot.word_before(pointer)
            snapshot.leaf_after = snapshot.word_after(pointer_after)

    def meet(self, pages: list[int]) -> None:
        """Note pages that frames of the thread lie in."""
        self._recent.meet(pages)

    def page_of(self, address: int) -> int:
        """The number of a page."""
        return address // _PAGE

    def _used(self, address: int, size: int) -> int:
        """How much of a chunk to read: an older one whole, the newest up to a little over its last known top."""
        return min(size, self._top - address + _SLACK) if address < self._top <= address + size else size

    def _learn_chunks(self, address: int) -> None:
        """Follow the chunks from the newest one, and keep as many as may be read in one call."""
        self._chunks, self._grounded = [], not address
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

    def learn(self, address: int) -> None:
        """Follow frames that were not asked for, one by one, so that the next call asks for the pages they lie in."""
        form = self._form
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
            pages[(address - form.lead) // _PAGE] = pages[(address + form.frame.size - 1) // _PAGE] = None
            if len(pages) > _MAX_PAGES:
                break
            address = previous
        self.meet(list(pages))


def _pages(numbers: list[int], data: list[bytes | None]) -> dict[int, bytes]:
    return {number: page for number, page in zip(numbers, data, strict=True) if page is not None}
