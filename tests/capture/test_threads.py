"""Native ids of threads, against what the target says of itself."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel_agent.capture.child import Finished, running
from sentinel_agent.capture.stacks import Stacks, _parse, to_record
from sentinel_agent.capture.threads import LARGEST_PID, cpu_seconds, native_ids, running_threads
from sentinel_agent.core.model import TargetId
from sentinel_agent.errors import PeerError
from sentinel_agent.profile.record import MAX_DEPTH
from sentinel_agent.target.procfs import ProcDir
from tests.capture.targets import interpreters, made_target, started
from tests.profile.records import HOSTILE

# Five threads, and what CPython itself says about them: `pthread_t` and native id.
SUBJECT = """\
import json, sys, threading
print("ready", flush=True)
event = threading.Event()
for _ in range(4):
    threading.Thread(target=event.wait, daemon=True).start()
print(json.dumps({t.ident: t.native_id for t in threading.enumerate()}), flush=True)
sys.stdin.read()
"""
ME = made_target(TargetId(os.getpid(), 1))


@pytest.mark.parametrize("python", interpreters())
def test_native_ids_are_those_that_the_target_itself_knows(python: str) -> None:
    with started(python, "-c", SUBJECT) as process, ProcDir(process.pid) as proc:
        assert process.stdout is not None
        truth = {int(handle): number for handle, number in json.loads(process.stdout.readline()).items()}
        assert len(truth) == 5
        assert min(truth) > LARGEST_PID
        assert native_ids(proc, truth) == truth
        assert set(cpu_seconds(proc)) == set(truth.values())
        assert set(running_threads(proc)) == set(truth.values())


def test_an_address_that_is_none_or_no_threads_is_left_out() -> None:
    with started(sys.executable, "-c", SUBJECT) as process, ProcDir(process.pid) as proc:
        assert process.stdout is not None
        truth = {int(handle): number for handle, number in json.loads(process.stdout.readline()).items()}
        assert native_ids(proc, [*truth, 8, 2**64]) == truth
        assert native_ids(proc, []) == {}


def test_a_process_that_has_ended_has_no_ids() -> None:
    with started(sys.executable, "-c", SUBJECT) as process, ProcDir(process.pid) as proc:
        process.kill()
        process.wait()
        assert native_ids(proc, [2**40]) == {}


FRAME = {"name": "f", "filename": "/a.py", "line": 3, "module": None}
THREAD = {
    "thread_id": 2**46,
    "active": False,
    "frames": [FRAME],
    "os_thread_id": 7,
    "thread_name": "x",
    "owns_gil": None,
}


def parsed(document: Any) -> Stacks:
    return _parse(ME, Finished(0, msgspec.json.encode(document), b"", b""))


@settings(deadline=None)  # the machine may be busy
@given(st.sampled_from(HOSTILE), st.sampled_from(HOSTILE), st.sampled_from(HOSTILE))
def test_hostile_names_become_a_document_and_a_record(name: str, file: str, thread: str) -> None:
    """py-spy writes valid UTF-8; a lone surrogate can only reach us as an escape, and is refused."""
    frame = FRAME | {"name": name, "filename": file}
    data = json.dumps([THREAD | {"thread_name": thread, "frames": [frame]}]).encode()
    with suppress(PeerError):
        stacks = _parse(ME, Finished(0, data, b"", b""))
        assert len(to_record(stacks, start=0.0).samples) == 1
        assert json.loads(msgspec.json.encode(stacks))["threads"][0]["native_id"] == 7


json_values = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)


@settings(deadline=None)  # the machine may be busy
@given(st.sampled_from(sorted(THREAD)), json_values)
def test_a_dump_of_another_form_is_read_or_refused(key: str, value: Any) -> None:
    with suppress(PeerError):
        parsed([THREAD | {key: value}])


def test_a_thread_without_a_frame_is_listed_and_gives_no_sample() -> None:
    stacks = parsed([THREAD | {"frames": []}])
    assert stacks.threads[0].frames == ()
    assert to_record(stacks, start=0.0).samples == ()


def test_a_stack_without_end_is_cut() -> None:
    assert len(parsed([THREAD | {"frames": [FRAME] * 5000}]).threads[0].frames) == MAX_DEPTH


def test_who_holds_the_gil_is_running() -> None:
    assert parsed([THREAD | {"owns_gil": True}]).threads[0].state == "running"


async def test_a_child_is_reaped_even_when_the_cancellation_is_repeated(tmp_path: Path) -> None:
    """The second cancellation arrives while the first is being cleaned up after."""
    pid_file = tmp_path / "pid"

    async def work() -> None:
        async with running(["/bin/sh", "-c", f"echo $$ > {pid_file}; sleep 100"], limit=1000) as child:
            await child.wait()

    task = asyncio.create_task(work())
    async with asyncio.timeout(10):
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()


async def test_no_descriptor_is_left_of_a_child() -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are what is compared
    async with running(["/bin/sh", "-c", "echo out; echo err >&2"], limit=1000) as child:
        finished = await child.wait()
    assert (finished.stdout, finished.stderr, finished.returncode) == (b"out\n", b"err\n", 0)
    with pytest.raises(PeerError):
        async with running(["/nonexistent/program"], limit=1000):
            pass
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above
