"""Pyroscope's own generated push service, and Google's reader of profiles: what they got is what the incident has.

Pyroscope itself is on no registry that is reached; its API is (`tests/interop/pyroscope`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sentinel_agent.core.event import IncidentSealed
from sentinel_agent.core.model import Artifact
from sentinel_agent.export.base import SendError
from sentinel_agent.profile import pprof
from sentinel_agent.profile.record import RecordBuilder
from sentinel_exporters.pyroscope import Options, PyroscopeExporter
from tests.exporters.support import context, free_port, incident, options
from tests.interop.support import CLOCK, answers, artifact, get, started

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.interop, pytest.mark.timeout(400)]


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_a_profile_is_taken_and_read(tmp_path: Path, compression: str) -> None:
    """Its labels, its id and its samples are there; one that is no profile is refused as this batch's fault."""
    binary, port, now = artifact("pyroscope-push"), free_port(), CLOCK.wall()
    url = f"http://127.0.0.1:{port}"
    builder = RecordBuilder(start=now, period=0.05, source="test")
    thread, frame = builder.thread(1, "main"), builder.frame("handle", "app.py", 7)
    for number in range(20):
        builder.add(thread, [frame], offset=number * 0.05, weight=0.05)
    name = "stacks.pb.gz"
    (tmp_path / name).write_bytes(pprof.encode(builder.build()))
    sealed = IncidentSealed(
        now, incident(artifacts=(Artifact(name, "stacks", "pprof", 1, ""),)), str(tmp_path)
    )
    with started([binary, str(port)], tmp_path, lambda: answers(f"{url}/pushed")):
        exporter = PyroscopeExporter(
            options(Options, url=url, tenant="team", compression=compression), context()
        )
        body = exporter.encode("artifacts", [sealed])
        assert body is not None
        assert await exporter.send("artifacts", body) == "200 OK"
        (found,) = get(f"{url}/pushed")
        (tmp_path / name).write_bytes(b"no profile")
        with pytest.raises(SendError) as raised:
            await exporter.send("artifacts", body)
        assert raised.value.blame == "rejected"
        await exporter.close()
    assert found["Tenant"] == "team"
    assert found["Labels"]["service_name"] == "gateway"
    assert found["Labels"]["__name__"] == "wall"
    assert found["Samples"] >= 1
    assert dict(zip(found["Types"], found["Totals"], strict=True)) == {
        "samples/count": 20,
        "wall/nanoseconds": 1_000_000_000,
    }
