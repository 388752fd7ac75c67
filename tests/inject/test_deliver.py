"""What speaks against running code in a target, before anything is done to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sentinel_agent.core.model import TargetId
from sentinel_agent.errors import TargetError
from sentinel_agent.inject.deliver import MAX_CODE, refuse_unfit, starter
from tests.target.fakeproc import FakeProc

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("state", "words"), [(b"D", "uninterruptible sleep"), (b"T", "is stopped"), (b"t", "is stopped")]
)
def test_a_target_that_cannot_run_is_refused(state: bytes, words: str, tmp_path: Path) -> None:
    """It waits for a disk, or is stopped: the state is the kernel's word for it."""
    fake = FakeProc(tmp_path)
    fake.add(7, state=state)
    with pytest.raises(TargetError, match=words):
        refuse_unfit(TargetId(7, 100), "remote_exec", tmp_path)


def test_a_target_that_somebody_else_traces_is_refused(tmp_path: Path) -> None:
    """A debugger, or a second agent in the middle of its own injection; without one nothing speaks against it."""
    fake = FakeProc(tmp_path)
    folder = fake.add(7)
    refuse_unfit(TargetId(7, 100), "remote_exec", tmp_path)
    status = folder / "status"
    status.write_text(status.read_text() + "TracerPid:\t4711\n")
    with pytest.raises(TargetError, match="process 4711 traces the target"):
        refuse_unfit(TargetId(7, 100), "remote_exec", tmp_path)


def test_a_target_with_other_files_cannot_load_a_library_of_ours(tmp_path: Path) -> None:
    """In a container hypno's way is closed; that of 3.14 is not."""
    fake = FakeProc(tmp_path)
    fake.add(7)
    refuse_unfit(TargetId(7, 100), "remote_exec", tmp_path)
    with pytest.raises(TargetError, match="sees other files"):
        refuse_unfit(TargetId(7, 100), "hypno", tmp_path)


def test_what_is_brought_in_is_checked_and_binds_no_name() -> None:
    """It is one expression; what is no Python, or too long, is refused here and not in the target."""
    names: dict[str, object] = {}
    exec(starter("pass"), names)
    assert set(names) == {"__builtins__"}
    with pytest.raises(SyntaxError):
        starter("this is no Python")
    with pytest.raises(ValueError, match="at most"):
        starter("#" * MAX_CODE)
