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
from sentinel_agent.cpython.frames import fields
from sentinel_agent.cpython.memory import UnreadableError
from sentinel_agent.errors import TargetError

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


Doing = Callback | Literal["waiting", "unknown", "opaque", "opaque callback"] | None
"""`waiting`: in no callback; `unknown`: in one, but not in which; `opaque`: of a loop that cannot be seen; None: no loop."""


class _RunOnce(NamedTuple):
    """What is read of a frame of `_run_once`, from its instruction on: that, `end_time` and `i`. `end` is where it ends."""

    form: struct.Struct
    end: int


_Kind = _RunOnce | Literal["handle", "runner", "changed"] | None


class Loops:
    """Looks into the frames of event loops. Not for use by several threads at once."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._kinds: dict[Code, _Kind] = {}

    def doing(self, stack: Stack) -> Doing:
        """What the loop whose thread has this stack does; of loops in loops, the outermost."""
        frames, runner = stack.frames, -1
        for at in range(len(frames) - 1, -1, -1):
            kind = self._kind(frames[at].code)
            if kind == "runner":
                runner = at
            elif kind == "changed":
                return "opaque"
            elif isinstance(kind, _RunOnce):
                above = frames[at - 1] if at else None
                if above is TORN:
                    return "unknown"
                if above is None or self._kind(above.code) != "handle":
                    return "waiting"
                return self._callback(stack.addresses[at], frames[at], kind)
        if runner < 0 or TORN in frames:
            return None
        return "opaque callback" if runner else "opaque"

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
        except (TargetError, ValueError):
            return "changed"

    def _locals_of(self, code: Code) -> _RunOnce:
        """Raises TargetError, or ValueError for a function that has no such locals."""
        objects, layout = self._objects, self._objects.layout
        names = objects.word(code.address + layout.code.localnames)
        count = objects.word(names + layout.objects.ob_size)
        if count > _MAX_LOCALS:
            raise UnreadableError(f"a function of {count} locals at {code.address:#x}")
        first = names + layout.objects.tuple_item
        texts = objects.texts([objects.word(first + 8 * number) for number in range(count)])
        places = [layout.frame.localsplus + 8 * texts.index(name) for name in ("end_time", "i")]
        # The loop's clock is assigned before the number, in the code and so in the frame, whose locals are in that order.
        at = layout.frame.instr
        letter = "Q" if layout.minor >= 11 else "i"
        form = fields((0, letter), (places[0] - at, "Q"), (places[1] - at, "Q"))
        return _RunOnce(form, at + form.size)

    def _callback(self, address: int, frame: Frame, places: _RunOnce) -> Callback | Literal["unknown"]:
        """Read which callback it is.

        The frame is read before and after what its locals point to, and must be the same, still at the call. What could be
        put together from two rounds in spite of that is the clock of the older one: a callback that never comes again.
        """
        layout, memory = self._objects.layout, self._objects.memory
        start = address + layout.frame.instr
        span = (start, places.end - layout.frame.instr)
        before = memory.read(*span)
        if before is None:
            return "unknown"
        instruction, end_time, number = places.form.unpack(before)
        tags = ~layout.frame.tag_bits
        value, count, after = memory.read_many(
            [
                ((end_time & tags) + layout.objects.float_value, 8),
                (number & tags, layout.objects.int_digits + 8),
                span,
            ]
        )
        if value is None or count is None or after != before:
            return "unknown"
        if layout.minor >= 11:
            lasti = instruction - frame.code.bytecode
        else:
            lasti = instruction * (2 if layout.minor == 10 else 1)
        index = self._objects.small_integer(count)
        if lasti != frame.lasti or index is None:
            return "unknown"
        return Callback(struct.unpack("<d", value)[0], index)
