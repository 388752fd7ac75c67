"""Writing one incident: what is refused, what is left of it; reading a document that anybody may have written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.model import TargetId
from sentinel_agent.errors import StoreError
from sentinel_agent.store.files import Files
from sentinel_agent.store.folder import (
    MAX_DOCUMENT_BYTES,
    IncidentWriter,
    UnreadableError,
    encode_incident,
    read_incident,
    remove_leftovers,
)
from tests.store.helpers import incident_of, names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ID = "20231114T221320.000Z-0001"
OWNER = TargetId(99, 12345)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[IncidentWriter]:
    """A writer with room for 10 kB."""
    with IncidentWriter(tmp_path, ID, OWNER, Files(), 10_000) as opened:
        yield opened


def put(writer: IncidentWriter, name: str, content: bytes = b"{}") -> Path:
    path = writer.folder / name
    path.write_bytes(content)
    return path


def test_a_sealed_folder_holds_the_document_and_the_added_files_and_nothing_else(
    writer: IncidentWriter, tmp_path: Path
) -> None:
    """A capture's leftover is removed; sizes and sums are those of the files; only the owner may look."""
    artifact = writer.add(put(writer, "series.json", b"[1]"), "series", "json")
    put(writer, "py-spy.tmp")
    (writer.folder / "scratch").mkdir()
    put(writer, "scratch/x")
    size = writer.seal(incident_of(ID, (artifact,)))
    folder = tmp_path / ID
    assert names(tmp_path) == [ID]
    assert names(folder) == ["incident.json", "series.json"]
    assert folder.stat().st_mode & 0o777 == 0o700
    document = json.loads((folder / "incident.json").read_bytes())
    assert document["artifacts"] == [
        {
            "name": "series.json",
            "kind": "series",
            "format": "json",
            "bytes": 3,
            "sha256": hashlib.sha256(b"[1]").hexdigest(),
        }
    ]
    assert size == sum(path.stat().st_size for path in folder.iterdir())


def test_what_is_not_sealed_leaves_nothing(tmp_path: Path) -> None:
    with IncidentWriter(tmp_path, ID, OWNER, Files(), 10_000) as writer:
        put(writer, "series.json")
    assert not names(tmp_path)


def link(writer: IncidentWriter) -> Path:
    path = writer.folder / "link.json"
    path.symlink_to("/etc/hostname")
    return path


def pipe(writer: IncidentWriter) -> Path:
    path = writer.folder / "pipe.json"
    os.mkfifo(path)
    return path


def elsewhere(writer: IncidentWriter) -> Path:
    path = writer.folder.parent / "outside.json"
    path.write_bytes(b"{}")
    return path


@pytest.mark.parametrize(
    "make",
    [
        link,
        pipe,
        elsewhere,
        lambda writer: put(writer, ".hidden"),
        lambda writer: put(writer, "incident.json"),
        lambda writer: put(writer, "with space"),
        lambda writer: put(writer, "big.json", bytes(10_001)),
        lambda writer: writer.folder / ".." / "x.json",
        lambda writer: writer.folder / "missing.json",
    ],
)
def test_what_cannot_be_an_artifact_is_refused_and_the_incident_lives_on(
    writer: IncidentWriter, tmp_path: Path, make: Any
) -> None:
    """Links, pipes, files elsewhere, hidden or reserved names, over-size and missing files."""
    with pytest.raises(StoreError):
        writer.add(make(writer), "test", "json")
    writer.seal(incident_of(ID))
    assert names(tmp_path / ID) == ["incident.json"]


def test_a_name_is_given_once(writer: IncidentWriter) -> None:
    path = put(writer, "a.json")
    writer.add(path, "test", "json")
    with pytest.raises(StoreError, match="already"):
        writer.add(path, "test", "json")


def test_all_artifacts_together_are_bounded(writer: IncidentWriter) -> None:
    writer.add(put(writer, "a.json", bytes(6000)), "test", "json")
    with pytest.raises(StoreError, match="left for this incident"):
        writer.add(put(writer, "b.json", bytes(6000)), "test", "json")


def test_a_document_that_no_longer_fits_discards_the_incident(writer: IncidentWriter, tmp_path: Path) -> None:
    artifact = writer.add(put(writer, "a.json", bytes(9_900)), "test", "json")
    with pytest.raises(StoreError, match="too large"):
        writer.seal(incident_of(ID, (artifact,)))
    assert not names(tmp_path)


def test_an_artifact_that_changed_after_it_was_added_discards_the_incident(
    writer: IncidentWriter, tmp_path: Path
) -> None:
    path = put(writer, "a.json")
    artifact = writer.add(path, "test", "json")
    path.write_bytes(b"{} and more")
    with pytest.raises(StoreError, match="changed"):
        writer.seal(incident_of(ID, (artifact,)))
    assert not names(tmp_path)


def test_a_document_about_something_else_is_a_mistake_of_the_caller(writer: IncidentWriter) -> None:
    artifact = writer.add(put(writer, "a.json"), "test", "json")
    with pytest.raises(ValueError, match="does not match"):
        writer.seal(incident_of(ID))
    with pytest.raises(ValueError, match="does not match"):
        writer.seal(incident_of(ID[:-1] + "2", (artifact,)))


def test_a_writer_is_sealed_once(writer: IncidentWriter, tmp_path: Path) -> None:
    """And discarding it afterwards removes nothing."""
    writer.seal(incident_of(ID))
    with pytest.raises(ValueError, match="already"):
        writer.seal(incident_of(ID))
    writer.discard()
    assert read_incident(tmp_path / ID).id == ID


def test_an_id_that_another_process_sealed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    first = IncidentWriter(tmp_path, ID, OWNER, Files(), 10_000)
    second = IncidentWriter(tmp_path, ID, TargetId(100, 1), Files(), 10_000)
    first.seal(incident_of(ID, rule="first"))
    with pytest.raises(StoreError):
        second.seal(incident_of(ID, rule="second"))
    assert names(tmp_path) == [ID]
    assert read_incident(tmp_path / ID).rule == "first"


def test_bytes_that_are_no_utf8_are_kept_readable(writer: IncidentWriter, tmp_path: Path) -> None:
    """A command line of any bytes, decoded with surrogateescape, does not lose the incident."""
    summary = os.fsdecode(b"caf\xe9 in /proc/1/cmdline")
    writer.seal(incident_of(ID, summary=summary))
    assert read_incident(tmp_path / ID).summary == "caf\\udce9 in /proc/1/cmdline"


@given(st.text(max_size=50), st.floats(allow_nan=False, allow_infinity=False) | st.none())
def test_a_document_reads_back_as_it_was_written(text: str, value: float | None) -> None:
    incident = incident_of(ID, summary=text, value=value)
    assert msgspec.json.decode(encode_incident(incident), type=type(incident)) == incident


GOOD = json.loads(encode_incident(incident_of(ID)))


def changed(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (bytes(range(256)), "incident.json"),
        (b"\xff\xfe{}", "incident.json"),
        (b"[1, 2]", "Expected `object`"),
        (b"{}", "schema_version"),
        (encode_incident(incident_of(ID))[:-100], "truncated"),
        (b" " * (MAX_DOCUMENT_BYTES + 1), "larger than"),
        (b'{"a":' + b"[" * 1_000_000, "recursion"),
        (changed(schema_version=2), "schema version 2; expected 1"),
        (changed(schema_version=10**400), "incident.json"),
        (changed(schema_version="1"), "schema_version"),
        (changed(id="20231114T221320.000Z-0002"), "another incident"),
        (changed(id="../../etc"), "another incident"),
        (changed(time="yesterday"), "time"),
        (changed(target={**GOOD["target"], "pid": 2**63}), "process id"),
        (
            changed(
                artifacts=[{"name": "../../x", "kind": "k", "format": "json", "bytes": 1, "sha256": "0"}]
            ),
            "no name of an artifact",
        ),
    ],
)
def test_a_hostile_document_is_unreadable_and_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    folder = tmp_path / ID
    folder.mkdir()
    (folder / "incident.json").write_bytes(content)
    with pytest.raises(UnreadableError, match=reason):
        read_incident(folder)


@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_no_content_does_anything_but_be_unreadable(content: bytes) -> None:
    """The decoding half of `read_incident` has no other way out for what is no incident."""
    import tempfile  # noqa: PLC0415 - hypothesis cannot reset tmp_path between examples
    from pathlib import Path  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / ID
        folder.mkdir()
        (folder / "incident.json").write_bytes(content)
        with pytest.raises(UnreadableError):
            read_incident(folder)


def test_a_document_that_is_a_link_or_a_pipe_is_unreadable(tmp_path: Path) -> None:
    """Neither followed nor waited for."""
    folder = tmp_path / ID
    folder.mkdir()
    outside = tmp_path / "outside.json"
    outside.write_bytes(encode_incident(incident_of(ID)))
    (folder / "incident.json").symlink_to(outside)
    with pytest.raises(UnreadableError):
        read_incident(folder)
    (folder / "incident.json").unlink()
    os.mkfifo(folder / "incident.json")
    with pytest.raises(UnreadableError, match="not a regular file"):
        read_incident(folder)


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    """The living: process 10 by its id, and one in another pid namespace by the lock that it holds."""
    for name in (
        f".tmp-{ID}-10-1",
        f".tmp-{ID}-10-2",
        f".tmp-{ID}-11-1",
        f".trash-{ID}-11-1",
        "notes",
        ".tmp-x",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x")
    unseen = IncidentWriter(tmp_path, ID, TargetId(12, 1), Files(), 10_000)
    removed = remove_leftovers(tmp_path, Files(), lambda owner: owner == TargetId(10, 2))
    left = names(tmp_path)
    unseen.discard()
    assert removed == 3
    assert left == sorted([".tmp-x", unseen.folder.name, f".tmp-{ID}-10-2", "notes"])


def test_without_locks_the_process_id_alone_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system that knows no flock."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with IncidentWriter(tmp_path, ID, OWNER, Files(), 10_000):
        assert remove_leftovers(tmp_path, Files(), lambda owner: owner == OWNER) == 0
        assert remove_leftovers(tmp_path, Files(), lambda _: False) == 1
