"""`series`: the readings before and after the trigger, as `series.json`."""

from __future__ import annotations

import msgspec

from sentinel_agent.capture.base import CapturedFile, CapturePlan, CaptureResult


class SeriesCapture:
    """The window of readings that the agent holds in memory; nothing is asked of the target."""

    kind = "series"
    attaches = False

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        """Write `series.json`, the document `SeriesWindow`."""
        (plan.folder / "series.json").write_bytes(msgspec.json.encode(plan.series()))
        return CaptureResult(files=(CapturedFile("series.json", "series", "json"),))
