"""One stretch of a target's stacks: as it grows, with tables that intern, and as it is read back from its bytes.

A stack is a path in a tree whose root is the outermost frame, so deep stacks that differ at the leaf share the rest.
Equal samples of one thread at consecutive ticks are one run. Dropping a segment drops its tables with it.
"""

from __future__ import annotations

import sys
from array import array
from itertools import islice
from typing import TYPE_CHECKING

from sentinel_agent.profile.record import CUT, MAX_DEPTH, clean_name
from sentinel_agent.recorder.codec import (
    Block,
    Header,
    decode_blocks,
    decode_header,
    encode_block,
    encode_header,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentinel_agent.recorder.sample import Place, ThreadSample, Tick

StoredTick = tuple[float, float, float, float, int]
"""Wall, monotonic, period, lead, failed: as in `Tick`."""
RUN = 5
"""Words of one run: thread, node, flags, first tick, how many ticks."""
_COUNT = 4
_ON_CPU = {None: 0, True: 1, False: 2}
_CPU_OF = (None, True, False, None)
_PARTIAL = 4
_MAX_WORD = 2**32 - 1
_MAX_ID = 2**63 - 1
# What the entries of a table take beside its slots: the objects that CPython makes for them (sys.getsizeof, rounded to 16).
_NODE_BYTES = 64
_FRAME_BYTES = 64 + 32
_THREAD_BYTES = 64 + 32 + 32 + 64
_TEXT_BYTES = 48


class FullError(Exception):
    """A stack does not fit into what is left of its segment's bytes."""


class OpenSegment:
    """A segment that grows. `limit` bounds the bytes that its tables' entries take, whatever the target calls its functions."""

    def __init__(self, header: Header, limit: int) -> None:
        self.header = header
        self.samples = 0
        self.taken_bytes = 0
        self._limit = limit
        self._entries = 0  # bytes of the tables' entries
        self._texts: dict[str, int] = {}
        self._frames: dict[Place, int] = {}
        self._frame_rows = array("I")
        self._nodes: dict[int, int] = {}
        self._threads: dict[tuple[int, str], int] = {}
        self._thread_rows = array("q")
        self._ticks = array("d")
        self._failed = array("I")
        self._runs = array("I")
        self._last_runs = array("q")  # per thread: its newest run, -1 for none
        self._last_frames: list[tuple[Place, ...]] = []
        self._marks = (0, 0, 0, 0, 0, 0)  # how much of each table, the runs last, has been taken
        self._taken_of_run: dict[int, int] = {}  # of runs that may have grown since

    @property
    def held_bytes(self) -> int:
        """Memory that the segment holds, names that it may share with the sampler included."""
        getsizeof = sys.getsizeof
        return (
            self._entries
            + getsizeof(self._texts)
            + getsizeof(self._frames)
            + getsizeof(self._frame_rows)
            + getsizeof(self._nodes)
            + getsizeof(self._threads)
            + getsizeof(self._thread_rows)
            + getsizeof(self._ticks)
            + getsizeof(self._failed)
            + getsizeof(self._runs)
            + getsizeof(self._last_runs)
            + getsizeof(self._last_frames)
        )

    def begin(self, tick: Tick, failed: int) -> None:
        """The samples that follow are of this tick."""
        self._ticks.extend((tick.wall, tick.monotonic, tick.period, tick.lead))
        self._failed.append(min(failed, _MAX_WORD))

    def put(self, sample: ThreadSample) -> None:
        """Add one thread's stack to the tick that has begun.

        Raises:
            FullError: there is no room for its names and frames; the segment is as it was.
        """
        tick = len(self._failed) - 1
        thread = self._threads.get((sample.native_id, sample.name))
        if thread is None:
            thread = self._add_thread(sample.native_id, sample.name)
        flags = _ON_CPU[sample.on_cpu] | (_PARTIAL if sample.kind == "partial" else 0)
        runs, run = self._runs, self._last_runs[thread]
        at = run * RUN
        if (
            run >= 0
            and runs[at + 3] + runs[at + _COUNT] == tick
            and runs[at + 2] == flags
            and self._last_frames[thread] == sample.frames
        ):
            runs[at + _COUNT] += 1
        else:
            node = self._node_or_nothing(sample.frames)
            self._last_runs[thread] = len(runs) // RUN
            self._entries += sys.getsizeof(sample.frames) - sys.getsizeof(self._last_frames[thread])
            self._last_frames[thread] = sample.frames
            runs.extend((thread, node, flags, tick, 1))
        self.samples += 1

    def take(self) -> bytes:
        """What has come since the last call, ready to be appended to the segment's file; b"" for nothing."""
        marks = self._marks
        if marks[4] == len(self._failed):
            return b""
        fresh = range(marks[5], len(self._runs) // RUN)
        pieces = array("I")
        for run in (*self._taken_of_run, *fresh):
            thread, node, flags, first, count = self._runs[run * RUN : run * RUN + RUN]
            before = self._taken_of_run.get(run, 0)
            if count > before:
                pieces.extend((thread, node, flags, first + before, count - before))
        head = b"" if any(marks) else encode_header(self.header)
        data = head + self._block(marks, pieces)
        self._marks = (
            len(self._texts),
            len(self._frames),
            len(self._nodes),
            len(self._threads),
            len(self._failed),
            len(self._runs) // RUN,
        )
        self._taken_of_run = {run: self._runs[run * RUN + _COUNT] for run in self._last_runs if run >= 0}
        self.taken_bytes += len(data)
        return data

    def whole(self) -> bytes:
        """The bytes of the whole segment as it stands."""
        return encode_header(self.header) + self._block((0, 0, 0, 0, 0, 0), self._runs)

    def _block(self, marks: tuple[int, ...], runs: array[int]) -> bytes:
        texts, frames, nodes, threads, ticks, _ = marks
        return encode_block(
            Block(
                texts,
                list(islice(self._texts, texts, None)),
                frames,
                self._frame_rows[frames * 3 :].tobytes(),
                nodes + 1,
                array("Q", islice(self._nodes, nodes, None)).tobytes(),
                threads,
                self._thread_rows[threads * 2 :].tobytes(),
                ticks,
                self._ticks[ticks * 4 :].tobytes(),
                self._failed[ticks:].tobytes(),
                runs.tobytes(),
            )
        )

    def _node_or_nothing(self, frames: tuple[Place, ...]) -> int:
        texts, places, nodes, entries = len(self._texts), len(self._frames), len(self._nodes), self._entries
        try:
            return self._node(frames)
        except FullError:
            for table, length in ((self._texts, texts), (self._frames, places), (self._nodes, nodes)):
                while len(table) > length:
                    table.popitem()
            del self._frame_rows[places * 3 :]
            self._entries = entries
            raise

    def _node(self, frames: tuple[Place, ...]) -> int:
        if len(frames) > MAX_DEPTH:
            frames = (*frames[: MAX_DEPTH - 1], (CUT, "", 0))
        known_frame, known_node = self._frames.get, self._nodes.get
        node = 0
        for place in reversed(frames):
            frame = known_frame(place)
            if frame is None:
                frame = self._add_frame(place)
            key = node << 32 | frame
            child = known_node(key)
            if child is None:
                self._spend(_NODE_BYTES)
                child = self._nodes[key] = len(self._nodes) + 1
            node = child
        return node

    def _add_frame(self, place: Place) -> int:
        """The frame is kept with clean names, so one with others is found only here."""
        function, file, line = clean_name(place[0]), clean_name(place[1]), min(max(place[2], 0), _MAX_WORD)
        if (function, file, line) != place:
            place = (function, file, line)
            known = self._frames.get(place)
            if known is not None:
                return known
        self._spend(_FRAME_BYTES)
        row = (self._text(function), self._text(file), line)
        self._frame_rows.extend(row)
        number = self._frames[place] = len(self._frames)
        return number

    def _add_thread(self, native_id: int, name: str) -> int:
        native_id, name = min(max(native_id, 0), _MAX_ID), clean_name(name)
        known = self._threads.get((native_id, name))
        if known is not None:
            return known
        self._spend(_THREAD_BYTES)
        self._thread_rows.extend((native_id, self._text(name)))
        self._last_runs.append(-1)
        self._last_frames.append(())
        number = self._threads[native_id, name] = len(self._threads)
        return number

    def _text(self, text: str) -> int:
        number = self._texts.get(text)
        if number is None:
            self._spend(sys.getsizeof(text) + _TEXT_BYTES)
            number = self._texts[text] = len(self._texts)
        return number

    def _spend(self, count: int) -> None:
        if self._entries + count > self._limit:
            raise FullError
        self._entries += count


class StoredSegment:
    """A segment as its bytes tell. Nothing in it is believed: what does not fit together is not given out.

    `ticks` are by number; `damaged` counts places that could not be read.
    """

    def __init__(self, data: bytes) -> None:
        """Read `data`.

        Raises:
            SegmentError: this is no segment.
        """
        self.header, at = decode_header(data)
        self.damaged = 0
        self.ticks: dict[int, StoredTick] = {}
        self._run_rows: list[array[int]] = []
        self._texts: dict[int, str] = {}
        self._frames: dict[int, tuple[int, int, int]] = {}
        self._nodes: dict[int, int] = {}
        self._threads: dict[int, tuple[int, int]] = {}
        for block in decode_blocks(data, at):
            if block is None or not self._add(block):
                self.damaged += 1

    def runs(self) -> Iterator[tuple[int, int, bool | None, bool, int, int]]:
        """(thread, node, on CPU, partial, first tick, how many ticks) in the order in which they began to be written."""
        for rows in self._run_rows:
            words = iter(rows)
            for thread, node, flags, first, count in zip(words, words, words, words, words, strict=True):
                yield thread, node, _CPU_OF[flags & 3], bool(flags & _PARTIAL), first, count

    def thread(self, number: int) -> tuple[int, str] | None:
        """(native id, name) of a thread, None if it is not known."""
        native_id, text = self._threads.get(number, (0, -1))
        name = self._texts.get(text)
        return None if name is None else (native_id, name)

    def stack(self, node: int) -> tuple[Place, ...] | None:
        """The stack that ends in `node`, leaf first; None if part of it is not known."""
        places: list[Place] = []
        while node:
            key = self._nodes.get(node)
            if key is None or len(places) >= MAX_DEPTH:  # or the nodes have a loop
                return None
            place = self._place(key & _MAX_WORD)
            if place is None:
                return None
            places.append(place)
            node = key >> 32
        return tuple(places)

    def _place(self, frame: int) -> Place | None:
        function, file, line = self._frames.get(frame, (-1, -1, 0))
        function_name, file_name = self._texts.get(function), self._texts.get(file)
        return None if function_name is None or file_name is None else (function_name, file_name, line)

    def _add(self, block: Block) -> bool:
        try:
            frames, nodes = _words("I", block.frames, 3), _words("Q", block.nodes, 1)
            threads, runs = _words("q", block.threads, 2), _words("I", block.runs, RUN)
            ticks, failed = _words("d", block.ticks, 4), _words("I", block.failed, 1)
        except ValueError:
            return False
        self._texts.update(enumerate(map(clean_name, block.texts), block.texts_at))
        self._frames.update(
            enumerate(zip(frames[::3], frames[1::3], frames[2::3], strict=True), block.frames_at)
        )
        self._nodes.update(enumerate(nodes, block.nodes_at))
        self._threads.update(enumerate(zip(threads[::2], threads[1::2], strict=True), block.threads_at))
        columns = zip(ticks[::4], ticks[1::4], ticks[2::4], ticks[3::4], failed, strict=False)
        self.ticks.update(enumerate(columns, block.ticks_at))
        self._run_rows.append(runs)
        return True


def _words(kind: str, data: bytes, per_row: int) -> array[int]:
    """An array of whole rows.

    Raises:
        ValueError: `data` is not a whole number of rows.
    """
    words: array[int] = array(kind)
    words.frombytes(data)
    if len(words) % per_row:
        raise ValueError("a row is cut short")
    return words
