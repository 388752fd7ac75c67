"""Whatever lies in a segment file, reading it ends soon, in bounded memory, with no error but the recorder's own."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.recorder.codec import (
    MAGIC,
    MAX_BLOCK,
    MAX_SEGMENT,
    Block,
    SegmentError,
    encode_block,
    encode_header,
)
from sentinel_agent.recorder.segment import StoredSegment
from sentinel_agent.recorder.window import MAX_READ, window
from tests.recorder.support import STACK, START, make_ring, put_in, recorded, sample, tick

TICKS = [tick(n, [sample(STACK[n % 9 :]), sample(native_id=43 + n // 20)]) for n in range(60)]


def batches() -> list[bytes]:
    """One segment in six pieces of ten ticks."""
    ring, pieces = make_ring(spooled=True, max_age=1000.0), []
    for number, one in enumerate(TICKS):
        ring.put(one)
        if number % 10 == 9:
            pieces += [batch.data for batch in ring.take()]
    return pieces


PIECES = batches()
FILE = b"".join(PIECES)


def read_all(data: bytes) -> None:
    """Everything that a reader does with a file; fails on any exception but the recorder's own."""
    made = window([data], START, START + 10)
    assert made.damaged >= 0
    try:
        segment = StoredSegment(data)
    except SegmentError:
        return
    for thread, node, *_ in segment.runs():
        segment.thread(thread)
        segment.stack(node)


def block(**changes: object) -> bytes:
    """A framed block that is sound but for `changes`: one tick, one thread, one frame, one run."""
    sound = Block(
        texts_at=0,
        texts=["f", "x.py", "main"],
        frames_at=0,
        frames=array("I", [0, 1, 5]).tobytes(),
        nodes_at=1,
        nodes=array("Q", [0]).tobytes(),
        threads_at=0,
        threads=array("q", [42, 2]).tobytes(),
        ticks_at=0,
        ticks=array("d", [START, 5000.0, 0.05, 0.0]).tobytes(),
        failed=array("I", [0]).tobytes(),
        runs=array("I", [0, 1, 1, 0, 1]).tobytes(),
    )
    return encode_block(msgspec.structs.replace(sound, **changes))


HEADER = encode_header(StoredSegment(FILE).header)


def test_a_torn_end_loses_only_the_last_block() -> None:
    """Cut anywhere, as a kill leaves it: all blocks before are there, and nothing counts as damaged."""
    ends = [sum(map(len, PIECES[: n + 1])) for n in range(len(PIECES))]
    for cut in range(ends[0], len(FILE), 7):
        segment = StoredSegment(FILE[:cut])
        complete = sum(end <= cut for end in ends)
        assert segment.damaged == 0
        assert recorded([FILE[:cut]]) == put_in(TICKS[: complete * 10])


def test_a_damaged_block_is_skipped_and_counted() -> None:
    """What stands before and after it is still right; what only it knew is lost, not guessed."""
    third = len(PIECES[0]) + len(PIECES[1]) + len(PIECES[2]) // 2
    data = FILE[:third] + bytes([FILE[third] ^ 1]) + FILE[third + 1 :]
    made = window([data], START, START + 10)
    assert made.damaged == 1
    whole = window([FILE], START, START + 10).record
    assert {frame.function for frame in made.record.frames} <= {frame.function for frame in whole.frames}
    assert sum(one.count for one in made.record.samples) + made.record.lost == 100


@given(st.lists(st.tuples(st.integers(0, len(FILE) - 1), st.integers(0, 7)), min_size=1, max_size=20))
def test_flipped_bits_never_make_a_sample(flips: list[tuple[int, int]]) -> None:
    """A file with flipped bits is refused, or gives only what was put in."""
    data = bytearray(FILE)
    for at, bit in flips:
        data[at] ^= 1 << bit
    read_all(bytes(data))
    try:
        segment = StoredSegment(bytes(data))
    except SegmentError:
        return
    true = put_in(TICKS)
    stacks, walls = {entry[3] for entry in true}, {entry[0] for entry in true}
    assert {tick[0] for tick in segment.ticks.values()} <= walls
    assert {segment.stack(node) for _, node, *_ in segment.runs()} <= stacks | {None}


@given(st.binary(max_size=300), st.sampled_from((b"", MAGIC, HEADER, FILE)))
def test_garbage_is_refused_or_skipped(garbage: bytes, before: bytes) -> None:
    """Alone, after the magic number, after a header, after a whole file."""
    read_all(before + garbage)


WORDS = st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 4), max_size=30)
NUMBERS = st.integers(0, 2**64 - 1) | st.integers(0, 4)


@given(
    numbers=st.lists(NUMBERS, min_size=5, max_size=5),
    words=st.lists(WORDS, min_size=4, max_size=4),
    ticks=st.lists(st.floats(), max_size=9).map(lambda values: array("d", values).tobytes()),
    texts=st.lists(st.text(max_size=3), max_size=5),
)
def test_contents_that_do_not_fit_together_harm_nobody(
    numbers: list[int], words: list[list[int]], ticks: bytes, texts: list[str]
) -> None:
    """Right checksums, wild numbers: a writer with a fault, or a forger."""
    frames, nodes, threads, runs = (array("I", some).tobytes() for some in words)
    names = ("texts_at", "frames_at", "nodes_at", "threads_at", "ticks_at")
    wild = dict(zip(names, numbers, strict=True))
    forged = block(texts=texts, frames=frames, nodes=nodes, threads=threads, runs=runs, ticks=ticks, **wild)
    read_all(HEADER + block() + forged + block(**wild))


def test_loops_among_the_nodes_end() -> None:
    """A node that is its own parent, or comes before it, is no stack."""
    nodes = array("Q", [1 << 32, 3 << 32, 2 << 32]).tobytes()
    segment = StoredSegment(HEADER + block(nodes=nodes))
    assert [segment.stack(node) for node in (0, 1, 2, 3)] == [(), None, None, None]


def test_endless_runs_are_cut() -> None:
    """A thousand runs of 2**32 ticks over a million ticks far apart: at most MAX_READ are looked at, the rest is lost."""
    runs = array("I", [0, 1, 1, 0, 2**32 - 1] * 1000).tobytes()
    ticks = array("d", [START, 5000.0, 0.05, 0.0] * 1000).tobytes()
    failed = array("I", [0] * 1000).tobytes()
    far = block(ticks_at=2**32 - 5)
    started = time.process_time()
    made = window([HEADER + block(runs=runs, ticks=ticks, failed=failed) + far], START, START + 10)
    assert sum(one.count for one in made.record.samples) <= MAX_READ
    assert made.record.lost > 0
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a recorder segment"),
        (b"\x7fELF" * 100, "not a recorder segment"),
        (MAGIC, "header is damaged"),
        (HEADER[:-1] + b"\1", "header is damaged"),
        (MAGIC + block(), "header is not understood"),
        (bytes(MAX_SEGMENT + 1), "at most"),
    ],
)
def test_a_foreign_file_is_refused(data: bytes, words: str) -> None:
    """With a message that says what was found."""
    with pytest.raises(SegmentError, match=words):
        StoredSegment(data)


def test_a_segment_of_another_byte_order_is_refused() -> None:
    """Its arrays would be read wrong."""
    header = msgspec.structs.replace(StoredSegment(FILE).header, byteorder="middle")
    with pytest.raises(SegmentError, match="middle-endian"):
        StoredSegment(encode_header(header))


def test_hostile_sizes_take_no_memory() -> None:
    """A block that claims to be huge, and lists in it that claim more than it has, are not believed."""
    claims = [
        struct.pack("=4sII", b"\xf5blk", 2**32 - 1, 0),
        struct.pack("=4sII", b"\xf5blk", MAX_BLOCK, 0),
    ]
    payload = b"\x9c\x00\xdd\xff\xff\xff\xff"  # an array of 12, the second a list of 2**32 - 1
    claims.append(struct.pack("=4sII", b"\xf5blk", len(payload), zlib.crc32(payload)) + payload)
    tracemalloc.start()
    try:
        for claim in claims:
            read_all(HEADER + claim + block())
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024**2
    finally:
        tracemalloc.stop()


def test_a_file_full_of_marks_is_given_up_soon() -> None:
    """Every mark claims the rest of the file: only so many checksums are made."""
    mark = struct.pack("=4sII", b"\xf5blk", 1024**2, 0)
    started = time.process_time()
    read_all(HEADER + mark * (4 * 1024**2 // len(mark)))
    assert time.process_time() - started < 2
