"""Code objects of the target, read once and kept by address; places in them; line tables, decoded when asked for.

Line tables: Objects/lnotab_notes.txt (3.8 to 3.9), PEP 626 and the same file of 3.10 (3.10),
Objects/locations.md (3.11 on). A table is read with its code, so that a stack can still be shown when the target is gone.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import TYPE_CHECKING

from sentinel_agent.cpython.memory import UnreadableError, must_read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentinel_agent.cpython.objects import Objects

MAX_CODES = 50_000
MAX_TABLE_BYTES = 32 << 20
"""Most code objects, and bytes of their line tables, that are kept of one target; the oldest go first."""
_MAX_TABLE = 1 << 18
_MAX_CODE_BYTES = 1 << 24
_MAX_FRAME_BYTES = 1 << 17
_PLACES_PER_CODE = 4096


class Frame:
    """One place in the target's code. The same place is always the same object, as long as its code is kept."""

    __slots__ = ("_line", "code", "lasti")

    def __init__(self, code: Code, lasti: int) -> None:
        self.code = code
        self.lasti = lasti
        self._line: int | None = -1

    @property
    def function(self) -> str:
        """Qualified name from 3.11 on, plain name before."""
        return self.code.function

    @property
    def file(self) -> str:
        """The file as the target names it."""
        return self.code.file

    @property
    def line(self) -> int | None:
        """Line number, or None for code that has none."""
        if self._line == -1:
            self._line = self.code.line_at(self.lasti)
        return self._line

    def __repr__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


class Code:
    """One code object. `bytecode` is an address, sizes are in bytes, `first_traceable` is a bytecode offset."""

    __slots__ = (
        "_lines",
        "_places",
        "_starts",
        "_table",
        "address",
        "bytecode",
        "bytecode_size",
        "file",
        "first_line",
        "first_traceable",
        "frame_size",
        "function",
        "head",
        "minor",
    )

    def __init__(
        self, address: int, function: str, file: str, first_line: int, table: bytes, minor: int
    ) -> None:
        self.address = address
        self.function = function
        self.file = file
        self.first_line = first_line
        self.minor = minor
        self.head = b""
        self.bytecode = 0
        self.bytecode_size = 0
        self.first_traceable = 0
        self.frame_size = 0
        self._table = table
        self._starts: list[int] | None = None
        self._lines: list[int | None] = []
        self._places: dict[int, Frame] = {}

    @property
    def table_size(self) -> int:
        """Bytes of the line table."""
        return len(self._table)

    def at(self, lasti: int) -> Frame:
        """The place at bytecode offset `lasti`; -1 before the first instruction."""
        place = self._places.get(lasti)
        if place is None:
            if len(self._places) >= _PLACES_PER_CODE:
                self._places.clear()
            place = self._places[lasti] = Frame(self, lasti)
        return place

    def line_at(self, lasti: int) -> int | None:
        """Line of bytecode offset `lasti`, or None for code that has none."""
        if lasti < 0:
            return self.first_line
        if self._starts is None:
            self._starts, self._lines = [], []
            for start, line in decode_lines(self._table, self.first_line, self.minor):
                self._starts.append(start)
                self._lines.append(line)
        at = bisect_right(self._starts, lasti) - 1
        return self._lines[at] if at >= 0 else self.first_line


TORN = Code(0, "<torn>", "", 0, b"", 0).at(-1)
"""Stands for the frames between the two ends of a stack that could not be read."""


def decode_lines(table: bytes, first_line: int, minor: int) -> Iterator[tuple[int, int | None]]:
    """Start offset and line of each stretch of bytecode, in order; for CPython 3.`minor`."""
    if minor >= 11:
        return _decode_locations(table, first_line)
    return _decode_linetable(table, first_line) if minor == 10 else _decode_lnotab(table, first_line)


def _decode_lnotab(table: bytes, line: int) -> Iterator[tuple[int, int | None]]:
    offset = 0
    yield 0, line
    for step, change in struct.iter_unpack("<Bb", table[: len(table) & ~1]):
        offset += step
        line += change
        yield offset, line


def _decode_linetable(table: bytes, line: int) -> Iterator[tuple[int, int | None]]:
    offset = 0
    for step, change in struct.iter_unpack("<Bb", table[: len(table) & ~1]):
        no_line = change == -128
        line += 0 if no_line else change
        if step:
            yield offset, None if no_line else line
        offset += step


def _varint(table: bytes, at: int) -> tuple[int, int]:
    """An unsigned number in groups of six bits, lowest first, and where it ends."""
    value = shift = 0
    while at < len(table) and shift < 36:
        byte = table[at]
        at += 1
        value |= (byte & 63) << shift
        if not byte & 64:
            break
        shift += 6
    return value, at


def _decode_locations(table: bytes, line: int) -> Iterator[tuple[int, int | None]]:
    offset = at = 0
    while at < len(table):
        first = table[at]
        kind, units = first >> 3 & 15, (first & 7) + 1
        at += 1
        if kind in (13, 14):
            number, at = _varint(table, at)
            line += -(number >> 1) if number & 1 else number >> 1
        elif 10 <= kind <= 12:
            line += kind - 10
        yield offset, None if kind == 15 else line
        offset += units * 2
        # The columns, which nobody asked for, end where the next entry starts: with its high bit set.
        while at < len(table) and not table[at] & 128:
            at += 1


class CodeCache:
    """Code objects by address. A freed code's address may serve another one: `revalidate` finds that out."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._codes: dict[int, Code] = {}
        self._code_type = 0
        self._table_bytes = 0

    def get(self, address: int) -> Code | None:
        """The code object at `address`, or None where there is none."""
        code = self._codes.get(address)
        if code is None:
            try:
                code = self._read(address)
            except UnreadableError:
                return None
            self._table_bytes += code.table_size
            while len(self._codes) >= MAX_CODES or (self._codes and self._table_bytes > MAX_TABLE_BYTES):
                self._forget(next(iter(self._codes)))
            self._codes[address] = code
        return code

    def _forget(self, address: int) -> None:
        self._table_bytes -= self._codes.pop(address).table_size

    def revalidate(self) -> int:
        """Read the heads of all kept codes again and forget those that changed; returns how many did."""
        size = self._objects.layout.code.size
        kept = list(self._codes.values())
        heads = self._objects.many([(code.address, size) for code in kept])
        changed = [
            code
            for code, head in zip(kept, heads, strict=True)
            if head is None or self._stable(head) != code.head
        ]
        for code in changed:
            self._forget(code.address)
        return len(changed)

    def _stable(self, head: bytes) -> bytes:
        """The fields that tell one code from another."""
        layout = self._objects.layout.code
        words = (layout.name, layout.filename, layout.linetable)
        return b"".join(head[at : at + 8] for at in words) + head[layout.firstlineno : layout.firstlineno + 4]

    def _read(self, address: int) -> Code:
        objects, minor = self._objects, self._objects.layout.minor
        layout = objects.layout.code
        head = must_read(objects.memory, address, layout.size)
        self._check_type(int.from_bytes(head[objects.layout.objects.ob_type :][:8], "little"), address)
        name, file, table = (
            int.from_bytes(head[at : at + 8], "little")
            for at in (layout.name if minor < 11 else layout.qualname, layout.filename, layout.linetable)
        )
        function_text, file_text = objects.texts([name, file])
        if function_text is None or file_text is None:
            raise UnreadableError(f"the code object at {address:#x} has no name or no file")
        first_line = int.from_bytes(head[layout.firstlineno : layout.firstlineno + 4], "little", signed=True)
        code = Code(address, function_text, file_text, first_line, objects.bytes_of(table, _MAX_TABLE), minor)
        code.head = self._stable(head)
        self._measure(code, head)
        return code

    def _measure(self, code: Code, head: bytes) -> None:
        """Fill in where the bytecode is and how much of the data stack a frame of this code takes."""
        objects, layout = self._objects, self._objects.layout
        at = layout.objects.ob_size

        def number(offset: int) -> int:
            return int.from_bytes(head[offset : offset + 4], "little", signed=True)

        if layout.minor < 11:
            bytecode = int.from_bytes(head[layout.code.bytecode :][:8], "little")
            code.bytecode, code.bytecode_size = bytecode, objects.word(bytecode + at)
        else:
            code.bytecode = code.address + layout.code.bytecode
            code.bytecode_size = 2 * int.from_bytes(head[at : at + 8], "little")
            code.first_traceable = 2 * number(layout.code.firsttraceable)
            words = number(layout.code.framesize) if layout.minor >= 12 else 0
            slots = number(layout.code.nlocalsplus) + number(layout.code.stacksize)
            code.frame_size = 8 * words or 8 * slots + layout.frame.size
            if not layout.frame.size <= code.frame_size <= _MAX_FRAME_BYTES:
                raise UnreadableError(f"a frame of {code.frame_size} bytes at {code.address:#x}")
        if not 0 < code.bytecode_size <= _MAX_CODE_BYTES:
            raise UnreadableError(f"{code.bytecode_size} bytes of bytecode at {code.address:#x}")

    def _check_type(self, type_address: int, address: int) -> None:
        if self._code_type == 0 and self._objects.type_name(type_address) == "code":
            self._code_type = type_address
        if type_address != self._code_type:
            raise UnreadableError(f"the object at {address:#x} is no code object")
