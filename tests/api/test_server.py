"""Listening: from the start, without the weight of an HTTP stack until somebody comes; and the running agent behind it."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.api.guard import Address, Guard
from sentinel_agent.api.server import AddressInUseError, HttpServer
from sentinel_agent.clock import SystemClock
from tests.agent.support import sleeper
from tests.e2e.support import attached, sentinel, until

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.store.store import Store

GUARD = Guard(Address("127.0.0.1", 0))


def fetch(url: str, data: bytes | None = None, **headers: str) -> Any:
    """A JSON document over HTTP."""
    request = urllib.request.Request(url, data, headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as response:
        return json.loads(response.read())


async def test_the_first_request_is_answered_too(store: Store) -> None:
    """It waits while the stack is loaded; a second server cannot have the address; cancelling gives it back."""
    server = HttpServer(GUARD, store, SystemClock())
    with pytest.raises(AddressInUseError, match="in use"):
        HttpServer(Guard(server.address), store, SystemClock())
    running = asyncio.create_task(server.run())
    found = await asyncio.gather(
        *(asyncio.to_thread(fetch, f"{server.address.url}healthz") for _ in range(3))
    )
    assert found == [{"status": "ok"}] * 3
    running.cancel()
    await asyncio.wait((running,))
    HttpServer(Guard(server.address), store, SystemClock()).close()


async def test_a_server_that_nobody_asks_ends_as_well(store: Store) -> None:
    """Cancelled while it waits for the first connection."""
    server = HttpServer(GUARD, store, SystemClock())
    running = asyncio.create_task(server.run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait((running,))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.address.port)) != 0


def test_listening_loads_no_http_stack() -> None:
    """What the agent imports to listen leaves aiohttp out: it weighs a third of the agent."""
    script = "import sys, sentinel_agent.cli.attach; print([name for name in ('aiohttp', 'yarl', 'multidict') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


@pytest.mark.e2e
def test_the_agent_and_its_page(tmp_path: Path) -> None:
    """An agent that watches answers about its target, takes a capture, and the store is served after it has ended."""
    with sleeper() as target, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        with attached(str(target.pid), "--listen", address, data_dir=tmp_path) as agent:
            agent.wait_for("target_appeared")
            base = f"http://{address}"
            (found,) = until(lambda: fetch(f"{base}/api/v1/targets"), 20, "the target")
            assert (found["pid"], found["live"]) == (target.pid, True)
            assert fetch(f"{base}/api/v1/rules")[0]["rule"] == "cpu-spike"
            stacks = until(
                lambda: fetch(f"{base}/api/v1/targets/{target.pid}/stacks")["profiles"], 20, "stacks"
            )
            assert stacks[0]["samples"]
            job = fetch(
                f"{base}/api/v1/captures",
                json.dumps({"pid": target.pid, "captures": ["stacks"]}).encode(),
                **{"Content-Type": "application/json"},
            )
            done = until(
                lambda: (now := fetch(f"{base}/api/v1/captures/{job['id']}"))["state"] != "running" and now,
                30,
                "the capture",
            )
            assert done["state"] == "done", done
            listed = fetch(f"{base}/api/v1/incidents")
            assert [row["id"] for row in listed] == [done["incident"]]
            busy = sentinel(
                "attach", str(target.pid), "--listen", address, "--data-dir", str(tmp_path), check=2
            )
            assert "is in use" in busy.stderr
        with attached(str(target.pid), "--listen", "0.0.0.0:0", data_dir=tmp_path / "other") as refused:
            refused.process.wait(20)
            assert refused.process.returncode == 2
