"""`heap`: what the collector tracks, by type, at the trigger and after the next full collection, and the difference. Only read.

The pair is that of holmes' GC heap dumps: what is still there after a full collection is held, not merely not yet freed. The
target's lists are walked from outside (`cpython.census`), with rests, so that neither the target nor the agent's ticks wait.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.capture.base import CapturedFile, CapturePlan, CaptureResult
from sentinel_agent.capture.injected import Injection
from sentinel_agent.clock import Clock, SystemClock
from sentinel_agent.core.units import format_duration
from sentinel_agent.cpython.census import CensusLimits
from sentinel_agent.cpython.memory import UnreadableError
from sentinel_agent.cpython.process import open_process
from sentinel_agent.profile.record import clean_name
from sentinel_agent.target.mappings import parse, totals
from sentinel_agent.target.procfs import ProcDir, text

if TYPE_CHECKING:
    from sentinel_agent.core.model import TargetId
    from sentinel_agent.cpython.census import Census
    from sentinel_agent.cpython.process import Interpreter

SECONDS = 10.0
"""How long a full collection is waited for."""
_POLL = 0.2
_REST = 0.001
_TYPES = 200
_KEPT = 5000
_ATTEMPTS = 3
_UNWATCHED = "no census from before is at hand: only the agent that watches the process keeps them"
_MAX_MAPS = 4 * 1024**2


class TypeTotal(msgspec.Struct, frozen=True):
    """Tracked objects of the types of one name; `bytes` without what they point to."""

    name: str
    count: int
    bytes: int


class HeapCensus(msgspec.Struct, frozen=True):
    """One walk; `time` in seconds since the epoch. `torn` lists were left before their end; `cut`: there are more objects.

    No type that is not among `types` had more than `left_out` objects.
    """

    time: float
    objects: int
    types: tuple[TypeTotal, ...]
    torn: int
    cut: bool
    left_out: int = 0


class HeapDocument(msgspec.Struct, frozen=True):
    """The document of `heap.json`. `growth` is `after` less `before`, the most bytes first.

    `full_collection` says whether one was seen in between. `mappings` are bytes of address space by kind: `heap` is malloc's main arena,
    `anonymous` all others without a file, which hold Python's own arenas and malloc's. `injection` is there where the target counted itself
    (`gc.json`). `baseline` is a census from when all was well, and `since_baseline` what has grown since; without one `not_compared` says why.
    """

    growth: tuple[TypeTotal, ...]
    seconds: float
    full_collection: bool
    before: HeapCensus
    after: HeapCensus
    mappings: dict[str, int] = {}
    injection: Injection | None = None
    baseline: HeapCensus | None = None
    since_baseline: tuple[TypeTotal, ...] = ()
    not_compared: str = ""


class HeapCapture:
    """Growth by type as `heap.json`."""

    kind = "heap"
    attaches = True
    duration = SECONDS

    def __init__(self, *, clock: Clock | None = None, limits: CensusLimits = CensusLimits()) -> None:  # noqa: B008 - frozen
        self._clock = clock or SystemClock()
        self._limits = limits

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        """Count, wait for at most `plan.duration` seconds for a full collection, and count again.

        Raises:
            TargetError: the target has ended, may not be read, or is no CPython that the reader knows.
        """
        interpreter = await asyncio.to_thread(open_process, plan.target.id.pid)
        collections = _full_collections(interpreter)
        before = await self._count(interpreter)
        seen = await self._wait(interpreter, collections, plan.duration)
        after = await self._count(interpreter)
        baseline = plan.heap_before() if plan.heap_before else _UNWATCHED
        known = None if isinstance(baseline, str) else baseline
        document = HeapDocument(
            growth=grown(before, after),
            seconds=after.time - before.time,
            full_collection=seen,
            before=before,
            after=after,
            mappings=await asyncio.to_thread(_mappings, plan.target.id),
            baseline=known,
            since_baseline=grown(known, after) if known else (),
            not_compared=baseline if isinstance(baseline, str) else "",
        )
        (plan.folder / "heap.json").write_bytes(msgspec.json.encode(document))
        return CaptureResult(
            files=(CapturedFile("heap.json", "heap", "json"),),
            lost_samples=before.torn + after.torn,
            note=describe(document),
        )

    async def _wait(self, interpreter: Interpreter, collections: int, seconds: float) -> bool:
        """Whether a full collection has ended within so many seconds."""
        end = self._clock.monotonic() + seconds
        while (left := end - self._clock.monotonic()) > 0:
            await self._clock.sleep(min(_POLL, left))
            if _full_collections(interpreter) > collections:
                return True
        return False

    async def _count(self, interpreter: Interpreter) -> HeapCensus:
        return await asyncio.to_thread(count, interpreter, self._limits, self._clock)


def count(
    interpreter: Interpreter, limits: CensusLimits, clock: Clock, attempts: int = _ATTEMPTS
) -> HeapCensus:
    """The best of a few walks: the first that reached the end of every list, else the one that came furthest.

    Raises:
        UnreadableError: not one of them counted anything.
    """
    best: Census | None = None
    for _ in range(attempts):
        try:
            census = interpreter.census(limits, _rest)
        except UnreadableError:
            continue
        if best is None or not census.torn or census.objects > best.objects:
            best = census
        if not census.torn:
            break
    if best is None:
        raise UnreadableError("the lists of the garbage collector cannot be read")
    types = tuple(TypeTotal(clean_name(each.name), each.count, each.bytes) for each in best.types[:_KEPT])
    return HeapCensus(clock.wall(), best.objects, types, best.torn, best.cut)


def grown(before: HeapCensus, after: HeapCensus) -> tuple[TypeTotal, ...]:
    """The types of which there are more, or which take more, than before; of one that is not known from before, what is sure."""
    old = {each.name: each for each in before.types}
    nothing = TypeTotal("", before.left_out, 0)
    differences = (
        TypeTotal(each.name, each.count - was.count, each.bytes - was.bytes)
        for each in after.types
        for was in (old.get(each.name, nothing),)
    )
    more = [each for each in differences if each.count > 0 or each.bytes > 0]
    return tuple(sorted(more, key=lambda each: (-each.bytes, -each.count, each.name))[:_TYPES])


def _rest() -> None:
    time.sleep(_REST)


def _full_collections(interpreter: Interpreter) -> int:
    try:
        return interpreter.collector().read().generations[-1].collections
    except UnreadableError:
        return 0


def _mappings(target: TargetId) -> dict[str, int]:
    """Bytes of address space by kind; empty where it cannot be read. No `smaps`: that would hold the target's memory lock for longer."""
    try:
        with ProcDir.of(target) as proc:
            found = totals(parse(text(proc.read("maps", _MAX_MAPS)).splitlines()))
    except OSError:
        return {}
    without_file = ("malloc_arenas", "thread_stacks", "anonymous", "shared")
    return {
        "heap": found["main_heap"].bytes,
        "anonymous": sum(found[kind].bytes for kind in without_file),
        "files": found["files"].bytes,
    }


def describe(document: HeapDocument) -> str:
    """The document in a line."""
    count = document.after.objects - document.before.objects
    words = [f"{count:+} tracked objects within {format_duration(document.seconds)}"]
    if not document.full_collection:
        words.append("no full collection was seen in between")
    if document.before.torn or document.after.torn:
        words.append("lists changed under the walk, so some objects are not counted")
    if document.before.cut or document.after.cut:
        words.append("there are more objects than are counted")
    if document.baseline is not None:
        words.append(
            f"compared with {format_duration(document.after.time - document.baseline.time)} before, when all was well"
        )
    return "; ".join(words)
