"""`stacks PID` and `tasks PID` beside a real service that writes down its own truth."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.e2e.support import sentinel, started

pytestmark = pytest.mark.e2e

SERVICE = """
import asyncio, json, sys, threading, traceback
async def backend(gate): await gate.wait()
async def handler(gate): await backend(gate)
def idle(): threading.Event().wait()
async def main():
    gate = asyncio.Event()
    tasks = [asyncio.create_task(handler(gate), name=f"request-{n}") for n in range(3)]
    threading.Thread(target=idle, name="idle-one", daemon=True).start()
    await asyncio.sleep(0.1)
    stacks = {str(ident): [s.name for s in reversed(traceback.extract_stack(frame))]
              for ident, frame in sys._current_frames().items() if ident != threading.get_ident()}
    native = {str(t.ident): t.native_id for t in threading.enumerate()}
    print(json.dumps({"tasks": sorted(t.get_name() for t in asyncio.all_tasks()), "native": native, "stacks": stacks}), flush=True)
    sys.stdin.readline()
asyncio.run(main())
"""


def test_stacks_and_tasks_are_those_that_the_service_writes_of_itself() -> None:
    """Thread names, native ids, functions and line order; task names, coroutines and await chains."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started((sys.executable, "-c", SERVICE), **pipes) as process:
        assert process.stdout is not None
        truth = json.loads(process.stdout.readline())
        seen = json.loads(sentinel("stacks", str(process.pid), "--json").stdout)["threads"]
        tasks = json.loads(sentinel("tasks", str(process.pid), "--json").stdout)
        shown = sentinel("tasks", str(process.pid), "--tree").stdout
        people = sentinel("stacks", str(process.pid)).stdout
    idle = next(thread for thread in seen if thread["name"] == "idle-one")
    (ident,) = (ident for ident, native in truth["native"].items() if native == idle["native_id"])
    functions = [frame["function"].rpartition(".")[2] for frame in idle["frames"]]
    assert functions == truth["stacks"][ident]
    assert idle["state"] == "waiting"
    main = next(thread for thread in seen if thread["native_id"] == process.pid)
    assert main["frames"][0]["function"] == "main"
    assert tasks["count"] == len(tasks["tasks"]) == 4
    assert sorted(task["name"] for task in tasks["tasks"]) == truth["tasks"]
    request = next(task for task in tasks["tasks"] if task["name"] == "request-1")
    assert request["coroutine"] == "handler"
    assert request["state"] == "waiting"
    assert [frame["function"] for frame in request["frames"]][:2] == ["handler", "backend"]
    assert "3 x handler (<string>:" in shown
    assert '"idle-one": waiting' in people
