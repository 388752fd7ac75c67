"""The index of the incidents: a SQLite file that makes listing fast and keeps the rules' limits.

The folders are the truth. Before every answer the index is brought in line with their names, unless neither it nor
the folder that holds them was written to since the last time. One that is missing, damaged, foreign or of another version is moved aside and built anew. Where none can be written (full or read-only
disk), the answer comes from one in memory. Each call has its own connection, so any thread and any number of
processes may call.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import stat
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from sentinel_agent.core.model import Incident, IncidentRow
from sentinel_agent.errors import StoreError
from sentinel_agent.store.files import store_error
from sentinel_agent.store.folder import UnreadableError, folder_bytes, read_incident, sealed_ids
from sentinel_agent.store.ids import is_id
from sentinel_agent.store.retention import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from sentinel_agent.store.files import Files

INDEX_NAME = "index.sqlite3"
LOCK_NAME = "index.lock"
_APPLICATION_ID = 0x53454E54  # "SENT"
_VERSION = 1
_TABLES = """
CREATE TABLE incidents (
    id TEXT PRIMARY KEY, rule TEXT NOT NULL, target TEXT NOT NULL, time REAL NOT NULL, value REAL,
    reason TEXT NOT NULL, pid INTEGER NOT NULL, metric TEXT NOT NULL, unit TEXT NOT NULL, summary TEXT NOT NULL,
    bytes INTEGER NOT NULL, cooldown_until REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE unreadable (id TEXT PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE limits (role TEXT NOT NULL, rule TEXT NOT NULL, record BLOB NOT NULL, PRIMARY KEY (role, rule));
"""
_ROW = "id, rule, target, time, value, reason, pid, metric, unit, summary, bytes"
_DAMAGE = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,  # no such table or column: not our file
    sqlite3.SQLITE_IOERR_SHORT_READ,
}
_BATCH = 500
_MAX_TEXT = 1000
_MAX_LIMITS = 10_000
_MAX_LIMIT_BYTES = 64 * 1024

log = logging.getLogger(__name__)
T = TypeVar("T")
Key = tuple[str, str]


class IncidentFilter(msgspec.Struct, frozen=True):
    """Which incidents are listed; None leaves a test out.

    `target` is a role's key or its first parts (`service`, `service/instance`); `since` and `until` are seconds
    since the epoch, both included; `limit` is how many of the newest.
    """

    rule: str | None = None
    target: str | None = None
    since: float | None = None
    until: float | None = None
    limit: int | None = None


class Unreadable(NamedTuple):
    """A folder with an incident's name that cannot be read, and why."""

    id: str
    reason: str


class Fire(NamedTuple):
    """What an incident's document says about the limits of its rule on its role (its key)."""

    role: str
    rule: str
    time: float
    value: float | None
    cooldown_until: float


class Totals(NamedTuple):
    """How much is in the store."""

    incidents: int
    bytes: int
    unreadable: int


class _UnusableError(sqlite3.DatabaseError):
    """The file is not an index of this version."""


class Index:
    """Answers about all incidents of one data directory.

    Every method raises StoreError if the incident folders cannot be listed, and those about limits also if the
    file cannot be used, which is the one case in which there is no other source.
    """

    def __init__(self, data_dir: Path, incidents: Path, files: Files) -> None:
        self._path = data_dir / INDEX_NAME
        self._lock = data_dir / LOCK_NAME
        self._incidents = incidents
        self._files = files
        self._in_line: tuple[tuple[int, ...], ...] | None = (
            None  # the stamp of when it was; replaced as a whole
        )

    def check(self) -> None:
        """Look at the whole file, replace it if it is damaged, and try again what could not be read before."""

        def work(db: sqlite3.Connection) -> None:
            (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                raise _UnusableError(f"it is damaged: {verdict}")
            db.execute("DELETE FROM unreadable")
            self._reconcile(db)

        self._answer(work)

    def rows(self, wanted: IncidentFilter) -> list[IncidentRow]:
        """The incidents that pass the filter, newest first."""
        values = {
            "rule": wanted.rule and _text(wanted.rule),
            "target": wanted.target and _text(wanted.target),
            "since": wanted.since,
            "until": wanted.until,
            "limit": -1 if wanted.limit is None else max(0, min(wanted.limit, 2**31)),
        }
        query = f"""SELECT {_ROW} FROM incidents
            WHERE (:rule IS NULL OR rule = :rule)
            AND (:target IS NULL OR target = :target OR substr(target, 1, length(:target) + 1) = :target || '/')
            AND (:since IS NULL OR time >= :since) AND (:until IS NULL OR time <= :until)
            ORDER BY id DESC LIMIT :limit"""  # noqa: S608 - the columns are ours, the values are bound

        def work(db: sqlite3.Connection) -> list[IncidentRow]:
            return [IncidentRow(*row) for row in db.execute(query, values)]

        return self._answer(work)

    def stored(self) -> list[Stored]:
        """What retention decides on; unreadable folders are not in it."""
        return self._answer(
            lambda db: [Stored(*row) for row in db.execute("SELECT id, time, bytes FROM incidents")]
        )

    def unreadable(self) -> list[Unreadable]:
        """Folders that are there but cannot be read, newest first."""
        query = "SELECT id, reason FROM unreadable ORDER BY id DESC"
        return self._answer(lambda db: [Unreadable(*row) for row in db.execute(query)])

    def fires(self) -> list[Fire]:
        """When each rule fired, oldest first, from the documents: for limits that were lost with their index."""
        query = "SELECT target, rule, time, value, cooldown_until FROM incidents ORDER BY id"
        return self._answer(lambda db: [Fire(*row) for row in db.execute(query)])

    def totals(self) -> Totals:
        """Counts and bytes."""
        query = (
            """SELECT count(*), coalesce(sum(bytes), 0), (SELECT count(*) FROM unreadable) FROM incidents"""
        )
        return self._answer(lambda db: Totals(*db.execute(query).fetchone()))

    def limits(self) -> dict[Key, bytes]:
        """The record of each (role key, rule name)."""
        query = "SELECT role, rule, record FROM limits"
        return self._answer(
            lambda db: {(role, rule): bytes(record) for role, rule, record in db.execute(query)}, durable=True
        )

    def put_limits(self, records: Mapping[Key, bytes]) -> None:
        """Add or replace records. The store keeps the ten thousand written last.

        Raises:
            ValueError: a record is over 64 KiB.
        """
        if any(len(record) > _MAX_LIMIT_BYTES for record in records.values()):
            raise ValueError(f"a limit record is over {_MAX_LIMIT_BYTES} bytes")
        rows = [(_text(role), _text(rule), record) for (role, rule), record in records.items()]

        def work(db: sqlite3.Connection) -> None:
            with _transaction(db):
                db.executemany("INSERT OR REPLACE INTO limits VALUES (?, ?, ?)", rows)
                db.execute(
                    "DELETE FROM limits WHERE rowid <= (SELECT max(rowid) FROM limits) - ?", [_MAX_LIMITS]
                )

        self._answer(work, durable=True)

    def _answer(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """The result of `work`, which may be done twice; unless it is `durable`, from memory if need be."""
        try:
            try:
                return self._from_disk(work)
            except (OSError, sqlite3.Error) as error:
                if durable:
                    raise
                if self._incidents.exists():
                    log.warning("incidents are read one by one, the index cannot be used: %s", error)
                return self._from_memory(work)
        except OSError as error:
            raise store_error(error, "reading the store") from error
        except sqlite3.Error as error:
            raise StoreError(
                f"the index {self._path} cannot be used: {error}",
                hint="is the disk full or read-only, or another process busy with it? It may be deleted: "
                "it is built anew from the incident folders",
            ) from error

    def _from_disk(self, work: Callable[[sqlite3.Connection], T]) -> T:
        before = self._inode()
        try:
            return self._attempt(work)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._renew(before, str(error))
        return self._attempt(work)

    def _from_memory(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
            db.executescript(_TABLES)
            self._reconcile(db)
            return work(db)

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Share the lock: replacing a database file under an open connection would mix two databases."""
        with self._files.locked(self._lock, shared=True):
            if self._inode() is None:
                raise _UnusableError("it is missing or no regular file")
            with contextlib.closing(self._files.connect(self._path, create=False)) as db:
                self._recognise(db)
                db.execute("PRAGMA synchronous = NORMAL")
                self._bring_in_line(db)
                return work(db)

    def _recognise(self, db: sqlite3.Connection) -> None:
        """Refuse another program's or version's file, and one whose last page is cut: SQLite reads the rest as zeros."""
        found = [
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version", "page_size")
        ]
        if found[:2] != [_APPLICATION_ID, _VERSION]:
            raise _UnusableError(f"it is of another program or version: {found[:2]}")
        if self._path.lstat().st_size % found[2]:
            raise _UnusableError("it is cut off")

    def _renew(self, damaged: int | None, reason: str) -> None:
        """Put an empty index in the place of the file with inode `damaged`, unless another process has done so."""
        fresh = self._path.with_name(f"{INDEX_NAME}.fresh")
        with self._files.locked(self._lock):
            if self._inode() != damaged:
                return
            if self._path.exists() or self._path.is_symlink():
                aside = self._path.with_name(f"{INDEX_NAME}.damaged")
                log.warning("the index %s is moved to %s and built anew: %s", self._path, aside.name, reason)
                for suffix in ("-wal", "-shm"):
                    self._files.remove(self._path.with_name(INDEX_NAME + suffix))
                self._files.remove(aside)
                self._files.rename(self._path, aside)
            for suffix in ("", "-wal", "-shm", "-journal"):
                self._files.remove(fresh.with_name(fresh.name + suffix))
            with contextlib.closing(self._files.connect(fresh, create=True)) as db:
                db.executescript(_TABLES)
                db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {_VERSION}")
                db.execute("PRAGMA journal_mode = WAL").fetchone()
            self._files.rename(fresh, self._path)

    def _inode(self) -> int | None:
        try:
            facts = self._path.lstat()
        except FileNotFoundError:
            return None
        return facts.st_ino if stat.S_ISREG(facts.st_mode) else None

    def _bring_in_line(self, db: sqlite3.Connection) -> None:
        """Reconcile, unless nothing was written since; the stamp is taken first, so that what comes meanwhile is seen."""
        log_file = self._path.with_name(INDEX_NAME + "-wal")
        stamp = self._files.stamp(self._incidents, self._path, log_file)
        if stamp is None or stamp != self._in_line:
            self._reconcile(db)
            self._in_line = stamp

    def _reconcile(self, db: sqlite3.Connection) -> None:
        """Add the folders that have no row and remove the rows that have no folder.

        The rows are read first: a row whose folder is missing afterwards is gone for good, whatever other
        processes do, because a folder gets its name before it gets a row.
        """
        known = _known_ids(db)
        present = set(sealed_ids(self._incidents))
        if not all(map(is_id, known - present)):
            raise _UnusableError("it is damaged: a row is about no incident")
        for batch in _batches(sorted(present - known)):
            found = [item for item in map(self._examine, batch) if item]
            with _transaction(db):
                db.executemany(
                    "INSERT OR REPLACE INTO incidents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [item for item in found if not isinstance(item, Unreadable)],
                )
                db.executemany(
                    "INSERT OR REPLACE INTO unreadable VALUES (?, ?)",
                    [item for item in found if isinstance(item, Unreadable)],
                )
        if gone := known - present:
            with _transaction(db):
                db.executemany("DELETE FROM incidents WHERE id = ?", [(each,) for each in gone])
                db.executemany("DELETE FROM unreadable WHERE id = ?", [(each,) for each in gone])
                if gone & _known_ids(db):
                    raise _UnusableError("it is damaged: a row cannot be removed")

    def _examine(self, incident_id: str) -> tuple[Any, ...] | None:
        """The columns of an incident, or Unreadable, or None if it was removed meanwhile."""
        folder = self._incidents / incident_id
        try:
            incident = read_incident(folder)
            return (*msgspec.structs.astuple(row_of(incident, folder_bytes(folder))), incident.cooldown_until)
        except FileNotFoundError:
            return None
        except (UnreadableError, OSError) as error:
            log.warning("left out of the listing: %s", error)
            return Unreadable(incident_id, _text(str(error)))


def _known_ids(db: sqlite3.Connection) -> set[str]:
    return {row[0] for row in db.execute("SELECT id FROM incidents UNION ALL SELECT id FROM unreadable")}


def row_of(incident: Incident, size: int) -> IncidentRow:
    """The line of an incident that takes `size` bytes."""
    return IncidentRow(
        id=incident.id,
        rule=_text(incident.rule),
        target=_text(incident.target.role.key),
        time=incident.time,
        value=incident.value,
        reason=_text(incident.reason),
        pid=incident.target.id.pid,
        metric=_text(incident.metric),
        unit=_text(incident.unit),
        summary=_text(incident.summary),
        bytes=size,
    )


def _text(text: str) -> str:
    """`text` as SQLite can hold it: bounded, and without lone surrogates."""
    return text[:_MAX_TEXT].encode("utf-8", "backslashreplace").decode()


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is at fault, not the disk or another process. Text that is no UTF-8 comes without a code."""
    if isinstance(error, _UnusableError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return isinstance(error, sqlite3.OperationalError)
    return code in _DAMAGE or code & 0xFF in _DAMAGE


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; the lock is taken at the start, so that waiting for it happens there."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _batches(items: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch
