"""Disks that are full, read-only or refuse: said in words, nothing saved is lost, nothing half is left."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.config.settings import StoreSettings
from sentinel_agent.errors import StoreError
from sentinel_agent.store.files import Files
from sentinel_agent.store.store import Store
from tests.store.helpers import SETTINGS, START, incident_of, names, save

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

    from sentinel_agent.clock import Clock


class FailingFiles(Files):
    """Fails in one method with one errno, on every path or those of one name, as long as `armed`."""

    def __init__(self, method: str, number: int, name: str = "") -> None:
        self.method, self.number, self.name, self.armed = method, number, name, True

    def _check(self, method: str, path: Path) -> None:
        if self.armed and method == self.method and self.name in ("", path.name):
            raise OSError(self.number, os.strerror(self.number), str(path))

    def make_folder(self, path: Path) -> None:
        self._check("make_folder", path)
        super().make_folder(path)

    def ensure_folder(self, path: Path) -> None:
        self._check("ensure_folder", path)
        super().ensure_folder(path)

    def write(self, path: Path, data: bytes) -> None:
        super().write(path, data[:10])
        self._check("write", path)
        path.unlink()
        super().write(path, data)

    def fsync(self, path: Path) -> None:
        self._check("fsync", path)
        super().fsync(path)

    def hold(self, folder: Path) -> int:
        self._check("hold", folder)
        return super().hold(folder)

    def rename(self, source: Path, destination: Path) -> None:
        self._check("rename", source)
        super().rename(source, destination)

    def remove(self, path: Path) -> None:
        self._check("remove", path)
        super().remove(path)

    def free_bytes(self, path: Path) -> int:
        self._check("free_bytes", path)
        return super().free_bytes(path)

    def connect(self, path: Path, *, create: bool) -> sqlite3.Connection:
        self._check("connect", path)
        return super().connect(path, create=create)


@pytest.mark.parametrize("method", ["make_folder", "hold", "write", "fsync", "rename", "free_bytes"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_failure_at_any_step_discards_the_incident_whole(
    store: Store, fake_clock: Clock, method: str, number: int
) -> None:
    """It is counted with its reason; what was saved before stays; the next one is saved when the disk is well."""
    kept = save(store)
    files = FailingFiles(method, number)
    ailing = Store(store.data_dir, SETTINGS, fake_clock, files=files)
    with pytest.raises(StoreError) as caught:
        save(ailing, START + 1)
    statistics = ailing.statistics()
    assert statistics.dropped == 1
    assert statistics.last_error == str(caught.value)
    assert names(store.data_dir / "incidents") == [kept]
    if number != errno.EIO:
        assert caught.value.hint
    files.armed = False
    later = save(ailing, START + 2)
    assert [row.id for row in ailing.list()] == [later, kept]


def test_a_saved_incident_that_cannot_be_synced_is_still_saved(
    store: Store, fake_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """After the rename it is whole and listed; that a power cut may undo it is said."""
    ailing = Store(store.data_dir, SETTINGS, fake_clock, files=FailingFiles("fsync", errno.EIO, "incidents"))
    incident_id = save(ailing)
    assert [row.id for row in store.list()] == [incident_id]
    assert "power cut" in caplog.text


def test_what_cannot_be_removed_is_said_and_tried_again_at_the_next_start(
    store: Store, fake_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A discarded incident, then its folder at an open, each with a failing disk; at last the disk is well."""
    files = FailingFiles("remove", errno.EIO)
    ailing = Store(store.data_dir, SETTINGS, fake_clock, files=files, is_alive=lambda _: False)
    with ailing.begin(ailing.new_id(START)) as writer:
        pass
    assert "could not be removed" in caplog.text
    caplog.clear()
    ailing.open()
    assert writer.folder.name in caplog.text
    files.armed = False
    ailing.open()
    assert names(store.data_dir / "incidents") == []


def test_an_index_that_fails_after_the_rename_loses_no_incident(store: Store, fake_clock: Clock) -> None:
    files = FailingFiles("connect", errno.EIO)
    ailing = Store(store.data_dir, SETTINGS, fake_clock, files=files)
    incident_id = save(ailing)
    assert [row.id for row in ailing.list()] == [incident_id]
    assert ailing.statistics().dropped == 0
    with pytest.raises(StoreError):
        ailing.limits()
    files.armed = False
    assert [row.id for row in ailing.list()] == [incident_id]


def test_retention_that_fails_does_not_make_a_saved_incident_look_lost(
    data_dir: Path, fake_clock: Clock
) -> None:
    files = FailingFiles("remove", errno.EIO)
    files.armed = False
    store = Store(data_dir, StoreSettings(min_free_bytes=0, max_incidents=1), fake_clock, files=files).open()
    save(store, START)
    files.armed = True
    incident_id = save(store, START + 1)
    assert [row.id for row in store.list()] == [incident_id]
    assert "removing old incidents" in str(store.statistics().last_error)
    assert store.statistics().dropped == 0


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, "read-only"), (errno.EACCES, "not permitted"), (errno.EPERM, "not permitted")],
)
def test_open_says_why_a_directory_cannot_be_used(
    data_dir: Path, fake_clock: Clock, number: int, words: str
) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        Store(data_dir, SETTINGS, fake_clock, files=FailingFiles("ensure_folder", number)).open()
    assert "--data-dir" in str(caught.value.hint)


def test_a_full_disk_does_not_keep_the_agent_from_starting(data_dir: Path, fake_clock: Clock) -> None:
    files = FailingFiles("ensure_folder", errno.ENOSPC)
    store = Store(data_dir, SETTINGS, fake_clock, files=files).open()
    assert "no space left" in str(store.statistics().last_error)
    with pytest.raises(StoreError, match="no space left"):
        store.begin(store.new_id(START))
    files.armed = False
    assert [row.id for row in store.list()] == []
    save(store)
    assert len(store.list()) == 1


@pytest.mark.parametrize("place", ["", "incidents"])
def test_a_file_in_the_place_of_a_folder_is_said_and_kept(
    data_dir: Path, fake_clock: Clock, place: str
) -> None:
    path = data_dir / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(StoreError, match="something else is in the place") as caught:
        Store(data_dir, SETTINGS, fake_clock).open()
    assert str(path) in str(caught.value)
    with pytest.raises(StoreError):
        Store(data_dir, SETTINGS, fake_clock).list()
    assert path.read_text() == "mine"


def test_nearly_full_is_refused_before_anything_is_written(data_dir: Path, fake_clock: Clock) -> None:
    store = Store(data_dir, StoreSettings(min_free_bytes=10**18), fake_clock).open()
    with pytest.raises(StoreError, match=r"GiB free in .* asks for 931322574\.6 GiB"):
        store.begin(store.new_id(START))
    assert names(data_dir / "incidents") == []
    assert store.statistics().dropped == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(disk: Path) -> Path:
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (65536, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017 - the end is what is wanted
    return path


def test_a_really_full_disk_stops_writing_and_nothing_else(small_disk: Path, fake_clock: Clock) -> None:
    """It fills up amid an incident: that one is discarded and counted, the listing works, room heals it."""
    store = Store(small_disk / "data", SETTINGS, fake_clock).open()
    kept = save(store)
    with store.begin(store.new_id(START + 1)) as writer:
        (writer.folder / "series.json").write_bytes(b"[]")
        writer.add(writer.folder / "series.json", "series", "json")
        filler = fill(small_disk)
        incident = incident_of(writer.id, writer.artifacts, summary="x" * 5000)
        with pytest.raises(StoreError, match="no space left") as caught:
            store.seal(writer, incident)
    assert caught.value.hint
    filler = fill(small_disk)
    assert names(small_disk / "data" / "incidents") == [kept]
    again = Store(small_disk / "data", SETTINGS, fake_clock).open()
    for each in (store, again):
        assert [row.id for row in each.list()] == [kept]
        assert each.read(kept).id == kept
    assert store.statistics().dropped == 1
    filler.unlink()
    later = save(store, START + 2)
    assert [row.id for row in again.list()] == [later, kept]


def test_a_really_read_only_disk_can_be_read_but_not_opened(small_disk: Path, fake_clock: Clock) -> None:
    data_dir = small_disk / "data"
    kept = save(Store(data_dir, SETTINGS, fake_clock).open())
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    store = Store(data_dir, SETTINGS, fake_clock)
    attempts: list[Any] = [
        store.open,
        lambda: store.begin(store.new_id(START + 1)),
        lambda: store.delete(kept),
        lambda: store.put_limits({("role", "rule"): b"x"}),
    ]
    for attempt in attempts:
        with pytest.raises(StoreError, match="read-only") as caught:
            attempt()
        assert caught.value.hint
    assert [row.id for row in store.list()] == [kept]
    assert store.read(kept).id == kept
