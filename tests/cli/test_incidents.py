"""`incidents`: what was saved is listed, read and exported, whatever its names contain and however damaged it is."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.config.settings import StoreSettings
from sentinel_agent.store.store import Store
from sentinel_agent.testing import FakeClock
from tests.cli.support import HOSTILE, files, stored
from tests.profile.test_pprof import Profile
from tests.store.helpers import START

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.support import CommandLine


def test_the_listing_is_one_document_with_the_promised_keys_newest_first(
    sentinel: CommandLine, data: Path
) -> None:
    older, newer = stored(data, time=START), stored(data, time=START + 60)
    rows = sentinel("incidents", "list", "--json").document
    assert [row["id"] for row in rows] == [newer, older]
    assert {"id", "rule", "target", "time", "value", "reason"} <= rows[0].keys()
    assert rows[0]["summary"] == f"CPU 95%: {HOSTILE}"  # escaped in JSON, not lost
    text = sentinel("incidents", "list").out
    assert text.index(newer) < text.index(older)
    assert "[red]markup[/red]" in text


def test_an_empty_listing_says_where_it_looked(sentinel: CommandLine, data: Path) -> None:
    assert sentinel("incidents", "list", "--json").document == []
    assert str(data) in sentinel("incidents", "list").out


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--rule", "cpu-spike"), 2),
        (("--rule", "other"), 0),
        (("--target", "gateway"), 2),
        (("--target", "gate"), 0),
        (("--since", str(START + 30)), 1),
        (("--until", str(START + 30)), 1),
        (("--limit", "1"), 1),
    ],
)
def test_a_listing_can_be_narrowed(
    words: tuple[str, ...], count: int, sentinel: CommandLine, data: Path
) -> None:
    stored(data, time=START)
    stored(data, time=START + 60)
    assert len(sentinel("incidents", "list", *words, "--json").document) == count


def test_an_incident_reads_as_answer_first_then_evidence(sentinel: CommandLine, data: Path) -> None:
    """The start of an id is enough; hostile names are there, without what they would do to a terminal."""
    incident = stored(data)
    text = sentinel("incidents", "show", incident[:-2]).out
    headings = ["Before and during", "Where the CPU went", "What the threads were doing", "The process"]
    places = [text.index(heading) for heading in (*headings, "Captures", "Files")]
    assert places == sorted(places)
    assert text.index("hottest: hot_evil") < places[0]
    assert "[red]markup[/red]" in text
    assert sentinel("incidents", "show", incident, "--json").document["id"] == incident


def test_names_of_100_kilobytes_are_cut(sentinel: CommandLine, data: Path) -> None:
    stacks = json.loads(files()["stacks.json"])
    stacks["threads"][0]["frames"][0]["function"] = "x" * 100_000
    content = files() | {"stacks.json": json.dumps(stacks).encode()}
    incident = stored(data, content, summary="y" * 100_000)
    assert len(sentinel("incidents", "show", incident).out) < 20_000
    assert len(sentinel("incidents", "list").out) < 20_000


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _nested(_: bytes) -> bytes:
    return b"[" * 100_000


def _other(_: bytes) -> bytes:
    return b'{"start": "soon", "threads": 7, "memory": [], "files": null}'


@pytest.mark.parametrize("damage", [_half, _nested, _other, lambda _: b"", lambda _: b"\xff\xfe\x00"])
@pytest.mark.parametrize("name", ["series.json", "stacks.json", "process.json", "profile.pb.gz"])
def test_a_damaged_file_of_an_incident_is_said_and_hides_no_other(
    name: str, damage: Callable[[bytes], bytes], sentinel: CommandLine, data: Path
) -> None:
    """After sealing the file was cut or overwritten; every other part is shown as it is."""
    incident = stored(data)
    path = data / "incidents" / incident / name
    path.write_bytes(damage(path.read_bytes()))
    text = sentinel("incidents", "show", incident).out
    assert text.count("cannot be read: ") == 1
    for heading in ("Before and during", "Where the CPU went", "What the threads were doing", "The process"):
        assert heading in text
    sentinel("incidents", "list")


@pytest.mark.parametrize("name", ["series.json", "stacks.json", "process.json", "profile.pb.gz"])
def test_a_file_that_is_gone_is_said(name: str, sentinel: CommandLine, data: Path) -> None:
    incident = stored(data)
    (data / "incidents" / incident / name).unlink()
    assert "cannot be read: " in sentinel("incidents", "show", incident).out


def test_a_document_with_impossible_times_is_still_shown(sentinel: CommandLine, data: Path) -> None:
    incident = stored(data, sealed_time=-1e300)
    path = data / "incidents" / incident / "incident.json"
    document = json.loads(path.read_text())
    document["time"] = 1e300
    path.write_text(json.dumps(document))
    (data / "index.sqlite3").unlink()
    assert "1e+300 s after 1970" in sentinel("incidents", "show", incident).out
    assert incident in sentinel("incidents", "list").out


def test_an_incident_whose_document_is_damaged_is_listed_as_unreadable(
    sentinel: CommandLine, data: Path
) -> None:
    """It hides no other, says what it is, and can be deleted."""
    good, bad = stored(data), stored(data, time=START + 60)
    (data / "incidents" / bad / "incident.json").write_text("{")
    (data / "index.sqlite3").unlink()
    done = sentinel("incidents", "list")
    assert good in done.out
    assert f"Not readable: {bad}" in done.err
    assert "incident.json" in sentinel("incidents", "show", bad, check=1).err
    sentinel("incidents", "delete", bad)
    assert [row["id"] for row in sentinel("incidents", "list", "--json").document] == [good]


@pytest.mark.parametrize(
    "text", ["../../etc/passwd", "..", ".", "/", "", "nonsense", "2023", "\x1b[31m", "%00", "x" * 100_000]
)
@pytest.mark.parametrize("verb", ["show", "export", "delete"])
def test_what_is_no_id_is_no_such_incident(verb: str, text: str, sentinel: CommandLine, data: Path) -> None:
    """No path out of the store, nothing deleted, nothing written; an ambiguous beginning names what it could be."""
    stored(data, time=START)
    stored(data, time=START + 60)
    done = sentinel("incidents", verb, text, check=3)
    assert len(done.err) < 2000
    assert len(sentinel("incidents", "list", "--json").document) == 2


def test_deleting_asks_for_the_whole_id_and_goes_on_after_one_that_is_missing(
    sentinel: CommandLine, data: Path
) -> None:
    one, two = stored(data, time=START), stored(data, time=START + 60)
    assert f"did you mean {one}?" in sentinel("incidents", "delete", one[:-1], check=3).err
    sentinel("incidents", "delete", "nonsense", two, check=3)
    assert [row["id"] for row in sentinel("incidents", "list", "--json").document] == [one]


def test_every_export_opens_in_an_independent_reader(
    sentinel: CommandLine, data: Path, tmp_path: Path
) -> None:
    """pprof by Google's protobuf, speedscope by its fields, collapsed and SVG as text, the zip by zipfile."""
    incident = stored(data)

    def export(form: str) -> bytes:
        path = tmp_path / form
        sentinel("incidents", "export", incident, "--format", form, "-o", str(path))
        return path.read_bytes()

    profile = Profile()
    profile.ParseFromString(gzip.decompress(export("pprof")))
    assert sum(sample.value[0] for sample in profile.sample) == 2
    speedscope = json.loads(export("speedscope"))
    assert speedscope["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert any("hot_evil" in frame["name"] for frame in speedscope["shared"]["frames"])
    (line,) = export("collapsed").decode().splitlines()
    assert "main" in line
    assert line.endswith(" 2")
    svg = export("svg").decode()
    assert svg.lstrip().startswith(("<svg", "<?xml"))
    assert "\x1b" not in svg
    with zipfile.ZipFile(io.BytesIO(export("zip"))) as archive:
        assert archive.testzip() is None
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    assert {"incident.json", *files()} <= names


def test_an_export_without_a_name_is_written_here_and_leaves_no_part(
    sentinel: CommandLine, data: Path, tmp_path: Path
) -> None:
    incident = stored(data)
    sentinel("incidents", "export", incident)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["data", f"{incident}.pb.gz"])


def test_an_export_that_cannot_be_made_says_why_and_leaves_nothing(
    sentinel: CommandLine, data: Path, tmp_path: Path
) -> None:
    """No profile: the captures and the way out are named; a damaged one; a folder that is not there."""
    bare = stored(data, {"series.json": b"{}"})
    done = sentinel("incidents", "export", bare, check=3)
    assert "profile failed" in done.err
    assert "--format zip" in done.err
    broken = stored(data, time=START + 60)
    path = data / "incidents" / broken / "profile.pb.gz"
    path.write_bytes(path.read_bytes()[:20])
    assert "pprof" in sentinel("incidents", "export", broken, check=1).err
    path.unlink()
    assert "profile.pb.gz" in sentinel("incidents", "export", broken, check=1).err
    nowhere = str(tmp_path / "missing" / "file")
    whole = stored(data, time=START + 120)
    assert "cannot be written" in sentinel("incidents", "export", whole, "-o", nowhere, check=2).err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


READING = (("incidents", "list"), ("incidents", "show", "20231114"), ("rules", "list"), ("config", "print"))


@pytest.mark.parametrize("words", READING)
def test_reading_makes_no_data_directory(words: tuple[str, ...], sentinel: CommandLine, data: Path) -> None:
    sentinel(*words, check=3 if "show" in words else 0)
    assert not data.exists()


@pytest.mark.parametrize("words", [("incidents", "list"), ("rules", "list"), ("doctor",)])
def test_a_file_in_the_place_of_the_data_directory_is_said(
    words: tuple[str, ...], sentinel: CommandLine, data: Path
) -> None:
    data.write_text("not a folder")
    done = sentinel(*words, check=None)
    assert done.code in {0, 1}
    assert data.read_text() == "not a folder"
    if words == ("doctor",):
        assert f"{data} is no folder" in done.out


def test_what_writes_refuses_a_file_in_the_place_of_the_data_directory(
    sentinel: CommandLine, data: Path
) -> None:
    data.write_text("not a folder")
    done = sentinel("attach", "--match", "nothing-like-this", "--for", "100ms", check=1)
    assert str(data) in done.err
    done = sentinel("run", "--data-dir", str(data), "--", "true", check=1, place=False)
    assert str(data) in done.err
    done = sentinel("dump", str(os.getppid()), "--any", "--capture", "process", check=1)
    assert str(data) in done.err


def test_a_data_directory_that_cannot_be_written_is_read_all_the_same(
    sentinel: CommandLine, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a read-only mount: listing and showing work from the folders, deleting says why it does not."""
    incident = stored(data)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(data))

    for name in ("ensure_folder", "make_folder", "write", "rename", "remove", "connect", "locked", "fsync"):
        monkeypatch.setattr(f"sentinel_agent.store.files.Files.{name}", refuse)
    assert [row["id"] for row in sentinel("incidents", "list", "--json").document] == [incident]
    assert "Where the CPU went" in sentinel("incidents", "show", incident).out
    assert "ead-only" in sentinel("incidents", "delete", incident, check=1).err
    assert "ead-only" in sentinel("attach", "--match", "x", "--for", "100ms", check=1).err
    monkeypatch.undo()
    assert Store(data, StoreSettings(), FakeClock()).read(incident).id == incident
