"""The recording on disk, so that the window before outlives the agent: one append-only file per segment.

`<root>/<role>/<run>-<number>.seg`. A killed agent loses what was not written yet, and at most the end of the last block;
nothing is synced, so a machine that crashes loses more. Not for use by several threads at once: meant for one
writer thread. Nothing is followed through a symbolic link; what is made is the owner's alone (0700, 0600).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from sentinel_agent.core.units import format_size
from sentinel_agent.recorder.codec import MAX_SEGMENT, SegmentError, decode_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sentinel_agent.core.model import Role
    from sentinel_agent.recorder.ring import Batch

_FILE = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}\.seg")
FOLDER = re.compile(r"[A-Za-z0-9_.~%-]{1,80}-[0-9a-f]{16}")
_MAX_LISTED = 10_000
_SLACK = 5.0  # seconds by which a file's time may be behind the newest stack in it


@dataclass(frozen=True, slots=True)
class SpoolStatistics:
    """Since the spool was made: batches and bytes written, batches that failed, files removed, the last failure."""

    written: int
    bytes: int
    failed: int
    removed: int
    error: str | None


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    bytes: int
    time: float


class Spool:
    """Segment files under `root`. `max_age` seconds, then bytes per role and in all, remove the oldest files."""

    def __init__(
        self,
        root: Path,
        *,
        max_role_bytes: int = 16 * 1024**2,
        max_bytes: int = 256 * 1024**2,
        max_age: float = 3600.0,
        min_free_bytes: int = 16 * 1024**2,
    ) -> None:
        self._root = root
        self._max_role_bytes = max_role_bytes
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._min_free_bytes = min_free_bytes
        self._sizes: dict[str, int] = {}  # bytes per folder, as far as we know
        self._given_up: dict[str, str] = {}  # per folder: the file that cannot be continued
        self._written = self._bytes = self._failed = self._removed = 0
        self._error: str | None = None

    def write(self, batch: Batch, now: float) -> bool:
        """Append `batch` to its segment's file; `now` is in seconds since the epoch.

        False: it could not be. The rest of that segment is not tried, the next one is.
        """
        folder, name = (
            folder_name(batch.role),
            f"{batch.run & 2**64 - 1:016x}-{batch.number & 2**32 - 1:08x}.seg",
        )
        if not batch.first and self._given_up.get(folder) == name:
            self._failed += 1
            return False
        try:
            self._make_room(folder, len(batch.data), now, first=batch.first)
            _append(self._root / folder / name, batch.data, first=batch.first)
        except OSError as error:
            self._failed += 1
            self._error = f"{error.strerror or error}: {error.filename or self._root}"
            self._given_up[folder] = name
            return False
        self._given_up.pop(folder, None)
        self._written += 1
        self._bytes += len(batch.data)
        self._sizes[folder] = self._sizes.get(folder, 0) + len(batch.data)
        return True

    def read(self, role: Role, since: float = 0.0) -> Iterator[bytes]:
        """The segments of a role that reach past `since` (seconds since the epoch), newest first, one in memory at a time.

        What cannot be read, is not ours or is another role's is left out.
        """
        for file in reversed(self._files(self._root / folder_name(role))):
            if file.time + _SLACK < since:
                continue
            try:
                data = _read(file.path)
                if decode_header(data)[0].role == role:
                    yield data
            except (OSError, SegmentError):
                continue

    def statistics(self) -> SpoolStatistics:
        """Figures for the agent's own metrics."""
        return SpoolStatistics(self._written, self._bytes, self._failed, self._removed, self._error)

    def _make_room(self, folder: str, count: int, now: float, *, first: bool) -> None:
        """Remove the oldest files until `count` more bytes are within the bounds; make the folder for a first batch.

        Raises:
            OSError: it cannot be done, or the disk is too full.
        """
        within = self._fits(folder, count)
        if first:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if first or not within:
            self._keep(self._files(self._root / folder), self._max_role_bytes - count, now)
            everything = [file for role in self._folders() for file in self._files(role)]
            everything.sort(key=lambda file: file.time)
            self._keep(everything, self._max_bytes - count, now)
            self._sizes = {
                role.name: sum(file.bytes for file in self._files(role)) for role in self._folders()
            }
            if not self._fits(folder, count):
                raise OSError(errno.EFBIG, "the bounds of the recorder's files leave no room", folder)
        if first:
            self._make_folder(self._root / folder, count)

    def _fits(self, folder: str, count: int) -> bool:
        own, everything = self._sizes.get(folder, 0), sum(self._sizes.values())
        return own + count <= self._max_role_bytes and everything + count <= self._max_bytes

    def _make_folder(self, folder: Path, count: int) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink():
            raise NotADirectoryError(
                errno.ENOTDIR, "a symbolic link is in the place of the folder", str(folder)
            )
        free = shutil.disk_usage(folder).free
        if free < self._min_free_bytes + count:
            raise OSError(errno.ENOSPC, f"only {format_size(free)} are free", str(folder))

    def _keep(self, files: list[_File], most: int, now: float) -> None:
        """Remove files, oldest first, until none is too old and all together have at most `most` bytes."""
        total = sum(file.bytes for file in files)
        for file in files:
            if total <= most and now - file.time <= self._max_age:
                break
            file.path.unlink(missing_ok=True)
            total -= file.bytes
            self._removed += 1
            with contextlib.suppress(OSError):  # there are more files in it
                file.path.parent.rmdir()

    def _folders(self) -> list[Path]:
        with os.scandir(self._root) as entries:
            return [
                self._root / entry.name
                for entry in entries
                if FOLDER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]

    def _files(self, folder: Path) -> list[_File]:
        """The segment files of a folder, oldest first; files that are not ours are not seen."""
        found: list[_File] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        facts = entry.stat(follow_symlinks=False)
                        found.append(_File(folder / entry.name, facts.st_size, facts.st_mtime))
                    if len(found) >= _MAX_LISTED:
                        break
        except OSError:
            return []
        return sorted(found, key=lambda file: file.path.name)


def folder_name(role: Role) -> str:
    """A name for a role's folder: its key as far as it fits, made safe, and a digest that tells it from every other."""
    digest = hashlib.sha256(
        "\0".join((role.service, role.instance, role.worker)).encode("utf-8", "surrogatepass")
    )
    return f"{quote(role.key, safe='', errors='replace')[:80]}-{digest.hexdigest()[:16]}"


def _append(path: Path, data: bytes, *, first: bool) -> None:
    """Raises OSError; then the file is as long as it was, if that can be had."""
    flags = (
        os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if first else 0)
    )
    descriptor = os.open(path, flags, 0o600)
    try:
        before = os.fstat(descriptor).st_size
        if before + len(data) > MAX_SEGMENT:
            raise OSError(errno.EFBIG, f"a segment has at most {MAX_SEGMENT} bytes", str(path))
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    """The content of a regular file, at most one byte more than a segment may have."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        return file.read(MAX_SEGMENT + 1)
