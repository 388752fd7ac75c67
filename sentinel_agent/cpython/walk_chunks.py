"""The stack walk of CPython 3.11 to 3.13, whose frames lie on a data stack of the thread, in chunks.

Frames on the data stack are packed: each ends where its callee's starts (`_PyThreadState_PushFrame`, Python/pystate.c;
Objects/frame_layout.md). Generators and coroutines carry theirs in their own object on the heap, and 3.12 and 3.13
link a frame on the C stack between a C caller and what it called. One call gathers the chunks and those pages in which such
other frames were met lately: whole pages, because a page costs no more than a frame, and new coroutines come to lie where
old ones did.

The chain is accepted only if its data stack frames are packed without a gap from the bottom of the data stack, its
generators are executing, and it ends there. A frame reused while it was read breaks one of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.cpython.frames import (
    ATTEMPTS,
    FAILED,
    MAX_DEPTH,
    Places,
    Reading,
    Recent,
    fields,
    partial,
    whole,
)
from sentinel_agent.cpython.memory import MAX_READ

if TYPE_CHECKING:
    from sentinel_agent.cpython.code import Code, CodeCache
    from sentinel_agent.cpython.layouts.model import Layout
    from sentinel_agent.cpython.memory import Memory

_THREAD, _GENERATOR, _C_STACK = 0, 1, 3  # enum _frameowner; 2 is a frame that is being taken apart
_SLACK = 1024  # bytes over the last known top of the data stack that are read as well
_MAX_CHUNKS = 32
_MAX_PAGES = 120
_SPARE_PAGES = 16
_PAGE = 4096


class ChunkFormat:
    """What the walk needs of a layout, worked out once."""

    def __init__(self, layout: Layout) -> None:
        frame, thread, chunk, generator = layout.frame, layout.thread, layout.chunk, layout.generator
        self.frame = fields((frame.code, "Q"), (frame.previous, "Q"), (frame.instr, "Q"), (frame.owner, "B"))
        # A generator's state lies before its frame.
        self.lead = generator.frame - generator.frame_state
        self.executing = generator.executing & 0xFF
        self.header = fields((chunk.previous, "Q"), (chunk.size, "Q"))
        self.data = chunk.data
        self.state_size = thread.size
        self.chunk_at = thread.datastack_chunk
        self.top_at = thread.datastack_top
        self.by_cframe = layout.minor <= 12
        self.leaf_at = thread.cframe if self.by_cframe else thread.current_frame
        self.cframe_at = thread.cframe_current


class _Snapshot:
    """What one call read: the chunks, the newest first, and pages by their number."""

    __slots__ = ("leaf", "pages", "spans", "state", "top")

    def __init__(self, state: bytes) -> None:
        self.state = state
        self.leaf = 0
        self.top = 0
        self.spans: list[tuple[int, bytes]] = []
        self.pages: dict[int, bytes] = {}

    def on_stack(self, address: int, size: int) -> tuple[bytes, int] | None:
        """The chunk in which a frame of `size` bytes lies, and where in it."""
        for low, data in self.spans:
            if low <= address <= low + len(data) - size:
                return data, address - low
        return None

    def in_pages(self, address: int, size: int) -> tuple[bytes, int] | None:
        """Bytes that hold the range, and where in them; None where a page was not asked for."""
        number, at = divmod(address, _PAGE)
        page = self.pages.get(number)
        if page is None or at + size <= _PAGE:
            return None if page is None else (page, at)
        following = self.pages.get(number + 1)
        return None if following is None else (page + following, at)


class _Chain:
    """The frames followed from the leaf, and the pages they lie in. C frames and frames being set up are no `places`."""

    __slots__ = ("ends", "lowest", "missing", "pages", "places")

    def __init__(self) -> None:
        self.places = Places()
        self.pages: list[int] = []
        self.lowest = 0  # the outermost frame on the data stack so far
        self.missing = 0
        self.ends = False


class ChunkWalk:
    """The walk of one thread, whose `PyThreadState` is at `thread`."""

    def __init__(self, memory: Memory, codes: CodeCache, form: ChunkFormat, thread: int) -> None:
        self._memory = memory
        self._codes = codes
        self._form = form
        self._thread = thread
        self._chunks: list[tuple[int, int]] = []  # address and size, the newest first
        self._top = 0
        self._grounded = False  # the last of the chunks is the thread's first one
        self._recent = Recent(_MAX_PAGES, _SPARE_PAGES)

    def read(self) -> Reading:
        """Read the stack; one gathering call where nothing changed much since the last reading, ATTEMPTS at most."""
        state: bytes | None = None
        best = FAILED
        for _ in range(ATTEMPTS):
            snapshot = self._gather()
            if snapshot is None:
                continue
            state = snapshot.state
            chain = self._follow(snapshot)
            self._recent.meet(chain.pages)
            if chain.ends and self._rooted(chain, snapshot):
                return Reading(whole(chain.places), state)
            if chain.missing:
                self._learn(chain.missing)
            best = partial(chain.places, self._from_root(chain.lowest or snapshot.top, snapshot))
        return Reading(best, state)

    def _gather(self) -> _Snapshot | None:
        """Read everything in one call; None if the thread's chunks are others than those known, which is then noted."""
        form = self._form
        numbers = self._recent.keys()
        numbers.reverse()
        ranges = [(self._thread, form.state_size)]
        ranges += [(address, self._used(address, size)) for address, size in self._chunks]
        ranges += [(number * _PAGE, _PAGE) for number in numbers]
        state, *got = self._memory.read_many(ranges)
        if state is None:
            return None
        snapshot = _Snapshot(state)
        snapshot.leaf, chunk, snapshot.top = (
            int.from_bytes(state[at : at + 8], "little") for at in (form.leaf_at, form.chunk_at, form.top_at)
        )
        self._top = snapshot.top
        chunks, pages = got[: len(self._chunks)], got[len(self._chunks) :]
        if (self._chunks[0][0] if self._chunks else 0) != chunk or None in chunks:
            self._learn_chunks(chunk)
            return None
        snapshot.pages = {
            number: page for number, page in zip(numbers, pages, strict=True) if page is not None
        }
        snapshot.spans = [
            (address, data or b"") for (address, _), data in zip(self._chunks, chunks, strict=True)
        ]
        if form.by_cframe:
            snapshot.leaf = self._leaf_of(snapshot.leaf + form.cframe_at, snapshot)
        return snapshot

    def _leaf_of(self, pointer: int, snapshot: _Snapshot) -> int:
        """What `cframe.current_frame`, at `pointer` on the C stack, pointed to when everything was read; -1: not asked for."""
        self._recent.meet([pointer // _PAGE])
        found = snapshot.in_pages(pointer, 8)
        return -1 if found is None else int.from_bytes(found[0][found[1] : found[1] + 8], "little")

    def _used(self, address: int, size: int) -> int:
        """How much of a chunk to read: an older one whole, the newest up to a little over its last known top."""
        return min(size, self._top - address + _SLACK) if address < self._top <= address + size else size

    def _learn_chunks(self, address: int) -> None:
        """Follow the chunks from the newest one, and keep as many as may be read in one call."""
        self._chunks, self._grounded = [], not address
        left = MAX_READ - (_MAX_PAGES + 1) * _PAGE
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

    def _follow(self, snapshot: _Snapshot) -> _Chain:
        """Follow the chain from the leaf, as far as it holds."""
        unpack, size, lead = self._form.frame.unpack_from, self._form.frame.size, self._form.lead
        low, data = snapshot.spans[0] if snapshot.spans else (0, b"")
        last = len(data) - size
        chain, address = _Chain(), snapshot.leaf
        for _ in range(MAX_DEPTH):
            if not address:
                chain.ends = True
                break
            at = address - low
            if 0 <= at <= last:
                code_address, previous, instr, owner = unpack(data, at)
                held = owner == _THREAD
            elif (found := snapshot.on_stack(address, size)) is not None:
                code_address, previous, instr, owner = unpack(*found)
                held = owner == _THREAD
            elif (found := snapshot.in_pages(address - lead, lead + size)) is not None:
                code_address, previous, instr, owner = unpack(found[0], found[1] + lead)
                chain.pages.append(address // _PAGE)
                if owner == _C_STACK:
                    address = previous
                    continue
                held = owner == _GENERATOR and found[0][found[1]] == self._form.executing
            else:
                chain.missing = address
                break
            if not held or not self._accept(
                chain, snapshot, address, code_address, instr, on_stack=owner == _THREAD
            ):
                break
            address = previous
        return chain

    def _accept(
        self,
        chain: _Chain,
        snapshot: _Snapshot,
        address: int,
        code_address: int,
        instr: int,
        *,
        on_stack: bool,
    ) -> bool:
        """Add a frame to the chain, unless it cannot be what it seems."""
        code = self._codes.get(code_address)
        if code is None:
            return False
        if on_stack:
            if (
                chain.lowest
                and address + code.frame_size != chain.lowest
                and not self._crosses(address, chain, snapshot)
            ):
                return False
            chain.lowest = address
        lasti = instr - code.bytecode
        if not -2 <= lasti < code.bytecode_size:
            return False
        if lasti >= code.first_traceable or not on_stack:
            chain.places.add(code.at(lasti if lasti >= 0 else -1), address)
        return True

    def _crosses(self, address: int, chain: _Chain, snapshot: _Snapshot) -> bool:
        """Whether the callee was the first frame of a newer chunk: then its caller lies on an older one."""
        return any(
            chain.lowest == low + self._form.data and not low <= address < low + len(data)
            for low, data in snapshot.spans
        )

    def _ground(self, snapshot: _Snapshot) -> int:
        """Where the thread's first frame lies: the first slot is left empty (`push_chunk`, Python/pystate.c)."""
        return snapshot.spans[-1][0] + self._form.data + 8 if snapshot.spans and self._grounded else 0

    def _rooted(self, chain: _Chain, snapshot: _Snapshot) -> bool:
        """Whether a chain that ends reaches the bottom of the data stack."""
        ground = self._ground(snapshot)
        if chain.lowest:
            return chain.lowest == ground
        return not snapshot.spans or snapshot.top == ground

    def _learn(self, address: int) -> None:
        """Follow frames that were not asked for, one by one, so that the next call asks for the pages they lie in."""
        form, pages = self._form, dict[int, None]()
        for _ in range(MAX_DEPTH):
            if not address or any(low <= address < low + size for low, size in self._chunks):
                break
            raw = self._memory.read(address - form.lead, form.lead + form.frame.size)
            if raw is None:
                break
            _, previous, _, owner = form.frame.unpack_from(raw, form.lead)
            if owner not in (_GENERATOR, _C_STACK):
                break
            pages[(address - form.lead) // _PAGE] = pages[(address + form.frame.size - 1) // _PAGE] = None
            if len(pages) > _MAX_PAGES:
                break
            address = previous
        self._recent.meet(list(pages))

    def _from_root(self, end: int, snapshot: _Snapshot) -> Places:
        """The frames from the bottom of the data stack up to `end` that call each other directly."""
        address, caller = self._ground(snapshot), 0
        places = Places()
        if not address:
            return places
        low, data = snapshot.spans[-1]
        size, end = self._form.frame.size, min(end, low + len(data))
        while address + size <= end:
            code_address, previous, instr, owner = self._form.frame.unpack_from(data, address - low)
            code = self._codes.get(code_address)
            if code is None or owner != _THREAD or address + code.frame_size > end:
                break
            if caller and self._through_c(previous, snapshot) != caller:
                break
            lasti = instr - code.bytecode
            if not code.first_traceable <= lasti < code.bytecode_size:
                break
            places.add(code.at(lasti), address)
            caller, address = address, address + code.frame_size
        places.reverse()
        return places

    def _through_c(self, address: int, snapshot: _Snapshot) -> int:
        """The frame that called, where a frame on the C stack lies between."""
        found = snapshot.in_pages(address, self._form.frame.size)
        if found is None:
            return address
        _, previous, _, owner = self._form.frame.unpack_from(*found)
        return int(previous) if owner == _C_STACK else address
