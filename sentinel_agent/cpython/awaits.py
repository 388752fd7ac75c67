"""What coroutines wait for: from a task's coroutine along its await chain to the innermost frame.

The rule is that of `cr_await` (`_PyGen_yf`, Objects/genobject.c): a suspended frame that waits in an `await` or a
`yield from` has what it waits for on top of its value stack. Many chains are followed at once, level by level, so
that 100,000 tasks cost hundreds of calls and not hundreds of thousands.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sentinel_agent.cpython.frames import fields
from sentinel_agent.cpython.memory import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sentinel_agent.cpython.code import Code, CodeCache, Frame
    from sentinel_agent.cpython.objects import Objects

MAX_AWAITS = 500
"""Most links of one await chain."""
_HEAP_TYPE = 1 << 9
_GENERATORS = ("coroutine", "generator", "async_generator")
_RESUMES_AWAIT = (
    2  # RESUME's argument: 0 start, 1 after yield, 2 after yield from, 3 after await (Python/bytecodes.c)
)
_WORD = struct.Struct("<Q")


@dataclass(slots=True)
class AwaitChain:
    """One coroutine's chain, outermost first. `running` is the address of the frame that executes, 0 where none does.

    `whole` is False where the chain was cut: too long, circular, or not readable to its end.
    """

    frames: list[Frame] = field(default_factory=list)
    running: int = 0
    whole: bool = True


class _Suspended(NamedTuple):
    """A generator's frame: where its next opcode and the top of its value stack are, 0 where it waits for nothing."""

    address: int
    code: Code
    lasti: int
    executing: bool
    opcode: int
    top: int


class Awaits:
    """Follows await chains."""

    def __init__(self, objects: Objects, codes: CodeCache) -> None:
        self._objects = objects
        self._codes = codes
        self._kinds: dict[int, str] = {}
        layout = objects.layout
        self._generator = layout.generator
        # Types that stand between a frame and the coroutine that it waits for, and where they point to it.
        self._wrapped = {
            "coroutine_wrapper": layout.generator.wrapped_coroutine,
            "async_generator_asend": layout.generator.asend_generator,
            "async_generator_athrow": layout.generator.athrow_generator,
            "anext_awaitable": layout.generator.anext_wrapped,
        }
        frame = layout.frame
        self._bits = ~frame.tag_bits
        if layout.minor >= 11:
            last = (frame.stacktop, "i") if layout.minor <= 13 else (frame.stacktop, "Q")
            self._frame = fields((frame.code, "Q"), (frame.instr, "Q"), last)
            self._head = layout.generator.frame + frame.size
            self._suspended: Callable[[Sequence[tuple[int, bytes]]], list[_Suspended | None]] = (
                self._inner_frames
            )
        else:
            last = (frame.stacktop, "Q") if layout.minor < 10 else (frame.stacktop, "i")
            places = [(frame.code, "Q"), (frame.instr, "i"), last, (frame.state, "b")]
            if layout.minor == 10:
                places.append((frame.valuestack, "Q"))
            self._order = sorted(range(len(places)), key=lambda i: places[i][0])
            self._frame = fields(*(places[i] for i in self._order))
            self._head = layout.generator.qualname + 8
            self._suspended = self._frame_objects

    def chains(self, coroutines: Sequence[int]) -> list[AwaitChain]:
        """The chains of several coroutines."""
        self._kinds.clear()
        answer = [AwaitChain() for _ in coroutines]
        level = list(zip(answer, coroutines, strict=True))
        for _ in range(MAX_AWAITS):
            if not level:
                break
            level = self._step(level)
        for chain, _ in level:
            chain.whole = False
        return answer

    def _step(self, level: list[tuple[AwaitChain, int]]) -> list[tuple[AwaitChain, int]]:
        """Add the frame of each object of a level to its chain; returns what they wait for."""
        generators: list[tuple[int, bytes]] = []
        owners: list[AwaitChain] = []
        wrappers: list[tuple[AwaitChain, int]] = []
        heads = self._objects.many([(address, self._head) for _, address in level])
        for (chain, address), head in zip(level, heads, strict=True):
            kind = self._kind(address, head)
            if kind in _GENERATORS and head is not None:
                generators.append((address, head))
                owners.append(chain)
            elif kind in self._wrapped:
                wrappers.append((chain, address + self._wrapped[kind]))
        onward = self._inside(wrappers)
        for chain, found, inner in zip(owners, *self._waits(generators), strict=True):
            if found is None:
                continue
            chain.frames.append(found.code.at(max(found.lasti, -1)))
            if found.executing:
                chain.running = found.address
            elif inner:
                onward.append((chain, inner))
        return onward

    def _inside(self, wrappers: list[tuple[AwaitChain, int]]) -> list[tuple[AwaitChain, int]]:
        """What the pointers at the given addresses point to."""
        answer: list[tuple[AwaitChain, int]] = []
        for (chain, _), word in zip(
            wrappers, self._objects.many([(at, 8) for _, at in wrappers]), strict=True
        ):
            if word is None:
                chain.whole = False
            else:
                answer.append((chain, _WORD.unpack(word)[0]))
        return answer

    def _kind(self, address: int, head: bytes | None) -> str:
        """The name of a built-in type, empty for any other. Objects smaller than `head` may lie at the end of a mapping."""
        at = self._objects.layout.objects.ob_type
        try:
            type_address = (
                _WORD.unpack_from(head, at)[0] if head is not None else self._objects.word(address + at)
            )
            kind = self._kinds.get(type_address)
            if kind is None:
                flags = self._objects.word(type_address + self._objects.layout.objects.type_flags)
                kind = "" if flags & _HEAP_TYPE else self._objects.type_name(type_address)
                self._kinds[type_address] = kind
        except UnreadableError:
            return ""
        return kind

    def _waits(self, generators: list[tuple[int, bytes]]) -> tuple[list[_Suspended | None], list[int]]:
        """The frame of each generator and what it waits for, 0 for nothing."""
        found = self._suspended(generators)
        opcodes = self._objects.many([(one.opcode, 2) if one else (0, 0) for one in found])
        tops = [
            one.top if one and one.top and (not one.opcode or self._awaiting(opcode)) else 0
            for one, opcode in zip(found, opcodes, strict=True)
        ]
        words = self._objects.many([(top, 8 if top else 0) for top in tops])
        return found, [_WORD.unpack(word)[0] & self._bits if word is not None else 0 for word in words]

    def _awaiting(self, opcode: bytes | None) -> bool:
        """Whether a frame that goes on with this instruction was waiting in an await."""
        if opcode is None or opcode[0] not in self._generator.yield_from_opcodes:
            return False
        return self._objects.layout.minor <= 10 or opcode[1] & 3 >= _RESUMES_AWAIT

    def _inner_frames(self, generators: Sequence[tuple[int, bytes]]) -> list[_Suspended | None]:
        """From 3.11 on: the frame lies in the generator."""
        layout, frame = self._generator, self._objects.layout.frame
        answer: list[_Suspended | None] = []
        for address, head in generators:
            code_address, instr, stacktop = self._frame.unpack_from(head, layout.frame)
            (state,) = struct.unpack_from("<b", head, layout.frame_state)
            code = self._codes.get(code_address & self._bits) if state < layout.cleared else None
            lasti = instr - code.bytecode if code else 0
            if code is None or not -2 <= lasti < code.bytecode_size:
                answer.append(None)
                continue
            top = opcode = 0
            stack = address + layout.frame + frame.localsplus
            if self._objects.layout.minor >= 14:
                stacktop = (stacktop - stack) // 8
            depth = layout.awaited_depth
            if depth <= stacktop < code.frame_size // 8 and state not in (layout.executing, layout.created):
                top = stack + 8 * (stacktop - depth)
                if self._objects.layout.minor <= 12:
                    opcode = instr + 2
                elif state != layout.yield_from:
                    top = 0
            executing = state == layout.executing
            answer.append(_Suspended(address + layout.frame, code, lasti, executing, opcode, top))
        return answer

    def _frame_objects(self, generators: Sequence[tuple[int, bytes]]) -> list[_Suspended | None]:
        """Up to 3.10: the frame is an object of its own, and there is none when the generator has ended."""
        layout = self._objects.layout
        addresses = [_WORD.unpack_from(head, layout.generator.frame)[0] for _, head in generators]
        answer: list[_Suspended | None] = []
        for address, data in zip(
            addresses, self._objects.many([(address, self._frame.size) for address in addresses]), strict=True
        ):
            answer.append(None if data is None else self._frame_object(address, data))
        return answer

    def _frame_object(self, address: int, data: bytes) -> _Suspended | None:
        layout = self._objects.layout
        values = dict(zip(self._order, self._frame.unpack(data), strict=True))
        code_address, lasti, stacktop, state = (values[i] for i in range(4))
        code = self._codes.get(code_address)
        lasti *= 2 if layout.minor == 10 else 1
        if code is None or not -2 <= lasti < code.bytecode_size - 2:
            return None
        executing = state == (layout.generator.executing if layout.minor == 10 else 1)
        top = opcode = 0
        if lasti >= 0 and not executing:
            opcode = code.bytecode + layout.objects.bytes_sval + lasti + 2
            if layout.minor == 10:
                top = values[4] + 8 * (stacktop - 1) if 0 < stacktop < code.bytecode_size else 0
            else:
                top = stacktop - 8 if stacktop else 0
        return _Suspended(address, code, lasti, executing, opcode, top)
