"""`gc`: what the collector tracks by type, counted in the target itself, and the difference. Needs `capture.allow_injection`.

`heap` counts the same from outside and costs the target nothing; here the tables of dicts and sets are in the bytes, and the pair
is of two exact moments, for which the GIL is held (inject/payload/census.py).
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta

from sentinel_agent.capture.base import CapturedFile, CapturePlan, CaptureResult
from sentinel_agent.capture.heap import HeapCensus, HeapDocument, TypeTotal, describe, grown
from sentinel_agent.capture.injected import MOST_BYTES, Answer, InjectedCapture, Natural, inject, refuse
from sentinel_agent.profile.record import MAX_NAME, clean_name

_Counted = Annotated[
    tuple[tuple[Annotated[str, Meta(max_length=MAX_NAME)], Natural, Natural], ...], Meta(max_length=5000)
]


class _Census(Answer, frozen=True, kw_only=True):
    full_collection: bool = False
    before: _Counted = ()
    after: _Counted = ()


class GcCapture(InjectedCapture):
    """Growth by type as `gc.json`, in the form of `heap.json`."""

    kind = "gc"

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        """Count, wait for at most `plan.duration` seconds for a full collection, and count again.

        Raises:
            NotAllowedError: the settings do not allow it.
            TargetError: the target is not fit for it, near its memory limit, has too many objects, or did not answer.
            PeerError: hypno is missing or failed, or the answer is nonsense.
        """
        refuse(plan)
        answer, injection = await inject(plan, "census", {"most_bytes": MOST_BYTES}, _Census, self._clock)
        end = self._clock.wall()
        before = _census(answer.before, end - answer.seconds)
        after = _census(answer.after, end)
        document = HeapDocument(
            growth=grown(before, after),
            seconds=answer.seconds,
            full_collection=answer.full_collection,
            before=before,
            after=after,
            injection=injection,
        )
        await asyncio.to_thread((plan.folder / "gc.json").write_bytes, msgspec.json.encode(document))
        return CaptureResult(
            files=(CapturedFile("gc.json", "gc", "json"),),
            pause_us=injection.pause_us,
            gil_hold_us=injection.gil_hold_us,
            note=describe(document),
        )


def _census(counted: _Counted, time: float) -> HeapCensus:
    """Types of one name together, the most bytes first."""
    sums: dict[str, list[int]] = {}
    for name, count, size in counted:
        entry = sums.setdefault(clean_name(name), [0, 0])
        entry[0] += count
        entry[1] += size
    types = [TypeTotal(name, count, size) for name, (count, size) in sums.items()]
    types.sort(key=lambda each: (-each.bytes, each.name))
    return HeapCensus(time, sum(each.count for each in types), tuple(types), torn=0, cut=False)
