"""The official Connect client makes every call in both encodings; the page's JavaScript has sound types."""

from __future__ import annotations

import asyncio
import json
import subprocess
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from sentinel_agent.api.app import make_app
from sentinel_agent.api.context import Context
from sentinel_agent.api.pyroscope import METHODS
from tests import needs
from tests.api.support import CPU, DUMPS, LOOPBACK, MadeUpAgent, save_spike
from tests.api.test_messages import add_fields

if TYPE_CHECKING:
    from sentinel_agent.store.store import Store
    from sentinel_agent.testing import FakeClock

ROOT = Path(__file__).parent.parent.parent
NODE = ROOT / ".cache" / "web" / "node"


def installed(path: Path) -> Path:
    """A part of what `make unit` installs from npm."""
    needs.program("node")
    if not path.exists():
        needs.missing(f"{path.name} is not installed from npm; `make unit` does it")
    return path


def descriptors() -> bytes:
    """The service with its messages as a FileDescriptorSet, made of the tables."""
    types = import_module("google.protobuf.descriptor_pb2")
    found = types.FileDescriptorSet()
    file = found.file.add(name="querier.proto", package="querier.v1", syntax="proto3")
    service = file.service.add(name="QuerierService")
    for name, method in METHODS.items():
        for suffix, message in (("Request", method.request), ("Reply", method.reply)):
            add_fields(file.message_type.add(name=name + suffix), message, f".querier.v1.{name}{suffix}")
        service.method.add(
            name=name, input_type=f".querier.v1.{name}Request", output_type=f".querier.v1.{name}Reply"
        )
    content: bytes = found.SerializeToString()
    return content


@pytest.mark.parametrize("encoding", ["binary", "json"])
async def test_the_official_client_makes_every_call(
    store: Store, fake_clock: FakeClock, tmp_path: Path, encoding: str
) -> None:
    """It sends chunked bodies over HTTP/1.1, decodes every reply, and gets our errors with their codes."""
    script = installed(NODE / "client.mjs")
    saved = save_spike(store)
    (tmp_path / "descriptors").write_bytes(descriptors())
    side = {"profileTypeID": CPU, "labelSelector": f'{{dump_id="{saved}"}}'}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("ProfileTypes", {}),
        ("LabelNames", {}),
        ("LabelValues", {"name": "dump_id", "matchers": ["{}"]}),
        ("Series", {"labelNames": ["service_name"]}),
        ("SelectSeries", {"profileTypeID": DUMPS, "groupBy": ["dump_id"], "step": 15}),
        ("SelectMergeStacktraces", side),
        ("SelectMergeSpanProfile", side),
        ("SelectMergeProfile", side),
        ("Diff", {"left": side, "right": side}),
        ("GetProfileStats", {}),
        ("SelectSeries", {"profileTypeID": "nope"}),
        ("SelectMergeStacktraces", side | {"format": 3}),
    ]
    runner = web.AppRunner(make_app(Context(store, fake_clock, LOOPBACK, MadeUpAgent())), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            [
                "node",
                str(script),
                f"http://127.0.0.1:{runner.addresses[0][1]}",
                str(tmp_path / "descriptors"),
                encoding,
            ],
            input=json.dumps(calls),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        await runner.cleanup()
    assert done.returncode == 0, done.stderr
    replies = json.loads(done.stdout)
    assert [status for status, _ in replies] == ["ok"] * 10 + ["InvalidArgument", "Unimplemented"], replies
    by_name = {name: reply for (name, _), (_, reply) in zip(calls[:10], replies, strict=False)}
    assert by_name["LabelValues"]["names"] == [saved]
    assert by_name["SelectMergeStacktraces"]["flamegraph"]["total"] == "8750000000"
    assert (
        by_name["Diff"]["flamegraph"]["leftTicks"]
        == by_name["Diff"]["flamegraph"]["rightTicks"]
        == "8750000000"
    )
    assert len(by_name["SelectMergeProfile"]["sample"]) == 2


def test_the_pages_scripts_have_sound_types() -> None:
    """TypeScript's checker, strict, on their JSDoc."""
    checker = installed(NODE / "node_modules" / "typescript" / "bin" / "tsc")
    done = subprocess.run(
        ["node", str(checker), "-p", str(Path(__file__).parent / "jsconfig.json")],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
