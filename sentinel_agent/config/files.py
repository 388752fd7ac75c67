"""Read a small file that may be anything: only regular files, never more than `MAX_FILE_BYTES`, never waiting.

A path in a configuration can name a directory, a named pipe without a writer, a device or a file of 100 MB; each is
refused in words, and none of them is read.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING

from sentinel_agent.errors import OperatorError

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES = 1024**2
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_file(path: Path) -> bytes:
    """The whole content of a regular file.

    Raises:
        OperatorError: it is not there, not readable, no regular file, or larger than `MAX_FILE_BYTES`.
    """
    try:
        _check_regular(path.stat())  # before opening: opening a device can do something
        # O_NONBLOCK: should a pipe have taken the file's place since, opening it must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            _check_regular(os.fstat(descriptor))
            content = file.read(MAX_FILE_BYTES + 1)
    except ValueError:
        raise OperatorError("no file can have this name") from None  # a NUL, a lone surrogate
    except OSError as error:
        raise OperatorError(f"cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:  # it grew since its size was looked at
        raise OperatorError(_too_large(len(content)))
    return content


def _check_regular(found: os.stat_result) -> None:
    for is_kind, name in _KINDS:
        if is_kind(found.st_mode):
            raise OperatorError(f"expected a file, found {name}")
    if found.st_size > MAX_FILE_BYTES:
        raise OperatorError(_too_large(found.st_size))


def _too_large(size: int) -> str:
    return f"expected at most {MAX_FILE_BYTES} bytes, found {size} or more"


def fingerprint(content: bytes) -> str:
    """What tells one content from another."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
