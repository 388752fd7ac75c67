"""Pyroscope's push: decoded by protobuf from the service's own description, it is the incident's profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from sentinel_agent.core.event import IncidentSealed, TargetGone
from sentinel_agent.core.model import Artifact
from sentinel_agent.export.base import SendError
from sentinel_exporters.pyroscope import Options, PyroscopeExporter
from tests.export.support import NOW, TARGET
from tests.exporters.support import context, incident, options, serving

if TYPE_CHECKING:
    from pathlib import Path


def push_request() -> Any:
    """The message class, made from the numbers of push/v1/push.proto and types/v1/types.proto."""
    file = descriptor_pb2.FileDescriptorProto(name="push.proto", syntax="proto3")
    shapes = {
        "LabelPair": [("name", 1, "string"), ("value", 2, "string")],
        "RawSample": [("raw_profile", 1, "bytes"), ("ID", 2, "string")],
        "RawProfileSeries": [("labels", 1, "LabelPair"), ("samples", 2, "RawSample")],
        "PushRequest": [("series", 1, "RawProfileSeries")],
    }
    for name, fields in shapes.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            added = message.field.add(name=field, number=number)
            if kind in shapes:
                added.type, added.type_name, added.label = (
                    added.TYPE_MESSAGE,
                    f".{kind}",
                    added.LABEL_REPEATED,
                )
            else:
                added.type = {"string": added.TYPE_STRING, "bytes": added.TYPE_BYTES}[kind]
                added.label = added.LABEL_OPTIONAL
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("PushRequest"))


def sealed(folder: Path) -> IncidentSealed:
    artifacts = (
        Artifact("stacks.pb.gz", "stacks", "pprof", 4, "00"),
        Artifact("cpu.pb.gz", "profile", "pprof", 3, "00"),
        Artifact("tasks.json", "tasks", "json", 2, "00"),
    )
    (folder / "stacks.pb.gz").write_bytes(b"wall")
    (folder / "cpu.pb.gz").write_bytes(b"cpu")
    return IncidentSealed(NOW, incident(artifacts=artifacts), str(folder))


async def test_every_profile_is_a_series(tmp_path: Path) -> None:
    """With its labels in order, the bytes as they are on disk, and an id that is the same at each retry."""
    async with serving() as server:
        exporter = PyroscopeExporter(
            options(Options, url=server.url, tenant="team", labels={"zone": "a", "bad-name": "x"}), context()
        )
        body = exporter.encode("artifacts", [sealed(tmp_path)])
        assert body is not None
        assert await exporter.send("artifacts", body) == "202 Accepted"
        await exporter.send("artifacts", body)
        await exporter.close()
    first, second = server.requests
    assert first.path == "/push.v1.PusherService/Push"
    assert first.headers["content-type"] == "application/proto"
    assert first.headers["x-scope-orgid"] == "team"
    assert first.body == second.body
    stacks, cpu = push_request().FromString(first.body).series
    assert [sample.raw_profile for series in (stacks, cpu) for sample in series.samples] == [b"wall", b"cpu"]
    labels = [(label.name, label.value) for label in cpu.labels]
    assert labels == sorted(labels)
    assert dict(labels) == {
        "__name__": "process_cpu",
        "instance": "host-1",
        "kind": "profile",
        "pyroscope_spy": "sentinel-agent",
        "rule": "cpu-spike",
        "service_name": "gateway",
        "worker": "main",
        "zone": "a",
    }
    assert stacks.samples[0].ID != cpu.samples[0].ID


def test_an_incident_without_a_profile_is_not_pushed() -> None:
    """Nor any other event."""
    exporter = PyroscopeExporter(options(Options, url="http://127.0.0.1:1"), context())
    assert exporter.encode("artifacts", [IncidentSealed(NOW, incident(artifacts=()), "folder")]) is None
    assert exporter.encode("artifacts", [TargetGone(NOW, TARGET, "ended")]) is None


async def test_files_that_are_gone_or_no_files(tmp_path: Path) -> None:
    """Retention was faster, or somebody put a link or a path in their place: this batch is lost, nothing else is read."""
    exporter = PyroscopeExporter(options(Options, url="http://127.0.0.1:1"), context())
    event = sealed(tmp_path)
    (tmp_path / "stacks.pb.gz").unlink()
    body = exporter.encode("artifacts", [event])
    assert body is not None
    with pytest.raises(SendError, match="was it deleted") as raised:
        await exporter.send("artifacts", body)
    assert raised.value.blame == "rejected"
    (tmp_path / "stacks.pb.gz").symlink_to("/etc/hostname")
    with pytest.raises(SendError, match="was it deleted"):
        await exporter.send("artifacts", body)
    crooked = msgspec.structs.replace(
        event.incident, artifacts=(Artifact("../x", "stacks", "pprof", 1, "00"),)
    )
    body = exporter.encode("artifacts", [IncidentSealed(NOW, crooked, str(tmp_path))])
    assert body is not None
    with pytest.raises(SendError, match="is no file name"):
        await exporter.send("artifacts", body)
    await exporter.close()
