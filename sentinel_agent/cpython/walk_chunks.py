"""The stack walk of CPython 3.11 to 3.13, whose frames lie on a data stack of the thread, in chunks.

Frames on the data stack are packed: each ends where its callee's starts (`_PyThreadState_PushFrame`, Python/pystate.c; Objects/
frame_layout.md). Generators and coroutines carry theirs in their own object, and 3.12 and 3.13 link a frame on the C stack
between a C caller and what it called. One call gathers the chunks and those other frames that were met lately.

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
    RecentFrames,
    Stack,
    fields,
    partial,
    whole,
)
from sentinel_agent.cpython.memory import MAX_RANGES

if TYPE_CHECKING:
    from sentinel_agent.cpython.code import Code, CodeCache
    from sentinel_agent.cpython.layouts.model import Layout
    from sentinel_agent.cpython.memory import Memory

_THREAD, _GENERATOR, _C_STACK = 0, 1, 3  # enum _frameowner; 2 is a frame that is being taken apart
_SLACK = 1024  # bytes over the last known top of the data stack that are read as well
_MAX_CHUNKS = 48
_MAX_STACK_BYTES = 768 << 10
_MAX_C_FRAMES = 4


class ChunkFormat:
    """What the walk needs of a layout, worked out once."""

    def __init__(self, layout: Layout) -> None:
        frame, thread, chunk = layout.frame, layout.thread, layout.chunk
        self.layout = layout
        self.frame = fields((frame.code, "Q"), (frame.previous, "Q"), (frame.instr, "Q"), (frame.owner, "B"))
        self.frame_size = self.frame.size
        # A generator's state lies before its frame; both are read as one range.
        self.lead = layout.generator.frame - layout.generator.frame_state
        self.executing = layout.generator.executing & 0xFF
        self.header = fields((chunk.previous, "Q"), (chunk.size, "Q"))
        self.data = chunk.data
        self.state_size = thread.size
        self.chunk_at = thread.datastack_chunk
        self.top_at = thread.datastack_top
        self.by_cframe = layout.minor <= 12
        self.leaf_at = thread.cframe if self.by_cframe else thread.current_frame
        self.cframe_at = thread.cframe_current


class _Chain:
    """The frames followed from the leaf; C frames and frames that are being set up are not among `places`."""

    __slots__ = ("ends", "lowest", "missing", "off_stack", "places")

    def __init__(self) -> None:
        self.places = Places()
        self.off_stack: list[int] = []
        self.lowest = 0
        self.missing = 0
        self.ends = False


class _Snapshot:
    """What one call read: the newest chunk first. `off_stack` has the bytes from `lead` before a frame on."""

    __slots__ = ("leaf", "off_stack", "spans", "state", "top")

    def __init__(self, state: bytes, leaf: int, top: int) -> None:
        self.state = state
        self.leaf = leaf
        self.top = top
        self.spans: list[tuple[int, bytes]] = []
        self.off_stack: dict[int, bytes] = {}


class ChunkWalk:
    """The walk of one thread, whose `PyThreadState` is at `thread`."""

    def __init__(self, memory: Memory, codes: CodeCache, form: ChunkFormat, thread: int) -> None:
        self._memory = memory
        self._codes = codes
        self._form = form
        self._thread = thread
        self._cframes: list[int] = []
        self._chunks: list[tuple[int, int]] = []  # address and size, the newest first
        self._top = 0
        self._grounded = False  # the last of the chunks is the thread's first one
        self._recent = RecentFrames(MAX_RANGES - _MAX_CHUNKS - _MAX_C_FRAMES - 1)

    def read(self) -> Reading:
        """Read the stack; up to ATTEMPTS gathering calls, one where nothing changed much since the last reading."""
        state: bytes | None = None
        best = FAILED
        for _ in range(ATTEMPTS + 1):
            snapshot = self._gather()
            if snapshot is None:
                continue
            state = snapshot.state
            chain = self._follow(snapshot)
            self._recent.meet(chain.off_stack)
            if chain.ends and self._rooted(chain, snapshot):
                return Reading(whole(chain.places), state)
            if chain.missing:
                self._learn(chain)
            best = self._torn(chain, snapshot)
        return Reading(best, state)

    def _gather(self) -> _Snapshot | None:
        """Read everything in one call; None if what was asked for was not where the thread is, which is then noted."""
        form = self._form
        ranges = [(self._thread, form.state_size)]
        if form.by_cframe:
            ranges += [(cframe + form.cframe_at, 8) for cframe in self._cframes]
        first_chunk = len(ranges)
        ranges += [(address, self._used(address, size)) for address, size in self._chunks]
        first_frame = len(ranges)
        recent = self._recent.addresses()
        ranges += [(address - form.lead, form.lead + form.frame_size) for address in recent]
        got = self._memory.read_many(ranges)
        state = got[0]
        if state is None:
            return None
        leaf, chunk, self._top = (
            int.from_bytes(state[at : at + 8], "little") for at in (form.leaf_at, form.chunk_at, form.top_at)
        )
        if form.by_cframe:
            found = got[1 + self._cframes.index(leaf)] if leaf in self._cframes else None
            if found is None:
                self._cframes = [leaf, *self._cframes[: _MAX_C_FRAMES - 1]]
            leaf = int.from_bytes(found, "little") if found is not None else -1
        if (self._chunks[0][0] if self._chunks else 0) != chunk:
            self._learn_chunks(chunk)
            return None
        snapshot = _Snapshot(state, leaf, self._top)
        for (address, _), data in zip(self._chunks, got[first_chunk:first_frame], strict=True):
            if data is None:
                self._chunks = []
                return None
            snapshot.spans.append((address, data))
        for address, data in zip(recent, got[first_frame:], strict=True):
            if data is not None:
                snapshot.off_stack[address] = data
        return None if leaf == -1 else snapshot

    def _used(self, address: int, size: int) -> int:
        """How much of a chunk to read: an older one whole, the newest up to a little over its last known top."""
        return min(size, self._top - address + _SLACK) if address < self._top <= address + size else size

    def _learn_chunks(self, address: int) -> None:
        """Follow the chunks from the newest one, and keep as many as may be read in one call."""
        self._chunks, self._grounded = [], not address
        total = 0
        while address and len(self._chunks) < _MAX_CHUNKS:
            head = self._memory.read(address, self._form.header.size)
            if head is None:
                break
            previous, size = self._form.header.unpack(head)
            total += size
            if size <= self._form.data or total > _MAX_STACK_BYTES:
                break
            self._chunks.append((address, size))
            address = previous
            self._grounded = not previous

    def _follow(self, snapshot: _Snapshot) -> _Chain:
        """Follow the chain from the leaf, as far as it holds."""
        form, get_code = self._form, self._codes.get
        unpack, lead = form.frame.unpack_from, form.lead
        spans, level = snapshot.spans, 0
        low, data = spans[0] if spans else (0, b"")
        last = len(data) - form.frame_size
        chain, address = _Chain(), snapshot.leaf
        for _ in range(MAX_DEPTH):
            if not address:
                chain.ends = True
                break
            at = address - low
            raw = data
            if not 0 <= at <= last:
                at, raw = lead, snapshot.off_stack.pop(address, b"")
                if not raw:
                    level = self._level_of(address, spans, level)
                    if level < 0:
                        chain.missing = address
                        break
                    low, data = spans[level]
                    last, at, raw = len(data) - form.frame_size, address - low, data
            code_address, previous, instr, owner = unpack(raw, at)
            if owner == _C_STACK:
                if raw is data:
                    break
                chain.off_stack.append(address)
                address = previous
                continue
            code = get_code(code_address)
            if code is None:
                break
            if owner == _THREAD:
                if raw is not data or not self._packed(address, code, chain.lowest, snapshot):
                    break
                chain.lowest = address
            elif owner == _GENERATOR and raw is not data:
                chain.off_stack.append(address)
                if raw[0] != form.executing:
                    break
            else:
                break
            lasti = instr - code.bytecode
            if not -2 <= lasti < code.bytecode_size:
                break
            if owner == _GENERATOR or lasti >= code.first_traceable:
                chain.places.add(code.at(lasti if lasti >= 0 else -1), address)
            address = previous
        return chain

    def _level_of(self, address: int, spans: list[tuple[int, bytes]], level: int) -> int:
        """Which older chunk a frame lies on; -1 for none."""
        for older in range(level + 1, len(spans)):
            low, data = spans[older]
            if low <= address <= low + len(data) - self._form.frame_size:
                return older
        return -1

    def _packed(self, address: int, code: Code, callee: int, snapshot: _Snapshot) -> bool:
        """Whether a frame ends where its callee's frame on the data stack starts, or on an older chunk than that."""
        if not callee or address + code.frame_size == callee:
            return True
        # The first frame of a newer chunk: its caller is the last one of the chunk before.
        for low, _ in snapshot.spans:
            if callee == low + self._form.data:
                return not low <= address < callee
        return False

    def _ground(self, snapshot: _Snapshot) -> int:
        """Where the thread's first frame lies: the first slot is left empty (`push_chunk`, Python/pystate.c)."""
        return snapshot.spans[-1][0] + self._form.data + 8 if snapshot.spans and self._grounded else 0

    def _rooted(self, chain: _Chain, snapshot: _Snapshot) -> bool:
        """Whether a chain that ends reaches the bottom of the data stack."""
        ground = self._ground(snapshot)
        if chain.lowest:
            return chain.lowest == ground
        return not snapshot.spans or snapshot.top == ground

    def _learn(self, chain: _Chain) -> None:
        """Follow a frame that was not asked for, one by one, so that the next call asks for it and its like."""
        form, found, address = self._form, list(chain.off_stack), chain.missing
        chunks = self._chunks
        for _ in range(MAX_RANGES):
            if not address or any(low <= address < low + size for low, size in chunks):
                break
            raw = self._memory.read(address - form.lead, form.lead + form.frame_size)
            if raw is None or address in found:
                break
            _, previous, _, owner = form.frame.unpack_from(raw, form.lead)
            if owner not in (_GENERATOR, _C_STACK):
                break
            found.append(address)
            address = previous
        self._recent.meet(found)

    def _torn(self, chain: _Chain, snapshot: _Snapshot) -> Stack:
        return partial(chain.places, self._from_root(chain.lowest or snapshot.top, snapshot))

    def _from_root(self, end: int, snapshot: _Snapshot) -> Places:
        """The frames from the bottom of the data stack up to `end` that call each other directly, innermost first."""
        address, caller = self._ground(snapshot), 0
        places = Places()
        if not address:
            return places
        low, data = snapshot.spans[-1]
        while address + self._form.frame_size <= min(end, low + len(data)) and len(places.frames) < MAX_DEPTH:
            code_address, previous, instr, owner = self._form.frame.unpack_from(data, address - low)
            code = self._codes.get(code_address)
            between = snapshot.off_stack.get(previous)
            if between is not None and between[-1] == _C_STACK:
                previous = self._form.frame.unpack_from(between, self._form.lead)[1]
            if code is None or owner != _THREAD or address + code.frame_size > end:
                break
            if caller and previous != caller:
                break
            lasti = instr - code.bytecode
            if not code.first_traceable <= lasti < code.bytecode_size:
                break
            places.add(code.at(lasti), address)
            caller, address = address, address + code.frame_size
        places.reverse()
        return places
