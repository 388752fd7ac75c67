"""Reading memory: what comes whole, what comes as None, and what is refused."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.cpython.memory import (
    MAX_RANGES,
    MAX_READ,
    ImageMemory,
    ProcessMemory,
    RecordingMemory,
    UnreadableError,
    must_read,
    read_word,
)
from sentinel_agent.errors import NoSuchTargetError


def test_ranges_come_back_in_order_from_one_call() -> None:
    """Several ranges of a process are read by a single system call."""
    text = ctypes.create_string_buffer(b"0123456789")
    start = ctypes.addressof(text)
    memory = ProcessMemory(os.getpid())
    assert memory.read_many([(start + 5, 3), (start, 2)]) == [b"567", b"01"]
    assert memory.calls == 1


def test_a_range_that_is_not_there_is_none_and_hides_no_other() -> None:
    """Ranges behind an unmapped one are still read."""
    text = ctypes.create_string_buffer(b"0123456789")
    start = ctypes.addressof(text)
    with mmap.mmap(-1, mmap.PAGESIZE) as hole:
        view = ctypes.c_char.from_buffer(hole)
        address = ctypes.addressof(view)
        del view
    memory = ProcessMemory(os.getpid())
    assert memory.read_many([(start, 1), (address, 8), (start + 1, 1)]) == [b"0", None, b"1"]


@pytest.mark.parametrize("wanted", [(0, 8), (8, 0), (1 << 63, 8), (4096, MAX_READ + 1), (-5, 8), (4096, -1)])
def test_a_range_that_makes_no_sense_is_none(wanted: tuple[int, int]) -> None:
    """Addresses and sizes from a corrupt target cost no system call."""
    memory = ProcessMemory(os.getpid())
    assert memory.read(*wanted) is None
    assert memory.calls == 0
    assert ImageMemory({4096: b"x" * 16}).read(*wanted) is None


def test_caps_hold_for_both_kinds_of_memory() -> None:
    """Too many ranges, or too many bytes in all, are refused before anything is read."""
    text = ctypes.create_string_buffer(MAX_READ)
    start = ctypes.addressof(text)
    for memory in (ProcessMemory(os.getpid()), ImageMemory({start: bytes(16)})):
        with pytest.raises(UnreadableError, match="ranges in one call"):
            memory.read_many([(start, 1)] * (MAX_RANGES + 1))
        with pytest.raises(UnreadableError, match="bytes in one call"):
            memory.read_many([(start, MAX_READ), (start, 1)])


def test_a_large_read_grows_the_buffer() -> None:
    """The largest read that is allowed works."""
    text = ctypes.create_string_buffer(b"x" * MAX_READ, MAX_READ)
    assert ProcessMemory(os.getpid()).read(ctypes.addressof(text), MAX_READ) == b"x" * MAX_READ


def test_a_process_that_ended_is_no_such_target() -> None:
    """The end of a target is told apart from an unreadable range."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(NoSuchTargetError, match="has ended"):
        ProcessMemory(ended.pid).read(4096, 8)


@given(st.binary(min_size=1, max_size=200), st.integers(0, 220), st.integers(1, 220))
def test_an_image_in_pieces_reads_like_one(data: bytes, start: int, size: int) -> None:
    """Adjacent pieces are one memory; what reaches over the end is None."""
    middle = len(data) // 2
    image = ImageMemory({4096: data[:middle], 4096 + middle: data[middle:]} if middle else {4096: data})
    expected = data[start : start + size]
    assert image.read(4096 + start, size) == (expected if len(expected) == size else None)


def test_a_recording_replays_what_was_read() -> None:
    """Pages that were touched are in the image, whole."""
    text = ctypes.create_string_buffer(b"0123456789")
    memory = RecordingMemory(ProcessMemory(os.getpid()))
    assert memory.read(ctypes.addressof(text), 4) == b"0123"
    assert ImageMemory(memory.image()).read(ctypes.addressof(text), 4) == b"0123"


def test_a_word_that_cannot_be_read_is_an_error_of_the_reader() -> None:
    """The helpers that must succeed say what they could not read."""
    memory = ImageMemory({4096: bytes(range(8))})
    assert read_word(memory, 4096) == 0x0706050403020100
    with pytest.raises(UnreadableError, match="0x1004"):
        must_read(memory, 4100, 8)
