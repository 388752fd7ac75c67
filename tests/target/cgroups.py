"""Real cgroups below the one that the tests run in."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.target.cgroup import Controller, locate
from sentinel_agent.target.procfs import ProcDir
from tests.e2e.support import until

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_SWAP = (("memory.swappiness", "0"), ("memory.swap.max", "0"))
LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}


def own(name: str) -> Controller:
    with ProcDir(os.getpid()) as proc:
        found = locate(proc, "cpu" if name == "cpu" else "memory")
    if found is None:
        pytest.skip(f"no {name} controller is mounted where this test runs")
    if not os.access(found.levels[0], os.W_OK) or os.geteuid() != 0:
        if os.environ.get("SENTINEL_TEST_NO_CGROUP"):
            pytest.skip("SENTINEL_TEST_NO_CGROUP is set: cgroups cannot be made here")
        pytest.fail(
            f"{found.levels[0]} cannot be written; set SENTINEL_TEST_NO_CGROUP=1 if that is as it must be"
        )
    return found


@contextmanager
def below(controller: Controller, pid: int, *, limit: int | None = None) -> Iterator[Path]:
    """A cgroup below our own with the process in it; both are put back at the end. `limit` in bytes, without swap."""
    folder = Path(controller.levels[0]) / f"sentinel-test-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "cgroup.procs").write_text(str(pid))
        if limit is not None:
            for name, value in NO_SWAP:
                with suppress(OSError):  # each version has one of them
                    (folder / name).write_text(value)
            (folder / LIMIT[controller.version]).write_text(str(limit))
        yield folder
    finally:
        with suppress(ProcessLookupError):
            (Path(controller.levels[0]) / "cgroup.procs").write_text(str(pid))
        until(lambda: _removed(folder), 20, "the cgroup to be empty")


def _removed(folder: Path) -> bool:
    """Whether it is gone now; a process that is just ending still counts as in it."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True
