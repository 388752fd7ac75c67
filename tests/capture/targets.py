"""Real processes to capture, made-up py-spys, and the plans to capture them with."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel_agent.capture.base import CapturePlan, Series, SeriesWindow
from sentinel_agent.core.model import Role, Target, TargetId
from sentinel_agent.target.identity import identify
from sentinel_agent.testing import make_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentinel_agent.core.rule import CaptureSpec

SERVICE = """\
import sys, threading, time

def hot_spin(until):
    total = 0
    while time.monotonic() < until:
        for i in range(1000):
            total += i * i
    return total

def quiet_wait(event):
    event.wait()  # line 11

event = threading.Event()
threading.Thread(target=quiet_wait, args=(event,), name="quiet-one", daemon=True).start()
if "idle" not in sys.argv:
    threading.Thread(target=hot_spin, args=(time.monotonic() + 60,), name="busy-one", daemon=True).start()
print("ready", flush=True)
time.sleep(60)  # line 18
"""
WAIT_LINE = 11
MAIN_LINE = 18
SPIN_LINES = range(5, 8)


@cache
def interpreters() -> tuple[str, ...]:
    """The CPythons 3.8 and up that this machine has on PATH, each by its real path; the running one always.

    pyenv's shims only run the version that PYENV_VERSION names; other pythons do not care.
    """
    found = {os.path.realpath(sys.executable): sys.executable}
    for minor in range(8, 16):
        name = shutil.which(f"python3.{minor}")
        if not name:
            continue
        asked = subprocess.run(
            [name, "-c", "import sys; print(sys.executable)"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env={**os.environ, "PYENV_VERSION": f"3.{minor}"},
        )
        if asked.returncode == 0:
            found.setdefault(os.path.realpath(asked.stdout.strip()), asked.stdout.strip())
    return tuple(found.values())


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has said `ready`; killed at the end."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def service(folder: Path, python: str = sys.executable, *arguments: str) -> Iterator[Target]:
    """The service above, run by `python`, with its hot thread already spinning."""
    script = folder / "service.py"
    script.write_text(SERVICE)
    with started(python, str(script), *arguments) as process:
        time.sleep(0.05)  # a real process: nothing announces that its threads have reached their loops
        yield target_of(process.pid)


def target_of(pid: int) -> Target:
    return made_target(identify(pid))


def made_target(identity: TargetId) -> Target:
    return make_target(identity, Role("shop", "here"), name="service.py")


def window() -> SeriesWindow:
    return SeriesWindow(
        100.0, 102.0, 1.0, {"cpu": Series("percent", [100.0, 101.0], [3.0, 97.5])}, {"fds": "refused"}
    )


def plan_for(target: Target, folder: Path, spec: CaptureSpec, **changes: object) -> CapturePlan:
    facts = {"trigger_time": 101.0, "deadline": 10.0, "max_bytes": 4 * 1024**2, "redact": True} | changes
    return CapturePlan(target=target, folder=folder, spec=spec, series=window, **facts)  # type: ignore[arg-type]  # facts of mixed types


@dataclass(frozen=True, slots=True)
class FakePySpy:
    """A program in py-spy's place; `pid_file` gets the pids of it and of what it starts."""

    path: str
    pid_file: Path

    def __call__(self) -> str:
        return self.path

    def left(self) -> list[int]:
        """Those of its processes that are still there, zombies too."""
        pids = [int(word) for word in self.pid_file.read_text().split()]
        assert pids, "the fake was never run"
        return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def fake_py_spy(folder: Path, body: str) -> FakePySpy:
    """`body` is shell; `$OUT` is the file that `record` was told to write."""
    path, pid_file = folder / "py-spy", folder / "pids"
    path.write_text(
        f"#!/bin/sh\necho $$ >> {pid_file}\n"
        'while [ $# -gt 0 ]; do [ "$1" = --output ] && OUT=$2; shift; done\n'
        + body.replace("PIDS", str(pid_file))
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return FakePySpy(str(path), pid_file)
