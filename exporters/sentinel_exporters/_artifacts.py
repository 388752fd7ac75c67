"""A sealed incident as a queue entry: which one, where its folder is, which files. The files stay where they are.

They are read when they are sent, bounded; retention may have removed the folder by then, which is a loss that is counted.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

from sentinel_agent.core.event import IncidentSealed
from sentinel_agent.core.model import Artifact
from sentinel_agent.export.base import Item, SendError

DOCUMENT = "incident.json"
MAX_FILE = 256 * 1024**2


class Parcel(msgspec.Struct, frozen=True):
    """What is sent of an incident: the files in `folder`, and what labels them."""

    id: str
    folder: str
    rule: str
    service: str
    instance: str
    worker: str
    host: str
    time: float
    artifacts: tuple[Artifact, ...]


def parcels(items: tuple[Item, ...] | list[Item]) -> list[Parcel]:
    """Of those items that are sealed incidents."""
    return [
        Parcel(
            id=item.incident.id,
            folder=item.folder,
            rule=item.incident.rule,
            service=item.incident.target.service,
            instance=item.incident.target.instance,
            worker=item.incident.target.worker,
            host=item.incident.host,
            time=item.incident.time,
            artifacts=item.incident.artifacts,
        )
        for item in items
        if isinstance(item, IncidentSealed)
    ]


def read_file(parcel: Parcel, name: str) -> bytes:
    """A file of the incident.

    Raises:
        SendError: it is not there any more, is no plain file, or is larger than any artifact.
    """
    if name != os.path.basename(name) or name in {"", ".", ".."}:  # noqa: PTH119 - of text, not of a path that is there
        raise SendError(f"{parcel.id}: {name[:100]!r} is no file name", "rejected")
    path = Path(parcel.folder) / name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SendError(f"{parcel.id}/{name}: {error.strerror}; was it deleted?", "rejected") from error
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE:
            raise SendError(f"{parcel.id}/{name} is no artifact: {found.st_size} bytes", "rejected")
        return file.read(MAX_FILE + 1)
