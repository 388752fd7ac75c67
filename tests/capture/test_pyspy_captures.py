"""Stacks and profiles of real interpreters: what is in the files is what the target was doing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.capture.profile import ProfileCapture
from sentinel_agent.capture.pyspy import find_py_spy
from sentinel_agent.capture.stacks import StacksCapture, look
from sentinel_agent.core.model import TargetId
from sentinel_agent.core.rule import CaptureSpec
from sentinel_agent.errors import NoSuchTargetError, NotPermittedError, OperatorError, PeerError
from sentinel_agent.profile import pprof, speedscope
from sentinel_agent.profile.views import hottest
from tests.capture.targets import (
    MAIN_LINE,
    SPIN_LINES,
    WAIT_LINE,
    fake_py_spy,
    interpreters,
    made_target,
    plan_for,
    service,
    started,
    target_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.capture.base import Capture

STACKS = CaptureSpec("stacks")
PROFILE = CaptureSpec("profile", duration=0.6, rate=100)
GONE = made_target(TargetId(2**22 + 1, 1))  # beyond the kernel's largest pid_max


@pytest.mark.parametrize("python", interpreters())
async def test_stacks_name_function_line_and_thread_in_every_interpreter(python: str, tmp_path: Path) -> None:
    """Three threads, each at the line where the service's source puts it."""
    with service(tmp_path, python) as target:
        result = await StacksCapture().capture(plan_for(target, tmp_path, STACKS))
    assert [file.name for file in result.files] == ["stacks.json", "stacks.pb.gz"]
    assert result.pause_us == 0
    threads = {t["name"]: t for t in json.loads((tmp_path / "stacks.json").read_bytes())["threads"]}
    script = str(tmp_path / "service.py")
    main = threads["MainThread"]
    assert main["native_id"] == target.id.pid
    assert [(f["function"], f["file"], f["line"]) for f in main["frames"]] == [
        ("<module>", script, MAIN_LINE)
    ]
    assert main["state"] == "waiting"
    waits = [f for f in threads["quiet-one"]["frames"] if f["function"] == "quiet_wait"]
    assert [(f["file"], f["line"]) for f in waits] == [(script, WAIT_LINE)]
    spin = threads["busy-one"]["frames"][0]
    assert (spin["function"], spin["file"]) == ("hot_spin", script)
    assert spin["line"] in SPIN_LINES
    assert threads["busy-one"]["state"] == "running"
    assert threads["busy-one"]["frames"][-1]["function"].endswith("_bootstrap")


async def test_the_stacks_pprof_holds_one_sample_for_each_thread(tmp_path: Path) -> None:
    with service(tmp_path) as target:
        await StacksCapture().capture(plan_for(target, tmp_path, STACKS))
    record = pprof.decode((tmp_path / "stacks.pb.gz").read_bytes())
    assert sorted(thread.name for thread in record.threads) == ["MainThread", "busy-one", "quiet-one"]
    assert len(record.samples) == 3
    assert sorted(str(sample.on_cpu) for sample in record.samples) == ["False", "False", "True"]


async def test_a_pause_is_only_taken_when_asked_for_and_then_stored(tmp_path: Path) -> None:
    with service(tmp_path) as target:
        paused = CaptureSpec("stacks", pause=True)
        result = await StacksCapture(look=look).capture(plan_for(target, tmp_path, paused, max_pause=5.0))
        plain = await StacksCapture(look=look).capture(plan_for(target, tmp_path, STACKS, max_pause=5.0))
        with pytest.raises(OperatorError, match="neither bounded nor measured"):
            await ProfileCapture().capture(plan_for(target, tmp_path, CaptureSpec("profile", pause=True)))
        short = await StacksCapture(look=look).capture(plan_for(target, tmp_path, paused, max_pause=1e-9))
    assert short.note.startswith("read without a pause: process ")
    assert 0 < short.pause_us < 5_000_000
    assert 0 < result.pause_us < 5_000_000
    assert plain.pause_us == 0


@pytest.mark.parametrize("python", interpreters())
async def test_the_hottest_leaf_is_the_hot_function(python: str, tmp_path: Path) -> None:
    """Over 90 % of the samples of a service that spins are in the spinning function, of the thread that spins."""
    with service(tmp_path, python) as target:
        result = await ProfileCapture().capture(plan_for(target, tmp_path, PROFILE))
    record = pprof.decode((tmp_path / "profile.pb.gz").read_bytes())
    hot = hottest(record)[0]
    assert (hot.function, hot.file) == ("hot_spin", str(tmp_path / "service.py"))
    assert hot.self_share > 0.9
    assert [thread.name for thread in record.threads if thread.name == "busy-one"] == ["busy-one"]
    assert 0.3 < record.seconds < 1.2
    assert abs(record.start - time.time()) < 30  # noqa: TID251 - the machine's clock is the ground truth here
    assert (result.note, result.pause_us) == ("", 0)


async def test_the_speedscope_file_has_the_same_samples_as_the_pprof(tmp_path: Path) -> None:
    with service(tmp_path) as target:
        await ProfileCapture().capture(plan_for(target, tmp_path, PROFILE))
    timeline = speedscope.decode((tmp_path / "profile.speedscope.json").read_bytes())
    merged = pprof.decode((tmp_path / "profile.pb.gz").read_bytes())
    assert len(timeline.samples) == sum(sample.count for sample in merged.samples)
    assert timeline.seconds == pytest.approx(merged.seconds)
    assert timeline.period == merged.period == 0.01


async def test_an_idle_target_has_an_empty_profile_that_says_so(tmp_path: Path) -> None:
    spec = CaptureSpec("profile", duration=0.2, rate=50)
    with service(tmp_path, sys.executable, "idle") as target:
        result = await ProfileCapture().capture(plan_for(target, tmp_path, spec))
    assert result.note == "no thread was running"
    assert pprof.decode((tmp_path / "profile.pb.gz").read_bytes()).samples == ()


async def test_a_target_that_is_killed_mid_profile_leaves_what_was_seen(tmp_path: Path) -> None:
    """The seconds before the end are the ones that matter: they are kept, and the note says what happened."""
    spec = CaptureSpec("profile", duration=20.0, rate=100)
    with service(tmp_path) as target:
        asyncio.get_running_loop().call_later(0.4, os.kill, target.id.pid, signal.SIGKILL)
        result = await ProfileCapture().capture(plan_for(target, tmp_path, spec))
    assert result.note.startswith("the target ended after")
    record = pprof.decode((tmp_path / "profile.pb.gz").read_bytes())
    assert hottest(record)[0].function == "hot_spin"


@pytest.mark.parametrize(("capture", "spec"), [(StacksCapture(), STACKS), (ProfileCapture(), PROFILE)])
async def test_a_pid_that_is_not_there_is_the_targets_fault(
    capture: Capture, spec: CaptureSpec, tmp_path: Path
) -> None:
    with pytest.raises(NoSuchTargetError, match="has ended"):
        await capture.capture(plan_for(GONE, tmp_path, spec))


@pytest.mark.parametrize(("capture", "spec"), [(StacksCapture(), STACKS), (ProfileCapture(), PROFILE)])
async def test_a_pid_that_is_another_process_by_now_is_never_read(
    capture: Capture, spec: CaptureSpec, tmp_path: Path
) -> None:
    """The number is in use, the start time is not the target's."""
    other = made_target(TargetId(os.getpid(), 1))
    with pytest.raises(NoSuchTargetError, match="has ended"):
        await capture.capture(plan_for(other, tmp_path, spec))
    assert list(tmp_path.iterdir()) == []


async def test_a_process_without_python_is_named_so(tmp_path: Path) -> None:
    with started("/bin/sh", "-c", "echo ready; read x") as process:
        target = target_of(process.pid)
        with pytest.raises(PeerError, match="no Python interpreter"):
            await StacksCapture(attempts=1).capture(plan_for(target, tmp_path, STACKS))


BEGUN = "echo 'Sampling process 100 times a second.'\n"
PERMISSION = (
    "echo \"Permission Denied: Try running again with elevated permissions by going 'sudo'\" >&2; exit 1\n"
)


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (PERMISSION, NotPermittedError, "may not be read"),
        ("echo 'Operation not permitted (os error 1)' >&2; exit 1\n", NotPermittedError, "may not be read"),
        (
            "printf 'Error: boom\\033[2J\\n\\nStack backtrace:\\n 0: x' >&2; exit 3\n",
            PeerError,
            "status 3: Error: boom?[2J",
        ),
        ("exit 0\n", PeerError, "not usable"),
        ("kill -SEGV $$\n", PeerError, "signal 11: it said nothing"),
        ("head -c 2000 /dev/urandom; exit 0\n", PeerError, "not usable"),
        ("yes; exit 0\n", PeerError, "wrote more than"),
        ("yes >&2; exit 0\n", PeerError, "wrote more than"),
        ("yes '[' | tr -d '\\n' | head -c 100000\n", PeerError, "not usable"),
    ],
)
async def test_a_py_spy_that_fails_is_reported_by_whose_fault_it_is(
    body: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    """For both captures; no file and no process is left."""
    kept = tmp_path / "kept"
    kept.mkdir()
    fake = fake_py_spy(tmp_path, body)
    with service(tmp_path) as target:
        for capture, spec in (
            (StacksCapture(py_spy=fake, attempts=1), STACKS),
            (ProfileCapture(py_spy=fake), PROFILE),
        ):
            with pytest.raises(error) as caught:
                await capture.capture(plan_for(target, kept, spec))
            assert words in str(caught.value)
    assert list(kept.iterdir()) == []
    assert fake.left() == []


async def test_a_refusal_names_the_remedy(tmp_path: Path) -> None:
    with service(tmp_path) as target, pytest.raises(NotPermittedError) as caught:
        await StacksCapture(py_spy=fake_py_spy(tmp_path, PERMISSION)).read(target)
    assert caught.value.hint
    assert "SYS_PTRACE" in caught.value.hint


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (BEGUN + "head -c 1000000000 /dev/zero > $OUT\n", "wrote more than"),
        (BEGUN + "echo '{\"profiles\": 3}' > $OUT\n", "not usable"),
        (BEGUN + "exit 0\n", "not usable"),
    ],
)
async def test_a_profile_that_is_garbage_or_endless_is_refused(body: str, words: str, tmp_path: Path) -> None:
    """A gigabyte is never read, nor written to disk: it ends in a pipe that is closed."""
    kept = tmp_path / "kept"
    kept.mkdir()
    fake = fake_py_spy(tmp_path, body)
    with service(tmp_path) as target, pytest.raises(PeerError, match=words):
        await ProfileCapture(py_spy=fake).capture(plan_for(target, kept, PROFILE))
    assert list(kept.iterdir()) == []
    assert fake.left() == []


@pytest.mark.parametrize(
    "body", ["sleep 100\n", BEGUN + "trap '' INT TERM; sleep 100 & echo $! >> PIDS; wait; sleep 100\n"]
)
async def test_a_py_spy_that_hangs_is_killed_with_what_it_started(body: str, tmp_path: Path) -> None:
    """Cancellation, which is what the deadline does, returns at once and reaps the whole group."""
    fake = fake_py_spy(tmp_path, body)
    spec = CaptureSpec("profile", duration=0.1, rate=100)
    began = time.monotonic()  # noqa: TID251 - real processes take real time
    with service(tmp_path) as target, pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await ProfileCapture(py_spy=fake).capture(plan_for(target, tmp_path, spec))
    assert time.monotonic() - began < 5  # noqa: TID251 - as above
    await _until_reaped(fake.left)


async def _until_reaped(left: Callable[[], list[int]]) -> None:
    """A grandchild is reaped by init, not by us: wait until that happened."""
    async with asyncio.timeout(5):
        while [pid for pid in left() if _state(pid) not in "ZX"]:
            await asyncio.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


async def test_a_torn_read_is_repeated_and_counted(tmp_path: Path) -> None:
    """The first two attempts fail, the third answers: two readings are lost, and it says so."""
    frames = '[{"name":"f","filename":"/a.py","line":1}]'
    dump = f'[{{"active":true,"owns_gil":true,"thread_id":1,"os_thread_id":7,"thread_name":"t","frames":{frames}}}]'
    fake = fake_py_spy(tmp_path, f"[ $(wc -l < PIDS) -lt 3 ] && exit 1\ncat <<'END'\n{dump}\nEND\n")
    with service(tmp_path) as target:
        result = await StacksCapture(py_spy=fake).capture(plan_for(target, tmp_path, STACKS))
    assert (result.lost_samples, result.note) == (2, "read at attempt 3")
    assert pprof.decode((tmp_path / "stacks.pb.gz").read_bytes()).lost == 2


async def test_reading_is_given_up_after_a_few_attempts(tmp_path: Path) -> None:
    fake = fake_py_spy(tmp_path, "exit 1\n")
    with service(tmp_path) as target, pytest.raises(PeerError, match="status 1"):
        await StacksCapture(py_spy=fake, attempts=3).read(target)
    assert len(fake.pid_file.read_text().split()) == 3


async def test_py_spy_sees_nothing_of_the_agents_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENTINEL_TOKEN", "secret")
    fake = fake_py_spy(tmp_path, f"env > {tmp_path}/env; exit 1\n")
    with service(tmp_path) as target, pytest.raises(PeerError):
        await StacksCapture(py_spy=fake, attempts=1).read(target)
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"PATH", "LANG", "RUST_BACKTRACE", "NO_COLOR", "PWD", "SHLVL", "_", "OLDPWD"}


async def test_a_py_spy_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "py-spy").write_text("not a program")
    with (
        service(tmp_path) as target,
        pytest.raises(PeerError, match="py-spy cannot be started: Permission denied"),
    ):
        await StacksCapture(py_spy=lambda: str(tmp_path / "py-spy")).read(target)


def test_py_spy_is_looked_for_beside_python_then_on_path(tmp_path: Path) -> None:
    beside, on_path = tmp_path / "venv", tmp_path / "bin"
    for folder in (beside, on_path):
        folder.mkdir()
        fake_py_spy(folder, "")
    assert find_py_spy(str(beside / "python"), str(on_path)) == str(beside / "py-spy")
    assert find_py_spy(str(tmp_path / "python"), str(on_path)) == str(on_path / "py-spy")
    with pytest.raises(PeerError) as caught:
        find_py_spy(str(tmp_path / "python"), str(tmp_path))
    assert caught.value.hint == "pip install py-spy"


@pytest.mark.parametrize("spec", [STACKS, PROFILE])
async def test_a_target_that_ends_while_it_is_read_is_the_targets_fault(
    spec: CaptureSpec, tmp_path: Path
) -> None:
    with service(tmp_path) as target:
        fake = fake_py_spy(tmp_path, f"kill -9 {target.id.pid}; echo 'Error: cannot read' >&2; exit 1\n")
        capture = StacksCapture(py_spy=fake) if spec is STACKS else ProfileCapture(py_spy=fake)
        with pytest.raises(NoSuchTargetError, match="ended while py-spy was reading it"):
            await capture.capture(plan_for(target, tmp_path, spec))
