"""`stacks`: what every thread is doing and, with the flight recorder, did before. By default the target is never stopped.

A read of a running process can fail half-way; it is repeated a few times, and each failure is counted as lost.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from sentinel_agent.capture.base import CapturedFile, CapturePlan, CaptureResult, Recording
from sentinel_agent.capture.child import Finished, running
from sentinel_agent.capture.pyspy import check_running, fault_of, find_py_spy
from sentinel_agent.capture.threads import native_ids, running_threads
from sentinel_agent.clock import Clock, SystemClock
from sentinel_agent.cpython.process import open_process
from sentinel_agent.errors import NoSuchTargetError, NotPermittedError, PeerError, SentinelError, TargetError
from sentinel_agent.profile import pprof, speedscope
from sentinel_agent.profile.record import MAX_DEPTH, MAX_THREADS, ProfileRecord, RecordBuilder, clean_name
from sentinel_agent.target.procfs import ProcDir

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.core.model import Target

ATTEMPTS = 4
_RETRY_AFTER = 0.01  # seconds; the target has moved on by then
_LOOKS = 50
_MAX_DUMP = 32 * 1024**2

Natural = Annotated[int, Meta(ge=0)]


class StackFrame(msgspec.Struct, frozen=True):
    """One line of one function of the target."""

    function: str
    file: str
    line: int


class ThreadStack(msgspec.Struct, frozen=True):
    """One thread; frames are innermost first. `native_id` is 0 and `gil` None where they are not known."""

    native_id: int
    name: str
    state: str
    gil: bool | None
    frames: tuple[StackFrame, ...]


class Stacks(msgspec.Struct, frozen=True):
    """The document of `stacks.json` and of `stacks PID --json`."""

    threads: tuple[ThreadStack, ...]


class _DumpedFrame(msgspec.Struct):
    name: str
    filename: str
    line: Natural


class _DumpedThread(msgspec.Struct):
    thread_id: int
    active: bool
    frames: list[_DumpedFrame]
    os_thread_id: Natural | None = None
    thread_name: str | None = None
    owns_gil: bool | None = None


class StacksCapture:
    """All thread stacks: at this moment, and from before the trigger where the flight recorder has them.

    `stacks.json` is the moment. With a recording, `stacks.pb.gz` and `stacks.speedscope.json` (the timeline) are of
    every thread over the recorder's window, `stacks.cpu.pb.gz` of those on a CPU, and `stacks.during.pb.gz` of the
    latter since the rule's condition became true; without one, `stacks.pb.gz` is of the moment. `look` reads the
    moment with the reader of our own; where it cannot, and with `pause`, py-spy does.
    """

    kind = "stacks"
    attaches = True

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        py_spy: Callable[[], str] = find_py_spy,
        attempts: int = ATTEMPTS,
        look: Callable[[Target], Stacks] | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._py_spy = py_spy
        self._attempts = attempts
        self._look = look

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        """Write the files. With `pause`, the target is stopped for at most as long as py-spy ran.

        A target that has ended still leaves what was recorded of it.

        Raises:
            SentinelError: as `read`, where nothing was recorded either.
        """
        files: list[CapturedFile] = []
        notes: list[str] = []
        lost, pause = 0, 0.0
        try:
            stacks, lost, seconds = await self._now(plan)
            pause = seconds if plan.spec.pause else 0.0
            start = self._clock.wall()
            await asyncio.to_thread(_write_moment, plan, stacks, start, lost)
            files.append(CapturedFile("stacks.json", "stacks", "json"))
            if lost:
                notes.append(f"read at attempt {lost + 1}")
            moment: SentinelError | None = None
        except SentinelError as error:
            moment = error
        recording = await self._recorded(plan)
        if recording is not None:
            files += await asyncio.to_thread(_write_recording, plan, recording)
            lost += recording.wall.lost
            notes.append(f"{recording.coverage:.0%} of the time of the trigger is covered")
        elif moment is None:
            files.append(CapturedFile("stacks.pb.gz", "stacks", "pprof"))
        if moment is not None:
            if recording is None:
                raise moment
            notes.append(f"only what was recorded: {moment.message}")
        return CaptureResult(
            files=tuple(files), pause_us=round(pause * 1e6), lost_samples=lost, note="; ".join(notes)
        )

    async def _now(self, plan: CapturePlan) -> tuple[Stacks, int, float]:
        if self._look is not None and not plan.spec.pause:
            try:
                return await asyncio.to_thread(self._look, plan.target), 0, 0.0
            except (NoSuchTargetError, NotPermittedError):
                raise
            except TargetError:  # no CPython that our reader knows; py-spy may
                pass
        return await self.read(plan.target, pause=plan.spec.pause)

    async def _recorded(self, plan: CapturePlan) -> Recording | None:
        if plan.recording is None:
            return None
        until = plan.trigger_time + plan.tail
        await self._clock.sleep(until - self._clock.wall())
        return await plan.recording()

    async def read(self, target: Target, *, pause: bool = False) -> tuple[Stacks, int, float]:
        """The stacks, how many attempts failed before, and the seconds that the last one took.

        Raises:
            NoSuchTargetError: the target has ended.
            NotPermittedError: the target may not be read.
            PeerError: py-spy is missing, failed at every attempt, or answered nonsense.
        """
        command = [self._py_spy(), "dump", "--json", "--full-filenames", "--pid", str(target.id.pid)]
        if not pause:
            command.append("--nonblocking")
        lost = 0
        while True:
            check_running(target)
            began = self._clock.monotonic()
            async with running(command, limit=_MAX_DUMP) as child:
                finished = await child.wait()
            seconds = self._clock.monotonic() - began
            try:
                if finished.returncode != 0:
                    raise await fault_of(target, finished)
                return await asyncio.to_thread(_parse, target, finished), lost, seconds
            except (NoSuchTargetError, NotPermittedError):
                raise
            except PeerError:
                lost += 1
                if lost >= self._attempts:
                    raise
            await self._clock.sleep(_RETRY_AFTER)


def _parse(target: Target, finished: Finished) -> Stacks:
    if finished.stdout.count(b"{") > 64 * MAX_THREADS:
        raise PeerError("py-spy's dump is not usable: it has too many entries")
    try:
        dumped = msgspec.json.decode(finished.stdout, type=list[_DumpedThread])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError(f"py-spy's dump is not usable: {error}") from error
    dumped = dumped[:MAX_THREADS]
    _complete(target, dumped)
    return Stacks(tuple(_thread(thread) for thread in dumped))


def _complete(target: Target, dumped: list[_DumpedThread]) -> None:
    """Fill in native ids that py-spy does not know, and with them whether the thread is running."""
    unknown = {thread.thread_id: thread for thread in dumped if thread.os_thread_id is None}
    if not unknown:
        return
    try:
        with ProcDir(target.id.pid) as proc:
            ids, running_now = native_ids(proc, unknown), running_threads(proc)
    except OSError:  # the target has just ended: what was read stays as it is
        return
    for handle, native_id in ids.items():
        thread = unknown[handle]
        thread.os_thread_id = native_id
        thread.active = thread.active and running_now.get(native_id, thread.active)


def _thread(dumped: _DumpedThread) -> ThreadStack:
    return ThreadStack(
        native_id=dumped.os_thread_id or 0,
        name=clean_name(dumped.thread_name or ""),
        state="running" if dumped.active or dumped.owns_gil else "waiting",
        gil=dumped.owns_gil,
        frames=tuple(
            StackFrame(clean_name(frame.name), clean_name(frame.filename), frame.line)
            for frame in dumped.frames[:MAX_DEPTH]
        ),
    )


def to_record(stacks: Stacks, *, start: float, lost: int = 0) -> ProfileRecord:
    """One sample without weight per thread; a thread without a Python frame gives none."""
    builder = RecordBuilder(start=start, period=0.0, source="py-spy dump", lost=lost)
    for thread in stacks.threads:
        frames = [builder.frame(frame.function, frame.file, frame.line) for frame in thread.frames]
        if frames:
            builder.add(
                builder.thread(thread.native_id, thread.name), frames, on_cpu=thread.state == "running"
            )
    return builder.build()


def _write_moment(plan: CapturePlan, stacks: Stacks, now: float, lost: int) -> None:
    (plan.folder / "stacks.json").write_bytes(msgspec.json.encode(stacks))
    (plan.folder / "stacks.pb.gz").write_bytes(pprof.encode(to_record(stacks, start=now, lost=lost)))


def _write_recording(plan: CapturePlan, recording: Recording) -> list[CapturedFile]:
    """Each view that holds a sample; the one of all threads takes the place of the moment's."""
    written = []
    timeline = partial(speedscope.encode, since=recording.during.start)
    for name, form, record, encode in (
        ("stacks.pb.gz", "pprof", recording.wall, pprof.encode),
        ("stacks.speedscope.json", "speedscope", recording.wall, timeline),
        ("stacks.cpu.pb.gz", "pprof", recording.cpu, pprof.encode),
        ("stacks.during.pb.gz", "pprof", recording.during, pprof.encode),
    ):
        if record.samples:
            (plan.folder / name).write_bytes(encode(record))
            written.append(CapturedFile(name, "stacks", form))
    return written


def look(target: Target) -> Stacks:
    """The stacks as our own reader sees them: all whole if that can be had within a few attempts, else the last ones.

    Raises:
        TargetError: the target has ended, may not be read, or is no CPython that the reader knows.
    """
    interpreter = open_process(target.pid)
    for _ in range(_LOOKS):
        views = interpreter.stacks()
        if all(view.kind == "whole" for view in views):
            break
    return Stacks(
        tuple(
            ThreadStack(
                native_id=view.native_id or 0,
                name=clean_name(view.name or ""),
                state=view.state or "waiting",
                gil=view.gil,
                frames=tuple(
                    StackFrame(clean_name(frame.function), clean_name(frame.file), frame.line or 0)
                    for frame in view.frames[:MAX_DEPTH]
                ),
            )
            for view in views
        )
    )
