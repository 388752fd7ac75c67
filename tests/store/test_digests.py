"""The digest beside an incident's timeline: a copy that is made again whenever it is of no use, and goes with the incident."""

from __future__ import annotations

import errno
import io
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.profile import packed
from sentinel_agent.store.archive import pack
from sentinel_agent.store.digests import DIGEST_NAME, TIMELINE_NAME
from sentinel_agent.store.store import Store
from tests.api.support import save_spike
from tests.store.helpers import FILES, SETTINGS, START, names, save
from tests.store.test_disk import FailingFiles

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.clock import Clock


def test_sealing_writes_it_and_removing_the_incident_removes_it(store: Store) -> None:
    """It is no artifact and in no archive, and nothing of it stays."""
    saved = save_spike(store)
    folder = store.path(saved)
    assert packed.decode((folder / DIGEST_NAME).read_bytes()).start == START - 15
    assert DIGEST_NAME not in {artifact.name for artifact in store.read(saved).artifacts}
    archive = io.BytesIO()
    pack(folder, archive)
    assert DIGEST_NAME.encode() not in archive.getvalue()
    assert DIGEST_NAME not in names(store.path(save(store, files=FILES)))
    store.delete(saved)
    assert not folder.exists()


@pytest.mark.parametrize("content", [None, b"", b"\0" * 500, "cut", "older"])
def test_it_is_made_again(store: Store, content: bytes | str | None) -> None:
    """One that is missing, empty, damaged or of another version is replaced by one of use."""
    saved = save_spike(store)
    path = store.path(saved) / DIGEST_NAME
    good = path.read_bytes()
    match content:
        case None:
            path.unlink()
        case bytes():
            path.write_bytes(content)
        case "cut":
            path.write_bytes(good[:-10])
        case _:
            path.write_bytes(good.replace(b"digest 1", b"digest 0"))
    assert packed.encode(store.digest(saved)) == good == path.read_bytes()
    assert names(path.parent).count(DIGEST_NAME) == len(
        [name for name in names(path.parent) if name[0] == "."]
    )


@pytest.mark.parametrize("method", ["write", "rename"])
def test_where_it_cannot_be_kept_it_is_made_each_time(tmp_path: Path, fake_clock: Clock, method: str) -> None:
    """A disk that refuses costs time, not the answer; and no half file is left."""
    saved = save_spike(Store(tmp_path / "data", SETTINGS, fake_clock).open())
    folder = tmp_path / "data" / "incidents" / saved
    (folder / DIGEST_NAME).unlink()
    files = FailingFiles(method, errno.ENOSPC)
    assert Store(tmp_path / "data", SETTINGS, fake_clock, files=files).digest(saved).end == START + 5
    assert not [name for name in names(folder) if name.startswith(".")]


def test_without_a_timeline_there_is_none(store: Store) -> None:
    """Which is said as a missing file, as for an incident that is not there."""
    for incident_id in (save(store, files=FILES), "20231114T221320.000Z-0001"):
        with pytest.raises(FileNotFoundError):
            store.digest(incident_id)


def test_a_damaged_timeline_does_not_cost_the_incident(store: Store) -> None:
    """Sealing takes what it is given; who asks later is told."""
    saved = save(store, files={TIMELINE_NAME: b"{"})
    assert [row.id for row in store.list()] == [saved]
    with pytest.raises(Exception, match="speedscope"):
        store.digest(saved)
