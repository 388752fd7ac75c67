"""`profile`: what burns CPU, for a short while (`py-spy record --nonblocking`).

py-spy takes whole seconds; a profile shorter than that is ended by SIGINT, on which it writes what it has.
It leaves out threads that wait, without leaving a gap: the timeline of a thread is its running time.

Before CPython 3.11, without a pause, py-spy takes a thread that waits in C code (a sleep, a lock) for a running
one. Then the kernel is asked: a thread that used no CPU time is left out, and of the others the record says that
it is not known when they ran.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.capture.base import CapturedFile, CapturePlan, CaptureResult
from sentinel_agent.capture.child import OUTPUT, Child, Finished, running
from sentinel_agent.capture.pyspy import check_running, fault_of, find_py_spy
from sentinel_agent.capture.threads import LARGEST_PID, cpu_seconds, native_ids
from sentinel_agent.clock import Clock, SystemClock
from sentinel_agent.core.units import format_duration
from sentinel_agent.errors import NoSuchTargetError, OperatorError, PeerError
from sentinel_agent.profile import pprof, speedscope
from sentinel_agent.profile.record import ProfileRecord, Thread
from sentinel_agent.target.procfs import ProcDir

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.core.model import Target

_BEGUN = b"Sampling process"
_EXITED = b"process exited"
_ERRORS = re.compile(rb"Errors: (\d{1,9})")
_LEAST_SHARE = 0.01  # of a core; what a thread uses that waits
_RAW_FACTOR = 4  # py-spy's JSON against what is kept of it


class ProfileCapture:
    """A CPU profile as `profile.pb.gz` and `profile.speedscope.json`: function, line, thread."""

    kind = "profile"
    attaches = True

    def __init__(self, *, clock: Clock | None = None, py_spy: Callable[[], str] = find_py_spy) -> None:
        self._clock = clock or SystemClock()
        self._py_spy = py_spy

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        """Write both files.

        Raises:
            OperatorError: a pause is asked for.
            NoSuchTargetError: the target ended before there was a sample.
            NotPermittedError: the target may not be read.
            PeerError: py-spy is missing, failed, or answered nonsense.
        """
        if plan.spec.pause:
            raise OperatorError(
                "py-spy's pauses can be neither bounded nor measured, so a profile never pauses",
                hint="leave out `pause`, or take `stacks` with it",
            )
        check_running(plan.target)
        used = await asyncio.to_thread(_cpu_seconds, plan.target)
        async with running(self._command(plan), limit=_RAW_FACTOR * plan.max_bytes) as child:
            begun = await child.says(_BEGUN)
            start, began = self._clock.wall(), self._clock.monotonic()
            exited_by_itself = begun and await _ended_within(child, plan.duration)
            if begun and not exited_by_itself:
                child.interrupt()
            finished = await child.wait()
            seconds = self._clock.monotonic() - began
        if finished.returncode != 0:
            raise await fault_of(plan.target, finished)
        target_left = _EXITED in finished.stdout
        record = await asyncio.to_thread(_write, plan, finished, start, used)
        if target_left and not record.samples:
            raise NoSuchTargetError(f"process {plan.target.id.pid} ended before there was a sample")
        return CaptureResult(
            files=(
                CapturedFile("profile.pb.gz", "profile", "pprof"),
                CapturedFile("profile.speedscope.json", "profile", "speedscope"),
            ),
            lost_samples=record.lost,
            note=_note(record, format_duration(seconds) if target_left else None),
        )

    def _command(self, plan: CapturePlan) -> list[str]:
        options = ["--format", "speedscope", "--threads", "--full-filenames", "--nonblocking"]
        options += ["--duration", "unlimited"]
        rate, pid = str(plan.rate), str(plan.target.id.pid)
        return [self._py_spy(), "record", *options, "--rate", rate, "--output", OUTPUT, "--pid", pid]


async def _ended_within(child: Child, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await child.wait()
    except TimeoutError:
        return False
    return True


def _write(plan: CapturePlan, finished: Finished, start: float, used: dict[int, float]) -> ProfileRecord:
    record = _without_waiting(_parse(plan, finished, start), plan.target, used)
    (plan.folder / "profile.pb.gz").write_bytes(pprof.encode(record))
    (plan.folder / "profile.speedscope.json").write_bytes(speedscope.encode(record))
    return record


def _parse(plan: CapturePlan, finished: Finished, start: float) -> ProfileRecord:
    try:
        record = speedscope.decode(finished.output, on_cpu=True)
    except PeerError as error:
        raise PeerError(f"py-spy's profile is not usable: {error.message}") from error
    errors = _ERRORS.search(finished.stdout)
    lost = record.lost + (int(errors[1]) if errors else 0)
    return msgspec.structs.replace(record, start=start, period=1 / plan.rate, lost=lost)


def _cpu_seconds(target: Target) -> dict[int, float]:
    try:
        with ProcDir(target.id.pid) as proc:
            return cpu_seconds(proc)
    except OSError:
        return {}


def _without_waiting(record: ProfileRecord, target: Target, used: dict[int, float]) -> ProfileRecord:
    """Put native ids in the place of addresses, and leave out such threads if they used no CPU time since `used`."""
    handles = {thread.native_id for thread in record.threads if thread.native_id > LARGEST_PID}
    if not handles:
        return record
    ids: dict[int, int] = {}
    with suppress(OSError), ProcDir(target.id.pid) as proc:
        ids = native_ids(proc, handles)
    used_later = _cpu_seconds(target)
    threads = tuple(
        Thread(ids.get(thread.native_id, 0), thread.name) if thread.native_id in handles else thread
        for thread in record.threads
    )
    claimed = [0.0] * len(threads)
    for sample in record.samples:
        claimed[sample.thread] += sample.weight
    waiting = {
        index
        for index, thread in enumerate(threads)
        if thread.native_id in used_later
        and used_later[thread.native_id] - used.get(thread.native_id, 0.0) < _LEAST_SHARE * claimed[index]
    }
    samples = tuple(
        msgspec.structs.replace(sample, on_cpu=None)
        for sample in record.samples
        if sample.thread not in waiting
    )
    return msgspec.structs.replace(record, threads=threads, samples=samples)


def _note(record: ProfileRecord, left_after: str | None) -> str:
    notes = []
    if left_after:
        notes.append(f"the target ended after {left_after} of the profile")
    if not record.samples:
        notes.append("no thread was running")
    return "; ".join(notes)
