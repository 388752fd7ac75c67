"""The wire format of protobuf, as much of it as SkyWalking's messages need (protobuf.dev, Encoding).

Each function gives the bytes of one field, ready to be joined; what has its default value is left out, as proto3 does.
"""

from __future__ import annotations

from struct import Struct

_double = Struct("<d").pack
_MASK = 2**64 - 1


def varint(value: int) -> bytes:
    """An unsigned number; a negative one takes the ten bytes of its two's complement."""
    value &= _MASK
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """An int32, int64, bool or enum."""
    return varint(field << 3) + varint(value) if value else b""


def double(field: int, value: float) -> bytes:
    """A double; 0 is written too, so that it can be told from a missing one."""
    return varint(field << 3 | 1) + _double(value)


def text(field: int, value: str) -> bytes:
    """A string; what UTF-8 cannot say is replaced."""
    return message(field, value.encode("utf-8", "replace")) if value else b""


def message(field: int, *parts: bytes) -> bytes:
    """A message of these fields; also where they are empty."""
    body = b"".join(parts)
    return varint(field << 3 | 2) + varint(len(body)) + body
