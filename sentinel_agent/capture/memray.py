"""`memray`: what the target's own memray sees of its memory, C extensions included. Needs `capture.allow_injection`, and memray on both sides.

The target must be able to import memray: nothing is installed or loaded there that is not its own. It tracks for a bounded time
(inject/payload/tracking.py) into a file in its /tmp, which is read here by a process of its own and removed. Two views come of it: the moment
at which most memory was held (`high-water`) and what was allocated meanwhile and is still held (`leaks`), each as pprof and flame graph.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import stat
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from sentinel_agent.capture.base import CapturedFile, CapturePlan, CaptureResult
from sentinel_agent.capture.child import running
from sentinel_agent.capture.injected import (
    ENDINGS,
    Answer,
    InjectedCapture,
    Injection,
    Natural,
    inject,
    refuse,
)
from sentinel_agent.core.units import format_duration, format_size
from sentinel_agent.errors import PeerError, TargetError
from sentinel_agent.profile import heap, svg
from sentinel_agent.profile.heap import HeapLine, HeapSite
from sentinel_agent.profile.record import MAX_NAME, clean_name

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_FILE = 256 * 1024**2
_MAX_SITES = 64 * 1024**2
_READ_SECONDS = 30.0
_TOP = 200
_SAFELY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NOT_HERE = "the package memray is not installed beside the agent"
_NOT_THERE = "the target cannot import memray"

_Frame = tuple[str, str, int]
_Sites = Annotated[list[tuple[Natural, Natural, list[_Frame]]], Meta(max_length=5000)]


class _Tracked(Answer, frozen=True, kw_only=True):
    version: Annotated[str, Meta(max_length=40)] = ""
    python: Annotated[str, Meta(max_length=10)] = ""


class _Report(msgspec.Struct, frozen=True):
    """What the reader says."""

    error: str = ""
    peak_bytes: Natural = 0
    high_water: _Sites = []
    leaks: _Sites = []


class MemrayDocument(msgspec.Struct, frozen=True):
    """The document of `memray.json`; `seconds` is how long was tracked, bytes are those that were allocated meanwhile.

    `high_water` are the places of the moment at which most was held, `leaks` those of what was not freed; the largest first.
    """

    seconds: float
    ended_by: str
    memray: str
    peak_bytes: int
    leaked_bytes: int
    high_water: tuple[HeapSite, ...]
    leaks: tuple[HeapSite, ...]
    injection: Injection


class MemrayCapture(InjectedCapture):
    """`memray.json`, and each view as `.pb.gz` and `.svg`."""

    kind = "memray"

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        """Track for `plan.duration` seconds.

        Raises:
            NotAllowedError: the settings do not allow it.
            TargetError: the target has no memray, is not fit for it, near its memory limit, or did not answer.
            PeerError: memray or hypno is missing here, or what came back is nonsense.
        """
        refuse(plan)
        if find_spec("memray") is None:
            raise PeerError(_NOT_HERE, hint="pip install 'sentinel-agent[memray]'")
        start = self._clock.wall()
        name = f"sentinel-agent-{secrets.token_hex(8)}.memray"
        there = Path(f"/proc/{plan.target.id.pid}/root/tmp", name)
        try:
            answer, injection = await self._track(plan, f"/tmp/{name}")  # noqa: S108 - nobody can guess the name
            await asyncio.to_thread(_fetch, there, plan.folder / "memray.bin")
        finally:
            await asyncio.to_thread(_remove, there)
        try:
            report = await _read(plan.folder / "memray.bin")
        finally:
            (plan.folder / "memray.bin").unlink(missing_ok=True)
        high_water, leaks = _sites(report.high_water), _sites(report.leaks)
        document = MemrayDocument(
            seconds=answer.seconds,
            ended_by=answer.ended_by,
            memray=answer.version,
            peak_bytes=report.peak_bytes,
            leaked_bytes=sum(site.bytes for site in leaks),
            high_water=high_water[:_TOP],
            leaks=leaks[:_TOP],
            injection=injection,
        )
        (plan.folder / "memray.json").write_bytes(msgspec.json.encode(document))
        files = [CapturedFile("memray.json", "memray", "json")]
        for view, sites in (("high-water", high_water), ("leaks", leaks)):
            files += await asyncio.to_thread(_write, plan.folder, view, sites, start, answer.seconds)
        return CaptureResult(
            files=tuple(files),
            pause_us=injection.pause_us,
            gil_hold_us=injection.gil_hold_us,
            note=_note(document),
        )

    async def _track(self, plan: CapturePlan, path: str) -> tuple[_Tracked, Injection]:
        try:
            return await inject(plan, "tracking", {"path": path}, _Tracked, self._clock)
        except TargetError as error:
            if "No module named 'memray'" in error.message:
                raise TargetError(
                    _NOT_THERE, hint="pip install memray in the environment of the target"
                ) from error
            raise


def _fetch(there: Path, here: Path) -> None:
    """Copy the file out of the target's /tmp, if it is a plain one of a bounded size.

    Raises:
        TargetError: it is not.
    """
    try:
        with _folder(there) as folder:
            descriptor = os.open(there.name, _SAFELY, dir_fd=folder)
    except OSError as error:
        raise TargetError(f"memray's file in the target's /tmp cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as source:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_FILE:
            raise TargetError(
                f"memray's file has {format_size(found.st_size)}, at most {format_size(_MAX_FILE)} are read",
                hint="track for a shorter time",
            )
        with here.open("wb") as copy:
            shutil.copyfileobj(source, copy)


def _remove(there: Path) -> None:
    """Remove the file, if it is there; one that is written later the target removes itself."""
    with contextlib.suppress(OSError), _folder(there) as folder:
        os.unlink(there.name, dir_fd=folder)


@contextlib.contextmanager
def _folder(there: Path) -> Iterator[int]:
    """The folder of a path in the target; a link in its place would lead to a folder of ours, and is not followed."""
    folder = os.open(there.parent, _SAFELY | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


async def _read(file: Path) -> _Report:
    """What a reader of its own makes of the file.

    Raises:
        PeerError: it cannot be read, for example because memray is of another version there.
    """
    command = [sys.executable, "-I", "-m", "sentinel_agent.capture.memray_reader", str(file)]
    try:
        async with asyncio.timeout(_READ_SECONDS), running(command, limit=_MAX_SITES) as child:
            done = await child.wait()
        report = msgspec.json.decode(done.stdout, type=_Report)
    except TimeoutError:
        raise PeerError(f"memray's file was not read within {format_duration(_READ_SECONDS)}") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError(f"what memray made of its file is not usable: {error}") from error
    if report.error:
        raise PeerError(
            f"memray cannot read what the target's memray wrote: {report.error}",
            hint="use the same version of memray beside the agent and in the target",
        )
    return report


def _sites(found: _Sites) -> tuple[HeapSite, ...]:
    return tuple(
        HeapSite(size, blocks, size, blocks, tuple(_line(*frame) for frame in frames))
        for size, blocks, frames in found
        if frames
    )


def _line(function: str, file: str, line: int) -> HeapLine:
    return HeapLine(clean_name(file[:MAX_NAME]), max(0, line), clean_name(function[:MAX_NAME]))


def _write(
    folder: Path, view: str, sites: tuple[HeapSite, ...], start: float, seconds: float
) -> list[CapturedFile]:
    name = f"memray.{view}"
    (folder / f"{name}.pb.gz").write_bytes(heap.encode(sites, start=start, seconds=seconds, source="memray"))
    (folder / f"{name}.svg").write_bytes(svg.encode_heap(sites, title=f"memray, {view}"))
    return [CapturedFile(f"{name}.pb.gz", name, "pprof"), CapturedFile(f"{name}.svg", name, "svg")]


def _note(document: MemrayDocument) -> str:
    words = [
        f"{format_size(document.leaked_bytes)} were allocated within {format_duration(document.seconds)} and are still held"
    ]
    if document.ended_by in ENDINGS:
        words.append(ENDINGS[document.ended_by])
    return "; ".join(words)
