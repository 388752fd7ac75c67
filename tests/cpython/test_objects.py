"""Objects at the end of a mapping, and objects that are not what they seem."""

from __future__ import annotations

import struct

import pytest

from sentinel_agent.cpython.layouts import layout_of
from sentinel_agent.cpython.memory import ImageMemory, UnreadableError
from sentinel_agent.cpython.objects import MAX_TEXT, Objects


def ascii_text(text: str, length: int | None = None) -> bytes:
    """A str object of 3.11 as it lies in memory: Include/cpython/unicodeobject.h."""
    state = 1 << 2 | 1 << 5 | 1 << 6  # one byte per character, compact, ASCII
    return (
        struct.pack("<QQQQIIQ", 1, 0, len(text) if length is None else length, 0, state, 0, 0)
        + text.encode()
        + b"\0"
    )


def objects(address: int, data: bytes) -> Objects:
    return Objects(ImageMemory({address: data}), layout_of(11))


@pytest.mark.parametrize("text", ["", "x", "x" * 200])
def test_a_text_may_end_where_its_mapping_does(text: str) -> None:
    """Nothing behind an object need be readable."""
    assert objects(4096, ascii_text(text)).text(4096) == text


def test_a_text_is_capped() -> None:
    """A long text is cut, and one that claims to be endless is refused or cut, never read whole."""
    assert objects(4096, ascii_text("y" * 5000)).text(4096) == "y" * MAX_TEXT
    with pytest.raises(UnreadableError):
        objects(4096, ascii_text("y", length=1 << 50)).text(4096)


@pytest.mark.parametrize("value", [0, 1, -1, 2**30, -(2**59), 2**60 - 1])
def test_ints_of_two_digits_are_read(value: int) -> None:
    """Digits of 30 bits, the sign in the size: Include/cpython/longintrepr.h of 3.11."""
    digits = [abs(value) & (2**30 - 1), abs(value) >> 30]
    count = 2 if digits[1] else 1 if digits[0] else 0
    data = struct.pack("<QQqII", 1, 0, -count if value < 0 else count, *digits)
    assert objects(4096, data).integer(4096) == value


def test_a_longer_int_is_refused() -> None:
    """Nothing that the reader looks for needs more than two digits."""
    with pytest.raises(UnreadableError, match="small int"):
        objects(4096, struct.pack("<QQqII", 1, 0, 3, 0, 0)).integer(4096)
