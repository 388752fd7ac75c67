"""The wire format of protobuf, as much of it as small messages need (protobuf.dev, Encoding).

Each function gives the bytes of one field, ready to be joined; what has its default value is left out, as proto3 does.
Fields are numbered 1 to 15, whose tag is one byte: no message that is made here has others.
"""

from __future__ import annotations

from struct import Struct

_double = Struct("<d").pack
_MASK = 2**64 - 1
_BYTE = tuple(bytes((value,)) for value in range(128))


def varint(value: int) -> bytes:
    """An unsigned number; a negative one takes the ten bytes of its two's complement."""
    if 0 <= value < 0x80:
        return _BYTE[value]
    value &= _MASK
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """An int32, int64, bool or enum."""
    return _BYTE[field << 3] + varint(value) if value else b""


def double(field: int, value: float) -> bytes:
    """A double; 0 is written too, so that it can be told from a missing one."""
    return _BYTE[field << 3 | 1] + _double(value)


def text(field: int, value: str) -> bytes:
    """A string; what UTF-8 cannot say is replaced."""
    return message(field, value.encode("utf-8", "replace")) if value else b""


def message(field: int, body: bytes) -> bytes:
    """A message whose fields are joined in `body`; also where there is none."""
    return _BYTE[field << 3 | 2] + varint(len(body)) + body
