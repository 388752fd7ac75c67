"""What speaks against running code in a target, before anything is done to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sentinel_agent.capture.injected import payload
from sentinel_agent.clock import SystemClock
from sentinel_agent.core.model import TargetId
from sentinel_agent.errors import TargetError
from sentinel_agent.inject.deliver import MAX_CODE, deliver, refuse_unfit, starter
from tests.capture.targets import target_of
from tests.cpython.conftest import MINORS, python_of
from tests.inject.targets import running
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


BUSY = """
import sys
print("ready", flush=True)
sum(range(60_000_000))  # one call in C, for a second or more
print("on", flush=True)
sys.stdin.readline()
sum(number for number in range(100_000))
print([name for name in vars(sys) if name.startswith("_sentinel")], flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("minor", [minor for minor in MINORS if minor >= 14])
async def test_what_the_target_was_too_busy_to_run_is_withdrawn(minor: int) -> None:
    """The main thread is in one long call in C: afterwards it neither runs the code nor says that a script is missing."""
    arguments: dict[str, object] = {"seconds": 0.1, "most_hold": 1.0, "most_bytes": 10**8}
    with running(str(python_of(minor)), "-c", BUSY) as process:
        with pytest.raises(TargetError, match="has not answered in time"):
            await deliver(
                target_of(process.pid).id,
                payload("census"),
                "census",
                arguments,
                keep=1.0,
                seconds=0.2,
                clock=SystemClock(),
            )
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "on\n"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "[]\n"


def test_what_is_brought_in_is_checked_and_binds_no_name() -> None:
    """It is one expression; what is no Python, or too long, is refused here and not in the target."""
    names: dict[str, object] = {}
    exec(starter("pass"), names)
    assert set(names) == {"__builtins__"}
    with pytest.raises(SyntaxError):
        starter("this is no Python")
    with pytest.raises(ValueError, match="at most"):
        starter("#" * MAX_CODE)
