"""Bring a payload into a target, and its answer back. Nothing is done before every reason against it has been looked at.

The payload runs in a thread of its own; the target's main thread only starts it. Its answer is one bytes object in the target's
`sys`, found and read from outside as any other, so that neither files nor sockets are needed in the target, and it takes that away
itself. Into 3.14 and later the code comes by PEP 768, into older ones by `hypno`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from sentinel_agent.cpython.elf import UnsupportedTargetError
from sentinel_agent.cpython.memory import UnreadableError
from sentinel_agent.cpython.process import open_process
from sentinel_agent.errors import NoSuchTargetError, NotPermittedError, PeerError, TargetError
from sentinel_agent.inject import remote_exec
from sentinel_agent.target.procfs import ProcDir

if TYPE_CHECKING:
    from sentinel_agent.clock import Clock
    from sentinel_agent.core.model import TargetId
    from sentinel_agent.cpython.process import Interpreter

Way = Literal["remote_exec", "hypno"]

MAX_CODE = 60_000
MAX_ANSWER = 2 * 1024**2
MOMENT_SECONDS = 3.0
"""For how long a safe moment is looked for."""
_POLL = 0.05
_FOLDER = "/tmp"  # noqa: S108 - the file is made with O_EXCL and a name that nobody can guess


@dataclass(frozen=True, slots=True)
class _Brought:
    """How long the main thread was stopped; a script that is to be removed afterwards, and where the flag is that asks for it."""

    stops: tuple[float, ...] = ()
    script: Path | None = None
    flag: int = 0


Bring = Callable[["Interpreter", int, str], _Brought]


@dataclass(frozen=True, slots=True)
class Delivered:
    """What ran in a target, and what it answered. `stops` are the times, in seconds, that its main thread was stopped for."""

    way: Way
    sha256: str
    size: int
    stops: tuple[float, ...]
    answer: bytes


class _ChildReport(msgspec.Struct, frozen=True):
    error: str = ""
    stops: tuple[float, ...] = ()


async def deliver(
    target: TargetId,
    payload: str,
    job: str,
    arguments: dict[str, object],
    *,
    keep: float,
    seconds: float,
    clock: Clock,
) -> Delivered:
    """Run `payload` in the target and wait for at most `seconds` until its function `job` has answered.

    The payload has the function `work` (inject/payload/common.py), which calls `job` with `arguments` and leaves the answer for `keep`
    seconds under a name that nobody can guess.

    Raises:
        TargetError: the target is not fit for it, or did not answer in time; the message says why.
        PeerError: hypno is missing or failed.
    """
    interpreter = await asyncio.to_thread(open_process, target.pid)
    way: Way = "remote_exec" if interpreter.layout.minor >= remote_exec.FIRST_MINOR else "hypno"
    refuse_unfit(target, way)
    name = f"_sentinel_agent_{secrets.token_hex(8)}"
    words = "".join(f", {key}={value!r}" for key, value in arguments.items())
    source = f"{payload}\nwork({name!r}, {keep!r}, {job}{words})\n"
    code = starter(source)
    end = clock.monotonic() + seconds
    bring = _by_remote_exec if way == "remote_exec" else _by_hypno
    brought = await _undisturbed(bring, interpreter, target.pid, code)
    try:
        answer = await _answer(interpreter, name, end, clock)
    finally:
        if brought.script:
            remote_exec.withdraw(interpreter, target.pid, brought.flag)
            brought.script.unlink(missing_ok=True)
    return Delivered(way, hashlib.sha256(code.encode()).hexdigest(), len(code), brought.stops, answer)


def starter(source: str) -> str:
    """One expression that runs `source` in a thread of its own and binds no name where it is executed.

    Raises:
        ValueError: `source` is no Python, or too long.
    """
    compile(source, "<payload>", "exec")
    code = (
        f"__import__('_thread').start_new_thread(exec,({source!r},{{'__name__':'sentinel_agent_payload'}}))"
    )
    if len(code) > MAX_CODE:
        raise ValueError(f"a payload has {len(code)} bytes, at most {MAX_CODE} are possible")
    return code


def refuse_unfit(target: TargetId, way: Way, root: Path = Path("/")) -> None:
    """Return if nothing speaks against running code in the target at this moment.

    Raises:
        TargetError: something does.
        PeerError: hypno is not installed.
    """
    with ProcDir.of(target, root) as proc:
        state = proc.stat().state
        status = proc.read("status").decode("utf-8", "replace")
    if state in "Tt":
        raise TargetError(
            "the target is stopped (SIGSTOP or a debugger)", hint="let it go on: kill -CONT PID"
        )
    if state == "D":
        raise TargetError(
            "the target is in uninterruptible sleep: it waits for a disk or a driver",
            hint="see its wchan and the disk",
        )
    tracer = next((line.split()[1] for line in status.splitlines() if line.startswith("TracerPid:")), "0")
    if tracer != "0":
        raise TargetError(
            f"process {tracer} traces the target: a debugger, or another agent", hint="end that one first"
        )
    if way == "hypno":
        if find_spec("hypno") is None:
            raise PeerError("the package hypno is not installed", hint="pip install 'sentinel-agent[inject]'")
        if not _same_files(target.pid, root):
            raise TargetError(
                "the target sees other files than the agent does (a container), so it cannot load the library that brings the code",
                hint="run the agent in the same container",
            )


def _same_files(pid: int, root: Path) -> bool:
    try:
        ours, theirs = (root / "proc/self/root").stat(), (root / "proc" / str(pid) / "root").stat()
        ours_ns, theirs_ns = ((root / "proc" / who / "ns/mnt").stat() for who in ("self", str(pid)))
    except OSError:
        return False
    return (ours.st_dev, ours.st_ino, ours_ns.st_ino) == (theirs.st_dev, theirs.st_ino, theirs_ns.st_ino)


async def _undisturbed(bring: Bring, interpreter: Interpreter, pid: int, code: str) -> _Brought:
    """Bring the code in; once that has begun it goes on to its end, whoever is cancelled: half of it would be the target's death."""
    work = asyncio.ensure_future(asyncio.to_thread(bring, interpreter, pid, code))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _by_hypno(_: Interpreter, pid: int, code: str) -> _Brought:
    command = [sys.executable, "-I", "-m", "sentinel_agent.inject.hypno_child", str(pid), str(MOMENT_SECONDS)]
    done = subprocess.run(
        command, input=code.encode(), capture_output=True, check=False, start_new_session=True
    )
    try:
        report = msgspec.json.decode(done.stdout, type=_ChildReport)
    except msgspec.MsgspecError:
        said = done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise PeerError(f"the helper that runs hypno ended with status {done.returncode}: {said}") from None
    if report.error:
        longest = f" (it was stopped {len(report.stops)} times for a look)" if report.stops else ""
        raise TargetError(f"no code was run in the target: {report.error}{longest}")
    return _Brought(report.stops)


def _by_remote_exec(interpreter: Interpreter, pid: int, code: str) -> _Brought:
    """The script lies in the target's own /tmp: it is opened there, in its mount namespace and root directory."""
    folder = os.open(
        f"/proc/{pid}/root{_FOLDER}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    )
    try:
        name = f".sentinel-agent-{secrets.token_hex(8)}.py"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o644, dir_fd=folder)
        with os.fdopen(file, "wb") as script:
            script.write(code.encode() + b"\n")
        path = Path(f"/proc/{pid}/root{_FOLDER}", name)
        try:
            flag = remote_exec.request(interpreter, pid, f"{_FOLDER}/{name}")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    finally:
        os.close(folder)
    return _Brought(script=path, flag=flag)


async def _answer(interpreter: Interpreter, name: str, end: float, clock: Clock) -> bytes:
    while True:
        try:
            found = await asyncio.to_thread(interpreter.sys_bytes, name, MAX_ANSWER)
        except (NoSuchTargetError, NotPermittedError, UnsupportedTargetError):
            raise
        except UnreadableError:
            found = None
        if found is not None:
            return found
        if clock.monotonic() >= end:
            raise TargetError(
                "the code that was brought into the target has not answered in time",
                hint="its main thread may be in a call that does not end; see `sentinel-agent stacks`",
            )
        await clock.sleep(_POLL)
