"""What every test gets: a fake clock, and a guard that fails a test which leaves something behind."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from sentinel_agent.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEMP = Path(os.environ.get("TMPDIR", "/tmp"))


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


@pytest.fixture(autouse=True)
def leak_guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After each test: no thread, child process, socket, pidfd or temporary folder of ours is left."""
    threads, sockets, folders = set(threading.enumerate()), _open_sockets(), _own_temp_folders()
    children = {child.pid for child in psutil.Process().children()}
    yield
    gc.collect()
    left_children = [c for c in psutil.Process().children() if c.pid not in children]
    left_threads = [t for t in threading.enumerate() if t not in threads and not t.daemon and t.is_alive()]
    problems = [
        *(f"child process {child.pid}" for child in left_children),
        *(f"thread {thread.name}" for thread in left_threads),
        *(f"descriptor {name}" for name in sorted(_open_sockets() - sockets)),
        *(f"temporary folder {name}" for name in sorted(_own_temp_folders() - folders)),
    ]
    for child in left_children:
        child.kill()
        child.wait(5)
    assert not problems, f"the test left behind: {', '.join(problems)}"
