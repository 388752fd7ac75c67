"""An incident's folder: written under a temporary name, brought to the disk, renamed. What has its name is whole.

Layout: section 4.3 of the design. Temporary names begin with a dot, so that no incident id can be one.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
from typing import TYPE_CHECKING, Annotated, Any, Self

import msgspec

from sentinel_agent.core.model import SCHEMA_VERSION, Artifact, Incident, TargetId
from sentinel_agent.core.units import format_size
from sentinel_agent.errors import StoreError
from sentinel_agent.store.files import read_bounded, store_error
from sentinel_agent.store.ids import DOCUMENT_NAME, is_artifact_name, is_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sentinel_agent.store.files import Files

MAX_DOCUMENT_BYTES = 4 * 1024**2
_MAX_ARTIFACTS = 1000
_CHUNK = 1024**2
_LEFTOVER = re.compile(r"\.(?:tmp|trash)-.{25}-([0-9]{1,10})-([0-9]{1,20})")

log = logging.getLogger(__name__)


class UnreadableError(StoreError):
    """A folder with an incident's name whose document is missing, damaged or of another version."""


class IncidentWriter:
    """One incident while it is being written: captures write files into `folder` and hand each to `add`.

    Usable from one thread at a time. Leaving it as a context manager discards what was not sealed.
    """

    def __init__(
        self, incidents: Path, incident_id: str, owner: TargetId, files: Files, max_bytes: int
    ) -> None:
        """Make the temporary folder in `incidents`, which must exist.

        Raises:
            OSError: it cannot be made.
        """
        self.id = incident_id
        self.folder = incidents / f".tmp-{incident_id}-{owner.pid}-{owner.start_time}"
        self._final = incidents / incident_id
        self._files = files
        self._room = max_bytes
        self._artifacts: dict[str, Artifact] = {}
        files.make_folder(self.folder)
        try:
            self._hold: int | None = files.hold(self.folder)
        except OSError:
            files.remove(self.folder)
            raise

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """What was added, in that order."""
        return tuple(self._artifacts.values())

    @property
    def open(self) -> bool:
        """Whether it is neither sealed nor discarded."""
        return self._hold is not None

    def add(self, path: Path, kind: str, format: str) -> Artifact:  # noqa: A002 - the artifact's own word
        """Make the file `path`, which lies in `folder`, an artifact; it must not change afterwards.

        Raises:
            StoreError: it lies elsewhere, has an unsafe or used name, is no regular file, cannot be read, or the
                incident would become larger than the store may be.
        """
        name = path.name
        if path.parent != self.folder or not is_artifact_name(name):
            raise StoreError(
                f"{str(path)[:300]!r} cannot be an artifact: expected a plain name in {self.folder}"
            )
        if name in self._artifacts or len(self._artifacts) >= _MAX_ARTIFACTS:
            raise StoreError(f"incident {self.id} has an artifact {name!r} already, or too many of them")
        try:
            size, digest = _measure(path, self._room)
        except OSError as error:
            raise store_error(error, f"adding {name} to incident {self.id}") from error
        self._room -= size
        artifact = Artifact(name, kind, format, size, digest)
        self._artifacts[name] = artifact
        return artifact

    def seal(self, incident: Incident) -> int:
        """Give the folder its name, with exactly the added artifacts and the document in it; or discard it.

        Returns its bytes.

        Raises:
            StoreError: it could not be written; then nothing is left of it.
            ValueError: `incident` is not about this folder (its id, its artifacts).
        """
        if not self.open:
            raise ValueError(f"incident {self.id} is sealed or discarded already")
        if incident.id != self.id or incident.artifacts != self.artifacts:
            raise ValueError(f"the document of {incident.id!r} does not match the folder of {self.id!r}")
        document = encode_incident(incident)
        try:
            self._write_all(document)
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise store_error(error, f"writing incident {self.id}") from error
            raise
        self._release()
        try:
            self._files.fsync(self._final.parent)
        except OSError as error:
            log.warning("incident %s is saved, but may be gone after a power cut: %s", self.id, error)
        return len(document) + sum(artifact.bytes for artifact in self.artifacts)

    def discard(self) -> None:
        """Remove everything that was written; does nothing after `seal` or a first `discard`. Never raises OSError."""
        if not self.open:
            return
        self._release()
        try:
            self._files.remove(self.folder)
        except OSError as error:
            log.warning("%s could not be removed; it will be at the next start: %s", self.folder, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def _write_all(self, document: bytes) -> None:
        if len(document) > min(self._room, MAX_DOCUMENT_BYTES):
            raise StoreError(
                f"incident {self.id} is too large: its document of {format_size(len(document))} is over the limit",
                hint="raise store.max_bytes, or capture less",
            )
        for name in os.listdir(self.folder):  # noqa: PTH208 - names are what is compared
            if name not in self._artifacts:
                self._files.remove(self.folder / name)
        for artifact in self._artifacts.values():
            path = self.folder / artifact.name
            if path.lstat().st_size != artifact.bytes:
                raise StoreError(f"{artifact.name} of incident {self.id} changed after it was added")
            self._files.fsync(path)
        self._files.write(self.folder / DOCUMENT_NAME, document)
        self._files.fsync(self.folder / DOCUMENT_NAME)
        self._files.fsync(self.folder)
        self._files.rename(self.folder, self._final)

    def _release(self) -> None:
        if self._hold is not None:
            os.close(self._hold)
            self._hold = None


def _measure(path: Path, limit: int) -> tuple[int, str]:
    """Bytes and SHA-256 of a regular file of at most `limit` bytes."""
    digest = hashlib.sha256()
    size = 0
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            if size > limit:
                raise OSError(errno.EFBIG, f"over the {format_size(limit)} left for this incident", str(path))
            digest.update(chunk)
    return size, digest.hexdigest()


def encode_incident(incident: Incident) -> bytes:
    r"""The document as indented JSON. What UTF-8 cannot hold (bytes of a foreign command line) is written as `\udc80`."""
    try:
        document = msgspec.json.encode(incident)
    except UnicodeEncodeError:
        document = msgspec.json.encode(_printable(msgspec.to_builtins(incident)))
    return msgspec.json.format(document, indent=1) + b"\n"


def _printable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_printable(key): _printable(item) for key, item in value.items()}
        case list() | tuple():
            return [_printable(item) for item in value]
        case _:
            return value


class _Version(msgspec.Struct):
    schema_version: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


def read_incident(folder: Path) -> Incident:
    """The document of an incident's folder, which anybody may have written.

    Raises:
        FileNotFoundError: there is no such folder.
        UnreadableError: there is, but its document cannot be used; the message says why.
    """
    try:
        content = read_bounded(folder / DOCUMENT_NAME, MAX_DOCUMENT_BYTES)
        version = msgspec.json.decode(content, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise UnreadableError(
                f"incident {folder.name}: its document has schema version {version}; expected {SCHEMA_VERSION}",
                hint="read it with the version of sentinel-agent that wrote it",
            )
        incident = msgspec.json.decode(content, type=Incident)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        if isinstance(error, FileNotFoundError):
            folder.lstat()
        reason = error.strerror if isinstance(error, OSError) else error
        raise UnreadableError(f"incident {folder.name}: {DOCUMENT_NAME}: {reason}") from error
    wrong = _contradiction(incident, folder.name)
    if wrong:
        raise UnreadableError(f"incident {folder.name}: {DOCUMENT_NAME}: {wrong}")
    return incident


def _contradiction(incident: Incident, incident_id: str) -> str | None:
    """What the types do not say: the name, and numbers and names that others rely on."""
    if incident.id != incident_id:
        return f"it is about another incident, {incident.id[:100]!r}"
    if not 0 <= incident.target.id.pid < 2**31:
        return "its target's pid is no process id"
    for artifact in incident.artifacts:
        if not is_artifact_name(artifact.name):
            return f"{artifact.name[:100]!r} is no name of an artifact"
    return None


def sealed_ids(incidents: Path) -> list[str]:
    """Names of the incident folders, in no order; whatever else lies there is left out. None if the folder is missing.

    Raises:
        OSError: it cannot be listed.
    """
    try:
        with os.scandir(incidents) as entries:
            return [
                entry.name for entry in entries if is_id(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []


def folder_bytes(folder: Path) -> int:
    """Bytes of the files that lie in `folder` itself.

    Raises:
        OSError: it cannot be listed.
    """
    with os.scandir(folder) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)


def remove_incident(incidents: Path, incident_id: str, owner: TargetId, files: Files) -> None:
    """Take an incident's name away at once, then remove it. A reader that has a file open keeps it.

    Raises:
        FileNotFoundError: there is no such incident.
        OSError: it cannot be removed.
    """
    trash = incidents / f".trash-{incident_id}-{owner.pid}-{owner.start_time}"
    files.rename(incidents / incident_id, trash)
    files.remove(trash)


def remove_leftovers(incidents: Path, files: Files, is_alive: Callable[[TargetId], bool]) -> int:
    """Remove temporary folders and finish removals whose process has died; how many.

    Raises:
        OSError: the folder cannot be listed.
    """
    removed = 0
    for name in os.listdir(incidents):  # noqa: PTH208 - names are what is compared
        try:
            if _is_leftover(incidents / name, files, is_alive):
                files.remove(incidents / name)
                removed += 1
        except OSError as error:
            log.warning("%s, left by an earlier run, could not be removed: %s", incidents / name, error)
    return removed


def _is_leftover(path: Path, files: Files, is_alive: Callable[[TargetId], bool]) -> bool:
    """Whether nobody works on it: its process has died, and none in another pid namespace holds it."""
    found = _LEFTOVER.fullmatch(path.name)
    if not found:
        return False
    return not is_alive(TargetId(int(found[1]), int(found[2]))) and not files.is_held(path)
