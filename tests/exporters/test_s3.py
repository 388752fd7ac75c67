"""Object storage: against a server of Amazon's S3 from PyPI (moto), read back with another client's eyes."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import obstore
import pytest
from obstore.store import S3Store

from sentinel_agent.clock import SystemClock
from sentinel_agent.core.event import IncidentSealed
from sentinel_agent.core.model import Artifact
from sentinel_agent.errors import OperatorError
from sentinel_agent.export.base import SendError
from sentinel_exporters.s3 import Options, S3Exporter
from tests.export.support import NOW
from tests.exporters.support import context, free_port, incident, options, oracle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLOCK = SystemClock()
KEYS = {"access_key": "key", "secret_key": "secret", "region": "us-east-1"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [oracle(), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = CLOCK.monotonic() + 60
        while True:
            try:
                make = urllib.request.Request(f"{url}/bucket", method="PUT")
                urllib.request.urlopen(make, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "the S3 server has ended"
                assert CLOCK.monotonic() < end, "the S3 server is not ready"
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def made(url: str, bucket: str = "s3://bucket/agents/one", **changes: Any) -> S3Exporter:
    return S3Exporter(options(Options, url=bucket, endpoint=url, **{**KEYS, **changes}), context())


def bucket(url: str) -> dict[str, bytes]:
    """Every object of the bucket."""
    store = S3Store(
        "bucket",
        endpoint=url,
        access_key_id="k",
        secret_access_key="s",
        region="us-east-1",
        client_options={"allow_http": True},
    )
    found = [entry["path"] for batch in obstore.list(store) for entry in batch]
    return {path: bytes(obstore.get(store, path).bytes()) for path in found}


def sealed(folder: Path, number: int) -> IncidentSealed:
    (folder / "stacks.pb.gz").write_bytes(b"stacks")
    (folder / "incident.json").write_bytes(b"{}")
    artifact = Artifact("stacks.pb.gz", "stacks", "pprof", 6, "00")
    return IncidentSealed(NOW, incident(id=f"incident-{number}", artifacts=(artifact,)), str(folder))


async def test_an_incident_is_stored_whole_and_not_twice(server: str, tmp_path: Path) -> None:
    """Below the prefix, under its id; sent again, it is seen to be there."""
    exporter = made(server)
    body = exporter.encode("artifacts", [sealed(tmp_path, 1)])
    assert body is not None
    assert await exporter.send("artifacts", body) == "2 objects stored"
    assert await exporter.send("artifacts", body) == "0 objects stored, 2 were there"
    found = bucket(server)
    assert found["agents/one/incident-1/stacks.pb.gz"] == b"stacks"
    assert found["agents/one/incident-1/incident.json"] == b"{}"


async def test_it_goes_on_where_it_stopped_and_overwrites_nothing(server: str, tmp_path: Path) -> None:
    """What another put in the place of a file stays as it is; the loss is told."""
    exporter = made(server)
    body = exporter.encode("artifacts", [sealed(tmp_path, 2)])
    assert body is not None
    (tmp_path / "incident.json").unlink()
    with pytest.raises(SendError, match="was it deleted"):
        await exporter.send("artifacts", body)
    (tmp_path / "incident.json").write_bytes(b"{}")
    assert await exporter.send("artifacts", body) == "1 objects stored, 1 were there"
    (tmp_path / "stacks.pb.gz").write_bytes(b"longer than before")
    with pytest.raises(SendError, match="another object of 6 bytes") as raised:
        await exporter.send("artifacts", body)
    assert raised.value.blame == "rejected"
    assert bucket(server)["agents/one/incident-2/stacks.pb.gz"] == b"stacks"


async def test_whose_fault_it_is(server: str, tmp_path: Path) -> None:
    """A bucket that is not there is refused; a server that is not there may come back."""
    event = sealed(tmp_path, 3)
    nowhere = made(server, "s3://missing-bucket/x")
    body = nowhere.encode("artifacts", [event])
    assert body is not None
    with pytest.raises(SendError) as raised:
        await nowhere.send("artifacts", body)
    assert raised.value.blame == "refused"
    away = made(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(SendError) as raised:
        await away.send("artifacts", body)
    assert raised.value.blame == "passing"


def test_a_bucket_name_that_is_none() -> None:
    """It is the operator's fault, said when the exporter is made."""
    with pytest.raises(OperatorError, match="url"):
        made("http://127.0.0.1:1", "s3://[")
