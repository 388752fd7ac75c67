"""The generated Go client that Grafana's data source is built on makes every call; pprof's own reader takes our profiles."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.store.store import Store
from sentinel_agent.testing import FakeClock
from tests import needs
from tests.api.support import MadeUpAgent, save_spike, served
from tests.interop.support import artifact
from tests.store.helpers import SETTINGS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


async def output(*command: str) -> str:
    """What a program says; its failure is the test's."""
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


async def test_grafanas_client_makes_every_call(tmp_path: Path) -> None:
    """In both encodings, with errors by their codes; profiles are valid and have the samples that were recorded."""
    program = artifact("pyroscope_client")
    clock = FakeClock()
    store = Store(tmp_path / "data", SETTINGS, clock).open()
    saved = save_spike(store)
    profile = store.artifact(saved, "stacks.pb.gz")
    async with served(store, clock, MadeUpAgent()) as base:
        found: dict[str, Any] = json.loads(await output(str(program), base, saved, str(profile)))
    for encoding in ("binary", "json"):
        replies = found[encoding]
        assert len(replies["ProfileTypes"]["profileTypes"]) == 9
        assert replies["LabelValues"]["names"] == [saved]
        assert replies["SelectMergeStacktraces"]["flamegraph"]["total"] == "8750000000"
        assert replies["SelectMergeSpanProfile"] == replies["SelectMergeStacktraces"]
        assert replies["Diff"]["flamegraph"]["leftTicks"] == "8750000000"
        assert replies["GetProfileStats"]["dataIngested"] is True
        assert replies["SelectSeries"]["series"][0]["labels"] == [{"name": "dump_id", "value": saved}]
        assert replies["SelectMergeProfile"] == {
            "types": ["cpu/nanoseconds"],
            "samples": 2,
            "functions": 3,
            "total": 8_750_000_000,
        }
        codes = [replies[f"unknown {what}"] for what in ("type", "format", "method")]
        assert codes == ["invalid_argument", "unimplemented", "unimplemented"]
    assert found["binary"] == found["json"]
    assert found["file"]["functions"] == 4
    assert found["file"]["total"] == 20_000_000_000


async def test_go_tool_pprof_opens_an_incidents_profile(tmp_path: Path) -> None:
    """It finds the hot function of the spike."""
    go = needs.program("go")
    store = Store(tmp_path / "data", SETTINGS, FakeClock()).open()
    profile = store.artifact(save_spike(store), "stacks.pb.gz")
    top = await output(go, "tool", "pprof", "-top", str(profile))
    assert "checksum" in top
    assert "handle" in top
