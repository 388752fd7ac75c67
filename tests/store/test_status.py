"""The status files of running agents."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.core.model import TargetId
from sentinel_agent.errors import StoreError
from sentinel_agent.store.owner import is_alive, this_process
from sentinel_agent.store.status import MAX_STATUS_BYTES, publish, read_all, withdraw
from tests.store.helpers import names

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_700_000_000.0


def test_the_last_document_of_each_agent_is_read_newest_first(tmp_path: Path) -> None:
    """With whether the agent lives, by its pid and its start time."""
    publish(tmp_path, 10, 1, b"old")
    publish(tmp_path, 10, 1, b"first")
    publish(tmp_path, 10, 2, b"second")
    os.utime(tmp_path / "status" / "10-1.json", (NOW - 9, NOW - 9))
    os.utime(tmp_path / "status" / "10-2.json", (NOW - 5, NOW - 5))
    found = read_all(tmp_path, NOW, lambda owner: owner == TargetId(10, 2))
    assert found == [(b"second", True), (b"first", False)]
    withdraw(tmp_path, 10, 2)
    withdraw(tmp_path, 10, 2)
    assert [status.document for status in read_all(tmp_path, NOW, lambda _: True)] == [b"first"]


def test_files_of_the_dead_are_removed_after_a_day(tmp_path: Path) -> None:
    """Those of the living stay, and so does whatever is not ours."""
    for pid in (1, 2, 3):
        publish(tmp_path, pid, 1, b"x")
    folder = tmp_path / "status"
    (folder / ".4-1.json").write_bytes(b"half")
    (folder / "notes").write_bytes(b"mine")
    for name, age in (
        ("1-1.json", 86_401),
        ("2-1.json", 86_401),
        ("3-1.json", 86_399),
        (".4-1.json", 86_401),
    ):
        os.utime(folder / name, (NOW - age, NOW - age))
    read_all(tmp_path, NOW, lambda owner: owner.pid == 1)
    assert names(folder) == ["1-1.json", "3-1.json", "notes"]


def test_hostile_files_are_left_out(tmp_path: Path) -> None:
    """A link, a pipe, a folder and a file over the bound."""
    assert read_all(tmp_path, NOW) == []
    folder = tmp_path / "status"
    folder.mkdir()
    (folder / "1-1.json").symlink_to("/etc/hostname")
    os.mkfifo(folder / "2-1.json")
    (folder / "3-1.json").mkdir()
    (folder / "4-1.json").write_bytes(bytes(MAX_STATUS_BYTES + 1))
    assert read_all(tmp_path, 0, lambda _: True) == []


def test_a_status_that_is_too_large_or_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="too large"):
        publish(tmp_path, 1, 1, bytes(MAX_STATUS_BYTES + 1))
    (tmp_path / "status").write_bytes(b"")
    with pytest.raises(StoreError, match="something else"):
        publish(tmp_path, 1, 1, b"x")
    with pytest.raises(StoreError, match="something else"):
        read_all(tmp_path, NOW)


def test_a_process_is_alive_until_it_is_a_zombie(tmp_path: Path) -> None:
    """This one is; a reused pid and a zombie are not. The stat lines are those of proc_pid_stat(5)."""
    assert is_alive(this_process())
    assert not is_alive(TargetId(this_process().pid, this_process().start_time + 1))
    rest = " ".join(["1"] * 18) + " 555 " + " ".join(["0"] * 30)
    for state, alive in (("S", True), ("Z", False)):
        (tmp_path / "proc" / "7").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc" / "7" / "stat").write_text(f"7 (a ) b) {state} {rest}")
        assert is_alive(TargetId(7, 555), tmp_path) is alive
    (tmp_path / "proc" / "7" / "stat").write_bytes(b"\xff garbage")
    assert not is_alive(TargetId(7, 555), tmp_path)
