"""Read `/proc` in small bounded bites. Formats: proc(5); everything in it may have been shaped by a hostile process.

`ProcDir` keeps `/proc/PID` open. The kernel ties an open directory of /proc to the process and not to its
number, so reads through it fail once the process has ended and never reach another that got the same pid.
The parsers are pure and raise only `ProcFormatError`.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sentinel_agent.errors import TargetError

if TYPE_CHECKING:
    from sentinel_agent.core.model import TargetId

ROOT = Path("/")
MAX_FILE = 64 * 1024
MAX_COMMAND = 4096
MAX_STAT = 4096
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")

_SWITCHES = re.compile(rb"\nvoluntary_ctxt_switches:\t(\d{1,20})\nnonvoluntary_ctxt_switches:\t(\d{1,20})\n")
_PF_KTHREAD = 0x00200000  # include/linux/sched.h


class ProcFormatError(TargetError):
    """A file of /proc does not have the form that proc(5) describes."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What is used of `/proc/PID/stat`. Times are in clock ticks, `start_time` counts from boot.

    `exit_status` is as waitpid(2) has it; 0 too where the kernel does not show it to us.
    """

    pid: int
    name: str
    state: str
    parent_pid: int
    flags: int
    cpu_ticks: int
    threads: int
    start_time: int
    block_io_ticks: int
    exit_status: int

    @property
    def kernel_thread(self) -> bool:
        """Whether this is a thread of the kernel and no program."""
        return bool(self.flags & _PF_KTHREAD)

    @property
    def ended(self) -> bool:
        """Whether only the exit status is left. A main thread may end before others; then the process runs on."""
        return self.state in {"Z", "X", "x"} and self.threads <= 1


@dataclass(frozen=True, slots=True)
class Status:
    """What is used of `/proc/PID/status` to know a process. `uids` are real, effective, saved and file-system.

    `namespace_pids` is how the pid namespaces number the process, from that of this /proc to its own.
    """

    thread_group: int
    uids: tuple[int, ...]
    effective_capabilities: int
    bounding_capabilities: int = 0
    namespace_pids: tuple[int, ...] = ()


def read_bounded(path: str | Path, limit: int = MAX_FILE, *, dir_fd: int | None = None) -> bytes:
    """The first `limit` bytes of a file.

    Raises:
        OSError: the file cannot be opened or read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=dir_fd)
    try:
        return read_descriptor(descriptor, limit)
    finally:
        os.close(descriptor)


def read_descriptor(descriptor: int, limit: int) -> bytes:
    """What is left to read of an open file, at most `limit` bytes."""
    first = os.read(descriptor, limit)
    if not first or len(first) == limit:
        return first
    parts, size = [first], len(first)
    while size < limit and (part := os.read(descriptor, limit - size)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def text(raw: bytes) -> str:
    r"""Bytes as text that can be read and printed; what is no UTF-8 is kept as `\xNN`."""
    return raw.decode("utf-8", "backslashreplace")


def parse_stat(raw: bytes) -> Stat:
    """`/proc/PID/stat`; the name, field 2, is in parentheses and may itself hold spaces and parentheses.

    Raises:
        ProcFormatError: a field is missing or no number.
    """
    head, opened, rest = raw.partition(b"(")
    name, closed, tail = rest.rpartition(b")")
    fields = tail.split()
    if not (opened and closed) or len(fields) < 20:
        raise ProcFormatError(f"a stat line has {len(fields)} fields after the name, expected 20 or more")
    try:
        return Stat(
            pid=int(head),
            name=text(name),
            state=text(fields[0]),
            parent_pid=int(fields[1]),
            flags=int(fields[6]),
            cpu_ticks=int(fields[11]) + int(fields[12]),
            threads=int(fields[17]),
            start_time=int(fields[19]),
            block_io_ticks=int(fields[39]) if len(fields) > 39 else 0,
            exit_status=int(fields[49]) if len(fields) > 49 else 0,
        )
    except ValueError:
        raise ProcFormatError("a field of a stat line is no number") from None


def parse_keyed(raw: bytes, separator: bytes | None = None) -> dict[str, int]:
    """Lines of `key value`; lines of another form are left out (a kernel may add any)."""
    values: dict[str, int] = {}
    for line in raw.splitlines():
        pair = line.split(separator, 1)
        if len(pair) == 2:
            with suppress(ValueError):
                values[text(pair[0])] = int(pair[1])
    return values


def parse_status(raw: bytes) -> Status:
    """`/proc/PID/status`.

    Raises:
        ProcFormatError: a line that is needed is missing or holds no number.
    """
    lines = {key: value.strip() for key, _, value in (line.partition(b":") for line in raw.splitlines())}
    try:
        return Status(
            thread_group=int(lines[b"Tgid"]),
            uids=tuple(int(uid) for uid in lines[b"Uid"].split()),
            effective_capabilities=int(lines[b"CapEff"], 16),
            bounding_capabilities=int(lines.get(b"CapBnd", b"0"), 16),
            namespace_pids=tuple(int(pid) for pid in lines.get(b"NSpid", b"").split()),
        )
    except KeyError as error:
        raise ProcFormatError(f"a status file has no line {text(error.args[0])}") from None
    except ValueError:
        raise ProcFormatError("a line of a status file holds no number") from None


def parse_switches(raw: bytes) -> tuple[int, int]:
    """Voluntary and involuntary context switches, the last lines of `/proc/PID/task/TID/status`.

    Raises:
        ProcFormatError: they are missing.
    """
    found = _SWITCHES.search(raw)
    if not found:
        raise ProcFormatError("a status file has no lines about context switches")
    return int(found[1]), int(found[2])


def parse_command(raw: bytes) -> tuple[str, ...]:
    """The arguments of `/proc/PID/cmdline`; a process that set its own title may have padded it with NULs."""
    stripped = raw.rstrip(b"\0")
    return tuple(text(part) for part in stripped.split(b"\0")) if stripped else ()


class ProcDir:
    """An open `/proc/PID`. Every read raises `ProcessLookupError` once the process is gone.

    Raises:
        OSError: on construction, when there is no such process or it may not be looked at.
    """

    def __init__(self, pid: int, root: Path = ROOT) -> None:
        self.pid = pid
        self.root = root
        self.real = root == ROOT
        try:
            self._fd = os.open(root / "proc" / str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ProcessLookupError(f"there is no process {pid}") from None

    @classmethod
    def of(cls, target: TargetId, root: Path = ROOT) -> Self:
        """The directory of a target, and never of another process that got its pid.

        Raises:
            ProcessLookupError: it has ended.
            OSError: it may not be looked at.
        """
        proc = cls(target.pid, root)
        try:
            if proc.stat().start_time == target.start_time:
                return proc
        except BaseException:
            proc.close()
            raise
        proc.close()
        raise ProcessLookupError(f"process {target.pid} has ended")

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:
        """The first `limit` bytes of one of the process's files."""
        try:
            return read_bounded(name, limit, dir_fd=self._open())
        except FileNotFoundError:
            self._check_there()
            raise

    def stat(self, thread: int | None = None) -> Stat:
        """The process's `stat`, or that of one of its threads."""
        return parse_stat(self.read(f"task/{thread}/stat" if thread else "stat", MAX_STAT))

    def status(self) -> Status:
        """The process's `status`."""
        return parse_status(self.read("status"))

    def switches(self, thread: int) -> tuple[int, int]:
        """The voluntary and involuntary switches of one thread; the kernel keeps no sum."""
        return parse_switches(self.read(f"task/{thread}/status"))

    def command(self) -> tuple[str, ...]:
        """The command line, its first 4096 bytes; empty for kernel threads and zombies."""
        return parse_command(self.read("cmdline", MAX_COMMAND))

    def link(self, name: str) -> str:
        """Where a link such as `exe` points to; the kernel lets only those read it who may trace the process."""
        try:
            return text(os.fsencode(os.readlink(name, dir_fd=self._open())))
        except FileNotFoundError:
            self._check_there()
            raise

    def info(self, name: str) -> os.stat_result:
        """`stat(2)` of one of the process's files, links followed."""
        try:
            return os.stat(name, dir_fd=self._open())
        except FileNotFoundError:
            self._check_there()
            raise

    def threads(self, limit: int) -> list[int]:
        """The ids of the threads, the oldest first, at most `limit`."""
        return sorted(int(name) for name in self.names("task", MAX_FILE) if name.isdigit())[:limit]

    def names(self, name: str, limit: int) -> list[str]:
        """The entries of one of the process's directories, at most `limit`."""
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._open())
        except FileNotFoundError:
            self._check_there()
            raise
        try:
            with os.scandir(descriptor) as entries:
                return [entry.name for entry, _ in zip(entries, range(limit), strict=False)]
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Give the descriptor back; harmless when done twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> int:
        if self._fd < 0:
            raise ProcessLookupError(f"process {self.pid} is not watched any more")
        return self._fd

    def _check_there(self) -> None:
        """A missing file means one of two things; raise when it is that the process has ended."""
        try:
            os.stat("stat", dir_fd=self._open())
        except OSError:
            raise ProcessLookupError(f"process {self.pid} has ended") from None
