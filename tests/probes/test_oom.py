"""Kills for memory in the target's cgroup, counted from look to look and once more at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest

from sentinel_agent.probes.oom import JUST_NOW, OomCount
from sentinel_agent.target.cgroup import Controller, Limits

if TYPE_CHECKING:
    from pathlib import Path


class Cgroup:
    """A folder that looks like a memory cgroup of one version."""

    def __init__(self, folder: Path, version: Literal[1, 2]) -> None:
        self._file = folder / ("memory.oom_control" if version == 1 else "memory.events")
        self.set(0)
        controller = Controller("memory", version, folder.stat().st_dev, "/x", (str(folder),))
        self.limits = Limits(1.0, "", 1, "", None, controller)

    def set(self, kills: int) -> None:
        self._file.write_text(f"low 0\noom_kill {kills}\n")

    def remove(self) -> None:
        self._file.unlink()


@pytest.mark.parametrize("version", [1, 2])
def test_a_kill_between_the_last_look_and_the_end_is_seen(tmp_path: Path, version: Literal[1, 2]) -> None:
    """Each growth is told once by the looks; at the end, what came after them and what came just before."""
    cgroup = Cgroup(tmp_path, version)
    oom = OomCount(lambda _: cgroup.limits)
    cgroup.set(4)
    assert oom.look(0.0) is None  # kills from before we came are nobody's
    assert oom.just_now(0.5) == 0
    cgroup.set(5)
    assert oom.just_now(0.6) == 1
    assert oom.look(1.0) == 1
    assert oom.look(2.0) == 0
    assert oom.just_now(1.0 + JUST_NOW) == 1
    assert oom.just_now(1.1 + JUST_NOW) == 0


def test_a_cgroup_that_is_removed_with_its_process_leaves_what_was_seen(tmp_path: Path) -> None:
    """A runtime removes the folder at once; then the last look counts, and nothing is raised."""
    cgroup = Cgroup(tmp_path, 2)
    oom = OomCount(lambda _: cgroup.limits)
    oom.look(0.0)
    cgroup.set(1)
    oom.look(1.0)
    cgroup.remove()
    assert oom.just_now(1.5) == 1
    with pytest.raises(FileNotFoundError):
        oom.look(2.0)


def test_without_a_memory_controller_there_is_nothing_to_count() -> None:
    """A machine without one: the reading says so, the end is just an end."""
    oom = OomCount(lambda _: Limits(1.0, "", 1, "", None, None))
    with pytest.raises(FileNotFoundError):
        oom.look(0.0)
    assert oom.just_now(0.0) == 0
