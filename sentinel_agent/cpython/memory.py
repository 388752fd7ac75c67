"""The memory of another process, read with `process_vm_readv` (its man page, section 2).

A range that cannot be read is None, never an exception: targets change under the reader, and most failed reads
are ordinary. Sizes are capped, because they often come from the target itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, Protocol

from sentinel_agent.errors import NoSuchTargetError, NotPermittedError, TargetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Range = tuple[int, int]
"""Address and size in bytes."""

MAX_READ = 1 << 20
"""Most bytes that one range may ask for, and that one gathering call may return."""
MAX_RANGES = 1000
"""Most ranges of one gathering call; the kernel's own limit is 1024 (UIO_MAXIOV)."""
_ADDRESS_END = 1 << 56
_WORD = struct.Struct("<Q")
_LOST_RANGES = 8


class UnreadableError(TargetError):
    """What was read makes no sense or could not be read: the target changed under the reader, or is corrupt."""


class Gathering:
    """Ranges that are read together again and again, made ready for the system call once.

    `words` are address and size of each range in turn, as an iovec array has them.
    """

    __slots__ = ("address", "count", "total", "words")

    def __init__(self, ranges: Iterable[Range] = (), parts: Iterable[Gathering] = ()) -> None:
        """The ranges, then those of `parts`.

        Raises:
            UnreadableError: they are more than one call may read, or one can be no range at all.
        """
        self.words = array("Q")
        for address, size in ranges:
            if not sane(address, size):
                raise UnreadableError(f"{size} bytes at {address:#x} are no range")
            self.words.extend((address, size))
        for part in parts:
            self.words += part.words
        self.address, length = self.words.buffer_info()
        self.count = length // 2
        self.total = sum(self.words[1::2])
        if self.count > MAX_RANGES or self.total > MAX_READ:
            raise UnreadableError(
                f"{self.total} bytes in {self.count} ranges in one call: at most {MAX_READ} in {MAX_RANGES} are read"
            )

    def ranges(self) -> list[Range]:
        """Address and size of each range."""
        return list(zip(self.words[::2], self.words[1::2], strict=True))


class Buffer:
    """Where gathering calls put what they read, each over what the one before left."""

    def __init__(self) -> None:
        self.local = array("Q", [0, 0])
        self.local_address = self.local.buffer_info()[0]
        self.view = memoryview(b"")

    def prepare(self, total: int) -> None:
        """Have room for `total` bytes, and say so in the iovec."""
        if total > len(self.view):
            memory = ctypes.create_string_buffer(1 << (total - 1).bit_length())
            self.local[0] = ctypes.addressof(memory)
            self.view = memoryview(memory).cast("B")
        self.local[1] = total


class Memory(Protocol):
    """Reads ranges of one address space."""

    calls: int
    """How many reading calls were made."""

    def read(self, address: int, size: int) -> bytes | None:
        """The bytes of one range, or None."""
        ...

    def read_many(self, ranges: Sequence[Range]) -> list[bytes | None]:
        """The bytes of each range, or None, from as few system calls as can be: one, unless a range fails."""
        ...

    def gather(self, gathering: Gathering, buffer: Buffer) -> memoryview | None:
        """The bytes of all ranges, one after the other, from one system call; None if any cannot be read.

        What is returned is good until the next call with the same buffer: nothing is copied.
        """
        ...


def sane(address: int, size: int) -> bool:
    """Whether a range can be asked for at all."""
    return address > 0 and 0 < size <= MAX_READ and address + size < _ADDRESS_END


class ProcessMemory:
    """The memory of a live process. One object serves one thread: it owns its buffer."""

    def __init__(self, pid: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._readv = libc.process_vm_readv
        self._readv.restype = ctypes.c_ssize_t
        self._readv.argtypes = [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_ulong,
            ctypes.c_void_p,
            ctypes.c_ulong,
            ctypes.c_ulong,
        ]
        self._pid = pid
        self._buffer = Buffer()
        self.calls = 0

    def read(self, address: int, size: int) -> bytes | None:
        return self.read_many([(address, size)])[0]

    def read_many(self, ranges: Sequence[Range]) -> list[bytes | None]:
        if len(ranges) > MAX_RANGES:
            raise UnreadableError(f"{len(ranges)} ranges in one call: at most {MAX_RANGES} are read")
        answer: list[bytes | None] = [None] * len(ranges)
        wanted = [
            # `sane`, written out: this line runs for every frame of every sample.
            i
            for i, (address, size) in enumerate(ranges)
            if 0 < address < _ADDRESS_END and 0 < size <= MAX_READ
        ]
        for _ in range(_LOST_RANGES):
            if not wanted:
                break
            done = self._gather(ranges, wanted, answer)
            # The call stops at the first range it cannot read; go on behind it.
            wanted = wanted[done + 1 :]
        return answer

    def gather(self, gathering: Gathering, buffer: Buffer) -> memoryview | None:
        total = gathering.total
        buffer.prepare(total)
        self.calls += 1
        got = self._readv(self._pid, buffer.local_address, 1, gathering.address, gathering.count, 0)
        if got == total:
            return buffer.view
        if got < 0:
            self._refused(ctypes.get_errno())
        return None

    def _gather(self, ranges: Sequence[Range], wanted: list[int], answer: list[bytes | None]) -> int:
        """One system call for the `wanted` ranges; fills `answer`; returns how many of them came whole."""
        flat: list[int] = []
        total = 0
        for i in wanted:
            flat += ranges[i]
            total += ranges[i][1]
        if total > MAX_READ:
            raise UnreadableError(f"{total} bytes in one call: at most {MAX_READ} are read")
        buffer = self._buffer
        buffer.prepare(total)
        remote = array("Q", flat)
        self.calls += 1
        got = self._readv(self._pid, buffer.local_address, 1, remote.buffer_info()[0], len(wanted), 0)
        if got < 0:
            self._refused(ctypes.get_errno())
            return 0
        view, at = buffer.view, 0
        for done, i in enumerate(wanted):
            end = at + ranges[i][1]
            if end > got:
                return done
            answer[i] = view[at:end].tobytes()
            at = end
        return len(wanted)

    def _refused(self, code: int) -> None:
        if code == errno.ESRCH:
            raise NoSuchTargetError(f"process {self._pid} has ended")
        if code in (errno.EPERM, errno.ENOSYS):
            raise NotPermittedError(
                f"the memory of process {self._pid} may not be read: {os.strerror(code)}",
                hint="run as the same user or root, with CAP_SYS_PTRACE in a container; see kernel.yama.ptrace_scope",
            )


class ImageMemory:
    """Recorded ranges, read as if they were a process. `pieces` maps an address to the bytes there, without overlap."""

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self._pieces = dict(pieces)
        self._starts = sorted(pieces)
        self.calls = 0

    def read(self, address: int, size: int) -> bytes | None:
        return self.read_many([(address, size)])[0]

    def read_many(self, ranges: Sequence[Range]) -> list[bytes | None]:
        if len(ranges) > MAX_RANGES:
            raise UnreadableError(f"{len(ranges)} ranges in one call: at most {MAX_RANGES} are read")
        if sum(size for address, size in ranges if sane(address, size)) > MAX_READ:
            raise UnreadableError(f"more than {MAX_READ} bytes in one call")
        self.calls += 1
        return [self._one(address, size) if sane(address, size) else None for address, size in ranges]

    def gather(self, gathering: Gathering, buffer: Buffer) -> memoryview | None:
        return joined(self.read_many(gathering.ranges()))

    def _one(self, address: int, size: int) -> bytes | None:
        parts: list[bytes] = []
        while size > 0:
            at = bisect_right(self._starts, address) - 1
            if at < 0:
                return None
            start = self._starts[at]
            part = self._pieces[start][address - start : address - start + size]
            if not part:
                return None
            parts.append(part)
            address += len(part)
            size -= len(part)
        return b"".join(parts)


class RecordingMemory:
    """Passes reads on and keeps, page by page, what was read: `image()` replays it."""

    def __init__(self, inner: Memory) -> None:
        self._inner = inner
        self._pages: dict[int, bytes] = {}
        self.calls = 0

    def read(self, address: int, size: int) -> bytes | None:
        return self.read_many([(address, size)])[0]

    def read_many(self, ranges: Sequence[Range]) -> list[bytes | None]:
        self.calls += 1
        page = 4096
        for address, size in ranges:
            if not sane(address, size):
                continue
            for start in range(address // page * page, address + size, page):
                if start not in self._pages:
                    found = self._inner.read(start, page)
                    if found is not None:
                        self._pages[start] = found
        return self._inner.read_many(ranges)

    def gather(self, gathering: Gathering, buffer: Buffer) -> memoryview | None:
        return joined(self.read_many(gathering.ranges()))

    def image(self) -> dict[int, bytes]:
        """Every page that was touched, as it was when first touched."""
        return dict(self._pages)


def joined(pieces: Sequence[bytes | None]) -> memoryview | None:
    """All pieces as one, None if one is missing."""
    found = [piece for piece in pieces if piece is not None]
    return memoryview(b"".join(found)) if len(found) == len(pieces) else None


def read_word(memory: Memory, address: int) -> int:
    """An unsigned 64-bit word.

    Raises:
        UnreadableError: it cannot be read.
    """
    return int(_WORD.unpack(must_read(memory, address, 8))[0])


def must_read(memory: Memory, address: int, size: int) -> bytes:
    """The bytes of one range.

    Raises:
        UnreadableError: they cannot be read.
    """
    found = memory.read(address, size)
    if found is None:
        raise UnreadableError(f"{size} bytes at {address:#x} cannot be read")
    return found
