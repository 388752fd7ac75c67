"""The wire format of protobuf: varints, fields and nested messages, enough for the messages that we write and read.

Source: protobuf.dev, "Encoding". Groups (wire types 3 and 4) are refused: they have been deprecated since proto2.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_ENTRIES = 65536
"""Most entries of a packed field: a few bytes must not become a long list."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SMALL = tuple(bytes((value,)) for value in range(0x80))


def varint(value: int) -> bytes:
    """`value` as a varint; a negative one as 64 bits in two's complement."""
    if 0 <= value < 0x80:
        return _SMALL[value]
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(field: int, value: int) -> bytes:
    """A varint field; nothing for the default, 0."""
    return varint(field << 3 | _VARINT) + varint(value) if value else b""


def double(field: int, value: float) -> bytes:
    """A field of 64 bits; nothing for the default, which is 0 and not -0."""
    packed = struct.pack("<d", value)
    return varint(field << 3 | _FIXED64) + packed if any(packed) else b""


def block(field: int, body: bytes) -> bytes:
    """A field of a string, bytes or nested message."""
    return varint(field << 3 | _BYTES) + varint(len(body)) + body


def packed(field: int, values: Iterable[int]) -> bytes:
    """A repeated number."""
    return block(field, b"".join(map(varint, values)))


class Field(NamedTuple):
    """A field of a message: `value` of a varint, `fixed` of a 64 bit one, or `body` of a length-delimited one."""

    number: int
    value: int
    body: memoryview
    fixed: float = 0.0

    def numbers(self) -> list[int]:
        """The values of a repeated number, packed or not."""
        if not self.body:
            return [self.value]
        found: list[int] = []
        at = 0
        while at < len(self.body):
            value, at = read_varint(self.body, at)
            found.append(signed(value))
            if len(found) > MAX_ENTRIES:
                raise ValueError(f"a list has more than {MAX_ENTRIES} entries")
        return found


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at `at` (as unsigned 64 bits) and where the next one begins.

    Raises:
        IndexError: the data end in it.
        ValueError: it is longer than 64 bits.
    """
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def signed(value: int) -> int:
    """64 bits in two's complement as a number."""
    return value - (1 << 64) if value >> 63 else value


_NOTHING = memoryview(b"")


def fields(data: memoryview) -> Iterator[Field]:
    """The fields of a message in their order.

    Raises:
        IndexError, ValueError: it is no message.
    """
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = read_varint(data, at)
            yield Field(field, signed(value), _NOTHING)
        elif wire == _BYTES:
            size, at = read_varint(data, at)
            if size > len(data) - at:
                raise ValueError("a field is longer than what is left")
            yield Field(field, 0, data[at : at + size])
            at += size
        elif wire == _FIXED64:
            if at + 8 > len(data):
                raise ValueError("a field is longer than what is left")
            yield Field(field, 0, _NOTHING, struct.unpack_from("<d", data, at)[0])
            at += 8
        elif wire == _FIXED32:
            at += 4
        else:
            raise ValueError(f"field {field} has the unknown wire type {wire}")
