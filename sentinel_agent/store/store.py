"""The incident store of one data directory: begin, seal, list, read, delete, and the bounds on it all.

`Store.open` is for the process that writes: it makes the folders, cleans up after crashes and applies retention.
A process that only reads needs no `open`; then its settings remove nothing that another one's would keep.

All calls block (a seal waits for the disk), so the agent makes them in a worker thread. Calls may come from any
thread and overlap; one `IncidentWriter` is for one thread at a time. Any number of processes may share a directory.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from sentinel_agent.core.units import format_size
from sentinel_agent.errors import NoSuchIncidentError, SentinelError, StoreError
from sentinel_agent.store import digests
from sentinel_agent.store import owner as owners
from sentinel_agent.store.files import FULL, Files, store_error
from sentinel_agent.store.folder import (
    IncidentWriter,
    read_incident,
    remove_incident,
    remove_leftovers,
    sealed_ids,
)
from sentinel_agent.store.ids import DOCUMENT_NAME, is_artifact_name, is_id, is_id_start, new_id
from sentinel_agent.store.index import LOCK_NAME, Fire, IncidentFilter, Index, Key, Unreadable, row_of
from sentinel_agent.store.retention import expired

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sentinel_agent.clock import Clock
    from sentinel_agent.config.settings import StoreSettings
    from sentinel_agent.core.model import Incident, IncidentRow, TargetId
    from sentinel_agent.profile.packed import Packed

_DIGESTED_AT_ONCE = 2 * 1024**2
"""A larger timeline is left to whoever asks for it: reading it back takes some ten times its size."""
_CLOSE_AMONG = 1000

log = logging.getLogger(__name__)
Rows = list["IncidentRow"]


class StoreStatistics(NamedTuple):
    """What is stored, and what went wrong since this process started: `dropped` counts incidents that were not saved."""

    incidents: int
    bytes: int
    unreadable: int
    dropped: int
    last_error: str | None


def default_data_dir(environ: Mapping[str, str], home: Path) -> Path:
    """`$XDG_STATE_HOME/sentinel-agent`, else `~/.local/state/sentinel-agent` (XDG Base Directory 0.8).

    As that specification asks, a relative path in the variable is ignored.
    """
    named = Path(environ.get("XDG_STATE_HOME", ""))
    return (named if named.is_absolute() else home / ".local" / "state") / "sentinel-agent"


class Store:
    """The incidents of one data directory. See the module for who may call what."""

    def __init__(
        self,
        data_dir: Path,
        settings: StoreSettings,
        clock: Clock,
        *,
        owner: TargetId | None = None,
        is_alive: Callable[[TargetId], bool] = owners.is_alive,
        files: Files | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.settings = settings  # may be replaced when the configuration is reloaded
        self._clock = clock
        self._owner = owner or owners.this_process()
        self._is_alive = is_alive
        self._files = files or Files()
        self._incidents = data_dir / "incidents"
        self._index = Index(data_dir, self._incidents, self._files)
        self._opened = False
        self._troubles = threading.Lock()
        self._dropped = 0
        self._last_error: str | None = None

    def open(self) -> Self:
        """Make the folders (0700), clean up after crashed processes, check the index, apply retention.

        A full disk is no obstacle, since watching goes on; it is in the statistics.

        Raises:
            StoreError: the directory is read-only, not permitted, or something else is in its place.
        """
        try:
            self._make_folders()
            with self._files.locked(self.data_dir / LOCK_NAME):
                count = remove_leftovers(self._incidents, self._files, self._is_alive)
            if count:
                log.warning("removed %d unfinished incidents or removals of earlier runs", count)
        except OSError as error:
            failure = store_error(error, f"opening the data directory {self.data_dir}")
            if error.errno not in FULL:
                raise failure from error
            self._note(failure)
        self._opened = True
        self._index.check()
        self._retain()
        return self

    def new_id(self, time: float) -> str:
        """A free id for an incident of that time (seconds since the epoch)."""
        while (self._incidents / (fresh := new_id(time, secrets.randbits(16)))).exists():
            time += 0.001
        return fresh

    def begin(self, incident_id: str) -> IncidentWriter:
        """Start writing an incident; the caller seals or discards it.

        Raises:
            StoreError: the disk is nearly full, the id is taken, or the folder cannot be made.
            ValueError: `incident_id` is no incident id.
        """
        if not is_id(incident_id):
            raise ValueError(f"{incident_id!r} is no incident id")
        try:
            self._make_folders()
            self._require_room(incident_id)
            return IncidentWriter(
                self._incidents, incident_id, self._owner, self._files, self.settings.max_bytes
            )
        except OSError as error:
            failure = store_error(error, f"beginning incident {incident_id}")
            self._drop(failure)
            raise failure from error
        except StoreError as error:
            self._drop(error)
            raise

    def seal(self, writer: IncidentWriter, incident: Incident) -> IncidentRow:
        """Save the incident, then remove what retention asks for.

        Raises:
            StoreError: it could not be written; nothing is left of it and it is counted as dropped.
            ValueError: `incident` does not match what the writer holds.
        """
        try:
            size = writer.seal(incident)
        except StoreError as error:
            self._drop(error)
            raise
        with contextlib.suppress(
            OSError, ValueError, LookupError, SentinelError
        ):  # a copy, made when asked for
            self._keep_digest(incident.id, digests.make(self._incidents / incident.id, _DIGESTED_AT_ONCE))
        self._retain()
        return row_of(incident, size)

    def list(self, wanted: IncidentFilter = IncidentFilter()) -> Rows:  # noqa: B008 - frozen
        """The incidents that pass the filter, newest first. A missing data directory has none.

        Raises:
            StoreError: the directory cannot be listed; so too in the methods below.
        """
        return self._index.rows(wanted)

    def unreadable(self) -> tuple[Unreadable, ...]:
        """Incident folders whose document cannot be used, newest first. They stay until `delete`."""
        return tuple(self._index.unreadable())

    def resolve(self, text: str) -> str:
        """The id that `text` is, or is the beginning of.

        Raises:
            NoSuchIncidentError: there is none, or several begin so; the hint names close ones.
        """
        try:
            ids = sorted(sealed_ids(self._incidents), reverse=True)
        except OSError as error:
            raise store_error(error, "reading the store") from error
        found = [each for each in ids if each.startswith(text)] if is_id_start(text) else []
        if len(found) == 1:
            return found[0]
        shown = repr(text[:50])
        if found:
            hint = f"give more of the id; the newest are: {', '.join(found[:3])}"
            raise NoSuchIncidentError(f"{len(found)} incidents begin with {shown}", hint=hint)
        close = difflib.get_close_matches(text[:50], ids[:_CLOSE_AMONG], n=3, cutoff=0.8)
        hint = f"close ids: {', '.join(close)}" if close else "see: sentinel-agent incidents list"
        raise NoSuchIncidentError(f"no incident {shown} in {self.data_dir}", hint=hint)

    def path(self, text: str) -> Path:
        """The folder of the incident that `text` resolves to."""
        return self._incidents / self.resolve(text)

    def read(self, text: str) -> Incident:
        """The document of the incident that `text` resolves to.

        Raises:
            NoSuchIncidentError: there is none.
            UnreadableError: it is damaged.
        """
        folder = self.path(text)
        try:
            return read_incident(folder)
        except FileNotFoundError:
            raise NoSuchIncidentError(f"incident {folder.name} was removed just now") from None

    def artifact(self, text: str, name: str) -> Path:
        """The file of an artifact, or the document itself; never a path out of the incident's folder.

        Raises:
            NoSuchIncidentError: no such incident, or it has no such artifact.
        """
        folder = self.path(text)
        path = folder / name
        allowed = name == DOCUMENT_NAME or is_artifact_name(name)
        if not allowed or path.is_symlink() or not path.is_file():
            has = ", ".join(artifact.name for artifact in self.read(folder.name).artifacts[:20])
            raise NoSuchIncidentError(
                f"incident {folder.name} has no artifact {name[:100]!r}", hint=f"it has: {has or 'none'}"
            )
        return path

    def digest(self, incident_id: str, *, anew: bool = False) -> Packed:
        """The timeline of an incident, packed; `anew` where what was there before turned out to be of no use.

        Raises:
            FileNotFoundError: no such incident, or it has no timeline.
            OSError, PeerError, ValueError, IndexError: its timeline cannot be used.
        """
        folder = self._incidents / incident_id
        found = None if anew else digests.load(folder)
        if found is None:
            found = digests.make(folder)
            with contextlib.suppress(OSError):  # not our folder, or no room: it is made again next time
                self._keep_digest(incident_id, found)
        return found

    def delete(self, incident_id: str) -> None:
        """Remove one incident, readable or not; the whole id is asked for.

        Raises:
            NoSuchIncidentError: there is none of that id.
            StoreError: it cannot be removed.
        """
        if self.resolve(incident_id) != incident_id:
            raise NoSuchIncidentError(
                f"{incident_id!r} is only the beginning of an id",
                hint=f"did you mean {self.resolve(incident_id)}?",
            )
        try:
            remove_incident(self._incidents, incident_id, self._owner, self._files)
        except FileNotFoundError:
            raise NoSuchIncidentError(f"incident {incident_id} was removed just now") from None
        except OSError as error:
            raise store_error(error, f"removing incident {incident_id}") from error

    def limits(self) -> dict[Key, bytes]:
        """The limit record of each (role key, rule name). Records lost with a damaged index: see `fires`."""
        return self._index.limits()

    def put_limits(self, records: Mapping[Key, bytes]) -> None:
        """Add or replace limit records, each of at most 64 KiB (else ValueError)."""
        self._index.put_limits(records)

    def fires(self) -> tuple[Fire, ...]:
        """When rules fired, from the incidents themselves, oldest first."""
        return tuple(self._index.fires())

    def statistics(self) -> StoreStatistics:
        """What is stored and what went wrong."""
        return StoreStatistics(*self._index.totals(), self._dropped, self._last_error)

    def _make_folders(self) -> None:
        if self._incidents.is_dir():
            return
        if self._opened:
            self._note(StoreError(f"the data directory {self.data_dir} was removed and is made again"))
        self._files.ensure_folder(self.data_dir)
        self._files.ensure_folder(self._incidents)
        self._files.fsync(self.data_dir)

    def _require_room(self, incident_id: str) -> None:
        if (self._incidents / incident_id).exists():
            raise StoreError(f"there is an incident {incident_id} already")
        free, needed = self._files.free_bytes(self._incidents), self.settings.min_free_bytes
        if free < needed:
            raise StoreError(
                f"no incident is saved: {format_size(free)} free in {self.data_dir}, "
                f"store.min_free_bytes asks for {format_size(needed)}",
                hint="free some space, or choose another --data-dir",
            )

    def _keep_digest(self, incident_id: str, digest: Packed) -> None:
        if self._files.free_bytes(self._incidents) >= self.settings.min_free_bytes:
            digests.keep(self._incidents / incident_id, digest, self._files)

    def _retain(self) -> None:
        """Failures are noted: they must not make a saved incident look lost."""
        bounds = self.settings
        try:
            gone = expired(
                self._index.stored(),
                self._clock.wall(),
                bounds.max_incidents,
                bounds.max_age,
                bounds.max_bytes,
            )
            for incident_id in gone:
                with contextlib.suppress(FileNotFoundError):
                    remove_incident(self._incidents, incident_id, self._owner, self._files)
        except OSError as error:
            self._note(store_error(error, "removing old incidents"))
        except StoreError as error:
            self._note(error)

    def _note(self, error: StoreError) -> None:
        log.warning("%s", error)
        with self._troubles:
            self._last_error = str(error)

    def _drop(self, error: StoreError) -> None:
        self._note(error)
        with self._troubles:
            self._dropped += 1
