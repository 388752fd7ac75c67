"""An incident as one zip file."""

from __future__ import annotations

import io
import os
import zipfile
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.errors import StoreError
from sentinel_agent.store.archive import pack
from tests.store.helpers import FILES, save

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.store.store import Store


def packed(folder: Path) -> bytes:
    out = io.BytesIO()
    pack(folder, out)
    return out.getvalue()


def test_an_archive_holds_the_incident_under_its_id(store: Store, tmp_path: Path) -> None:
    """Python's zipfile extracts the same files; what lies beside the artifacts is not in it."""
    folder = store.path(save(store))
    (folder / "stranger.txt").write_bytes(b"not an artifact")
    with zipfile.ZipFile(io.BytesIO(packed(folder))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            f"{folder.name}/{name}" for name in ("incident.json", "profile.pb.gz", "stacks.json")
        ]
        archive.extractall(tmp_path / "out")
    for name, content in FILES.items():
        assert (tmp_path / "out" / folder.name / name).read_bytes() == content


def test_the_same_incident_gives_the_same_bytes(store: Store) -> None:
    """Whatever the files' times and modes."""
    folder = store.path(save(store))
    first = packed(folder)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o644)
    assert packed(folder) == first


def changed(path: Path) -> None:
    path.write_bytes(b"X" * len(FILES["stacks.json"]))


def longer(path: Path) -> None:
    path.write_bytes(FILES["stacks.json"] + b" ")


def linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("spoil", [changed, longer, linked, os.unlink])
def test_an_artifact_that_is_not_as_it_was_saved_is_refused(store: Store, spoil: object) -> None:
    folder = store.path(save(store))
    assert callable(spoil)
    spoil(folder / "stacks.json")
    with pytest.raises(StoreError, match=r"stacks\.json"):
        packed(folder)


def test_an_incident_that_is_gone_is_said(store: Store) -> None:
    with pytest.raises(StoreError, match="not there"):
        packed(store.data_dir / "incidents" / "20231114T221320.000Z-0001")
