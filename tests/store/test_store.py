"""The store as its callers see it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from sentinel_agent.config.settings import StoreSettings
from sentinel_agent.core.model import IncidentRow
from sentinel_agent.errors import NoSuchIncidentError, StoreError
from sentinel_agent.store.folder import UnreadableError, folder_bytes
from sentinel_agent.store.ids import is_id
from sentinel_agent.store.store import Store, default_data_dir
from tests.store.helpers import FILES, SETTINGS, START, incident_of, names, save

if TYPE_CHECKING:
    from sentinel_agent.clock import Clock


def test_the_default_directory_is_that_of_the_xdg_specification() -> None:
    home = Path("/home/x")
    assert default_data_dir({"XDG_STATE_HOME": "/s"}, home) == Path("/s/sentinel-agent")
    for unset in ({}, {"XDG_STATE_HOME": ""}, {"XDG_STATE_HOME": "relative"}):
        assert default_data_dir(unset, home) == Path("/home/x/.local/state/sentinel-agent")


def test_open_makes_a_private_directory(store: Store) -> None:
    assert store.data_dir.stat().st_mode & 0o777 == 0o700


def test_a_saved_incident_is_listed_and_read_as_it_was(store: Store) -> None:
    """The row that `seal` returns is the one that is listed."""
    incident_id = store.new_id(START)
    with store.begin(incident_id) as writer:
        for name, content in FILES.items():
            (writer.folder / name).write_bytes(content)
            writer.add(writer.folder / name, "test", "json")
        assert store.list() == []
        incident = incident_of(incident_id, writer.artifacts)
        row = store.seal(writer, incident)
    assert store.list() == [row]
    assert row == IncidentRow(
        id=incident_id,
        rule="cpu-spike",
        target="gateway/host-a/main",
        time=START,
        value=95.0,
        reason="above_abs",
        pid=4711,
        metric="cpu",
        unit="percent",
        summary="CPU 95.0 % is above 90 %",
        bytes=folder_bytes(store.path(incident_id)),
    )
    assert store.read(incident_id) == incident
    assert store.artifact(incident_id, "stacks.json").read_bytes() == FILES["stacks.json"]


def test_a_unique_beginning_is_enough_to_read_but_not_to_delete(store: Store) -> None:
    one, other = save(store, START), save(store, START + 3600)
    assert store.read(other[:12]).id == other
    with pytest.raises(NoSuchIncidentError, match="2 incidents begin with") as caught:
        store.read("2023")
    assert other in str(caught.value.hint)
    with pytest.raises(NoSuchIncidentError, match="only the beginning"):
        store.delete(other[:-1])
    store.delete(other)
    assert [row.id for row in store.list()] == [one]


def test_an_id_that_is_nearly_right_is_answered_with_the_close_one(store: Store) -> None:
    incident_id = save(store)
    wrong = incident_id[:-1] + ("0" if incident_id[-1] != "0" else "1")
    with pytest.raises(NoSuchIncidentError) as caught:
        store.read(wrong)
    assert caught.value.hint == f"close ids: {incident_id}"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("text", ["", "/", "..", "../incidents", "*", "\0", "\udc80", "x" * 100_000, "2024"])
def test_hostile_ids_find_nothing(store: Store, text: str) -> None:
    save(store)
    for ask in (store.read, store.path, store.delete, store.resolve):
        with pytest.raises(NoSuchIncidentError) as caught:
            ask(text)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/etc/passwd", "link.json", "folder", "a\0b", "nothing.json"]
)
def test_an_artifact_is_a_file_of_its_incident_or_not_there(store: Store, name: str) -> None:
    """Links, folders and paths out of it are not there; the hint says what is."""
    incident_id = save(store)
    folder = store.path(incident_id)
    (folder / "link.json").symlink_to("/etc/hostname")
    (folder / "folder").mkdir()
    with pytest.raises(NoSuchIncidentError) as caught:
        store.artifact(incident_id, name)
    assert caught.value.hint == "it has: stacks.json, profile.pb.gz"
    assert store.artifact(incident_id, "incident.json").parent == folder


def test_begin_refuses_what_is_no_id_and_what_is_taken(store: Store) -> None:
    taken = save(store)
    with pytest.raises(ValueError, match="no incident id"):
        store.begin("../x")
    with pytest.raises(StoreError, match="already"):
        store.begin(taken)


def test_free_ids_are_valid_and_not_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if chance gives the same number again."""
    monkeypatch.setattr("secrets.randbits", lambda _: 7)
    ids = [save(store) for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(map(is_id, ids))


def test_retention_holds_after_each_seal_and_at_open(data_dir: Path, fake_clock: Clock) -> None:
    """By count, then, with other settings, by age and by bytes; the oldest go."""
    store = Store(data_dir, StoreSettings(min_free_bytes=0, max_incidents=3), fake_clock).open()
    ids = [save(store, START - 100 + number) for number in range(5)]
    assert [row.id for row in store.list()] == ids[:1:-1]
    assert names(data_dir / "incidents") == ids[2:]
    young = StoreSettings(min_free_bytes=0, max_age=97.5)
    assert [row.id for row in Store(data_dir, young, fake_clock).open().list()] == ids[:2:-1]
    small = StoreSettings(min_free_bytes=0, max_bytes=1024**2)
    store = Store(data_dir, small, fake_clock).open()
    big = save(store, START, files={"a.json": bytes(1024**2 - 3000)})
    assert [row.id for row in store.list()] == [big]
    assert store.statistics().bytes <= 1024**2


def test_reading_without_open_removes_and_makes_nothing(
    data_dir: Path, fake_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A command with other settings than the agent's must not delete what the agent keeps."""
    reader = Store(data_dir, StoreSettings(max_incidents=1), fake_clock)
    assert reader.list() == []
    assert reader.unreadable() == ()
    assert reader.statistics() == (0, 0, 0, 0, None)
    assert not data_dir.exists()
    assert not caplog.records
    writer = Store(data_dir, SETTINGS, fake_clock).open()
    ids = [save(writer, START + number) for number in range(3)]
    with writer.begin(writer.new_id(START)) as unfinished:
        assert [row.id for row in reader.list()] == ids[::-1]
        assert unfinished.folder.exists()


def test_an_open_writer_of_a_living_process_survives_another_open(store: Store, fake_clock: Clock) -> None:
    with store.begin(store.new_id(START)) as writer:
        Store(store.data_dir, SETTINGS, fake_clock).open()
        store.seal(writer, incident_of(writer.id))
    assert [row.id for row in store.list()] == [writer.id]


def test_a_data_directory_removed_while_running_is_made_again(store: Store) -> None:
    """The incident being written is lost and counted; the next one is saved; both are said."""
    save(store)
    with store.begin(store.new_id(START + 1)) as writer:
        shutil.rmtree(store.data_dir)
        with pytest.raises(StoreError, match="not there"):
            store.seal(writer, incident_of(writer.id))
    assert store.list() == []
    assert store.statistics().dropped == 1
    incident_id = save(store, START + 2)
    assert [row.id for row in store.list()] == [incident_id]
    assert "was removed and is made again" in str(store.statistics().last_error)


def test_statistics_count_what_is_stored(store: Store) -> None:
    ids = [save(store, START + number) for number in range(2)]
    (store.path(ids[0]) / "incident.json").write_bytes(b"{")
    (store.data_dir / "index.sqlite3").unlink()
    statistics = store.statistics()
    assert statistics == (1, folder_bytes(store.path(ids[1])), 1, 0, None)
    with pytest.raises(UnreadableError):
        store.read(ids[0])


def test_rows_are_the_json_that_listings_promise(store: Store) -> None:
    """Section 4.1 of the design: these keys are relied on by others."""
    save(store)
    (row,) = msgspec.json.decode(msgspec.json.encode(store.list()))
    assert {"id", "rule", "target", "time", "value", "reason"} <= set(row)


def test_an_incident_removed_while_it_is_asked_for_is_no_such_incident(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process's retention comes between finding the folder and using it."""
    incident_id = save(store)
    resolve = store.resolve

    def resolve_then_remove(text: str) -> str:
        found = resolve(text)
        shutil.rmtree(store.data_dir / "incidents" / found, ignore_errors=True)
        return found

    monkeypatch.setattr(store, "resolve", resolve_then_remove)
    with pytest.raises(NoSuchIncidentError, match="removed just now"):
        store.read(incident_id)
    monkeypatch.setattr(store, "resolve", lambda text: text)
    with pytest.raises(NoSuchIncidentError, match="removed just now"):
        store.delete(incident_id)
