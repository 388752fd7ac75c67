"""The index agrees with the folders, whatever happens to its file; only the limits live in it alone."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.model import Role, TargetId
from sentinel_agent.errors import StoreError
from sentinel_agent.store import files, index
from sentinel_agent.store.files import Files
from sentinel_agent.store.folder import encode_incident, sealed_ids
from sentinel_agent.store.index import IncidentFilter, Index
from sentinel_agent.store.store import Store
from sentinel_agent.testing import make_target
from tests.store.helpers import SETTINGS, START, incident_of, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sentinel_agent.clock import Clock

INDEX = "index.sqlite3"


def sql(*statements: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db:
            for statement in statements:
                db.execute(statement)
            db.commit()

    return change


def replaced_by(content: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_bytes(content)

    return change


def cut(length: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, length)


def scribble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 + 100 :] = b"\xa5" * (len(content) - 4196)
    path.write_bytes(content)


def another_id(path: Path) -> None:
    """The ids of two rows change into others of the same form: out of order, and about no folder."""
    content = path.read_bytes()
    for seconds in (b"25", b"37"):
        assert content.count(b"20231114T2213" + seconds) == 1
        content = content.replace(b"20231114T2213" + seconds, b"20230101T0000" + seconds)
    path.write_bytes(content)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_bytes(b"x")


def a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "garbage": replaced_by(os.urandom(20_000)),
    "text": replaced_by(b"not a database\n" * 500),
    "empty": cut(0),
    "cut in the header": cut(50),
    "cut after the first page": cut(4096),
    "cut in the last page": lambda path: os.truncate(path, path.stat().st_size - 100),
    "scribbled over": scribble,
    "older version": sql("PRAGMA user_version = 0"),
    "newer version": sql("PRAGMA user_version = 99"),
    "foreign": sql("PRAGMA application_id = 1", "CREATE TABLE theirs (x)"),
    "tables missing": sql("DROP TABLE unreadable"),
    "columns missing": sql("ALTER TABLE incidents DROP COLUMN rule"),
    "text that is no UTF-8": sql("UPDATE incidents SET rule = CAST(x'ff41' AS TEXT)"),
    "another id": another_id,
    "no id": sql("UPDATE incidents SET id = 'x' WHERE id = (SELECT min(id) FROM incidents)"),
    "a folder": a_folder,
    "a link": a_link,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("opened", [True, False], ids=["open", "no open"])
def test_a_damaged_index_is_moved_aside_and_rebuilt_with_a_warning(
    store: Store, fake_clock: Clock, caplog: pytest.LogCaptureFixture, damage: str, opened: bool
) -> None:
    """Nothing is lost but the limits, and these can be restored from what the incidents say."""
    ids = [save(store, START + number, rule=f"rule-{number}") for number in range(40)]
    store.put_limits({("gateway/host-a/main", "cpu-spike"): b"record"})
    DAMAGES[damage](store.data_dir / INDEX)
    again = Store(store.data_dir, SETTINGS, fake_clock)
    if opened:
        again.open()
    assert [row.id for row in again.list()] == ids[::-1]
    assert [row.rule for row in again.list()] == [f"rule-{number}" for number in range(40)][::-1]
    assert "built anew" in caplog.text
    assert os.path.lexists(store.data_dir / f"{INDEX}.damaged")
    assert again.limits() == {}
    assert [(fire.role, fire.rule, fire.time, fire.value) for fire in again.fires()] == [
        ("gateway/host-a/main", f"rule-{number}", START + number, 95.0) for number in range(40)
    ]
    again.put_limits({("r", "x"): b"kept"})
    assert store.limits() == {("r", "x"): b"kept"}


def test_open_finds_damage_that_no_listing_meets(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A value that its column cannot have: only SQLite's own check of the whole file tells."""
    incident_id = save(store, value=None)
    sql(
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = replace(sql, 'value REAL', 'value REAL NOT NULL')",
    )(store.data_dir / INDEX)
    store.open()
    assert "built anew: it is damaged: NULL value" in caplog.text
    assert [(row.id, row.value) for row in store.list()] == [(incident_id, None)]


def test_a_missing_index_is_no_reason_for_a_warning(
    store: Store, fake_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    incident_id = save(store)
    for path in store.data_dir.glob(f"{INDEX}*"):
        path.unlink()
    assert [row.id for row in Store(store.data_dir, SETTINGS, fake_clock).list()] == [incident_id]
    assert not caplog.records


def test_the_listing_follows_the_folders(store: Store, tmp_path: Path) -> None:
    """A folder removed or put back by hand is gone from or back in the listing; strangers are left out and alone."""
    ids = [save(store, START + number) for number in range(3)]
    incidents = store.data_dir / "incidents"
    shutil.move(incidents / ids[1], tmp_path / ids[1])
    (incidents / "notes.txt").write_text("mine")
    (incidents / "20231114T221320.000Z-9999").symlink_to(tmp_path / ids[1])
    assert [row.id for row in store.list()] == [ids[2], ids[0]]
    shutil.move(tmp_path / ids[1], incidents / ids[1])
    assert [row.id for row in store.list()] == ids[::-1]
    assert (incidents / "notes.txt").exists()


def test_an_index_that_is_up_to_date_opens_no_document(
    store: Store, monkeypatch: pytest.MonkeyPatch, fake_clock: Clock
) -> None:
    """This is what makes opening and listing ten thousand incidents cheap."""
    for number in range(5):
        save(store, START + number)
    store.list()

    def refuse(*_: object) -> None:
        raise AssertionError("a document was read")

    monkeypatch.setattr("sentinel_agent.store.index.read_incident", refuse)
    assert len(Store(store.data_dir, SETTINGS, fake_clock).open().list()) == 5


def test_folders_are_listed_again_only_after_a_change(
    store: Store, fake_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nobody writes, an answer costs no look at the folders; a change by whomever is seen by the next one."""
    looks = []

    def counted(folder: Path) -> list[str]:
        looks.append(folder)
        return sealed_ids(folder)

    monkeypatch.setattr(index, "sealed_ids", counted)
    monkeypatch.setattr(files, "_SETTLED_NS", -(10**18))  # a change a moment ago is as good as an old one
    place = store.data_dir
    first = save(store, START)
    assert [row.id for row in store.list()] == [first]
    store.list()
    looks.clear()
    assert [row.id for row in store.list(IncidentFilter(rule="cpu-spike"))] == [first]
    assert looks == []

    seen = Files().stamp(place / "incidents")
    second = save(Store(place, SETTINGS, fake_clock), START + 1)  # as another process would
    while Files().stamp(place / "incidents") == seen:  # within one tick of the kernel's clock
        (place / "incidents" / "nothing").touch()
        (place / "incidents" / "nothing").unlink()
    assert [row.id for row in store.list()] == [second, first]
    store.list()
    looks.clear()
    (place / INDEX).write_bytes(b"")  # somebody loses it
    assert [row.id for row in store.list()] == [second, first]
    assert looks


def test_what_was_written_a_moment_ago_has_no_stamp(tmp_path: Path) -> None:
    """Two changes within a tick of the kernel's clock leave the same times: such a stamp would say too much."""
    (tmp_path / "new").write_bytes(b"1")
    assert Files().stamp(tmp_path / "new") is None
    assert Files().stamp(tmp_path / "missing") == ((),)


def test_an_unreadable_incident_is_reported_apart_and_kept(
    store: Store, fake_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Retention does not touch it; when it can be read again, the next open lists it; `delete` removes it."""
    good, bad = save(store, START), save(store, START + 1)
    document = store.data_dir / "incidents" / bad / "incident.json"
    content = document.read_bytes()
    document.write_bytes(b"\0" * 100)
    (store.data_dir / INDEX).unlink()
    assert [row.id for row in store.list()] == [good]
    ((unreadable_id, reason),) = store.unreadable()
    assert unreadable_id == bad
    assert "incident.json" in reason
    assert bad in caplog.text
    strict = Store(store.data_dir, type(SETTINGS)(min_free_bytes=0, max_incidents=1), fake_clock).open()
    save(strict, START + 2)
    assert [each.id for each in strict.unreadable()] == [bad]
    document.write_bytes(content)
    store.open()
    assert bad in [row.id for row in store.list()]
    assert not store.unreadable()
    document.write_bytes(b"")
    (store.data_dir / INDEX).unlink()
    store.delete(bad)
    assert not store.unreadable()
    assert not document.parent.exists()


def test_an_incident_folder_without_a_document_is_unreadable(store: Store) -> None:
    (store.data_dir / "incidents" / "20231114T221320.000Z-0001").mkdir()
    assert [each.id for each in store.unreadable()] == ["20231114T221320.000Z-0001"]
    assert store.list() == []


ROWS = [
    ("cpu-spike", "gateway/a/main", 10.0),
    ("cpu-spike", "gateway/b/worker-1", 20.0),
    ("leak", "gateway/a/main", 30.0),
    ("leak", "gateway-2/a/main", 40.0),
    ("cpu-spike", "%/_/main", 50.0),
]
OPTIONAL_TIME = st.none() | st.sampled_from([0.0, 10.0, 25.0, 30.0, 50.0, 99.0])


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index of the five rows above."""
    base = tmp_path_factory.mktemp("filled")
    for number, (rule, target, time) in enumerate(ROWS):
        incident_id = f"20231114T2213{number:02}.000Z-0000"
        role = Role(*target.split("/"))
        incident = incident_of(incident_id, rule=rule, time=time, target=make_target(TargetId(1, 1), role))
        folder = base / "incidents" / incident_id
        folder.mkdir(parents=True)
        document = encode_incident(incident)
        (folder / "incident.json").write_bytes(document)
    return Index(base, base / "incidents", Files())


@given(
    rule=st.none() | st.sampled_from(["cpu-spike", "leak", "other", "", "' OR 1=1 --", "\udc80\0"]),
    target=st.none()
    | st.sampled_from(["gateway", "gateway/a", "gateway/a/main", "gate", "%", "_", "\udc80", "gateway/"]),
    since=OPTIONAL_TIME,
    until=OPTIONAL_TIME,
    limit=st.none() | st.integers(0, 6) | st.just(10**30),
)
def test_a_filter_lets_through_what_its_words_say(
    filled: Index,
    rule: str | None,
    target: str | None,
    since: float | None,
    until: float | None,
    limit: int | None,
) -> None:
    """Compared with the same words in Python: a target matches as a whole or by its first parts, as plain text."""
    wanted = [
        row
        for row in reversed(ROWS)
        if (rule is None or row[0] == rule)
        and (target is None or row[1] == target or row[1].startswith(f"{target}/"))
        and (since is None or row[2] >= since)
        and (until is None or row[2] <= until)
    ][:limit]
    found = filled.rows(IncidentFilter(rule, target, since, until, limit))
    assert [(row.rule, row.target, row.time) for row in found] == wanted


def test_limit_records_are_added_replaced_and_bounded(store: Store) -> None:
    store.put_limits({("role", "a"): b"1", ("role", "b"): b"\0\xff"})
    store.put_limits({("role", "a"): b"2"})
    assert store.limits() == {("role", "a"): b"2", ("role", "b"): b"\0\xff"}
    with pytest.raises(ValueError, match="over 65536"):
        store.put_limits({("role", "c"): bytes(65_537)})
    store.put_limits({(f"pod-{number}", "a"): b"x" for number in range(10_000)})
    assert len(store.limits()) == 10_000
    assert ("role", "a") not in store.limits()


def test_an_index_that_another_process_keeps_locked_hides_no_incident(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing comes from the folders; what has no other source says who is in the way."""
    monkeypatch.setattr("sentinel_agent.store.files._BUSY_SECONDS", 0.01)
    incident_id = save(store)
    with closing(sqlite3.connect(store.data_dir / INDEX, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        second = save(store, START + 1)
        assert [row.id for row in store.list()] == [second, incident_id]
        with pytest.raises(StoreError, match="locked") as caught:
            store.put_limits({("role", "a"): b"1"})
        assert caught.value.hint


def test_limit_records_are_put_all_or_none(store: Store) -> None:
    """The second record is none that SQLite can keep; then the first is not kept either."""
    store.put_limits({("role", "a"): b"before"})
    impossible: Any = ["no bytes"]
    with pytest.raises(StoreError, match="index"):
        store.put_limits({("role", "a"): b"after", ("role", "b"): impossible})
    assert store.limits() == {("role", "a"): b"before"}


def test_replacing_the_index_waits_only_so_long_for_other_processes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process hangs while it holds the lock: the listing goes on without the index."""
    monkeypatch.setattr("sentinel_agent.store.files._LOCK_ATTEMPTS", 2)
    incident_id = save(store)
    with Files().locked(store.data_dir / "index.lock"):
        assert [row.id for row in store.list()] == [incident_id]
        with pytest.raises(StoreError, match="held by another process"):
            store.limits()
    assert store.limits() == {}
