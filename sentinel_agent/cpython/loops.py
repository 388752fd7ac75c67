"""What the event loop of a thread is doing: which callback it is in, from a stack that was just read.

Recognised are loops that run through asyncio's `BaseEventLoop._run_once` (Lib/asyncio/base_events.py, alike from 3.8 to
3.15). Its own locals tell one callback from the next: `end_time`, which it takes from the clock after each visit to the
selector, and `i`, which counts the callbacks of one round. Frames cannot: a handler that is called again has the same
frames at the same addresses.

A loop that is written in C, such as uvloop's, has no such frame; it is told from no loop by the frames of asyncio's runner.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Literal, NamedTuple

from sentinel_agent.cpython.code import TORN, Code
from sentinel_agent.cpython.memory import UnreadableError

if TYPE_CHECKING:
    from sentinel_agent.cpython.code import Frame
    from sentinel_agent.cpython.frames import Stack
    from sentinel_agent.cpython.objects import Objects

_MAX_LOCALS = 1000
_MAX_KNOWN = 10_000


class Callback(NamedTuple):
    """One call of a callback: the loop's clock when its round began (seconds), and its number in that round."""

    end_time: float
    number: int


Doing = Callback | Literal["waiting", "unknown", "opaque"] | None
"""`waiting`: in no callback; `unknown`: in one, but not in which; `opaque`: a loop that cannot be seen; None: no loop."""


class _RunOnce(NamedTuple):
    """Where two locals of `_run_once` lie in its frame, in bytes."""

    end_time: int
    number: int


_Kind = _RunOnce | Literal["handle", "runner", "changed"] | None


class Loops:
    """Looks into the frames of event loops. Not for use by several threads at once."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._kinds: dict[Code, _Kind] = {}
        self._instruction = struct.Struct("<Q" if objects.layout.minor >= 11 else "<i")

    def doing(self, stack: Stack) -> Doing:
        """What the loop whose thread has this stack does; of loops in loops, the outermost."""
        frames, runner = stack.frames, False
        for at in range(len(frames) - 1, -1, -1):
            kind = self._kind(frames[at].code)
            if kind == "runner":
                runner = True
            elif kind == "changed":
                return "opaque"
            elif isinstance(kind, _RunOnce):
                above = frames[at - 1] if at else None
                if above is TORN:
                    return "unknown"
                if above is None or self._kind(above.code) != "handle":
                    return "waiting"
                return self._callback(stack.addresses[at], frames[at], kind)
        return "opaque" if runner and TORN not in frames else None

    def _kind(self, code: Code) -> _Kind:
        if code not in self._kinds:
            if len(self._kinds) >= _MAX_KNOWN:
                self._kinds.clear()
            self._kinds[code] = self._kind_of(code)
        return self._kinds[code]

    def _kind_of(self, code: Code) -> _Kind:
        function = code.function.rpartition(".")[2]
        if function == "_run" and code.file.endswith("asyncio/events.py"):
            return "handle"
        if function == "run" and code.file.endswith("asyncio/runners.py"):
            return "runner"
        if function != "_run_once" or not code.file.endswith("asyncio/base_events.py"):
            return None
        try:
            return self._locals_of(code)
        except (UnreadableError, ValueError):
            return "changed"

    def _locals_of(self, code: Code) -> _RunOnce:
        """Raises UnreadableError, or ValueError for a function that has no such locals."""
        objects, layout = self._objects, self._objects.layout
        names = objects.word(code.address + layout.code.localnames)
        count = objects.word(names + layout.objects.ob_size)
        if count > _MAX_LOCALS:
            raise UnreadableError(f"a function of {count} locals at {code.address:#x}")
        first = names + layout.objects.tuple_item
        texts = objects.texts([objects.word(first + 8 * number) for number in range(count)])
        at = layout.frame.localsplus
        return _RunOnce(at + 8 * texts.index("end_time"), at + 8 * texts.index("i"))

    def _callback(self, address: int, frame: Frame, places: _RunOnce) -> Callback | Literal["unknown"]:
        """Read which callback it is.

        The pointers and the instruction are read before and after what they point to. In this order, and with the
        instruction still at the call: what is put together from two rounds is a callback that never comes again.
        """
        layout, memory = self._objects.layout, self._objects.memory
        words = [
            (address + places.end_time, 8),
            (address + places.number, 8),
            (address + layout.frame.instr, self._instruction.size),
        ]
        before = memory.read_many(words)
        if before[0] is None or before[1] is None or before[2] is None:
            return "unknown"
        tags = ~layout.frame.tag_bits
        end_time, number = (int.from_bytes(word, "little") & tags for word in (before[0], before[1]))
        (value,) = memory.read_many([(end_time + layout.objects.float_value, 8)])
        (count,) = self._objects.integers([number])
        if value is None or count is None or memory.read_many(words) != before:
            return "unknown"
        (instruction,) = self._instruction.unpack(before[2])
        lasti = (
            instruction - frame.code.bytecode
            if layout.minor >= 11
            else instruction * (2 if layout.minor == 10 else 1)
        )
        return Callback(struct.unpack("<d", value)[0], count) if lasti == frame.lasti else "unknown"
