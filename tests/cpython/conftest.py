"""Real interpreters as targets: every CPython 3.8 to 3.15 that is on the machine, this one at least.

Those that `tools/interpreters.sh` unpacked run in a root directory of their own, as in a container.
SENTINEL_TEST_MINORS (`8,9,10,11,12,13`) is a promise: one that it names and that is missing fails the test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("target_program.py")
BUSY_PROGRAM = str(Path(__file__).with_name("busy_program.py"))
READABLE = (8, 9, 10, 11, 12, 13, 14, 15)
UNPACKED = Path(__file__).resolve().parents[2] / ".cache" / "interpreters"


def _answers(python: Path, minor: int) -> bool:
    code = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=False)
    return done.returncode == 0 and done.stdout.split() == ["3", str(minor)]


@cache
def _find(minor: int) -> Path | None:
    """The binary of CPython 3.`minor`: this interpreter, from PATH, among pyenv's versions, or one that was unpacked."""
    name = f"python3.{minor}"
    candidates = [Path(sys.executable).resolve()] if sys.version_info[1] == minor else []
    if found := shutil.which(name):
        candidates.append(Path(found))
    if shutil.which("pyenv"):
        root = subprocess.run(
            ["pyenv", "root"], capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()
        candidates += sorted(Path(root, "versions").glob(f"3.{minor}.*/bin/{name}"))
    candidates += [path for path in [UNPACKED / "bin" / name] if path.exists()]
    for candidate in candidates:
        if _answers(candidate, minor):
            return candidate.resolve() if candidate.is_symlink() else candidate
    return None


def python_of(minor: int) -> Path:
    """The binary of CPython 3.`minor`; fails the test where it was promised and is missing."""
    found = _find(minor)
    if found is None:
        pytest.fail(f"python3.{minor} is not on this machine, but SENTINEL_TEST_MINORS promises it")
    return found


def _minors() -> list[int]:
    promised = os.environ.get("SENTINEL_TEST_MINORS")
    if promised:
        return [int(part) for part in promised.split(",")]
    return [minor for minor in READABLE if _find(minor) is not None]


MINORS = _minors()


def within(python: Path, program: Path) -> str:
    """The path by which `python` can read `program`: that of a copy, where it runs in a root directory of its own."""
    if not python.is_relative_to(UNPACKED):
        return str(program)
    shutil.copyfile(program, UNPACKED / "root" / "tmp" / program.name)
    return f"/tmp/{program.name}"


class Target:
    """A running `target_program.py`; `truth` is what it wrote of itself once everything in it stood still."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        assert process.stdout
        line = process.stdout.readline()
        assert line, "the target ended before it stood still"
        self.truth: dict[str, Any] = json.loads(line)


StartTarget = Callable[..., Target]


@pytest.fixture
def start_target() -> Iterator[StartTarget]:
    """Start programs and end them with the test."""
    running: list[subprocess.Popen[bytes]] = []

    def start(python: Path, *arguments: str) -> Target:
        program, *rest = arguments if arguments[0] in ("-c", BUSY_PROGRAM) else (str(PROGRAM), *arguments)
        command = [str(python), program if program == "-c" else within(python, Path(program)), *rest]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        running.append(process)
        return Target(process)

    yield start
    for process in running:
        process.kill()
        process.communicate(timeout=10)


@pytest.fixture(params=MINORS, ids=lambda minor: f"3.{minor}")
def python(request: pytest.FixtureRequest) -> Path:
    """Every interpreter that is promised."""
    return python_of(request.param)
