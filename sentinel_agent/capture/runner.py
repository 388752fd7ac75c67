"""Runs the captures of incidents: in order, each within its time and bytes, all within one budget.

Off the sampling path: nothing here blocks the event loop, and a capture that hangs is cancelled. Every capture
ends in a report, the ones that did not happen too.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.capture.base import (
    Capture,
    CapturedFile,
    CapturePlan,
    CaptureResult,
    Recording,
    SeriesWindow,
    latest,
)
from sentinel_agent.clock import Clock, SystemClock
from sentinel_agent.core.guard import skip_reason
from sentinel_agent.core.model import CaptureReport, CaptureStatus, Target, TargetId
from sentinel_agent.core.rule import CaptureSpec
from sentinel_agent.core.units import format_duration, format_size
from sentinel_agent.errors import NoSuchTargetError, NotAllowedError, PeerError, SentinelError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from sentinel_agent.capture.heap import HeapCensus
    from sentinel_agent.capture.registry import LoadedCaptures
    from sentinel_agent.capture.task_groups import TaskSnapshot
    from sentinel_agent.config.settings import CaptureSettings

_MAX_FILES = 32
_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Captured:
    """What the captures of one incident made: files in its folder, and one report for each capture."""

    files: tuple[CapturedFile, ...]
    reports: tuple[CaptureReport, ...]


@dataclass(frozen=True, slots=True)
class RunnerStatistics:
    """Captures by how they ended, and how many are under way."""

    running: int
    finished: dict[CaptureStatus, int]


@dataclass(frozen=True, slots=True)
class _Order:
    """What the captures of one incident share."""

    target: Target
    folder: Path
    trigger_time: float
    series: Callable[[], SeriesWindow]
    recording: Callable[[], Awaitable[Recording | None]] | None
    ended: str | None
    tasks_before: Callable[[], TaskSnapshot | str] | None
    heap_before: Callable[[], HeapCensus | str] | None


class CaptureRunner:
    """Runs captures for all rules and targets; one for the whole agent."""

    def __init__(
        self, loaded: LoadedCaptures, settings: CaptureSettings, *, clock: Clock | None = None
    ) -> None:
        self._loaded = loaded
        self._settings = settings
        self._clock = clock or SystemClock()
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._turns: dict[TargetId, asyncio.Lock] = {}
        self._users: Counter[TargetId] = Counter()
        self._longest: dict[tuple[TargetId, str], int] = {}
        self._running = 0
        self._finished: Counter[CaptureStatus] = Counter()

    async def run(
        self,
        target: Target,
        specs: Sequence[CaptureSpec],
        *,
        folder: Path,
        trigger_time: float,
        series: Callable[[], SeriesWindow],
        recording: Callable[[], Awaitable[Recording | None]] | None = None,
        ended: str | None = None,
        tasks_before: Callable[[], TaskSnapshot | str] | None = None,
        heap_before: Callable[[], HeapCensus | str] | None = None,
    ) -> Captured:
        """Run `specs` one after the other, and `series` at the end if it is not among them.

        Cancelling it ends the capture under way, leaves no child, and keeps nothing of that capture.
        """
        order = _Order(target, folder, trigger_time, series, recording, ended, tasks_before, heap_before)
        if not any(spec.kind == "series" for spec in specs):
            specs = [*specs, CaptureSpec("series")]
        files: list[CapturedFile] = []
        reports: list[CaptureReport] = []
        for spec in specs:
            report, made = await self._run_one(order, spec)
            self._finished[report.status] += 1
            reports.append(report)
            files += made
        return Captured(tuple(files), tuple(reports))

    def statistics(self) -> RunnerStatistics:
        """How captures have ended so far."""
        return RunnerStatistics(self._running, dict(self._finished))

    async def _run_one(
        self, order: _Order, spec: CaptureSpec
    ) -> tuple[CaptureReport, tuple[CapturedFile, ...]]:
        capture = self._loaded.captures.get(spec.kind)
        if capture is None:
            return CaptureReport(spec.kind, "skipped", self._loaded.missing(spec.kind)), ()
        async with self._turn(order.target.id, capture):
            refusal = self._refusal(order, spec, capture)
            if refusal:
                return CaptureReport(spec.kind, "skipped", refusal), ()
            began = self._clock.monotonic()
            status, reason, result = await self._attempt(order, spec, capture)
            report = CaptureReport(
                kind=spec.kind,
                status=status,
                reason=reason,
                seconds=round(self._clock.monotonic() - began, 6),
                pause_us=result.pause_us,
                lost_samples=result.lost_samples,
                gil_hold_us=result.gil_hold_us,
            )
            self._remember(order.target.id, report)
        return report, result.files

    def _refusal(self, order: _Order, spec: CaptureSpec, capture: Capture) -> str | None:
        """Why a step is not even begun: its guard, or what one like it has cost this target before."""
        stopped = self._longest.get((order.target.id, spec.kind), 0) / 1e6
        most = self._most_pause(spec)
        if stopped > most:
            return (
                f"it has stopped this target for {format_duration(stopped)} at once before, "
                f"max_pause allows {format_duration(most)}"
            )
        guard = spec.skip_when or getattr(capture, "skip_when", None)
        return skip_reason(guard, latest(order.series())) if guard else None

    def _most_pause(self, spec: CaptureSpec) -> float:
        return spec.max_pause if spec.max_pause is not None else self._settings.max_pause

    def _remember(self, target: TargetId, report: CaptureReport) -> None:
        """Keep the longest time that a kind has stopped a target, or held its GIL; the targets seen last."""
        longest = max(report.pause_us, report.gil_hold_us, self._longest.pop((target, report.kind), 0))
        if longest:
            self._longest[target, report.kind] = longest
        while len(self._longest) > _REMEMBERED:
            del self._longest[next(iter(self._longest))]

    async def _attempt(
        self, order: _Order, spec: CaptureSpec, capture: Capture
    ) -> tuple[CaptureStatus, str, CaptureResult]:
        staging = order.folder / f".capture-{spec.kind}"
        plan = self._plan(order, spec, staging, capture)
        nothing = CaptureResult(())
        try:
            staging.mkdir(mode=0o700)
            async with asyncio.timeout(plan.deadline):
                result = await capture.capture(plan)
            files = tuple(_keep(result.files, plan, order.folder))
            return "ok", result.note, replace(result, files=files)
        except TimeoutError:
            return "timeout", f"did not end within {format_duration(plan.deadline)}", nothing
        except NoSuchTargetError as error:
            return "skipped", error.message, nothing
        except NotAllowedError as error:
            return "skipped", f"{error.message} ({error.hint})", nothing
        except SentinelError as error:
            hint = f" ({error.hint})" if error.hint else ""
            return "failed", f"{error.message}{hint}", nothing
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's capture may raise anything
            return "failed", f"{type(error).__name__}: {error}"[:500], nothing
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _plan(self, order: _Order, spec: CaptureSpec, staging: Path, capture: Capture) -> CapturePlan:
        settings = self._settings
        filled = msgspec.structs.replace(
            spec,
            duration=spec.duration or getattr(capture, "duration", settings.profile_duration),
            rate=spec.rate or settings.profile_rate,
            max_bytes=spec.max_bytes or settings.max_bytes,
        )
        return CapturePlan(
            target=order.target,
            folder=staging,
            trigger_time=order.trigger_time,
            spec=filled,
            deadline=(spec.timeout or settings.timeout) + (filled.duration or 0.0),
            max_bytes=filled.max_bytes or settings.max_bytes,
            series=order.series,
            redact=settings.redact,
            recording=order.recording,
            tail=0.0 if order.ended else spec.duration or 0.0,
            ended=order.ended,
            max_pause=self._most_pause(spec),
            allow_injection=settings.allow_injection,
            tasks_before=order.tasks_before,
            heap_before=order.heap_before,
        )

    @asynccontextmanager
    async def _turn(self, target: TargetId, capture: Capture) -> AsyncIterator[None]:
        """Wait for the target first and a slot second, so that who waits for a target takes no slot."""
        if capture.kind == "series":  # reads the agent's own memory: nothing to wait for
            yield
            return
        async with self._alone(target, needed=capture.attaches), self._slots:
            self._running += 1
            try:
                yield
            finally:
                self._running -= 1

    @asynccontextmanager
    async def _alone(self, target: TargetId, *, needed: bool) -> AsyncIterator[None]:
        if not needed:
            yield
            return
        lock = self._turns.setdefault(target, asyncio.Lock())
        self._users[target] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[target] -= 1
            if not self._users[target]:
                del self._turns[target], self._users[target]


def _keep(files: Sequence[CapturedFile], plan: CapturePlan, folder: Path) -> list[CapturedFile]:
    """Move what the capture wrote into the incident's folder, if all of it is sound and within the limit.

    Raises:
        PeerError: the files are too large, too many, or no plain files.
    """
    if len(files) > _MAX_FILES:
        raise PeerError(f"it wrote {len(files)} files, the limit is {_MAX_FILES}")
    total = 0
    for file in files:
        path = plan.folder / file.name
        if Path(file.name).name != file.name or path.is_symlink() or not path.is_file():
            raise PeerError(f"it named {file.name!r}, which is no plain file in its folder")
        total += path.stat().st_size
    if total > plan.max_bytes:
        raise PeerError(
            f"it wrote {format_size(total)}, the limit is {format_size(plan.max_bytes)}",
            hint="raise the capture's max_bytes, or take a shorter profile",
        )
    kept = []
    for file in files:
        name = _free_name(folder, file.name)
        (plan.folder / file.name).rename(folder / name)
        kept.append(CapturedFile(name, file.kind, file.format))
    return kept


def _free_name(folder: Path, name: str) -> str:
    """`name`, or `stem-2.suffixes` and so on where a rule asks for one kind twice."""
    stem, dot, suffixes = name.partition(".")
    number, free = 1, name
    while (folder / free).exists():
        number += 1
        free = f"{stem}-{number}{dot}{suffixes}"
    return free
