"""The official Connect clients make every call in both encodings; the page's JavaScript has sound types."""

from __future__ import annotations

import asyncio
import json
import subprocess
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.api.pyroscope import METHODS
from tests import needs
from tests.api.support import CPU, DUMPS, MadeUpAgent, save_spike, served
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


def calls_of(saved: str) -> list[tuple[str, dict[str, Any]]]:
    """Every call about one incident, and two that fail."""
    side = {"profileTypeID": CPU, "labelSelector": f'{{dump_id="{saved}"}}'}
    return [
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


def check(replies: list[tuple[str, Any]], saved: str) -> None:
    """What they answer, in proto3 JSON."""
    calls = calls_of(saved)
    wanted = ["ok"] * 10 + ["InvalidArgument", "Unimplemented"]
    assert [status for status, _ in replies] == wanted, replies
    by_name = {name: reply for (name, _), (_, reply) in zip(calls[:10], replies, strict=False)}
    assert by_name["LabelValues"]["names"] == [saved]
    assert by_name["SelectMergeStacktraces"]["flamegraph"]["total"] == "8750000000"
    difference = by_name["Diff"]["flamegraph"]
    assert difference["leftTicks"] == difference["rightTicks"] == "8750000000"
    assert len(by_name["SelectMergeProfile"]["sample"]) == 2


@pytest.mark.parametrize("encoding", ["binary", "json"])
async def test_the_official_client_for_node_makes_every_call(
    store: Store, fake_clock: FakeClock, tmp_path: Path, encoding: str
) -> None:
    """It sends chunked bodies over HTTP/1.1, decodes every reply, and gets our errors with their codes."""
    script = installed(NODE / "client.mjs")
    saved = save_spike(store)
    (tmp_path / "descriptors").write_bytes(descriptors())
    async with served(store, fake_clock, MadeUpAgent()) as base:
        done = await asyncio.to_thread(
            subprocess.run,
            ["node", str(script), base, str(tmp_path / "descriptors"), encoding],
            input=json.dumps(calls_of(saved)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout), saved)


@pytest.mark.parametrize("encoding", ["binary", "json"])
async def test_the_official_client_for_python_makes_every_call(
    store: Store, fake_clock: FakeClock, encoding: str
) -> None:
    """It sends gzipped bodies, decodes every reply, and gets our errors with their codes."""
    saved = save_spike(store)
    async with served(store, fake_clock, MadeUpAgent()) as base:
        replies = await asyncio.to_thread(call_all, base, calls_of(saved), encoding)
    check(replies, saved)


def call_all(base: str, calls: list[tuple[str, dict[str, Any]]], encoding: str) -> list[tuple[str, Any]]:
    """Make the calls with `connectrpc`; (`ok` or the error's code, the reply or the message) of each."""
    rpc, methods, compat = (import_module(f"connectrpc.{name}") for name in ("client", "method", "compat"))
    errors, proto = import_module("connectrpc.errors"), import_module("google.protobuf.message_factory")
    forms = import_module("google.protobuf.json_format")
    files = import_module("google.protobuf.descriptor_pb2").FileDescriptorSet.FromString(descriptors()).file
    classes = proto.GetMessages(files, pool=import_module("google.protobuf.descriptor_pool").DescriptorPool())
    codec = getattr(compat, f"google_protobuf_{encoding}_codec")()
    found: list[tuple[str, Any]] = []
    with rpc.ConnectClientSync(base, codec=codec, timeout_ms=30_000) as client:
        for name, request in calls:
            method = methods.MethodInfo(
                name=name,
                service_name="querier.v1.QuerierService",
                input=classes[f"querier.v1.{name}Request"],
                output=classes[f"querier.v1.{name}Reply"],
                idempotency_level=methods.IdempotencyLevel.UNKNOWN,
                stream_type=methods.StreamType.UNARY,
            )
            try:
                reply = client.execute_unary(request=forms.ParseDict(request, method.input()), method=method)
                found.append(("ok", forms.MessageToDict(reply)))
            except errors.ConnectError as error:
                found.append((error.code.name.title().replace("_", ""), error.message))
    return found


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
