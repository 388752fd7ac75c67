"""The only place where the store changes the disk. Tests put a saboteur here: a crash or a full disk at any step.

Nothing is followed through a symbolic link, and what is made is the owner's alone (0700, 0600).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import sqlite3
import stat
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from sentinel_agent.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOCK_ATTEMPTS = 500  # 0.02 s apart: ten seconds
_BUSY_SECONDS = 5.0
_SETTLED_NS = 500_000_000  # far more than a tick, and than a file system with coarser times of its own
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Files:
    """Folders, files, locks and database connections; every method may raise OSError."""

    def make_folder(self, path: Path) -> None:
        """Make one folder that must not exist."""
        path.mkdir(mode=0o700)

    def ensure_folder(self, path: Path) -> None:
        """Make a folder with its parents, unless it is there."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, path: Path, data: bytes) -> None:
        """Write a file that must not exist."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)

    def fsync(self, path: Path) -> None:
        """Bring a file or a folder to the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, destination: Path) -> None:
        """Rename within the file system; a file is replaced, a folder only if it is empty."""
        source.rename(destination)

    def remove(self, path: Path) -> None:
        """Remove a file, a link or a whole folder; what is gone already is fine."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()

    def free_bytes(self, path: Path) -> int:
        """What an unprivileged user could still write where `path` is."""
        return shutil.disk_usage(path).free

    def hold(self, folder: Path) -> int:
        """Mark a folder as in use until the descriptor that this returns is closed, or its process ends.

        A lock, unlike a process id, is seen through pid namespaces. Where the file system has none, it is done without.
        """
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return fd

    def is_held(self, folder: Path) -> bool:
        """Whether some process holds `folder`."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(fd)
        return False

    @contextlib.contextmanager
    def locked(self, path: Path, *, shared: bool = False) -> Iterator[None]:
        """Hold the lock file `path`, made if need be, against other processes and threads.

        Holders that only share it keep out the one that does not.

        Raises:
            TimeoutError: it could not be had within ten seconds.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        try:
            for _ in range(_LOCK_ATTEMPTS):
                try:
                    fcntl.flock(fd, operation)
                    break
                except BlockingIOError:
                    time.sleep(0.02)
            else:
                raise TimeoutError(errno.ETIMEDOUT, "held by another process for ten seconds", str(path))
            yield
        finally:
            os.close(fd)

    def stamp(self, *paths: Path) -> tuple[tuple[int, ...], ...] | None:
        """What these files and folders are recognised by: equal stamps mean that nothing was written to them in between.

        None while one has changed so lately that a further change could leave the same times: they are taken from the
        kernel's coarse clock, which stands still for a few milliseconds (Linux, current_time in fs/inode.c).
        """
        settled = time.time_ns() - _SETTLED_NS
        found: list[tuple[int, ...]] = []
        for path in paths:
            try:
                facts = path.lstat()
            except FileNotFoundError:
                facts = None
            if facts is None or (stat.S_ISREG(facts.st_mode) and not facts.st_size):
                found.append(())  # SQLite makes and removes an empty log as connections come and go
                continue
            if max(facts.st_mtime_ns, facts.st_ctime_ns) > settled:
                return None
            found.append((facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
        return tuple(found)

    def connect(self, path: Path, *, create: bool) -> sqlite3.Connection:
        """A connection in autocommit mode; closing it is the caller's."""
        name = quote(os.fsencode(path))
        mode = "rwc" if create else "rw"
        return sqlite3.connect(
            f"file:{name}?mode={mode}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
        )


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger (EFBIG).
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = file.read(limit + 1) if facts.st_size <= limit else None
    if content is None or len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
    return content


def store_error(error: OSError, doing: str) -> StoreError:
    """What the operator can do about a failure of the disk; `doing` is for example `writing incident X`."""
    where = error.filename2 or error.filename or "the data directory"
    match error.errno:
        case errno.EROFS:
            found, hint = "the file system is read-only", "mount it writable, or choose another --data-dir"
        case errno.EACCES | errno.EPERM:
            found = f"not permitted for user id {os.geteuid()}"
            hint = "run as the user who owns the data directory, or choose another --data-dir"
        case errno.ENOSPC | errno.EDQUOT:
            found, hint = "no space left", "free some space, or choose another --data-dir"
        case errno.ENOTDIR | errno.EEXIST:
            found = "something else is in the place of the folder"
            hint = "move it away, or choose another --data-dir"
        case errno.ENOENT:
            found, hint = (
                "it is not there",
                "was the data directory removed? It is made again for the next incident",
            )
        case _:
            found, hint = error.strerror or str(error), ""
    failure = StoreError(f"{doing} failed: {where}: {found}", hint=hint or None)
    failure.__cause__ = error
    return failure
