"""The digest of an incident: its timeline packed for merging, as `.digest` in the incident's own folder.

So removing the incident removes it, and nothing else has to know of it: it is no artifact (those have no leading dot), is in
no listing and no archive. It is written when the incident is sealed. One that is missing, damaged or of another version is
made anew by whoever asks for it, and kept where the disk lets it.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from sentinel_agent.profile import packed, speedscope
from sentinel_agent.store.files import read_bounded

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.profile.packed import Packed
    from sentinel_agent.store.files import Files

DIGEST_NAME = ".digest"
TIMELINE_NAME = "stacks.speedscope.json"
MAX_TIMELINE_BYTES = 32 * 1024**2


def load(folder: Path) -> Packed | None:
    """The digest that lies in an incident's folder; None if there is none of use."""
    try:
        return packed.decode(read_bounded(folder / DIGEST_NAME, packed.MAX_BYTES))
    except (OSError, ValueError):
        return None


def make(folder: Path, max_bytes: int = MAX_TIMELINE_BYTES) -> Packed:
    """The digest of an incident's timeline of at most `max_bytes`.

    Raises:
        OSError: there is no timeline, it is larger, or cannot be read.
        PeerError, ValueError, IndexError: it is none, or contradicts itself.
    """
    return packed.pack(speedscope.read(read_bounded(folder / TIMELINE_NAME, max_bytes)))


def keep(folder: Path, digest: Packed, files: Files) -> None:
    """Put a digest into an incident's folder, unless it is too large to be read again.

    Not brought to the disk: after a power cut it is damaged at worst, and is made again.

    Raises:
        OSError: it cannot be written, or the incident was removed meanwhile.
    """
    content = packed.encode(digest)
    if len(content) > packed.MAX_BYTES:
        return
    temporary = folder / f"{DIGEST_NAME}-{os.getpid()}"
    try:
        files.remove(temporary)
        files.write(temporary, content)
        files.rename(temporary, folder / DIGEST_NAME)
    except OSError:
        with contextlib.suppress(OSError):
            files.remove(temporary)
        raise
