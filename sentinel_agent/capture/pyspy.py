"""py-spy: where it is, what it says, and whose fault it is when it fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sentinel_agent.errors import NoSuchTargetError, NotPermittedError, PeerError, SentinelError
from sentinel_agent.target import doctor
from sentinel_agent.target.discover import ACCESS_HINT
from sentinel_agent.target.liveness import is_running

if TYPE_CHECKING:
    from sentinel_agent.capture.child import Finished
    from sentinel_agent.core.model import Target

_LONGEST_MESSAGE = 300
_LOOKS, _LOOK_SECONDS = 10, 0.01
_REFUSALS = ("permission denied", "operation not permitted")


def find_py_spy(executable: str | None = None, path: str | None = None) -> str:
    """The py-spy beside the interpreter, else the one on PATH (`path`, or the environment's).

    Raises:
        PeerError: there is none.
    """
    found = doctor.find_py_spy(executable, path)
    if not found:
        raise PeerError(
            "py-spy is not installed, neither beside Python nor on PATH", hint="pip install py-spy"
        )
    return found


def check_running(target: Target) -> None:
    """Make sure that the pid is still the target's before it is handed to py-spy.

    Raises:
        NoSuchTargetError: the target has ended.
    """
    if not is_running(target.id):
        raise NoSuchTargetError(f"process {target.id.pid} has ended")


async def fault_of(target: Target, finished: Finished) -> SentinelError:
    """Why py-spy failed: the target is gone, may not be read, is not Python, or py-spy is to blame."""
    pid, said = target.id.pid, _said(finished)
    if await _ends(target):
        return NoSuchTargetError(f"process {pid} ended while py-spy was reading it")
    if any(refusal in said.lower() for refusal in _REFUSALS):
        return NotPermittedError(f"process {pid} may not be read by this user", hint=ACCESS_HINT)
    if "find python version" in said.lower():
        return PeerError(f"py-spy found no Python interpreter in process {pid}")
    how = f"signal {-finished.returncode}" if finished.returncode < 0 else f"status {finished.returncode}"
    return PeerError(f"py-spy ended with {how}: {said or 'it said nothing'}")


async def _ends(target: Target) -> bool:
    """Whether the target has ended, or is about to: its memory goes some milliseconds before it does."""
    for _ in range(_LOOKS):
        if not is_running(target.id):
            return True
        await asyncio.sleep(_LOOK_SECONDS)
    return not is_running(target.id)


def _said(finished: Finished) -> str:
    """py-spy's own words, without its backtrace; control characters cannot reach a terminal from here."""
    text = (finished.stderr or finished.stdout).decode("utf-8", "replace")
    text = " ".join(text.partition("Stack backtrace:")[0].split())
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"
