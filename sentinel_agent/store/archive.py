"""An incident as one zip file, for sending it to somebody. The same incident gives the same bytes."""

from __future__ import annotations

import hashlib
import os
import zipfile
from typing import IO, TYPE_CHECKING

from sentinel_agent.errors import StoreError
from sentinel_agent.store.files import store_error
from sentinel_agent.store.folder import MAX_DOCUMENT_BYTES, read_incident
from sentinel_agent.store.ids import DOCUMENT_NAME

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 1024**2
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that the format can hold (APPNOTE.TXT 4.4.6)
_MODE = 0o100600 << 16


def pack(folder: Path, out: IO[bytes]) -> None:
    """Write the incident in `folder` as `<id>/<name>` entries: the document, then its artifacts by name.

    Raises:
        StoreError: the document or an artifact is missing or not as it was sealed; `out` is then no whole archive.
        OSError: `out` cannot be written.
    """
    try:
        incident = read_incident(folder)
    except FileNotFoundError as error:
        raise store_error(error, "packing the incident") from error
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        _copy(folder / DOCUMENT_NAME, MAX_DOCUMENT_BYTES, archive)
        for artifact in sorted(incident.artifacts, key=lambda artifact: artifact.name):
            digest = _copy(folder / artifact.name, artifact.bytes, archive)
            if digest != artifact.sha256:
                raise StoreError(
                    f"{artifact.name} of incident {incident.id} is not as it was saved: its SHA-256 differs"
                )


def _copy(path: Path, limit: int, archive: zipfile.ZipFile) -> str:
    """Add a file of at most `limit` bytes to the archive; its SHA-256."""
    entry = zipfile.ZipInfo(f"{path.parent.name}/{path.name}", _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = _MODE
    entry.create_system = 3  # Unix
    digest = hashlib.sha256()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise store_error(error, "packing the incident") from error
    with os.fdopen(fd, "rb") as source, archive.open(entry, "w") as target:
        while limit >= 0 and (chunk := source.read(min(_CHUNK, limit + 1))):
            limit -= len(chunk)
            digest.update(chunk)
            target.write(chunk)
    if limit < 0:
        raise StoreError(f"{path.name} of incident {path.parent.name} is larger than it was saved")
    return digest.hexdigest()
