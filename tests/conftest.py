"""What every test gets: a fake clock, and a guard that fails a test which leaves something behind."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import settings

from sentinel_agent.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

# A loaded machine makes no property false.
settings.register_profile("loaded", deadline=None)
settings.load_profile("loaded")

_TEMP = Path(tempfile.mkdtemp(prefix="sa-"))


def pytest_configure() -> None:
    """What the tests and their programs put into the temporary folder is told from what other runs on this machine do."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # where `tmp_path` is, as ever
    os.environ["TMPDIR"] = tempfile.tempdir = str(_TEMP)


def pytest_unconfigure() -> None:
    """Nothing of it stays."""
    shutil.rmtree(_TEMP, ignore_errors=True)


@pytest.fixture
def fake_clock() -> FakeClock:
    """Time that does not pass by itself."""
    return FakeClock()


def _open_sockets() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            link = str(entry.readlink())
        except OSError:  # the descriptor of the listing itself
            continue
        if link.startswith(("socket:", "anon_inode:[pidfd]")):
            found.add(f"{entry.name} {link}")
    return found


def _own_temp_folders() -> set[str]:
    return {path.name for path in _TEMP.glob("sentinel-*")}


def _children() -> set[int]:
    """Pids of this process's children, zombies too; psutil would read every process of the machine for it."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def _left(
    threads: set[threading.Thread], children: set[int], sockets: set[str], folders: set[str]
) -> list[str]:
    alive = [t for t in threading.enumerate() if t not in threads and not t.daemon and t.is_alive()]
    return [
        *(f"child process {pid}" for pid in sorted(_children() - children)),
        *(f"thread {thread.name}" for thread in alive),
        *(f"descriptor {name}" for name in sorted(_open_sockets() - sockets)),
        *(f"temporary folder {name}" for name in sorted(_own_temp_folders() - folders)),
    ]


@pytest.fixture(autouse=True)
def leak_guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After each test: no thread, child process, socket, pidfd or temporary folder of ours is left."""
    before = (set(threading.enumerate()), _children(), _open_sockets(), _own_temp_folders())
    yield
    problems = _left(*before)
    if problems:
        gc.collect()  # what only waits for the collector is no leak; collecting after every test takes minutes
        problems = _left(*before)
    for pid in _children() - before[1]:
        child = psutil.Process(pid)
        child.kill()
        child.wait(5)
    assert not problems, f"the test left behind: {', '.join(problems)}"
